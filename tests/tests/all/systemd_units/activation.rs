//! Sockets that a service manager holds: they are used, outlive the daemon, and what does not fit is
//! refused by name.

use std::{
    fs, io::Read as _, net::TcpStream, os::unix::net::UnixStream, process::Command, time::Duration,
};

use postern_tests::{
    binaries, eventually, root, run,
    world::{App, World, free_address},
};
use rustix::process::Signal;

use super::{agent_config, me};

/// A daemon that is started with these sockets, `NAME=KIND:PLACE` each, and options before them.
fn activated(world: &mut World, name: &str, sockets: &[String], daemon: &str, config: &str) {
    let mut command = Command::new("python3");
    command.arg(root().join("tests/python/activate.py"));
    command.args(sockets).arg("--");
    command.arg(binaries().unwrap().join(daemon));
    command.args(["run", "--config", config]);
    world.spawn(name, &mut command).unwrap();
}

fn agents(world: &World) -> [String; 2] {
    let folder = world.path().display();
    [
        format!("workload-api=unix:{folder}/public/agent.sock"),
        format!("admin=unix:{folder}/admin/admin.sock,600"),
    ]
}

#[test]
fn the_agent_serves_at_inherited_sockets_and_leaves_them() {
    let mut world = World::new().unwrap();
    world.write("workloads/workloads.yaml", &me()).unwrap();
    agent_config(&world);
    let sockets = agents(&world);
    activated(&mut world, "agent", &sockets, "postern-agent", "agent.yaml");
    world.said("agent", "ready").unwrap();
    let agent = binaries().unwrap().join("postern-agent");
    let socket = world.path().join("public/agent.sock");
    let fetch = [
        "api",
        "fetch",
        "-output",
        "json",
        "-socketPath",
        socket.to_str().unwrap(),
    ];
    let fetched = run(agent.to_str().unwrap(), &fetch).unwrap();
    let said = String::from_utf8_lossy(&fetched.stdout);
    assert!(
        said.contains("spiffe://example.org/ns/default/sa/web"),
        "{said}"
    );
    let shown = world.admin(&["workload", "list"]).unwrap();
    assert!(shown.status.success(), "{shown:?}");

    world.signal("agent", Signal::TERM).unwrap();
    assert_eq!(world.ended("agent").unwrap(), Some(0));
    // They are the service manager's, which listens on for the next agent.
    assert!(socket.exists());
    assert!(world.path().join("admin/admin.sock").exists());
}

#[test]
fn one_inherited_socket_is_enough_and_the_agent_makes_the_other() {
    let mut world = World::new().unwrap();
    agent_config(&world);
    let [api, _] = agents(&world);
    activated(&mut world, "agent", &[api], "postern-agent", "agent.yaml");
    world.said("agent", "ready").unwrap();
    assert!(world.admin(&["workload", "list"]).unwrap().status.success());
    world.signal("agent", Signal::TERM).unwrap();
    assert_eq!(world.ended("agent").unwrap(), Some(0));
    assert!(world.path().join("public/agent.sock").exists());
    assert!(!world.path().join("admin/admin.sock").exists());
}

