//! Logs, metrics and health.
//!
//! The parts: `listener` (where it is told, and `caller`, to whom), `log_filter` (which lines of the
//! log are written), `tap` (the lines of the access log for those who watch), `otlp` (spans for a collector),
//! `upstream` (metrics).

mod caller;
pub(crate) mod listener;
pub(crate) mod log_filter;
pub(crate) mod otlp;
pub(crate) mod tap;
pub mod upstream;

use std::{
    sync::{Arc, OnceLock, atomic::AtomicI64},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use postern_lines::{Lines, Sink};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use tracing_subscriber::{fmt, prelude::*};

pub use log_filter::LogFilter;

/// Sends the log to standard output: JSON lines, or plain text on a terminal.
/// `POSTERN_LOG` filters, `POSTERN_LOG_FORMAT` chooses `plain` or `json`. Nothing is written before
/// [`write_log`]; the last lines are written when the guard is dropped. The other thing that is returned
/// changes the filter later.
///
/// # Errors
/// What these variables say cannot be meant; callers exit with 64.
pub fn start_log() -> anyhow::Result<(postern_lines::Guard, LogFilter)> {
    // The HTTP/2 library warns of every odd frame: what peers send must not fill the log.
    let (layer, filter) = LogFilter::new(postern_lines::filter("info,h2=error")?);
    let plain = postern_lines::is_plain()?;
    let lines = LOG.get_or_init(|| Lines::new("log", Counter::default()));
    let log = tracing_subscriber::registry().with(layer);
    // A second start in one process keeps the first log.
    let _ = if plain {
        log.with(fmt::layer().with_writer(lines.clone())).try_init()
    } else {
        log.with(
            fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_writer(lines.clone()),
        )
        .try_init()
    };
    Ok((lines.until_dropped(), filter))
}

/// Begins to write the log. Called before the walls go up, which bind threads that are started later.
///
/// # Errors
/// The system has no thread left.
pub fn write_log() -> anyhow::Result<()> {
    let Some(log) = LOG.get() else { return Ok(()) };
    log.begin(Sink::stdout(), without_rights)
        .context("cannot start the thread of the log")
}

/// What threads that write logs do first: they need no right, and the others are not given up yet.
pub(crate) fn without_rights() {
    if let Err(error) = postern_harden::keep_capabilities(&[]) {
        tracing::error!(%error, "the thread of a log keeps its rights");
    }
}

static LOG: OnceLock<Lines> = OnceLock::new();

/// Where a connection goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabel {
    /// `inbound` or `outbound`.
    pub direction: &'static str,
}

/// What was refused, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabels {
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// A word of a fixed list.
    pub reason: &'static str,
}

/// Proofs that ends of open connections made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RenewalLabels {
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// `renewed`, `refused` or `failed`.
    pub result: &'static str,
}

/// The answers that were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabels {
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// `1xx` to `5xx`.
    pub class: &'static str,
}

/// A detection of what is spoken that took all of its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DetectionLabels {
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// `silent` or `unfinished`.
    pub outcome: &'static str,
}

/// Bytes of opaque and upgraded connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RelayedLabels {
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// `received` or `sent`, as in the access log.
    pub way: &'static str,
}

