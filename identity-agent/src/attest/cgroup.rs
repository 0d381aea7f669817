//! Control groups: the `cgroup` attestor, and which container a process is in.
//!
//! The names of control groups below a container's own are the container's to choose. So the
//! outermost segment that a runtime made counts, and a look-alike further in never does.
//!
//! Layouts: v1 has a line for each hierarchy, v2 one line `0::/path`, and hybrid machines both.

use super::{
    AttestFailed, Attestor, Subject,
    reading::{known, read_as},
};
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
        known(read_as(&folder.join("cgroup"), Self::parse))?
            .ok_or_else(|| AttestFailed::new("its control groups cannot be read"))
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

    /// The path in the hierarchy of v1 that has this controller.
    pub fn path_of(&self, controller: &str) -> Option<&str> {
        let has = |group: &&Group| {
            let (_, controllers) = group.hierarchy.split_once(':').unwrap_or_default();
            controllers.split(',').any(|name| name == controller)
        };
        self.0.iter().find(has).map(|group| group.path.as_str())
    }

    /// The path in the unified hierarchy.
    pub fn unified_path(&self) -> Option<&str> {
        let is_unified = |group: &&Group| group.hierarchy == "0:";
        let unified = self.0.iter().find(is_unified);
        unified.map(|group| group.path.as_str())
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

    /// The pod's container, by the groups that a kubelet makes. `own` are those of the agent.
    ///
    /// # Errors
    /// Two hierarchies name different ones.
    pub fn pod_container(&self, own: &Self) -> Result<Option<PodContainer>, AttestFailed> {
        let mut all = self.0.iter().filter_map(|group| {
            let own = own.0.iter().find(|one| one.hierarchy == group.hierarchy);
            pod_container(&group.path, own.map(|one| one.path.as_str()))
        });
        let first = all.next();
        match all.find(|other| Some(other) != first.as_ref()) {
            Some(_) => Err(AttestFailed::new("its control groups name two containers")),
            None => Ok(first),
        }
    }

    /// Is one of them a container's own, and none that the container made below it?
    pub fn end_in_a_container(&self) -> bool {
        let mut last = self
            .0
            .iter()
            .filter_map(|group| group.path.rsplit('/').next());
        last.any(|name| container_of(name).is_some())
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
    path.split('/').find_map(container_of)
}

/// The ID of the container whose control group is called so.
fn container_of(segment: &str) -> Option<&str> {
    let scope = segment.strip_suffix(".scope");
    let name = scope
        .and_then(|scope| {
            let mut runtimes = RUNTIMES.iter();
            runtimes.find_map(|runtime| scope.strip_prefix(runtime))
        })
        .unwrap_or(segment);
    is_id(name).then_some(name)
}

/// A container of a pod of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodContainer {
    /// The pod's UID, as Kubernetes writes it.
    pub pod: String,
    /// The container's ID.
    pub container: String,
}

/// Reads a path that a kubelet made: its own groups, the pod's, the container's, then whatever the
/// container likes. Above them only what the agent itself lies in: nobody else's subtree, however its
/// groups are called.
fn pod_container(path: &str, own: Option<&str>) -> Option<PodContainer> {
    let mut segments = path.split('/').skip(1).peekable();
    let mut is_kubelets = false;
    // Seen from a control group namespace of our own, everything else begins with the way out.
    while segments.next_if_eq(&"..").is_some() {
        is_kubelets = true;
    }
    if let Some(found) = unnested(segments.clone()) {
        return Some(found);
    }
    if !is_kubelets {
        let mut own = own.into_iter().flat_map(|path| path.split('/').skip(1));
        while let Some(segment) = segments.peek() {
            if is_kubelets_own(segment) || own.next() != Some(*segment) {
                break;
            }
            segments.next();
        }
    }
    while segments
        .next_if(|segment| is_kubelets_own(segment))
        .is_some()
    {
        is_kubelets = true;
    }
    if !is_kubelets {
        return None;
    }
    let pod = pod_of(segments.next()?)?;
    let container = container_of(segments.next()?)?.to_owned();
    Some(PodContainer { pod, container })
}

/// A pod's container in one segment, `POD.slice:RUNTIME:ID`: so it is where the kubelet asks for groups of systemd and
/// containerd makes plain ones. It lies at the top, or where containerd itself runs.
fn unnested<'p>(mut segments: impl Iterator<Item = &'p str> + Clone) -> Option<PodContainer> {
    if segments.clone().take(2).eq(CONTAINERD) {
        segments.nth(CONTAINERD.len() - 1);
    }
    let mut parts = segments.next()?.split(':');
    let (pod, runtime, id) = (parts.next()?, parts.next()?, parts.next()?);
    let is_it = runtime == "cri-containerd" && is_id(id) && parts.next().is_none();
    let pod = is_it.then(|| pod_of(pod))??;
    let container = id.to_owned();
    Some(PodContainer { pod, container })
}

/// `kubepods`, `kubepods.slice`, `kubepods-burstable.slice`, `burstable`, and under a kubelet's own
/// root `kubelet` and `kubelet-kubepods-burstable.slice`.
fn is_kubelets_own(segment: &str) -> bool {
    let name = segment.strip_suffix(".slice").unwrap_or(segment);
    let is_class = |name: &str| matches!(name, "besteffort" | "burstable" | "guaranteed");
    let below = name.strip_prefix("kubelet-").unwrap_or(name);
    match below.strip_prefix("kubepods") {
        Some("") => true,
        Some(rest) => rest.strip_prefix('-').is_some_and(is_class),
        None => name == "kubelet" || is_class(name),
    }
}

