//! The corpus of the fuzz targets, as ordinary tests: what was found once is never lost.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

#[path = "../fuzz/properties.rs"]
mod properties;

fn every_file(target: &str, holds: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        holds(&fs::read(entry.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files > 0, "the corpus of `{target}` is empty");
}

#[test]
fn names() {
    every_file("names", properties::names);
}

#[test]
fn certificates() {
    every_file("certificates", properties::certificates);
}

#[test]
fn bundle_documents() {
    every_file("bundle_document", properties::bundle_document);
}
