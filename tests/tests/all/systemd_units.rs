//! What the daemons and a service manager tell each other, and the units in deploy/systemd.

mod activation;
mod units;

use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use postern_tests::{
    binaries, eventually, root,
    world::{App, World, free_address},
};
use rustix::process::Signal;

/// Stands in for the service manager's end.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(world: &World) -> Self {
        let path = world.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let deadline = Some(Duration::from_secs(20));
        socket.set_read_timeout(deadline).unwrap();
        Self { socket, path }
    }

    fn hears(&self) -> String {
        let mut space = [0; 4096];
        let length = self.socket.recv(&mut space).expect("told in time");
        String::from_utf8_lossy(space.get(..length).unwrap()).into_owned()
    }

    /// The next message that begins so; what comes before it is passed over.
    #[track_caller]
    fn waits_for(&self, beginning: &str) -> String {
        loop {
            let told = self.hears();
            if told.starts_with(beginning) {
                return told;
            }
            let passes = ["STATUS=", "WATCHDOG=1"];
            assert!(
                passes.iter().any(|known| told.starts_with(known)),
                "`{told}` instead of `{beginning}`"
            );
        }
    }
}

/// A daemon that is watched: the signs of life are due every second.
fn supervised(daemon: &str, manager: &Manager) -> Command {
    let mut command = Command::new(binaries().unwrap().join(daemon));
    command.env("NOTIFY_SOCKET", &manager.path);
    command.env("WATCHDOG_USEC", "2000000");
    command
}

fn agent_config(world: &World) -> PathBuf {
    std::fs::create_dir_all(world.path().join("workloads")).unwrap();
    let folder = world.path().display();
    let config = format!(
        "trustDomain: example.org\nstateDir: state\n\
         workloadApi: {{socket: 'unix://{folder}/public/agent.sock'}}\n\
         admin: {{socket: 'unix://{folder}/admin/admin.sock'}}\n\
         health: {{listen: '127.0.0.1:0'}}\n"
    );
    world.write("agent.yaml", &config).unwrap()
}

/// The Workload that this test is.
fn me() -> String {
    let uid = rustix::process::geteuid().as_raw();
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web, namespace: default}}\n\
         spec: {{serviceAccount: web, selectors: ['unix:uid:{uid}']}}\n"
    )
}

fn run(world: &mut World, name: &str, command: &mut Command, config: &Path) {
    let command = command.args(["run", "--config"]).arg(config);
    world.spawn(name, command).unwrap();
}

#[test]
fn the_agent_tells_that_it_serves_lives_reads_again_and_ends() {
    let mut world = World::new().unwrap();
    let manager = Manager::new(&world);
    world.write("workloads/workloads.yaml", &me()).unwrap();
    let config = agent_config(&world);
    run(
        &mut world,
        "agent",
        &mut supervised("postern-agent", &manager),
        &config,
    );
    let ready = manager.waits_for("READY=1\n");
    assert_eq!(ready, "READY=1\nSTATUS=serves example.org, 1 Workloads\n");
    manager.waits_for("WATCHDOG=1\n");
    manager.waits_for("WATCHDOG=1\n");

    world.signal("agent", Signal::HUP).unwrap();
    manager.waits_for("RELOADING=1\nMONOTONIC_USEC=");
    manager.waits_for("READY=1\n");

    // What it cannot use is seen from outside, and it goes on.
    world
        .write("workloads/other.yaml", "kind: Nothing\n")
        .unwrap();
    let told = manager.waits_for("STATUS=serves example.org, 1 Workloads; ");
    assert!(told.contains("refused"), "{told}");
    world.signal("agent", Signal::HUP).unwrap();
    manager.waits_for("RELOADING=1\n");
    manager.waits_for("READY=1\n");

    world.signal("agent", Signal::TERM).unwrap();
    manager.waits_for("STOPPING=1\n");
    assert_eq!(world.ended("agent").unwrap(), Some(0));
}

#[test]
fn an_agent_that_does_not_run_gives_no_sign_of_life() {
    let mut world = World::new().unwrap();
    let manager = Manager::new(&world);
    world.write("workloads/workloads.yaml", &me()).unwrap();
    let config = agent_config(&world);
    run(
        &mut world,
        "agent",
        &mut supervised("postern-agent", &manager),
        &config,
    );
    manager.waits_for("READY=1\n");
    manager.waits_for("WATCHDOG=1\n");
    world.signal("agent", Signal::STOP).unwrap();
    let stat = format!("/proc/{}/stat", world.pid("agent").unwrap());
    let is_stopped = || std::fs::read_to_string(&stat).unwrap().contains(") T ");
    eventually("the agent is stopped", || is_stopped().then_some(())).unwrap();
    // What was said before is still in the queue.
    manager.socket.set_nonblocking(true).unwrap();
    let mut space = [0; 4096];
    while manager.socket.recv(&mut space).is_ok() {}
    manager.socket.set_nonblocking(false).unwrap();
    let wait = Some(Duration::from_millis(2500));
    manager.socket.set_read_timeout(wait).unwrap();
    assert!(
        manager.socket.recv(&mut space).is_err(),
        "a sign of life of the dead"
    );
    world.signal("agent", Signal::CONT).unwrap();
    manager.waits_for("WATCHDOG=1\n");
}

