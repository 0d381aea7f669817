//! The authority's state, whatever happens to the machine.

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::Duration,
};

use postern_tests::{binaries, eventually, root, run, world::World};
use rustix::process::Signal;
use serde_json::Value;

use super::{a_good_client_is_served, ours};

/// The IDs of the roots and keys.
fn signers(world: &World) -> Vec<String> {
    let shown = world.admin(&["authority", "show", "--json"]).unwrap();
    let all: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let ids = all.as_array().unwrap().iter();
    ids.map(|one| one.get("id").unwrap().as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_kill_at_any_instant_leaves_the_old_roots_or_the_new_ones() {
    // FAULTS 31
    let mut world = World::new().unwrap();
    world.agent(&ours()).unwrap();
    let mut known = signers(&world);
    for round in 0..15u64 {
        let admin = world.path().join("admin/admin.sock");
        let changes = "while :; do for what in prepare activate; do \
            \"$0\" authority $what -socketPath \"$1\" >/dev/null 2>&1; done; done";
        let mut writer = Command::new("sh")
            .args(["-c", changes])
            .arg(binaries().unwrap().join("postern-agent"))
            .arg(admin)
            .spawn()
            .unwrap();
        // An instant that is another in every round.
        std::thread::park_timeout(Duration::from_millis(7 + 13 * round % 60));
        world.signal("agent", Signal::KILL).unwrap();
        world.ended("agent").unwrap();
        writer.kill().unwrap();
        writer.wait().unwrap();
        world.agent(&ours()).unwrap();
        let now = signers(&world);
        for id in &known {
            assert!(now.contains(id), "round {round}: {id} is gone from {now:?}");
        }
        known = now;
        a_good_client_is_served(&world);
    }
    assert!(known.len() > 2, "nothing was ever written: {known:?}");
}

#[test]
fn a_disk_that_takes_its_time_keeps_nobody_waiting_who_is_served_and_changes_keep_their_order() {
    // FAULTS 33
    let mut world = World::new().unwrap();
    let mut wrapper = Command::new(root().join("target/python/bin/python"));
    wrapper.arg(root().join("tests/python/slow_disk.py"));
    wrapper.arg(world.path());
    world.agent_under(wrapper, &ours(), "").unwrap();
    a_good_client_is_served(&world);
    let before = signers(&world);
    let held = world.write("held", "").unwrap();
    let change = |what: &str| {
        Command::new(binaries().unwrap().join("postern-agent"))
            .args(["authority", what, "-socketPath"])
            .arg(world.path().join("admin/admin.sock"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut prepare = change("prepare");
    eventually("the disk to be waited for", || {
        world.path().join("waiting").exists().then_some(())
    })
    .unwrap();
    // It has to come after what was asked for before it, or there is nothing to activate.
    let mut activate = change("activate");
    for _ in 0..3 {
        a_good_client_is_served(&world);
        assert_eq!(signers(&world), before);
    }
    assert!(prepare.try_wait().unwrap().is_none());
    assert!(activate.try_wait().unwrap().is_none());
    fs::remove_file(held).unwrap();
    for mut one in [prepare, activate] {
        assert!(one.wait().unwrap().success());
    }
    assert!(signers(&world).len() > before.len());
    a_good_client_is_served(&world);
}

/// A small file system for the state.
struct Disk(String);

impl Disk {
    fn at(world: &World) -> Self {
        let path = world.path().join("state").display().to_string();
        fs::create_dir(&path).unwrap();
        let mounted = run(
            "mount",
            &["-t", "tmpfs", "-o", "size=8m,mode=700", "none", &path],
        );
        assert!(mounted.unwrap().status.success());
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.0]);
    }
}

/// What somebody is told who is in a pod of its own: a session that the agent has not seen.
fn elsewhere(world: &World) -> Output {
    Command::new("setsid")
        .arg("-w")
        .arg(binaries().unwrap().join("postern-agent"))
        .args(["api", "fetch", "-output", "json", "-socketPath"])
        .arg(world.path().join("public/agent.sock"))
        .output()
        .unwrap()
}

#[test]
#[ignore = "needs root, to mount a small file system"]
fn root_a_full_disk_stops_no_one_and_heals() {
    // FAULTS 33
    let mut world = World::new().unwrap();
    let disk = Disk::at(&world);
    world.agent(&ours()).unwrap();
    a_good_client_is_served(&world);
    let before = signers(&world);
    let ballast = format!("{}/ballast", disk.0);
    let _ = run("dd", &["if=/dev/zero", &format!("of={ballast}"), "bs=64k"]).unwrap();
    let refused = world.admin(&["authority", "prepare"]).unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("No space left on device") && said.contains("state"),
        "{said}"
    );
    let path = world
        .write("w.yaml", &super::workload("more", "'unix:uid:1'"))
        .unwrap();
    let create = ["workload", "create", "-f", path.to_str().unwrap()];
    for _ in 0..20 {
        // Small changes may still fit into the file that is there; whatever is said is so.
        let created = world.admin(&create).unwrap().status.success();
        let listed = world.admin(&["workload", "list"]).unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(listed.contains("default/more"), created, "{listed}");
        if created {
            break;
        }
    }
    a_good_client_is_served(&world);
    assert_eq!(signers(&world), before);
    // Those who are known keep what they have; nobody gets what could not be taken back later.
    let mut answers = (0..100).map(|_| elsewhere(&world));
    let refused = answers.find(|output| !output.status.success()).unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    let told =
        "code = Unavailable desc = cannot issue now: the agent cannot write down what it issues";
    assert!(said.contains(told), "{said}");
    a_good_client_is_served(&world);
    fs::remove_file(ballast).unwrap();
    assert!(elsewhere(&world).status.success());
    assert!(
        world
            .admin(&["authority", "prepare"])
            .unwrap()
            .status
            .success()
    );
    assert!(signers(&world).len() > before.len());
}

#[test]
#[ignore = "needs root, to mount a small file system"]
fn root_a_read_only_file_system_stops_no_one() {
    // FAULTS 34
    let mut world = World::new().unwrap();
    let disk = Disk::at(&world);
    world.agent(&ours()).unwrap();
    a_good_client_is_served(&world);
    let before = signers(&world);
    let read_only = run("mount", &["-o", "remount,ro", &disk.0]).unwrap();
    if !read_only.status.success() {
        // The database is open for writing; the kernel lets nobody close it off then. A bind does.
        assert!(
            run("mount", &["--bind", &disk.0, &disk.0])
                .unwrap()
                .status
                .success()
        );
        assert!(
            run("mount", &["-o", "remount,ro,bind", &disk.0])
                .unwrap()
                .status
                .success()
        );
    }
    let refused = world.admin(&["authority", "prepare"]).unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("Read-only file system"), "{said}");
    a_good_client_is_served(&world);
    assert_eq!(signers(&world), before);
    let _ = run("umount", &["-l", &disk.0]);
}
