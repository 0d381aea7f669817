//! One access as JSON, and the answer.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use postern_policies::{
    Observed, PolicySet,
    classes::Example,
    decide::{
        Access, DecidedBy, Decision, Destination, Direction, Headers, HttpRequest, Peer,
        PolicyKind, Protocol, Source, Stage, Token, Verdict,
    },
    model::workload::WorkloadName,
    normalize::{self, PathNormalization},
};
use postern_spiffe::SpiffeId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A line of input. Any member may be null or absent, an unknown one is an error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Query {
    pub(super) id: Value,
    pub(super) direction: Option<String>,
    pub(super) mtls: Option<bool>,
    pub(super) source: Option<QuerySource>,
    pub(super) destination: Option<QueryDestination>,
    pub(super) http: Option<QueryHttp>,
    pub(super) jwt: Option<QueryToken>,
    pub(super) sni: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct QuerySource {
    pub(super) identity: Option<String>,
    pub(super) ip: Option<IpAddr>,
    pub(super) namespace: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct QueryDestination {
    pub(super) workload: Option<String>,
    pub(super) ip: Option<IpAddr>,
    pub(super) port: Option<u16>,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct QueryHttp {
    pub(super) method: Option<String>,
    pub(super) path: Option<String>,
    pub(super) host: Option<String>,
    pub(super) headers: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct QueryToken {
    pub(super) issuer: Option<String>,
    pub(super) claims: Option<Map<String, Value>>,
}

/// A query whose values mean something.
#[derive(Debug)]
pub(super) struct Parsed {
    direction: Direction,
    identity: Option<SpiffeId>,
    source: QuerySource,
    workload: Option<WorkloadName>,
    ip: Option<IpAddr>,
    /// Nothing where it was not said.
    port: Option<u16>,
    protocol: Protocol,
    http: Option<ParsedHttp>,
    token: Option<ParsedToken>,
    sni: Option<String>,
}

#[derive(Debug)]
struct ParsedHttp {
    method: String,
    path: String,
    /// Why no proxy would take this request.
    refused: Option<String>,
    host: Option<String>,
    headers: HeaderMap,
}

#[derive(Debug)]
struct ParsedToken {
    issuer: String,
    claims: Map<String, Value>,
}

impl ParsedToken {
    /// The issuer is that of the claims, where it does not stand by itself.
    fn of(token: QueryToken) -> Self {
        let claims = token.claims.unwrap_or_default();
        let claimed = || claims.get("iss").and_then(Value::as_str).map(str::to_owned);
        Self {
            issuer: token.issuer.or_else(claimed).unwrap_or_default(),
            claims,
        }
    }
}

/// Header fields by lower-case name.
#[derive(Debug, Default)]
struct HeaderMap(BTreeMap<String, Vec<String>>);

impl Headers for HeaderMap {
    fn values(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.0
            .get(name)
            .into_iter()
            .flatten()
            .for_each(|value| each(value.as_bytes()));
    }
}

impl Query {
    /// Reads the values. An access whose port, method or path is null or absent is no access, and
    /// is denied.
    ///
    /// # Errors
    /// The first member that means nothing, by name.
    pub(super) fn parse(self, set: &PolicySet) -> Result<Parsed, String> {
        let direction = match self.direction.as_deref() {
            None | Some("inbound") => Direction::Inbound,
            Some("outbound") => Direction::Outbound,
            Some(other) => {
                return Err(format!(
                    "`direction` is `{other}`, write `inbound` or `outbound`"
                ));
            }
        };
        let mut source = self.source.unwrap_or_default();
        // Without mutual TLS there is no identity, whatever is claimed. Outbound, it is the own.
        let proved = direction == Direction::Outbound || self.mtls == Some(true);
        let identity = match source.identity.take().filter(|_| proved) {
            Some(text) => Some(
                SpiffeId::parse(&text).map_err(|error| format!("`source.identity`: {error}"))?,
            ),
            None => None,
        };
        let destination = self.destination.unwrap_or_default();
        let workload = match destination.workload {
            Some(text) => Some(workload_name(&text, set)?),
            None => None,
        };
        Ok(Parsed {
            direction,
            identity,
            source,
            workload,
            ip: destination.ip,
            port: destination.port,
            protocol: protocol(destination.protocol.as_deref())?,
            http: self.http.map(|http| ParsedHttp::of(http, set.paths())),
            token: self.jwt.map(ParsedToken::of),
            sni: self.sni,
        })
    }
}

impl ParsedHttp {
    fn of(http: QueryHttp, how: PathNormalization) -> Self {
        let raw = http.path.unwrap_or_default();
        // The query is no part of what is judged.
        let raw = raw.split('?').next().unwrap_or_default();
        let (path, mut refused) = match normalize::path(raw, how) {
            Ok(path) => (path.into_owned(), None),
            Err(refused) => (raw.to_owned(), Some(refused.to_string())),
        };
        if http.method.is_none() {
            refused = Some("the request's method is not known".into());
        }
        let host = match http.host.as_deref().map(normalize::host) {
            Some(Ok(host)) => Some(host.into_owned()),
            Some(Err(refusal)) => {
                refused = refused.or(Some(refusal.to_string()));
                None
            }
            None => None,
        };
        let mut headers = HeaderMap::default();
        for (name, values) in http.headers.unwrap_or_default() {
            headers
                .0
                .entry(name.to_ascii_lowercase())
                .or_default()
                .extend(values);
        }
        Self {
            method: http.method.unwrap_or_default(),
            path,
            refused,
            host,
            headers,
        }
    }
}

impl Parsed {
    /// The whole answer.
    pub(super) fn answer(&self, id: Value, set: &PolicySet) -> Answer {
        let denied = |stage, reason: String, id| {
            let decision = Decision {
                verdict: Verdict::Deny,
                stage,
                decided_by: DecidedBy::Request,
            };
            Answer::of(id, &decision, reason, Observed::default())
        };
        if self.port.is_none() {
            return denied(
                Stage::Network,
                "the destination's port is not known".into(),
                id,
            );
        }
        let access = self.access();
        let decision = set.decide(&access);
        let refused = self.http.as_ref().and_then(|http| http.refused.clone());
        // Of what the connection's layers allow, a path without a single meaning goes no further.
        let is_asked = matches!(
            decision.stage,
            Stage::RequestAuthentication | Stage::Authorization
        );
        if let (Some(refused), true) = (refused, is_asked) {
            return denied(Stage::Authorization, refused, id);
        }
        let reason = set.reason(&access, &decision);
        Answer::of(id, &decision, reason, set.observed(&access))
    }

    /// The access, as the engine takes it.
    pub(super) fn access(&self) -> Access<'_> {
        Access {
            direction: self.direction,
            source: Source {
                peer: self
                    .identity
                    .as_ref()
                    .map_or(Peer::Plaintext, Peer::Verified),
                ip: self.source.ip,
                namespace: self.source.namespace.as_deref(),
                labels: self.source.labels.as_ref(),
            },
            destination: Destination {
                workload: self.workload.as_ref(),
                ip: self.ip,
                port: self.port.unwrap_or_default(),
                protocol: self.protocol,
            },
            http: self.http.as_ref().map(|http| HttpRequest {
                method: &http.method,
                path: &http.path,
                host: http.host.as_deref(),
                headers: &http.headers,
            }),
            token: self.token.as_ref().map(|token| Token {
                verified_by: None,
                issuer: &token.issuer,
                claims: &token.claims,
            }),
            sni: self.sni.as_deref(),
        }
    }
}

/// An access as a line of input.
pub(super) fn line_of(example: &Example) -> Value {
    let direction = match example.direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    };
    json!({
        "direction": direction,
        "mtls": example.identity.is_some(),
        "source": {
            "identity": example.identity.as_ref().map(ToString::to_string),
            "ip": example.ip,
        },
        "destination": {
            "workload": example.destination.as_ref().map(ToString::to_string),
            "ip": example.destination_ip,
            "port": example.port,
            "protocol": format!("{:?}", example.protocol).to_uppercase(),
        },
        "http": example.http.as_ref().map(|http| {
            let each = http.headers.iter();
            let headers: BTreeMap<_, _> = each.map(|(name, value)| (name, [value])).collect();
            json!({"method": http.method, "path": http.path, "host": http.host, "headers": headers})
        }),
        "jwt": example.token.as_ref().map(|token| {
            json!({"issuer": token.issuer, "claims": token.claims})
        }),
        "sni": example.server_name,
    })
}

/// What an access has beside caller, destination and request line, in words.
pub(super) fn conditions(example: &Example) -> String {
    let mut words = Vec::new();
    if let Some(ip) = example.ip {
        words.push(format!("from {ip}"));
    }
    if let Some(ip) = example.destination_ip {
        words.push(format!("to {ip}"));
    }
    if let Some(name) = &example.server_name {
        words.push(format!("with server name {name}"));
    }
    let headers = example.http.iter().flat_map(|http| &http.headers);
    words.extend(headers.map(|(name, value)| format!("with header {name}: {value}")));
    if let Some(token) = &example.token {
        let claims = Value::Object(token.claims.clone());
        words.push(format!("with token {claims}"));
    }
    words.join(" ")
}

/// A line of output.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) id: Value,
    pub(super) verdict: &'static str,
    stage: &'static str,
    policy: Option<String>,
    kind: Option<&'static str>,
    rule: Option<u32>,
    file: Option<String>,
    line: Option<u32>,
    pub(super) reason: String,
    audit: Vec<String>,
    #[serde(rename = "dryRun")]
    dry_run: Vec<String>,
}

/// What an answer says, for a comparison.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) verdict: &'a str,
    pub(super) stage: &'a str,
    pub(super) policy: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    pub(super) line: Option<u32>,
    pub(super) reason: &'a str,
    pub(super) audit: &'a [String],
    pub(super) dry_run: &'a [String],
}

