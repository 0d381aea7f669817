//! Logs, metrics and health.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_lines::{Lines, Sink};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing_subscriber::{fmt, prelude::*};

use crate::{kubernetes::Kind, monitor::Source};

/// Sends the log to standard output: JSON lines, or plain text on a terminal.
/// `POSTERN_LOG` filters, `POSTERN_LOG_FORMAT` chooses `plain` or `json`. Nothing is written before
/// [`write_log`]; the last lines are written when the guard is dropped.
///
/// # Errors
/// What these variables say cannot be meant; callers exit with 64.
pub fn start_log() -> anyhow::Result<postern_lines::Guard> {
    let filter = postern_lines::filter("info")?;
    let plain = postern_lines::is_plain()?;
    let lines = LOG.get_or_init(|| Lines::new("log", Counter::default()));
    let log = tracing_subscriber::registry().with(filter);
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
    Ok(lines.until_dropped())
}

/// Begins to write the log. Called when the walls are up, which bind threads that are started later.
///
/// # Errors
/// The system has no thread left.
pub fn write_log() -> anyhow::Result<()> {
    let Some(log) = LOG.get() else { return Ok(()) };
    // The thread needs no right, and the agent has not given up its own yet.
    let first = || {
        if let Err(error) = postern_harden::keep_capabilities(&[]) {
            tracing::error!(%error, "the thread of a log keeps its rights");
        }
    };
    log.begin(Sink::stdout(), first)
        .context("cannot start the thread of the log")
}

/// The log, if it was started.
pub(crate) fn log() -> Option<&'static Lines> {
    LOG.get()
}

static LOG: OnceLock<Lines> = OnceLock::new();

/// The agent's metrics: one field each, with bounded labels.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// What is open on the socket.
    pub streams: Gauge,
    /// X.509-SVIDs issued.
    pub svids_issued: Counter,
    /// JWT-SVIDs issued.
    pub jwt_svids_issued: Counter,
    /// Requests refused, by reason.
    pub refused: Family<ReasonLabel, Counter>,
    /// Looks at processes that the agent lacked something for.
    pub looks_failed: Counter,
    /// Deviations from a baseline.
    pub deviations: Counter,
    /// Times that what happened in pods could not be seen.
    pub events_lost: Family<SourceLabel, Counter>,
    /// SVIDs taken back.
    pub svids_revoked: Counter,
    /// Readings of the Workload folder that were refused.
    pub reloads_failed: Counter,
    /// 1 while the Workload folder in force is the one on disk.
    pub workloads_current: Gauge,
    /// Changes of the state that could not be written.
    pub state_writes_failed: Counter,
    /// Lines of the ledger of issued SVIDs that could not be read.
    pub ledger_lines_lost: Counter,
    /// Bounds that were reached.
    pub bounds_reached: Family<BoundLabel, Counter>,
    /// Objects of the API server that are known.
    pub kubernetes_objects: Family<KindLabel, Gauge>,
    /// 1 while a kind is followed.
    pub kubernetes_current: Family<KindLabel, Gauge>,
    /// 1 while what the API server has is in force.
    pub kubernetes_in_force: Gauge,
    /// Policies of the API server that cannot be read.
    pub kubernetes_unreadable: Gauge,
    /// Questions to the API server that failed.
    pub kubernetes_failures: Family<ReasonLabel, Counter>,
}

/// Which bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BoundLabel {
    /// A word of a fixed list.
    pub bound: &'static str,
}

/// Which kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// A word of a fixed list.
    pub kind: &'static str,
}

/// What the agent lacks, or still waits for, before it can do all that it is for.
#[derive(Debug, Default)]
pub struct Readiness {
    /// Nothing mends this but another start.
    lacks: Option<String>,
    awaited: ArcSwap<Vec<String>>,
}

impl Readiness {
    /// It will never be ready if it lacks something.
    pub fn lacking(lacks: Option<String>) -> Self {
        Self {
            lacks,
            awaited: ArcSwap::default(),
        }
    }

