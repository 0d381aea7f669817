//! `proxy.yaml`: what was written, and what it means.

pub mod delivery;
mod limits;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use postern_policies::{
    Defaults, Diagnostic,
    decide::Verdict,
    diagnostic::Problems,
    model::workload::WorkloadName,
    normalize::PathNormalization,
    yaml::{Fields, Node, Value, fields, read_one},
};

pub use self::limits::Patience;

/// Everything that a proxy needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where its identity comes from.
    pub identity: IdentitySource,
    /// The Workload that it stands for; found by its SPIFFE ID if none is named.
    pub workload: Option<WorkloadName>,
    /// Where policies and Workloads come from.
    pub policies: PolicySources,
    /// The road in.
    pub inbound: Inbound,
    /// The road out.
    pub outbound: Outbound,
    /// Where it can be looked into; loopback.
    pub admin: SocketAddr,
    /// Where metrics and health are told.
    pub metrics: SocketAddr,
    /// Where the access log goes.
    pub access_log: PathBuf,
    /// How long open connections may take to end.
    pub drain: Duration,
    /// How paths are brought into one spelling.
    pub paths: PathNormalization,
    /// How the keys that sign tokens are fetched.
    pub token_keys: TokenKeys,
    /// Tell callers the reason of a refusal.
    pub reason_header: bool,
    /// Let processes of the same user look into this one.
    pub allow_dumpable: bool,
    /// Prove that traffic is redirected before saying that all is ready.
    pub probe: bool,
}

/// How the keys that sign tokens are fetched.
#[derive(Debug, Clone)]
pub struct TokenKeys {
    /// Authorities in PEM for https, in place of the system's.
    pub authorities: Option<PathBuf>,
    /// How old fetched keys become before they are fetched again.
    pub refresh: Duration,
}

/// Where an identity comes from.
#[derive(Debug, Clone)]
pub enum IdentitySource {
    /// A SPIFFE Workload API.
    WorkloadApi(PathBuf),
    /// Files in PEM, watched.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The leaf's key.
        key: PathBuf,
        /// The authorities of the own trust domain.
        bundle: PathBuf,
    },
}

/// Where policies and Workloads come from.
#[derive(Debug, Clone)]
pub struct PolicySources {
    /// The policies.
    pub policies: DocumentSource,
    /// Workloads and Namespaces, if they come from elsewhere.
    pub workloads: Option<DocumentSource>,
    /// The agent's socket, where it is one of the two.
    pub agent: Option<PathBuf>,
    /// The namespace of documents that name none.
    pub namespace: String,
    /// The namespace whose Istio policies hold everywhere.
    pub root_namespace: String,
    /// What holds where no policy speaks.
    pub defaults: Defaults,
}

/// Where documents come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentSource {
    /// A folder, watched.
    Directory(PathBuf),
    /// The agent tells them.
    Agent,
}

/// The road in.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Where callers arrive.
    pub listen: SocketAddr,
    /// Where the app is.
    pub forward: Forward,
    /// What is spoken.
    pub protocol: Protocol,
    /// How long a caller may take to prove who it is.
    pub handshake_timeout: Duration,
    /// A request may switch to WebSocket.
    pub websocket: bool,
    /// How long a caller of HTTP may stand still.
    pub patience: Patience,
}

/// Where the app is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// Here.
    To(SocketAddr),
    /// Where the caller wanted to go before it was redirected.
    OriginalDestination,
    /// Where the caller wanted to go; its connection is handed over as it is (TPROXY).
    Transparent,
}

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Found out by ALPN or the first bytes.
    Auto,
    /// HTTP of either version.
    Http,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Anything, unread.
    Tcp,
}

/// The road out.
#[derive(Debug, Clone, Default)]
pub struct Outbound {
    /// Where redirected connections arrive.
    pub listen: Option<SocketAddr>,
    /// Explicit ways to one Workload each.
    pub listeners: Vec<Listener>,
    /// How traffic is delivered.
    pub delivery: delivery::Delivery,
}

/// An explicit way to one Workload.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Where the app connects.
    pub listen: SocketAddr,
    /// The Workload.
    pub to: WorkloadName,
    /// Its port.
    pub port: ToPort,
}

