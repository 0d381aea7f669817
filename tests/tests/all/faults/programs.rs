//! Which program a process runs.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use postern_tests::{binaries, eventually, run, world::World};

use super::{a_good_client_is_served, fetch, ours, script, workload};

fn copy(world: &World, name: &str) -> PathBuf {
    let to = world.path().join(name);
    postern_tests::copy_program(binaries().unwrap().join("postern-agent"), &to).unwrap();
    to
}

fn by_path(name: &str, path: &Path) -> String {
    workload(name, &format!("\"unix:path:{}\"", path.display()))
}

fn digest(path: &Path) -> String {
    let output = run("sha256sum", &[path.to_str().unwrap()]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_program_that_was_deleted_has_no_path_any_more() {
    // FAULTS 15
    let mut world = World::new().unwrap();
    let program = copy(&world, "app");
    world.agent(&by_path("app", &program)).unwrap();
    assert_eq!(
        script(
            &world,
            "callers.py",
            "deleted",
            &[program.to_str().unwrap()]
        ),
        ["an identity", "withdrawn"]
    );
}

#[test]
fn a_link_gains_no_identity_and_what_it_points_to_does() {
    // FAULTS 16
    let mut world = World::new().unwrap();
    let (program, link) = (copy(&world, "app"), world.path().join("link"));
    symlink(&program, &link).unwrap();
    let both = by_path("link", &link) + &by_path("app", &program);
    world.agent(&both).unwrap();
    let output = fetch(&world, &link);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("example.org/app"), "{text}");
    assert!(!text.contains("example.org/link"), "{text}");
}

#[test]
fn a_path_that_somebody_mounted_for_himself_gains_no_identity() {
    // FAULTS 16
    let mut world = World::new().unwrap();
    let (program, other) = (copy(&world, "app"), copy(&world, "other"));
    let socket = world.agent(&by_path("app", &program)).unwrap();
    assert!(fetch(&world, &program).status.success());
    let line = format!(
        "mount --bind {} {program} && exec {program} api fetch -socketPath {}",
        other.display(),
        socket.display(),
        program = program.display(),
    );
    let unshare = ["--user", "--map-root-user", "--mount", "sh", "-c", &line];
    let output = run("unshare", &unshare).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("no identity issued"), "{error}");
}

#[test]
fn a_file_that_is_named_like_a_deleted_one_is_itself() {
    // FAULTS 17
    let mut world = World::new().unwrap();
    let (named, other) = (copy(&world, "app (deleted)"), copy(&world, "app"));
    world.agent(&by_path("named", &named)).unwrap();
    assert!(fetch(&world, &named).status.success());
    let said = script(&world, "callers.py", "deleted", &[named.to_str().unwrap()]);
    assert_eq!(said, ["an identity", "withdrawn"], "it is deleted itself");
    assert!(!fetch(&world, &other).status.success());
}

/// The newest line that a watching program has printed.
fn newest(world: &World) -> String {
    let log = fs::read_to_string(world.log("watch")).unwrap();
    log.lines().last().unwrap_or_default().to_owned()
}

/// Has a program watch what it is.
fn watch(world: &mut World, program: &Path) {
    let mut command = Command::new(program);
    command.args(["api", "watch", "-output", "json", "-socketPath"]);
    command.arg(world.path().join("public/agent.sock"));
    world.spawn("watch", &mut command).unwrap();
}

#[test]
fn a_program_that_was_replaced_is_what_runs_and_not_what_lies_in_its_place() {
    // FAULTS 15
    let mut world = World::new().unwrap();
    let (program, other) = (copy(&world, "app"), copy(&world, "other"));
    let mut longer = OpenOptions::new().append(true).open(&other).unwrap();
    longer.write_all(b"x").unwrap();
    drop(longer);
    let by_digest = |name, path| workload(name, &format!("'unix:sha256:{}'", digest(path)));
    let all = by_path("app", &program) + &by_digest("old", &program) + &by_digest("new", &other);
    world.agent(&all).unwrap();
    watch(&mut world, &program);
    let has = |line: &str, names: [bool; 3]| {
        ["app", "old", "new"].map(|name| line.contains(&format!("example.org/{name}\""))) == names
    };
    let told = |names| {
        eventually("what it is", || has(&newest(&world), names).then_some(())).unwrap();
    };
    told([true, true, false]);
    fs::rename(&other, &program).unwrap();
    told([false, true, false]);
    let fresh = String::from_utf8(fetch(&world, &program).stdout).unwrap();
    assert!(has(&fresh, [true, false, true]), "{fresh}");
}

#[test]
fn a_deleted_program_is_not_the_file_that_is_named_like_it() {
    // FAULTS 17
    let mut world = World::new().unwrap();
    let (named, app) = (copy(&world, "app (deleted)"), copy(&world, "app"));
    let documents = by_path("named", &named) + &ours();
    world.agent(&documents).unwrap();
    watch(&mut world, &app);
    eventually("an identity", || {
        newest(&world).contains("example.org/ours").then_some(())
    })
    .unwrap();
    fs::remove_file(&app).unwrap();
    // Its link in `/proc` is now the path of the other file, letter by letter.
    let more = ours().replace("ours", "third");
    world
        .write("workloads/workloads.yaml", &(documents + &more))
        .unwrap();
    eventually("another look", || {
        newest(&world).contains("example.org/third").then_some(())
    })
    .unwrap();
    assert!(!newest(&world).contains("example.org/named"));
    assert!(
        String::from_utf8(fetch(&world, &named).stdout)
            .unwrap()
            .contains("example.org/named")
    );
}

#[test]
fn a_program_of_four_gigabytes_costs_nothing() {
    // FAULTS 18
    let mut world = World::new().unwrap();
    let (small, huge) = (copy(&world, "small"), copy(&world, "huge"));
    let by_digest = workload("small", &format!("'unix:sha256:{}'", digest(&small)));
    world.agent(&(by_digest + &ours())).unwrap();
    let file = OpenOptions::new().write(true).open(&huge).unwrap();
    file.set_len(4 << 30).unwrap();
    drop(file);
    for number in 0..100 {
        let output = fetch(&world, &huge);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("example.org/ours") && !text.contains("example.org/small"));
        if number % 10 == 0 {
            a_good_client_is_served(&world);
        }
    }
    let text = String::from_utf8(fetch(&world, &small).stdout).unwrap();
    assert!(text.contains("example.org/small"), "{text}");
    a_good_client_is_served(&world);
}
