//! The sockets: who reaches them, and what lies in their place.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::Path,
    process::Command,
};

use postern_tests::{binaries, world::World};
use rustix::process::Signal;

use super::{a_good_client_is_served, ours, script};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn everybody_reaches_the_workload_api_and_the_owner_alone_the_admin_socket() {
    // FAULTS 20, 50
    let mut world = World::new().unwrap();
    let socket = world.agent(&ours()).unwrap();
    assert_eq!(mode(&socket), 0o777);
    assert_eq!(mode(&world.path().join("admin/admin.sock")), 0o600);
    assert_eq!(mode(&world.path().join("public")) & 0o022, 0);
    assert_eq!(mode(&world.path().join("state")), 0o700);
    assert_eq!(mode(&world.path().join("state/authority.json")), 0o600);
    assert_eq!(mode(&world.path().join("state/registry.redb")), 0o600);
}

/// Starts the agent in vain; tells what it said.
fn refused(world: &mut World) -> String {
    let config = world.path().join("agent.yaml");
    let mut command = Command::new(binaries().unwrap().join("postern-agent"));
    command.args(["run", "--config"]).arg(config);
    world.spawn("again", &mut command).unwrap();
    assert_eq!(world.ended("again").unwrap(), Some(1));
    fs::read_to_string(world.log("again")).unwrap()
}

#[test]
fn what_lies_in_the_sockets_place_stays_unless_it_is_a_socket_that_nobody_serves() {
    // FAULTS 21
    let mut world = World::new().unwrap();
    let socket = world.agent(&ours()).unwrap();
    world.signal("agent", Signal::KILL).unwrap();
    world.ended("agent").unwrap();
    assert!(socket.exists(), "a killed agent leaves its socket");
    world.agent(&ours()).unwrap();
    a_good_client_is_served(&world);
    world.signal("agent", Signal::TERM).unwrap();
    world.ended("agent").unwrap();
    // Somebody's file, and somebody's link.
    fs::write(&socket, "precious").unwrap();
    assert!(refused(&mut world).contains("is no socket; move it away"));
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
    fs::remove_file(&socket).unwrap();
    let other = world.path().join("other.sock");
    let _served = UnixListener::bind(&other).unwrap();
    symlink(&other, &socket).unwrap();
    assert!(refused(&mut world).contains("is no socket; move it away"));
    assert!(
        fs::symlink_metadata(&socket)
            .unwrap()
            .file_type()
            .is_symlink()
    );
    assert!(fs::metadata(&other).unwrap().file_type().is_socket());
    // Somebody's socket, which he serves.
    fs::remove_file(&socket).unwrap();
    let served = UnixListener::bind(&socket).unwrap();
    assert!(refused(&mut world).contains("somebody serves"));
    assert!(socket.exists());
    drop(served);
    world.agent(&ours()).unwrap();
    a_good_client_is_served(&world);
}

#[test]
fn a_second_agent_leaves_the_first_one_alone() {
    // FAULTS 22
    let mut world = World::new().unwrap();
    world.agent(&ours()).unwrap();
    let said = refused(&mut world);
    assert!(said.contains("another agent uses the state"), "{said}");
    a_good_client_is_served(&world);
    // The same socket with a state of its own, and the same state with sockets of its own.
    let config = world.path().join("agent.yaml");
    let first = fs::read_to_string(&config).unwrap();
    fs::write(&config, first.replace("stateDir: state", "stateDir: other")).unwrap();
    let said = refused(&mut world);
    assert!(said.contains("is another agent running?"), "{said}");
    a_good_client_is_served(&world);
    let elsewhere = first
        .replace("/public/", "/public2/")
        .replace("/admin/", "/admin2/");
    fs::write(&config, elsewhere).unwrap();
    let said = refused(&mut world);
    assert!(said.contains("another agent uses the state"), "{said}");
    a_good_client_is_served(&world);
}

/// What another user cannot do is done by root a moment later, so it is not for another reason.
#[track_caller]
fn is_for_the_owner(line: &str) {
    let as_user = |uid: &str| {
        let arguments = [
            &format!("--reuid={uid}"),
            "--clear-groups",
            "sh",
            "-c",
            line,
        ];
        let output = Command::new("setpriv").args(arguments).output().unwrap();
        output.status.success()
    };
    assert!(!as_user("12001"), "{line}");
    assert!(as_user("0"), "{line}");
}

#[test]
#[ignore = "needs root, to be another user"]
fn root_others_reach_the_workload_api_and_neither_replace_nor_read_what_is_beside_it() {
    // FAULTS 20
    let mut world = World::new().unwrap();
    let socket = world
        .agent(&super::workload("other", "'unix:uid:12001'"))
        .unwrap();
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (folder, agent) = (
        world.path().display(),
        binaries().unwrap().join("postern-agent"),
    );
    let program = world.path().join("program");
    postern_tests::copy_program(agent, &program).unwrap();
    let program = program.display();
    let fetched = Command::new("setpriv")
        .args(["--reuid=12001", "--clear-groups"])
        .arg(world.path().join("program"))
        .args(["api", "fetch", "-socketPath"])
        .arg(&socket)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&fetched.stderr);
    assert!(fetched.status.success(), "{error}");
    is_for_the_owner(&format!(
        "touch {folder}/public/mine && rm {folder}/public/mine"
    ));
    is_for_the_owner(&format!("cd {folder}/public && ln agent.sock x && rm x"));
    is_for_the_owner(&format!("cat {folder}/state/authority.json"));
    is_for_the_owner(&format!(
        "{program} bundle show -socketPath {folder}/admin/admin.sock"
    ));
}

#[test]
fn a_socket_that_others_could_replace_is_not_opened() {
    // FAULTS 20
    let mut world = World::new().unwrap();
    let public = world.path().join("public");
    fs::create_dir(&public).unwrap();
    fs::set_permissions(&public, fs::Permissions::from_mode(0o777)).unwrap();
    let said = world.refused_agent(&ours(), "").unwrap();
    assert!(said.contains("can be written by others"), "{said}");
    fs::set_permissions(&public, fs::Permissions::from_mode(0o755)).unwrap();
    world.agent(&ours()).unwrap();
    a_good_client_is_served(&world);
}

#[test]
fn what_is_no_grpc_is_closed_without_many_words() {
    // FAULTS 24
    let mut world = World::new().unwrap();
    world.agent(&ours()).unwrap();
    for _ in 0..20 {
        let said = script(&world, "crowds.py", "garbage", &[]);
        assert_eq!(said, ["closed"; 3]);
    }
    a_good_client_is_served(&world);
    let log = fs::read_to_string(world.log("agent")).unwrap();
    assert!(log.lines().count() < 20, "{log}");
}

#[test]
fn an_agent_whose_socket_was_removed_ends_and_says_so() {
    // FAULTS 29
    let mut world = World::new().unwrap();
    let socket = world.agent(&ours()).unwrap();
    fs::remove_file(&socket).unwrap();
    assert_eq!(world.ended("agent").unwrap(), Some(1));
    let log = fs::read_to_string(world.log("agent")).unwrap();
    assert!(log.contains("was removed from under the agent"), "{log}");
    world.agent(&ours()).unwrap();
    a_good_client_is_served(&world);
}
