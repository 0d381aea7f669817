//! Workloads that are registered and taken away while the agent runs.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use postern_tests::{binaries, eventually, root, run, world::World};
use rustix::process::Signal;

fn workload(name: &str) -> String {
    let uid = rustix::process::geteuid().as_raw();
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\n\
         spec: {{spiffeID: 'spiffe://example.org/{name}', selectors: ['unix:uid:{uid}']}}\n"
    )
}

fn entry() -> String {
    let uid = rustix::process::geteuid().as_raw();
    format!(
        r#"{{"entries": [{{"id": "one", "spiffe_id": "spiffe://example.org/entry",
            "parent_id": "spiffe://example.org/spire/agent/x",
            "selectors": [{{"type": "unix", "value": "uid:{uid}"}}]}}]}}"#
    )
}

/// The identities that a process of ours gets, in order.
fn identities(world: &World) -> Vec<String> {
    let agent = binaries().unwrap().join("postern-agent");
    let socket = world.path().join("public/agent.sock");
    let arguments = ["api", "fetch", "-output", "json", "-socketPath"];
    let mut all = arguments.to_vec();
    all.push(socket.to_str().unwrap());
    let output = run(agent.to_str().unwrap(), &all).unwrap();
    let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
        return Vec::new();
    };
    let svids = answer.get("svids").unwrap().as_array().unwrap();
    let ids = svids.iter().map(|svid| svid.get("spiffe_id").unwrap());
    ids.map(|id| id.as_str().unwrap().to_owned()).collect()
}