/// The proxy's metrics: one field each, with bounded labels.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Connections accepted.
    pub connections: Family<DirectionLabel, Counter>,
    /// Connections open now.
    pub open: Family<DirectionLabel, Gauge>,
    /// Connections and requests refused.
    pub refused: Family<RefusalLabels, Counter>,
    /// Detections of what is spoken that took all of their time.
    pub detections: Family<DetectionLabels, Counter>,
    /// Requests answered.
    pub answers: Family<AnswerLabels, Counter>,
    /// Bytes of opaque and upgraded connections that have ended.
    pub relayed: Family<RelayedLabels, Counter>,
    /// Opaque and upgraded connections that have ended, and how.
    pub relays_ended: Family<RefusalLabels, Counter>,
    /// Lines that watchers lost.
    pub tap_lines_lost: Counter,
    /// Open connections ended because they may not go on.
    pub cut: Family<RefusalLabels, Counter>,
    /// Proofs that ends of open connections made anew.
    pub renewals: Family<RenewalLabels, Counter>,
    /// Sets of policies that were put in force: the number of the one that is.
    pub policy_reloads: Counter,
    /// Readings of the policies that were refused.
    pub policy_errors: Counter,
    /// 1 while the policies in force are those on disk.
    pub policies_current: Gauge,
    /// 1 while the redirection is proven.
    pub interception_proven: Gauge,
    /// Keys of tokens that could not be fetched.
    pub token_key_errors: Counter,
    /// Identities that could not be had.
    pub identity_errors: Counter,
    expires: Gauge<i64, AtomicI64>,
    /// Lines of the access log that were lost.
    pub access_log_lost: Counter,
    /// Spans that a collector took.
    pub spans_exported: Counter,
    /// Spans that none took.
    pub spans_lost: Counter,
    /// Tasks that panicked.
    pub panics: Counter,
    /// On the way to upstreams.
    pub upstream: upstream::UpstreamMetrics,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("postern_proxy"),
            connections: Family::default(),
            open: Family::default(),
            refused: Family::default(),
            detections: Family::default(),
            answers: Family::default(),
            cut: Family::default(),
            renewals: Family::default(),
            policy_reloads: Counter::default(),
            policy_errors: Counter::default(),
            policies_current: Gauge::default(),
            interception_proven: Gauge::default(),
            token_key_errors: Counter::default(),
            identity_errors: Counter::default(),
            expires: Gauge::default(),
            access_log_lost: Counter::default(),
            spans_exported: Counter::default(),
            spans_lost: Counter::default(),
            tap_lines_lost: Counter::default(),
            relayed: Family::default(),
            relays_ended: Family::default(),
            panics: Counter::default(),
            upstream: upstream::UpstreamMetrics::default(),
        };
        let all = &mut metrics.registry;
        metrics.upstream = upstream::UpstreamMetrics::register(all);
        all.register(
            "connections_accepted",
            "Connections accepted",
            metrics.connections.clone(),
        );
        all.register(
            "connections_open",
            "Connections open now",
            metrics.open.clone(),
        );
        all.register(
            "refused",
            "Connections and requests refused",
            metrics.refused.clone(),
        );
        all.register(
            "detections_timed_out",
            "Connections whose first bytes did not tell in time what is spoken",
            metrics.detections.clone(),
        );
        all.register(
            "requests_answered",
            "Requests answered",
            metrics.answers.clone(),
        );
        all.register(
            "connections_cut",
            "Open connections ended because they may not go on",
            metrics.cut.clone(),
        );
        all.register(
            "renewals",
            "Proofs that ends of open connections made anew, with their next certificates",
            metrics.renewals.clone(),
        );
        all.register(
            "policy_reloads",
            "Sets of policies that were put in force",
            metrics.policy_reloads.clone(),
        );
        all.register(
            "policy_reloads_failed",
            "Readings of the policies that were refused",
            metrics.policy_errors.clone(),
        );
        all.register(
            "policies_current",
            "1 while the policies in force are those on disk",
            metrics.policies_current.clone(),
        );
        all.register(
            "interception_proven",
            "1 while the redirection of the pod's traffic is proven",
            metrics.interception_proven.clone(),
        );
        all.register(
            "token_key_errors",
            "Keys of tokens that could not be fetched",
            metrics.token_key_errors.clone(),
        );
        all.register(
            "identity_errors",
            "Identities that could not be had",
            metrics.identity_errors.clone(),
        );
        all.register_with_unit(
            "identity_expires",
            "When the identity in force ends, since 1970",
            Unit::Seconds,
            metrics.expires.clone(),
        );
        all.register(
            "access_log_lost",
            "Lines of the access log that were lost: more than can be written, or a disk that fails",
            metrics.access_log_lost.clone(),
        );
        all.register(
            "spans_exported",
            "Spans that the collector took",
            metrics.spans_exported.clone(),
        );
        all.register(
            "spans_lost",
            "Spans that found no place in the queue, or that the collector did not take",
            metrics.spans_lost.clone(),
        );
        all.register(
            "tap_lines_lost",
            "Lines that did not fit into the queue of a tap",
            metrics.tap_lines_lost.clone(),
        );
        all.register(
            "relayed_bytes",
            "Bytes of opaque and upgraded connections, when they have ended",
            metrics.relayed.clone(),
        );
        all.register(
            "relays_ended",
            "Opaque and upgraded connections that have ended, and how",
            metrics.relays_ended.clone(),
        );
        let log_lost = LOG.get().map(Lines::lost).unwrap_or_default();
        all.register("log_lost", "Lines of the log that were lost", log_lost);
        all.register(
            "tasks_panicked",
            "Tasks that panicked: a defect. It fails one request or connection; where all depends on the task, the proxy ends",
            metrics.panics.clone(),
        );
        metrics.told_from_the_start();
        metrics
    }

    /// A family without a member is not told at all, and an alert on what never was is no alert.
    fn told_from_the_start(&self) {
        for direction in ["inbound", "outbound"] {
            drop(self.open.get_or_create(&DirectionLabel { direction }));
            let policy = RefusalLabels {
                direction,
                reason: "policy",
            };
            drop(self.refused.get_or_create(&policy));
            drop(self.cut.get_or_create(&policy));
            for way in ["received", "sent"] {
                drop(
                    self.relayed
                        .get_or_create(&RelayedLabels { direction, way }),
                );
            }
            for reason in ["closed", "idle", "denied", "broken", "cut"] {
                let ended = RefusalLabels { direction, reason };
                drop(self.relays_ended.get_or_create(&ended));
            }
            for outcome in ["silent", "unfinished"] {
                let late = DetectionLabels { direction, outcome };
                drop(self.detections.get_or_create(&late));
            }
        }
        self.upstream.told_from_the_start();
    }

    /// When the identity in force ends.
    pub fn identity_expires(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.expires.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts panics and tells their places to the log, and not what was panicked about: that may be of a
/// request.
pub fn watch_panics(metrics: &Arc<Metrics>) {
    let metrics = metrics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        metrics.panics.inc();
        let place = panic.location().map(tracing::field::display);
        tracing::error!(place, "a task panicked");
    }));
}
