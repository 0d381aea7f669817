//! Rights of the threads: capabilities, users, `no_new_privs`, seccomp. Pure.

use std::borrow::Cow;

use super::finding::Verdict;
use crate::attest::{capabilities, procfs::Status};

/// All capabilities that any thread has in any set, the bounding one too: a file with set-uid gives back
/// what is in there.
pub(super) fn capabilities(threads: &[Status]) -> u64 {
    let sets = threads.iter().flat_map(|thread| thread.capabilities);
    sets.fold(0, |all, set| all | set)
}

pub(super) fn default_capabilities(held: u64) -> Verdict {
    let more = held & !DEFAULT;
    Verdict::of(more == 0, "no more than the default set", || {
        format!("it has {} beyond the default set", names(more)).into()
    })
}

pub(super) fn restricted_capabilities(held: u64) -> Verdict {
    let more = held & !NET_BIND_SERVICE;
    Verdict::of(more == 0, "none, or NET_BIND_SERVICE alone", || {
        format!("it has {}", names(more)).into()
    })
}

pub(super) fn no_new_privileges(threads: &[Status]) -> Verdict {
    Verdict::of(
        threads.iter().all(|thread| thread.no_new_privs),
        "no thread can gain privileges",
        || "it may gain privileges by executing a file".into(),
    )
}

pub(super) fn seccomp(threads: &[Status]) -> Verdict {
    let worst = threads
        .iter()
        .find(|thread| thread.seccomp != SECCOMP_FILTER);
    let Some(worst) = worst else {
        let filters = threads.iter().filter_map(|thread| thread.seccomp_filters);
        return Verdict::pass(match filters.min() {
            Some(number) => format!("every thread is under a filter; filters: {number}"),
            None => "every thread is under a filter".to_owned(),
        });
    };
    Verdict::fail(match worst.seccomp {
        0 => "a thread may use any system call",
        _ => "a thread is in strict mode, under no filter",
    })
}

/// What the numbers of root and its group are, seen from the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Roots {
    /// Zero, and where the process has a user namespace of its own what is root in there.
    pub(super) users: Vec<u32>,
    pub(super) groups: Vec<u32>,
}

impl Roots {
    /// Where the user namespace is the host's.
    pub(super) fn of_host() -> Self {
        Self {
            users: vec![0],
            groups: vec![0],
        }
    }

    /// By `uid_map` and `gid_map`, which the kernel writes as the reader sees the numbers. Spec:
    /// user_namespaces(7).
    pub(super) fn of_maps(users: &str, groups: &str) -> Option<Self> {
        let roots = |text: &str| {
            let mut roots = vec![0];
            for line in text.lines() {
                let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
                let inside = numbers.next()?.ok()?;
                let outside = numbers.next()?.ok()?;
                numbers.next()?.ok()?;
                if inside == 0 {
                    roots.push(outside);
                }
            }
            Some(roots)
        };
        Some(Self {
            users: roots(users)?,
            groups: roots(groups)?,
        })
    }
}

pub(super) fn user(threads: &[Status], roots: &Roots) -> Verdict {
    let is_root = |uid: &u32| roots.users.contains(uid);
    let mut all = threads.iter().flat_map(|thread| &thread.uids);
    Verdict::of(
        !all.clone().any(is_root),
        "no thread is root, inside or outside",
        || match all.any(|uid| *uid == 0) {
            true => Cow::from("a thread has the user id 0"),
            false => Cow::from("a thread is root of its user namespace"),
        },
    )
}

pub(super) fn group(threads: &[Status], roots: &Roots) -> Verdict {
    let is_root = |gid: &u32| roots.groups.contains(gid);
    let mut all = threads
        .iter()
        .flat_map(|thread| thread.gids.iter().chain(&thread.groups));
    Verdict::of(
        !all.any(is_root),
        "no thread is in the group of root",
        || "a thread is in the group of root".into(),
    )
}

pub(super) fn has(held: u64, capability: u32) -> bool {
    held & (1 << capability) != 0
}

