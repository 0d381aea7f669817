//! Workloads on file systems that answer no more: they wait, and nobody else does.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use postern_tests::{root, run, world::World};

use super::{a_good_client_is_served, ours, script, workload};

const USER: u32 = 12_021;
const HUNG: &str = "spiffe://example.org/hung";
const UNAVAILABLE: &str = "status 14";

const PLAIN: Document = |name, selectors, _| workload(name, selectors);

/// The interpreter that the tests have, which another user may run.
fn python() -> PathBuf {
    fs::canonicalize(root().join("target/python/bin/python")).unwrap()
}

fn digest(path: &str) -> String {
    let said = run("sha256sum", &[path]).unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    said.split_whitespace().next().unwrap().to_owned()
}

/// A Workload by its name, selectors and program.
type Document = fn(&str, &str, &str) -> String;

/// One whose pods may run its program and nothing else.
fn watched(name: &str, selectors: &str, program: &str) -> String {
    let plain = workload(name, selectors);
    let more = format!("], onDrift: revoke, baseline: {{executables: ['{program}']}}}}");
    plain.replace("]}", &more)
}

/// A world in which `hung` is whoever runs a program from the folder `hanging`.
fn world(more: &str, document: Document) -> World {
    let mut world = World::new().unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(world.path(), open).unwrap();
    fs::create_dir(world.path().join("hanging")).unwrap();
    postern_tests::copy_program(python(), world.path().join("python")).unwrap();
    let program = world.path().join("hanging/program").display().to_string();
    let copy = world.path().join("python").display().to_string();
    let hung = format!("'unix:uid:{USER}', 'unix:path:{program}'");
    let same_user = format!("'unix:uid:{USER}', 'unix:path:{copy}'");
    let other = format!("'unix:uid:{}', 'unix:path:{copy}'", USER + 1);
    let documents = document("hung", &(hung + more), &program)
        + &document("same-user", &same_user, &copy)
        + &document("other-user", &other, &copy)
        + &ours();
    world.agent(&documents).unwrap();
    world
}

fn lines(world: &World, case: &str) -> Vec<String> {
    let (folder, copy) = (world.path().join("hanging"), world.path().join("python"));
    let arguments = [
        folder.to_str().unwrap(),
        copy.to_str().unwrap(),
        &USER.to_string(),
        &world.pid("agent").unwrap().to_string(),
    ];
    script(world, "hanging.py", case, &arguments)
}

#[test]
#[ignore = "needs root, to mount a file system"]
fn root_a_file_system_that_hangs_holds_up_nobody_but_those_who_run_from_it() {
    let world = world("", PLAIN);
    assert_eq!(
        lines(&world, "hangs"),
        [
            HUNG,
            HUNG,
            &format!("['{UNAVAILABLE}']"),
            "few threads",
            "spiffe://example.org/same-user",
            "spiffe://example.org/other-user",
            "silent",
            &format!("{HUNG} 0"),
        ]
    );
    a_good_client_is_served(&world);
    let log = world.told("agent", "gives no answer within 2 s").unwrap();
    assert!(log.contains(&format!("of user {USER}")), "{log}");
}

#[test]
#[ignore = "needs root, to mount a file system"]
fn root_who_runs_from_a_file_system_that_hangs_is_told_what_is_known_without_it() {
    // Its name is in the kernel's memory, and nobody asks what it contains.
    assert_eq!(lines(&world("", PLAIN), "names"), [HUNG; 3]);
    // Somebody does.
    let digest = digest(python().to_str().unwrap());
    let said = lines(&world(&format!(", 'unix:sha256:{digest}'"), PLAIN), "names");
    assert_eq!(said, [HUNG, UNAVAILABLE, HUNG]);
}

#[test]
#[ignore = "needs root, to mount a file system"]
fn root_a_pod_that_runs_from_a_file_system_that_hangs_hides_no_other() {
    let said = lines(&world("", watched), "drifts");
    assert_eq!(said, ["spiffe://example.org/other-user", HUNG, "status 7"]);
}
