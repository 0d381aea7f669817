//! What a hostile program does to its machine, inside walls, while an agent beside it serves.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use postern_tests::{binaries, run, world::World};
use rustix::process::{Pid, Signal, kill_process};

use super::{complained, postern_run, shell, works};

/// An attack that runs until it is dropped.
struct Attack(Child);

impl Attack {
    fn start(flags: &[&str], script: &str) -> Self {
        let mut command = Command::new(postern_run());
        command.args(flags).args(["--", "sh", "-c", script]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// It says so when it has begun.
    fn has_begun(&mut self) {
        use std::io::{BufRead as _, BufReader};
        let output = self.0.stdout.as_mut().unwrap();
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "begun\n");
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        // The shell ends, with it everything inside, and the groups are taken away.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

fn serves(socket: &Path) {
    let agent = binaries().unwrap().join("postern-agent");
    let socket = socket.to_str().unwrap();
    for _ in 0..5 {
        let fetch = [
            "api",
            "fetch",
            "x509",
            "-socketPath",
            socket,
            "-output",
            "json",
        ];
        let told = works(&run(agent.to_str().unwrap(), &fetch).unwrap());
        assert!(told.contains("spiffe://example.org/"), "{told}");
    }
}

fn served_during(attack: &str) {
    let mut world = World::new().unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let me = format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web}}\n\
         spec: {{serviceAccount: web, selectors: ['unix:uid:{uid}']}}\n"
    );
    let socket = world.agent(&me).unwrap();
    serves(&socket);
    let limits = [
        "--memory", "64m", "--pids", "64", "--cpus", "0.5", "--net", "none",
    ];
    let mut attack = Attack::start(&limits, attack);
    attack.has_begun();
    serves(&socket);
    drop(attack);
    serves(&socket);
}

#[test]
#[ignore = "needs root, to make control groups"]
fn root_an_agent_serves_beside_a_fork_bomb() {
    served_during(
        "echo begun; bomb() { bomb 2>/dev/null | bomb 2>/dev/null & }; while :; do bomb; done",
    );
}

#[test]
#[ignore = "needs root, to make control groups"]
fn root_an_agent_serves_beside_memory_bombs() {
    served_during(
        "echo begun; while :; do \
         /usr/bin/python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))' 2>/dev/null; done",
    );
}

#[test]
#[ignore = "needs root, to make control groups"]
fn root_an_agent_serves_beside_busy_loops() {
    served_during("for i in 1 2 3 4 5 6 7 8; do yes > /dev/null & done; echo begun; wait");
}

#[test]
#[ignore = "needs root, to make control groups"]
fn root_an_agent_serves_beside_whoever_fills_disks() {
    served_during(
        "echo begun; while :; do cat /dev/zero > /tmp/fill 2>/dev/null; \
         cat /dev/zero > /dev/shm/fill 2>/dev/null; cat /dev/zero > /etc/fill 2>/dev/null; done",
    );
    let left = shell(&["--tmp-size", "1m"], "head -c 2m /dev/zero > /tmp/fill");
    assert!(complained(&left).contains("No space left"));
    assert!(!Path::new("/etc/fill").exists());
}
