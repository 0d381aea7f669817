//! What is answered: all that somebody may have, in order, and no secret to anybody else.

use std::{fs, path::Path, process::Command};

use postern_tests::{
    binaries, run,
    world::{World, free_address},
};
use serde_json::Value;

use super::{fetch, ours, own_uid, workload};

/// One with a hint.
fn hinted(name: &str, hint: &str) -> String {
    let plain = workload(name, &format!("'unix:uid:{}'", own_uid()));
    plain.replace("selectors:", &format!("hint: {hint}, selectors:"))
}

/// IDs and hints, as they are told.
fn told(world: &World) -> Vec<(String, String)> {
    let output = fetch(world, &binaries().unwrap().join("postern-agent"));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let svids = answer.get("svids").unwrap().as_array().unwrap();
    let text = |svid: &Value, key: &str| {
        svid.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    svids
        .iter()
        .map(|svid| (text(svid, "spiffe_id"), text(svid, "hint")))
        .collect()
}

#[test]
fn who_matches_two_workloads_gets_both_in_one_order_and_a_hint_once() {
    // FAULTS 45
    let mut world = World::new().unwrap();
    let all = hinted("b", "second") + &hinted("a", "first") + &hinted("c", "first");
    world.agent(&all).unwrap();
    let id = |name: &str, hint: &str| (format!("spiffe://example.org/{name}"), hint.to_owned());
    let expected = told(&world);
    let mut sorted = expected.clone();
    sorted.sort();
    assert_eq!(sorted, [id("a", "first"), id("b", "second")]);
    for _ in 0..5 {
        assert_eq!(told(&world), expected);
    }
    // The same after a restart, and whatever the order of the documents is.
    world
        .signal("agent", rustix::process::Signal::TERM)
        .unwrap();
    world.ended("agent").unwrap();
    let turned = hinted("c", "first") + &hinted("a", "first") + &hinted("b", "second");
    world.agent(&turned).unwrap();
    assert_eq!(told(&world), expected);
    // No Workload matches the twin.
    let mut world = World::new().unwrap();
    world.agent(&workload("a", "'unix:uid:1'")).unwrap();
    let output = fetch(&world, &binaries().unwrap().join("postern-agent"));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("PermissionDenied"), "{error}");
}

/// Every key that is in the state or was given out, in base64 without line ends.
fn keys(world: &World) -> Vec<String> {
    let state = fs::read_to_string(world.path().join("state/authority.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let mut keys = Vec::new();
    for kind in ["roots", "jwtKeys"] {
        for one in state.get(kind).unwrap().as_array().unwrap() {
            keys.push(one.get("key").unwrap().as_str().unwrap().to_owned());
        }
    }
    let given = fs::read_to_string(world.path().join("svids/svid.0.key")).unwrap();
    keys.push(
        given
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect(),
    );
    keys
}

fn api(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(binaries().unwrap().join("postern-agent"));
    command
        .arg("api")
        .args(arguments)
        .args(["-socketPath", "public/agent.sock"]);
    let output = command.current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn no_key_is_in_the_log_at_its_loudest_nor_in_anything_that_is_shown() {
    // FAULTS 50
    let mut world = World::new().unwrap();
    let health = free_address().unwrap();
    let mut loud = Command::new("env");
    loud.arg("POSTERN_LOG=trace");
    let more = format!("health: {{listen: '{health}'}}\n");
    world.agent_under(loud, &ours(), &more).unwrap();
    let folder = world.path().to_owned();
    api(&folder, &["fetch", "-write", "svids"]);
    let token = api(
        &folder,
        &["fetch", "jwt", "-audience", "db", "-output", "json"],
    );
    for what in ["prepare", "activate"] {
        assert!(world.admin(&["authority", what]).unwrap().status.success());
    }
    let mut shown = String::new();
    for what in [
        &["authority", "show", "--json"][..],
        &["bundle", "show"],
        &["workload", "list"],
    ] {
        shown += &String::from_utf8(world.admin(what).unwrap().stdout).unwrap();
    }
    for path in ["metrics", "healthz/ready"] {
        let answer = run("curl", &["-s", &format!("http://{health}/{path}")]).unwrap();
        shown += &String::from_utf8(answer.stdout).unwrap();
    }
    world
        .signal("agent", rustix::process::Signal::TERM)
        .unwrap();
    world.ended("agent").unwrap();
    let log = fs::read_to_string(world.log("agent")).unwrap();
    assert!(log.contains("\"TRACE\""));
    let keys = keys(&world);
    assert!(
        keys.len() >= 4,
        "roots, a key of tokens, and one that was given out"
    );
    // The key itself, without what is the same in all.
    let of_key = |key: &String| {
        key.get(key.len() / 3..key.len() / 3 + 24)
            .unwrap()
            .to_owned()
    };
    // A signature lets anybody be who it is for.
    let token: Value = serde_json::from_str(&token).unwrap();
    let token = token.to_string();
    let signature = token.rsplit('.').next().unwrap().get(..24).unwrap();
    for secret in keys
        .iter()
        .map(of_key)
        .chain([signature.to_owned(), "PRIVATE KEY".to_owned()])
    {
        assert!(!log.contains(&secret), "in the log");
        assert!(!shown.contains(&secret), "in what is shown");
    }
}
