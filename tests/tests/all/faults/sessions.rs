//! Sessions are pods, and the kernel gives their numbers out again: nobody is taken for who had his before.

use std::{
    fs,
    process::{Command, Output},
};

use postern_tests::{binaries, eventually, root, world::World};

use super::{ours, own_uid};

const IDENTITY: &str = "another";
const DENIED: &str = "status 7";

/// A world in a PID namespace of its own, where numbers can be given out at will; the first process in it,
/// which ends all others with itself, is a reaper.
struct Numbered {
    world: World,
    first: String,
}

impl Numbered {
    fn new(rules: &str, workloads: &str, more: &str) -> Self {
        let mut world = World::new().unwrap();
        world.write("workloads/rules/falco.yaml", rules).unwrap();
        let mut holder = Command::new("unshare");
        holder.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        // It waits for all children of others, and never ends by itself.
        holder.args(["sh", "-c", "while :; do sleep 3600 & wait $!; done"]);
        world.spawn("holder", &mut holder).unwrap();
        let holder = world.pid("holder").unwrap();
        let children = format!("/proc/{holder}/task/{holder}/children");
        let first = eventually("the first process of a namespace", || {
            let text = fs::read_to_string(&children).ok()?;
            // It has become the shell, with a `/proc` of its own.
            let first = text.trim().to_owned();
            let name = fs::read_to_string(format!("/proc/{first}/comm")).ok()?;
            (name.trim() == "sh").then_some(first)
        });
        let first = first.unwrap();
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &first, "--pid", "--mount", "--"]);
        world.agent_under(enter, workloads, more).unwrap();
        Self { world, first }
    }

    fn lines(&self, case: &str) -> Vec<String> {
        let (agent, folder) = (binaries().unwrap().join("postern-agent"), self.world.path());
        let output: Output = Command::new("nsenter")
            .args(["--target", &self.first, "--pid", "--mount", "--"])
            .arg(
                fs::canonicalize(root().join("target/python/bin"))
                    .unwrap()
                    .join("python"),
            )
            .arg(fs::canonicalize(root().join("tests/python/sessions.py")).unwrap())
            .arg(case)
            .args([folder.join("public/agent.sock"), agent.to_owned()])
            .args([folder.join("agent.yaml"), folder.join("again.log")])
            .current_dir(folder)
            .output()
            .unwrap();
        postern_tests::lines(&output, case).unwrap()
    }
}

/// Whoever runs as we do, with this baseline.
fn watched(answer: &str, baseline: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: watched}}\n\
         spec: {{spiffeID: 'spiffe://example.org/watched', selectors: ['unix:uid:{}'], \
         onDrift: {answer}, baseline: {{{baseline}}}}}\n",
        own_uid()
    )
}

const SELDOM: &str = "reattest: {every: 60s}\n";

#[test]
#[ignore = "needs root, to give a number out again"]
fn root_a_session_is_told_nothing_that_one_of_its_number_had() {
    // FAULTS 19: its processes have a name of brackets and lines.
    let numbered = Numbered::new("[]", &ours(), SELDOM);
    assert_eq!(
        numbered.lines("reused"),
        [
            "the same",
            "the same",
            "the same",
            "another the same",
            "another"
        ]
    );
    // Who lost its leader might have been either; what was out is taken back.
    let log = numbered.world.told("agent", "taken back").unwrap();
    assert_eq!(
        log.matches("\"message\":\"taken back\"").count(),
        1,
        "{log}"
    );
}

#[test]
#[ignore = "needs root, to give a number out again"]
fn root_a_session_does_not_answer_for_what_one_of_its_number_did() {
    let rule = "- rule: Long sleep\n  desc: d\n  condition: spawned_process and proc.args contains 77\n  \
                output: o\n  priority: CRITICAL\n";
    let documents = watched("revoke", "rules: [rules/falco.yaml]");
    let numbered = Numbered::new(rule, &documents, SELDOM);
    assert_eq!(numbered.lines("hit"), [IDENTITY, DENIED, IDENTITY]);
}

#[test]
#[ignore = "needs root, to give a number out again"]
fn root_a_number_that_came_round_while_nobody_looked_is_anothers() {
    let python = fs::canonicalize(root().join("target/python/bin/python")).unwrap();
    let documents = watched("block", &format!("executables: ['{}']", python.display()));
    let numbered = Numbered::new("[]", &documents, "");
    assert_eq!(
        numbered.lines("restarted"),
        ["another another", "the other one lives"]
    );
}
