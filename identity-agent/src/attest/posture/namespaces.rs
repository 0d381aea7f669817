//! Whose namespaces a process lives in: its own, or the host's.

use std::path::{Path, PathBuf};

use super::finding::Verdict;
use crate::{
    attest::{
        AttestFailed, inode_of,
        reading::{ReadError, inode, read_text},
    },
    caller::ProcFolder,
};

/// The numbers of the host's namespaces.
#[derive(Debug)]
pub(super) struct Reference([Option<u64>; NAMES.len()]);

impl Reference {
    /// Takes the kernel's own thread as the measure of what is the host's.
    ///
    /// Where that cannot be read, as without root, the numbers that the first namespaces have on every
    /// kernel; those of the network and of mounts have had one since 6.18 alone. Before, the agent's own stand
    /// in, unless it is in a container itself: then nobody knows.
    pub(super) fn of_machine() -> Self {
        let own = |name: &str| inode_of(Path::new(&format!("/proc/self/ns/{name}")));
        let is_kernels = is_kernels_thread();
        let release = read_text(Path::new("/proc/sys/kernel/osrelease"));
        let is_new = release.is_ok_and(|release| is_since_6_18(release.trim()));
        let is_plain = FIRST
            .iter()
            .filter(|(name, _)| !is_of_new_kernels(name))
            .all(|(name, first)| own(name) == Some(*first));
        Self(FIRST.map(|(name, first)| {
            let kernel = is_kernels.then(|| inode_of(Path::new(&format!("/proc/2/ns/{name}"))));
            kernel
                .flatten()
                .or_else(|| match is_of_new_kernels(name) && !is_new {
                    true => is_plain.then(|| own(name)).flatten(),
                    false => Some(first),
                })
        }))
    }

    /// Is everything known that there is to compare with?
    pub(super) fn is_whole(&self) -> bool {
        self.0.iter().all(Option::is_some)
    }

    /// The number of the host's mount namespace.
    pub(super) fn mounts(&self) -> Option<u64> {
        let place = NAMES.iter().position(|name| *name == "mnt");
        self.0.get(place?).copied().flatten()
    }

    /// The namespaces of all threads, each by its folder; the first one's first.
    pub(super) fn judge(&self, threads: &[PathBuf]) -> Result<Namespaces, AttestFailed> {
        let mut all = [Standing::Own; NAMES.len()];
        let mut first = [None; NAMES.len()];
        let mut is_of_one_table = true;
        for (place, folder) in threads.iter().enumerate() {
            for (index, name) in NAMES.iter().enumerate() {
                // All threads of a process share these.
                if place > 0 && matches!(*name, "pid" | "user") {
                    continue;
                }
                let found = match inode(&folder.join("ns").join(name)) {
                    // One that has ended meanwhile is none.
                    Err(ReadError::Absent) if place > 0 => continue,
                    Err(ReadError::Absent) => {
                        return Err(AttestFailed::new("its namespaces cannot be read"));
                    }
                    Err(ReadError::Lack(lack)) => return Err(lack.into()),
                    Err(ReadError::Refused) => None,
                    Ok(found) => Some(found),
                };
                let (Some(standing), Some(leaders), Some(host)) =
                    (all.get_mut(index), first.get_mut(index), self.0.get(index))
                else {
                    continue;
                };
                *standing = standing.and(found, *host);
                if place == 0 {
                    *leaders = found;
                }
                is_of_one_table &= *name != "mnt" || *leaders == found;
            }
        }
        Ok(Namespaces {
            all,
            is_of_one_table,
        })
    }
}

/// Does a kernel of this release number all of the first namespaces?
fn is_since_6_18(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6, 18),
        _ => false,
    }
}

/// Has a number of its own on new kernels alone.
fn is_of_new_kernels(name: &str) -> bool {
    matches!(name, "net" | "mnt")
}

/// Is process 2 the kernel's own? In a PID namespace it is anybody.
pub(super) fn is_kernels_thread() -> bool {
    let status = read_text(Path::new("/proc/2/status")).unwrap_or_default();
    let says = |line: &str| status.lines().any(|one| one == line);
    says("Name:\tkthreadd") && says("PPid:\t0")
}

/// Where a process lives, by the worst of its threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Namespaces {
    all: [Standing; NAMES.len()],
    /// Do all threads see the same mounts?
    pub(super) is_of_one_table: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Own,
    Unreadable,
    NoReference,
    Host,
}

impl Standing {
    fn and(self, found: Option<u64>, host: Option<u64>) -> Self {
        let next = match (found, host) {
            (Some(found), Some(host)) if found == host => Self::Host,
            (Some(_), Some(_)) => Self::Own,
            (None, _) => Self::Unreadable,
            (_, None) => Self::NoReference,
        };
        match (self, next) {
            (Self::Host, _) | (_, Self::Own) => self,
            (_, next) => next,
        }
    }
}

impl Namespaces {
    fn standing(&self, name: &str) -> Standing {
        let place = NAMES.iter().position(|known| *known == name);
        let standing = place.and_then(|place| self.all.get(place));
        standing.copied().unwrap_or(Standing::NoReference)
    }

    pub(super) fn is_host(&self, name: &str) -> bool {
        self.standing(name) == Standing::Host
    }

