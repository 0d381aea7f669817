//! The agent under attack and in trouble, each fault by its number in the catalogue of the project's
//! threat model.
//!
//! Tests whose names begin with `root_` change users, control groups or mounts, and are run by name:
//! `cargo test -p postern-tests --test all -- --ignored root_`.

mod answers;
mod callers;
mod clock;
mod crowds;
mod damage;
mod folders;
mod hanging;
mod lacks;
mod programs;
mod sessions;
mod sockets;
mod state;

use std::{
    path::Path,
    process::{Command, Output},
};

use postern_tests::{binaries, root, world::World};

/// A Workload document: `spiffe://example.org/NAME` for whoever has these selectors.
fn workload(name: &str, selectors: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\n\
         spec: {{spiffeID: 'spiffe://example.org/{name}', selectors: [{selectors}]}}\n---\n"
    )
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whoever runs as we do.
fn ours() -> String {
    workload("ours", &format!("'unix:uid:{}'", own_uid()))
}

/// Runs a script of `tests/python` against the agent of this world and tells its lines.
#[track_caller]
fn script(world: &World, name: &str, case: &str, arguments: &[&str]) -> Vec<String> {
    let output = Command::new(root().join("target/python/bin/python"))
        .arg(root().join("tests/python").join(name))
        .arg(case)
        .arg(world.path().join("public/agent.sock"))
        .args(arguments)
        .output()
        .unwrap();
    postern_tests::lines(&output, case).unwrap()
}

/// Fetches with this program.
fn fetch(world: &World, program: &Path) -> Output {
    Command::new(program)
        .args(["api", "fetch", "-output", "json", "-socketPath"])
        .arg(world.path().join("public/agent.sock"))
        .output()
        .unwrap()
}

/// Somebody who does nothing wrong gets what is theirs.
#[track_caller]
fn a_good_client_is_served(world: &World) {
    let output = fetch(world, &binaries().unwrap().join("postern-agent"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}
