//! Reads Workload documents.

use std::{sync::Arc, time::Duration};

use postern_spiffe::{Selector, SpiffeId, TrustDomain};

use super::{baseline, metadata, network_policy::protocol};
use crate::{
    decide::Protocol,
    diagnostic::Problems,
    model::{
        Meta,
        declared::Declared,
        workload::{Workload, WorkloadName, WorkloadPort},
    },
    set::Options,
    yaml::{Fields, Node, Value, fields},
};

pub(crate) fn read(
    node: &Node,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<(Meta, Workload)> {
    let known = ["apiVersion", "kind", "metadata", "spec"];
    let document = Fields::of(node, "Workload", &known, problems)?;
    let (meta, head) = metadata(node.at, &document, options, problems)?;
    let labels = match head.get("labels") {
        Some(node) => fields::labels(node, "labels", problems)?,
        None => Default::default(),
    };
    let spec = document.required("spec", "Workload", problems)?;
    let spec = Fields::of(spec, "spec", &SPEC, problems)?;
    refuse_unsupported(&spec, problems)?;
    let (spiffe_id, service_account) = identity(&spec, &meta, options, problems)?;
    let workload = Workload {
        name: WorkloadName {
            namespace: Arc::from(meta.namespace.as_str()),
            name: Arc::from(meta.name.as_str()),
        },
        labels,
        spiffe_id,
        service_account,
        selectors: parsed_list(&spec, "selectors", problems, |text| {
            Selector::parse(text).map_err(|error| error.to_string())
        })?,
        hint: hint(&spec, problems)?,
        svid_ttl: lifetime(&spec, "svidTTL", problems)?,
        jwt_ttl: lifetime(&spec, "jwtTTL", problems)?,
        expires: None,
        created: None,
        dns_names: parsed_list(&spec, "dnsNames", problems, dns_name)?,
        ports: ports(&spec, problems)?,
        addresses: parsed_list(&spec, "addresses", problems, |text| {
            if text.parse::<std::net::IpAddr>().is_ok() {
                Ok(text.to_owned())
            } else {
                dns_name(text)
            }
        })?,
        federates_with: parsed_list(&spec, "federatesWith", problems, trust_domain)?,
        on_drift: baseline::on_drift(&spec, problems)?,
        baseline: match spec.get("baseline") {
            Some(node) => Some(baseline::read(node, options, problems)?),
            None => None,
        },
    };
    Some((meta, workload))
}

/// Flags that change what an identity may do, and that nothing here would honour.
fn refuse_unsupported(spec: &Fields<'_>, problems: &mut Problems<'_>) -> Option<()> {
    for name in ["admin", "downstream"] {
        if let Some(node) = spec.get(name)
            && !matches!(node.value, Value::Bool(false))
        {
            problems.error(node.at, format!("`{name}` is not supported yet"));
            return None;
        }
    }
    Some(())
}

/// From `spiffeID`, or from the namespace and `serviceAccount`.
fn identity(
    spec: &Fields<'_>,
    meta: &Meta,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<(SpiffeId, Option<String>)> {
    let own = &options.trust_domain;
    match (spec.get("spiffeID"), spec.get("serviceAccount")) {
        (Some(node), None) => {
            let text = fields::filled(node, "spiffeID", problems)?;
            Some((own_identity(text, node, "spiffeID", own, problems)?, None))
        }
        (None, Some(node)) => {
            let account = fields::filled(node, "serviceAccount", problems)?;
            match SpiffeId::for_service_account(own, &meta.namespace, account) {
                Ok(id) => Some((id, Some(account.to_owned()))),
                Err(error) => {
                    problems.error(node.at, format!("`serviceAccount` is not valid: {error}"));
                    None
                }
            }
        }
        (Some(node), Some(_)) => {
            problems.error(
                node.at,
                "`spiffeID` and `serviceAccount` exclude each other",
            );
            None
        }
        (None, None) => {
            problems.error(spec.at, "spec needs `serviceAccount` or `spiffeID`");
            None
        }
    }
}

/// A workload of the own trust domain.
pub(super) fn own_identity(
    text: &str,
    node: &Node,
    what: &str,
    own: &TrustDomain,
    problems: &mut Problems<'_>,
) -> Option<SpiffeId> {
    let id = match SpiffeId::parse(text) {
        Ok(id) => id,
        Err(error) => {
            problems.error(node.at, format!("`{what}` is not valid: {error}"));
            return None;
        }
    };
    if id.path().is_empty() {
        problems.error(
            node.at,
            format!("`{what}` needs a path: a workload is not its trust domain"),
        );
        return None;
    }
    if id.trust_domain() != own {
        let hint = format!("the trust domain here is `{own}`");
        problems.error_with(
            node.at,
            format!("`{what}` is of trust domain `{}`", id.trust_domain()),
            hint,
        );
        return None;
    }
    let first = id.path().split('/').nth(1).unwrap_or_default();
    if RESERVED.contains(&first) {
        problems.error(
            node.at,
            format!("`{what}` begins with `/{first}/`, which is kept for the mesh's own servers"),
        );
        return None;
    }
    Some(id)
}

/// A lifetime that leaves time to renew.
fn lifetime(
    spec: &Fields<'_>,
    name: &str,
    problems: &mut Problems<'_>,
) -> Option<Option<Duration>> {
    let Some(node) = spec.get(name) else {
        return Some(None);
    };
    let life = fields::duration(node, name, problems)?;
    if life < SHORTEST_LIFE {
        let text = format!(
            "`{name}` is shorter than {} seconds",
            SHORTEST_LIFE.as_secs()
        );
        let hint = "certificates count in seconds, and half of the life is for renewing";
        problems.error_with(node.at, text, hint);
        return None;
    }
    Some(Some(life))
}

/// By its name, or as the start of a SPIFFE ID.
pub(super) fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text.strip_prefix("spiffe://").unwrap_or(text))
        .map_err(|error| error.to_string())
}

