//! The names of capabilities.

/// The name of the one of this number, without `CAP_`, if a kernel is known to have it.
pub(crate) fn name(number: u32) -> Option<&'static str> {
    NAMES.get(usize::try_from(number).ok()?).copied()
}

/// The numbers of those in a set.
pub(crate) fn numbers(set: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |number| set & (1 << number) != 0)
}

/// By their numbers. Spec: the kernel's `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[cfg(test)]
mod tests {
    use super::{NAMES, name, numbers};

    #[test]
    fn capabilities_have_the_names_of_their_numbers() {
        let some: Vec<_> = numbers(1 | 1 << 21 | 1 << 40).map(name).collect();
        let names = ["CHOWN", "SYS_ADMIN", "CHECKPOINT_RESTORE"];
        assert_eq!(some, names.map(Some));
        assert_eq!(numbers(u64::MAX).filter_map(name).count(), NAMES.len());
        assert_eq!(name(63), None);
        assert_eq!(numbers(0).count(), 0);
    }
}