    /// It waits for these, and nothing else. Each is told to whoever asks whether it is ready.
    pub fn waits_for(&self, all: Vec<String>) {
        self.awaited.store(Arc::new(all));
    }

    /// All that is missing, each in a line.
    fn missing(&self) -> Vec<String> {
        let awaited = self.awaited.load();
        self.lacks.iter().chain(awaited.iter()).cloned().collect()
    }
}

/// Whose events were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabel {
    /// A word of a fixed list.
    pub source: &'static str,
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
            looks_failed: Counter::default(),
            deviations: Counter::default(),
            events_lost: Family::default(),
            svids_revoked: Counter::default(),
            reloads_failed: Counter::default(),
            workloads_current: Gauge::default(),
            state_writes_failed: Counter::default(),
            ledger_lines_lost: Counter::default(),
            bounds_reached: Family::default(),
            kubernetes_objects: Family::default(),
            kubernetes_current: Family::default(),
            kubernetes_in_force: Gauge::default(),
            kubernetes_unreadable: Gauge::default(),
            kubernetes_failures: Family::default(),
        };
        for source in Source::ALL.map(Source::as_str) {
            drop(metrics.events_lost.get_or_create(&SourceLabel { source }));
        }
        // Told from the start: an alert on what never was is no alert.
        for reason in REASONS {
            drop(metrics.refused.get_or_create(&ReasonLabel { reason }));
        }
        for bound in BOUNDS {
            drop(metrics.bounds_reached.get_or_create(&BoundLabel { bound }));
        }
        for kind in Kind::ALL.map(|kind| KindLabel { kind: kind.name() }) {
            drop(metrics.kubernetes_objects.get_or_create(&kind));
            drop(metrics.kubernetes_current.get_or_create(&kind));
        }
        for reason in API_REASONS {
            drop(
                metrics
                    .kubernetes_failures
                    .get_or_create(&ReasonLabel { reason }),
            );
        }
        let all = &mut metrics.registry;
        all.register(
            "workload_api_streams_open",
            "Streams and calls open on the socket",
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
            "looks_failed",
            "Looks at processes that failed for want of something of the agent's own",
            metrics.looks_failed.clone(),
        );
        all.register(
            "deviations_seen",
            "Deviations from a baseline",
            metrics.deviations.clone(),
        );
        all.register(
            "events_lost",
            "Times that events of pods were lost",
            metrics.events_lost.clone(),
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
            "ledger_lines_lost",
            "Lines of the ledger of issued SVIDs that could not be read at the start",
            metrics.ledger_lines_lost.clone(),
        );
        all.register(
            "bounds_reached",
            "Bounds that were reached",
            metrics.bounds_reached.clone(),
        );
        all.register(
            "kubernetes_objects",
            "Objects of the API server that are known",
            metrics.kubernetes_objects.clone(),
        );
        all.register(
            "kubernetes_current",
            "1 while what the API server has of a kind is followed",
            metrics.kubernetes_current.clone(),
        );
        all.register(
            "kubernetes_in_force",
            "1 while what the API server has is in force",
            metrics.kubernetes_in_force.clone(),
        );
        all.register(
            "kubernetes_objects_unreadable",
            "Policies of the API server that cannot be read",
            metrics.kubernetes_unreadable.clone(),
        );
        all.register(
            "kubernetes_requests_failed",
            "Lists and watches of the API server that failed",
            metrics.kubernetes_failures.clone(),
        );
        let log_lost = LOG.get().map(Lines::lost).unwrap_or_default();
        all.register("log_lost", "Lines of the log that were lost", log_lost);
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

/// As many as monitors, probes and people at once need.
const MAX_CONNECTIONS: usize = 64;

/// Until when a request must have been said.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// Until when its answer must have been read.
const CONNECTION_TIME: Duration = Duration::from_secs(15);

/// Why requests are refused.
const REASONS: [&str; 11] = [
    "attestation",
    "lack",
    "no_workload",
    "not_synced",
    "drift",
    "caller",
    "security_header",
    "too_many_calls",
    "too_many_calls_of_user",
    "too_many_streams",
    "idle_connection",
];

