//! The walls that the daemons put around themselves.

use std::fs;

use postern_tests::{
    eventually,
    world::{World, free_address},
};
use serde_json::Value;

/// A line of `/proc/PID/status` of a daemon.
fn status(world: &World, name: &str, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", world.pid(name).unwrap())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

/// The line that says which walls stand.
fn stands(world: &World, name: &str) -> Value {
    eventually("the line on walls", || {
        let text = fs::read_to_string(world.log(name)).ok()?;
        let line = text.lines().find(|line| line.contains("walls stand"))?;
        serde_json::from_str(line).ok()
    })
    .unwrap()
}

fn proxy(world: &mut World, walls: &str) {
    world.write("policies/none.yaml", "").unwrap();
    let text = format!(
        "identity: {{workloadApi: 'unix:///nowhere.sock'}}\npolicies: {{directory: policies}}\n\
         workloads: {{directory: policies}}\n\
         inbound: {{listen: '{}', forward: '127.0.0.1:9'}}\n\
         admin: {{listen: '{}'}}\nmetrics: {{listen: '{}'}}\n{walls}",
        free_address().unwrap(),
        free_address().unwrap(),
        free_address().unwrap()
    );
    world.proxy("proxy", &text).unwrap();
}

#[test]
fn an_agent_has_a_filter_unless_somebody_takes_it_away() {
    let mut world = World::new().unwrap();
    world.agent("").unwrap();
    assert_eq!(stands(&world, "agent")["seccomp"], "agent");
    assert_eq!(status(&world, "agent", "Seccomp"), "2");
    let mut without = World::new().unwrap();
    without.agent_with("", "walls: {seccomp: off}\n").unwrap();
    assert_eq!(status(&without, "agent", "Seccomp"), outside());
    let off = "`walls.seccomp` is off: a bug in the agent reaches every system call";
    without.said("agent", off).unwrap();
}

#[test]
fn an_agent_takes_no_wall_that_it_cannot_have() {
    let mut world = World::new().unwrap();
    let told = world.refused_agent("", "walls: {landlock: on}\n").unwrap();
    assert!(told.contains("cannot be on for an agent"), "{told}");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscals": []}"#;
    let path = world.write("profile.json", profile).unwrap();
    let walls = format!("walls: {{seccomp: '{}'}}\n", path.display());
    let mut world = World::new().unwrap();
    let told = world.refused_agent("", &walls).unwrap();
    assert!(told.contains("unknown field `syscals`"), "{told}");
}

#[test]
fn a_filter_of_ones_own_is_in_force() {
    // Without `listen` there is no agent.
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
        [{"names": ["listen"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#;
    let mut world = World::new().unwrap();
    world.write("profile.json", profile).unwrap();
    let told = world
        .refused_agent("", "walls: {seccomp: profile.json}\n")
        .unwrap();
    assert!(told.contains("Permission denied"), "{told}");
    let harmless = profile.replace("listen", "swapon");
    let mut world = World::new().unwrap();
    world.write("profile.json", &harmless).unwrap();
    world
        .agent_with("", "walls: {seccomp: profile.json}\n")
        .unwrap();
}

#[test]
fn a_proxy_has_a_filter_and_a_fence() {
    let mut world = World::new().unwrap();
    proxy(&mut world, "");
    let told = stands(&world, "proxy");
    assert_eq!(told["seccomp"], "proxy");
    assert!(
        told["landlock"].as_str().unwrap().starts_with("ABI "),
        "{told}"
    );
    assert_eq!(status(&world, "proxy", "Seccomp"), "2");
    let mut without = World::new().unwrap();
    proxy(&mut without, "walls: {seccomp: off, landlock: off}\n");
    let told = stands(&without, "proxy");
    assert_eq!(
        (&told["seccomp"], &told["landlock"]),
        (&"off".into(), &"off".into())
    );
    assert_eq!(status(&without, "proxy", "Seccomp"), outside());
}

/// These tests may themselves run under a filter.
fn outside() -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    line.unwrap().trim().to_owned()
}
