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
    let walls = "walls: {seccomp: nowhere.json}\n";
    let agent = file("walls.yaml", &format!("trustDomain: example.org\n{walls}"));
    let proxy = file(
        "proxy-walls.yaml",
        &format!("inbound: {{forward: '127.0.0.1:1'}}\n{walls}"),
    );
    for (name, config) in [("postern-agent", &agent), ("postern-proxy", &proxy)] {
        check(
            name,
            &["run", "--config", config],
            64,
            "cannot read `walls.seccomp`",
        );
    }
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
fn a_configuration_and_its_documents_are_checked_without_running() {
    let world = World::new().unwrap();
    let workload = "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {name: web}\n\
                    spec: {serviceAccount: web}\n";
    world.write("workloads/web.yaml", workload).unwrap();
    world
        .write(
            "agent.yaml",
            "trustDomain: example.org\nstateDir: /nowhere\n",
        )
        .unwrap();
    let proxy = "policies: {directory: workloads}\ninbound: {forward: '127.0.0.1:1'}\n";
    world.write("proxy.yaml", proxy).unwrap();
    let file = |name: &str| world.path().join(name).display().to_string();
    let all = [
        ("postern-agent", "agent.yaml"),
        ("postern-proxy", "proxy.yaml"),
    ];
    for (name, config) in all {
        let output = command(name, &["run", "--check", "--config", &file(config)]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && said.contains(": good"),
            "{output:?}"
        );
    }
    let mistake = workload.replace("serviceAccount", "serviceAcount");
    world.write("workloads/web.yaml", &mistake).unwrap();
    for (name, config) in all {
        check(
            name,
            &["run", "--check", "--config", &file(config)],
            64,
            "did you mean `serviceAccount`?",
        );
    }
}

#[test]
fn wrong_use_ends_with_2() {
    for name in ["postern-agent", "postern-proxy", "postern-policy"] {
        check(name, &["no-such-command"], 2, "unrecognized subcommand");
        check(name, &[], 2, "Usage");
    }
}

/// `postern-run` keeps 2 for the programs that it starts.
fn wrong_use(name: &str) -> i32 {
    if name == "postern-run" { 125 } else { 2 }
}

#[test]
fn every_command_tells_its_version_and_completes() {
    for name in [
        "postern-agent",
        "postern-proxy",
        "postern-policy",
        "postern-run",
        "postern-demo",
    ] {
        assert!(
            command(name, &["--version"])
                .stdout
                .starts_with(name.as_bytes())
        );
        for shell in ["bash", "zsh", "fish"] {
            let output = command(name, &["completions", shell]);
            let script = String::from_utf8(output.stdout).unwrap();
            assert!(
                output.status.success() && script.contains("completions"),
                "{name} {shell}"
            );
        }
        // What no shell is, and no shell at all.
        check(
            name,
            &["completions", "csh"],
            wrong_use(name),
            "invalid value",
        );
        check(name, &["completions"], wrong_use(name), "required");
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

#[test]
fn who_asks_the_agent_wrongly_is_told_what_to_ask() {
    let mut world = World::new().unwrap();
    world.agent("").unwrap();
    let (public, admin) = ("public/agent.sock", "admin/admin.sock");
    let socket = |name: &str| world.path().join(name).display().to_string();
    let (public, admin) = (socket(public), socket(admin));
    for (arguments, code, said) in [
        (
            vec!["workload", "list", "-socketPath", &public],
            1,
            "no admin socket of an agent",
        ),
        (vec!["workload", "list", "-socketPath", &admin], 0, ""),
        (
            vec!["api", "fetch", "-socketPath", &admin],
            1,
            "is this the Workload API",
        ),
        (
            vec!["api", "fetch", "-socketPath", &public],
            1,
            "desc = no identity issued",
        ),
        (
            vec!["api", "fetch", "-timeout", "0s"],
            2,
            "above 0 and a unit",
        ),
        (
            vec!["workload", "show", "web", "-socketPath", &admin],
            1,
            "as `namespace/name`",
        ),
        (
            vec!["workload", "delete", "a/web", "-socketPath", &admin],
            1,
            "with its file",
        ),
        (
            vec![
                "drift",
                "learn",
                "--for",
                "1s",
                "web",
                "-socketPath",
                &admin,
            ],
            1,
            "as `namespace/name`",
        ),
        (
            vec!["explain", "--pid", "me"],
            2,
            "the number of a process, 1 to 2147483647",
        ),
        (
            vec!["posture", "--pid", "0"],
            2,
            "the number of a process, 1 to 2147483647",
        ),
        (
            vec!["explain", "--pid", "1", "--config", "/nonexistent"],
            1,
            "with --config",
        ),
    ] {
        check("postern-agent", &arguments, code, said);
    }
}