/// Why the API server cannot be followed.
const API_REASONS: [&str; 9] = [
    "unreachable",
    "files",
    "unauthorized",
    "forbidden",
    "missing",
    "gone",
    "too_large",
    "unreadable",
    "other",
];

/// What can be full.
pub(crate) const CONNECTIONS: &str = "connections";
pub(crate) const CONNECTIONS_OF_USER: &str = "connections_of_user";
pub(crate) const WARM_SVIDS: &str = "warm_svids";
pub(crate) const DRIFT_LIST: &str = "drift_list";
pub(crate) const DRIFT_GROUNDS: &str = "drift_grounds";
pub(crate) const ISSUED: &str = "issued";
pub(crate) const ISSUED_TO_USER: &str = "issued_to_user";
pub(crate) const PODS: &str = "pods";
pub(crate) const AUDITED_REFUSALS: &str = "audited_refusals";
pub(crate) const AUDIT_LOG: &str = "audit_log";
const BOUNDS: [&str; 10] = [
    CONNECTIONS,
    CONNECTIONS_OF_USER,
    WARM_SVIDS,
    DRIFT_LIST,
    DRIFT_GROUNDS,
    ISSUED,
    ISSUED_TO_USER,
    PODS,
    AUDITED_REFUSALS,
    AUDIT_LOG,
];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Serves `/healthz/live`, `/healthz/ready` and `/metrics`. It is started when everything else serves, so
/// that it is ready unless it waits for somebody else.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve(
    listen: SocketAddr,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen} (`health.listen`)"))?;
    Ok(async move {
        // More wait in the kernel's queue.
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = free.clone().acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = listener.accept().await else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (metrics, readiness) = (metrics.clone(), readiness.clone());
            tokio::spawn(async move {
                let service =
                    service_fn(move |request| answer(request, metrics.clone(), readiness.clone()));
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIME)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                // Who does not read the answer does not keep the place.
                let _ = timeout(CONNECTION_TIME, served).await;
                drop(permit);
            });
        }
    })
}

async fn answer(
    request: Request<Incoming>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let missing = readiness.missing();
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz/ready") if !missing.is_empty() => {
            (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n")
        }
        (&Method::GET, "/healthz/live" | "/healthz/ready") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.render()),
        _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
    };
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .body(Full::new(text.into()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::{MAX_CONNECTIONS, Metrics, serve};

    const QUESTION: &[u8] = b"GET /healthz/live HTTP/1.1\r\nhost: any\r\n\r\n";

    async fn ask(address: std::net::SocketAddr) -> String {
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(QUESTION).await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Has the other side closed this connection by now?
    async fn is_closed(connection: &mut TcpStream) -> bool {
        let mut rest = String::new();
        tokio::select! {
            biased;
            _ = connection.read_to_string(&mut rest) => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn callers_that_say_nothing_have_so_many_places_and_lose_them() {
        // FAULTS 26
        let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listen.local_addr().unwrap();
        drop(listen);
        let serving = serve(address, Arc::new(Metrics::new()), Arc::default());
        let serving = serving.await.unwrap();
        let serving = tokio::spawn(serving);
        let mut silent = Vec::new();
        for number in 0..MAX_CONNECTIONS {
            let mut one = TcpStream::connect(address).await.unwrap();
            // Half of them have said half of something.
            if number % 2 == 0 {
                one.write_all(&QUESTION[..20]).await.unwrap();
            }
            silent.push(one);
            // While there is a place, nobody waits for them.
            if number == MAX_CONNECTIONS - 2 {
                let answer = ask(address).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                assert!(!is_closed(silent.first_mut().unwrap()).await);
            }
        }
        let answer = ask(address).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let first = silent.first_mut().unwrap();
        assert!(
            is_closed(first).await,
            "more were let in than there are places"
        );
        serving.abort();
    }
}
