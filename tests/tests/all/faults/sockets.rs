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
}

#[test]
fn a_second_agent_leaves_the_first_one_alone() {
    // FAULTS 22
    let mut world = World::new().unwrap();
    world.agent(&ours()).unwrap();
    let said = refused(&mut world);
    assert!(said.contains("another agent uses the state"), "{said}");
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