/// The UID in `podUID` or `kubepods-burstable-podUID.slice`, where systemd wants `_` for `-`.
fn pod_of(segment: &str) -> Option<String> {
    let uid = match segment.strip_suffix(".slice") {
        Some(name) => {
            let (parents, uid) = name.rsplit_once("-pod")?;
            is_kubelets_own(parents).then_some(uid)?.replace('_', "-")
        }
        None => segment.strip_prefix("pod")?.to_owned(),
    };
    let groups: Vec<&str> = uid.split('-').collect();
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let is_uid = match groups.as_slice() {
        [a, b, c, d, e] => {
            is_hex(a, 8) && is_hex(b, 4) && is_hex(c, 4) && is_hex(d, 4) && is_hex(e, 12)
        }
        // Of a pod that is described in a file: a digest.
        [one] => is_hex(one, 32),
        _ => false,
    };
    is_uid.then_some(uid)
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

/// The unit of containerd, as its packages call it.
const CONTAINERD: [&str; 2] = ["system.slice", "containerd.service"];

#[cfg(test)]
mod tests {
    use super::{Groups, PodContainer};

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

    const UID: &str = "0a1b2c3d-0011-2233-4455-66778899aabb";

    #[track_caller]
    fn is_in_pod(path: &str, own: &str, expected: bool) {
        let text = |path: &str| {
            let path = path.replace("UID_", &UID.replace('-', "_"));
            format!("0::{}\n", path.replace("UID", UID))
        };
        let found = groups(&text(path))
            .pod_container(&groups(&text(own)))
            .unwrap();
        let wanted = PodContainer {
            pod: UID.into(),
            container: ID.into(),
        };
        assert_eq!(found, expected.then_some(wanted), "{path} seen from {own}");
    }

    #[test]
    fn a_pod_is_found_where_a_kubelet_puts_it_and_nowhere_else() {
        // FAULTS 12
        let systemd = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/cri-containerd-ID.scope";
        for path in [
            systemd,
            "/kubepods/burstable/podUID/ID",
            "/kubepods/podUID/ID",
            "/kubepods.slice/kubepods-podUID_.slice/crio-ID.scope",
            "/kubelet/kubepods/besteffort/podUID/ID/inner",
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podUID_.slice/cri-containerd-ID.scope",
            "/kubepods-burstable-podUID_.slice:cri-containerd:ID",
            "/system.slice/containerd.service/kubepods-podUID_.slice:cri-containerd:ID/inner",
        ] {
            is_in_pod(path, "/system.slice/agent.service", true);
        }
        for path in [
            "/user.slice/kubepods/podUID/ID",
            "/docker/OTHER/kubepods/podUID/ID",
            "/podUID/ID",
            "/burst/podUID/ID",
            "/kubepods/burstable/podUID",
            "/kubepods/podUID/inner/ID",
            "/kubepods/pod1/ID",
            "/kubepods/burstable/podUIDx/ID",
            "/kubepods-evil.slice/podUID/ID",
            "/kubepods.slice/evil-podUID_.slice/crio-ID.scope",
            "/user.slice/kubepods-podUID_.slice:cri-containerd:ID",
            "/system.slice/evil.service/kubepods-podUID_.slice:cri-containerd:ID",
            "/evil-podUID_.slice:cri-containerd:ID",
            "/kubepods-podUID_.slice:evil:ID",
            "/kubepods-podUID_.slice:cri-containerd:ID:ID",
            "/kubepods-podUID_.slice:cri-containerd:IDx",
        ] {
            is_in_pod(path, "/system.slice/agent.service", false);
        }
        // A node that is a container itself, with the agent in it.
        let inner = "/docker/OTHER/kubelet/kubepods/podUID/ID";
        is_in_pod(inner, "/docker/OTHER/kubelet/kubepods/podX/Y", true);
        is_in_pod(inner, "/docker/OTHER/system.slice/agent.service", true);
        is_in_pod(inner, "/docker/IDx/system.slice/agent.service", false);
        // From a control group namespace of the agent's own.
        is_in_pod(
            "/../../kubepods-burstable.slice/kubepods-burstable-podUID_.slice/cri-containerd-ID.scope",
            "/",
            true,
        );
        is_in_pod("/../../podUID/ID", "/", true);
        is_in_pod("/../../OTHER/podUID/ID", "/", false);
        is_in_pod("/podUID/ID", "/", false);
    }

    #[test]
    fn a_pod_inside_a_pod_is_the_outer_one() {
        // FAULTS 12
        let inner = format!(
            "0::/kubepods/pod{UID}/ID/kubepods/pod{}/OTHER\n",
            UID.replace('a', "b")
        );
        let found = groups(&inner)
            .pod_container(&groups("0::/\n"))
            .unwrap()
            .unwrap();
        assert_eq!((found.pod.as_str(), found.container.as_str()), (UID, ID));
        let two = format!("1:pids:/kubepods/pod{UID}/ID\n2:cpu:/kubepods/pod{UID}/OTHER\n");
        assert!(groups(&two).pod_container(&groups("0::/\n")).is_err());
    }

    #[test]
    fn what_no_kernel_writes_is_refused() {
        // FAULTS 13
        for text in ["x\n", "0:/\n", "0::path\n"] {
            assert_eq!(Groups::parse(text), None, "{text}");
        }
    }
}
