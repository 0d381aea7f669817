//! The committed code is what the contracts generate: no `protoc` is needed to build, and no
//! contract can change without its code.
//!
//! After a change to a `.proto` file: `POSTERN_REGENERATE=1 cargo test -p postern-proto`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use prost::Message as _;

/// The folders of the contracts, their files, and the package that the code is made under.
const CONTRACTS: [(&str, &str, &str); 4] = [
    // It has no package, so its code is made under the name `_`.
    ("spiffe_workload_api", "workload.proto", "_"),
    ("envoy_sds", "sds.proto", "envoy.service.secret.v3"),
    ("control", "control.proto", "postern.control.v1"),
    (
        "otlp_trace",
        "trace.proto",
        "opentelemetry.proto.collector.trace.v1",
    ),
];

/// What many messages have in common is shared between them, not copied into each.
const SHARED: [&str; 5] = [
    ".X509SVID.x509_svid",
    ".X509SVID.bundle",
    ".X509SVIDResponse.crl",
    ".X509BundlesResponse.crl",
    ".postern.control.v1.Document.text",
];

#[track_caller]
fn check(committed: &Path, new: &[u8]) {
    if std::env::var_os("POSTERN_REGENERATE").is_some() {
        fs::write(committed, new).unwrap();
    }
    assert!(
        fs::read(committed).unwrap_or_default() == new,
        "{} is not what its contract generates; run \
         `POSTERN_REGENERATE=1 cargo test -p postern-proto` and commit it",
        committed.display()
    );
}

#[test]
fn committed_code_is_what_the_contracts_generate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (folder, file, package) in CONTRACTS {
        let fresh = tempfile::tempdir().unwrap();
        let contract = root.join(folder);
        let descriptors = protox::compile([contract.join(file)], [&contract]).unwrap();
        let committed = |ending: &str| -> PathBuf {
            root.join("src/generated")
                .join(format!("{folder}.{ending}"))
        };
        check(&committed("bin"), &descriptors.encode_to_vec());
        let mut builder = tonic_prost_build::configure().out_dir(fresh.path());
        for field in SHARED {
            builder = builder.bytes(field);
        }
        builder.compile_fds(descriptors).unwrap();
        let new = fs::read(fresh.path().join(format!("{package}.rs"))).unwrap();
        check(&committed("rs"), &new);
    }
}
