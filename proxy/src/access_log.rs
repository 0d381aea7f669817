//! The access log: one JSON line for each request, and for each connection that is not HTTP or was
//! refused. Written by a thread of its own behind a bounded queue: a slow disk slows nobody down.

use std::{
    fmt::Display,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use http::{HeaderValue, Method};
use postern_lines::{Lines, Sink};
use postern_policies::{
    PolicySet,
    decide::{Access, DecidedBy, Decision, Direction, PolicyKind, Stage, Verdict},
    model::workload::WorkloadName,
};
use postern_spiffe::SpiffeId;
use prometheus_client::metrics::{counter::Counter, family::Family};
use serde::{Serialize, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    connections::Facts,
    http::{
        serve::Marks,
        trace::{SpanId, TraceContext, TraceId},
    },
    relay::{self, Passed},
    telemetry::{
        self, Metrics, RefusalLabels, RelayedLabels,
        otlp::Spans,
        tap::{Line as Tapped, Taps},
    },
};

/// The way to the writing thread, and to the task that sends spans.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    lines: Lines,
    taps: Arc<Taps>,
    spans: Option<Spans>,
    relayed: Relayed,
}

/// What is counted when a connection ends whose bytes were relayed.
#[derive(Debug, Clone)]
struct Relayed {
    bytes: Family<RelayedLabels, Counter>,
    ended: Family<RefusalLabels, Counter>,
}

impl AccessLog {
    /// Opens the file, to append to it, and starts the thread.
    pub(crate) fn open(path: &Path, metrics: &Metrics) -> anyhow::Result<Self> {
        let sink = Sink::open(path)
            .with_context(|| format!("cannot open the access log `{}`", path.display()))?;
        let lines = Lines::gathering("access-log", metrics.access_log_lost.clone());
        lines
            .begin(sink, telemetry::without_rights)
            .context("cannot start the thread of the access log")?;
        Ok(Self {
            lines,
            taps: Arc::new(Taps::counting(metrics.tap_lines_lost.clone())),
            spans: None,
            relayed: Relayed {
                bytes: metrics.relayed.clone(),
                ended: metrics.relays_ended.clone(),
            },
        })
    }

    /// Those who watch the lines as they are made.
    pub(crate) fn taps(&self) -> &Arc<Taps> {
        &self.taps
    }

    /// The same, from which spans are made too.
    pub(crate) fn with_spans(self, spans: Option<Spans>) -> Self {
        Self { spans, ..self }
    }

    /// Hands a line to the thread. What does not fit is lost, and counted.
    pub(crate) fn write(&self, record: &Record) {
        if let (Some(spans), Some(trace)) = (&self.spans, &record.recorded) {
            spans.push(record, trace, record.took);
        }
        let mut line = Vec::with_capacity(USUAL_LINE);
        if serde_json::to_writer(&mut line, record).is_err() {
            self.lines.lost().inc();
            return;
        }
        line.push(b'\n');
        if self.taps.are_open() {
            self.taps.show(record.line(), &line);
        }
        self.lines.push(&line);
    }

    /// Opens the file anew, as after `logrotate` has moved it.
    pub(crate) fn reopen(&self) {
        self.lines.reopen();
    }

    /// Writes what is there, within a limit. Later lines are lost.
    pub(crate) fn end(&self) {
        self.lines.end();
    }
}

/// One line. What it says is kept as it is known, and becomes text when it is written.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Record {
    timestamp: Timestamp,
    target: &'static str,
    direction: &'static str,
    connection_id: u64,
    #[serde(rename = "src.addr")]
    source: SocketAddr,
    #[serde(rename = "src.identity", serialize_with = "text")]
    source_identity: Option<SpiffeId>,
    #[serde(rename = "dst.addr")]
    destination: SocketAddr,
    #[serde(rename = "dst.identity", serialize_with = "text")]
    destination_identity: Option<SpiffeId>,
    #[serde(rename = "dst.workload", serialize_with = "text")]
    workload: Option<WorkloadName>,
    #[serde(serialize_with = "text")]
    pub(crate) method: Option<Method>,
    pub(crate) path: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) verdict: Option<&'static str>,
    pub(crate) stage: Option<&'static str>,
    kind: Option<&'static str>,
    #[serde(serialize_with = "text")]
    policy: Option<Arc<str>>,
    rule: Option<u32>,
    #[serde(serialize_with = "path_text")]
    file: Option<Arc<Path>>,
    line: Option<u32>,
    pub(crate) reason: Option<String>,
    #[serde(serialize_with = "field_text")]
    request_id: Option<HeaderValue>,
    trace_id: Option<TraceId>,
    span_id: Option<SpanId>,
    parent_span_id: Option<SpanId>,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) duration_ms: u64,
    /// Where it stands in a trace that somebody wants recorded.
    #[serde(skip)]
    recorded: Option<TraceContext>,
    #[serde(skip)]
    took: Duration,
}

