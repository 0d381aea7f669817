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
    /// How many filters of system calls it has; older kernels do not tell.
    pub seccomp_filters: Option<u32>,
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
        seccomp_filters: match value("Seccomp_filters") {
            Some(number) => Some(number.parse().ok()?),
            None => None,
        },
        is_zombie: value("State")?.starts_with(['Z', 'X']),
    })
}

/// The number of the process that traces this one, from `status`; 0 for none.
pub fn tracer(text: &str) -> Option<i32> {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix("TracerPid:"))?;
    value.trim().parse().ok()
}

/// What `/proc/<pid>/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its parent's number.
    pub parent: i32,
    /// Its session.
    pub session: i32,
    /// Has it ended, or is it about to, so that it runs no program any more? Its other threads may.
    pub has_left: bool,
    /// When it was started, in ticks of the clock since the machine was.
    pub started: u64,
}

/// Reads `stat`. `None` when a field is missing or is not what the kernel writes.
///
/// The name stands in brackets and may hold anything, brackets and newlines too, so the fields
/// begin after the last closing one. Spec: proc_pid_stat(5).
pub fn stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let flags: u32 = fields.nth(2)?.parse().ok()?;
    Some(Stat {
        parent,
        session,
        has_left: state.starts_with(['Z', 'X']) || flags & PF_EXITING != 0,
        started: fields.nth(12)?.parse().ok()?,
    })
}

/// Reads `uptime`: how long ago the machine was started, in the ticks in which `stat` tells when processes
/// were. `None` when it is not what the kernel writes. Spec: proc_uptime(5).
pub fn uptime(text: &str) -> Option<u64> {
    let (since, _) = text.split_once(' ')?;
    let (seconds, hundredths) = since.split_once('.')?;
    let (seconds, hundredths): (u64, [char; 2]) = (
        seconds.parse().ok()?,
        hundredths.chars().collect::<Vec<_>>().try_into().ok()?,
    );
    let [tens, ones] = hundredths.map(|digit| digit.to_digit(10));
    seconds
        .checked_mul(100)?
        .checked_add(u64::from(tens? * 10 + ones?))
}

/// Spec: the kernel's `linux/sched.h`.
const PF_EXITING: u32 = 0x4;

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

    #[test]
    fn ticks_are_hundredths_of_a_second() {
        assert_eq!(uptime("12.34 5.00\n"), Some(1234));
        assert_eq!(uptime("0.07 5.00\n"), Some(7));
        for wrong in [
            "", "12 5", "12.3 5", "12.345 5", "12.34", "-1.00 5", "a.00 5", "1.+1 5",
        ] {
            assert_eq!(uptime(wrong), None, "{wrong}");
        }
    }

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
        assert_eq!((read.seccomp, read.seccomp_filters), (2, Some(1)));
        let older = STATUS.replace("Seccomp_filters:\t1\n", "");
        assert_eq!(status(&older).unwrap().seccomp_filters, None);
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
    fn who_traces_is_told_by_number() {
        assert_eq!(tracer("Name:\ta\nTracerPid:\t7\nUid:\t0\n"), Some(7));
        assert_eq!(tracer(STATUS), None);
    }

    #[test]
    fn the_fields_of_a_stat_are_found_behind_any_name() {
        // FAULTS 19
        let rest = "0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 77 0";
        let read = |text: &str| stat(text).map(|stat| (stat.parent, stat.session, stat.started));
        for (start, expected) in [
            ("7 (app) S 1 7 5", Some((1, 5, 77))),
            ("7 () R 1 () S 1 7 5", Some((1, 5, 77))),
            ("7 (a) R 1 9 9\n) S 1 7 5", Some((1, 5, 77))),
            ("7 app S 1 7 5", None),
        ] {
            assert_eq!(read(&format!("{start} {rest}")), expected, "{start:?}");
        }
        assert_eq!(read("7 (app) S 1 7 5 0 -1"), None, "it is cut");
        assert_eq!(read(""), None);
    }

    #[test]
    fn who_has_left_is_told_by_state_and_flags() {
        for (state, flags, expected) in [
            ("S", 0x40_0000, false),
            ("R", 0x40_0004, true),
            ("Z", 0x40_0000, true),
            ("X", 0, true),
        ] {
            let text = format!("7 (app) {state} 1 7 5 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 77 0");
            assert_eq!(stat(&text).unwrap().has_left, expected, "{text}");
        }
    }
}
