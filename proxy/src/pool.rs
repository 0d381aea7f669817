//! Connections to upstreams: the app of this pod, and other proxies. Kept open and used again.
//!
//! HTTP/2 connections are shared by many requests; an HTTP/1.1 connection serves one at a time. A
//! kept connection may die at any moment: a request that it swallowed is sent once more on another
//! one, if it can be repeated safely (`body` and `exchange` know when).
//!
//! The pool knows nothing of policies and balancing. Who asks it has decided where to go.

mod body;
mod exchange;
mod form;
mod host;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use dashmap::DashMap;
use http::{Request, Response};
use hyper::body::Incoming;
use postern_spiffe::SpiffeId;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    connections::Watched,
    http::answer::Ambiguous,
    renewal::Renewal,
    telemetry::{Metrics, upstream::BoundLabels},
};
pub(crate) use body::Outgoing;
pub(crate) use exchange::Again;
use exchange::exchange;
use host::{Busy, Host, StreamSlot};

/// Which upstream, and what is spoken with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Upstream {
    /// The app of this pod.
    App {
        /// Where it listens.
        address: SocketAddr,
        /// Speaks HTTP/2 without being asked.
        http2: bool,
    },
    /// A Workload, over mutual TLS.
    Mesh {
        /// Who must be there: a connection to one identity never serves requests for another.
        identity: SpiffeId,
        /// Where it is reached.
        address: SocketAddr,
        /// What was said in the handshake: policies at the other end may look at it.
        name: Option<ServerName<'static>>,
    },
}

impl Upstream {
    /// Where it is, seen from the pod.
    fn direction(&self) -> &'static str {
        match self {
            Self::App { .. } => "inbound",
            Self::Mesh { .. } => "outbound",
        }
    }
}

/// A stream to an upstream.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

/// A new connection.
pub(crate) struct Connected {
    /// Its bytes.
    pub(crate) stream: Box<dyn Stream>,
    /// Speaks HTTP/2.
    pub(crate) http2: bool,
    /// From when on no new request may begin on it.
    pub(crate) retire_at: Option<Instant>,
    /// What watches it, if its peer has an identity.
    pub(crate) watched: Option<Watched>,
    /// How it is kept beyond the end of its certificates, if both ends know how.
    pub(crate) renewal: Option<Renewal>,
}

/// What one upstream may take of us.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How long a connection may take to be there.
    pub(crate) connect: Duration,
    /// How long the head of an answer may take after the last byte of the request.
    pub(crate) answer: Duration,
    /// How many HTTP/1.1 connections may be open.
    pub(crate) connections: usize,
    /// How many HTTP/2 connections may be open.
    pub(crate) shared: usize,
    /// How many requests may wait for a connection.
    pub(crate) pending: usize,
}

/// Why an upstream gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// It cannot be reached.
    #[error("cannot connect to the upstream: {0}")]
    Connect(String),
    /// It did not let itself be reached in time.
    #[error("cannot connect to the upstream: {0}")]
    ConnectTimeout(String),
    /// It is not who it must be, or refuses us.
    #[error("no mutual TLS with the upstream: {0}")]
    Tls(String),
    /// It did not answer in time.
    #[error("the upstream did not answer in time")]
    Timeout,
    /// Its answer is not HTTP, or broke off.
    #[error("the upstream's answer is not usable: {0}")]
    Answer(String),
    /// Its answer can be read in two ways.
    #[error("the upstream's answer is refused: {0}")]
    Ambiguous(#[from] Ambiguous),
    /// The caller broke off in the middle of its request.
    #[error("the request broke off: {0}")]
    Caller(String),
    /// The request cannot be put into the upstream's form.
    #[error("the request cannot be forwarded")]
    Request,
    /// As much is under way as may be.
    #[error("the bound `{0}` is reached")]
    Bound(&'static str),
}

impl UpstreamError {
    /// There was no connection within `limit`.
    pub(crate) fn too_late(limit: Duration) -> Self {
        Self::ConnectTimeout(format!("no connection within {}ms", limit.as_millis()))
    }
}

/// The answer's head, and what must be held until its body has ended.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    /// The place of the request on its connection.
    pub(crate) held: Held,
    /// The request, if it can be sent again without being done twice.
    pub(crate) again: Option<Again>,
    /// How long it took, without the time for a connection.
    pub(crate) took: Duration,
}

