//! An agent that has no descriptors left: it says that it cannot look, and nothing else about anybody.

use std::{
    fs,
    process::{Command, Output},
};

use postern_tests::{root, run, world::World};

use super::{ours, own_uid, workload};

const UNAVAILABLE: &str = "status 14";
const DENIED: &str = "status 7";

fn python() -> String {
    let path = fs::canonicalize(root().join("target/python/bin/python")).unwrap();
    path.display().to_string()
}

fn first_word(program: &str, arguments: &[&str]) -> String {
    let said = run(program, arguments).unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    said.split_whitespace().next().unwrap().to_owned()
}

/// Runs a case in a session of its own, which is a pod, and tells its lines.
#[track_caller]
fn lines(world: &World, case: &str, arguments: &[&str]) -> Vec<String> {
    let output: Output = Command::new("setsid")
        .args(["--wait", &python_of_tests()])
        .arg(root().join("tests/python/lacks.py"))
        .arg(case)
        .arg(world.path().join("public/agent.sock"))
        .arg(world.pid("agent").unwrap().to_string())
        .arg(world.log("agent"))
        .args(arguments)
        .output()
        .unwrap();
    postern_tests::lines(&output, case).unwrap()
}

fn python_of_tests() -> String {
    let path = root().join("target/python/bin/python");
    path.display().to_string()
}

/// One Workload by its user alone, and one that lacks nothing but what must be read from files.
fn two() -> String {
    let (user, group) = (first_word("id", &["-un"]), first_word("id", &["-gn"]));
    let digest = first_word("sha256sum", &[&python()]);
    let selectors = format!(
        "'unix:uid:{}', 'unix:user:{user}', 'unix:group:{group}', 'unix:path:{}', \
         'unix:sha256:{digest}'",
        own_uid(),
        python(),
    );
    workload("all", &selectors) + &ours()
}

const BOTH: &str = "spiffe://example.org/all spiffe://example.org/ours";

#[test]
fn without_descriptors_a_caller_is_nobody_else_and_is_told_to_try_again() {
    let mut world = World::new().unwrap();
    world.agent(&two()).unwrap();
    // Whichever step fails: all of what it is, or nothing yet. Never less, and never a refusal.
    assert_eq!(lines(&world, "every_step", &[]), [BOTH, UNAVAILABLE]);
}

#[test]
fn without_descriptors_a_connection_waits_or_is_closed_and_is_never_a_dead_process() {
    let mut world = World::new().unwrap();
    world.agent(&two()).unwrap();
    for said in lines(&world, "every_step_of_a_connection", &[]) {
        let is_good = said == BOTH || said == UNAVAILABLE || said.starts_with("closed");
        assert!(is_good, "{said}");
    }
}

#[test]
fn without_descriptors_a_stream_keeps_what_it_has_and_goes_on() {
    let mut world = World::new().unwrap();
    world.agent(&two()).unwrap();
    let documents = world.path().join("workloads/workloads.yaml");
    let more = workload("third", &format!("'unix:uid:{}'", own_uid()));
    let arguments = [documents.to_str().unwrap(), more.as_str()];
    assert_eq!(
        lines(&world, "stream", &arguments),
        [
            BOTH,
            UNAVAILABLE,
            "silent",
            BOTH,
            &format!("{BOTH} spiffe://example.org/third"),
        ]
    );
}

/// A Workload whose pod may run this and nothing else.
fn watched(allowed: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: watched}}\n\
         spec: {{spiffeID: 'spiffe://example.org/watched', selectors: ['unix:uid:{}', \
         'unix:path:{}'], onDrift: revoke, baseline: {{executables: ['{allowed}']}}}}\n",
        own_uid(),
        python(),
    )
}

/// Its path, and its digest.
fn names_of_python() -> [String; 2] {
    let digest = first_word("sha256sum", &[&python()]);
    [python(), format!("sha256:{digest}")]
}

fn sleep() -> String {
    first_word("sh", &["-c", "readlink -f $(command -v sleep)"])
}

#[test]
fn without_descriptors_nobody_is_taken_for_drifted_and_with_them_the_drifted_is() {
    for allowed in names_of_python() {
        let mut world = World::new().unwrap();
        world.agent(&watched(&allowed)).unwrap();
        assert_eq!(
            lines(&world, "drift", &[&sleep()]),
            [
                "spiffe://example.org/watched",
                "silent",
                "taken back 0",
                "spiffe://example.org/watched",
                DENIED,
                "taken back 1",
            ],
            "{allowed}"
        );
    }
}

#[test]
fn without_descriptors_nobody_drifts_unseen() {
    for allowed in names_of_python() {
        let mut world = World::new().unwrap();
        world.agent(&watched(&allowed)).unwrap();
        // Whichever step fails, before the stranger is seen or after it.
        let said = lines(&world, "every_step", &[]);
        let good = ["spiffe://example.org/watched", UNAVAILABLE];
        assert_eq!(said, good, "{allowed}");
        let said = lines(&world, "every_step", &[&sleep()]);
        assert_eq!(said, [UNAVAILABLE, DENIED], "{allowed}");
    }
}
