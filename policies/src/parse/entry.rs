//! Reads registration entries as SPIRE writes them: `{"entries": […]}`.
//!
//! Both spellings are taken: that of `entry create -data` and that of `entry show -output json`, in
//! which 64-bit numbers are texts and a SPIFFE ID is an object. An entry becomes a Workload without
//! labels, so policies know it by its identity alone.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use postern_spiffe::{Selector, SpiffeId};

use super::workload::{SHORTEST_LIFE, dns_name, hint, own_identity, parsed_list, trust_domain};
use crate::{
    diagnostic::Problems,
    model::{
        Meta,
        workload::{OnDrift, Workload, WorkloadName},
    },
    set::Options,
    yaml::{Fields, Node, Value, fields},
};

/// Is this a file of entries?
pub(super) fn is_list(node: &Node) -> bool {
    match &node.value {
        Value::Map(entries) => {
            let has = |name: &str| entries.iter().any(|entry| entry.key == name);
            has("entries") && !has("kind")
        }
        _ => false,
    }
}

pub(super) fn read(
    node: &Node,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Vec<(Meta, Workload)> {
    let known = ["entries", "next_page_token"];
    let Some(list) = Fields::of(node, "a file of entries", &known, problems) else {
        return Vec::new();
    };
    let entries = list.list("entries", problems).iter();
    entries
        .filter_map(|node| entry(node, options, problems))
        .collect()
}

fn entry(node: &Node, options: &Options, problems: &mut Problems<'_>) -> Option<(Meta, Workload)> {
    let all = Fields::of(node, "an entry", &ENTRY, problems)?;
    for name in ["admin", "downstream", "store_svid"] {
        if let Some(node) = all.get(name)
            && fields::boolean(node, name, problems)?
        {
            problems.error(node.at, format!("`{name}` is not supported"));
            return None;
        }
    }
    // Under which node it stands: here there is one.
    if let Some(parent) = all.get("parent_id") {
        id(parent, "parent_id", problems)?;
    }
    let spiffe_id = all.required("spiffe_id", "an entry", problems)?;
    let spiffe_id = own_identity(
        &id(spiffe_id, "spiffe_id", problems)?,
        spiffe_id,
        "spiffe_id",
        &options.trust_domain,
        problems,
    )?;
    let selectors = selectors(&all, problems)?;
    let name = name(&all, &spiffe_id, &selectors, problems)?;
    let namespace = spiffe_id.service_account();
    let namespace = namespace.map_or(options.namespace.as_str(), |(namespace, _)| namespace);
    let ttl = match all.get("x509_svid_ttl") {
        Some(_) => seconds(&all, "x509_svid_ttl", problems)?,
        None => seconds(&all, "ttl", problems)?,
    };
    let created = seconds(&all, "created_at", problems)?;
    let meta = Meta {
        namespace: namespace.to_owned(),
        full_name: Arc::from(format!("{namespace}/{name}")),
        name: name.clone(),
        created: None,
        file: problems.file().clone(),
        at: node.at,
    };
    let lists = |name: &str| match all.get(name).map(|node| &node.value) {
        // SPIRE prints lists that are empty.
        Some(Value::List(items)) => !items.is_empty(),
        other => other.is_some(),
    };
    let federates_with = match lists("federates_with") {
        true => parsed_list(&all, "federates_with", problems, trust_domain)?,
        false => Vec::new(),
    };
    let dns_names = match lists("dns_names") {
        true => parsed_list(&all, "dns_names", problems, dns_name)?,
        false => Vec::new(),
    };
    let is_empty = |node: &Node| matches!(&node.value, Value::Text(text) if text.is_empty());
    let workload = Workload {
        name: WorkloadName {
            namespace: Arc::from(namespace),
            name: Arc::from(name),
        },
        labels: Default::default(),
        service_account: None,
        selectors,
        hint: match all.get("hint") {
            Some(node) if is_empty(node) => None,
            _ => hint(&all, problems)?,
        },
        svid_ttl: life(&all, ttl, problems)?,
        jwt_ttl: life(&all, seconds(&all, "jwt_svid_ttl", problems)?, problems)?,
        expires: expires(&all, problems)?,
        created: created.map(|at| UNIX_EPOCH + Duration::from_secs(at)),
        dns_names,
        ports: Vec::new(),
        addresses: Vec::new(),
        federates_with,
        on_drift: OnDrift::Alert,
        baseline: None,
        spiffe_id,
    };
    Some((meta, workload))
}

/// A lifetime that leaves time to renew.
fn life(
    entry: &Fields<'_>,
    seconds: Option<u64>,
    problems: &mut Problems<'_>,
) -> Option<Option<Duration>> {
    let life = seconds.map(Duration::from_secs);
    if life.is_some_and(|life| life < SHORTEST_LIFE) {
        let text = format!(
            "an SVID must live for {} seconds at least",
            SHORTEST_LIFE.as_secs()
        );
        problems.error(entry.at, text);
        return None;
    }
    Some(life)
}

/// `entry-ID`, or what an entry without one is: its identity and its selectors.
fn name(
    all: &Fields<'_>,
    spiffe_id: &SpiffeId,
    selectors: &[Selector],
    problems: &mut Problems<'_>,
) -> Option<String> {
    let Some(node) = all.get("entry_id").or_else(|| all.get("id")) else {
        let selectors = selectors.iter().map(ToString::to_string);
        let all = std::iter::once(spiffe_id.to_string()).chain(selectors);
        return Some(format!(
            "entry-{:016x}",
            hash(&all.collect::<Vec<_>>().join("\n"))
        ));
    };
    let text = fields::filled(node, "id", problems)?;
    let name = format!("entry-{}", text.to_ascii_lowercase().replace('_', "-"));
    if !fields::is_object_name(&name) {
        problems.error(node.at, format!("`{text}` is no ID of an entry"));
        return None;
    }
    Some(name)
}

/// FNV-1a, 64 bits: the same in every version of this program.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// `spiffe://domain/path`, or `{"trust_domain": …, "path": …}`.
fn id(node: &Node, what: &str, problems: &mut Problems<'_>) -> Option<String> {
    if !matches!(node.value, Value::Map(_)) {
        return fields::filled(node, what, problems).map(str::to_owned);
    }
    let parts = Fields::of(node, what, &["trust_domain", "path"], problems)?;
    let domain = parts.required("trust_domain", what, problems)?;
    let domain = fields::filled(domain, "trust_domain", problems)?;
    Some(format!(
        "spiffe://{domain}{}",
        parts.text("path", problems).unwrap_or_default()
    ))
}

/// `[{"type": "unix", "value": "uid:1000"}]`, or texts as on the command line. At least one: without
/// any the entry would match everyone.
fn selectors(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Vec<Selector>> {
    let node = all.required("selectors", "an entry", problems)?;
    let items = fields::list(node, "selectors", problems)?;
    if items.is_empty() {
        problems.error(
            node.at,
            "an entry needs a selector: without any it would match everyone",
        );
        return None;
    }
    let read = items.iter().map(|item| {
        let text = match &item.value {
            Value::Map(_) => {
                let parts = Fields::of(item, "a selector", &["type", "value"], problems)?;
                let mut part = |name: &str| {
                    let node = parts.required(name, "a selector", problems)?;
                    fields::filled(node, name, problems)
                };
                let (kind, value) = (part("type"), part("value"));
                format!("{}:{}", kind?, value?)
            }
            _ => fields::filled(item, "selectors", problems)?.to_owned(),
        };
        Selector::parse(&text)
            .map_err(|error| problems.error(item.at, format!("`{text}` in `selectors`: {error}")))
            .ok()
    });
    read.collect::<Vec<_>>().into_iter().collect()
}

/// A number of seconds, as a number or as a text; zero says nothing.
fn seconds(all: &Fields<'_>, name: &str, problems: &mut Problems<'_>) -> Option<Option<u64>> {
    let Some(node) = all.get(name) else {
        return Some(None);
    };
    let number = match &node.value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::Text(text) => text.parse().ok(),
        _ => None,
    };
    // A thousand years: what is longer is a slip.
    match number.filter(|&number| number <= 1_000 * 366 * 86_400) {
        Some(number) => Some((number > 0).then_some(number)),
        None => {
            problems.error(
                node.at,
                format!("`{name}` must be a whole number of seconds"),
            );
            None
        }
    }
}

fn expires(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Option<SystemTime>> {
    let at = seconds(all, "expires_at", problems)?;
    let older = seconds(all, "entryExpiry", problems)?;
    Some(at.or(older).map(|at| UNIX_EPOCH + Duration::from_secs(at)))
}

const ENTRY: [&str; 20] = [
    "id",
    "entry_id",
    "spiffe_id",
    "parent_id",
    "selectors",
    "ttl",
    "x509_svid_ttl",
    "jwt_svid_ttl",
    "federates_with",
    "dns_names",
    "hint",
    "admin",
    "downstream",
    "store_svid",
    "expires_at",
    "entryExpiry",
    "created_at",
    "revision_number",
    // What SPIRE prepares before anybody asks, and an ID in tokens: both harmless to leave undone.
    "disable_x509_svid_prefetch",
    "jwt_svid_include_jti",
];
