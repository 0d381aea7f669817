//! `agent.yaml`: what was written, and what it means.

mod attestors;
mod bound;
mod federation;
mod kubernetes;

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use postern_policies::{
    Diagnostic,
    diagnostic::Problems,
    yaml::{
        Fields, Node, fields, read_one,
        walls::{self, Walls},
    },
};
use postern_spiffe::TrustDomain;

pub use attestors::{Attestors, ImageEvidence, Kubelet};

use self::bound::Bound;
use crate::{
    authority::{Lifetimes, Upstream},
    federation::Peer,
    kubernetes::Server,
    publish::Publication,
    registry::Folder,
};

/// Everything that an agent needs to know. All paths are absolute or relative to the caller.
#[derive(Debug, Clone)]
pub struct Config {
    /// The trust domain that the agent speaks for.
    pub trust_domain: TrustDomain,
    /// Where the authority's keys lie.
    pub state: PathBuf,
    /// The Workload API's socket.
    pub workload_api: PathBuf,
    /// How long a connection to it may have nothing open.
    pub workload_api_idle: Duration,
    /// How often all processes of a user may call it in a second, where it answers once.
    pub calls_of_user: u32,
    /// Whom the agent has to see.
    pub sees: Sees,
    /// The admin socket.
    pub admin: PathBuf,
    /// Where health and metrics are told.
    pub health: SocketAddr,
    /// The folder of Workload documents.
    pub workloads: Folder,
    /// What proxies are told of policies.
    pub policies: Option<ToldPolicies>,
    /// The API server that tells pods and policies, if one does.
    pub kubernetes: Option<Server>,
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
    /// How many events of processes may wait to be judged.
    pub waiting_events: usize,
    /// The trust domains whose bundles Workloads may have beside their own.
    pub federation: Vec<Peer>,
    /// What is published for others.
    pub publication: Option<Publication>,
    /// An authority above ours.
    pub upstream: Option<Upstream>,
    /// What the agent puts around itself.
    pub walls: Walls,
}

/// The PID namespace whose processes call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// The machine's, which has all the others in it.
    Host,
    /// The agent's own, whichever it is.
    Own,
}

/// The policies that proxies are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldPolicies {
    /// The folder of policy documents.
    pub directory: PathBuf,
    /// The namespace of documents that name none.
    pub namespace: String,
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
    let known = ["socket", "idleTimeout", "callsOfUser", "pidNamespace"];
    let api = section(&all, "workloadApi", &known, problems);
    let workload_api = socket(api.as_ref(), "workloadApi", DEFAULT_SOCKET, problems);
    let idle = idle_timeout(api.as_ref(), problems);
    let calls_of_user = CALLS_OF_USER.read(api.as_ref(), problems);
    let sees = sees(api.as_ref(), problems);
    let admin = section(&all, "admin", &["socket"], problems);
    let admin = socket(admin.as_ref(), "admin", DEFAULT_ADMIN_SOCKET, problems);
    let health = section(&all, "health", &["listen"], problems).map_or_else(
        || Some(DEFAULT_HEALTH),
        |section| match section.get("listen") {
            Some(node) => fields::socket_address(node, "health.listen", problems),
            None => Some(DEFAULT_HEALTH),
        },
    );
    let workloads = match section(&all, "workloads", &["directory"], problems) {
        Some(section) => {
            path(&section, "directory", "workloads", folder, problems).map(Folder::named)
        }
        None => Some(Folder::by_default(folder.join("workloads"))),
    };
    let attestors = attestors::read(&all, folder, problems);
    let (lifetimes, upstream) = lifetimes(&all, folder, problems)?;
    let reattest = match section(&all, "reattest", &["every"], problems) {
        Some(section) => duration(&section, "every", Duration::from_secs(5), problems),
        None => Some(Duration::from_secs(5)),
    };
    let policies = match section(&all, "policies", &["directory", "namespace"], problems) {
        Some(section) => {
            section.required("directory", "policies", problems);
            let namespace = section.text("namespace", problems).unwrap_or("default");
            Some(ToldPolicies {
                directory: path(&section, "directory", "policies", folder, problems)?,
                namespace: namespace.to_owned(),
            })
        }
        None => None,
    };
    let states_pods = attestors
        .as_ref()
        .is_none_or(|all| all.kubernetes.is_some());
    let kubernetes = match all.get("kubernetes") {
        Some(node) => Some(kubernetes::read(node, states_pods, folder, problems)?),
        None => None,
    };
    let drift = section(&all, "drift", &["waitingEvents"], problems);
    let waiting_events = WAITING_EVENTS.read(drift.as_ref(), problems);
    let federation = federation::read(&all, trust_domain.as_ref(), folder, problems);
    let publication = federation::publication(&all, trust_domain.as_ref(), folder, problems);
    let walls = walls(&all, folder, problems);
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
        workload_api_idle: idle?,
        calls_of_user: calls_of_user?,
        sees: sees?,
        admin,
        health: health?,
        workloads: workloads?,
        policies,
        kubernetes,
        attestors: attestors?,
        ca_ttl: lifetimes.root,
        svid_ttl: lifetimes.svid,
        jwt_ttl: lifetimes.jwt,
        reattest: reattest?,
        waiting_events: usize::try_from(waiting_events?).ok()?,
        federation: federation?,
        publication: publication?,
        upstream,
        walls: walls?,
    })
}