    pub(super) fn is_own(&self, name: &str) -> bool {
        self.standing(name) == Standing::Own
    }

    pub(super) fn verdict(&self, name: &str) -> Verdict {
        match self.standing(name) {
            Standing::Own => Verdict::pass("its own"),
            Standing::Host => Verdict::fail("it lives in the host's"),
            Standing::Unreadable => Verdict::unknown(
                "the agent may not read it; run the agent as root, or with CAP_SYS_PTRACE",
            ),
            Standing::NoReference => Verdict::unknown(
                "the host's cannot be read to compare; run the agent in the host's PID namespace",
            ),
        }
    }

    #[cfg(test)]
    pub(super) fn of_test(host: &[&str]) -> Self {
        let standing = |name| match host.contains(&name) {
            true => Standing::Host,
            false => Standing::Own,
        };
        Self {
            all: NAMES.map(standing),
            is_of_one_table: true,
        }
    }
}

/// The folders of all threads of a process; the process' own folder is that of the first.
pub(super) fn folders(folder: &ProcFolder, others: impl Iterator<Item = String>) -> Vec<PathBuf> {
    let own = folder.join(".");
    let others = others.map(|name| folder.join("task").join(name));
    std::iter::once(own).chain(others).collect()
}

const NAMES: [&str; 7] = ["pid", "net", "mnt", "ipc", "uts", "user", "cgroup"];

/// The numbers of the first namespaces. Spec: the kernel's `linux/nsfs.h`.
const FIRST: [(&str, u64); NAMES.len()] = [
    ("pid", 0xEFFF_FFFC),
    ("net", 0xEFFF_FFF9),
    ("mnt", 0xEFFF_FFF8),
    ("ipc", 0xEFFF_FFFF),
    ("uts", 0xEFFF_FFFE),
    ("user", 0xEFFF_FFFD),
    ("cgroup", 0xEFFF_FFFB),
];

#[cfg(test)]
mod tests {
    use super::{FIRST, NAMES, Reference, Standing, is_since_6_18};

    #[test]
    fn the_worst_thread_counts() {
        let own = Standing::Own;
        assert_eq!(own.and(Some(1), Some(2)), Standing::Own);
        assert_eq!(own.and(Some(2), Some(2)), Standing::Host);
        assert_eq!(own.and(None, Some(2)), Standing::Unreadable);
        assert_eq!(own.and(Some(1), None), Standing::NoReference);
        let host = Standing::Host;
        assert_eq!(host.and(Some(1), Some(2)), Standing::Host);
        assert_eq!(host.and(None, Some(2)), Standing::Host);
        let unknown = Standing::Unreadable;
        assert_eq!(unknown.and(Some(1), Some(2)), Standing::Unreadable);
        assert_eq!(unknown.and(Some(2), Some(2)), Standing::Host);
    }

    #[test]
    fn namespaces_are_told_by_their_numbers_in_every_thread() {
        let folder = tempfile::tempdir().unwrap();
        let make = |thread: &str, name: &str| {
            let path = folder.path().join(thread).join("ns");
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(name), "").unwrap();
        };
        let threads = ["a", "b"].map(|thread| {
            NAMES.iter().for_each(|name| make(thread, name));
            folder.path().join(thread)
        });
        let number = |thread: usize, name: &str| {
            let path = threads[thread].join("ns").join(name);
            super::inode(&path).unwrap()
        };
        let none = Reference(NAMES.map(|_| Some(0)));
        assert!(none.judge(&threads[..1]).unwrap().is_of_one_table);
        assert!(!none.judge(&threads).unwrap().is_of_one_table);
        for (index, name) in NAMES.iter().enumerate() {
            let mut host = [Some(0); NAMES.len()];
            host[index] = Some(number(1, name));
            let judged = Reference(host).judge(&threads).unwrap();
            let is_shared_by_threads = matches!(*name, "pid" | "user");
            assert_eq!(judged.is_host(name), !is_shared_by_threads, "{name}");
            host[index] = Some(number(0, name));
            let judged = Reference(host).judge(&threads).unwrap();
            assert!(judged.is_host(name) && !judged.is_own(name), "{name}");
        }
        let nowhere = folder.path().join("nobody");
        assert!(
            none.judge(std::slice::from_ref(&nowhere)).is_err(),
            "it has ended"
        );
        let one_ended = [threads[0].clone(), nowhere];
        assert!(none.judge(&one_ended).unwrap().is_own("net"));
    }

    #[test]
    fn new_kernels_are_told_by_their_release() {
        for (release, expected) in [
            ("6.18.44-fc\n", true),
            ("6.18\n", true),
            ("6.17.9\n", false),
            ("5.19.0\n", false),
            ("7.0-rc1\n", true),
            ("x\n", false),
            ("", false),
        ] {
            assert_eq!(is_since_6_18(release.trim()), expected, "{release}");
        }
    }

    #[test]
    fn there_is_a_reference_on_this_machine() {
        let reference = Reference::of_machine();
        let known = FIRST.iter().zip(reference.0);
        for ((name, _), number) in known {
            assert!(number.is_some() || matches!(*name, "net" | "mnt"), "{name}");
        }
    }
}