/// A request's place on its connection, until the answer has ended.
pub(crate) enum Held {
    /// All of it.
    Http1 { _busy: Busy },
    /// One of its streams.
    Http2 { _slot: StreamSlot },
}

/// A request without an answer.
pub(crate) struct Failed {
    pub(crate) error: UpstreamError,
    /// The request, if it can be sent again without being done twice.
    pub(crate) again: Option<Request<Outgoing>>,
}

/// Connections that wait for requests, by upstream.
pub(crate) struct Pool {
    hosts: DashMap<Upstream, Arc<Host>>,
    metrics: Arc<Metrics>,
}

impl Pool {
    /// An empty one.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            hosts: DashMap::new(),
            metrics,
        }
    }

    /// Lets go of everything: what comes next uses new connections. Those in use end by
    /// themselves.
    pub(crate) fn clear(&self) {
        for host in &self.hosts {
            host.clear();
        }
    }

    /// Closes what nobody used for a while, for ever.
    pub(crate) async fn tend(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TEND_EVERY);
        loop {
            tick.tick().await;
            for host in &self.hosts {
                host.close_idle(IDLE_TIMEOUT);
            }
            // A host that somebody holds is about to be used.
            self.hosts
                .retain(|_, host| Arc::strong_count(host) > 1 || !host.is_unused(IDLE_TIMEOUT));
        }
    }

    /// Sends a request and waits for the head of the answer. `connect` makes a connection when
    /// there is none.
    ///
    /// # Errors
    /// [`Failed`]; callers try again, or answer 502, 503 or 504.
    pub(crate) async fn send<F: Future<Output = Result<Connected, UpstreamError>>>(
        &self,
        upstream: &Upstream,
        mut request: Request<Outgoing>,
        limits: &Limits,
        connect: impl Fn() -> F,
    ) -> Result<Answer, Failed> {
        let host = self.host(upstream);
        let began = Instant::now();
        let mut left = DEAD_CONNECTIONS;
        loop {
            let lease = match host.checkout(limits, &connect).await {
                Ok(lease) => lease,
                Err(error) => {
                    self.count(upstream, &error);
                    let again = Some(request);
                    return Err(Failed { error, again });
                }
            };
            let kept = lease.kept();
            // Whoever has waited for a connection has less time left for the answer.
            let patience = limits.answer.saturating_sub(began.elapsed());
            match (exchange(&host, lease, request, patience).await, kept) {
                // It died while it waited: once more, on another.
                (
                    Err(Failed {
                        error: UpstreamError::Answer(_),
                        again: Some(again),
                    }),
                    Some(kept),
                ) if left > 0 => {
                    host.forget(&kept);
                    left -= 1;
                    request = again;
                    self.metrics.upstream.replaced.inc();
                }
                (done, _) => return done,
            }
        }
    }

    fn host(&self, upstream: &Upstream) -> Arc<Host> {
        if let Some(host) = self.hosts.get(upstream) {
            return host.clone();
        }
        let make = || Arc::new(Host::new(upstream, self.metrics.clone()));
        self.hosts
            .entry(upstream.clone())
            .or_insert_with(make)
            .clone()
    }

    fn count(&self, upstream: &Upstream, error: &UpstreamError) {
        if let UpstreamError::Bound(bound) = error {
            let labels = BoundLabels {
                direction: upstream.direction(),
                bound,
            };
            self.metrics.upstream.bounds.get_or_create(&labels).inc();
        }
    }
}

pub(crate) const MAX_HEADERS: usize = 128;
pub(crate) const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;

/// Large windows: between proxies many requests share one connection.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;

/// How many requests share an HTTP/2 connection before there is a second one. Our proxies take as
/// many.
pub(crate) const STREAMS: usize = 100;

/// Kept connections that wait longer may be closed by the upstream at any moment.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const TEND_EVERY: Duration = Duration::from_secs(5);

/// A restarted upstream leaves more than one dead connection behind.
const DEAD_CONNECTIONS: u32 = 2;
