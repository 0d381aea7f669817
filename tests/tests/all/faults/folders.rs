//! Folders that decide who is who, in the hands of others.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use postern_tests::world::World;
use serde_json::json;

use super::{a_good_client_is_served, ours};

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A world that others can enter, as they can enter `/etc`.
fn world() -> World {
    let world = World::new().unwrap();
    for file in ["workloads/workloads.yaml", "policies/none.yaml"] {
        world.write(file, "").unwrap();
    }
    let bundle = json!({"keys": [], "spiffe_sequence": 1}).to_string();
    world.write("bundles/other.json", &bundle).unwrap();
    let all = ["", "workloads", "policies", "bundles"];
    for folder in all.map(|name| world.path().join(name)) {
        fs::create_dir_all(&folder).unwrap();
        mode(&folder, 0o755);
    }
    for file in [
        "workloads/workloads.yaml",
        "policies/none.yaml",
        "bundles/other.json",
    ] {
        mode(&world.path().join(file), 0o644);
    }
    world
}

const MORE: &str = "policies: {directory: policies}\n\
    federation: {trustDomains: [{name: other.test, bundleFile: bundles/other.json}]}\n";

#[test]
fn what_others_may_write_to_decides_nothing() {
    // Each alone, and its twin that differs in this one bit.
    for name in [
        "workloads",
        "workloads/workloads.yaml",
        "policies",
        "policies/none.yaml",
        "bundles",
        "bundles/other.json",
        "",
    ] {
        let mut world = world();
        let path = world.path().join(name);
        let good = fs::metadata(&path).unwrap().permissions().mode();
        for bit in [0o020, 0o002] {
            mode(&path, good | bit);
            let said = world.refused_agent(&ours(), MORE).unwrap();
            let shown = path.display().to_string();
            let shown = shown.trim_end_matches('/');
            assert!(
                said.contains(&format!("`{shown}` can be written by others"))
                    && said.contains("chmod go-w"),
                "{name}: {said}"
            );
        }
        mode(&path, good);
        world.agent_with(&ours(), MORE).unwrap();
        a_good_client_is_served(&world);
    }
}

#[test]
fn a_folder_that_is_opened_to_others_changes_nothing_any_more() {
    let mut world = world();
    world.agent(&ours()).unwrap();
    let folder = world.path().join("workloads");
    mode(&folder, 0o777);
    // Whoever may write there takes everybody's identity away.
    world.write("workloads/workloads.yaml", "").unwrap();
    let refused = "the documents were refused, the last good ones stay";
    world.said("agent", refused).unwrap();
    a_good_client_is_served(&world);
    mode(&folder, 0o755);
    postern_tests::eventually("the folder to be taken again", || {
        let log = fs::read_to_string(world.log("agent")).unwrap();
        let (_, after) = log.split_once(refused)?;
        after.contains("workloads in force").then_some(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root, to give a folder away"]
fn root_a_folder_of_somebody_else_decides_nothing() {
    let mut world = world();
    let folder = world.path().join("workloads");
    std::os::unix::fs::chown(&folder, Some(12_001), None).unwrap();
    let said = world.refused_agent(&ours(), "").unwrap();
    let wanted = format!("`{}` belongs to user 12001", folder.display());
    assert!(said.contains(&wanted), "{said}");
    std::os::unix::fs::chown(&folder, Some(0), None).unwrap();
    world.agent(&ours()).unwrap();
}
