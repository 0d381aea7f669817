//! What is mounted in a process' mount namespace: nothing of the host's, no engine's socket, a root that
//! cannot be written. Pure.
//!
//! Every line counts, not the topmost of each place: what lies below another mount is one `umount` away.

use std::borrow::Cow;

use super::{
    finding::Verdict,
    host::Mounts,
    mountinfo::{Mount, below},
    namespaces::Namespaces,
};

/// What is judged, and by what.
#[derive(Debug)]
pub(super) struct Mounted<'a> {
    pub(super) mounts: &'a [Mount<'a>],
    pub(super) host: &'a Mounts,
    pub(super) namespaces: &'a Namespaces,
    /// Where engines listen on the host.
    pub(super) sockets: &'a [String],
    /// What every workload may have of the host.
    pub(super) given: &'a [String],
}

impl Mounted<'_> {
    /// The mount that the process has at its root: the one with nothing on it.
    pub(super) fn root(&self) -> Option<&Mount<'_>> {
        let mut all = self.mounts.iter().filter(|mount| mount.point == "/");
        let is_covered = |mount: &&Mount<'_>| {
            all.clone()
                .any(|other| other.parent == mount.id && other.id != mount.id)
        };
        all.clone().find(|mount| !is_covered(mount)).or(all.next())
    }

    pub(super) fn root_file_system(&self) -> Verdict {
        match self.root() {
            Some(root) if root.is_read_only => Verdict::pass("it is mounted read-only"),
            Some(_) => Verdict::fail("it can be written"),
            None => Verdict::fail("nothing is mounted at the root of the process"),
        }
    }

    pub(super) fn host_mounts(&self) -> Verdict {
        let engine = self.own_data_root();
        let of_host = self.mounts.iter().filter_map(|mount| {
            let path = self.of_host(mount, engine.as_deref())?;
            Some(format!("`{}` is {path}", mount.point))
        });
        none_of(of_host, "nothing of the host's is mounted")
    }

    pub(super) fn runtime_socket(&self) -> Verdict {
        let places = self.sockets.iter();
        let places = places.filter_map(|path| Some((path, self.host.place_of(path)?)));
        let places: Vec<_> = places.collect();
        let exposing = self.mounts.iter().filter_map(|mount| {
            let shows = |(_, (device, path)): &&(&String, (_, String))| {
                *device == mount.device && below(path, &mount.root).is_some()
            };
            let (socket, _) = places.iter().find(shows)?;
            Some(format!("`{}` shows `{socket}`", mount.point))
        });
        none_of(exposing, "no engine's socket is mounted")
    }

    pub(super) fn propagation(&self) -> Verdict {
        let shared = self.mounts.iter().filter(|mount| mount.is_shared);
        let shared = shared
            .map(|mount| format!("what is mounted below `{}` appears elsewhere", mount.point));
        none_of(shared, "no mount is shared")
    }

    pub(super) fn writable_executable(&self, is_root: bool) -> Verdict {
        let both = self.mounts.iter().filter(|mount| {
            !mount.is_read_only && !mount.is_no_exec && !is_of_kernel(mount.file_system)
        });
        // The runtime gives these to root alone.
        let both = both.filter(|mount| is_root || !is_of_runtime(&mount.point));
        let both = both.map(|mount| format!("`{}` can be written and executed from", mount.point));
        none_of(both, "nothing can be written and executed from")
    }

    /// What a mount shows of the host, if it does; none for what engines make for every container.
    fn of_host(&self, mount: &Mount<'_>, engine: Option<&str>) -> Option<Cow<'static, str>> {
        let (point, root) = (&*mount.point, &*mount.root);
        if matches!(mount.file_system, "cgroup" | "cgroup2") {
            let is_whole = root.split('/').all(|name| matches!(name, "" | ".."));
            return is_whole.then_some(Cow::from("all control groups of the host"));
        }
        if !self.host.knows(mount.device) {
            let (major, minor) = mount.device;
            // One that has no disk behind it was made for the container.
            return (major != 0)
                .then(|| format!("a disk that the host does not mount, {major}:{minor}").into());
        }
        let spaces = self.namespaces;
        let is_of_shared_namespace = match mount.file_system {
            "sysfs" => point == "/sys" && root == "/" && spaces.is_host("net"),
            "proc" => point == "/proc" && root == "/" && spaces.is_host("pid"),
            "mqueue" => spaces.is_host("ipc"),
            "tmpfs" => point == "/dev/shm" && root == "/" && spaces.is_host("ipc"),
            _ => false,
        };
        // These are found out by their namespace.
        if is_of_shared_namespace || is_init(mount) {
            return None;
        }
        let own = self.root();
        let is_own_root = |own: &&Mount<'_>| own.device == mount.device && is_layered(own);
        let paths = self.host.paths(mount);
        if own.filter(is_own_root).is_some() {
            let is_hosts_root = paths.iter().any(|path| path == "/");
            return is_hosts_root.then_some(Cow::from("`/` of the host"));
        }
        let is_made = |path: &String| {
            let mut roots = ENGINES.iter().copied().chain(engine);
            self.given.contains(path) || roots.any(|root| is_engines(path, root, point))
        };
        match paths.first() {
            Some(_) if paths.iter().all(is_made) => None,
            Some(path) => Some(format!("`{path}` of the host").into()),
            None => Some("a part of a file system of the host".into()),
        }
    }

    /// Where the engine keeps what it makes, by the layers of the container's own root. Only who may mount
    /// on the host decides about that.
    fn own_data_root(&self) -> Option<String> {
        let root = self.root().filter(|root| is_layered(root))?;
        let path = self.host.paths(root).into_iter().next()?;
        let (layers, _) = path.strip_suffix("/merged")?.rsplit_once('/')?;
        let (data, _) = layers.rsplit_once('/')?;
        (!data.is_empty()).then(|| data.to_owned())
    }
}

