//! Logs, metrics and health.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// Sends the log to standard output: JSON lines, or plain text on a terminal.
/// `POSTERN_LOG` filters, `POSTERN_LOG_FORMAT` chooses `plain` or `json`.
pub fn start_log() {
    let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let plain = match std::env::var("POSTERN_LOG_FORMAT").as_deref() {
        Ok("plain") => true,
        Ok("json") => false,
        _ => std::io::IsTerminal::is_terminal(&std::io::stdout()),
    };
    let log = tracing_subscriber::registry().with(filter);
    // A second start in one process keeps the first log.
    let _ = if plain {
        log.with(fmt::layer()).try_init()
    } else {
        log.with(
            fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false),
        )
        .try_init()
    };
}

/// The agent's metrics: one field each, with bounded labels.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open Workload API streams.
    pub streams: Gauge,
    /// X.509-SVIDs issued.
    pub svids_issued: Counter,
    /// JWT-SVIDs issued.
    pub jwt_svids_issued: Counter,
    /// Requests refused, by reason.
    pub refused: Family<ReasonLabel, Counter>,
    /// Deviations from a baseline.
    pub deviations: Counter,
    /// SVIDs taken back.
    pub svids_revoked: Counter,
    /// Readings of the Workload folder that were refused.
    pub reloads_failed: Counter,
    /// 1 while the Workload folder in force is the one on disk.
    pub workloads_current: Gauge,
    /// Changes of the state that could not be written.
    pub state_writes_failed: Counter,
    /// Bounds that were reached.
    pub bounds_reached: Family<BoundLabel, Counter>,
}

/// Which bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BoundLabel {
    /// A word of a fixed list.
    pub bound: &'static str,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A word of a fixed list.
    pub reason: &'static str,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("postern_agent"),
            streams: Gauge::default(),
            svids_issued: Counter::default(),
            jwt_svids_issued: Counter::default(),
            refused: Family::default(),
            deviations: Counter::default(),
            svids_revoked: Counter::default(),
            reloads_failed: Counter::default(),
            workloads_current: Gauge::default(),
            state_writes_failed: Counter::default(),
            bounds_reached: Family::default(),
        };
        // Told from the start: an alert on what never was is no alert.
        for reason in REASONS {
            drop(metrics.refused.get_or_create(&ReasonLabel { reason }));
        }
        for bound in BOUNDS {
            drop(metrics.bounds_reached.get_or_create(&BoundLabel { bound }));
        }
        let all = &mut metrics.registry;
        all.register(
            "workload_api_streams_open",
            "Open Workload API streams",
            metrics.streams.clone(),
        );
        all.register(
            "svids_issued",
            "X.509-SVIDs issued",
            metrics.svids_issued.clone(),
        );
        all.register(
            "jwt_svids_issued",
            "JWT-SVIDs issued",
            metrics.jwt_svids_issued.clone(),
        );
        all.register(
            "requests_refused",
            "Requests refused",
            metrics.refused.clone(),
        );
        all.register(
            "deviations_seen",
            "Deviations from a baseline",
            metrics.deviations.clone(),
        );
        all.register(
            "svids_revoked",
            "X.509-SVIDs taken back",
            metrics.svids_revoked.clone(),
        );
        all.register(
            "workload_reloads_failed",
            "Readings of the folders of Workloads and policies that were refused",
            metrics.reloads_failed.clone(),
        );
        all.register(
            "workloads_current",
            "1 while the Workloads in force are those on disk",
            metrics.workloads_current.clone(),
        );
        all.register(
            "state_writes_failed",
            "Changes of the state folder that could not be written",
            metrics.state_writes_failed.clone(),
        );
        all.register(
            "bounds_reached",
            "Bounds that were reached",
            metrics.bounds_reached.clone(),
        );
        metrics
    }

    /// Counts that a bound was reached.
    pub fn reached(&self, bound: &'static str) {
        self.bounds_reached
            .get_or_create(&BoundLabel { bound })
            .inc();
    }

    fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Probes and scrapes at once.
const MAX_CONNECTIONS: usize = 256;

/// Why requests are refused.
const REASONS: [&str; 7] = [
    "attestation",
    "no_workload",
    "drift",
    "caller",
    "security_header",
    "too_many_calls",
    "too_many_streams",
];

/// What can be full.
pub(crate) const CONNECTIONS_OF_USER: &str = "connections_of_user";
pub(crate) const WARM_SVIDS: &str = "warm_svids";
pub(crate) const DRIFT_LIST: &str = "drift_list";
pub(crate) const ISSUED: &str = "issued";
pub(crate) const AUDITED_REFUSALS: &str = "audited_refusals";
const BOUNDS: [&str; 5] = [
    CONNECTIONS_OF_USER,
    WARM_SVIDS,
    DRIFT_LIST,
    ISSUED,
    AUDITED_REFUSALS,
];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Serves `/healthz/live`, `/healthz/ready` and `/metrics`. It is ready from the start: it is
/// started when everything else serves.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve(
    listen: SocketAddr,
    metrics: Arc<Metrics>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen} (`health.listen`)"))?;
    Ok(async move {
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = free.clone().acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            let metrics = metrics.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, metrics.clone()));
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(std::time::Duration::from_secs(5))
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                drop(permit);
            });
        }
    })
}

async fn answer(
    request: Request<Incoming>,
    metrics: Arc<Metrics>,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz/live" | "/healthz/ready") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.render()),
        _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
    };
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .body(Full::new(text.into()))
}