#[test]
fn who_has_waited_since_before_the_agent_served_is_sent_away() {
    // A connection belongs to the program that opened it. One that could wait for long would be asked
    // about when another program runs in the same process.
    let mut world = World::new().unwrap();
    world.write("workloads/workloads.yaml", &me()).unwrap();
    agent_config(&world);
    // The agent waits for its configuration, and the socket is there.
    let config = world.path().join("late.yaml");
    let made = run("mkfifo", &[config.to_str().unwrap()]).unwrap();
    assert!(made.status.success());
    let sockets = agents(&world);
    activated(&mut world, "agent", &sockets, "postern-agent", "late.yaml");
    let socket = world.path().join("public/agent.sock");
    let mut early = eventually("the socket", || UnixStream::connect(&socket).ok()).unwrap();
    let text = fs::read(world.path().join("agent.yaml")).unwrap();
    fs::write(&config, text).unwrap();
    world.said("agent", "ready").unwrap();
    early
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // Nothing was said, and it is over.
    let ended = early.read(&mut [0]);
    assert!(matches!(ended, Ok(0)) || ended.is_err_and(|error| error.raw_os_error() == Some(104)));
    let closed = "connections from before the agent served were closed";
    world.told("agent", closed).unwrap();
    // Who connects now is heard.
    let agent = binaries().unwrap().join("postern-agent");
    let healthy = ["healthcheck", "-socketPath", socket.to_str().unwrap()];
    assert!(
        run(agent.to_str().unwrap(), &healthy)
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn sockets_that_were_given_to_another_process_are_left_alone() {
    let mut world = World::new().unwrap();
    agent_config(&world);
    let other = free_address().unwrap();
    let given = ["--pid".into(), "1".into(), format!("anything=tcp:{other}")];
    activated(&mut world, "agent", &given, "postern-agent", "agent.yaml");
    world.said("agent", "ready").unwrap();
    // Nobody has closed it.
    assert!(TcpStream::connect(other).is_ok());
}

#[track_caller]
fn refused(daemon: &str, sockets: &[&str], expected: &str) {
    let mut world = World::new().unwrap();
    let folder = world.path().display().to_string();
    let config = match daemon {
        "postern-agent" => agent_config(&world),
        _ => world
            .write("proxy.yaml", &proxy_config(&folder, &addresses()))
            .unwrap(),
    };
    let sockets: Vec<String> = sockets
        .iter()
        .map(|one| one.replace('~', &folder))
        .collect();
    activated(
        &mut world,
        "daemon",
        &sockets,
        daemon,
        config.to_str().unwrap(),
    );
    assert_eq!(world.ended("daemon").unwrap(), Some(1), "{sockets:?}");
    let said = fs::read_to_string(world.log("daemon")).unwrap();
    let expected = expected.replace('~', &folder);
    assert!(
        said.contains(&expected),
        "{sockets:?}: `{expected}` is not in {said}"
    );
}

#[test]
fn what_does_not_fit_the_agent_is_refused_by_name() {
    for (sockets, expected) in [
        (
            &["workload_api=unix:~/public/agent.sock"][..],
            "descriptor 3 has the name `workload_api`; `FileDescriptorName=` is one of `admin`, `workload-api`; did you mean `workload-api`?",
        ),
        (
            &["postern-agent.socket=unix:~/public/agent.sock"],
            "is one of `admin`, `workload-api`",
        ),
        (
            &["workload-api=unix:~/public/other.sock"],
            "descriptor 3 (`workload-api`) listens at `~/public/other.sock`, but `workloadApi.socket` is `~/public/agent.sock`; make them the same",
        ),
        // Swapped: what everybody may reach would be the administrator's.
        (
            &[
                "admin=unix:~/public/agent.sock",
                "workload-api=unix:~/admin/admin.sock",
            ],
            "but `admin.socket` is `~/admin/admin.sock`",
        ),
        (
            &["admin=unix:~/admin/admin.sock,666"],
            "has mode 0666 and is open to others; `SocketMode=0600`",
        ),
        (
            &["workload-api=tcp:127.0.0.1:0"],
            "but `workloadApi.socket` is `~/public/agent.sock`",
        ),
        (
            &["workload-api=udp:127.0.0.1:0"],
            "(`workload-api`) is a datagram socket, not a listening stream socket",
        ),
        (
            &["workload-api=connection:127.0.0.1:0"],
            "is a socket that does not listen, not a listening",
        ),
        (
            &["workload-api=file:/etc/passwd"],
            "is no socket, not a listening",
        ),
        (
            &["workload-api=unix:~/public/agent.sock", "admin=none:"],
            "descriptor 4 is promised by LISTEN_FDS and is not open",
        ),
        (
            &[
                "--names",
                "workload-api",
                "a=unix:~/public/agent.sock",
                "b=unix:~/admin/admin.sock",
            ],
            "LISTEN_FDNAMES has 1 names for 2 descriptors",
        ),
        (&["--count", "lots"], "`lots` in LISTEN_FDS is no number"),
    ] {
        refused("postern-agent", sockets, expected);
    }
}

#[test]
fn an_inherited_socket_in_a_folder_of_others_is_refused_as_an_own_one_would_be() {
    let mut world = World::new().unwrap();
    agent_config(&world);
    let folder = world.path().join("public");
    fs::create_dir(&folder).unwrap();
    let made = run("chmod", &["777", folder.to_str().unwrap()]).unwrap();
    assert!(made.status.success());
    let sockets = agents(&world);
    activated(&mut world, "agent", &sockets, "postern-agent", "agent.yaml");
    assert_eq!(world.ended("agent").unwrap(), Some(1));
    let said = fs::read_to_string(world.log("agent")).unwrap();
    assert!(said.contains("who could replace the socket"), "{said}");
}

/// Inbound, an outbound listener, admin, metrics.
fn addresses() -> [String; 4] {
    [(); 4].map(|()| free_address().unwrap().to_string())
}

fn proxy_config(folder: &str, [inbound, outbound, admin, metrics]: &[String; 4]) -> String {
    format!(
        "identity: {{workloadApi: 'unix://{folder}/public/agent.sock'}}\n\
         policies: {{directory: '{}/policies/examples/seed', namespace: production}}\n\
         workloads: {{directory: workloads}}\n\
         inbound: {{listen: '{inbound}', forward: '{}'}}\n\
         outbound: {{listeners: [{{listen: '{outbound}', to: default/web, port: http}}]}}\n\
         admin: {{listen: '{admin}'}}\nmetrics: {{listen: '{metrics}'}}\n",
        root().display(),
        App::start().unwrap().address,
    )
}

#[test]
fn the_proxy_serves_at_inherited_sockets() {
    let mut world = World::new().unwrap();
    world.agent(&me()).unwrap();
    let folder = world.path().display().to_string();
    let at = addresses();
    let config = world
        .write("proxy.yaml", &proxy_config(&folder, &at))
        .unwrap();
    let [inbound, outbound, admin, metrics] = &at;
    let given = [
        format!("metrics=tcp:{metrics}"),
        format!("outbound=tcp:{outbound}"),
        format!("inbound=tcp:{inbound}"),
        format!("admin=tcp:{admin}"),
    ];
    let config = config.to_str().unwrap();
    activated(&mut world, "proxy", &given, "postern-proxy", config);
    world.said("proxy", "ready").unwrap();
    let proxy = binaries().unwrap().join("postern-proxy");
    let proxy = proxy.to_str().unwrap();
    let healthy = run(proxy, &["healthcheck", "--address", metrics]).unwrap();
    assert!(healthy.status.success(), "{healthy:?}");
    let status = run(proxy, &["status", "--address", admin]).unwrap();
    assert!(status.status.success(), "{status:?}");
    // A caller without an identity is refused by the road in.
    let mut plain = TcpStream::connect(inbound).unwrap();
    std::io::Write::write_all(&mut plain, b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    let mut asking = TcpStream::connect(metrics).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {metrics}\r\n\r\n");
    std::io::Write::write_all(&mut asking, request.as_bytes()).unwrap();
    let mut told = String::new();
    asking.read_to_string(&mut told).unwrap();
    let refused = "refused_total{direction=\"inbound\",reason=\"policy\"} 1\n";
    assert!(told.contains(refused), "{told}");
}

#[test]
fn what_does_not_fit_the_proxy_is_refused_by_name() {
    for (sockets, expected) in [
        (
            &["inbound=tcp:127.0.0.1:0"][..],
            "descriptor 3 (`inbound`) listens at `127.0.0.1:",
        ),
        (
            &["inbound=tcp:127.0.0.1:0"],
            "but `inbound.listen` is `127.0.0.1:",
        ),
        (
            &["in=tcp:127.0.0.1:0"],
            "is one of `admin`, `inbound`, `metrics`, `outbound`; did you mean `inbound`?",
        ),
        (
            &["metrics=unix:~/metrics.sock"],
            "but `metrics.listen` is `127.0.0.1:",
        ),
        (
            &["outbound=tcp:[::1]:0"],
            "but `outbound.listeners` is `127.0.0.1:",
        ),
    ] {
        refused("postern-proxy", sockets, expected);
    }
}
