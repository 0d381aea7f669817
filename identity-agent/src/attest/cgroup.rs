//! Control groups: the `cgroup` attestor, and which container a process is in.
//!
//! The names of control groups below a container's own are the container's to choose. So the
//! outermost segment that a runtime made counts, and a look-alike further in never does.
//!
//! Layouts: v1 has a line for each hierarchy, v2 one line `0::/path`, and hybrid machines both.

use super::{AttestFailed, Attestor, Subject, read_text};
use crate::caller::ProcFolder;

/// States `cgroup:` selectors.
#[derive(Debug, Default)]
pub struct Cgroup;

impl Attestor for Cgroup {
    fn kind(&self) -> &'static str {
        "cgroup"
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        let groups = Groups::of(subject.folder)?;
        // The root is everybody's.
        let own = groups.0.iter().filter(|group| group.path != "/");
        own.for_each(|group| add(&format!("path:{}", group.path)));
        Ok(())
    }
}

/// The control groups of a process, one for each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups(Vec<Group>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    /// The number and the controllers of its hierarchy.
    hierarchy: String,
    path: String,
}

impl Groups {
    /// Those of the process of this folder.
    ///
    /// # Errors
    /// They cannot be read, or are not what a kernel writes.
    pub fn of(folder: &ProcFolder) -> Result<Self, AttestFailed> {
        let failed = || AttestFailed::new("its control groups cannot be read");
        let text = read_text(&folder.join("cgroup")).map_err(|_| failed())?;
        Self::parse(&text).ok_or_else(failed)
    }

    /// Reads `/proc/PID/cgroup`: `hierarchy:controllers:path` on each line. Spec: cgroups(7).
    pub fn parse(text: &str) -> Option<Self> {
        let group = |line: &str| {
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            path.starts_with('/').then(|| Group {
                hierarchy: format!("{number}:{controllers}"),
                path: path.to_owned(),
            })
        };
        text.lines().map(group).collect::<Option<_>>().map(Self)
    }

    /// The container, by the names that Docker, containerd, CRI-O and Podman give to control groups.
    /// A hierarchy without one says nothing.
    ///
    /// # Errors
    /// Two hierarchies name different containers.
    pub fn container(&self) -> Result<Option<&str>, AttestFailed> {
        let mut all = self.0.iter().filter_map(|group| container(&group.path));
        let first = all.next();
        match all.find(|other| Some(*other) != first) {
            Some(_) => Err(AttestFailed::new("its control groups name two containers")),
            None => Ok(first),
        }
    }

    /// Does every group that names a container lie in the one that `container`'s first process has?
    pub fn are_within(&self, first: &Self) -> bool {
        self.0
            .iter()
            .filter(|group| container(&group.path).is_some())
            .all(|group| {
                let mut of_first = first.0.iter();
                let own = of_first.find(|other| other.hierarchy == group.hierarchy);
                own.is_some_and(|outer| {
                    group
                        .path
                        .strip_prefix(&outer.path)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                })
            })
    }
}

/// The outermost segment that a runtime made: its container's ID.
fn container(path: &str) -> Option<&str> {
    path.split('/').find_map(|segment| {
        let scope = segment.strip_suffix(".scope");
        let name = scope
            .and_then(|scope| {
                let runtimes = RUNTIMES.iter();
                runtimes
                    .filter_map(|runtime| scope.strip_prefix(runtime))
                    .next()
            })
            .unwrap_or(segment);
        is_id(name).then_some(name)
    })
}

/// 64 digits in lower-case hexadecimal.
fn is_id(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

/// What runtimes put before the ID under systemd.
const RUNTIMES: [&str; 4] = ["docker-", "cri-containerd-", "crio-", "libpod-"];

#[cfg(test)]
mod tests {
    use super::Groups;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "f123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn groups(text: &str) -> Groups {
        let text = text.replace("ID", ID).replace("OTHER", OTHER);
        Groups::parse(&text).unwrap()
    }

    #[test]
    fn the_container_is_found_in_every_layout() {
        for text in [
            "12:pids:/docker/ID\n1:name=systemd:/docker/ID\n",
            "0::/docker/ID\n",
            "0::/system.slice/docker-ID.scope\n",
            "12:pids:/docker/ID\n0::/\n",
            "0::/\n12:pids:/docker/ID\n",
            "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope\n",
            "0::/machine.slice/libpod-ID.scope/container\n",
            "0::/parent/of/all/ID\n",
            "0::/docker/ID/init/deeper\n",
        ] {
            assert_eq!(groups(text).container().unwrap(), Some(ID), "{text}");
        }
        for text in [
            "0::/\n",
            "0::/user.slice/user-1000.slice\n",
            "0::/docker/IDa\n",
            "0::/docker/x-ID\n",
            "0::/docker-ID\n",
            "0::/other-ID.scope\n",
        ] {
            assert_eq!(groups(text).container().unwrap(), None, "{text}");
        }
    }

    #[test]
    fn a_look_alike_further_in_loses() {
        // A container may make groups of any name below its own.
        let nested = groups("0::/docker/ID/OTHER\n");
        assert_eq!(nested.container().unwrap(), Some(ID));
        let nested = groups("0::/docker/ID/docker-OTHER.scope\n");
        assert_eq!(nested.container().unwrap(), Some(ID));
        assert!(
            groups("1:pids:/docker/ID\n2:cpu:/docker/OTHER\n")
                .container()
                .is_err()
        );
    }

    #[test]
    fn a_group_outside_the_containers_own_is_none_of_it() {
        let first = groups("1:pids:/docker/ID\n0::/\n");
        assert!(groups("1:pids:/docker/ID\n0::/\n").are_within(&first));
        assert!(groups("1:pids:/docker/ID/inner\n0::/\n").are_within(&first));
        // Made by a user who was given a part of the tree, and named like a victim.
        assert!(!groups("1:pids:/user.slice/ID\n0::/\n").are_within(&first));
        assert!(!groups("1:pids:/docker/IDx/ID\n0::/\n").are_within(&first));
        assert!(!groups("2:cpu:/docker/ID\n").are_within(&first));
    }

    #[test]
    fn what_no_kernel_writes_is_refused() {
        for text in ["x\n", "0:/\n", "0::path\n"] {
            assert_eq!(Groups::parse(text), None, "{text}");
        }
    }
}