fn walls(all: &Fields<'_>, folder: &Path, problems: &mut Problems<'_>) -> Option<Walls> {
    let walls = walls::read(all, folder, problems)?;
    if let (Some(true), Some(node)) = (walls.landlock, all.get("walls")) {
        problems.error_with(
            node.at,
            "`walls.landlock` cannot be on for an agent: who is fenced in looks into no other process",
            "leave it out",
        );
    }
    Some(walls)
}

fn lifetimes(
    all: &Fields<'_>,
    folder: &Path,
    problems: &mut Problems<'_>,
) -> Option<(Lifetimes, Option<Upstream>)> {
    let mut lifetimes = Lifetimes {
        root: Duration::from_secs(24 * 3600),
        svid: Duration::from_secs(3600),
        jwt: Duration::from_secs(5 * 60),
    };
    let Some(section) = section(all, "authority", &AUTHORITY, problems) else {
        return Some((lifetimes, None));
    };
    lifetimes.root = duration(&section, "caTTL", lifetimes.root, problems)?;
    lifetimes.svid = duration(&section, "svidTTL", lifetimes.svid, problems)?;
    lifetimes.jwt = duration(&section, "jwtTTL", lifetimes.jwt, problems)?;
    for (name, life) in [("svidTTL", lifetimes.svid), ("jwtTTL", lifetimes.jwt)] {
        if life < SHORTEST_LIFE {
            problems.error_with(
                section.at,
                format!(
                    "`authority.{name}` is shorter than {} seconds",
                    SHORTEST_LIFE.as_secs()
                ),
                "certificates count in seconds, and half of the life is for renewing",
            );
        }
    }
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
    Some((lifetimes, upstream(&section, folder, problems)?))
}

