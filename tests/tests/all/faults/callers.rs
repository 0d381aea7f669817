//! Who calls: the process that connected, as it is now, or nobody.

use std::{fs, process::Command};

use postern_tests::{
    binaries, root, run,
    world::{World, free_address},
};

use super::{ours, own_uid, script, workload};

const DENIED: &str = "status 7";

/// A world whose socket everybody can reach.
fn world(workloads: &str, more: &str) -> World {
    let mut world = World::new().unwrap();
    world.agent_with(workloads, more).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(world.path(), open).unwrap();
    world
}

fn two_users() -> String {
    workload("first", "'unix:uid:12001'") + &workload("second", "'unix:uid:12002'")
}

#[test]
#[ignore = "needs root, to give a number out again"]
fn root_a_number_that_was_given_out_again_is_nobodys() {
    // FAULTS 1
    let world = world(&two_users(), "");
    assert_eq!(
        script(&world, "callers.py", "reused", &["12001", "12002"]),
        [DENIED]
    );
}

#[test]
#[ignore = "needs root, to be another process in the kernel's record"]
fn root_a_record_that_the_caller_sends_is_not_believed() {
    // FAULTS 2
    let world = world(&(ours() + &two_users()), "");
    let mut victim = Command::new("setpriv")
        .args([
            "--reuid=12001",
            "--regid=12001",
            "--clear-groups",
            "sleep",
            "60",
        ])
        .spawn()
        .unwrap();
    let pid = victim.id().to_string();
    let said = script(&world, "callers.py", "forged", &[&pid, "12001"]);
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert_eq!(said, ["spiffe://example.org/ours"]);
}

#[test]
fn a_connection_whose_process_has_ended_is_nobodys() {
    // FAULTS 3
    let world = world(&ours(), "");
    assert_eq!(script(&world, "callers.py", "gone", &[]), [DENIED]);
    assert_eq!(
        script(&world, "callers.py", "handed", &[]),
        ["spiffe://example.org/ours"],
        "its twin lives"
    );
}

#[test]
#[ignore = "needs root, to change the user"]
fn root_a_connection_that_was_handed_on_is_that_of_who_opened_it() {
    // FAULTS 4, 8: the one who asks is root, and would have another identity.
    let world = world(&(ours() + &two_users()), "");
    assert_eq!(
        script(&world, "callers.py", "handed", &["12001"]),
        ["spiffe://example.org/first"]
    );
    assert_eq!(script(&world, "callers.py", "handed", &["12003"]), [DENIED]);
}

fn sleep() -> String {
    let path = run("sh", &["-c", "readlink -f $(command -v sleep)"]).unwrap();
    String::from_utf8(path.stdout).unwrap().trim().to_owned()
}

fn python() -> String {
    let python = fs::canonicalize(root().join("target/python/bin/python")).unwrap();
    python.display().to_string()
}

fn by_program() -> String {
    workload("python", &format!("'unix:path:{}'", python()))
        + &workload("sleep", &format!("'unix:path:{}'", sleep()))
}

#[test]
fn a_connection_is_that_of_the_program_that_opened_it_and_of_no_other() {
    // FAULTS 6
    let world = world(&(by_program() + &ours()), "");
    assert_eq!(
        script(&world, "callers.py", "executes", &[&sleep(), "60"]),
        [DENIED]
    );
    assert_eq!(
        script(&world, "callers.py", "handed", &[]),
        ["spiffe://example.org/ours spiffe://example.org/python"],
        "its twin executes nothing"
    );
}

