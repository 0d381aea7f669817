//! Folders as people and Kubernetes make them.

use std::{fs, os::unix::fs::symlink};

use super::*;

fn names(folder: &Path) -> Vec<String> {
    read_documents(folder)
        .unwrap()
        .iter()
        .map(|file| {
            file.path
                .strip_prefix(folder)
                .unwrap()
                .display()
                .to_string()
        })
        .collect()
}

#[test]
fn a_folder_is_read_sorted_and_only_documents_of_it() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "b.yaml",
        "a.yml",
        "c.json",
        "x.test.yaml",
        "README.md",
        ".hidden.yaml",
    ] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("sub/d.yaml"), "").unwrap();
    assert_eq!(
        names(folder.path()),
        ["a.yml", "b.yaml", "c.json", "sub/d.yaml"]
    );
}

#[test]
fn a_mounted_config_map_is_read_once_through_its_links() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("..2026_11_24");
    fs::create_dir(&real).unwrap();
    fs::write(real.join("p.yaml"), "kind: X").unwrap();
    symlink("..2026_11_24", folder.path().join("..data")).unwrap();
    symlink("..data/p.yaml", folder.path().join("p.yaml")).unwrap();
    assert_eq!(names(folder.path()), ["p.yaml"]);
    assert_eq!(read_documents(folder.path()).unwrap()[0].text, b"kind: X");
}

#[test]
fn a_missing_path_is_named() {
    let error = read_documents(Path::new("/nowhere/p.yaml")).unwrap_err();
    assert!(error.to_string().contains("`/nowhere/p.yaml`"), "{error}");
}

#[test]
fn a_file_that_is_too_large_is_refused_with_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("big.yaml")).unwrap();
    file.set_len(MAX_FILE_BYTES + 1).unwrap();
    let error = read_documents(folder.path()).unwrap_err();
    assert!(
        error.to_string().contains("more than 8388608 bytes"),
        "{error}"
    );
}
