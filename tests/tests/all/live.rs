//! The live tests of SPIFFE's Rust client, as its authors ship them, against our agent.
//!
//! They are compiled from the client's own source, which takes a while, so they are run by name:
//! `cargo test -p postern-tests --test all -- --ignored live`.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
};

use postern_tests::{root, world::World};
use serde_json::Value;

/// Copies the client's source out of cargo's cache, which is not ours to write to.
fn source() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let metadata = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata.get("packages").unwrap().as_array().unwrap();
    let client = packages.iter().find(|one| one["name"] == "spiffe").unwrap();
    let manifest = PathBuf::from(client["manifest_path"].as_str().unwrap());
    let (from, to) = (
        manifest.parent().unwrap(),
        root().join("target/live/source"),
    );
    let _ = fs::remove_dir_all(&to);
    copy(from, &to);
    // A workspace of its own, wherever it lies.
    let text = fs::read_to_string(to.join("Cargo.toml")).unwrap();
    fs::write(to.join("Cargo.toml"), format!("{text}\n[workspace]\n")).unwrap();
    to
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// One test of each source asks at the place where SPIRE has its socket by default.
struct SpiresSocket;

const SPIRES_FOLDER: &str = "/tmp/spire-agent";

impl SpiresSocket {
    fn at(socket: &Path) -> Self {
        let folder = Path::new(SPIRES_FOLDER).join("public");
        let link = folder.join("api.sock");
        // A run that was killed leaves its link. Whoever runs an agent there keeps it.
        if link.is_symlink() && UnixStream::connect(&link).is_err() {
            fs::remove_dir_all(SPIRES_FOLDER).unwrap();
        }
        let made = fs::create_dir(SPIRES_FOLDER);
        assert!(
            made.is_ok(),
            "{SPIRES_FOLDER}, where SPIRE has its socket: {made:?}"
        );
        fs::create_dir(&folder).unwrap();
        symlink(socket, link).unwrap();
        Self
    }
}

impl Drop for SpiresSocket {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(SPIRES_FOLDER);
    }
}

#[test]
#[ignore = "compiles the client's own tests, which takes minutes"]
fn live_tests_of_the_rust_client_pass() {
    let mut other = World::new().unwrap();
    other.agent_of("example-federated.org", "", "").unwrap();
    let bundle = other
        .admin(&["bundle", "show", "--format", "spiffe"])
        .unwrap();
    let mut world = World::new().unwrap();
    world
        .write("federated.json", &String::from_utf8(bundle.stdout).unwrap())
        .unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let workloads = ["myservice", "myservice2"].map(|name| {
        format!(
            "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\n\
             spec: {{spiffeID: 'spiffe://example.org/{name}', hint: {name}, \
             federatesWith: [example-federated.org], selectors: ['unix:uid:{uid}']}}\n---\n"
        )
    });
    let socket = world
        .agent_with(
            &workloads.concat(),
            "federation: {trustDomains: [{name: example-federated.org, bundleFile: federated.json}]}\n",
        )
        .unwrap();
    let _link = SpiresSocket::at(&socket);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let source = source();
    let mut passed = 0;
    for (tests, expected) in [
        ("workload_api_client", 14),
        ("x509_source", 23),
        ("jwt_source", 23),
    ] {
        let output = Command::new(&cargo)
            .args([
                "test",
                "--features",
                "workload-api,x509-source,jwt-source,jwt-verify-rust-crypto",
            ])
            .args(["--test", tests, "--", "--ignored"])
            .current_dir(&source)
            .env("CARGO_TARGET_DIR", root().join("target/live"))
            .env("CARGO_PROFILE_DEV_DEBUG", "none")
            .env(
                "SPIFFE_ENDPOINT_SOCKET",
                format!("unix://{}", socket.display()),
            )
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let wanted = format!("test result: ok. {expected} passed; 0 failed; 0 ignored");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&wanted), "{tests}: {said}\n{error}");
        passed += expected;
    }
    assert_eq!(passed, 60);
}
