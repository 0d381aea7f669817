//! `proxy.yaml`: what was written, and what it means.

pub mod delivery;
mod describe;
mod drain;
mod inbound;
mod limits;
mod otlp;
mod outbound;
mod sources;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use postern_policies::{
    Diagnostic,
    diagnostic::Problems,
    model::workload::WorkloadName,
    normalize::PathNormalization,
    yaml::{
        Fields, Node, fields, read_one,
        walls::{self, Walls},
    },
};

pub use self::{
    drain::Drain,
    inbound::{Forward, Inbound, Protocol},
    limits::Patience,
    otlp::Otlp,
    outbound::{Listener, Outbound, ToPort},
    sources::{DocumentSource, IdentitySource, PolicySources},
};

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
    /// How it ends.
    pub drain: Drain,
    /// Where spans are sent, if anywhere.
    pub otlp: Option<Otlp>,
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
    /// What the proxy puts around itself.
    pub walls: Walls,
}

/// How the keys that sign tokens are fetched.
#[derive(Debug, Clone)]
pub struct TokenKeys {
    /// Authorities in PEM for https, in place of the system's.
    pub authorities: Option<PathBuf>,
    /// How old fetched keys become before they are fetched again.
    pub refresh: Duration,
}

impl Config {
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
    let identity = sources::identity(&all, folder, endpoint, problems);
    let workload = match all.get("workload") {
        Some(node) => workload_name(node, "workload", problems).map(Some),
        None => Some(None),
    };
    let policies = sources::policies(&all, folder, identity.as_ref(), problems);
    let inbound = inbound::inbound(&all, problems);
    let outbound = outbound::outbound(&all, problems);
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
        Some(node) => drain::drain(node, problems),
        None => Some(Drain::default()),
    };
    let otlp = match all.get("telemetry") {
        Some(node) => otlp::telemetry(node, problems),
        None => Some(None),
    };
    let token_keys = token_keys(&all, folder, problems);
    let reason_header = flag(&all, "debug", "reasonHeader", problems);
    let allow_dumpable = flag(&all, "harden", "insecureAllowDumpable", problems);
    let probe = probe(&all, problems);
    let walls = walls::read(&all, folder, problems);
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
        otlp: otlp?,
        paths: paths?,
        token_keys: token_keys?,
        reason_header: reason_header?,
        allow_dumpable: allow_dumpable?,
        probe: probe?,
        walls: walls?,
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

const KEYS: [&str; 19] = [
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
    "telemetry",
    "pathNormalization",
    "tokenKeys",
    "debug",
    "harden",
    "interception",
    "walls",
];

/// As often as Istio fetches keys anew.
const KEYS_REFRESH: Duration = Duration::from_secs(20 * 60);

const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15020);
#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::{Config, DocumentSource, Drain, Forward, Patience};

    const SMALLEST: &str = "policies: {directory: p}\ninbound: {forward: '127.0.0.1:8080'}\n";

    fn read(text: &str) -> Result<Config, Vec<String>> {
        Config::read(Path::new("/etc/postern/proxy.yaml"), text.as_bytes(), None)
            .map_err(|found| found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_smallest_file_has_istios_ports() {
        let config = read(SMALLEST).unwrap();
        assert_eq!(config.inbound.listen.port(), 15006);
        assert_eq!(config.inbound.protocol, None);
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
        let body = Duration::from_secs(2);
        let usual = Patience::default();
        assert_eq!(config.inbound.patience, Patience { body, ..usual });
        let hour = Duration::from_secs(3600);
        assert_eq!(config.inbound.idle_timeout, hour);
        let config = read(&with("idleTimeout: 2s")).unwrap();
        assert_eq!(config.inbound.idle_timeout, body);
        refused(&with("idleTimeout: 0s"), &["is no duration"]);
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
    fn the_end_has_a_deadline_and_may_have_a_delay() {
        let read_drain = |text: &str| read(&format!("{SMALLEST}{text}")).unwrap().drain;
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        for (text, delay, deadline) in [
            ("", s(1), s(30)),
            ("drain: 2s", ms(500), s(2)),
            ("drain: {deadline: 2s}", ms(500), s(2)),
            ("drain: {delay: 15s}", s(15), s(30)),
            ("drain: {delay: 0s, deadline: 1m}", s(0), s(60)),
        ] {
            assert_eq!(read_drain(text), Drain { delay, deadline }, "{text}");
        }
        let refused = |text: &str, expected| refused(&format!("{SMALLEST}{text}"), &[expected]);
        refused("drain: {delay: 16s}", "is waited for twice");
        refused("drain: {delay: 5}", "`drain.delay` needs a unit");
        refused("drain: {deadline: 0s}", "is no duration");
        refused("drain: {dealy: 1s}", "did you mean `delay`?");
    }

    #[test]
    fn a_collector_of_traces_is_read() {
        let with = |text: &str| format!("{SMALLEST}telemetry: {{otlp: {{{text}}}}}");
        let endpoint = "endpoint: 'http://127.0.0.1:4317'";
        let more = format!("{endpoint}, sample: 0.25, serviceName: shop");
        let otlp = read(&with(&more)).unwrap().otlp.unwrap();
        assert_eq!(otlp.endpoint, "http://127.0.0.1:4317/");
        assert_eq!(
            (otlp.sample, otlp.service_name.as_deref()),
            (0.25, Some("shop"))
        );
        let otlp = read(&with(endpoint)).unwrap().otlp.unwrap();
        assert_eq!((otlp.sample, otlp.service_name), (0.01, None));
        let whole = format!("{endpoint}, sample: 1");
        assert_eq!(read(&with(&whole)).unwrap().otlp.unwrap().sample, 1.0);
        assert_eq!(read(SMALLEST).unwrap().otlp, None);
        for (text, told) in [
            ("sample: 1", "needs `endpoint`"),
            ("endpoint: 'https://a:4317'", "is no address of a collector"),
            ("endpoint: '127.0.0.1:4317'", "is no address of a collector"),
            (
                "endpoint: 'http://127.0.0.1'",
                "is no address of a collector",
            ),
            (
                "endpoint: 'http://a:4317/v1/traces'",
                "is no address of a collector",
            ),
            ("endpoint: 'http://a:1', sample: 1.5", "is no share"),
            ("endpoint: 'http://a:1', sample: -0.5", "is no share"),
            ("endpoint: 'http://a:1', sample: '1%'", "is no share"),
            (
                "endpoint: 'http://a:1', servicename: a",
                "did you mean `serviceName`?",
            ),
        ] {
            refused(&with(text), &[told]);
        }
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
        refused(
            &with("walls: {landlock: perhaps}"),
            &["`walls.landlock` must be `on` or `off`"],
        );
        refused(&with("walls: {secomp: on}"), &["did you mean `seccomp`?"]);
        refused(&with("defaults: open"), &["`open` is no default"]);
        refused(
            &with("outbound: {listeners: [{listen: '127.0.0.1:1', to: a/b}]}"),
            &["needs `port`"],
        );
    }
}
