//! What others see of a program that runs inside walls.

use std::process::{Command, Stdio};

use postern_tests::{binaries, eventually, run, world::World};

use super::{postern_run, works};

#[test]
#[ignore = "needs root, to make control groups and to look at others"]
fn root_an_agent_finds_a_restricted_program_restricted() {
    let mut world = World::new().unwrap();
    world.agent("").unwrap();
    let mut command = Command::new(postern_run());
    command
        .args(["--profile", "restricted", "--", "cat"])
        .stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let inside = eventually("the program inside", || {
        let init = children(child.id())?;
        children(init).filter(|pid| name(*pid).as_deref() == Some("cat"))
    });
    let pid = inside.unwrap().to_string();
    let agent = binaries().unwrap().join("postern-agent");
    let judged = |pid: &str| {
        let output = run(
            agent.to_str().unwrap(),
            &["posture", "--pid", pid, "--json"],
        )
        .unwrap();
        // Yes and no are told by the code; what was found is told either way.
        String::from_utf8(output.stdout).unwrap()
    };
    let told = judged(&pid);
    let own = std::process::id().to_string();
    let outside = judged(&own);
    for selector in [
        "posture:ns:pid:own",
        "posture:ns:mnt:own",
        "posture:ns:ipc:own",
        "posture:ns:uts:own",
        "posture:ns:net:own",
        "posture:ns:cgroup:own",
        "posture:caps:none",
        "posture:seccomp:filter",
        "posture:no-new-privs",
        "posture:nonroot",
    ] {
        assert!(told.contains(selector), "`{selector}` in {told}");
        assert!(
            !outside.contains(selector),
            "`{selector}` of this test: {outside}"
        );
    }
    // Process 1 is no weaker: a pod is as good as its worst process.
    let init = judged(&children(child.id()).unwrap().to_string());
    for selector in [
        "posture:caps:none",
        "posture:seccomp:filter",
        "posture:nonroot",
    ] {
        assert!(init.contains(selector), "`{selector}` in {init}");
    }
    drop(child.stdin.take());
    works(&child.wait_with_output().unwrap());
}

fn children(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn name(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim().to_owned())
}
