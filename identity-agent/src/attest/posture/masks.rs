//! What engines hide of `/proc` and `/sys`, and keep from being written. Pure.

use std::path::Path;

use super::{finding::Verdict, mountinfo::Mount};

/// The files and folders that this kernel has and a container must not see.
#[derive(Debug, Clone)]
pub(super) struct Masks {
    proc: Vec<&'static str>,
    sys: Vec<&'static str>,
    written: Vec<&'static str>,
}

impl Masks {
    /// Those that there are below these two folders. What there is does not change while a kernel runs.
    pub(super) fn of(proc: &Path, sys: &Path) -> Self {
        let there = |folder: &Path, all: &[&'static str]| {
            let all = all.iter().copied();
            all.filter(|name| folder.join(name).symlink_metadata().is_ok())
                .collect()
        };
        Self {
            proc: there(proc, &HIDDEN_OF_PROC),
            sys: there(sys, &HIDDEN_OF_SYS),
            written: there(proc, &UNWRITTEN_OF_PROC),
        }
    }

    /// Is every `/proc` and `/sys` of a mount table masked?
    pub(super) fn judge(&self, mounts: &[Mount<'_>]) -> Verdict {
        for mount in mounts {
            let open = match mount.file_system {
                "proc" => self.open_of_proc(mount, mounts),
                "sysfs" => self.open_of_sys(mount, mounts),
                "cgroup" | "cgroup2" => (!mount.is_read_only).then_some(""),
                _ => None,
            };
            if let Some(name) = open {
                let path = match name {
                    "" => mount.point.to_string(),
                    name => format!("{}/{name}", mount.point.trim_end_matches('/')),
                };
                return Verdict::fail(format!("`{path}` can be read or written"));
            }
        }
        Verdict::pass("what engines hide is hidden")
    }

    /// What is open of a mounted `/proc`: the name of something in it, or nothing for all of it.
    fn open_of_proc(&self, mount: &Mount<'_>, mounts: &[Mount<'_>]) -> Option<&'static str> {
        if let Some(part) = mount.root.strip_prefix('/').filter(|part| !part.is_empty()) {
            let first = part.split('/').next().unwrap_or_default();
            let is_hidden = self.proc.contains(&first);
            return (is_hidden || !mount.is_read_only).then_some("");
        }
        let hidden = self.proc.iter().copied();
        let shown =
            hidden.filter(|name| !covers(mounts, mount, name, |top| top.file_system != "proc"));
        let written = self.written.iter().copied();
        let open = written.filter(|name| {
            !mount.is_read_only && !covers(mounts, mount, name, |top| top.is_read_only)
        });
        shown.chain(open).next()
    }

    fn open_of_sys(&self, mount: &Mount<'_>, mounts: &[Mount<'_>]) -> Option<&'static str> {
        if !mount.is_read_only {
            return Some("");
        }
        if mount.root != "/" {
            let part = mount.root.trim_start_matches('/');
            let is_hidden = self.sys.iter().any(|name| part.starts_with(name));
            return is_hidden.then_some("");
        }
        let hidden = self.sys.iter().copied();
        let mut shown =
            hidden.filter(|name| !covers(mounts, mount, name, |top| top.file_system != "sysfs"));
        shown.next()
    }
}

/// Is there a mount upon this one, over this name, that is as it should be?
fn covers(
    mounts: &[Mount<'_>],
    below: &Mount<'_>,
    name: &str,
    is_good: impl Fn(&Mount<'_>) -> bool,
) -> bool {
    let at = |mount: &&Mount<'_>| {
        let rest = mount.point.strip_prefix(below.point.trim_end_matches('/'));
        mount.parent == below.id && rest.and_then(|rest| rest.strip_prefix('/')) == Some(name)
    };
    mounts.iter().filter(at).any(is_good)
}

/// What every engine hides.
const HIDDEN_OF_PROC: [&str; 7] = [
    "kcore",
    "keys",
    "latency_stats",
    "timer_list",
    "timer_stats",
    "sched_debug",
    "scsi",
];
const HIDDEN_OF_SYS: [&str; 1] = ["firmware"];

/// What none may write.
const UNWRITTEN_OF_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

#[cfg(test)]
mod tests {
    use super::{super::mountinfo, Masks};

    const MASKED: &str = "\
        70 69 0:41 / /proc rw - proc proc rw\n\
        73 69 0:44 / /sys ro - sysfs sysfs ro\n\
        46 70 0:41 /bus /proc/bus ro - proc proc rw\n\
        49 70 0:41 /sys /proc/sys ro - proc proc rw\n\
        51 70 0:42 /null /proc/keys rw - tmpfs tmpfs rw\n\
        53 73 0:48 / /sys/firmware ro - tmpfs tmpfs ro\n\
        54 73 0:29 /docker/x /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n";

    fn masks() -> Masks {
        Masks {
            proc: vec!["keys"],
            sys: vec!["firmware"],
            written: vec!["bus", "sys"],
        }
    }

    #[track_caller]
    fn check(text: &str, open: Option<&str>) {
        let mounts = mountinfo::parse(text).unwrap();
        let verdict = masks().judge(&mounts);
        match open {
            None => assert!(verdict.is_pass(), "{text}\n{verdict:?}"),
            Some(path) => assert_eq!(
                verdict.why,
                format!("`{path}` can be read or written"),
                "{text}"
            ),
        }
    }

    #[test]
    fn every_mask_that_is_missing_is_found() {
        check(MASKED, None);
        let without = |start: &str| {
            let lines = MASKED.lines().filter(|line| !line.starts_with(start));
            lines.map(|line| format!("{line}\n")).collect::<String>()
        };
        check(&without("46 "), Some("/proc/bus"));
        check(&without("49 "), Some("/proc/sys"));
        check(&without("51 "), Some("/proc/keys"));
        check(&without("53 "), Some("/sys/firmware"));
        check(
            &MASKED.replace("/proc/sys ro", "/proc/sys rw"),
            Some("/proc/sys"),
        );
        check(
            &MASKED.replace("/sys ro - sysfs", "/sys rw - sysfs"),
            Some("/sys"),
        );
        check(
            &MASKED.replace("/cpu ro", "/cpu rw"),
            Some("/sys/fs/cgroup/cpu"),
        );
        check("", None);
    }

    #[test]
    fn a_second_proc_needs_masks_of_its_own() {
        let second = "80 69 0:99 / /mnt ro - proc proc rw\n";
        check(&format!("{MASKED}{second}"), Some("/mnt/keys"));
        // Masks that lie upon another mount at the same place.
        let stacked = "81 70 0:99 / /proc rw - proc proc rw\n";
        check(&format!("{MASKED}{stacked}"), Some("/proc/keys"));
        // The hidden thing itself, mounted elsewhere, and a part that can be written.
        let keys = "82 69 0:41 /keys /k ro - proc proc rw\n";
        check(&format!("{MASKED}{keys}"), Some("/k"));
        let written = "83 69 0:41 /sys/kernel /k rw - proc proc rw\n";
        check(&format!("{MASKED}{written}"), Some("/k"));
        let read = "84 69 0:41 /sys/kernel /k ro - proc proc rw\n";
        check(&format!("{MASKED}{read}"), None);
    }
}
