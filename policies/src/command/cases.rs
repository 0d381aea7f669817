//! `*.test.yaml`: what policies are expected to say, in a table beside them.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use postern_policies::{
    Defaults, Diagnostic, Options, SourceFile,
    diagnostic::{Place, Problems},
    normalize::PathNormalization,
    yaml::{Entry, Fields, Node, Value, fields, read_one},
};
use postern_spiffe::TrustDomain;
use serde_json::Map;

use super::{
    parse_defaults,
    query::{Query, QueryDestination, QueryHttp, QuerySource, QueryToken},
};

/// One file of cases.
#[derive(Debug)]
pub(super) struct CaseFile {
    /// Files and folders of documents; the file's own folder unless others are named.
    pub(super) policies: Vec<PathBuf>,
    /// The documents themselves, in the place of `policies`.
    pub(super) documents: Option<String>,
    pub(super) options: Options,
    pub(super) cases: Vec<Case>,
}

/// One line of the table.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) at: Place,
    /// Why it must be so.
    pub(super) because: String,
    /// What stands for `$name` in the documents.
    pub(super) with: BTreeMap<String, String>,
    pub(super) expect: Expected,
}

#[derive(Debug)]
pub(super) enum Expected {
    /// The documents are refused, and this is among what is said.
    Invalid { error: String },
    /// They are taken, and this is warned of.
    Warning { warning: String },
    /// They decide.
    Answer(Box<Answer>),
}

/// A question and what must be true of its answer; what is not named may be anything.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) query: Query,
    pub(super) verdict: String,
    pub(super) stage: Option<String>,
    pub(super) policy: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) line: Option<i64>,
    pub(super) reason: Option<String>,
    pub(super) audit: Option<Vec<String>>,
    pub(super) dry_run: Option<Vec<String>>,
}

/// Reads a file of cases.
///
/// # Errors
/// Every mistake in it.
pub(super) fn read(path: &Path, text: &[u8]) -> Result<CaseFile, Vec<Diagnostic>> {
    let folder = path.parent().unwrap_or(Path::new("."));
    read_one(path, text, |node, problems| file(node, folder, problems))
}

impl Case {
    /// The documents of this case.
    pub(super) fn documents(&self, path: &Path, text: &str) -> SourceFile {
        let mut text = text.to_owned();
        for (name, value) in &self.with {
            text = text.replace(&format!("${name}"), value);
        }
        SourceFile {
            path: path.to_owned(),
            text: text.into_bytes(),
        }
    }
}

fn file(node: &Node, folder: &Path, problems: &mut Problems<'_>) -> Option<CaseFile> {
    let all = Fields::of(node, "a file of cases", &FILE, problems)?;
    let named: Vec<PathBuf> = all
        .list("policies", problems)
        .iter()
        .filter_map(|node| fields::filled(node, "policies", problems))
        .map(|path| folder.join(path))
        .collect();
    let documents = all.text("documents", problems).map(str::to_owned);
    let options = options(&all, problems)?;
    let common = entries(all.get("ask"), "ask", problems)?;
    let cases = all
        .list("cases", problems)
        .iter()
        .filter_map(|node| case(node, common, problems))
        .collect();
    Some(CaseFile {
        policies: match named.is_empty() {
            true => vec![folder.to_owned()],
            false => named,
        },
        documents,
        options,
        cases,
    })
}