/// The names of capabilities, a few of them.
fn names(held: u64) -> String {
    let name = |number| match capabilities::name(number) {
        Some(name) => Cow::from(name),
        None => format!("capability {number}").into(),
    };
    let mut names: Vec<Cow<'_, str>> = capabilities::numbers(held).map(name).collect();
    let number = names.len();
    if number > SHOWN {
        names.truncate(SHOWN);
        names.push(format!("{} more", number - SHOWN).into());
    }
    names.join(", ")
}

const SHOWN: usize = 6;

/// The mode in which filters are. Spec: the kernel's `linux/seccomp.h`.
const SECCOMP_FILTER: u8 = 2;

pub(super) const SYS_ADMIN: u32 = 21;
pub(super) const MKNOD: u32 = 27;

const NET_BIND_SERVICE: u64 = 1 << 10;

/// What Docker, containerd and CRI-O leave to a container that asks for nothing.
const DEFAULT: u64 = 0xa804_25fb;

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(capabilities: [u64; 5], uids: [u32; 4], seccomp: u8) -> Status {
        Status {
            uids,
            gids: [5; 4],
            groups: vec![7],
            capabilities,
            no_new_privs: true,
            seccomp,
            seccomp_filters: Some(1),
            is_zombie: false,
        }
    }

    #[test]
    fn each_set_of_each_thread_counts() {
        for set in 0..5 {
            let mut sets = [0; 5];
            sets[set] = 1 << SYS_ADMIN;
            let clean = thread([0; 5], [1; 4], 2);
            let held = capabilities(&[clean, thread(sets, [1; 4], 2)]);
            assert!(!default_capabilities(held).is_pass(), "set {set}");
            assert_eq!(names(held), "SYS_ADMIN");
        }
        assert!(default_capabilities(DEFAULT).is_pass());
        assert!(!restricted_capabilities(DEFAULT).is_pass());
        assert!(restricted_capabilities(NET_BIND_SERVICE).is_pass());
        assert!(restricted_capabilities(0).is_pass());
        assert_eq!(
            default_capabilities(u64::MAX).why,
            "it has DAC_READ_SEARCH, LINUX_IMMUTABLE, NET_BROADCAST, NET_ADMIN, IPC_LOCK, \
             IPC_OWNER, 44 more beyond the default set"
        );
    }

    #[test]
    fn one_thread_that_is_root_or_under_no_filter_counts_for_all() {
        let clean = || thread([0; 5], [1; 4], 2);
        let host = Roots::of_host();
        assert!(user(&[clean()], &host).is_pass());
        for place in 0..4 {
            let mut uids = [1; 4];
            uids[place] = 0;
            let all = [clean(), thread([0; 5], uids, 2)];
            assert!(!user(&all, &host).is_pass(), "uid {place}");
        }
        for mode in [0, 1] {
            let all = [clean(), thread([0; 5], [1; 4], mode)];
            assert!(!seccomp(&all).is_pass(), "mode {mode}");
        }
        assert!(seccomp(&[clean()]).is_pass());
        let escalates = Status {
            no_new_privs: false,
            ..clean()
        };
        assert!(!no_new_privileges(&[clean(), escalates]).is_pass());
        let in_group = Status {
            groups: vec![7, 0],
            ..clean()
        };
        assert!(!group(&[in_group], &host).is_pass());
        assert!(group(&[clean()], &host).is_pass());
    }

    #[test]
    fn who_is_root_in_a_user_namespace_of_its_own_is_root() {
        let roots =
            Roots::of_maps("         0     100000      65536\n", "0 1000 1\n1 9 1\n").unwrap();
        assert_eq!(
            (&*roots.users, &*roots.groups),
            (&[0, 100_000][..], &[0, 1000][..])
        );
        let root = thread([0; 5], [100_000; 4], 2);
        let verdict = user(&[root], &roots);
        assert_eq!(verdict.why, "a thread is root of its user namespace");
        assert!(user(&[thread([0; 5], [100_001; 4], 2)], &roots).is_pass());
        assert!(Roots::of_maps("", "").is_some(), "not mapped yet");
        for text in ["0\n", "0 x 1\n", "0 1\n", "-1 0 1\n"] {
            assert_eq!(Roots::of_maps(text, ""), None, "{text}");
        }
    }
}