#[test]
fn who_becomes_another_program_while_it_is_looked_at_is_one_of_them_or_nobody() {
    // FAULTS 6
    // Whoever is taken for something of both.
    let selectors = |path: &str, other: &str| {
        let said = run("sha256sum", &[other]).unwrap().stdout;
        let digest = String::from_utf8(said).unwrap();
        let digest = digest.split_whitespace().next().unwrap();
        format!("'unix:path:{path}', 'unix:sha256:{digest}'")
    };
    let (python, sleep) = (python(), sleep());
    let mixed = workload("mixed", &selectors(&python, &sleep))
        + &workload("mixed-too", &selectors(&sleep, &python));
    let world = world(&(by_program() + &mixed), "");
    let said = script(&world, "callers.py", "races", &[&sleep]);
    let good = ["spiffe://example.org/python", DENIED];
    assert!(
        said.iter().all(|one| good.contains(&one.as_str())),
        "{said:?}"
    );
}

#[test]
#[ignore = "needs root, to be another user"]
fn root_a_program_of_roots_that_somebody_starts_does_not_ask_for_him() {
    let world = world(&workload("root", "'unix:uid:0'"), "");
    // It belongs to root, and runs as root whoever starts it.
    let program = world.path().join("sleeps-as-root");
    postern_tests::copy_program(sleep(), &program).unwrap();
    let set_user = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    fs::set_permissions(&program, set_user).unwrap();
    let output = Command::new(root().join("target/python/bin/python"))
        .arg(root().join("tests/python/callers.py"))
        .arg("executes")
        .arg(world.path().join("public/agent.sock"))
        .args([program.to_str().unwrap(), "60"])
        .env("CALLER", "12001")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        said.trim(),
        DENIED,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_stream_ends_when_its_process_executes_another_program() {
    // FAULTS 5
    let documents = by_program();
    let python_alone = documents.split("---\n").next().unwrap();
    let world = world(python_alone, "");
    assert_eq!(
        script(&world, "callers.py", "executes_later", &[&sleep()]),
        ["spiffe://example.org/python", DENIED]
    );
}

#[test]
#[ignore = "needs root, to hear of processes from the kernel"]
fn root_a_stream_ends_at_once_when_its_process_executes_another_program() {
    // FAULTS 5: long before the timer.
    let documents = by_program();
    let python_alone = documents.split("---\n").next().unwrap();
    let world = world(python_alone, "reattest: {every: 1h}\n");
    assert_eq!(
        script(&world, "callers.py", "executes_later", &[&sleep()]),
        ["spiffe://example.org/python", DENIED]
    );
}

#[test]
#[ignore = "needs root, to hear of processes from the kernel and to change the user"]
fn root_a_stream_ends_at_once_when_its_process_changes_its_user() {
    let world = world(&workload("root", "'unix:uid:0'"), "reattest: {every: 1h}\n");
    assert_eq!(
        script(&world, "callers.py", "changes_user", &["12001"]),
        ["spiffe://example.org/root", DENIED]
    );
}

#[test]
fn on_older_kernels_callers_are_pinned_and_told_apart_all_the_same() {
    // FAULTS 3, 6
    let script_of = |names: &str| {
        let mut wrapper = Command::new("python3");
        wrapper.arg(root().join("tests/python/old_kernel.py"));
        wrapper.arg(names);
        wrapper
    };
    for names in ["peer-pidfd", "pidfd-info", "peer-pidfd,pidfd-info"] {
        let mut world = World::new().unwrap();
        let both = ours() + &by_program();
        world.agent_under(script_of(names), &both, "").unwrap();
        assert_eq!(script(&world, "callers.py", "gone", &[]), [DENIED]);
        assert_eq!(
            script(&world, "callers.py", "handed", &[]),
            ["spiffe://example.org/ours spiffe://example.org/python"],
            "{names}"
        );
        assert_eq!(
            script(&world, "callers.py", "executes", &[&sleep(), "60"]),
            [DENIED],
            "{names}"
        );
    }
}

#[test]
fn nobody_reads_the_agents_keys_out_of_its_memory() {
    // FAULTS 7
    let world = world(&ours(), "");
    let agent = pid(&world);
    let limits = fs::read_to_string(format!("/proc/{agent}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let fields: Vec<&str> = core.unwrap().split_whitespace().collect();
    assert_eq!(fields.get(4..6), Some(&["0", "0"][..]), "{fields:?}");
    if own_uid() != 0 {
        // What is not dumpable belongs to root.
        assert!(fs::read(format!("/proc/{agent}/environ")).is_err());
    }
}

/// The agent's number, by the lock that it holds.
fn pid(world: &World) -> String {
    let config = world.path().join("agent.yaml");
    let pattern = format!("postern-agent run --config {}", config.display());
    let found = run("pgrep", &["-f", &pattern]).unwrap();
    String::from_utf8(found.stdout).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs root, to make a PID namespace"]
fn root_a_caller_whose_number_the_agent_cannot_see_gets_nothing_but_the_mend() {
    // FAULTS 9, 10
    let mut world = World::new().unwrap();
    let config = world.path().join("agent.yaml");
    let health = free_address().unwrap();
    let more = format!("health: {{listen: '{health}'}}\n");
    world.agent_with(&ours(), &more).unwrap();
    let ready = format!("http://{health}/healthz/ready");
    let ready = || String::from_utf8(run("curl", &["-s", &ready]).unwrap().stdout).unwrap();
    assert_eq!(ready(), "ok\n");
    world
        .signal("agent", rustix::process::Signal::TERM)
        .unwrap();
    world.ended("agent").unwrap();
    let agent = binaries().unwrap().join("postern-agent");
    let mut inside = Command::new("unshare");
    inside.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    inside.arg(&agent).args(["run", "--config"]).arg(config);
    world.spawn("inside", &mut inside).unwrap();
    world.said("inside", "ready").unwrap();
    assert!(ready().contains("hostPID: true"), "{}", ready());
    let output = super::fetch(&world, &agent);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("PermissionDenied") && error.contains("hostPID: true"),
        "{error}"
    );
}

#[test]
#[ignore = "needs root, to make control groups"]
fn root_a_stream_ends_when_its_process_is_moved_to_another_control_group() {
    // FAULTS 11
    let base = match fs::metadata("/sys/fs/cgroup/pids") {
        Ok(_) => "/sys/fs/cgroup/pids",
        Err(_) => "/sys/fs/cgroup",
    };
    let group = format!("{base}/postern-faults");
    let _ = fs::remove_dir(&group);
    fs::create_dir(&group).unwrap();
    let world = world(
        &workload("grouped", "'cgroup:path:/postern-faults'"),
        "attestors: {cgroup: {}}\n",
    );
    let said = script(&world, "callers.py", "moves", &[&group]);
    let _ = postern_tests::eventually("the group to be empty", || fs::remove_dir(&group).ok());
    assert_eq!(said, ["spiffe://example.org/grouped", DENIED]);
}

#[test]
#[ignore = "needs root, to make a PID namespace"]
fn root_an_agent_whose_namespace_is_meant_is_ready_and_one_with_the_hosts_proc_does_not_start() {
    // FAULTS 10
    let health = free_address().unwrap();
    let more = format!("idleTimeout: 5m, pidNamespace: own\nhealth: {{listen: '{health}'}}\n");
    let mut meant = World::new().unwrap();
    let mut wrapper = Command::new("unshare");
    wrapper.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    meant.agent_under(wrapper, &ours(), &more).unwrap();
    let ready = format!("http://{health}/healthz/ready");
    assert_eq!(run("curl", &["-s", &ready]).unwrap().stdout, b"ok\n");
    // Numbers would be those of other processes there.
    let mut world = World::new().unwrap();
    world.agent(&ours()).unwrap();
    world
        .signal("agent", rustix::process::Signal::TERM)
        .unwrap();
    world.ended("agent").unwrap();
    let mut inside = Command::new("unshare");
    inside.args(["--pid", "--fork", "--kill-child"]);
    inside.arg(binaries().unwrap().join("postern-agent"));
    inside
        .args(["run", "--config"])
        .arg(world.path().join("agent.yaml"));
    world.spawn("inside", &mut inside).unwrap();
    assert_eq!(world.ended("inside").unwrap(), Some(1));
    world.told("inside", "shows another PID namespace").unwrap();
}

#[test]
#[ignore = "needs root, to show the agent other control groups"]
fn root_a_text_of_control_groups_that_no_kernel_writes_or_that_is_too_long_is_refused() {
    // FAULTS 13, 14
    let mut world = World::new().unwrap();
    let mut wrapper = Command::new("unshare");
    wrapper.args(["--mount", "--propagation", "private"]);
    let grouped = workload("grouped", "'cgroup:path:/postern-faults'");
    let more = "attestors: {cgroup: {}}\n";
    world.agent_under(wrapper, &grouped, more).unwrap();
    let agent = world.pid("agent").unwrap().to_string();
    let controllers: Vec<String> = (0..4_000).map(|number| format!("c{number}")).collect();
    let good = "0::/postern-faults\n";
    let texts = [
        (good.to_owned(), true),
        (format!("9:pids:/\n{good}"), true),
        (format!("9:{}:/\n{good}", controllers.join(",")), true),
        ("0::/postern-fault\n".to_owned(), false),
        (format!("{good}nonsense\n"), false),
        (format!("{good}9:pids\n"), false),
        ("0:/postern-faults\n".to_owned(), false),
        ("0::postern-faults\n".to_owned(), false),
        (
            format!("9:pids:/{}\n", "a".repeat(4096)).repeat(70) + good,
            false,
        ),
        (good.to_owned(), true),
    ];
    for (text, is_good) in texts {
        let file = world.write("groups", &text).unwrap();
        let said = script(
            &world,
            "callers.py",
            "shown",
            &[&agent, file.to_str().unwrap()],
        );
        let expected = if is_good {
            "spiffe://example.org/grouped"
        } else {
            DENIED
        };
        assert_eq!(said, [expected, "grown little True"], "{:.60}", text);
    }
}

#[test]
#[ignore = "needs root, to be another user"]
fn root_nobody_of_the_agents_own_user_reads_its_memory() {
    // FAULTS 7
    let mut world = World::new().unwrap();
    let program = world.path().join("postern-agent");
    postern_tests::copy_program(binaries().unwrap().join("postern-agent"), &program).unwrap();
    let other = world
        .agent(&ours())
        .map(|_| world.path().join("agent.yaml"))
        .unwrap();
    world
        .signal("agent", rustix::process::Signal::TERM)
        .unwrap();
    world.ended("agent").unwrap();
    let owned = run("chown", &["-R", "12001", world.path().to_str().unwrap()]).unwrap();
    assert!(owned.status.success());
    let as_user = ["--reuid=12001", "--regid=12001", "--clear-groups"];
    let mut agent = Command::new("setpriv");
    agent
        .args(as_user)
        .arg(&program)
        .args(["run", "--config"])
        .arg(other);
    world.spawn("own", &mut agent).unwrap();
    world.said("own", "ready").unwrap();
    let mut twin = Command::new("setpriv");
    world
        .spawn("twin", twin.args(as_user).args(["sleep", "60"]))
        .unwrap();
    let reads = |name: &str, what: &str| {
        let path = format!("/proc/{}/{what}", world.pid(name).unwrap());
        let mut head = Command::new("setpriv");
        head.args(as_user)
            .args(["dd", "count=0", &format!("if={path}")]);
        head.output().unwrap().status.success()
    };
    postern_tests::eventually("the twin to be another user", || {
        reads("twin", "environ").then_some(())
    })
    .unwrap();
    for what in ["environ", "maps"] {
        assert!(reads("twin", what) && !reads("own", what), "{what}");
    }
    assert!(!reads("own", "mem"));
}
