//! What an agent finds at its start: damage, and doors that stand open.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use postern_tests::world::World;
use rustix::process::Signal;

use super::{a_good_client_is_served, ours, workload};

fn kill(world: &mut World) {
    world.signal("agent", Signal::KILL).unwrap();
    world.ended("agent").unwrap();
}

/// A world whose agent has issued something and ended, and one Workload of its registry.
fn world() -> World {
    let mut world = World::new().unwrap();
    world.agent(&ours()).unwrap();
    let more = workload("more", "'unix:uid:1'");
    let path = world.write("w.yaml", &more).unwrap();
    let create = ["workload", "create", "-f", path.to_str().unwrap()];
    assert!(world.admin(&create).unwrap().status.success());
    a_good_client_is_served(&world);
    kill(&mut world);
    world
}

#[test]
fn keys_and_registry_that_are_damaged_empty_or_newer_are_refused_and_left_alone() {
    // FAULTS 35
    let mut world = world();
    let bundle = |world: &World| world.admin(&["bundle", "show"]).unwrap().stdout;
    world.agent(&ours()).unwrap();
    let roots = bundle(&world);
    kill(&mut world);
    for (name, newer) in [
        ("authority.json", as_newer_authority as fn(&[u8]) -> Vec<u8>),
        ("registry.redb", as_newer_registry),
    ] {
        let path = world.path().join("state").join(name);
        let good = fs::read(&path).unwrap();
        for bad in [
            vec![],
            b"x".repeat(5_000),
            good[..good.len() / 2].to_vec(),
            newer(&good),
        ] {
            fs::write(&path, &bad).unwrap();
            let said = world.refused_agent(&ours(), "").unwrap();
            assert!(said.contains(name), "{} bytes: {said}", bad.len());
            assert!(fs::read(&path).unwrap() == bad, "{name} was changed");
        }
        fs::write(&path, &good).unwrap();
    }
    world.agent(&ours()).unwrap();
    assert_eq!(bundle(&world), roots);
    let listed = world.admin(&["workload", "list"]).unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("default/more"), "{listed}");
}

fn as_newer_authority(good: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(good).unwrap();
    let mut all: serde_json::Value = serde_json::from_str(text).unwrap();
    let version = all.get_mut("version").unwrap();
    *version = (version.as_u64().unwrap() + 1).into();
    serde_json::to_vec(&all).unwrap()
}

/// The version of the file's form stands in both slots of its header.
fn as_newer_registry(good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for slot in [64, 192] {
        *bytes.get_mut(slot).unwrap() += 1;
    }
    bytes
}

/// The ledgers that were kept aside.
fn kept(world: &World) -> Vec<PathBuf> {
    let all = fs::read_dir(world.path().join("state")).unwrap();
    let all = all.map(|entry| entry.unwrap().path());
    all.filter(|path| path.display().to_string().contains(".damaged-"))
        .collect()
}

fn write_svid(world: &World) {
    let fetched = Command::new(postern_tests::binaries().unwrap().join("postern-agent"))
        .args(["api", "fetch", "-write", "svids", "-socketPath"])
        .arg("public/agent.sock")
        .current_dir(world.path())
        .output()
        .unwrap();
    assert!(fetched.status.success(), "{fetched:?}");
}

#[test]
fn a_ledger_that_is_damaged_is_kept_aside_and_what_can_be_read_of_it_is_taken_back() {
    // FAULTS 35
    let mut world = World::new().unwrap();
    world.agent(&workload("nobody", "'unix:uid:1'")).unwrap();
    let path = world.write("w.yaml", &ours()).unwrap();
    let create = ["workload", "create", "-f", path.to_str().unwrap()];
    assert!(world.admin(&create).unwrap().status.success());
    write_svid(&world);
    kill(&mut world);
    let ledger = world.path().join("state/issued.jsonl");
    let mut damaged = fs::read(&ledger).unwrap();
    damaged.extend_from_slice(b"{\"serial\": \xff\xfe\n{}\n");
    fs::write(&ledger, &damaged).unwrap();
    // Somebody has to be told the lists.
    world.agent(&ours().replace("ours", "other")).unwrap();
    let log = world.told("agent", "the ledger of issued SVIDs is damaged");
    assert!(log.unwrap().contains("\"lines\":2"));
    let aside = kept(&world);
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(&aside[0]).unwrap(), damaged);
    assert!(!world.is_revoked("svids").unwrap());
    let delete = world.admin(&["workload", "delete", "default/ours"]);
    assert!(delete.unwrap().status.success());
    assert!(world.is_revoked("svids").unwrap());
    // What it wrote itself it can read.
    kill(&mut world);
    world.agent(&ours()).unwrap();
    assert_eq!(kept(&world), aside);
    a_good_client_is_served(&world);
    kill(&mut world);
    fs::write(&ledger, "{\"version\":99}\n").unwrap();
    let said = world.refused_agent(&ours(), "").unwrap();
    assert!(said.contains("version 99"), "{said}");
    assert_eq!(fs::read_to_string(&ledger).unwrap(), "{\"version\":99}\n");
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// All that lies below the folder, and the folder.
fn all_below(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(all_below(&path)),
            false => all.push(path),
        }
    }
    all
}

#[test]
fn what_the_agent_keeps_is_its_owners_alone_whatever_the_mask_and_whatever_it_was_before() {
    // FAULTS 32
    let mut world = World::new().unwrap();
    let mut unmasked = Command::new("sh");
    unmasked.args(["-c", "umask 000; exec \"$0\" \"$@\""]);
    world.agent_under(unmasked, &ours(), "").unwrap();
    a_good_client_is_served(&world);
    assert!(
        world
            .admin(&["authority", "prepare"])
            .unwrap()
            .status
            .success()
    );
    let state = world.path().join("state");
    let are_closed = || {
        for path in all_below(&state) {
            assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        }
    };
    assert!(all_below(&state).len() >= 4);
    are_closed();
    kill(&mut world);
    // Others could read: a warning. Others could write: nobody knows what it says.
    set_mode(&state, 0o755);
    set_mode(&state.join("authority.json"), 0o644);
    world.agent(&ours()).unwrap();
    let log = world.told("agent", "the state could be read by others; now it cannot");
    let lines = log.unwrap().matches("could be read by others").count();
    assert_eq!(lines, 2);
    are_closed();
    kill(&mut world);
    set_mode(&state, 0o755);
    set_mode(&state.join("registry.redb"), 0o666);
    for _ in 0..2 {
        let said = world.refused_agent(&ours(), "").unwrap();
        assert!(
            said.contains("registry.redb") && said.contains("chmod 600"),
            "{said}"
        );
    }
}
