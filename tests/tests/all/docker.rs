//! Identities of containers, on the real Docker Engine.
//!
//! These tests need root and a running engine, so they are run by name: `cargo test -p
//! postern-tests --test all -- --ignored docker`.

use std::process::Output;

use postern_tests::{binaries, run, world::World};

const IMAGE: &str = "postern-test:empty";

/// An image without anything in it: the programs are the host's, mounted.
pub(super) fn image() {
    let made = "tar c --files-from /dev/null | docker import - postern-test:empty";
    let output = run("sh", &["-c", made]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Fetches from within a container.
fn fetch(world: &World, options: &[&str]) -> Output {
    let agent = format!(
        "{}:/agent:ro",
        binaries().unwrap().join("postern-agent").display()
    );
    let socket = format!("{}:/run/postern", world.path().join("public").display());
    let mut all = vec!["run", "--rm", "--network", "none"];
    for folder in [
        "/usr:/usr:ro",
        "/lib:/lib:ro",
        "/lib64:/lib64:ro",
        &agent,
        &socket,
    ] {
        all.extend(["-v", folder]);
    }
    all.extend(options);
    all.extend([IMAGE, "/agent", "api", "fetch", "-output", "json"]);
    all.extend(["-socketPath", "/run/postern/agent.sock"]);
    run("docker", &all).unwrap()
}

fn id(output: &Output) -> Result<String, String> {
    match output.status.success() {
        true => {
            let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let id = answer.pointer("/svids/0/spiffe_id").unwrap();
            Ok(id.as_str().unwrap().to_owned())
        }
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn workload(selectors: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: frontend, namespace: production}}\n\
         spec: {{spiffeID: 'spiffe://example.org/workload/frontend', selectors: [{selectors}]}}\n"
    )
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_tells_containers_apart_by_label_variable_and_image() {
    image();
    let mut world = World::new().unwrap();
    let wanted = "'docker:label:app:frontend', 'docker:env:STAGE=test', 'docker:image_id:postern-test:empty'";
    world
        .agent_with(&workload(wanted), "attestors: {docker: {}}\n")
        .unwrap();
    let good = ["--label", "app=frontend", "-e", "STAGE=test"];
    assert_eq!(
        id(&fetch(&world, &good)).unwrap(),
        "spiffe://example.org/workload/frontend"
    );
    for (other, why) in [
        (
            ["--label", "app=backend", "-e", "STAGE=test"],
            "another label",
        ),
        (
            ["--label", "app=frontend", "-e", "STAGE=prod"],
            "another variable",
        ),
        (
            ["--label", "other=frontend", "-e", "STAGE=test"],
            "a label of another name",
        ),
    ] {
        let refused = id(&fetch(&world, &other)).unwrap_err();
        assert!(refused.contains("no identity issued"), "{why}: {refused}");
    }
    // The host's processes are in no container.
    let socket = world.path().join("public/agent.sock");
    let agent = binaries().unwrap().join("postern-agent");
    let arguments = ["api", "fetch", "-socketPath", socket.to_str().unwrap()];
    assert!(
        !run(agent.to_str().unwrap(), &arguments)
            .unwrap()
            .status
            .success()
    );
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_tells_containers_apart_by_name_service_of_compose_and_groups() {
    image();
    let mut world = World::new().unwrap();
    // One for each run of the tests: names are the engine's.
    let name = format!("postern-test-{}", std::process::id());
    let service = "com.docker.compose.service";
    let wanted = format!(
        "'docker:name:{name}', 'docker:label:{service}:web', 'unix:gid:0', 'unix:supplementary_gid:4711'"
    );
    world
        .agent_with(&workload(&wanted), "attestors: {unix: {}, docker: {}}\n")
        .unwrap();
    let (web, other_service) = (format!("{service}=web"), format!("{service}=db"));
    let other_name = format!("{name}-other");
    let options = |name: &str, label: &str, group: &str| {
        let all = ["--name", name, "--label", label, "--group-add", group];
        id(&fetch(&world, &all))
    };
    assert!(options(&name, &web, "4711").is_ok());
    for (name, label, group) in [
        (&other_name, &web, "4711"),
        (&name, &other_service, "4711"),
        (&name, &web, "4712"),
    ] {
        let refused = options(name, label, group).unwrap_err();
        assert!(
            refused.contains("no identity issued"),
            "{name} {label} {group}: {refused}"
        );
    }
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_container_whose_engine_does_not_answer_gets_no_identity() {
    // A selector of another attestor alone: without the engine nobody knows what else is true.
    image();
    let mut world = World::new().unwrap();
    world
        .agent_with(
            &workload("'unix:uid:0'"),
            "attestors: {unix: {}, docker: {socket: 'unix:///nonexistent/docker.sock'}}\n",
        )
        .unwrap();
    let refused = id(&fetch(&world, &[])).unwrap_err();
    assert!(refused.contains("code = Unavailable"), "{refused}");
    world.told("agent", "attestor `docker`").unwrap();
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_look_alike_control_group_gets_no_identity() {
    // FAULTS: a process of the host in a control group that is named like a victim's.
    image();
    let mut world = World::new().unwrap();
    let socket = world
        .agent_with(
            &workload("'docker:label:app:victim'"),
            "attestors: {docker: {}}\n",
        )
        .unwrap();
    let victim = [
        "run",
        "-d",
        "--rm",
        "--network",
        "none",
        "--label",
        "app=victim",
        "-v",
        "/usr:/usr:ro",
        "-v",
        "/lib:/lib:ro",
        "-v",
        "/lib64:/lib64:ro",
        IMAGE,
        "/usr/bin/sleep",
        "60",
    ];
    let started = run("docker", &victim).unwrap();
    let container = String::from_utf8(started.stdout).unwrap().trim().to_owned();
    let agent = binaries().unwrap().join("postern-agent");
    let script = format!(
        "set -e; g=/sys/fs/cgroup/pids; [ -d $g ] || g=/sys/fs/cgroup; d=$g/postern-test/{container}; \
         mkdir -p $d; echo $$ > $d/cgroup.procs; rc=0; {} api fetch -socketPath {} || rc=$?; \
         echo $$ > $g/cgroup.procs; rmdir $d $g/postern-test; exit $rc",
        agent.display(),
        socket.display()
    );
    let output = run("sh", &["-c", &script]).unwrap();
    run("docker", &["kill", &container]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no identity issued"), "{said}");
    world.told("agent", "named like a container's").unwrap();
}
