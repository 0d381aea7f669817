//! Too many streams, connections and questions, and readers that do not read.

use std::fs;

use postern_tests::{
    binaries, eventually, root, run,
    world::{World, free_address},
};
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
    let (world, agent) = world();
    let said = script(&world, "crowds.py", "streams", &[]);
    // ResourceExhausted.
    assert_eq!(said, ["opened 256 status 8"]);
    let said = script(&world, "crowds.py", "all_streams", &[&agent]);
    assert_eq!(said, ["opened 256 refused 4744", "grown little True"]);
    a_good_client_is_served(&world);
}

#[test]
fn streams_of_health_and_reflection_count_like_all_others() {
    // FAULTS 25
    let mut world = World::new().unwrap();
    let health = free_address().unwrap();
    let socket = world
        .agent_with(&ours(), &format!("health: {{listen: '{health}'}}\n"))
        .unwrap();
    let python = root().join("target/python/bin/python");
    let script = root().join("tests/python/health.py");
    let address = format!("unix:{}", socket.display());
    let arguments = [script.to_str().unwrap(), &address, "crowd"];
    let output = run(python.to_str().unwrap(), &arguments).unwrap();
    let refused =
        ["watch", "reflection", "check", "x509"].map(|one| format!("{one} RESOURCE_EXHAUSTED\n"));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!(
            "watches OK\nreflections OK\n{}x509 OK\nreflection OK\nwatch RESOURCE_EXHAUSTED\nheld True\n",
            refused.concat()
        ),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let url = format!("http://{health}/metrics");
    let metric = |name: &str| {
        let told = run("curl", &["-s", &url]).unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        let line = told.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.unwrap().parse::<u64>().unwrap()
    };
    let refused = "postern_agent_requests_refused_total{reason=\"too_many_streams\"}";
    assert!(metric(refused) >= 5);
    eventually("all to be counted off", || {
        (metric("postern_agent_workload_api_streams_open") == 0).then_some(())
    })
    .unwrap();
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
fn connections_with_nothing_open_end_and_those_with_a_stream_do_not() {
    // FAULTS 26
    let mut world = World::new().unwrap();
    world.agent_with(&ours(), "idleTimeout: 1s\n").unwrap();
    let said = script(&world, "crowds.py", "idle", &[]);
    assert_eq!(said, ["held True", "again 1", "closed"]);
    a_good_client_is_served(&world);
}

#[test]
fn a_user_with_all_his_places_gives_way_to_himself_and_never_with_a_stream() {
    // FAULTS 26
    let (world, _) = world();
    let said = script(&world, "crowds.py", "full", &["4097"]);
    // The stream and they are two too many; the third made room for who asked.
    let expected = [
        "asked spiffe://example.org/ours",
        "gave way [0, 1, 2]",
        "held True",
    ];
    assert_eq!(said, expected);
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
        eventually("all to be served", || {
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

#[test]
fn a_user_with_many_processes_calls_so_often_and_no_more() {
    // FAULTS 48, 49
    let mut world = World::new().unwrap();
    let more = "idleTimeout: 5m, callsOfUser: 1\n";
    world.agent_with(&ours(), more).unwrap();
    let said = script(&world, "crowds.py", "unary", &["30"]);
    // All ask for no audience; five are let in at once, each of another process.
    assert_eq!(said.get(..5).unwrap(), ["status 3"; 5]);
    assert!(said.iter().any(|one| one == "status 8"), "{said:?}");
    a_good_client_is_served(&world);
    let (world, _) = self::world();
    assert_eq!(
        script(&world, "crowds.py", "unary", &["30"]),
        ["status 3"; 30]
    );
}

#[test]
#[ignore = "needs root, to be another user"]
fn root_a_user_who_calls_too_often_takes_no_call_from_others() {
    // FAULTS 49
    let mut world = World::new().unwrap();
    let more = "idleTimeout: 5m, callsOfUser: 1\n";
    world.agent_with(&ours(), more).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(world.path(), open).unwrap();
    let said = script(&world, "crowds.py", "unary", &["30", "12001"]);
    let (own, other) = said.split_at(30);
    assert!(own.iter().any(|one| one == "status 8"), "{said:?}");
    assert_eq!(other, ["status 3"]);
}
