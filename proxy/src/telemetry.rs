//! Logs, metrics and health.

pub mod upstream;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicI64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// Sends the log to standard output: JSON lines, or plain text on a terminal.
/// `POSTERN_LOG` filters, `POSTERN_LOG_FORMAT` chooses `plain` or `json`.
pub fn start_log() {
    // The HTTP/2 library warns of every odd frame: what peers send must not fill the log.
    let filter =
        EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new("info,h2=error"));
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

/// The answers that were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabels {
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// `1xx` to `5xx`.
    pub class: &'static str,
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
    /// Requests answered.
    pub answers: Family<AnswerLabels, Counter>,
    /// Open connections ended because they may not go on.
    pub cut: Family<RefusalLabels, Counter>,
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
    /// Lines of the access log that were dropped.
    pub log_lines_dropped: Counter,
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
            answers: Family::default(),
            cut: Family::default(),
            policy_errors: Counter::default(),
            policies_current: Gauge::default(),
            interception_proven: Gauge::default(),
            token_key_errors: Counter::default(),
            identity_errors: Counter::default(),
            expires: Gauge::default(),
            log_lines_dropped: Counter::default(),
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
            "access_log_lines_dropped",
            "Lines of the access log that were dropped",
            metrics.log_lines_dropped.clone(),
        );
        all.register(
            "tasks_panicked",
            "Tasks that panicked: a defect, which ends one connection and nothing else",
            metrics.panics.clone(),
        );
        metrics
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
        tracing::error!(place, "a task panicked; its connection ends");
    }));
}

/// Tells what is missing before the proxy may be called ready; empty when it is.
pub type Readiness = Arc<dyn Fn() -> Vec<&'static str> + Send + Sync>;

/// Answers questions about the proxy: a path, and JSON to be told, if there is any.
pub type Inspector = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Serves `/healthz/live`, `/healthz/ready`, `/metrics`, and what `inspector` knows.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve(
    listen: SocketAddr,
    key: &'static str,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    inspector: Option<Inspector>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen} (`{key}.listen`)"))?;
    Ok(async move {
        // More wait in the kernel's queue.
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = free.clone().acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (metrics, readiness) = (metrics.clone(), readiness.clone());
            let inspector = inspector.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = answer(&request, &metrics, &readiness, inspector.as_ref());
                    async { answer }
                });
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

/// As many as monitors, probes and people at once need.
const MAX_CONNECTIONS: usize = 64;

/// Until when a request must have been said.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// Until when its answer must have been read.
const CONNECTION_TIME: Duration = Duration::from_secs(15);

/// By an address, or as `localhost`?
fn is_asked_directly<B>(request: &Request<B>) -> bool {
    let host = request.headers().get(http::header::HOST);
    let Some(host) = host.and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<std::net::IpAddr>().is_ok()
}

fn answer(
    request: &Request<Incoming>,
    metrics: &Metrics,
    readiness: &Readiness,
    inspector: Option<&Inspector>,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let path = request.uri().path();
    let (status, text) = match (request.method(), path) {
        // Pages in a browser reach this machine under names of their own.
        _ if inspector.is_some() && !is_asked_directly(request) => {
            let text = "ask by an address or as `localhost`\n".to_owned();
            (StatusCode::FORBIDDEN, text)
        }
        (&Method::GET, "/healthz/live") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/healthz/ready") => match readiness().as_slice() {
            [] => (StatusCode::OK, "ok\n".to_owned()),
            missing => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {}\n", missing.join(", ")),
            ),
        },
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.render()),
        (&Method::GET, path) => match inspector.and_then(|inspector| inspector(path)) {
            Some(text) => (StatusCode::OK, text),
            None => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
        },
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
    };
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .body(Full::new(text.into()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::{MAX_CONNECTIONS, Metrics, Readiness, is_asked_directly, serve};

    #[tokio::test]
    async fn connections_that_say_nothing_are_bounded_and_make_room_for_others() {
        // FAULTS 121
        let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listen.local_addr().unwrap();
        drop(listen);
        let readiness: Readiness = Arc::new(Vec::new);
        let metrics = Arc::new(Metrics::default());
        let serving = serve(address, "metrics", metrics, readiness, None).await;
        let serving = tokio::spawn(serving.unwrap());
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        let request = b"GET /healthz/live HTTP/1.1\r\nhost: any\r\n\r\n";
        asking.write_all(request).await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // It was let in when one of them had been sent away, not before.
        let mut rest = String::new();
        let first = idle.first_mut().unwrap();
        tokio::select! {
            biased;
            ended = first.read_to_string(&mut rest) => drop(ended),
            () = std::future::ready(()) => panic!("more were let in than there are places"),
        }
        serving.abort();
    }

    #[test]
    fn the_admin_listener_answers_to_no_other_name() {
        // FAULTS 121
        for (host, expected) in [
            ("127.0.0.1:15000", true),
            ("127.0.0.1", true),
            ("localhost:15000", true),
            ("localhost", true),
            ("[::1]:15000", true),
            ("[::1]", true),
            ("evil.test", false),
            ("evil.test:15000", false),
            ("127.0.0.1.evil.test:15000", false),
            ("localhost.evil.test", false),
            ("", false),
        ] {
            let request = Request::get("/connections").header("host", host);
            let request = request.body(()).unwrap();
            assert_eq!(is_asked_directly(&request), expected, "{host}");
        }
        assert!(!is_asked_directly(&Request::new(())));
    }
}
