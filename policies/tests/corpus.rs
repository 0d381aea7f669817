//! The corpus of the fuzz targets, as ordinary tests: what was found once is never lost.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::{fs, path::Path};

#[path = "../fuzz/properties.rs"]
mod properties;

fn every_file(folder: &str, holds: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            holds(&fs::read(path).unwrap());
            files += 1;
        }
    }
    assert!(files > 0, "there is no corpus");
}

#[test]
fn documents() {
    every_file("fuzz/corpus/documents", properties::documents);
    for folder in ["seed", "demo", "workloads"] {
        every_file(&format!("examples/{folder}"), properties::documents);
    }
}

#[test]
fn accesses() {
    every_file("fuzz/corpus/accesses", properties::accesses);
}