fn options(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Options> {
    let local = TrustDomain::parse("cluster.local").ok()?;
    let Some(node) = all.get("options") else {
        return Some(Options::new(local));
    };
    let read = Fields::of(node, "options", &OPTIONS, problems)?;
    let mut options = Options::new(local);
    let domain = |node: &Node, name: &str, problems: &mut Problems<'_>| {
        let text = fields::filled(node, name, problems)?;
        TrustDomain::parse(text)
            .map_err(|error| problems.error(node.at, error.to_string()))
            .ok()
    };
    if let Some(node) = read.get("trustDomain") {
        options.trust_domain = domain(node, "trustDomain", problems)?;
    }
    for node in read.list("trustDomainAliases", problems) {
        let alias = domain(node, "trustDomainAliases", problems)?;
        options.trust_domain_aliases.push(alias);
    }
    if let Some(text) = read.text("namespace", problems) {
        options.namespace = text.to_owned();
    }
    if let Some(text) = read.text("rootNamespace", problems) {
        options.root_namespace = text.to_owned();
    }
    options.defaults = match read.get("defaults") {
        None => Defaults::STRICT,
        Some(node) => parse_defaults(fields::text(node, "defaults", problems)?)
            .map_err(|error| problems.error(node.at, error))
            .ok()?,
    };
    if let Some(node) = read.get("pathNormalization") {
        let name = fields::text(node, "pathNormalization", problems)?;
        let Some(how) = PathNormalization::parse(name) else {
            problems.error(node.at, format!("`{name}` is no path normalization"));
            return None;
        };
        options.paths = how;
    }
    Some(options)
}

fn case(node: &Node, common: &[Entry], problems: &mut Problems<'_>) -> Option<Case> {
    let read = Fields::of(node, "a case", &CASE, problems)?;
    let because = read.required("because", "a case", problems)?;
    let because = fields::filled(because, "because", problems)?.to_owned();
    let mut with = BTreeMap::new();
    for entry in entries(read.get("with"), "with", problems)? {
        let value = match &entry.node.value {
            Value::Text(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Bool(value) => value.to_string(),
            _ => {
                problems.error(entry.node.at, "a value of `with` must be a text");
                return None;
            }
        };
        with.insert(entry.key.clone(), value);
    }
    let expect = read.required("expect", "a case", problems)?;
    let expect = match fields::text(expect, "expect", problems)? {
        "invalid" => Expected::Invalid {
            error: read.text("error", problems).unwrap_or_default().to_owned(),
        },
        "warning" => Expected::Warning {
            warning: read.text("error", problems).unwrap_or_default().to_owned(),
        },
        verdict @ ("allow" | "deny") => Expected::Answer(Box::new(Answer {
            query: ask(common, entries(read.get("ask"), "ask", problems)?, problems)?,
            verdict: verdict.to_owned(),
            stage: read.text("stage", problems).map(str::to_owned),
            policy: read.text("policy", problems).map(str::to_owned),
            kind: read.text("kind", problems).map(str::to_owned),
            line: read.get("line").and_then(|node| match node.value {
                Value::Integer(line) => Some(line),
                _ => None,
            }),
            reason: read.text("reason", problems).map(str::to_owned),
            audit: names(&read, "audit", problems),
            dry_run: names(&read, "dryRun", problems),
        })),
        other => {
            problems.error_with(
                node.at,
                format!("`{other}` is nothing that can be expected"),
                "`allow`, `deny`, `invalid` or `warning`",
            );
            return None;
        }
    };
    Some(Case {
        at: node.at,
        because,
        with,
        expect,
    })
}

fn names(read: &Fields<'_>, name: &str, problems: &mut Problems<'_>) -> Option<Vec<String>> {
    let items = fields::list(read.get(name)?, name, problems)?;
    let texts = items.iter().map(|node| fields::text(node, name, problems));
    texts.map(|text| text.map(str::to_owned)).collect()
}

/// The question: what all cases have in common, and what this one says instead. A null takes away.
fn ask(common: &[Entry], own: &[Entry], problems: &mut Problems<'_>) -> Option<Query> {
    let mut all: Vec<Entry> = common
        .iter()
        .filter(|entry| own.iter().all(|other| other.key != entry.key))
        .cloned()
        .collect();
    all.extend_from_slice(own);
    let node = Node {
        at: own.first().map(|entry| entry.at).unwrap_or_default(),
        value: Value::Map(all),
    };
    let read = Fields::of(&node, "ask", &ASK, problems)?;
    let text =
        |name: &str, problems: &mut Problems<'_>| read.text(name, problems).map(str::to_owned);
    let address = |name: &str, problems: &mut Problems<'_>| -> Option<Option<IpAddr>> {
        let Some(node) = read.get(name) else {
            return Some(None);
        };
        let text = fields::text(node, name, problems)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            problems.error(node.at, format!("`{text}` is no address"));
        }
        parsed.map(Some)
    };
    let plaintext = match read.get("plaintext") {
        Some(node) => fields::boolean(node, "plaintext", problems)?,
        None => false,
    };
    let labels = match read.get("fromLabels") {
        Some(node) => Some(fields::labels(node, "fromLabels", problems)?),
        None => None,
    };
    let identity = text("from", problems);
    let (method, path) = (text("method", problems), text("path", problems));
    let http = (method.is_some() || path.is_some()).then(|| QueryHttp {
        method: method.or_else(|| Some("GET".into())),
        path: path.or_else(|| Some("/".into())),
        host: text("host", problems),
        headers: read.get("headers").map(headers),
    });
    Some(Query {
        direction: text("direction", problems),
        mtls: Some(!plaintext && identity.is_some()),
        source: Some(QuerySource {
            identity,
            ip: address("fromIp", problems)?,
            namespace: text("fromNamespace", problems),
            labels,
        }),
        destination: Some(QueryDestination {
            workload: text("to", problems),
            ip: address("toIp", problems)?,
            port: match read.get("port") {
                Some(node) => Some(fields::port(node, "port", problems)?),
                None => None,
            },
            protocol: text("protocol", problems),
        }),
        http,
        jwt: match read.get("jwt") {
            Some(node) => Some(token(node, problems)?),
            None => None,
        },
        sni: text("sni", problems),
        ..Query::default()
    })
}