#[test]
fn workloads_are_registered_replaced_and_deleted_and_survive_a_kill() {
    let mut world = World::new().unwrap();
    world.agent("").unwrap();
    assert!(identities(&world).is_empty());
    let file = |name: &str, text: &str| {
        let path = world.write(name, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (document, list) = (file("w.yaml", &workload("app")), file("e.json", &entry()));
    let other = file("o.yaml", &workload("app").replace("/app'", "/other'"));
    let ask = |arguments: &[&str]| {
        let output = world.admin(arguments).unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(error),
        }
    };
    assert_eq!(
        ask(&["workload", "create", "-f", &document]).unwrap(),
        "default/app\n"
    );
    assert_eq!(identities(&world), ["spiffe://example.org/app"]);
    assert_eq!(
        ask(&["workload", "create", "-data", &list]).unwrap(),
        "default/entry-one\n"
    );
    let both = ["spiffe://example.org/app", "spiffe://example.org/entry"];
    assert_eq!(identities(&world), both);
    let refused = ask(&["workload", "create", "-f", &other]).unwrap_err();
    assert!(
        refused.contains("there is a Workload `default/app` already"),
        "{refused}"
    );
    ask(&["workload", "create", "-f", &other, "--replace"]).unwrap();
    let replaced = ["spiffe://example.org/other", "spiffe://example.org/entry"];
    assert_eq!(identities(&world), replaced);

    world.signal("agent", Signal::KILL).unwrap();
    world.ended("agent").unwrap();
    world.agent("").unwrap();
    assert_eq!(identities(&world), replaced, "after a kill");

    let ask = |arguments: &[&str]| {
        let output = world.admin(arguments).unwrap();
        output.status.success()
    };
    assert!(ask(&["workload", "delete", "default/app"]));
    assert!(!ask(&["workload", "delete", "default/app"]), "it is gone");
    assert_eq!(identities(&world), ["spiffe://example.org/entry"]);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    // FAULTS 44, 46
    let mut world = World::new().unwrap();
    world.agent(&workload("app")).unwrap();
    for (text, said) in [
        (workload("app"), "stands in"),
        (
            workload("a").replace("example.org", "other.org"),
            "trust domain",
        ),
        (
            workload("a").replace("example.org/a", "example.org/a/../b"),
            "is not valid",
        ),
        (
            workload("a").replace("['unix", "['', 'unix"),
            "must not be empty",
        ),
        (entry().replace("\"unix\"", "\"\""), "must not be empty"),
        (
            workload("a") + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n",
            "only Workloads can be registered",
        ),
        (
            workload("a").replace("org/a'", "org/spire/server'"),
            "kept for the mesh's own servers",
        ),
        (
            workload("a").replace("org/a'", "org/postern/bundle-endpoint'"),
            "kept for the mesh's own servers",
        ),
        (
            workload("a").replace("selectors", "svidTTL: 500ms, selectors"),
            "shorter than 2 seconds",
        ),
        ("# nothing\n".into(), "no Workload in it"),
        ("{".into(), "sent:1"),
    ] {
        let path = world.write("sent.yaml", &text).unwrap();
        let output = world
            .admin(&["workload", "create", "-f", path.to_str().unwrap()])
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_refused = output.status.code() == Some(1);
        assert!(
            is_refused && error.contains(said),
            "{said} in {error} of {text}"
        );
        assert_eq!(identities(&world), ["spiffe://example.org/app"]);
    }
}

#[test]
fn a_stream_ends_when_its_workload_is_deleted_and_changes_when_it_is_replaced() {
    // FAULTS 42, 43
    let mut world = World::new().unwrap();
    let socket = world.agent("").unwrap();
    let path = world.write("w.yaml", &workload("app")).unwrap();
    let path = path.to_str().unwrap();
    assert!(
        world
            .admin(&["workload", "create", "-f", path])
            .unwrap()
            .status
            .success()
    );
    let mut watch = Command::new(binaries().unwrap().join("postern-agent"))
        .args(["api", "watch", "-output", "json", "-socketPath"])
        .arg(socket)
        .stdout(Stdio::piped())
        .stderr(fs::File::create(world.log("watch")).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert!(next().contains("spiffe://example.org/app"));
    fs::write(path, workload("app").replace("/app'", "/new'")).unwrap();
    let replace = ["workload", "create", "--replace", "-f", path];
    assert!(world.admin(&replace).unwrap().status.success());
    let line = next();
    assert!(line.contains("spiffe://example.org/new"), "{line}");
    assert!(!line.contains("spiffe://example.org/app"), "{line}");
    assert!(
        world
            .admin(&["workload", "delete", "default/app"])
            .unwrap()
            .status
            .success()
    );
    let said = eventually("the stream to end", || {
        let said = fs::read_to_string(world.log("watch")).unwrap();
        said.contains("PermissionDenied").then_some(said)
    })
    .unwrap();
    assert!(said.contains("no identity issued"), "{said}");
    let _ = watch.kill();
    let _ = watch.wait();
}

#[test]
fn who_is_known_and_asks_again_on_his_connection_is_refused_as_soon_as_the_workload_is_deleted() {
    // FAULTS 42
    let mut world = World::new().unwrap();
    let socket = world.agent("").unwrap();
    let path = world.write("w.yaml", &workload("app")).unwrap();
    let create = ["workload", "create", "-f", path.to_str().unwrap()];
    assert!(world.admin(&create).unwrap().status.success());
    let output = Command::new(root().join("target/python/bin/python"))
        .arg(root().join("tests/python/crowds.py"))
        .arg("known")
        .arg(socket)
        .arg(binaries().unwrap().join("postern-agent"))
        .arg(world.path().join("admin/admin.sock"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "spiffe://example.org/app\nstatus 7\n", "{error}");
}

fn write_svid(world: &World, folder: &str) {
    let agent = binaries().unwrap().join("postern-agent");
    let (socket, folder) = (
        world.path().join("public/agent.sock"),
        world.path().join(folder),
    );
    let arguments = [
        "api",
        "fetch",
        "-socketPath",
        socket.to_str().unwrap(),
        "-write",
    ];
    let mut all = arguments.to_vec();
    all.push(folder.to_str().unwrap());
    assert!(run(agent.to_str().unwrap(), &all).unwrap().status.success());
}

#[test]
fn what_a_deleted_workload_held_is_revoked_after_a_restart_too_and_a_broken_folder_is_no_hindrance()
{
    // FAULTS 42
    let mut world = World::new().unwrap();
    world.agent(&workload("other")).unwrap();
    let path = world.write("w.yaml", &workload("app")).unwrap();
    let create = ["workload", "create", "-f", path.to_str().unwrap()];
    assert!(world.admin(&create).unwrap().status.success());
    write_svid(&world, "svids");
    // Nothing is taken back yet, and the agent forgets nothing when it is killed.
    assert!(!world.is_revoked("svids").unwrap());
    world.signal("agent", Signal::KILL).unwrap();
    world.ended("agent").unwrap();
    world.agent(&workload("other")).unwrap();
    world.write("workloads/broken.yaml", "kind: [").unwrap();
    let delete = world.admin(&["workload", "delete", "default/app"]).unwrap();
    let error = String::from_utf8_lossy(&delete.stderr);
    assert!(delete.status.success(), "{error}");
    assert!(world.is_revoked("svids").unwrap());
    // Its twin goes on.
    write_svid(&world, "others");
    assert_eq!(identities(&world), ["spiffe://example.org/other"]);
    assert!(!world.is_revoked("others").unwrap());
}

#[test]
fn a_workload_with_which_the_policies_do_not_load_is_refused_and_its_twin_is_not() {
    let mut world = World::new().unwrap();
    world
        .write("policies/p.yaml", &workload("database"))
        .unwrap();
    let told = "policies: {directory: policies}\n";
    world.agent_with(&workload("web"), told).unwrap();
    let path = world.write("w.yaml", &workload("database")).unwrap();
    let create = ["workload", "create", "-f", path.to_str().unwrap()];
    let refused = world.admin(&create).unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    for part in [
        "do not load with these Workloads",
        "`default/database` stands in",
        "p.yaml:1",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(identities(&world), ["spiffe://example.org/web"]);
    let twin = workload("databases");
    world.write("w.yaml", &twin).unwrap();
    assert!(world.admin(&create).unwrap().status.success());
    let both = ["spiffe://example.org/databases", "spiffe://example.org/web"];
    assert_eq!(identities(&world), both);
    // The same by way of the folder: the pair stays, and the log says where the mistake is.
    let changed = workload("web") + "---\n" + &workload("database");
    world.write("workloads/workloads.yaml", &changed).unwrap();
    let refused = "the documents were refused, the last good ones stay";
    world.said("agent", refused).unwrap();
    let log = fs::read_to_string(world.log("agent")).unwrap();
    let line = log.lines().find(|line| line.contains(refused)).unwrap();
    assert!(line.contains("p.yaml:1"), "{line}");
    assert_eq!(identities(&world), both);
}

#[test]
fn explain_knows_what_was_registered() {
    let mut world = World::new().unwrap();
    world.agent("").unwrap();
    let path = world.write("w.yaml", &workload("app")).unwrap();
    let create = ["workload", "create", "-f", path.to_str().unwrap()];
    assert!(world.admin(&create).unwrap().status.success());
    let agent = binaries().unwrap().join("postern-agent");
    let (pid, config) = (
        std::process::id().to_string(),
        world.path().join("agent.yaml"),
    );
    let arguments = [
        "explain",
        "--pid",
        &pid,
        "--config",
        config.to_str().unwrap(),
    ];
    let output = run(agent.to_str().unwrap(), &arguments).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("It is default/app: spiffe://example.org/app"),
        "{said}"
    );
}

#[test]
fn a_folder_that_nobody_named_may_come_after_the_start() {
    let mut world = World::new().unwrap();
    let folder = world.path().display().to_string();
    let config = format!(
        "trustDomain: example.org\nstateDir: state\nhealth: {{listen: '127.0.0.1:0'}}\n\
         workloadApi: {{socket: 'unix://{folder}/agent.sock'}}\n\
         admin: {{socket: 'unix://{folder}/admin/admin.sock'}}\n"
    );
    let agent = binaries().unwrap().join("postern-agent");
    let run = |config: &Path| {
        let mut command = Command::new(&agent);
        command.args(["run", "--config"]).arg(config);
        command
    };
    // The twin: one that somebody has named.
    let named = world
        .write(
            "named.yaml",
            &(config.clone() + "workloads: {directory: mine}\n"),
        )
        .unwrap();
    world.spawn("named", &mut run(&named)).unwrap();
    assert_eq!(world.ended("named").unwrap(), Some(1));
    let said = fs::read_to_string(world.log("named")).unwrap();
    assert!(said.contains("/mine`"), "{said}");

    let config = world.write("agent.yaml", &config).unwrap();
    world.spawn("agent", &mut run(&config)).unwrap();
    world.said("agent", "ready").unwrap();
    let socket = world.path().join("agent.sock");
    let fetches = || {
        let mut command = Command::new(&agent);
        command.args(["api", "fetch", "-socketPath"]).arg(&socket);
        command.output().unwrap().status.success()
    };
    assert!(!fetches());
    world.write("workloads/app.yaml", &workload("app")).unwrap();
    eventually("the folder to be read", || fetches().then_some(())).unwrap();
    // It was there: without it nobody loses anything.
    fs::remove_dir_all(world.path().join("workloads")).unwrap();
    world
        .said(
            "agent",
            "the documents were refused, the last good ones stay",
        )
        .unwrap();
    assert!(fetches());
}