pub(super) fn hint(spec: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Option<String>> {
    let Some(node) = spec.get("hint") else {
        return Some(None);
    };
    let text = fields::filled(node, "hint", problems)?;
    if text.len() > MAX_HINT_BYTES {
        problems.error(
            node.at,
            format!("`hint` has more than {MAX_HINT_BYTES} bytes"),
        );
        return None;
    }
    Some(Some(text.to_owned()))
}

/// A list of texts that mean something. An empty list is a mistake: it looks like a restriction
/// and is none.
pub(super) fn parsed_list<T>(
    spec: &Fields<'_>,
    name: &str,
    problems: &mut Problems<'_>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let Some(node) = spec.get(name) else {
        return Some(Vec::new());
    };
    let items = fields::list(node, name, problems)?;
    if items.is_empty() {
        problems.error_with(
            node.at,
            format!("`{name}` must not be empty"),
            "leave it out instead",
        );
        return None;
    }
    let read: Vec<Option<T>> = items
        .iter()
        .map(|item| {
            let text = fields::filled(item, name, problems)?;
            match parse(text) {
                Ok(parsed) => Some(parsed),
                Err(problem) => {
                    problems.error(item.at, format!("`{text}` in `{name}`: {problem}"));
                    None
                }
            }
        })
        .collect();
    read.into_iter().collect()
}

pub(super) fn dns_name(text: &str) -> Result<String, String> {
    let good_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    if text.len() <= 253 && text.split('.').all(good_label) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("this is no address and no DNS name".into())
    }
}

fn ports(spec: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Vec<WorkloadPort>> {
    let read: Vec<Option<WorkloadPort>> = spec
        .list("ports", problems)
        .iter()
        .map(|node| {
            let fields = Fields::of(node, "a port", &PORT, problems)?;
            let number = fields.required("port", "a port", problems)?;
            let number = fields::port(number, "port", problems)?;
            let name = match fields.get("name") {
                Some(node) => Some(fields::filled(node, "name", problems)?.to_owned()),
                None => None,
            };
            let protocol = match fields.get("protocol") {
                Some(node) => fields::text(node, "protocol", problems)
                    .and_then(|text| protocol(text, node, problems))?,
                None => Protocol::Tcp,
            };
            let app_protocol = match fields.get("appProtocol") {
                Some(node) => Some(app_protocol(node, problems)?.to_owned()),
                None => None,
            };
            Some(WorkloadPort {
                name,
                port: number,
                protocol,
                app_protocol,
            })
        })
        .collect();
    read.into_iter().collect()
}

/// Spec: Kubernetes, `ServicePort.appProtocol`: a name of a service from IANA's list, or one with a prefix.
fn app_protocol<'n>(node: &'n Node, problems: &mut Problems<'_>) -> Option<&'n str> {
    let said = fields::filled(node, "appProtocol", problems)?;
    let is_inside = |one: u8| one.is_ascii_alphanumeric() || b"-_.".contains(&one);
    let (prefix, name) = said
        .split_once('/')
        .map_or((None, said), |(prefix, name)| (Some(prefix), name));
    let is_name = |text: &str, most: usize| {
        let ends = [text.bytes().next(), text.bytes().next_back()];
        text.len() <= most
            && text.bytes().all(is_inside)
            && ends
                .iter()
                .all(|end| end.is_some_and(|end| end.is_ascii_alphanumeric()))
    };
    if !is_name(name, 63) || prefix.is_some_and(|prefix| !is_name(prefix, 253)) {
        let hint = "such as `http`, `grpc` or `kubernetes.io/h2c`";
        problems.error_with(
            node.at,
            format!("`appProtocol` `{}` is no name of a protocol", cut(said)),
            hint,
        );
        return None;
    }
    if Declared::by_app_protocol(said).is_none() {
        problems.warn(
            node.at,
            format!("`appProtocol` `{said}` is not known: what is spoken there is found out by the first bytes, whatever the port's name says"),
            format!("known are {}", APP_PROTOCOLS.join(", ")),
        );
    }
    Some(said)
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

const PORT: [&str; 4] = ["name", "port", "protocol", "appProtocol"];

const APP_PROTOCOLS: [&str; 13] = [
    "http",
    "http2",
    "grpc",
    "grpc-web",
    "https",
    "tls",
    "tcp",
    "mysql",
    "redis",
    "mongo",
    "kubernetes.io/h2c",
    "kubernetes.io/ws",
    "kubernetes.io/wss",
];

const SPEC: [&str; 14] = [
    "serviceAccount",
    "spiffeID",
    "hint",
    "selectors",
    "svidTTL",
    "jwtTTL",
    "dnsNames",
    "ports",
    "addresses",
    "federatesWith",
    "onDrift",
    "baseline",
    "admin",
    "downstream",
];

/// The first segments of paths that no Workload has: those of SPIRE's servers and agents, and ours.
const RESERVED: [&str; 2] = ["spire", "postern"];

/// The shortest life of an SVID.
pub(super) const SHORTEST_LIFE: Duration = Duration::from_secs(2);

/// Spec: SPIFFE Workload API section 5.2.1.
const MAX_HINT_BYTES: usize = 1024;