/// Is the root of a container made of layers, so that it is nobody else's?
fn is_layered(mount: &Mount<'_>) -> bool {
    matches!(
        mount.file_system,
        "overlay" | "fuse.fuse-overlayfs" | "aufs"
    )
}

/// Is it the first process that `--init` puts before the container's own?
fn is_init(mount: &Mount<'_>) -> bool {
    let points = ["/sbin/docker-init", "/dev/init", "/run/podman-init"];
    let programs = ["docker-init", "tini", "tini-static", "catatonit"];
    let name = mount.root.rsplit('/').next().unwrap_or_default();
    mount.is_read_only && points.contains(&&*mount.point) && programs.contains(&name)
}

/// Did an engine that keeps its things in this folder make this path, to be mounted there?
fn is_engines(path: &str, root: &str, point: &str) -> bool {
    let Some(rest) = below(path, root) else {
        return false;
    };
    let names: Vec<&str> = rest.split('/').collect();
    let is_name_of_host = |file: &str| point.strip_prefix("/etc/") == Some(file);
    match names.as_slice() {
        // Docker.
        [
            "containers",
            _,
            file @ ("hosts" | "hostname" | "resolv.conf"),
        ] => is_name_of_host(file),
        ["containers", _, "mounts", "shm"] => point == "/dev/shm",
        ["volumes", _, "_data", ..] => true,
        // Roots without layers.
        ["vfs", "dir", _] | ["btrfs", "subvolumes", _] | ["zfs", "graph", _] => point == "/",
        // containerd.
        ["io.containerd.grpc.v1.cri", "sandboxes", _, file] => {
            is_name_of_host(file) || (*file == "shm" && point == "/dev/shm")
        }
        // Podman and CRI-O.
        ["overlay-containers", _, "userdata", file] => {
            is_name_of_host(file)
                || (*file == "shm" && point == "/dev/shm")
                || (*file == ".containerenv" && point == "/run/.containerenv")
        }
        // The kubelet.
        ["pods", _, "etc-hosts"] => point == "/etc/hosts",
        ["pods", _, "containers", _, _] => true,
        ["pods", _, "volumes", kind, _, ..] => kind.starts_with("kubernetes.io~"),
        _ => false,
    }
}

fn is_of_kernel(file_system: &str) -> bool {
    matches!(
        file_system,
        "proc" | "sysfs" | "devpts" | "mqueue" | "cgroup" | "cgroup2"
    )
}

fn is_of_runtime(point: &str) -> bool {
    let names = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev"];
    names.contains(&point) || below(point, "/proc").is_some() || below(point, "/sys").is_some()
}

/// A pass if there is none, and a fail that names some.
fn none_of(mut found: impl Iterator<Item = String>, met: &'static str) -> Verdict {
    let mut shown: Vec<String> = found.by_ref().take(SHOWN).collect();
    let more = found.count();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    Verdict::of(shown.is_empty(), met, || shown.join(", ").into())
}

const SHOWN: usize = 3;

/// Where engines keep what they make, unless they are told otherwise.
const ENGINES: [&str; 12] = [
    "/var/lib/docker",
    "/var/lib/containers/storage",
    "/run/containers/storage",
    "/var/run/containers/storage",
    "/var/lib/containerd",
    "/run/containerd",
    "/var/lib/kubelet",
    "/var/lib/rancher/k3s/agent/containerd",
    "/var/lib/rancher/rke2/agent/containerd",
    "/run/k3s/containerd",
    "/var/lib/k0s/containerd",
    "/var/lib/k0s/kubelet",
];

/// Where engines listen. `/var/run` is `/run` nearly everywhere.
pub(super) const SOCKETS: [&str; 10] = [
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/docker/containerd/containerd.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/podman/podman.sock",
    "/run/cri-dockerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/buildkit/buildkitd.sock",
    "/run/k0s/containerd.sock",
];

#[cfg(test)]
mod tests;
