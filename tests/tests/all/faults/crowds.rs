//! Too many streams, connections and questions, and readers that do not read.

use std::fs;

use postern_tests::{binaries, run, world::World};
use rustix::process::Signal;

use super::{a_good_client_is_served, ours, script};

fn world() -> (World, String) {
    let mut world = World::new().unwrap();
    world.agent(&ours()).unwrap();
    let config = world.path().join("agent.yaml");
    let pattern = format!("postern-agent run --config {}", config.display());
    let found = run("pgrep", &["-f", &pattern]).unwrap();
    let pid = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    (world, pid)
}

#[test]
fn one_process_opens_so_many_streams_and_no_more() {
    // FAULTS 25
    let (world, _) = world();
    let said = script(&world, "crowds.py", "streams", &[]);
    // ResourceExhausted.
    assert_eq!(said, ["opened 256 status 8"]);
    a_good_client_is_served(&world);
}

#[test]
fn connections_that_say_nothing_are_closed() {
    // FAULTS 26
    let (world, agent) = world();
    let said = script(&world, "crowds.py", "connections", &[&agent, "300"]);
    assert_eq!(said, ["closed"]);
    a_good_client_is_served(&world);
}

#[test]
fn a_reader_that_does_not_read_gets_the_newest_later_and_costs_no_memory() {
    // FAULTS 27
    let (world, agent) = world();
    let program = binaries().unwrap().join("postern-agent");
    let admin = world.path().join("admin/admin.sock");
    let arguments = [
        &agent,
        "40",
        program.to_str().unwrap(),
        admin.to_str().unwrap(),
    ];
    let said = script(&world, "crowds.py", "slow", &arguments);
    assert_eq!(said, ["grown little True", "few messages True"]);
}

#[test]
fn callers_that_come_and_go_leave_nothing_behind() {
    // FAULTS 28
    let (world, agent) = world();
    let said = script(&world, "crowds.py", "passing", &[&agent, "5000"]);
    assert_eq!(said, ["back True"]);
    a_good_client_is_served(&world);
}

#[test]
fn after_a_restart_all_are_served_again_with_few_signatures() {
    // FAULTS 30
    let (mut world, _) = world();
    let program = binaries().unwrap().join("postern-agent");
    for number in 0..30 {
        let mut command = std::process::Command::new(&program);
        command.args(["api", "watch", "-output", "json", "-socketPath"]);
        command.arg(world.path().join("public/agent.sock"));
        world
            .spawn(&format!("watch{number}"), &mut command)
            .unwrap();
    }
    let updates = |world: &World, number: usize| {
        let log = fs::read_to_string(world.log(&format!("watch{number}"))).unwrap();
        log.lines()
            .filter(|line| line.contains("spiffe_id"))
            .count()
    };
    let all_have = |world: &World, wanted: usize| {
        postern_tests::eventually("all to be served", || {
            (0..30)
                .all(|number| updates(world, number) >= wanted)
                .then_some(())
        })
    };
    all_have(&world, 1).unwrap();
    world.signal("agent", Signal::KILL).unwrap();
    world.ended("agent").unwrap();
    world.agent(&ours()).unwrap();
    all_have(&world, 2).unwrap();
    let log = fs::read_to_string(world.log("agent")).unwrap();
    let issued = log.matches("an identity was issued").count();
    // They are in one pod: the session of this test.
    assert!(issued < 10, "{issued} signatures for 30 readers");
}
