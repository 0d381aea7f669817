//! `attestors`: who states what is true of a process.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use postern_policies::{
    diagnostic::Problems,
    yaml::{Entry, Fields, Node, Value, fields},
};

use super::socket;

/// The attestors that are switched on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attestors {
    /// `unix:` selectors.
    pub unix: bool,
    /// `posture:` selectors.
    pub posture: bool,
    /// `cgroup:` selectors.
    pub cgroup: bool,
    /// `docker:` selectors, and the engine's socket.
    pub docker: Option<PathBuf>,
    /// `k8s:` selectors, and the node's kubelet.
    pub kubernetes: Option<Kubelet>,
    /// `systemd:` selectors, and the address of the system's bus.
    pub systemd: Option<String>,
    /// `image:` selectors, and what they go by.
    pub image: Option<ImageEvidence>,
}

/// Where it lies what is known of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageEvidence {
    /// The folder of reports, exceptions and signatures.
    pub directory: PathBuf,
    /// How old a report and the database behind it may be.
    pub max_age: Duration,
    /// The public keys that signatures count of, by their names.
    pub keys: BTreeMap<String, PathBuf>,
}

/// How the kubelet of this node is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubelet {
    /// Its address, `https://host:port`.
    pub url: String,
    /// A token, read anew each time: the cluster replaces it.
    pub token: Option<PathBuf>,
    /// The authorities that vouch for its certificate; `None` takes any certificate, which only an
    /// address of this machine may be asked with.
    pub authorities: Option<PathBuf>,
    /// A certificate and its key to show to it.
    pub identity: Option<(PathBuf, PathBuf)>,
}

pub(super) fn read(
    all: &Fields<'_>,
    folder: &Path,
    problems: &mut Problems<'_>,
) -> Option<Attestors> {
    let Some(node) = all.get("attestors") else {
        return Some(Attestors {
            unix: true,
            posture: true,
            ..Attestors::default()
        });
    };
    let known = [
        "unix", "posture", "cgroup", "docker", "k8s", "systemd", "image",
    ];
    let section = Fields::of(node, "attestors", &known, problems)?;
    if let Value::Map(entries) = &node.value {
        let is_empty = |entry: &&Entry| matches!(entry.node.value, Value::Null);
        for entry in entries.iter().filter(is_empty) {
            let text = format!("`attestors.{}` says nothing", entry.key);
            problems.error_with(
                entry.node.at,
                text,
                format!("`{}: {{}}` switches it on", entry.key),
            );
        }
    }
    for name in ["unix", "posture", "cgroup"] {
        if let Some(node) = section.get(name) {
            Fields::of(node, name, &[], problems)?;
        }
    }
    let docker = match section.get("docker") {
        Some(_) => {
            let docker = super::section(&section, "docker", &["socket"], problems);
            Some(socket(docker.as_ref(), "docker", DOCKER_SOCKET, problems)?)
        }
        None => None,
    };
    let attestors = Attestors {
        unix: section.get("unix").is_some(),
        posture: section.get("posture").is_some(),
        cgroup: section.get("cgroup").is_some(),
        docker,
        kubernetes: match section.get("k8s") {
            Some(node) => Some(kubelet(node, folder, problems)?),
            None => None,
        },
        systemd: match section.get("systemd") {
            Some(node) => Some(bus(node, problems)?),
            None => None,
        },
        image: match section.get("image") {
            Some(node) => Some(image(node, folder, problems)?),
            None => None,
        },
    };
    if let (Some(_), None, None) = (&attestors.image, &attestors.docker, &attestors.kubernetes) {
        problems.error_with(
            node.at,
            "`attestors.image` has nobody who tells which image a container is of",
            "switch on `docker: {}` or `k8s: {}` beside it",
        );
    }
    if attestors == Attestors::default() {
        problems.error_with(
            node.at,
            "there is no attestor",
            "`attestors: {unix: {}, posture: {}}`",
        );
    }
    Some(attestors)
}