/// A port of a Workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToPort {
    /// By number.
    Number(u16),
    /// By the name that the Workload gives it.
    Name(String),
}

impl Config {
    /// Where the proxy itself listens.
    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let explicit = self.outbound.listeners.iter().map(|one| one.listen);
        // Redirected connections have a listener on the loopback of both versions.
        let redirected = self.outbound.listen.into_iter().flat_map(|listen| {
            let twin = SocketAddr::from((Ipv6Addr::LOCALHOST, listen.port()));
            [listen, twin]
        });
        [self.inbound.listen, self.admin, self.metrics]
            .into_iter()
            .chain(redirected)
            .chain(explicit)
    }

    /// Reads a configuration. Relative paths are relative to the file; `endpoint` is the socket
    /// that the environment names.
    ///
    /// # Errors
    /// Every mistake of the file; callers exit with 64.
    pub fn read(path: &Path, text: &[u8], endpoint: Option<&str>) -> Result<Self, Vec<Diagnostic>> {
        let folder = path.parent().unwrap_or(Path::new("."));
        read_one(path, text, |node, problems| {
            config(node, folder, endpoint, problems)
        })
    }
}

fn path_normalization(node: &Node, problems: &mut Problems<'_>) -> Option<PathNormalization> {
    let name = fields::text(node, "pathNormalization", problems)?;
    let known = PathNormalization::parse(name);
    if known.is_none() {
        let hint = "`BASE`, `MERGE_SLASHES` or `DECODE_AND_MERGE_SLASHES`";
        problems.error_with(node.at, format!("`{name}` is no path normalization"), hint);
    }
    known
}

fn config(
    node: &Node,
    folder: &Path,
    endpoint: Option<&str>,
    problems: &mut Problems<'_>,
) -> Option<Config> {
    let all = Fields::of(node, "proxy.yaml", &KEYS, problems)?;
    let identity = identity(&all, folder, endpoint, problems);
    let workload = match all.get("workload") {
        Some(node) => workload_name(node, "workload", problems).map(Some),
        None => Some(None),
    };
    let policies = policies(&all, folder, identity.as_ref(), problems);
    let inbound = inbound(&all, problems);
    let outbound = outbound(&all, problems);
    let admin = listen(&all, "admin", ADMIN, problems);
    let metrics = listen(&all, "metrics", METRICS, problems);
    if let (Some(address), Some(node)) = (admin, all.get("admin"))
        && !address.ip().is_loopback()
    {
        let message = "`admin.listen` must be a loopback address: it tells what is going on here";
        problems.error(node.at, message);
    }
    let access_log = access_log(&all, folder, problems);
    let paths = match all.get("pathNormalization") {
        Some(node) => path_normalization(node, problems),
        None => Some(PathNormalization::default()),
    };
    let drain = match all.get("drain") {
        Some(node) => fields::duration(node, "drain", problems),
        None => Some(Duration::from_secs(30)),
    };
    let token_keys = token_keys(&all, folder, problems);
    let reason_header = flag(&all, "debug", "reasonHeader", problems);
    let allow_dumpable = flag(&all, "harden", "insecureAllowDumpable", problems);
    let probe = probe(&all, problems);
    Some(Config {
        identity: identity?,
        workload: workload?,
        policies: policies?,
        inbound: inbound?,
        outbound: outbound?,
        admin: admin?,
        metrics: metrics?,
        access_log: access_log?,
        drain: drain?,
        paths: paths?,
        token_keys: token_keys?,
        reason_header: reason_header?,
        allow_dumpable: allow_dumpable?,
        probe: probe?,
    })
}