/// When something began. Written as RFC 3339 has it.
#[derive(Debug, Clone, Copy)]
struct Timestamp(SystemTime);

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut letters = [0; LONGEST_TIME];
        let mut rest = &mut letters[..];
        let written = OffsetDateTime::from(self.0).format_into(&mut rest, &Rfc3339);
        let text = letters.get(..written.unwrap_or_default());
        let text = text.and_then(|text| std::str::from_utf8(text).ok());
        serializer.serialize_str(text.unwrap_or_default())
    }
}

/// `2026-11-29T15:34:04.123456789Z`, and a year of more digits.
const LONGEST_TIME: usize = 40;

fn text<S: Serializer>(said: &Option<impl Display>, serializer: S) -> Result<S::Ok, S::Error> {
    match said {
        Some(said) => serializer.collect_str(said),
        None => serializer.serialize_none(),
    }
}

fn path_text<S: Serializer>(path: &Option<Arc<Path>>, serializer: S) -> Result<S::Ok, S::Error> {
    text(&path.as_deref().map(Path::display), serializer)
}

fn field_text<S: Serializer>(
    field: &Option<HeaderValue>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match field.as_ref().map(HeaderValue::to_str) {
        Some(Ok(field)) => serializer.serialize_str(field),
        _ => serializer.serialize_none(),
    }
}

impl Record {
    /// A line about a connection, or about a request on it.
    pub(crate) fn of(facts: &Facts) -> Self {
        Self {
            timestamp: Timestamp(SystemTime::now()),
            target: "access",
            direction: direction(facts.direction),
            connection_id: facts.id,
            source: facts.source,
            source_identity: facts.source_identity.clone(),
            destination: facts.destination,
            destination_identity: facts.destination_identity.clone(),
            workload: facts.workload.clone(),
            method: None,
            path: None,
            status: None,
            verdict: None,
            stage: None,
            kind: None,
            policy: None,
            rule: None,
            file: None,
            line: None,
            reason: None,
            request_id: None,
            trace_id: None,
            span_id: None,
            parent_span_id: None,
            bytes_sent: 0,
            bytes_received: 0,
            duration_ms: 0,
            recorded: None,
            took: Duration::ZERO,
        }
    }

    /// What the line says of itself, for those who watch.
    fn line(&self) -> Tapped<'_> {
        Tapped {
            direction: self.direction,
            verdict: self.verdict,
            source: self.source_identity.as_ref().map(SpiffeId::as_str),
            path: self.path.as_deref(),
        }
    }

    /// A line about a request.
    pub(crate) fn of_request(mut self, method: &Method, path: &str) -> Self {
        self.method = Some(method.clone());
        self.path = Some(path.to_owned());
        self
    }

    /// By what the request is found elsewhere.
    pub(crate) fn marked(&mut self, marks: &Marks) {
        self.request_id = Some(marks.id.clone());
        self.trace_id = Some(marks.trace.trace());
        self.span_id = Some(marks.trace.span());
        self.parent_span_id = marks.trace.parent();
        self.recorded = Some(marks.trace).filter(TraceContext::is_recorded);
    }

    /// What was decided, and why.
    pub(crate) fn decided(
        mut self,
        set: &PolicySet,
        access: &Access<'_>,
        decision: &Decision,
    ) -> Self {
        self.verdict = Some(match decision.verdict {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        });
        self.stage = Some(stage(decision.stage));
        self.kind = match &decision.decided_by {
            DecidedBy::Rule(origin) => Some(kind(origin.kind)),
            DecidedBy::NoMatch(of) => Some(kind(*of)),
            DecidedBy::Default => Some("default"),
            DecidedBy::Request | DecidedBy::Unasked => None,
        };
        if let DecidedBy::Rule(origin) = &decision.decided_by {
            self.policy = Some(origin.policy.clone());
            self.rule = origin.rule;
            self.file = Some(origin.file.clone());
            self.line = Some(origin.line);
        }
        // Only a refusal is worth the search for its reason.
        if decision.verdict == Verdict::Deny {
            self.reason = Some(set.reason(access, decision));
        }
        self
    }

    /// A refusal that no policy made.
    pub(crate) fn refused(mut self, stage: &'static str, reason: impl Into<String>) -> Self {
        self.verdict = Some("deny");
        self.stage = Some(stage);
        self.reason = Some(reason.into());
        self
    }

    /// How long it took.
    pub(crate) fn since(mut self, began: Instant) -> Self {
        self.took = began.elapsed();
        self.duration_ms = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// `inbound` or `outbound`.
    pub(crate) fn direction(&self) -> &'static str {
        self.direction
    }

    pub(crate) fn is_inbound(&self) -> bool {
        self.direction == direction(Direction::Inbound)
    }

    /// What a span says of the rest.
    pub(crate) fn told(&self) -> Told<'_> {
        let end = |address: SocketAddr| (address.ip(), address.port());
        // On the way out the near end is the app, in plaintext; between proxies there is TLS.
        let is_plain = !self.is_inbound() || self.source_identity.is_none();
        Told {
            scheme: if is_plain { "http" } else { "https" },
            source: end(self.source),
            destination: end(self.destination),
            source_identity: self.source_identity.as_ref().map(SpiffeId::as_str),
            destination_identity: self.destination_identity.as_ref().map(SpiffeId::as_str),
            workload: self.workload.as_ref().map(ToString::to_string),
            kind: self.kind,
            policy: self.policy.as_deref(),
            request_id: self.request_id.as_ref().and_then(|id| id.to_str().ok()),
        }
    }
}