/// `{kubelet, tokenFile, caFile, verify, certificate, key}`; what a pod of the cluster has by default.
fn kubelet(node: &Node, folder: &Path, problems: &mut Problems<'_>) -> Option<Kubelet> {
    let known = [
        "kubelet",
        "tokenFile",
        "caFile",
        "verify",
        "certificate",
        "key",
    ];
    let all = Fields::of(node, "k8s", &known, problems)?;
    let url = all.text("kubelet", problems).unwrap_or(KUBELET);
    let host = url
        .strip_prefix("https://")
        .map(|rest| rest.trim_end_matches('/'));
    let Some(host) = host.filter(|host| !host.is_empty() && !host.contains(['/', '@', '?'])) else {
        let text = format!("`{url}` in `k8s.kubelet` is no address of a kubelet");
        problems.error_with(all.at, text, "write it as `https://127.0.0.1:10250`");
        return None;
    };
    let file = |name: &str, default: Option<&str>, problems: &mut Problems<'_>| match all.get(name)
    {
        Some(node) => fields::filled(node, name, problems).map(|text| Some(folder.join(text))),
        None => Some(default.map(PathBuf::from)),
    };
    let verify = match all.get("verify") {
        Some(node) => fields::boolean(node, "k8s.verify", problems)?,
        None => true,
    };
    let is_local = ["127.0.0.1", "[::1]", "localhost"].iter().any(|own| {
        host.strip_prefix(own)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    });
    if !verify && !is_local {
        let hint = "name the authorities of its certificate in `caFile`";
        let text = "`k8s.verify: false` is for a kubelet at an address of this machine alone";
        problems.error_with(all.at, text, hint);
    }
    let certificate = file("certificate", None, problems)?;
    let key = file("key", None, problems)?;
    let by_certificate = certificate.is_some();
    if by_certificate != key.is_some() {
        problems.error(all.at, "`k8s.certificate` and `k8s.key` come together");
    }
    // Whoever shows a certificate needs no token.
    let token = (!by_certificate).then_some("/var/run/secrets/kubernetes.io/serviceaccount/token");
    let authorities = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
    Some(Kubelet {
        url: format!("https://{host}"),
        token: file("tokenFile", token, problems)?,
        authorities: file("caFile", Some(authorities), problems)?.filter(|_| verify),
        identity: certificate.zip(key),
    })
}

/// `{bus}`, an address as D-Bus writes it.
fn bus(node: &Node, problems: &mut Problems<'_>) -> Option<String> {
    let all = Fields::of(node, "systemd", &["bus"], problems)?;
    let Some(node) = all.get("bus") else {
        return Some(SYSTEM_BUS.to_owned());
    };
    let text = fields::filled(node, "systemd.bus", problems)?;
    if !text.starts_with("unix:path=/") {
        let text = format!("`{text}` in `systemd.bus` is no address of a bus");
        problems.error_with(
            node.at,
            text,
            "write it as `unix:path=/run/dbus/system_bus_socket`",
        );
        return None;
    }
    Some(text.to_owned())
}

/// `{directory, maxAge, keys: {NAME: FILE}}`.
fn image(node: &Node, folder: &Path, problems: &mut Problems<'_>) -> Option<ImageEvidence> {
    let all = Fields::of(node, "image", &["directory", "maxAge", "keys"], problems)?;
    let directory = super::path(&all, "directory", "evidence", folder, problems)?;
    let max_age = super::duration(&all, "maxAge", MAX_AGE, problems)?;
    let mut keys = BTreeMap::new();
    if let Some(node) = all.get("keys") {
        let Value::Map(entries) = &node.value else {
            problems.error_with(
                node.at,
                "`image.keys` must be a map of names to files",
                "`keys: {release: release.pub}`",
            );
            return None;
        };
        for entry in entries {
            if !fields::is_object_name(&entry.key) {
                let text = format!("`{}` in `image.keys` is no name of a key", entry.key);
                let hint = "lower-case letters, digits and `-`, as in names of Kubernetes";
                problems.error_with(entry.at, text, hint);
            }
            let file = fields::filled(&entry.node, "image.keys", problems)?;
            keys.insert(entry.key.clone(), folder.join(file));
        }
        if keys.len() > MAX_KEYS {
            let text = format!("`image.keys` has more than {MAX_KEYS} keys");
            problems.error(node.at, text);
        }
    }
    Some(ImageEvidence {
        directory,
        max_age,
        keys,
    })
}

/// Of images that are scanned each day one scan may fail.
const MAX_AGE: Duration = Duration::from_secs(48 * 3600);

/// Each signature is tried with each.
const MAX_KEYS: usize = 32;

const KUBELET: &str = "https://127.0.0.1:10250";

const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";

const DOCKER_SOCKET: &str = "/var/run/docker.sock";
