//! What may and what must not be in the programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use postern_tests::root;
use serde_json::Value;

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Name and version of everything that is compiled into the programs.
fn compiled() -> BTreeMap<String, BTreeSet<String>> {
    let tree = cargo(&[
        "tree",
        "-e",
        "normal",
        "--workspace",
        "--prefix",
        "none",
        "--locked",
    ]);
    let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            packages
                .entry(name.into())
                .or_default()
                .insert(version.into());
        }
    }
    packages
}

#[test]
fn there_is_one_cryptographic_provider_and_one_of_each_protocol() {
    let packages = compiled();
    for banned in [
        "ring",
        "openssl",
        "openssl-sys",
        "native-tls",
        "serde_yaml",
        "serde_yml",
    ] {
        assert!(!packages.contains_key(banned), "`{banned}` is compiled in");
    }
    for single in [
        "rustls",
        "hyper",
        "tonic",
        "prost",
        "http",
        "h2",
        "tokio",
        "tower",
        "aws-lc-rs",
    ] {
        assert_eq!(
            packages.get(single).map(BTreeSet::len),
            Some(1),
            "`{single}`"
        );
    }
}

#[test]
fn our_crates_depend_on_each_other_in_one_direction_alone() {
    let metadata: Value = serde_json::from_str(&cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--locked",
    ]))
    .unwrap();
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("postern-proto", &[][..]),
        ("postern-spiffe", &[]),
        ("postern-harden", &[]),
        ("postern-lines", &[]),
        ("postern-supervisor", &[]),
        ("postern-https", &["postern-spiffe"]),
        ("postern-policies", &["postern-spiffe"]),
        (
            "postern-agent",
            &[
                "postern-harden",
                "postern-https",
                "postern-lines",
                "postern-policies",
                "postern-proto",
                "postern-spiffe",
                "postern-supervisor",
            ],
        ),
        (
            "postern-proxy",
            &[
                "postern-harden",
                "postern-https",
                "postern-lines",
                "postern-policies",
                "postern-proto",
                "postern-spiffe",
                "postern-supervisor",
            ],
        ),
        ("postern-demo", &["postern-harden", "postern-spiffe"]),
        ("postern-run", &["postern-harden", "postern-policies"]),
        ("postern-tests", &["postern-proto"]),
        ("postern-examples", &[]),
    ]);
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            // What only unit tests of command lines know is in no program.
            let is_in_tests = dependency["kind"] == "dev" && other == "postern-examples";
            let is_ours = other.starts_with("postern-") && !is_in_tests;
            assert!(
                !is_ours || allowed[name].contains(&other),
                "{name} depends on {other}"
            );
        }
    }
}

#[test]
fn every_licence_is_one_that_may_be_shipped() {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1", "--locked"])).unwrap();
    let good = [
        "MIT",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Zlib",
        "Unicode-3.0",
        "CC0-1.0",
        "0BSD",
        "BSL-1.0",
        "MIT-0",
        "Unlicense",
        "OpenSSL",
        "Apache-2.0 WITH LLVM-exception",
    ];
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"]
            .as_str()
            .unwrap_or_default()
            .replace('/', " OR ");
        let choices = licence.replace(['(', ')'], "");
        let fits = choices
            .split(" OR ")
            .any(|choice| choice.split(" AND ").all(|one| good.contains(&one.trim())));
        assert!(fits, "{name}: `{licence}`");
    }
}

#[test]
fn every_module_says_what_it_is() {
    let listed = Command::new("git")
        .args(["ls-files", "*.rs"])
        .current_dir(root())
        .output()
        .unwrap();
    for path in String::from_utf8(listed.stdout).unwrap().lines() {
        if path.contains("generated/") {
            continue;
        }
        let text = std::fs::read_to_string(root().join(path)).unwrap();
        assert!(text.starts_with("//!"), "{path} does not begin with `//!`");
        assert!(
            !text.contains(concat!("tod", "o!(")),
            "{path} holds an unkept promise"
        );
    }
}
