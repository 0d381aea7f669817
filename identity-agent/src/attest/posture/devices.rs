//! Which devices a process may open.
//!
//! Control groups of v1 have a list of them. Those of v2 have a program, which cannot be read: there the
//! devices in `/dev` are looked at, and who may make others with `mknod` could have any.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use rustix::fs::{major, minor};

use super::finding::Verdict;
use crate::attest::{
    AttestFailed,
    reading::{Lack, ReadError, known, read_text},
};

/// The devices of a process, and whether it may have all there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) verdict: Verdict,
    pub(super) are_all: bool,
}

impl Devices {
    fn none_but(verdict: Verdict) -> Self {
        Self {
            verdict,
            are_all: false,
        }
    }

    /// Where the agent does not see the list.
    pub(super) fn unseen() -> Self {
        Self::none_but(Verdict::unknown(
            "the agent does not see its list of devices; run it with the host's control groups",
        ))
    }

    /// Those of who lives among the host's files.
    pub(super) fn of_host() -> Self {
        Self::none_but(Verdict::fail("it sees the host's devices"))
    }

    /// By the list of a control group of v1.
    pub(super) fn listed(path: &Path) -> Result<Self, AttestFailed> {
        match read_text(path).map_err(ReadError::from) {
            Ok(text) => Ok(Self::of_list(&text)),
            Err(ReadError::Lack(lack)) => Err(lack.into()),
            Err(_) => {
                let why = format!("`{}` cannot be read", path.display());
                Ok(Self::none_but(Verdict::unknown(why)))
            }
        }
    }

    /// `devices.list`: `type major:minor access` on each line. Spec: the kernel's
    /// admin-guide/cgroup-v1/devices.
    fn of_list(text: &str) -> Self {
        let are_all = text.lines().any(|line| line.starts_with("a "));
        if are_all {
            let verdict = Verdict::fail("it may open every device");
            return Self { verdict, are_all };
        }
        let mut more = text.lines().filter(|line| !is_listed_by_default(line));
        Self::none_but(match more.next() {
            None => Verdict::pass("the default ones alone"),
            Some(line) => Verdict::fail(format!("it may open the device `{line}`")),
        })
    }

    /// By what is in its `/dev`.
    pub(super) fn in_folder(dev: &Path, may_make: bool) -> Result<Self, Lack> {
        let verdict = match unusual(dev, 0)? {
            Found::One(device) => Verdict::fail(format!("it has the device {device}")),
            Found::TooMany => Verdict::unknown("there are too many files in its `/dev`"),
            Found::Unreadable => Verdict::unknown("its `/dev` cannot be read"),
            Found::None if may_make => Verdict::unknown(
                "control groups of v2 do not tell which devices it may open, and with MKNOD it may make any",
            ),
            Found::None => Verdict::pass("the default ones alone"),
        };
        Ok(Self::none_but(verdict))
    }
}

enum Found {
    None,
    One(String),
    TooMany,
    Unreadable,
}

/// A device in a folder that is none of the default ones.
fn unusual(folder: &Path, depth: usize) -> Result<Found, Lack> {
    let entries = match fs::read_dir(folder).map_err(ReadError::from) {
        Ok(entries) => entries,
        // An image without `/dev` has no devices.
        Err(ReadError::Absent) => return Ok(Found::None),
        Err(ReadError::Refused) => return Ok(Found::Unreadable),
        Err(ReadError::Lack(lack)) => return Err(lack),
    };
    for (number, entry) in entries.enumerate() {
        if number >= MAX_FILES || depth >= MAX_DEPTH {
            return Ok(Found::TooMany);
        }
        let Some(entry) = known(entry)? else {
            return Ok(Found::Unreadable);
        };
        // One that is removed meanwhile is none.
        let Some(kind) = known(entry.file_type())? else {
            continue;
        };
        // The terminals, whose file system has nothing else; a folder of that name elsewhere is anybody's.
        let is_terminals = depth == 0 && entry.file_name() == "pts";
        if kind.is_dir() && !is_terminals {
            match unusual(&entry.path(), depth + 1)? {
                Found::None => {}
                found => return Ok(found),
            }
        }
        if !kind.is_char_device() && !kind.is_block_device() {
            continue;
        }
        let Some(found) = known(entry.metadata())? else {
            continue;
        };
        let device = (major(found.rdev()), minor(found.rdev()));
        if kind.is_block_device() || !is_default(device) {
            let (major, minor) = device;
            let name = entry.file_name();
            return Ok(Found::One(format!(
                "`{}`, {major}:{minor}",
                name.to_string_lossy()
            )));
        }
    }
    Ok(Found::None)
}