fn identity(
    all: &Fields<'_>,
    folder: &Path,
    endpoint: Option<&str>,
    problems: &mut Problems<'_>,
) -> Option<IdentitySource> {
    let socket = |text: &str| {
        text.strip_prefix("unix://")
            .filter(|path| path.starts_with('/'))
            .map(PathBuf::from)
    };
    let section = match all.get("identity") {
        Some(node) => Some(Fields::of(
            node,
            "identity",
            &["workloadApi", "files"],
            problems,
        )?),
        None => None,
    };
    let (api, files) = section.map_or((None, None), |section| {
        (section.get("workloadApi"), section.get("files"))
    });
    match (api, files) {
        (Some(node), Some(_)) => {
            problems.error(node.at, "`identity` is `workloadApi` or `files`, not both");
            None
        }
        (Some(node), None) => {
            let text = fields::filled(node, "identity.workloadApi", problems)?;
            let path = socket(text);
            if path.is_none() {
                let hint = "write it as `unix:///run/postern/agent.sock`";
                problems.error_with(
                    node.at,
                    format!("`{text}` is no address of a Unix socket"),
                    hint,
                );
            }
            path.map(IdentitySource::WorkloadApi)
        }
        (None, Some(node)) => {
            let files = Fields::of(node, "files", &["certificate", "key", "bundle"], problems)?;
            let mut path = |name| {
                let node = files.required(name, "identity.files", problems)?;
                fields::filled(node, name, problems).map(|text| folder.join(text))
            };
            let (certificate, key, bundle) = (path("certificate"), path("key"), path("bundle"));
            Some(IdentitySource::Files {
                certificate: certificate?,
                key: key?,
                bundle: bundle?,
            })
        }
        (None, None) => {
            match endpoint {
                None => Some(IdentitySource::WorkloadApi(PathBuf::from(AGENT_SOCKET))),
                Some(text) => match socket(text) {
                    Some(path) => Some(IdentitySource::WorkloadApi(path)),
                    None => {
                        problems.error(
                        all.at,
                        format!("SPIFFE_ENDPOINT_SOCKET is `{text}`, which is no Unix socket's address"),
                    );
                        None
                    }
                },
            }
        }
    }
}

fn policies(
    all: &Fields<'_>,
    folder: &Path,
    identity: Option<&IdentitySource>,
    problems: &mut Problems<'_>,
) -> Option<PolicySources> {
    let mut namespace = "default".to_owned();
    let agent = match identity {
        Some(IdentitySource::WorkloadApi(socket)) => Some(socket.clone()),
        _ => None,
    };
    let mut source = |name: &str, problems: &mut Problems<'_>| -> Option<Option<DocumentSource>> {
        let Some(node) = all.get(name) else {
            return Some(None);
        };
        let section = Fields::of(node, name, &["directory", "agent", "namespace"], problems)?;
        if let Some(node) = section.get("agent") {
            Fields::of(node, "agent", &[], problems)?;
            if section.get("directory").is_some() {
                problems.error(
                    node.at,
                    format!("`{name}` is `directory` or `agent`, not both"),
                );
                return None;
            }
            if agent.is_none() {
                let hint = "the agent tells only those who have their identity from it";
                let text = format!("`{name}.agent` needs `identity.workloadApi`");
                problems.error_with(node.at, text, hint);
                return None;
            }
            return Some(Some(DocumentSource::Agent));
        }
        if let Some(node) = section.get("namespace") {
            namespace = fields::filled(node, "namespace", problems)?.to_owned();
        }
        let node = section.required("directory", name, problems)?;
        let text = fields::filled(node, "directory", problems)?;
        Some(Some(DocumentSource::Directory(folder.join(text))))
    };
    let policies = source("policies", problems)?;
    let workloads = source("workloads", problems)?;
    let (policies, workloads) = match (policies, workloads, &agent) {
        (Some(policies), workloads, _) => (policies, workloads),
        // The default with an agent: it tells both.
        (None, workloads, Some(_)) => (
            DocumentSource::Agent,
            workloads.or(Some(DocumentSource::Agent)),
        ),
        (None, ..) => {
            let hint = "`policies: {directory: policies/}`";
            problems.error_with(
                all.at,
                "proxy.yaml needs `policies`: without any, all is denied",
                hint,
            );
            return None;
        }
    };
    let asks = [Some(&policies), workloads.as_ref()].contains(&Some(&DocumentSource::Agent));
    let root_namespace = match all.get("rootNamespace") {
        Some(node) => fields::filled(node, "rootNamespace", problems)?.to_owned(),
        None => "istio-system".to_owned(),
    };
    let defaults = defaults(all, problems)?;
    Some(PolicySources {
        policies,
        workloads,
        agent: agent.filter(|_| asks),
        namespace,
        root_namespace,
        defaults,
    })
}