#[test]
fn the_proxy_tells_what_it_waits_for_that_it_serves_reads_again_and_ends() {
    let mut world = World::new().unwrap();
    let manager = Manager::new(&world);
    let socket = world.path().join("public/agent.sock");
    let config = format!(
        "identity: {{workloadApi: 'unix://{}'}}\n\
         policies: {{directory: '{}/policies/examples/seed', namespace: production}}\n\
         workloads: {{directory: workloads}}\n\
         inbound: {{listen: '{}', forward: '{}'}}\n\
         admin: {{listen: '{}'}}\nmetrics: {{listen: '{}'}}\n",
        socket.display(),
        root().display(),
        free_address().unwrap(),
        App::start().unwrap().address,
        free_address().unwrap(),
        free_address().unwrap()
    );
    let config = world.write("proxy.yaml", &config).unwrap();
    run(
        &mut world,
        "proxy",
        &mut supervised("postern-proxy", &manager),
        &config,
    );
    // It lives, and is not ready: there is nobody to give it an identity.
    let told = manager.waits_for("STATUS=waits for: ");
    assert!(told.contains("identity; policies"), "{told}");
    manager.waits_for("WATCHDOG=1\n");

    world.agent(&me()).unwrap();
    let ready = manager.waits_for("READY=1\n");
    let expected = "STATUS=serves default/web as spiffe://example.org/ns/default/sa/web\n";
    assert!(ready.ends_with(expected), "{ready}");

    world.signal("proxy", Signal::HUP).unwrap();
    manager.waits_for("RELOADING=1\nMONOTONIC_USEC=");
    manager.waits_for("READY=1\n");

    world.signal("proxy", Signal::TERM).unwrap();
    manager.waits_for("STOPPING=1\n");
    assert_eq!(world.ended("proxy").unwrap(), Some(0));
}

#[test]
fn a_service_manager_that_is_not_there_ends_the_start_and_is_named() {
    let mut world = World::new().unwrap();
    let config = agent_config(&world);
    let mut command = Command::new(binaries().unwrap().join("postern-agent"));
    command.env("NOTIFY_SOCKET", "/nowhere/notify");
    run(&mut world, "agent", &mut command, &config);
    assert_eq!(world.ended("agent").unwrap(), Some(1));
    let said = std::fs::read_to_string(world.log("agent")).unwrap();
    assert!(said.contains("`/nowhere/notify` (NOTIFY_SOCKET)"), "{said}");
}

#[test]
#[ignore = "needs root: it mounts"]
fn root_what_the_service_manager_makes_read_only_is_not_safe_for_that() {
    // `ProtectSystem=strict` makes everything read-only for the agent, and for nobody else.
    for (service, expected) in [(false, "ready"), (true, "can be written by others")] {
        let mut world = World::new().unwrap();
        world.write("workloads/workloads.yaml", &me()).unwrap();
        let config = agent_config(&world);
        let folder = world.path().join("workloads");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&folder, open).unwrap();
        let parent = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(world.path(), parent).unwrap();
        let line =
            "mount --bind workloads workloads && mount -o remount,bind,ro workloads && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", line, "sh"]);
        command.arg(binaries().unwrap().join("postern-agent"));
        match service {
            true => command.env("INVOCATION_ID", "6c7b6e0f4b2c4f0aa5b4e5f0e5d0c3a1"),
            false => command.env_remove("INVOCATION_ID"),
        };
        run(&mut world, "agent", &mut command, &config);
        let log = || std::fs::read_to_string(world.log("agent")).unwrap();
        eventually(expected, || log().contains(expected).then_some(())).unwrap();
    }
}

#[test]
fn a_proxy_whose_standard_output_is_a_socket_writes_its_access_log_there() {
    // As the journal's: a socket cannot be opened by its name.
    let world = World::new().unwrap();
    let manager = Manager::new(&world);
    let config = format!(
        "identity: {{workloadApi: 'unix:///nowhere/agent.sock'}}\n\
         policies: {{directory: '{}/policies/examples/seed'}}\n\
         inbound: {{listen: '{}', forward: '127.0.0.1:9'}}\n\
         admin: {{listen: '{}'}}\nmetrics: {{listen: '{}'}}\n",
        root().display(),
        free_address().unwrap(),
        free_address().unwrap(),
        free_address().unwrap()
    );
    let config = world.write("proxy.yaml", &config).unwrap();
    let (_journal, output) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut command = supervised("postern-proxy", &manager);
    command.stdout(std::os::fd::OwnedFd::from(output));
    let mut proxy = command
        .args(["run", "--config"])
        .arg(config)
        .spawn()
        .unwrap();
    manager.waits_for("STATUS=waits for: ");
    proxy.kill().unwrap();
    proxy.wait().unwrap();
}
