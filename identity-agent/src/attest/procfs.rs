//! Pure readers of the texts under `/proc`.
//!
//! The process chooses its own name, and with it a part of these texts; whatever is not exactly as
//! the kernel writes it is refused.

/// What `/proc/<pid>/status` tells of one thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Real, effective, saved and file system user.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub capabilities: [u64; 5],
    /// Can it gain no privileges by executing a file?
    pub no_new_privs: bool,
    /// 0 off, 1 strict, 2 filter.
    pub seccomp: u8,
    /// Has it ended without being waited for?
    pub is_zombie: bool,
}

/// Reads `status`. `None` when a line is missing or is not what the kernel writes.
pub fn status(text: &str) -> Option<Status> {
    // The first line with a key counts: the kernel writes each once, and escapes the name.
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .map(str::trim)
    };
    let capability = |key| u64::from_str_radix(value(key)?, 16).ok();
    Some(Status {
        uids: four(value("Uid")?)?,
        gids: four(value("Gid")?)?,
        groups: value("Groups")?
            .split_ascii_whitespace()
            .map(|group| group.parse().ok())
            .collect::<Option<_>>()?,
        capabilities: [
            capability("CapInh")?,
            capability("CapPrm")?,
            capability("CapEff")?,
            capability("CapBnd")?,
            capability("CapAmb")?,
        ],
        no_new_privs: match value("NoNewPrivs")? {
            "0" => false,
            "1" => true,
            _ => return None,
        },
        seccomp: value("Seccomp")?.parse().ok()?,
        is_zombie: value("State")?.starts_with(['Z', 'X']),
    })
}

/// The session of `/proc/<pid>/stat`: the fourth field after the name.
///
/// The name stands in brackets and may hold anything, brackets and newlines too, so the fields
/// begin after the last closing one.
pub fn session(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(3)?.parse().ok()
}

fn four(text: &str) -> Option<[u32; 4]> {
    let mut fields = text
        .split_ascii_whitespace()
        .map(|field| field.parse().ok());
    let all = [
        fields.next()??,
        fields.next()??,
        fields.next()??,
        fields.next()??,
    ];
    fields.next().is_none().then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tapp\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nUid:\t1\t2\t3\t4\n\
        Gid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapInh:\t0000000000000000\nCapPrm:\t0000000000000001\n\
        CapEff:\t0000000000000002\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";

    #[test]
    fn a_status_is_read_whole() {
        let read = status(STATUS).unwrap();
        assert_eq!(read.uids, [1, 2, 3, 4]);
        assert_eq!(read.gids, [5, 6, 7, 8]);
        assert_eq!(read.groups, [9, 10]);
        assert_eq!(read.capabilities, [0, 1, 2, 0x1ff_ffff_ffff, 0]);
        assert!(read.no_new_privs);
        assert_eq!(read.seccomp, 2);
        assert!(!read.is_zombie);
    }

    #[test]
    fn a_status_that_lacks_a_line_or_a_number_is_refused() {
        for key in [
            "Uid",
            "Gid",
            "Groups",
            "CapInh",
            "CapBnd",
            "NoNewPrivs",
            "Seccomp",
            "State",
        ] {
            let without: String = STATUS
                .lines()
                .filter(|line| !line.starts_with(&format!("{key}:")))
                .map(|line| format!("{line}\n"))
                .collect();
            assert_eq!(status(&without), None, "without {key}");
        }
        for (from, to) in [
            ("Uid:\t1\t2\t3\t4", "Uid:\t1\t2\t3"),
            ("Uid:\t1\t2\t3\t4", "Uid:\t1\t2\t3\t4\t5"),
            ("Uid:\t1", "Uid:\t-1"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\tyes"),
            ("CapBnd:\t0", "CapBnd:\tx"),
        ] {
            assert_eq!(status(&STATUS.replace(from, to)), None, "{to}");
        }
        assert_eq!(status(""), None);
    }

    #[test]
    fn the_session_is_found_behind_any_name() {
        // FAULTS 19
        for (stat, expected) in [
            ("7 (app) S 1 7 5 0 -1", Some(5)),
            ("7 () R 1 () S 1 7 5 0 -1", Some(5)),
            ("7 (a) R 1 9 9\n) S 1 7 5 0 -1", Some(5)),
            ("7 (app) S 1 7", None),
            ("7 app S 1 7 5", None),
            ("", None),
        ] {
            assert_eq!(session(stat), expected, "{stat:?}");
        }
    }
}
