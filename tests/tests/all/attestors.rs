//! Attestors that ask services: the kubelet and systemd.
//!
//! Those of the kubelet make control groups, so they need root and are run by name: `cargo test -p
//! postern-tests --test all -- --ignored kubelet`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use postern_tests::{
    binaries,
    certificates::Authority,
    eventually, root, run,
    world::{World, free_address},
};
use rcgen::{CertificateParams, SanType};
use rustix::process::Signal;
use serde_json::json;

fn python() -> PathBuf {
    root().join("target/python/bin/python")
}

fn workload(selectors: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: app}}\n\
         spec: {{spiffeID: 'spiffe://example.org/app', selectors: [{selectors}]}}\n"
    )
}

/// Fetches with a program of our own choice.
fn fetch(world: &World, program: &Path) -> Result<(), String> {
    let socket = world.path().join("public/agent.sock");
    let output = Command::new(program)
        .args(["api", "fetch", "-socketPath"])
        .arg(socket)
        .output()
        .unwrap();
    told(&output)
}

fn told(output: &Output) -> Result<(), String> {
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// A copy of the agent's program, to be told from others by its path.
fn copy(world: &World, name: &str) -> PathBuf {
    let to = world.path().join(name);
    postern_tests::copy_program(binaries().unwrap().join("postern-agent"), &to).unwrap();
    to
}

/// Starts a bus, and systemd on it.
fn systemd(world: &mut World, mode: &str, units: &[String]) {
    let socket = world.path().join("bus.sock");
    let address = format!("unix:path={}", socket.display());
    let mut bus = Command::new("dbus-daemon");
    bus.args(["--session", "--nofork", "--nosyslog", "--address"]);
    world.spawn("bus", bus.arg(&address)).unwrap();
    eventually("the bus", || socket.exists().then_some(())).unwrap();
    let mut systemd = Command::new(python());
    systemd.arg(root().join("tests/python/systemd.py"));
    systemd.args([address.as_str(), mode]).args(units);
    world.spawn("systemd", &mut systemd).unwrap();
    eventually("systemd", || {
        let said = fs::read_to_string(world.log("systemd")).unwrap_or_default();
        said.contains("serving").then_some(())
    })
    .unwrap();
}

#[test]
fn systemd_tells_the_units_of_processes_by_their_pidfd_and_by_their_number() {
    for mode in ["new", "old"] {
        let mut world = World::new().unwrap();
        let (web, other) = (copy(&world, "web"), copy(&world, "other"));
        let unit = |name: &str, program: &Path| format!("{name}.service={}", program.display());
        let units = [unit("web", &web), unit("other", &other)];
        systemd(&mut world, mode, &units);
        let bus = world.path().join("bus.sock").display().to_string();
        let attestors = format!("attestors: {{systemd: {{bus: 'unix:path={bus}'}}}}\n");
        let selectors =
            "'systemd:id:web.service', 'systemd:fragment_path:/etc/systemd/system/web.service'";
        world.agent_with(&workload(selectors), &attestors).unwrap();
        fetch(&world, &web).unwrap();
        assert!(fetch(&world, &other).is_err(), "{mode}: another unit");
        let stranger = copy(&world, "stranger");
        assert!(fetch(&world, &stranger).is_err(), "{mode}: no unit");
        let log = fs::read_to_string(world.log("agent")).unwrap();
        assert!(!log.contains("attestor `systemd`"), "{mode}: {log}");
    }
}

#[test]
fn a_bus_that_does_not_answer_gives_no_identity() {
    let mut world = World::new().unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let attestors = "attestors: {unix: {}, systemd: {bus: 'unix:path=/nonexistent/bus'}}\n";
    world
        .agent_with(&workload(&format!("'unix:uid:{uid}'")), attestors)
        .unwrap();
    let agent = binaries().unwrap().join("postern-agent");
    let refused = fetch(&world, &agent).unwrap_err();
    assert!(refused.contains("code = Unavailable"), "{refused}");
    world.told("agent", "attestor `systemd`").unwrap();
}

/// Ends the bus, and with it systemd on it.
fn end_bus(world: &mut World) {
    world.signal("bus", Signal::KILL).unwrap();
    for name in ["bus", "systemd"] {
        world.ended(name).unwrap();
    }
    fs::remove_file(world.path().join("bus.sock")).unwrap();
}

#[test]
fn a_bus_that_is_away_for_a_while_takes_nothing_from_a_stream_and_its_word_does() {
    let mut world = World::new().unwrap();
    let web = copy(&world, "web");
    let unit = [format!("web.service={}", web.display())];
    systemd(&mut world, "new", &unit);
    let bus = world.path().join("bus.sock").display().to_string();
    let attestors = format!("attestors: {{systemd: {{bus: 'unix:path={bus}'}}}}\n");
    let document = workload("'systemd:id:web.service'");
    let socket = world.agent_with(&document, &attestors).unwrap();
    let mut watch = Command::new(&web)
        .args(["api", "watch", "-output", "json", "-socketPath"])
        .arg(socket)
        .stdout(Stdio::piped())
        .stderr(fs::File::create(world.log("watch")).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("example.org/app"));

    end_bus(&mut world);
    // The stream is all that is looked at.
    world
        .said("agent", "processes cannot be looked at")
        .unwrap();
    let refused = fetch(&world, &web).unwrap_err();
    assert!(refused.contains("code = Unavailable"), "{refused}");
    let renamed = document.replace("example.org/app", "example.org/new");
    world.write("workloads/workloads.yaml", &renamed).unwrap();
    systemd(&mut world, "new", &unit);
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains("example.org/new"), "{line}");
    let said = fs::read_to_string(world.log("watch")).unwrap();
    assert_eq!(said, "");

    // The twin: a bus that answers, and knows no such unit.
    end_bus(&mut world);
    systemd(&mut world, "new", &[]);
    eventually("the stream to end", || {
        let said = fs::read_to_string(world.log("watch")).unwrap();
        said.contains("no identity issued").then_some(())
    })
    .unwrap();
    let _ = watch.kill();
    let _ = watch.wait();
}

