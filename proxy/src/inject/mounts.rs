//! Places of the node that no container should be given: what a mount of each is good for. Pure, by
//! the path alone: where a link on the node leads nobody can tell from a manifest.

use std::path::{Component, Path, PathBuf};

/// Why a mount is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Danger {
    /// With it the container leaves its walls, or takes what proves identities.
    Undoes(String),
    /// It shows what is not the container's own.
    Shows(String),
}

/// What a container can do with a place of the node. `is_written` where the mount is not read-only;
/// that of a socket counts for nothing, because connecting is not writing.
pub(super) fn danger(path: &str, is_written: bool) -> Option<Danger> {
    let path = plain(path);
    let is_held = |held: &str| path.starts_with(held) || Path::new(held).starts_with(&path);
    let shown = path.display();
    if let Some(held) = AGENTS.iter().find(|held| is_held(held)) {
        let why = format!("is `{shown}`, with which the container reaches the agent's `{held}`");
        return Some(Danger::Undoes(why));
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let is_socket = name.is_some_and(|name| SOCKETS.contains(&name));
    if is_socket || ENGINES.iter().any(|held| is_held(held)) {
        let why = format!(
            "is `{shown}`, with which the container asks the engine for others without walls"
        );
        return Some(Danger::Undoes(why));
    }
    if let Some(held) = NODES.iter().find(|held| is_held(held)) {
        let why = format!("is `{shown}`, with which the container reaches the node's `{held}`");
        return Some(Danger::Undoes(why));
    }
    let kernels = KERNELS.iter().find(|kernels| path.starts_with(kernels))?;
    Some(match is_written {
        true => Danger::Undoes(format!(
            "is `{shown}`, with which root in the container changes the node's kernel by `{kernels}`"
        )),
        false => Danger::Shows(format!(
            "is `{shown}`: the container sees processes and settings of the node"
        )),
    })
}

/// A path without what leads nowhere; `..` is followed as far as the root, and `/var/run` is `/run`.
fn plain(text: &str) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in Path::new(text).components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    match plain.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => plain,
    }
}

/// What of the node is the agent's alone, where it is by default.
const AGENTS: [&str; 2] = ["/var/lib/postern", "/run/postern/admin"];

/// Where engines are asked, by default.
const ENGINES: [&str; 6] = [
    "/run/docker.sock",
    "/run/containerd",
    "/run/crio",
    "/run/podman",
    "/run/k3s",
    "/run/buildkit",
];

/// What the sockets of engines are called, wherever they are.
const SOCKETS: [&str; 4] = ["docker.sock", "podman.sock", "containerd.sock", "crio.sock"];

/// Where keys, tokens and files of all containers of a node are.
const NODES: [&str; 4] = [
    "/etc/kubernetes",
    "/var/lib/kubelet",
    "/var/lib/docker",
    "/var/lib/containerd",
];

/// The kernel's own.
const KERNELS: [&str; 2] = ["/proc", "/sys"];

#[cfg(test)]
mod tests {
    use super::{Danger, danger};

    #[test]
    fn places_of_the_node_and_what_lies_above_them_are_dangerous_and_their_neighbours_are_not() {
        for path in [
            "/etc/kubernetes",
            "/etc/kubernetes/pki",
            "/etc",
            "/var/lib/kubelet/pods",
            "/var/lib/docker",
            "/var/lib/containerd/io",
            "/var/lib",
        ] {
            let told = danger(path, false);
            assert!(matches!(told, Some(Danger::Undoes(_))), "{path}");
        }
        for path in ["/etc/kubernetes2", "/etc/ssl", "/var/lib/app"] {
            assert!(danger(path, false).is_none(), "{path}");
        }
    }

    #[track_caller]
    fn check(path: &str, is_written: bool, expected: Option<&str>) {
        let told = match danger(path, is_written) {
            None => None,
            Some(Danger::Undoes(_)) => Some("undoes"),
            Some(Danger::Shows(_)) => Some("shows"),
        };
        assert_eq!(told, expected, "{path} {is_written}");
    }

    #[test]
    fn a_place_is_known_from_below_and_from_above_and_its_neighbour_is_not() {
        for path in [
            "/",
            "//",
            "/srv/..",
            "/./var",
            "/var/lib",
            "/var/lib/postern",
            "/var/lib/postern/authority.json",
            "/run",
            "/var/run",
            "/run/postern",
            "/run/postern/admin/admin.sock",
            "/var/run/docker.sock",
            "/run/user/1000/docker.sock",
            "/run/containerd/containerd.sock",
            "/var/run/crio",
            "/run/k3s/containerd",
        ] {
            check(path, false, Some("undoes"));
            check(path, true, Some("undoes"));
        }
        for path in ["/proc", "/proc/sys/kernel", "/sys", "/srv/../sys/fs/cgroup"] {
            check(path, false, Some("shows"));
            check(path, true, Some("undoes"));
        }
        for path in [
            "/srv",
            "/var/lib/posterns",
            "/run/postern/public",
            "/run/postern/public/agent.sock",
            "/run/docker.socket",
            "/run/containers",
            "/procs",
            "/system",
            "/data/proc",
        ] {
            check(path, false, None);
            check(path, true, None);
        }
    }
}