/// See [`Record::told`].
pub(crate) struct Told<'r> {
    pub(crate) scheme: &'static str,
    pub(crate) source: (IpAddr, u16),
    pub(crate) destination: (IpAddr, u16),
    pub(crate) source_identity: Option<&'r str>,
    pub(crate) destination_identity: Option<&'r str>,
    pub(crate) workload: Option<String>,
    pub(crate) kind: Option<&'static str>,
    pub(crate) policy: Option<&'r str>,
    pub(crate) request_id: Option<&'r str>,
}

/// How a connection ended whose bytes were relayed.
#[derive(Debug, Clone, Copy)]
enum End {
    /// By its ends.
    Closed,
    Idle,
    Denied,
    Broken,
    /// With the connection that carried it, or with the proxy.
    Cut,
}

impl End {
    fn of(how: &io::Result<()>) -> Self {
        match how {
            Ok(()) => Self::Closed,
            Err(error) if relay::is_too_silent(error) => Self::Idle,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Self::Denied,
            Err(_) => Self::Broken,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Idle => "idle",
            Self::Denied => "denied",
            Self::Broken => "broken",
            Self::Cut => "cut",
        }
    }
}

/// The line of an opaque connection, or of an upgraded one. It is written when this is dropped, however the connection ended.
#[derive(Debug)]
pub(crate) struct Line {
    log: AccessLog,
    record: Option<Record>,
    began: Instant,
    end: End,
    /// What passed so far: from whoever connected, and back.
    pub(crate) passed: Passed,
}

impl Line {
    pub(crate) fn of(log: &AccessLog, record: Record, began: Instant) -> Self {
        let record = Record {
            reason: Some(CUT.to_owned()),
            ..record
        };
        Self {
            log: log.clone(),
            record: Some(record),
            began,
            end: End::Cut,
            passed: Passed::default(),
        }
    }

    /// The connection ended like this; the reason is told where its ends did not end it.
    pub(crate) fn ended(mut self, how: io::Result<()>) {
        self.end = End::of(&how);
        if let Some(record) = &mut self.record {
            record.reason = how.err().map(|error| error.to_string());
        }
    }

    /// Something else is told of the connection.
    pub(crate) fn unneeded(mut self) {
        self.record = None;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else {
            return;
        };
        let (there, back) = self.passed.both();
        (record.bytes_received, record.bytes_sent) = match record.direction {
            "outbound" => (back, there),
            _ => (there, back),
        };
        let Relayed { bytes, ended } = &self.log.relayed;
        let direction = record.direction;
        for (way, many) in [
            ("received", record.bytes_received),
            ("sent", record.bytes_sent),
        ] {
            let labels = RelayedLabels { direction, way };
            bytes.get_or_create(&labels).inc_by(many);
        }
        let reason = self.end.label();
        let labels = RefusalLabels { direction, reason };
        ended.get_or_create(&labels).inc();
        self.log.write(&record.since(self.began));
    }
}

/// The end of a connection that its policies or its certificates no longer let go on.
pub(crate) fn may_not_go_on() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, MAY_NOT_GO_ON)
}

const MAY_NOT_GO_ON: &str = "the connection may not go on";

pub(crate) fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
}

pub(crate) fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::PeerAuthentication => "peerAuthentication",
        Stage::RequestAuthentication => "requestAuthentication",
        Stage::Network => "network",
        Stage::Authorization => "authorization",
    }
}

pub(crate) fn kind(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::NetworkPolicy => "NetworkPolicy",
        PolicyKind::PeerAuthentication => "PeerAuthentication",
        PolicyKind::RequestAuthentication => "RequestAuthentication",
        PolicyKind::AuthorizationPolicy => "AuthorizationPolicy",
    }
}

/// Most lines are shorter, in bytes.
const USUAL_LINE: usize = 1 << 10;

/// The reason of what ended in the middle: the connection may not go on, or the proxy has ended.
const CUT: &str = "the connection was cut";
