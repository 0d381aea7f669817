//! `agent.yaml`: what was written, and what it means.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use postern_policies::{
    Diagnostic,
    diagnostic::Problems,
    yaml::{Fields, Node, fields, read_one},
};
use postern_spiffe::TrustDomain;

use crate::authority::Lifetimes;

/// Everything that an agent needs to know. All paths are absolute or relative to the caller.
#[derive(Debug, Clone)]
pub struct Config {
    /// The trust domain that the agent speaks for.
    pub trust_domain: TrustDomain,
    /// Where the authority's keys lie.
    pub state: PathBuf,
    /// The Workload API's socket.
    pub workload_api: PathBuf,
    /// The admin socket.
    pub admin: PathBuf,
    /// Where health and metrics are told.
    pub health: SocketAddr,
    /// The folder of Workload documents.
    pub workloads: PathBuf,
    /// Which attestors there are.
    pub attestors: Attestors,
    /// A root's lifetime.
    pub ca_ttl: Duration,
    /// An SVID's lifetime, unless its Workload says otherwise.
    pub svid_ttl: Duration,
    /// A JWT-SVID's lifetime.
    pub jwt_ttl: Duration,
    /// How often callers and pods are looked at again.
    pub reattest: Duration,
}

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
}

impl Config {
    /// Reads a configuration. Relative paths are relative to the file.
    ///
    /// # Errors
    /// Every mistake of the file; callers exit with 64.
    pub fn read(path: &Path, text: &[u8]) -> Result<Self, Vec<Diagnostic>> {
        let folder = path.parent().unwrap_or(Path::new("."));
        read_one(path, text, |node, problems| config(node, folder, problems))
    }
}

fn config(node: &Node, folder: &Path, problems: &mut Problems<'_>) -> Option<Config> {
    let all = Fields::of(node, "agent.yaml", &KEYS, problems)?;
    let trust_domain = all
        .required("trustDomain", "agent.yaml", problems)
        .and_then(|node| {
            let text = fields::filled(node, "trustDomain", problems)?;
            TrustDomain::parse(text)
                .map_err(|error| problems.error(node.at, format!("`trustDomain`: {error}")))
                .ok()
        });
    let state = path(&all, "stateDir", "/var/lib/postern", folder, problems);
    let workload_api = socket(&all, "workloadApi", "/run/postern/agent.sock", problems);
    let admin = socket(&all, "admin", "/run/postern/admin/admin.sock", problems);
    let health = section(&all, "health", &["listen"], problems).map_or_else(
        || Some(DEFAULT_HEALTH),
        |section| match section.get("listen") {
            Some(node) => fields::socket_address(node, "health.listen", problems),
            None => Some(DEFAULT_HEALTH),
        },
    );
    let workloads = match section(&all, "workloads", &["directory"], problems) {
        Some(section) => path(&section, "directory", "workloads", folder, problems),
        None => Some(folder.join("workloads")),
    };
    let attestors = attestors(&all, problems);
    let lifetimes = lifetimes(&all, problems)?;
    let reattest = match section(&all, "reattest", &["every"], problems) {
        Some(section) => duration(&section, "every", Duration::from_secs(5), problems),
        None => Some(Duration::from_secs(5)),
    };
    for name in ["policies", "federation"] {
        if let Some(node) = all.get(name) {
            problems.error(node.at, format!("`{name}` is not supported yet"));
        }
    }
    let (workload_api, admin) = (workload_api?, admin?);
    // Whoever may list Workloads is not whoever may ask for an identity.
    if workload_api.parent() == admin.parent() {
        problems.error_with(
            node.at,
            "`admin.socket` must lie in another folder than `workloadApi.socket`",
            "such as `unix:///run/postern/admin/admin.sock`",
        );
    }
    Some(Config {
        trust_domain: trust_domain?,
        state: state?,
        workload_api,
        admin,
        health: health?,
        workloads: workloads?,
        attestors: attestors?,
        ca_ttl: lifetimes.root,
        svid_ttl: lifetimes.svid,
        jwt_ttl: lifetimes.jwt,
        reattest: reattest?,
    })
}

fn attestors(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Attestors> {
    let Some(node) = all.get("attestors") else {
        return Some(Attestors {
            unix: true,
            posture: true,
            ..Attestors::default()
        });
    };
    let known = ["unix", "posture", "cgroup", "docker", "k8s", "systemd"];
    let section = Fields::of(node, "attestors", &known, problems)?;
    for name in ["k8s", "systemd"] {
        if let Some(node) = section.get(name) {
            problems.error(node.at, format!("attestor `{name}` is not supported yet"));
        }
    }
    for name in ["unix", "posture", "cgroup"] {
        if let Some(node) = section.get(name) {
            Fields::of(node, name, &[], problems)?;
        }
    }
    let docker = match section.get("docker") {
        Some(_) => Some(socket(&section, "docker", DOCKER_SOCKET, problems)?),
        None => None,
    };
    let attestors = Attestors {
        unix: section.get("unix").is_some(),
        posture: section.get("posture").is_some(),
        cgroup: section.get("cgroup").is_some(),
        docker,
    };
    if attestors == Attestors::default() {
        problems.error_with(
            node.at,
            "there is no attestor",
            "`attestors: {unix: {}, posture: {}}`",
        );
    }
    Some(attestors)
}

fn lifetimes(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Lifetimes> {
    let mut lifetimes = Lifetimes {
        root: Duration::from_secs(24 * 3600),
        svid: Duration::from_secs(3600),
        jwt: Duration::from_secs(5 * 60),
    };
    let Some(section) = section(all, "authority", &["caTTL", "svidTTL", "jwtTTL"], problems) else {
        return Some(lifetimes);
    };
    lifetimes.root = duration(&section, "caTTL", lifetimes.root, problems)?;
    lifetimes.svid = duration(&section, "svidTTL", lifetimes.svid, problems)?;
    lifetimes.jwt = duration(&section, "jwtTTL", lifetimes.jwt, problems)?;
    // The next root, and the next key of tokens, begin to sign in the last sixth; what the old ones
    // signed just before must have ended by then.
    for (name, life) in [("svidTTL", lifetimes.svid), ("jwtTTL", lifetimes.jwt)] {
        if lifetimes.root < life * 6 {
            problems.error_with(
                section.at,
                format!("`authority.caTTL` must be at least six times `authority.{name}`"),
                "or SVIDs are cut short at the end of a root",
            );
        }
    }
    Some(lifetimes)
}

/// The fields of a part of the file, if it is there.
fn section<'n>(
    all: &Fields<'n>,
    name: &str,
    known: &[&str],
    problems: &mut Problems<'_>,
) -> Option<Fields<'n>> {
    all.get(name)
        .and_then(|node| Fields::of(node, name, known, problems))
}