impl<'a> Found<'a> {
    pub(super) fn of(answer: &'a Answer) -> Self {
        Self {
            verdict: answer.verdict,
            stage: answer.stage,
            policy: answer.policy.as_deref(),
            kind: answer.kind,
            line: answer.line,
            reason: &answer.reason,
            audit: &answer.audit,
            dry_run: &answer.dry_run,
        }
    }
}

impl Answer {
    /// Of an access that stands for its class.
    pub(super) fn to(example: &Example, set: &PolicySet) -> Self {
        example.with(|access| {
            let decision = set.decide(access);
            let reason = set.reason(access, &decision);
            Self::of(Value::Null, &decision, reason, set.observed(access))
        })
    }

    pub(super) fn of(id: Value, decision: &Decision, reason: String, observed: Observed) -> Self {
        let origin = match &decision.decided_by {
            DecidedBy::Rule(origin) => Some(origin),
            _ => None,
        };
        Self {
            id,
            verdict: verdict(decision.verdict),
            stage: stage(decision.stage),
            policy: origin.map(|origin| origin.policy.to_string()),
            kind: match &decision.decided_by {
                DecidedBy::Rule(origin) => Some(kind(origin.kind)),
                DecidedBy::NoMatch(of) => Some(kind(*of)),
                DecidedBy::Default => Some("default"),
                DecidedBy::Request | DecidedBy::Unasked => None,
            },
            rule: origin.and_then(|origin| origin.rule),
            file: origin.map(|origin| origin.file.display().to_string()),
            line: origin.map(|origin| origin.line),
            reason,
            audit: names(observed.audit),
            dry_run: names(observed.dry_run),
        }
    }
}

