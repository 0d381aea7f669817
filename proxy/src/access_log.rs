//! The access log: one JSON line for each request, and for each connection that is not HTTP or was
//! refused. Written by a thread of its own behind a bounded queue: a slow disk slows nobody down.

use std::{
    fs::OpenOptions,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::{Instant, SystemTime},
};

use anyhow::Context as _;
use postern_policies::{
    PolicySet,
    decide::{Access, DecidedBy, Decision, Direction, PolicyKind, Stage, Verdict},
};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{connections::Facts, telemetry::Metrics};

/// The way to the writing thread.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    metrics: Arc<Metrics>,
}

impl AccessLog {
    /// Opens the file, to append to it, and starts the thread.
    pub(crate) fn open(path: &Path, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("cannot open the access log `{}`", path.display()))?;
        let (lines, queue) = sync_channel::<Vec<u8>>(QUEUE);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                for line in queue {
                    if let Err(error) = file.write_all(&line) {
                        tracing::error!(%error, "the access log cannot be written");
                    }
                }
            })
            .context("cannot start the thread of the access log")?;
        Ok(Self { lines, metrics })
    }

    /// Hands a line to the thread. A full queue drops it, and counts that.
    pub(crate) fn write(&self, record: &Record) {
        let Ok(mut line) = serde_json::to_vec(record) else {
            return;
        };
        line.push(b'\n');
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.lines.try_send(line)
        {
            self.metrics.log_lines_dropped.inc();
        }
    }
}

/// One line.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Record {
    timestamp: String,
    target: &'static str,
    direction: &'static str,
    connection_id: u64,
    #[serde(rename = "src.addr")]
    source: Option<String>,
    #[serde(rename = "src.identity")]
    source_identity: Option<String>,
    #[serde(rename = "dst.addr")]
    destination: Option<String>,
    #[serde(rename = "dst.identity")]
    destination_identity: Option<String>,
    #[serde(rename = "dst.workload")]
    workload: Option<String>,
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) verdict: Option<&'static str>,
    pub(crate) stage: Option<&'static str>,
    kind: Option<&'static str>,
    policy: Option<String>,
    rule: Option<u32>,
    file: Option<String>,
    line: Option<u32>,
    pub(crate) reason: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) duration_ms: u64,
}

impl Record {
    /// A line about a connection, or about a request on it.
    pub(crate) fn of(facts: &Facts) -> Self {
        Self {
            timestamp: OffsetDateTime::from(SystemTime::now())
                .format(&Rfc3339)
                .unwrap_or_default(),
            target: "access",
            direction: direction(facts.direction),
            connection_id: facts.id,
            source: Some(facts.source.to_string()),
            source_identity: facts.source_identity.as_ref().map(ToString::to_string),
            destination: Some(facts.destination.to_string()),
            destination_identity: facts.destination_identity.as_ref().map(ToString::to_string),
            workload: facts.workload.as_ref().map(ToString::to_string),
            ..Self::default()
        }
    }

    /// A line about a request.
    pub(crate) fn of_request(mut self, method: &http::Method, path: &str) -> Self {
        self.method = Some(method.as_str().to_owned());
        self.path = Some(path.to_owned());
        self
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
            self.policy = Some(origin.policy.to_string());
            self.rule = origin.rule;
            self.file = Some(origin.file.display().to_string());
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
        self.duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self
    }
}

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

fn kind(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::NetworkPolicy => "NetworkPolicy",
        PolicyKind::PeerAuthentication => "PeerAuthentication",
        PolicyKind::RequestAuthentication => "RequestAuthentication",
        PolicyKind::AuthorizationPolicy => "AuthorizationPolicy",
    }
}

/// How many lines may wait for the disk.
const QUEUE: usize = 4096;