const POD: &str = "0a1b2c3d-0011-2233-4455-66778899aabb";

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// What a kubelet of version 1.30 tells, shortened to what matters and some of what does not.
fn pods(label: &str) -> String {
    let container = |name: &str, image: &str, digit: char| {
        json!({
            "name": name, "image": image, "ready": true, "restartCount": 0,
            "imageID": format!("registry.test/{name}@sha256:{}", id(digit)),
            "containerID": format!("containerd://{}", id(digit)),
            "state": {"running": {"startedAt": "2026-11-24T10:00:00Z"}},
        })
    };
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [{
        "metadata": {
            "name": "web-5d9c", "generateName": "web-", "namespace": "production", "uid": POD,
            "labels": {"app": label, "pod-template-hash": "5d9c"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d9", "uid": "u1",
                "controller": true,
            }],
        },
        "spec": {"serviceAccountName": "web", "nodeName": "node-1", "hostNetwork": false},
        "status": {
            "phase": "Running",
            "initContainerStatuses": [container("setup", "registry.test/setup:1", 'c')],
            "containerStatuses": [
                container("app", "registry.test/app:1", 'a'),
                container("helper", "registry.test/helper:1", 'b'),
            ],
        },
    }]});
    list.to_string()
}

/// A kubelet, and an agent that asks it.
fn node(selectors: &str, agents_token: &str) -> World {
    let mut world = World::new().unwrap();
    let authority = Authority::new("kubelet.test").unwrap();
    world.write("ca.pem", &authority.pem).unwrap();
    let named = |params: &mut CertificateParams| {
        let address = SanType::IpAddress("127.0.0.1".parse().unwrap());
        params.subject_alt_names = vec![address];
    };
    authority
        .write_leaf(world.path(), "kubelet", "spiffe://kubelet.test/", named)
        .unwrap();
    world.write("pods.json", &pods("web")).unwrap();
    world.write("token", agents_token).unwrap();
    let address = free_address().unwrap();
    let mut kubelet = Command::new(python());
    kubelet.arg(root().join("tests/python/kubelet.py"));
    kubelet.args(["127.0.0.1", &address.port().to_string()]);
    kubelet.args(["kubelet.crt", "kubelet.key", "good-token", "pods.json"]);
    world.spawn("kubelet", &mut kubelet).unwrap();
    eventually("the kubelet", || std::net::TcpStream::connect(address).ok()).unwrap();
    let attestors = format!(
        "attestors: {{k8s: {{kubelet: 'https://{address}', tokenFile: token, caFile: ca.pem}}}}\n"
    );
    world.agent_with(&workload(selectors), &attestors).unwrap();
    world
}

