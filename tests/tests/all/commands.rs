//! Commands that are used wrongly: one clear error, and the exit code that was promised.

use std::process::Output;

use postern_tests::{binaries, root, run, world::World};

fn command(name: &str, arguments: &[&str]) -> Output {
    let path = binaries().unwrap().join(name);
    run(path.to_str().unwrap(), arguments).unwrap()
}

#[track_caller]
fn check(name: &str, arguments: &[&str], code: i32, said: &str) {
    let output = command(name, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{name} {arguments:?}: {error}"
    );
    assert!(error.contains(said), "`{said}` in {error}");
}

#[test]
fn a_bad_configuration_ends_with_64_and_names_the_key() {
    let world = World::new().unwrap();
    let file = |name: &str, text: &str| world.write(name, text).unwrap().display().to_string();
    let agent = file("agent.yaml", "trustDomain: example.org\nstatDir: x\n");
    check(
        "postern-agent",
        &["run", "--config", &agent],
        64,
        "did you mean `stateDir`?",
    );
    let proxy = file(
        "proxy.yaml",
        "inbound: {forward: '127.0.0.1:1', protocol: quic}\n",
    );
    check(
        "postern-proxy",
        &["run", "--config", &proxy],
        64,
        "`quic` is no protocol",
    );
    check(
        "postern-agent",
        &["run", "--config", "/nowhere.yaml"],
        64,
        "`/nowhere.yaml`",
    );
    check(
        "postern-proxy",
        &["run", "--config", "/nowhere.yaml"],
        64,
        "`/nowhere.yaml`",
    );
}

#[test]
fn wrong_use_ends_with_2() {
    for name in ["postern-agent", "postern-proxy", "postern-policy"] {
        check(name, &["no-such-command"], 2, "unrecognized subcommand");
        check(name, &[], 2, "Usage");
    }
}

#[test]
fn every_command_tells_its_version_and_completes() {
    for name in ["postern-agent", "postern-proxy", "postern-policy"] {
        assert!(
            command(name, &["--version"])
                .stdout
                .starts_with(name.as_bytes())
        );
        for shell in ["bash", "zsh", "fish"] {
            assert!(command(name, &["completions", shell]).status.success());
        }
    }
}

#[test]
fn a_missing_agent_is_named_with_the_mend() {
    check(
        "postern-agent",
        &["api", "fetch", "-socketPath", "/nowhere.sock"],
        1,
        "is it running?",
    );
    check(
        "postern-agent",
        &["healthcheck", "-socketPath", "/nowhere.sock"],
        1,
        "Agent is unhealthy",
    );
    check(
        "postern-proxy",
        &["healthcheck", "--address", "127.0.0.1:1"],
        1,
        "cannot reach the proxy",
    );
}

#[test]
fn a_bad_policy_is_refused_with_its_place_and_the_mend() {
    let world = World::new().unwrap();
    let bad = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n\
               spec:\n  rules:\n    - to:\n        - operation:\n            methdos: [GET]\n";
    let path = world.write("bad.yaml", bad).unwrap().display().to_string();
    check("postern-policy", &["check", &path], 1, "bad.yaml:8:13");
    check(
        "postern-policy",
        &["check", &path],
        1,
        "did you mean `methods`?",
    );
    check(
        "postern-policy",
        &["decide", "--policies", &path],
        64,
        "did you mean `methods`?",
    );
}

#[test]
fn the_seed_policies_load_and_the_likely_mistake_in_them_is_told() {
    let seed = root().join("policies/examples/seed").display().to_string();
    let output = command(
        "postern-policy",
        &["check", &seed, "--namespace", "production"],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for part in [
        "two items of `to` are alternatives",
        "frontend-policy.yaml:10:7",
        "methods: [\"GET\", \"POST\"]\n             paths: [\"/api/v1/*\"]",
    ] {
        assert!(said.contains(part), "`{part}` in {said}");
    }
}