/// `upstream: {certificate, key, bundle}`.
fn upstream(
    authority: &Fields<'_>,
    folder: &Path,
    problems: &mut Problems<'_>,
) -> Option<Option<Upstream>> {
    let known = ["certificate", "key", "bundle"];
    let Some(section) = section(authority, "upstream", &known, problems) else {
        return Some(None);
    };
    let file = |name: &str, problems: &mut Problems<'_>| {
        let node = section.required(name, "authority.upstream", problems)?;
        Some(folder.join(fields::filled(node, name, problems)?))
    };
    let (certificate, key) = (file("certificate", problems), file("key", problems));
    let bundle = match section.get("bundle") {
        Some(_) => Some(file("bundle", problems)?),
        None => None,
    };
    Some(Some(Upstream {
        certificate: certificate?,
        key: key?,
        bundle,
    }))
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
    section: Option<&Fields<'_>>,
    name: &str,
    default: &str,
    problems: &mut Problems<'_>,
) -> Option<PathBuf> {
    let Some(node) = section.and_then(|section| section.get("socket")) else {
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

/// `{idleTimeout: 5m}`.
fn idle_timeout(section: Option<&Fields<'_>>, problems: &mut Problems<'_>) -> Option<Duration> {
    let Some(node) = section.and_then(|section| section.get("idleTimeout")) else {
        return Some(DEFAULT_IDLE);
    };
    let idle = fields::duration(node, "idleTimeout", problems)?;
    if !IDLE.contains(&idle) {
        problems.error_with(
            node.at,
            "`workloadApi.idleTimeout` is shorter than a second or longer than a day",
            "clients connect again by themselves; `5m` is the default",
        );
        return None;
    }
    Some(idle)
}

/// `{pidNamespace: host}`.
fn sees(section: Option<&Fields<'_>>, problems: &mut Problems<'_>) -> Option<Sees> {
    let Some(node) = section.and_then(|section| section.get("pidNamespace")) else {
        return Some(Sees::Host);
    };
    match fields::filled(node, "pidNamespace", problems)? {
        "host" => Some(Sees::Host),
        "own" => Some(Sees::Own),
        _ => {
            problems.error_with(
                node.at,
                "`workloadApi.pidNamespace` is neither `host` nor `own`",
                "`host` is the default; `own` is for an agent that shares a container with all that call it",
            );
            None
        }
    }
}

/// What a machine does in some seconds.
const WAITING_EVENTS: Bound = Bound {
    section: "drift",
    name: "waitingEvents",
    default: 8_192,
    range: 16..=262_144,
    why: "each takes a kibibyte of the kernel's memory",
};

/// More tokens a second than the apps of a node need that keep them while they last.
const CALLS_OF_USER: Bound = Bound {
    section: "workloadApi",
    name: "callsOfUser",
    default: 1_000,
    range: 1..=1_000_000,
    why: "a signature takes some microseconds of a processor",
};

const DEFAULT_SOCKET: &str = "/run/postern/agent.sock";
const DEFAULT_ADMIN_SOCKET: &str = "/run/postern/admin/admin.sock";

const DEFAULT_IDLE: Duration = Duration::from_secs(5 * 60);
const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

const KEYS: [&str; 14] = [
    "walls",
    "trustDomain",
    "stateDir",
    "workloadApi",
    "admin",
    "health",
    "workloads",
    "policies",
    "kubernetes",
    "attestors",
    "authority",
    "reattest",
    "drift",
    "federation",
];

/// The shortest life of an SVID, as in Workload documents.
const SHORTEST_LIFE: Duration = Duration::from_secs(2);

const AUTHORITY: [&str; 4] = ["caTTL", "svidTTL", "jwtTTL", "upstream"];

const DEFAULT_HEALTH: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15021);

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::{Config, Folder, Sees};

    fn read(text: &str) -> Result<Config, Vec<String>> {
        Config::read(Path::new("/etc/postern/agent.yaml"), text.as_bytes())
            .map_err(|found| found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn one_line_is_enough() {
        let config = read("trustDomain: example.org\n").unwrap();
        let workloads = Folder::by_default("/etc/postern/workloads".into());
        assert_eq!(config.workloads, workloads);
        assert_eq!(config.workload_api, Path::new("/run/postern/agent.sock"));
        assert_eq!(config.svid_ttl, Duration::from_secs(3600));
        assert_eq!(config.workload_api_idle, Duration::from_secs(300));
        let config = read("trustDomain: a\nworkloadApi: {idleTimeout: 1s}\n").unwrap();
        assert_eq!(config.workload_api_idle, Duration::from_secs(1));
        assert_eq!(config.workload_api, Path::new("/run/postern/agent.sock"));
        let config = read("trustDomain: example.org\n").unwrap();
        assert_eq!(config.waiting_events, 8_192);
        for (number, is_good) in [("16", true), ("15", false), ("-1", false), ("many", false)] {
            let text = format!("trustDomain: a\ndrift: {{waitingEvents: {number}}}\n");
            assert_eq!(read(&text).is_ok(), is_good, "{number}");
        }
        assert_eq!((config.calls_of_user, config.sees), (1_000, Sees::Host));
        let text = "trustDomain: a\nworkloadApi: {callsOfUser: 1, pidNamespace: own}\n";
        let config = read(text).unwrap();
        assert_eq!((config.calls_of_user, config.sees), (1, Sees::Own));
        assert!(config.attestors.unix && config.attestors.posture);
        assert_eq!(config.attestors.image, None);
        let text = "trustDomain: a\nattestors: {k8s: {}, image: {keys: {release: r.pub}}}\n";
        let image = read(text).unwrap().attestors.image.unwrap();
        assert_eq!(image.directory, Path::new("/etc/postern/evidence"));
        assert_eq!(image.max_age, Duration::from_secs(48 * 3600));
        assert_eq!(image.keys["release"], Path::new("/etc/postern/r.pub"));
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
        for idle in ["999ms", "25h", "0s", "5"] {
            refused(
                &format!("trustDomain: a\nworkloadApi: {{idleTimeout: {idle}}}"),
                &["idleTimeout`"],
            );
        }
        for (key, value) in [
            ("callsOfUser", "0"),
            ("callsOfUser", "1000001"),
            ("callsOfUser", "many"),
            ("pidNamespace", "any"),
        ] {
            refused(
                &format!("trustDomain: a\nworkloadApi: {{{key}: {value}}}"),
                &[&format!("`workloadApi.{key}` is ")],
            );
        }
        refused(
            "trustDomain: a\nattestors: {k8s: {kubelet: 'http://127.0.0.1:10250'}}",
            &["is no address of a kubelet"],
        );
        refused(
            "trustDomain: a\nattestors: {k8s: {kubelet: 'https://10.0.0.1:10250', verify: false}}",
            &["for a kubelet at an address of this machine alone"],
        );
        refused(
            "trustDomain: a\nattestors: {k8s: {kubelet: 'https://127.0.0.1.evil:10250', verify: false}}",
            &["for a kubelet at an address of this machine alone"],
        );
        refused(
            "trustDomain: a\nattestors: {k8s: {key: k}}",
            &["come together"],
        );
        refused(
            "trustDomain: a\nattestors: {systemd: {bus: /run/dbus/system_bus_socket}}",
            &["is no address of a bus"],
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
        for (image, said) in [
            ("image: {}", "nobody who tells which image"),
            ("image: {}, unix: {}", "nobody who tells which image"),
            ("docker: {}, image: {maxAge: 0s}", "is no duration"),
            ("docker: {}, image: {maxAge: 7}", "`maxAge` needs a unit"),
            ("docker: {}, image: {keys: [a.pub]}", "must be a map"),
            (
                "docker: {}, image: {keys: {'a b': a.pub}}",
                "no name of a key",
            ),
            ("docker: {}, image: {keys: {a: ''}}", "`image.keys`"),
            ("docker: {}, image: {folder: x}", "unknown field `folder`"),
        ] {
            refused(&format!("trustDomain: a\nattestors: {{{image}}}"), &[said]);
        }
        for (peer, said) in [
            ("{name: b}", "needs `bundleFile` or `url`"),
            ("{name: a, bundleFile: f}", "is the own trust domain"),
            ("{name: B, bundleFile: f}", "`name`"),
            (
                "{name: b, url: 'http://b/', profile: https_web}",
                "is no https URL",
            ),
            (
                "{name: b, url: 'https://u@b/', profile: https_web}",
                "is no https URL",
            ),
            ("{name: b, url: 'https://b/'}", "needs `profile`"),
            (
                "{name: b, url: 'https://b/', profile: web}",
                "is no profile",
            ),
            (
                "{name: b, url: 'https://b/', profile: https_spiffe}",
                "needs `endpointSPIFFEID`",
            ),
            (
                "{name: b, url: 'https://b/', profile: https_spiffe, endpointSPIFFEID: 'spiffe://c/x', bundleFile: f}",
                "`c` is not among `federation.trustDomains`",
            ),
            (
                "{name: b, url: 'https://b/', profile: https_spiffe, endpointSPIFFEID: 'spiffe://b/x'}",
                "needs `bundleFile`",
            ),
            (
                "{name: b, bundleFile: f, profile: https_web}",
                "says nothing without `url`",
            ),
        ] {
            let text = format!("trustDomain: a\nfederation: {{trustDomains: [{peer}]}}");
            refused(&text, &[said]);
        }
        for (kubernetes, said) in [
            (
                "{server: 'http://127.0.0.1:6443'}",
                "is no address of an API server",
            ),
            (
                "{server: 'https://u@host'}",
                "is no address of an API server",
            ),
            ("{selectors: ['unix:uid:0']}", "has `{uid}`, nor is there"),
            ("{selectors: ['k8s:pod-uid:{id}']}", "is none of"),
            ("{}", "need the attestor `k8s`"),
            (
                "{selectors: ['unix:path:/{namespace}/{pod}'], maxObjects: 0}",
                "`kubernetes.maxObjects`",
            ),
            ("{token: x}", "unknown field `token`"),
        ] {
            refused(
                &format!("trustDomain: a\nkubernetes: {kubernetes}"),
                &[said],
            );
        }
        refused(
            "trustDomain: a\npolicies: {}",
            &["policies needs `directory`"],
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