/// Runs a command in a control group of this path, which is removed again.
fn in_group(path: &str, command: &str) -> Result<(), String> {
    let script = format!(
        "set -e; g=/sys/fs/cgroup/pids; [ -d $g ] || g=/sys/fs/cgroup; mkdir -p $g{path}; \
         sh -c 'echo $$ > '$g{path}'/cgroup.procs; exec {command}' && rc=0 || rc=$?; \
         p={path}; while [ -n \"$p\" ]; do rmdir $g$p 2>/dev/null || true; p=${{p%/*}}; done; exit $rc"
    );
    told(&run("sh", &["-c", &script]).unwrap())
}

/// Fetches from within this container of the pod.
fn fetch_from(world: &World, path: &str) -> Result<(), String> {
    let agent = binaries().unwrap().join("postern-agent");
    let socket = world.path().join("public/agent.sock");
    let command = format!(
        "{} api fetch -socketPath {}",
        agent.display(),
        socket.display()
    );
    in_group(path, &command)
}

#[test]
#[ignore = "needs root, to make control groups"]
fn kubelet_tells_pods_apart_by_everything_that_spire_knows() {
    let path = |digit| format!("/kubepods/burstable/pod{POD}/{}", id(digit));
    let good = format!(
        "'k8s:ns:production', 'k8s:sa:web', 'k8s:pod-name:web-5d9c', 'k8s:pod-uid:{POD}', \
         'k8s:node-name:node-1', 'k8s:pod-label:app:web', 'k8s:pod-owner:ReplicaSet:web-5d9', \
         'k8s:pod-owner-uid:ReplicaSet:u1', 'k8s:container-name:app', \
         'k8s:container-image:registry.test/app:1', 'k8s:pod-image:registry.test/helper:1', \
         'k8s:pod-image-count:2', 'k8s:pod-init-image:registry.test/setup:1', \
         'k8s:pod-init-image-count:1', 'k8s:container-image:registry.test/app@sha256:{}'",
        id('a')
    );
    let world = node(&good, "good-token\n");
    fetch_from(&world, &path('a')).unwrap();
    // FAULTS 12: the groups below a container's are its own to name, and say nothing.
    let other = POD.replace('0', "1");
    for below in [id('b'), format!("kubepods/pod{other}/{}", id('b'))] {
        fetch_from(&world, &format!("{}/{below}", path('a'))).unwrap();
    }
    let refused =
        |path: &str| fetch_from(&world, path).is_err_and(|why| why.contains("no identity"));
    assert!(refused(&path('b')), "another container of the pod");
    let within = |name| refused(&format!("{}/{name}", path('b')));
    assert!(within(id('a')) && within(format!("kubepods/pod{POD}/{}", id('a'))));
    assert!(
        refused(&path('d')),
        "a container that the kubelet does not know"
    );
    assert!(refused(&format!(
        "/kubepods/burstable/pod{}/{}",
        POD.replace('0', "1"),
        id('a')
    )));
    assert!(refused(&format!(
        "/user.slice/kubepods/pod{POD}/{}",
        id('a')
    )));
    assert!(refused("/user.slice"));
    // The label is changed under the running pod.
    world.write("pods.json", &pods("other")).unwrap();
    eventually("the label to be seen", || refused(&path('a')).then_some(())).unwrap();
}

#[test]
#[ignore = "needs root, to make control groups"]
fn kubelet_that_does_not_take_the_token_gives_no_identity() {
    let world = node("'k8s:ns:production'", "bad-token");
    let path = format!("/kubepods/pod{POD}/{}", id('a'));
    let refused = fetch_from(&world, &path).unwrap_err();
    assert!(refused.contains("code = Unavailable"), "{refused}");
    let log = world.told("agent", "the answer is 401").unwrap();
    assert!(!log.contains("bad-token"), "the token is in the log");
}
