//! Connections to upstreams: the app, and other proxies. Kept open and used again.
//!
//! HTTP/2 connections are shared by all requests; an HTTP/1.1 connection serves one at a time.
//! When a kept connection turns out to be dead before anything was sent on it, the request is
//! tried once more on a new one.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, Response, Uri, Version, header::HOST, uri::Authority};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_spiffe::SpiffeId;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use super::{
    answer::{Ambiguous, check},
    body::Asked,
    head::MAX_HEAD_BYTES,
};
use crate::connections::Watched;

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
    },
}

/// A stream to an upstream.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

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
}

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// It cannot be reached.
    #[error("cannot connect to the upstream: {0}")]
    Connect(String),
    /// It is not who it must be, or refuses us.
    #[error("no mutual TLS with the upstream: {0}")]
    Tls(String),
    /// It did not answer in time.
    #[error("the upstream did not answer in time")]
    Timeout,
    /// Its answer is not HTTP, or broke off.
    #[error("the upstream's answer is not usable: {0}")]
    Answer(hyper::Error),
    /// Its answer can be read in two ways.
    #[error("the upstream's answer is refused: {0}")]
    Ambiguous(#[from] Ambiguous),
    /// The request cannot be put into the upstream's form.
    #[error("the request cannot be forwarded")]
    Request,
}

/// Connections that wait for requests.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<HashMap<Upstream, Vec<Kept<http1::SendRequest<Asked>>>>>,
    shared: Mutex<HashMap<Upstream, Kept<http2::SendRequest<Asked>>>>,
}

#[derive(Debug, Clone)]
struct Kept<T> {
    sender: T,
    since: Instant,
    retire_at: Option<Instant>,
}

impl<T> Kept<T> {
    fn is_fresh(&self) -> bool {
        self.retire_at.is_none_or(|at| Instant::now() < at)
    }
}

enum Sender {
    Http1(Kept<http1::SendRequest<Asked>>),
    Http2(Kept<http2::SendRequest<Asked>>),
}

impl Pool {
    /// Lets go of everything: what comes next uses new connections. Those in use end by
    /// themselves.
    pub(crate) fn clear(&self) {
        lock(&self.idle).clear();
        lock(&self.shared).clear();
    }

    /// Sends a request and waits for the head of the answer. `connect` makes a connection when
    /// there is none.
    ///
    /// # Errors
    /// [`UpstreamError`]; callers answer 502, 503 or 504.
    pub(crate) async fn send<F: Future<Output = Result<Connected, UpstreamError>>>(
        self: &Arc<Self>,
        upstream: &Upstream,
        mut request: Request<Asked>,
        connect: impl Fn() -> F,
    ) -> Result<Response<Incoming>, UpstreamError> {
        if let Some(sender) = self.take(upstream) {
            match self.try_send(upstream, sender, request).await {
                Ok(response) => return Ok(response),
                // It was dead, and nothing was sent: once more, on a new one.
                Err((_, Some(unsent))) => request = unsent,
                Err((error, None)) => return Err(error),
            }
        }
        let connected = timeout(CONNECT_TIMEOUT, connect())
            .await
            .map_err(|_| UpstreamError::Connect("no connection in time".into()))??;
        let sender = self.open(upstream, connected).await?;
        self.try_send(upstream, sender, request)
            .await
            .map_err(|(error, _)| error)
    }

    fn take(&self, upstream: &Upstream) -> Option<Sender> {
        if let Some(kept) = lock(&self.shared).get(upstream).cloned()
            && kept.is_fresh()
            && !kept.sender.is_closed()
        {
            return Some(Sender::Http2(kept));
        }
        let mut idle = lock(&self.idle);
        let kept = idle.get_mut(upstream)?;
        while let Some(one) = kept.pop() {
            if one.is_fresh() && one.sender.is_ready() && one.since.elapsed() < IDLE_TIMEOUT {
                return Some(Sender::Http1(one));
            }
        }
        None
    }

