//! Posture: what the kernel shows of real processes, and who gets an identity for it.
//!
//! Those with containers need root and a running engine, so they are run by name: `cargo test -p
//! postern-tests --test all -- --ignored docker`.

mod containers;
mod walls;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use postern_tests::{binaries, eventually, run, world::World};
use serde_json::Value;

/// What `posture --json` says.
#[derive(Debug)]
struct Posture {
    restricted: bool,
    baseline: bool,
    selectors: Vec<String>,
    /// By layer: status, why, mend.
    findings: BTreeMap<String, [String; 3]>,
}

impl Posture {
    /// Of a process, which may have this folder of the Workload API mounted.
    fn of(pid: u32, world: Option<&World>) -> Self {
        let socket = world.map(|world| world.path().join("public/agent.sock"));
        let socket = socket.unwrap_or_else(|| PathBuf::from("/run/postern/agent.sock"));
        let pid = pid.to_string();
        let socket = socket.to_str().unwrap();
        let output = posture(&["--pid", &pid, "--json", "-socketPath", socket]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        Self::read(&serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Exactly what was promised, and nothing beside.
    fn read(answer: &Value) -> Self {
        let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["baseline", "findings", "restricted", "selectors"]);
        let mut findings = BTreeMap::new();
        for finding in answer["findings"].as_array().unwrap() {
            let keys: Vec<&String> = finding.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["layer", "mend", "status", "why"]);
            let text = |key: &str| finding[key].as_str().unwrap().to_owned();
            assert!(
                ["pass", "fail", "unknown", "not-applicable"].contains(&&*text("status")),
                "{finding}"
            );
            let mend = text("mend");
            for kind in ["| compose: ", "| kubernetes: "] {
                assert!(mend.contains(kind), "{finding}");
            }
            let known = findings.insert(text("layer"), [text("status"), text("why"), mend]);
            assert!(known.is_none(), "twice: {finding}");
        }
        let selectors = answer["selectors"].as_array().unwrap().iter();
        let selectors: Vec<String> = selectors
            .map(|one| one.as_str().unwrap().to_owned())
            .collect();
        let read = Self {
            restricted: answer["restricted"].as_bool().unwrap(),
            baseline: answer["baseline"].as_bool().unwrap(),
            selectors,
            findings,
        };
        assert_eq!(read.restricted, read.has("posture:restricted"));
        assert_eq!(read.baseline, read.has("posture:baseline"));
        read
    }

    fn has(&self, selector: &str) -> bool {
        self.selectors.iter().any(|one| one == selector)
    }

    fn finding(&self, layer: &str) -> &[String; 3] {
        self.findings.get(layer).unwrap()
    }

    fn status(&self, layer: &str) -> &str {
        let [status, ..] = self.finding(layer);
        status
    }

    fn why(&self, layer: &str) -> &str {
        let [_, why, _] = self.finding(layer);
        why
    }

    /// The layers that keep it from being restricted.
    fn lacking(&self) -> Vec<&str> {
        let asked = self.findings.iter().filter(|(layer, [status, ..])| {
            status != "pass" && !ASKED_BY_NO_BUNDLE.contains(&layer.as_str())
        });
        asked.map(|(layer, _)| layer.as_str()).collect()
    }
}

/// `lsm` is in the bundles where the kernel has any.
const ASKED_BY_NO_BUNDLE: [&str; 11] = [
    "user-namespace",
    "cgroup-namespace",
    "group",
    "swap-limit",
    "io-limit",
    "cpuset",
    "writable-executable",
    "memfd",
    "image",
    "pod",
    "lsm",
];

fn posture(arguments: &[&str]) -> Output {
    let agent = binaries().unwrap().join("postern-agent");
    let all: Vec<&str> = ["posture"].iter().chain(arguments).copied().collect();
    run(agent.to_str().unwrap(), &all).unwrap()
}

fn workload(selectors: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: app}}\n\
         spec: {{spiffeID: 'spiffe://example.org/app', selectors: [{selectors}]}}\n"
    )
}

/// A process that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    Ended(command.stdout(Stdio::null()).spawn().unwrap())
}

#[test]
fn a_plain_process_of_the_host_is_told_layer_by_layer_what_it_lacks() {
    let sleeper = start("sleep", &["60"]);
    let found = Posture::of(sleeper.0.id(), None);
    assert!(!found.restricted && !found.baseline);
    // Where the tests run in a container, some of these are its own.
    for layer in ["no-new-privs", "root-filesystem", "host-mounts"] {
        assert_eq!(found.status(layer), "fail", "{found:?}");
    }
    let pid = sleeper.0.id().to_string();
    let output = posture(&["--pid", &pid]);
    let text = String::from_utf8_lossy(&output.stdout);
    let first = format!("Process {pid}: baseline no, restricted no\n");
    assert!(text.starts_with(&first), "{text}");
    assert!(
        text.contains("mend: --security-opt no-new-privileges"),
        "{text}"
    );
}

#[test]
fn who_cannot_be_looked_at_is_named_with_the_reason() {
    let check = |pid: &str, code: i32, said: &str| {
        let output = posture(&["--pid", pid, "--json"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{pid}: {error}");
        assert!(error.contains(said), "{pid}: `{said}` in {error}");
        assert!(output.stdout.is_empty());
    };
    for pid in ["0", "-1", "x", "4294967296"] {
        let pid = format!("--pid={pid}");
        let output = posture(&[&pid]);
        assert_eq!(output.status.code(), Some(2), "{pid}");
    }
    check("2147483646", 1, "there is no process 2147483646");
    // A thread of this process.
    let own = std::process::id().to_string();
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let mut names = threads.map(|one| one.unwrap().file_name().into_string().unwrap());
    let thread = names.find(|name| *name != own).unwrap();
    check(&thread, 1, &format!("is a thread of process {own}"));
    // One that has ended and was not waited for.
    let mut child = start("true", &[]);
    let pid = child.0.id();
    let is_zombie = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.contains(") Z ").then_some(())
    };
    eventually("the end of a process", is_zombie).unwrap();
    check(&pid.to_string(), 1, "has ended");
    child.0.wait().unwrap();
}

#[test]
fn an_identity_that_demands_a_posture_is_refused_with_the_reason_and_its_twin_is_not() {
    let agent = binaries().unwrap().join("postern-agent");
    let agent = agent.to_str().unwrap();
    for (selector, why) in [
        ("posture:restricted", "no-new-privs: it may gain privileges"),
        ("posture:baseline", "host-mounts: "),
        (
            "posture:no-new-privs",
            "posture:no-new-privs: no-new-privs: it may gain privileges",
        ),
        ("pod:posture:restricted", "is not restricted: "),
    ] {
        let mut world = World::new().unwrap();
        let selectors = format!("'{selector}'");
        let socket = world.agent_with(&workload(&selectors), "").unwrap();
        let socket = socket.to_str().unwrap();
        let fetch = || run(agent, &["api", "fetch", "-socketPath", socket]).unwrap();
        let error = String::from_utf8_lossy(&fetch().stderr).into_owned();
        assert!(error.contains("no identity issued"), "{selector}: {error}");
        assert!(!error.contains("privs"), "the caller is told: {error}");
        let told = format!("default/app lacks {selector}; {selector}: ");
        let log = world.told("agent", &told).unwrap();
        assert!(log.contains(why), "{log}");
    }
    let mut world = World::new().unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let selectors = format!("'posture:uid:{uid}'");
    let socket = world.agent_with(&workload(&selectors), "").unwrap();
    let socket = socket.to_str().unwrap();
    let output = run(agent, &["api", "fetch", "-socketPath", socket]).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}