fn token(node: &Node, problems: &mut Problems<'_>) -> Option<QueryToken> {
    let read = Fields::of(node, "jwt", &["issuer", "claims"], problems)?;
    let claims = match read.get("claims").map(json) {
        Some(serde_json::Value::Object(claims)) => claims,
        _ => Map::new(),
    };
    Some(QueryToken {
        issuer: read.text("issuer", problems).map(str::to_owned),
        claims: Some(claims),
    })
}

/// A name to one value or to several.
fn headers(node: &Node) -> BTreeMap<String, Vec<String>> {
    let text = |node: &Node| match json(node) {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    let Value::Map(entries) = &node.value else {
        return BTreeMap::new();
    };
    let values = |entry: &Entry| match &entry.node.value {
        Value::List(items) => items.iter().map(text).collect(),
        _ => vec![text(&entry.node)],
    };
    entries
        .iter()
        .map(|entry| (entry.key.clone(), values(entry)))
        .collect()
}

fn json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Integer(number) => (*number).into(),
        Value::Number(number) => (*number).into(),
        Value::Text(text) => text.clone().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => entries
            .iter()
            .map(|entry| (entry.key.clone(), json(&entry.node)))
            .collect(),
    }
}

fn entries<'n>(
    node: Option<&'n Node>,
    what: &str,
    problems: &mut Problems<'_>,
) -> Option<&'n [Entry]> {
    match node.map(|node| (&node.value, node.at)) {
        None => Some(&[]),
        Some((Value::Map(entries), _)) => Some(entries),
        Some((_, at)) => {
            problems.error(at, format!("`{what}` must be a map"));
            None
        }
    }
}

const FILE: [&str; 5] = ["policies", "documents", "options", "ask", "cases"];

const OPTIONS: [&str; 6] = [
    "namespace",
    "rootNamespace",
    "trustDomain",
    "trustDomainAliases",
    "defaults",
    "pathNormalization",
];

const CASE: [&str; 12] = [
    "because", "with", "ask", "expect", "error", "stage", "policy", "kind", "line", "reason",
    "audit", "dryRun",
];

const ASK: [&str; 16] = [
    "direction",
    "from",
    "fromIp",
    "fromNamespace",
    "fromLabels",
    "plaintext",
    "to",
    "toIp",
    "port",
    "protocol",
    "method",
    "path",
    "host",
    "headers",
    "jwt",
    "sni",
];
