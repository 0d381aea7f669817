//! The committed code is what the contracts generate: no `protoc` is needed to build, and no
//! contract can change without its code.
//!
//! After a change to a `.proto` file: `POSTERN_REGENERATE=1 cargo test -p postern-proto`.

use std::{fs, path::Path};

#[test]
fn committed_code_is_what_the_contracts_generate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/generated/spiffe_workload_api.rs");
    let fresh = tempfile::tempdir().unwrap();

    let contract = root.join("spiffe_workload_api");
    let descriptors = protox::compile([contract.join("workload.proto")], [&contract]).unwrap();
    tonic_prost_build::configure()
        .out_dir(fresh.path())
        .compile_fds(descriptors)
        .unwrap();

    // The contract has no package, so its code is made under the name `_`.
    let new = fs::read_to_string(fresh.path().join("_.rs")).unwrap();
    if std::env::var_os("POSTERN_REGENERATE").is_some() {
        fs::write(&committed, &new).unwrap();
    }
    let old = fs::read_to_string(&committed).unwrap_or_default();
    assert!(
        old == new,
        "{} is not what its contract generates; run \
         `POSTERN_REGENERATE=1 cargo test -p postern-proto` and commit it",
        committed.display()
    );
}