impl Answer {
    /// `file:line` of what decided.
    pub(super) fn place(&self) -> Option<String> {
        Some(format!("{}:{}", self.file.as_ref()?, self.line?))
    }
}

fn names(names: Vec<Arc<str>>) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

pub(super) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::PeerAuthentication => "peerAuthentication",
        Stage::RequestAuthentication => "requestAuthentication",
        Stage::Network => "network",
        Stage::Authorization => "authorization",
    }
}

pub(super) fn kind(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::NetworkPolicy => "NetworkPolicy",
        PolicyKind::PeerAuthentication => "PeerAuthentication",
        PolicyKind::RequestAuthentication => "RequestAuthentication",
        PolicyKind::AuthorizationPolicy => "AuthorizationPolicy",
    }
}

pub(super) fn workload_name(text: &str, set: &PolicySet) -> Result<WorkloadName, String> {
    let (namespace, name) = text
        .split_once('/')
        .ok_or_else(|| format!("`destination.workload` is `{text}`, write `namespace/name`"))?;
    let name = WorkloadName {
        namespace: Arc::from(namespace),
        name: Arc::from(name),
    };
    if set.workload(&name).is_none() {
        return Err(format!(
            "`destination.workload`: there is no Workload `{text}`"
        ));
    }
    Ok(name)
}

pub(super) fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!(
            "`destination.protocol` is `{other}`, write `TCP`, `UDP` or `SCTP`"
        )),
    }
}
