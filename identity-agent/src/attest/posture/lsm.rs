//! Mandatory access control: AppArmor's profile, SELinux' type.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use super::finding::Verdict;
use crate::attest::{
    AttestFailed,
    reading::{ReadError, read_text},
};

/// The kernel's own, which do not change while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    AppArmor,
    SeLinux,
    None,
}

impl Kernel {
    pub(super) fn of_machine() -> Self {
        let enabled = read_text(Path::new("/sys/module/apparmor/parameters/enabled"));
        if enabled.is_ok_and(|text| text.starts_with('Y')) {
            return Self::AppArmor;
        }
        match fs::exists("/sys/fs/selinux/enforce") {
            Ok(true) => Self::SeLinux,
            _ => Self::None,
        }
    }
}

/// What holds for a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Confinement {
    pub(super) verdict: Verdict,
    /// What is stated of it, after `posture:`.
    pub(super) selector: Option<String>,
    /// Does the kernel have any?
    pub(super) is_active: bool,
}

impl Confinement {
    /// That of all threads, each by its folder.
    ///
    /// # Errors
    /// The agent lacks what it needs to look.
    pub(super) fn of(kernel: Kernel, threads: &[PathBuf]) -> Result<Self, AttestFailed> {
        let mut worst: Option<Self> = None;
        for (place, folder) in threads.iter().enumerate() {
            let label = match label(kernel, folder) {
                Err(ReadError::Absent) if place > 0 => continue,
                Err(ReadError::Lack(lack)) => return Err(lack.into()),
                Err(_) => None,
                Ok(label) => Some(label),
            };
            let next = Self::by_label(kernel, label.as_deref());
            match &worst {
                Some(known) if *known == next => {}
                // Threads that differ state nothing: it would be true of some alone.
                Some(known) => {
                    let verdict = match known.verdict.is_pass() {
                        true => next.verdict,
                        false => known.verdict.clone(),
                    };
                    worst = Some(Self {
                        verdict: match verdict.is_pass() {
                            true => Verdict::unknown("its threads have different labels"),
                            false => verdict,
                        },
                        selector: None,
                        is_active: true,
                    });
                }
                None => worst = Some(next),
            }
            // Without any there is nothing to be found in the others.
            if kernel == Kernel::None {
                break;
            }
        }
        worst.ok_or_else(|| AttestFailed::new("its label cannot be read"))
    }

    /// By the text that the kernel has for it.
    fn by_label(kernel: Kernel, label: Option<&str>) -> Self {
        let label = label.map(|text| text.trim_end_matches(['\0', '\n']));
        let (verdict, selector) = match (kernel, label) {
            (Kernel::None, None) => (
                Verdict::unknown("no AppArmor or SELinux is active in this kernel"),
                None,
            ),
            (_, None | Some("")) => (Verdict::unknown("its label may not be read"), None),
            (_, Some(label)) => judge(label),
        };
        Self {
            verdict,
            selector,
            is_active: kernel != Kernel::None || label.is_some(),
        }
    }
}

fn judge(label: &str) -> (Verdict, Option<String>) {
    // `name (mode)` is AppArmor's, `user:role:type:level` SELinux'.
    if let Some((name, mode)) = label.rsplit_once(" (") {
        let mode = mode.trim_end_matches(')');
        let selector = format!("apparmor:{name}:{mode}");
        return match mode {
            "enforce" | "kill" => (
                Verdict::pass(format!("AppArmor enforces `{name}`")),
                Some(selector),
            ),
            mode => (
                Verdict::fail(format!("AppArmor has `{name}` in mode `{mode}` alone")),
                None,
            ),
        };
    }
    let mut parts = label.split(':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(_), Some(kind)) => {
            let selector = Some(format!("selinux:{kind}"));
            match CONTAINERS.contains(&kind) {
                true => (
                    Verdict::pass(format!("SELinux' type is `{kind}`")),
                    selector,
                ),
                false => (
                    Verdict::fail(format!("SELinux' type `{kind}` is none of a container")),
                    selector,
                ),
            }
        }
        _ => (Verdict::fail(format!("it is `{label}`")), None),
    }
}

/// The label of a thread. AppArmor has a file of its own on newer kernels.
fn label(kernel: Kernel, folder: &Path) -> Result<String, ReadError> {
    let read = |name: &str| match read_text(&folder.join(name)) {
        // Nobody answers.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Err(ReadError::Refused),
        other => other.map_err(ReadError::from),
    };
    match kernel {
        Kernel::AppArmor => match read("attr/apparmor/current") {
            Err(ReadError::Absent) => read("attr/current"),
            other => other,
        },
        Kernel::SeLinux | Kernel::None => read("attr/current"),
    }
}

/// Those that a container may have. Spec: Pod Security Standards, baseline.
const CONTAINERS: [&str; 4] = [
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
];

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::finding::Outcome, Confinement, Kernel};

    #[track_caller]
    fn check(kernel: Kernel, labels: &[&str], outcome: Outcome, selector: Option<&str>) {
        let folder = tempfile::tempdir().unwrap();
        let threads: Vec<_> = labels
            .iter()
            .enumerate()
            .map(|(number, label)| {
                let thread = folder.path().join(number.to_string());
                fs::create_dir_all(thread.join("attr")).unwrap();
                if !label.is_empty() {
                    fs::write(thread.join("attr/current"), label).unwrap();
                }
                thread
            })
            .collect();
        let found = Confinement::of(kernel, &threads).unwrap();
        let selector = selector.map(str::to_owned);
        assert_eq!(
            (found.verdict.outcome, found.selector),
            (outcome, selector),
            "{labels:?}"
        );
    }

    #[test]
    fn apparmor_is_a_wall_where_it_enforces_a_profile() {
        let check = |labels: &[&str], outcome, selector| {
            check(Kernel::AppArmor, labels, outcome, selector);
        };
        let default = "docker-default (enforce)\n";
        let stated = Some("apparmor:docker-default:enforce");
        check(&[default], Outcome::Pass, stated);
        check(&[default, default], Outcome::Pass, stated);
        check(&["docker-default (complain)\n"], Outcome::Fail, None);
        check(&["unconfined\n"], Outcome::Fail, None);
        check(&[""], Outcome::Unknown, None);
        check(&[default, "unconfined\n"], Outcome::Fail, None);
        check(&["unconfined\n", default], Outcome::Fail, None);
        check(&[default, "other (enforce)\n"], Outcome::Unknown, None);
    }

    #[test]
    fn selinux_is_a_wall_where_the_type_is_a_containers() {
        let container = "system_u:system_r:container_t:s0:c1,c2\0";
        let stated = Some("selinux:container_t");
        check(Kernel::SeLinux, &[container], Outcome::Pass, stated);
        let free = "system_u:system_r:spc_t:s0\0";
        let stated = Some("selinux:spc_t");
        check(Kernel::SeLinux, &[free], Outcome::Fail, stated);
        check(Kernel::SeLinux, &[""], Outcome::Unknown, None);
    }

    #[test]
    fn without_any_nobody_knows() {
        check(Kernel::None, &[""], Outcome::Unknown, None);
    }
}