fn duration(
    section: &Fields<'_>,
    name: &str,
    default: Duration,
    problems: &mut Problems<'_>,
) -> Option<Duration> {
    match section.get(name) {
        Some(node) => fields::duration(node, name, problems),
        None => Some(default),
    }
}

fn path(
    section: &Fields<'_>,
    name: &str,
    default: &str,
    folder: &Path,
    problems: &mut Problems<'_>,
) -> Option<PathBuf> {
    match section.get(name) {
        Some(node) => fields::filled(node, name, problems).map(|text| folder.join(text)),
        None => Some(folder.join(default)),
    }
}

/// `{socket: unix:///absolute/path}`. Spec: SPIFFE Workload Endpoint section 4.
fn socket(
    all: &Fields<'_>,
    name: &str,
    default: &str,
    problems: &mut Problems<'_>,
) -> Option<PathBuf> {
    let Some(section) = section(all, name, &["socket"], problems) else {
        return Some(PathBuf::from(default));
    };
    let Some(node) = section.get("socket") else {
        return Some(PathBuf::from(default));
    };
    let text = fields::filled(node, "socket", problems)?;
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Some(PathBuf::from(path)),
        _ => {
            problems.error_with(
                node.at,
                format!("`{text}` in `{name}.socket` is no address of a Unix socket"),
                "write it as `unix:///run/postern/agent.sock`",
            );
            None
        }
    }
}

const KEYS: [&str; 11] = [
    "trustDomain",
    "stateDir",
    "workloadApi",
    "admin",
    "health",
    "workloads",
    "policies",
    "attestors",
    "authority",
    "reattest",
    "federation",
];

const DOCKER_SOCKET: &str = "/var/run/docker.sock";

const DEFAULT_HEALTH: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15021);

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::Config;

    fn read(text: &str) -> Result<Config, Vec<String>> {
        Config::read(Path::new("/etc/postern/agent.yaml"), text.as_bytes())
            .map_err(|found| found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn one_line_is_enough() {
        let config = read("trustDomain: example.org\n").unwrap();
        assert_eq!(config.workloads, Path::new("/etc/postern/workloads"));
        assert_eq!(config.workload_api, Path::new("/run/postern/agent.sock"));
        assert_eq!(config.svid_ttl, Duration::from_secs(3600));
        assert!(config.attestors.unix && config.attestors.posture);
    }

    #[track_caller]
    fn refused(text: &str, expected: &[&str]) {
        let found = read(text).unwrap_err();
        for part in expected {
            assert!(
                found.iter().any(|one| one.contains(part)),
                "`{part}` in {found:?}"
            );
        }
    }

    #[test]
    fn every_mistake_is_told_in_one_run_with_its_place() {
        refused(
            "trustDomain: Example.org\nhealth: {listen: 15021}\nreattest: {every: 5}\nstatDir: x\n",
            &[
                "agent.yaml:4:1: error: unknown field `statDir` in agent.yaml (did you mean `stateDir`?)",
                "agent.yaml:1:14",
                "`health.listen`",
                "`every` needs a unit",
            ],
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        refused("{}", &["needs `trustDomain`"]);
        refused("", &["the file is empty"]);
        refused(
            "trustDomain: a\nattestors: {k8s: {}}",
            &["attestor `k8s` is not supported yet"],
        );
        refused(
            "trustDomain: a\nattestors: {docker: {socket: docker.sock}}",
            &["`docker.socket` is no address of a Unix socket"],
        );
        refused(
            "trustDomain: a\nauthority: {caTTL: 20m, svidTTL: 1m, jwtTTL: 5m}",
            &["six times `authority.jwtTTL`"],
        );
        refused("trustDomain: a\nattestors: {}", &["there is no attestor"]);
        refused(
            "trustDomain: a\npolicies: {directory: x}",
            &["`policies` is not supported yet"],
        );
        refused(
            "trustDomain: a\nauthority: {caTTL: 2h, svidTTL: 1h}",
            &["six times"],
        );
        refused(
            "trustDomain: a\nadmin: {socket: 'unix:///run/postern/x.sock'}",
            &["must lie in another folder"],
        );
        refused(
            "trustDomain: a\nworkloadApi: {socket: 'run/x.sock'}",
            &["no address of a Unix socket"],
        );
        refused(
            "trustDomain: a\ntrustDomain: b",
            &["duplicate key `trustDomain`"],
        );
    }
}