fn is_listed_by_default(line: &str) -> bool {
    let mut fields = line.split(' ');
    let (Some(kind), Some(numbers), Some(access)) = (fields.next(), fields.next(), fields.next())
    else {
        return false;
    };
    // A node that may not be opened is no way in.
    if access == "m" {
        return true;
    }
    let Some((major, minor)) = numbers.split_once(':') else {
        return false;
    };
    if kind != "c" {
        return false;
    }
    match (major.parse(), minor.parse()) {
        (Ok(major), Ok(minor)) => is_default((major, minor)),
        (Ok(TERMINALS), Err(_)) => minor == "*",
        _ => false,
    }
}

/// What every engine gives: null, zero, full, random, urandom, tty, console, ptmx, tun, terminals. Spec: OCI
/// runtime specification, Linux, default devices.
fn is_default(device: (u32, u32)) -> bool {
    matches!(
        device,
        (1, 3 | 5 | 7 | 8 | 9) | (5, 0..=2) | (10, 200) | (TERMINALS, _)
    )
}

const TERMINALS: u32 = 136;

/// More than anybody has in `/dev`.
const MAX_FILES: usize = 4096;
const MAX_DEPTH: usize = 4;

#[cfg(test)]
mod tests {
    use super::{super::finding::Outcome, Devices};

    const LIST: &str = "b *:* m\nc *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\n\
        c 5:0 rwm\nc 5:1 rwm\nc 5:2 rwm\nc 10:200 rwm\nc 136:* rwm\n";

    #[track_caller]
    fn check(more: &str, why: &str) {
        let devices = Devices::of_list(&format!("{LIST}{more}"));
        assert_eq!(devices.verdict.why, why);
    }

    #[test]
    fn every_device_beyond_the_default_ones_is_found() {
        check("", "the default ones alone");
        check("a *:* rwm\n", "it may open every device");
        for line in [
            "b 254:0 rwm",
            "b 254:0 r",
            "c 1:1 r",
            "b 1:3 rwm",
            "b *:* rwm",
            "c *:* rwm",
            "c 1:* r",
            "c 136 rwm",
            "c 10:229 rwm",
            "x",
        ] {
            check(
                &format!("{line}\n"),
                &format!("it may open the device `{line}`"),
            );
        }
        assert!(Devices::of_list("a *:* rwm\n").are_all);
    }

    #[test]
    fn without_a_list_who_may_make_nodes_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let dev = folder.path().join("dev");
        let outcome = |may_make| Devices::in_folder(&dev, may_make).unwrap().verdict.outcome;
        assert_eq!(outcome(false), Outcome::Pass, "no `/dev` at all");
        std::fs::create_dir_all(dev.join("shm")).unwrap();
        std::fs::write(dev.join("shm/file"), "").unwrap();
        assert_eq!(outcome(false), Outcome::Pass);
        assert_eq!(outcome(true), Outcome::Unknown);
        std::fs::create_dir_all(dev.join("a/b/c/d")).unwrap();
        std::fs::write(dev.join("a/b/c/d/file"), "").unwrap();
        assert_eq!(outcome(false), Outcome::Unknown, "too deep to be looked at");
        // The host's own has what no container has.
        let host = Devices::in_folder(std::path::Path::new("/dev"), false).unwrap();
        assert_ne!(host.verdict.outcome, Outcome::Pass);
    }
}