/// `strict`, `istio`, or each by itself.
fn defaults(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Defaults> {
    let Some(node) = all.get("defaults") else {
        return Some(Defaults::STRICT);
    };
    if let Value::Text(text) = &node.value {
        return match text.as_str() {
            "strict" => Some(Defaults::STRICT),
            "istio" => Some(Defaults::ISTIO),
            other => {
                let hint = "`strict`, `istio` or `{network: deny, authorization: allow}`";
                problems.error_with(node.at, format!("`{other}` is no default"), hint);
                None
            }
        };
    }
    let section = Fields::of(node, "defaults", &["network", "authorization"], problems)?;
    let mut verdict = |name| match section.get(name) {
        None => Some(Verdict::Deny),
        Some(node) => match fields::text(node, name, problems)? {
            "allow" => Some(Verdict::Allow),
            "deny" => Some(Verdict::Deny),
            other => {
                problems.error(node.at, format!("`{other}` is neither `allow` nor `deny`"));
                None
            }
        },
    };
    Some(Defaults {
        network: verdict("network")?,
        authorization: verdict("authorization")?,
    })
}

fn inbound(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Inbound> {
    let node = all.required("inbound", "proxy.yaml", problems)?;
    let known = [
        "listen",
        "forward",
        "protocol",
        "handshakeTimeout",
        "upgrades",
        "limits",
    ];
    let section = Fields::of(node, "inbound", &known, problems)?;
    let listen = match section.get("listen") {
        Some(node) => fields::socket_address(node, "inbound.listen", problems),
        None => Some(INBOUND),
    };
    let forward = section
        .required("forward", "inbound", problems)
        .and_then(
            |node| match fields::text(node, "inbound.forward", problems)? {
                "original-destination" => Some(Forward::OriginalDestination),
                "transparent" => Some(Forward::Transparent),
                _ => fields::socket_address(node, "inbound.forward", problems).map(Forward::To),
            },
        );
    let protocol = match section.get("protocol") {
        Some(node) => protocol(node, problems),
        None => Some(Protocol::Auto),
    };
    let handshake_timeout = match section.get("handshakeTimeout") {
        Some(node) => fields::duration(node, "handshakeTimeout", problems),
        None => Some(Duration::from_secs(10)),
    };
    let websocket = match section.get("upgrades") {
        Some(node) => upgrades(node, problems),
        None => Some(true),
    };
    let patience = match section.get("limits") {
        Some(node) => limits::patience(node, problems),
        None => Some(Patience::default()),
    };
    Some(Inbound {
        listen: listen?,
        forward: forward?,
        protocol: protocol?,
        handshake_timeout: handshake_timeout?,
        websocket: websocket?,
        patience: patience?,
    })
}

/// The protocols that a request may switch to: `[websocket]` or `[]`.
fn upgrades(node: &Node, problems: &mut Problems<'_>) -> Option<bool> {
    let names = fields::list(node, "inbound.upgrades", problems)?;
    for name in names {
        let text = fields::text(name, "inbound.upgrades", problems)?;
        if text != "websocket" {
            let hint = "`[websocket]`, or `[]` for none";
            problems.error_with(name.at, format!("`{text}` is no known upgrade"), hint);
            return None;
        }
    }
    Some(!names.is_empty())
}

fn protocol(node: &Node, problems: &mut Problems<'_>) -> Option<Protocol> {
    match fields::text(node, "protocol", problems)? {
        "auto" => Some(Protocol::Auto),
        "http" => Some(Protocol::Http),
        "http1" => Some(Protocol::Http1),
        "http2" => Some(Protocol::Http2),
        "tcp" => Some(Protocol::Tcp),
        other => {
            let hint = "`auto`, `http`, `http1`, `http2` or `tcp`";
            problems.error_with(node.at, format!("`{other}` is no protocol"), hint);
            None
        }
    }
}

fn outbound(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Outbound> {
    let Some(node) = all.get("outbound") else {
        return Some(Outbound::default());
    };
    let known: Vec<&str> = [&["listen", "listeners"], &delivery::KEYS[..]].concat();
    let section = Fields::of(node, "outbound", &known, problems)?;
    let delivery = delivery::delivery(&section, problems);
    let listen = match section.get("listen") {
        Some(node) => Some(fields::socket_address(node, "outbound.listen", problems)?),
        None => None,
    };
    let listeners: Vec<Option<Listener>> = section
        .list("listeners", problems)
        .iter()
        .map(|node| {
            let one = Fields::of(node, "a listener", &["listen", "to", "port"], problems)?;
            let listen = one.required("listen", "a listener", problems)?;
            let to = one.required("to", "a listener", problems)?;
            let port = one.required("port", "a listener", problems)?;
            Some(Listener {
                listen: fields::socket_address(listen, "listen", problems)?,
                to: workload_name(to, "to", problems)?,
                port: match &port.value {
                    Value::Text(name) => ToPort::Name(name.clone()),
                    _ => ToPort::Number(fields::port(port, "port", problems)?),
                },
            })
        })
        .collect();
    Some(Outbound {
        listen,
        listeners: listeners.into_iter().collect::<Option<_>>()?,
        delivery: delivery?,
    })
}

fn workload_name(node: &Node, what: &str, problems: &mut Problems<'_>) -> Option<WorkloadName> {
    let text = fields::filled(node, what, problems)?;
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Some(WorkloadName {
                namespace: Arc::from(namespace),
                name: Arc::from(name),
            })
        }
        _ => {
            let hint = "write it as `namespace/name`";
            problems.error_with(
                node.at,
                format!("`{text}` in `{what}` is no Workload"),
                hint,
            );
            None
        }
    }
}

fn listen(
    all: &Fields<'_>,
    name: &str,
    default: SocketAddr,
    problems: &mut Problems<'_>,
) -> Option<SocketAddr> {
    let Some(node) = all.get(name) else {
        return Some(default);
    };
    let section = Fields::of(node, name, &["listen"], problems)?;
    match section.get("listen") {
        Some(node) => fields::socket_address(node, &format!("{name}.listen"), problems),
        None => Some(default),
    }
}

fn access_log(all: &Fields<'_>, folder: &Path, problems: &mut Problems<'_>) -> Option<PathBuf> {
    let Some(node) = all.get("accessLog") else {
        return Some(PathBuf::from("/dev/stdout"));
    };
    let section = Fields::of(node, "accessLog", &["format", "path"], problems)?;
    if let Some(node) = section.get("format")
        && fields::text(node, "accessLog.format", problems)? != "json"
    {
        problems.error_with(node.at, "the access log has one format", "`format: json`");
        return None;
    }
    match section.get("path") {
        Some(node) => {
            fields::filled(node, "accessLog.path", problems).map(|text| folder.join(text))
        }
        None => Some(PathBuf::from("/dev/stdout")),
    }
}

/// A switch of a section that is off unless it is switched on.
fn flag(all: &Fields<'_>, section: &str, name: &str, problems: &mut Problems<'_>) -> Option<bool> {
    let Some(node) = all.get(section) else {
        return Some(false);
    };
    let fields = Fields::of(node, section, &[name], problems)?;
    match fields.get(name) {
        Some(node) => fields::boolean(node, name, problems),
        None => Some(false),
    }
}

/// `interception.probe`, which is on unless it is switched off.
fn probe(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<bool> {
    let Some(node) = all.get("interception") else {
        return Some(true);
    };
    let section = Fields::of(node, "interception", &["probe"], problems)?;
    match section.get("probe") {
        Some(node) => fields::boolean(node, "interception.probe", problems),
        None => Some(true),
    }
}

fn token_keys(all: &Fields<'_>, folder: &Path, problems: &mut Problems<'_>) -> Option<TokenKeys> {
    let mut keys = TokenKeys {
        authorities: None,
        refresh: KEYS_REFRESH,
    };
    let Some(node) = all.get("tokenKeys") else {
        return Some(keys);
    };
    let section = Fields::of(node, "tokenKeys", &["caFile", "refresh"], problems)?;
    if let Some(node) = section.get("caFile") {
        let text = fields::filled(node, "tokenKeys.caFile", problems)?;
        keys.authorities = Some(folder.join(text));
    }
    if let Some(node) = section.get("refresh") {
        keys.refresh = fields::duration(node, "tokenKeys.refresh", problems)?;
    }
    Some(keys)
}

const KEYS: [&str; 17] = [
    "identity",
    "workload",
    "policies",
    "workloads",
    "defaults",
    "rootNamespace",
    "inbound",
    "outbound",
    "admin",
    "metrics",
    "accessLog",
    "drain",
    "pathNormalization",
    "tokenKeys",
    "debug",
    "harden",
    "interception",
];

/// As often as Istio fetches keys anew.
const KEYS_REFRESH: Duration = Duration::from_secs(20 * 60);

const AGENT_SOCKET: &str = "/run/postern/agent.sock";

const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15020);
const INBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15006);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Config, DocumentSource, Forward, Patience, Protocol};

    const SMALLEST: &str = "policies: {directory: p}\ninbound: {forward: '127.0.0.1:8080'}\n";

    fn read(text: &str) -> Result<Config, Vec<String>> {
        Config::read(Path::new("/etc/postern/proxy.yaml"), text.as_bytes(), None)
            .map_err(|found| found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_smallest_file_has_istios_ports() {
        let config = read(SMALLEST).unwrap();
        assert_eq!(config.inbound.listen.port(), 15006);
        assert_eq!(config.inbound.protocol, Protocol::Auto);
        assert_eq!(
            config.inbound.forward,
            Forward::To("127.0.0.1:8080".parse().unwrap())
        );
        let directory = DocumentSource::Directory("/etc/postern/p".into());
        assert_eq!(config.policies.policies, directory);
        assert!(!config.allow_dumpable && !config.reason_header);
        assert!(config.inbound.websocket);
        assert_eq!(config.inbound.patience, Patience::default());
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
            "policies: {directory: p}\ninbond: {}\ninbound: {forward: 8080, protocol: quic}\ndrain: 5\n",
            &[
                "proxy.yaml:2:1: error: unknown field `inbond` in proxy.yaml (did you mean `inbound`?)",
                "proxy.yaml:3:20",
                "`quic` is no protocol",
                "`drain` needs a unit",
            ],
        );
    }

    #[test]
    fn upgrades_and_limits_are_read() {
        let with = |more: &str| {
            format!("policies: {{directory: p}}\ninbound: {{forward: '127.0.0.1:1', {more}}}")
        };
        let config = read(&with("upgrades: [], limits: {bodyTimeout: 2s}")).unwrap();
        assert!(!config.inbound.websocket);
        let body = std::time::Duration::from_secs(2);
        let usual = Patience::default();
        assert_eq!(config.inbound.patience, Patience { body, ..usual });
        assert!(
            read(&with("upgrades: [websocket]"))
                .unwrap()
                .inbound
                .websocket
        );
        refused(&with("upgrades: [h2c]"), &["`h2c` is no known upgrade"]);
        refused(&with("upgrades: websocket"), &["must be a list"]);
        refused(&with("limits: {bodyTimeout: 0s}"), &["is no duration"]);
        refused(&with("limits: {body: 2s}"), &["unknown field `body`"]);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let with = |more: &str| format!("{SMALLEST}{more}");
        let files = "identity: {files: {certificate: c, key: k, bundle: b}}\n";
        let inbound = "inbound: {forward: '127.0.0.1:1'}";
        refused(&format!("{files}{inbound}"), &["needs `policies`"]);
        refused(
            &format!("{files}policies: {{agent: {{}}}}\n{inbound}"),
            &["needs `identity.workloadApi`"],
        );
        refused(
            &format!("policies: {{agent: {{}}, directory: p}}\n{inbound}"),
            &["not both"],
        );
        refused(
            &with("interception: {probe: perhaps}"),
            &["`interception.probe`"],
        );
        refused(
            &with("admin: {listen: '0.0.0.0:15000'}"),
            &["must be a loopback address"],
        );
        refused(
            &with("identity: {workloadApi: 'tcp://1.2.3.4:5'}"),
            &["no address of a Unix socket"],
        );
        refused(
            &with("identity: {files: {key: k}}"),
            &["needs `certificate`", "needs `bundle`"],
        );
        refused(&with("workload: frontend"), &["is no Workload"]);
        refused(&with("defaults: open"), &["`open` is no default"]);
        refused(
            &with("outbound: {listeners: [{listen: '127.0.0.1:1', to: a/b}]}"),
            &["needs `port`"],
        );
    }
}