    async fn open(
        &self,
        upstream: &Upstream,
        connected: Connected,
    ) -> Result<Sender, UpstreamError> {
        let Connected {
            stream,
            http2,
            retire_at,
            watched,
        } = connected;
        let io = TokioIo::new(stream);
        if !http2 {
            let (sender, connection) = http1::Builder::new()
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEAD_BYTES)
                .handshake(io)
                .await
                .map_err(UpstreamError::Answer)?;
            tokio::spawn(live(watched, connection));
            return Ok(Sender::Http1(Kept {
                sender,
                since: Instant::now(),
                retire_at,
            }));
        }
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .keep_alive_interval(Duration::from_secs(20))
            .handshake(io)
            .await
            .map_err(UpstreamError::Answer)?;
        tokio::spawn(live(watched, connection));
        let kept = Kept {
            sender,
            since: Instant::now(),
            retire_at,
        };
        lock(&self.shared).insert(upstream.clone(), kept.clone());
        Ok(Sender::Http2(kept))
    }

    async fn try_send(
        self: &Arc<Self>,
        upstream: &Upstream,
        sender: Sender,
        request: Request<Asked>,
    ) -> Result<Response<Incoming>, (UpstreamError, Option<Request<Asked>>)> {
        let bad = |_| (UpstreamError::Request, None);
        let sent = async {
            match sender {
                Sender::Http1(mut kept) => {
                    let request = for_http1(request).map_err(bad)?;
                    let response = kept.sender.try_send_request(request).await;
                    let response = response.map_err(unsent)?;
                    // A refused answer ends its connection: nobody knows where it ends.
                    check(&response).map_err(|ambiguous| (ambiguous.into(), None))?;
                    self.keep_when_ready(upstream.clone(), kept);
                    Ok(response)
                }
                Sender::Http2(mut kept) => {
                    let request = for_http2(request).map_err(bad)?;
                    kept.sender.try_send_request(request).await.map_err(unsent)
                }
            }
        };
        timeout(ANSWER_TIMEOUT, sent)
            .await
            .map_err(|_| (UpstreamError::Timeout, None))?
    }

    /// An HTTP/1.1 connection can be used again when its answer has been read to the end.
    fn keep_when_ready(
        self: &Arc<Self>,
        upstream: Upstream,
        mut kept: Kept<http1::SendRequest<Asked>>,
    ) {
        let pool = self.clone();
        tokio::spawn(async move {
            if kept.sender.ready().await.is_ok() {
                kept.since = Instant::now();
                let mut idle = lock(&pool.idle);
                let idle = idle.entry(upstream).or_default();
                if idle.len() < MAX_IDLE {
                    idle.push(kept);
                }
            }
        });
    }
}

/// Drives a connection until it ends, or must end.
async fn live(watched: Option<Watched>, connection: impl Future<Output = hyper::Result<()>>) {
    let must_end = async {
        match &watched {
            Some(watched) => watched.must_end().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = connection => {}
        () = must_end => {}
    }
}

type Unsent = (UpstreamError, Option<Request<Asked>>);

fn unsent(mut error: hyper::client::conn::TrySendError<Request<Asked>>) -> Unsent {
    let request = error.take_message();
    (UpstreamError::Answer(error.into_error()), request)
}

/// HTTP/1.1 has the path in its first line, and the authority in `Host`.
fn for_http1(mut request: Request<Asked>) -> Result<Request<Asked>, http::Error> {
    if !request.headers().contains_key(HOST)
        && let Some(authority) = request.uri().authority()
    {
        let host = HeaderValue::try_from(authority.as_str())?;
        request.headers_mut().insert(HOST, host);
    }
    *request.version_mut() = Version::HTTP_11;
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::builder()
        .path_and_query(path.unwrap_or_else(|| http::uri::PathAndQuery::from_static("/")))
        .build()?;
    Ok(request)
}

/// HTTP/2 has both in its pseudo-headers.
fn for_http2(mut request: Request<Asked>) -> Result<Request<Asked>, http::Error> {
    let host = request.headers_mut().remove(HOST);
    let authority = match (request.uri().authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes())?,
        (None, None) => Authority::from_static("localhost"),
    };
    *request.version_mut() = Version::HTTP_2;
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(path.unwrap_or_else(|| http::uri::PathAndQuery::from_static("/")))
        .build()?;
    Ok(request)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) const MAX_HEADERS: usize = 128;
pub(crate) const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;

/// Large windows: between proxies many requests share one connection.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The head of an answer is waited for this long; its body may take any time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Kept connections that wait longer may be closed by the upstream at any moment.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How many idle connections are kept for one upstream.
const MAX_IDLE: usize = 256;
