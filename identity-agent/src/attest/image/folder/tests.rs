//! A folder of evidence: hands, links, pipes, sizes, numbers and changes.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{Folder, MAX_FILES, looks};
use crate::{
    attest::image::{
        fixtures::{bytes, clair, trivy},
        judge::Evidence,
    },
    config::ImageEvidence,
};

/// A folder of evidence that others may enter, and what was told of it last.
struct World {
    place: tempfile::TempDir,
    folder: Folder,
    told: BTreeMap<PathBuf, String>,
}

impl World {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        mode(place.path(), 0o755);
        let directory = place.path().join("evidence");
        fs::create_dir(&directory).unwrap();
        mode(&directory, 0o755);
        let config = ImageEvidence {
            directory,
            max_age: Duration::from_secs(1),
            keys: BTreeMap::new(),
        };
        Self {
            place,
            folder: Folder::of(config),
            told: BTreeMap::new(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.path().join("evidence").join(name)
    }

    fn write(&self, name: &str, text: &[u8]) {
        fs::write(self.at(name), text).unwrap();
        mode(&self.at(name), 0o644);
    }

    fn read(&mut self) -> Evidence {
        self.told.clear();
        let told = &mut self.told;
        self.folder.read(&mut |path, why| {
            told.insert(path.to_owned(), why.to_owned());
        })
    }

    #[track_caller]
    fn has_told(&self, name: &str, part: &str) {
        let why = self.told.get(&self.at(name)).cloned().unwrap_or_default();
        assert!(why.contains(part), "`{part}` in `{why}`: {:?}", self.told);
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_can_be_used_is_read_beside_what_cannot() {
    let mut world = World::new();
    world.write("a.json", &bytes(&trivy()));
    world.write("bad.json", b"{");
    world.write(".hidden.json", b"{");
    world.write("README.md", b"text");
    let evidence = world.read();
    assert_eq!(evidence.reports.len(), 1);
    assert_eq!(evidence.reports[0].file, "a.json");
    world.has_told("bad.json", "cannot be read");
    assert_eq!(world.told.len(), 1);
    fs::remove_file(world.at("bad.json")).unwrap();
    fs::remove_file(world.at("a.json")).unwrap();
    assert!(world.read().reports.is_empty() && world.told.is_empty());
}

#[test]
fn only_what_nobody_else_can_write_to_is_read() {
    let mut world = World::new();
    world.write("a.json", &bytes(&trivy()));
    mode(&world.at("a.json"), 0o666);
    assert!(world.read().reports.is_empty());
    world.has_told("a.json", "can be written by others");
    mode(&world.at("a.json"), 0o644);
    assert_eq!(world.read().reports.len(), 1);
    let folder = world.at("");
    mode(&folder, 0o777);
    assert!(world.read().reports.is_empty());
    world.has_told("", "can be written by others");
    mode(&folder, 0o755);
    assert_eq!(world.read().reports.len(), 1);
}

#[test]
fn links_lead_to_files_in_good_hands_or_nowhere() {
    let mut world = World::new();
    let elsewhere = world.place.path().join("elsewhere.txt");
    fs::write(&elsewhere, bytes(&trivy())).unwrap();
    mode(&elsewhere, 0o644);
    symlink(&elsewhere, world.at("link.json")).unwrap();
    assert_eq!(world.read().reports.len(), 1);
    mode(&elsewhere, 0o666);
    assert!(world.read().reports.is_empty());
    world.has_told("link.json", "can be written by others");
    fs::remove_file(world.at("link.json")).unwrap();
    for (name, target, part) in [
        ("none.json", "/nonexistent/x.json", "/nonexistent"),
        ("round.json", "round.json", "symbolic links"),
        ("device.json", "/dev/zero", "device.json"),
        ("folder.json", "/usr", "it is no file"),
    ] {
        symlink(target, world.at(name)).unwrap();
        assert!(world.read().reports.is_empty());
        if name != "device.json" {
            world.has_told(name, part);
        }
        assert!(world.told.contains_key(&world.at(name)), "{name}");
    }
}

#[test]
fn what_is_no_file_or_too_large_holds_nothing_up() {
    let mut world = World::new();
    let pipe = world.at("pipe.json");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fs::create_dir(world.at("folder.json")).unwrap();
    mode(&world.at("folder.json"), 0o755);
    let large = fs::File::create(world.at("large.json")).unwrap();
    large.set_len(100 << 20).unwrap();
    mode(&world.at("large.json"), 0o644);
    world.write("a.json", &bytes(&trivy()));
    assert_eq!(world.read().reports.len(), 1);
    world.has_told("pipe.json", "it is no file");
    world.has_told("folder.json", "it is no file");
    world.has_told(
        "large.json",
        "it has 104857600 bytes, and at most 33554432 are read",
    );
}

#[test]
fn of_more_files_than_the_bound_none_is_read() {
    let mut world = World::new();
    for number in 0..MAX_FILES {
        world.write(&format!("{number}.json"), b"{}");
    }
    fs::remove_file(world.at("0.json")).unwrap();
    world.write("a.json", &bytes(&trivy()));
    assert_eq!(world.read().reports.len(), 1);
    world.write("0.json", b"{}");
    assert!(world.read().reports.is_empty());
    world.has_told("", "more than 1024 files");
}

#[test]
fn of_more_bytes_than_the_bound_none_is_read() {
    let mut world = World::new();
    world.write("a.json", &bytes(&trivy()));
    for number in 0..16 {
        let large = fs::File::create(world.at(&format!("{number}.json"))).unwrap();
        large.set_len(100 << 20).unwrap();
    }
    assert!(world.read().reports.is_empty());
    world.has_told("", "more than 536870912 bytes");
    fs::remove_file(world.at("0.json")).unwrap();
    assert_eq!(world.read().reports.len(), 1);
}

#[test]
fn a_folder_that_is_not_there_is_told_and_read_when_it_comes() {
    let mut world = World::new();
    let folder = world.at("");
    fs::remove_dir(&folder).unwrap();
    assert_eq!(world.read().without_effect.len(), 1);
    world.has_told("", "evidence");
    fs::create_dir(&folder).unwrap();
    mode(&folder, 0o755);
    world.write("a.json", &bytes(&trivy()));
    assert_eq!(world.read().reports.len(), 1);
}

#[test]
fn every_change_looks_different_and_only_what_has_changed_is_read_again() {
    let mut world = World::new();
    let look = |world: &World| looks(&world.folder.config);
    let mut before = look(&world);
    let mut differs = |world: &World, what: &str| {
        let now = look(world);
        assert_ne!(now, before, "{what}");
        assert_eq!(now, look(world), "{what}");
        before = now;
    };
    world.write("a.json", &bytes(&clair()));
    differs(&world, "a new file");
    assert_eq!(world.read().reports.len(), 1);
    world.write("a.json", &bytes(&trivy()));
    differs(&world, "written anew");
    world.read();
    mode(&world.at("a.json"), 0o640);
    differs(&world, "its mode");
    let moved = world.place.path().join("moved");
    fs::write(&moved, bytes(&trivy())).unwrap();
    mode(&moved, 0o644);
    fs::rename(&moved, world.at("a.json")).unwrap();
    differs(&world, "another in its place");
    mode(&world.at(""), 0o750);
    differs(&world, "the folder's mode");
    fs::remove_file(world.at("a.json")).unwrap();
    differs(&world, "gone");
}

#[test]
fn reports_without_a_time_have_that_of_their_file() {
    let mut world = World::new();
    world.write("c.json", &bytes(&clair()));
    let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let file = fs::File::options()
        .write(true)
        .open(world.at("c.json"))
        .unwrap();
    file.set_modified(when).unwrap();
    assert_eq!(world.read().reports[0].value.at, when);
}

#[test]
fn a_key_that_cannot_be_used_is_told() {
    let mut world = World::new();
    for (name, text, file_mode, part) in [
        ("good", "x", 0o644, "no public key in PEM"),
        ("open", "x", 0o666, "can be written by others"),
    ] {
        let path = world.place.path().join(name);
        fs::write(&path, text).unwrap();
        mode(&path, file_mode);
        world
            .folder
            .config
            .keys
            .insert(name.to_owned(), path.clone());
        let evidence = world.read();
        let why = &world.told[&path];
        assert!(why.contains(part), "{why}");
        assert_eq!(evidence.useless_keys.last().unwrap().value, *why);
    }
}
