//! The connections to one upstream: taken, opened, waited for, given back.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{timeout, timeout_at},
};

use super::{
    CONNECTION_WINDOW, Connected, IDLE_TIMEOUT, Limits, MAX_HEADER_LIST_BYTES, MAX_HEADERS,
    Outgoing, STREAM_WINDOW, STREAMS, Upstream, UpstreamError,
};
use crate::{
    connections::{Traffic, Watched},
    renewal::{self, Renewal},
    telemetry::{Metrics, upstream::OpenedLabels},
};

/// One upstream.
pub(super) struct Host {
    direction: &'static str,
    state: Mutex<State>,
    /// Something that was waited for may be there: a place, a connection, a failure.
    changed: Notify,
    waiting: AtomicUsize,
    metrics: Arc<Metrics>,
}

struct State {
    /// What it spoke the last time; nothing is known before the first connection.
    speaks: Option<Speaks>,
    /// HTTP/1.1 connections that wait for a request.
    idle: Vec<Kept>,
    /// HTTP/2 connections that take requests.
    shared: Vec<Arc<Shared>>,
    /// HTTP/1.1 connections that are open, in use or not.
    open: usize,
    /// Connections that are being made.
    opening: usize,
    /// How often none could be made, and why the last time.
    failures: (u64, Option<UpstreamError>),
    used: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
}

/// An HTTP/1.1 connection.
pub(super) struct Kept {
    pub(super) sender: http1::SendRequest<Outgoing>,
    traffic: Option<Arc<Traffic>>,
    since: Instant,
    retire_at: Option<Instant>,
}

/// An HTTP/2 connection.
pub(super) struct Shared {
    sender: http2::SendRequest<Outgoing>,
    traffic: Option<Arc<Traffic>>,
    retire_at: Mutex<Option<Instant>>,
    streams: AtomicUsize,
    used: Mutex<Instant>,
}

/// A place on an HTTP/2 connection, given back when it is dropped.
pub(crate) struct StreamSlot {
    shared: Arc<Shared>,
    host: Arc<Host>,
}

/// A connection on which one request may be sent.
pub(super) enum Lease {
    Http1 { kept: Kept, is_new: bool },
    Http2 { slot: StreamSlot, is_new: bool },
}

/// Which kept connection a request was sent on.
pub(super) enum Used {
    Http1,
    Http2(Arc<Shared>),
}

impl Lease {
    /// A request is sent on it.
    pub(super) fn count(&self) {
        let traffic = match self {
            Self::Http1 { kept, .. } => &kept.traffic,
            Self::Http2 { slot, .. } => &slot.shared.traffic,
        };
        if let Some(traffic) = traffic {
            traffic.count_request();
        }
    }

    /// Which one it is, unless it was made for this request.
    pub(super) fn kept(&self) -> Option<Used> {
        match self {
            Self::Http1 { is_new: true, .. } | Self::Http2 { is_new: true, .. } => None,
            Self::Http1 { .. } => Some(Used::Http1),
            Self::Http2 { slot, .. } => Some(Used::Http2(slot.shared.clone())),
        }
    }
}

impl StreamSlot {
    fn new(shared: &Arc<Shared>, host: &Arc<Host>) -> Self {
        shared.streams.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: shared.clone(),
            host: host.clone(),
        }
    }

    pub(super) fn sender(&self) -> http2::SendRequest<Outgoing> {
        self.shared.sender.clone()
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        *lock(&self.shared.used) = Instant::now();
        self.shared.streams.fetch_sub(1, Ordering::Relaxed);
        self.host.changed.notify_one();
    }
}

/// An HTTP/1.1 connection whose answer is being read; kept when that was read to the end.
pub(crate) struct Busy(Option<(Kept, Arc<Host>)>);

impl Busy {
    pub(super) fn new(kept: Kept, host: &Arc<Host>) -> Self {
        Self(Some((kept, host.clone())))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Some((mut kept, host)) = self.0.take() else {
            return;
        };
        if kept.sender.is_ready() {
            return host.keep(kept);
        }
        // The answer may have ended, and its connection not know yet; without a runtime all ends.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            if kept.sender.ready().await.is_ok() {
                host.keep(kept);
            }
        });
    }
}

/// What a request may do.
enum Step {
    Take(Lease),
    Open(Opening),
    Wait,
}

impl Host {
    pub(super) fn new(upstream: &Upstream, metrics: Arc<Metrics>) -> Self {
        let state = State {
            speaks: match upstream {
                Upstream::App { http2: true, .. } => Some(Speaks::Http2),
                Upstream::App { http2: false, .. } => Some(Speaks::Http1),
                Upstream::Mesh { .. } => None,
            },
            idle: Vec::new(),
            shared: Vec::new(),
            open: 0,
            opening: 0,
            failures: (0, None),
            used: Instant::now(),
        };
        Self {
            direction: upstream.direction(),
            state: Mutex::new(state),
            changed: Notify::new(),
            waiting: AtomicUsize::new(0),
            metrics,
        }
    }

    /// A connection: a kept one, a new one, or the next that becomes free.
    ///
    /// # Errors
    /// When none can be made, or too many requests wait already.
    pub(super) async fn checkout<F: Future<Output = Result<Connected, UpstreamError>>>(
        self: &Arc<Self>,
        limits: &Limits,
        connect: &impl Fn() -> F,
    ) -> Result<Lease, UpstreamError> {
        let deadline = Instant::now() + limits.answer;
        let failures = lock(&self.state).failures.0;
        let mut place = None;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            // Whoever opened one for all of us failed: nobody tries it after them one by one.
            if let Some(error) = self.failed_since(failures) {
                return Err(error);
            }
            match self.step(limits) {
                Step::Take(lease) => return Ok(lease),
                Step::Open(opening) => return opening.open(limits.connect, connect).await,
                Step::Wait => {}
            }
            if place.is_none() {
                place = Some(Waiting::new(self, limits.pending)?);
            }
            timeout_at(deadline.into(), changed)
                .await
                .map_err(|_| UpstreamError::Bound("pending_timeout"))?;
        }
    }

    fn step(self: &Arc<Self>, limits: &Limits) -> Step {
        let mut state = lock(&self.state);
        state.used = Instant::now();
        state.shared.retain(|shared| shared.takes_requests());
        let streams = |shared: &&Arc<Shared>| shared.streams.load(Ordering::Relaxed);
        if let Some(least) = state.shared.iter().min_by_key(streams)
            && streams(&least) < STREAMS
        {
            let slot = StreamSlot::new(least, self);
            return Step::Take(Lease::Http2 {
                slot,
                is_new: false,
            });
        }
        while let Some(kept) = state.idle.pop() {
            if kept.takes_requests() {
                return Step::Take(Lease::Http1 {
                    kept,
                    is_new: false,
                });
            }
        }
        let may_open = match state.speaks {
            // The first one tells what is spoken, and may serve all.
            None => state.opening == 0,
            Some(Speaks::Http2) => state.opening == 0 && state.shared.len() < limits.shared,
            Some(Speaks::Http1) => state.open + state.opening < limits.connections,
        };
        if !may_open {
            return Step::Wait;
        }
        state.opening += 1;
        Step::Open(Opening { host: self.clone() })
    }

    fn failed_since(&self, before: u64) -> Option<UpstreamError> {
        let state = lock(&self.state);
        let (failures, error) = &state.failures;
        let is_alone = state.open == 0 && state.shared.is_empty();
        (is_alone && *failures > before)
            .then(|| error.clone())
            .flatten()
    }

    fn keep(&self, mut kept: Kept) {
        kept.since = Instant::now();
        lock(&self.state).idle.push(kept);
        self.changed.notify_one();
    }

    /// A kept connection was dead. Those that waited as long probably are, too.
    pub(super) fn forget(&self, used: &Used) {
        let mut state = lock(&self.state);
        match used {
            Used::Http1 => state.idle.clear(),
            Used::Http2(dead) => state.shared.retain(|shared| !Arc::ptr_eq(shared, dead)),
        }
    }

    /// Nothing that is open takes another request.
    pub(super) fn clear(&self) {
        let mut state = lock(&self.state);
        state.idle.clear();
        state.shared.clear();
    }

    /// Closes what nobody used for so long.
    pub(super) fn close_idle(&self, limit: Duration) {
        let mut state = lock(&self.state);
        state
            .idle
            .retain(|kept| kept.takes_requests() && kept.since.elapsed() < limit);
        state
            .shared
            .retain(|shared| shared.takes_requests() && !shared.is_idle(limit));
    }

    /// Nothing is open, and nobody asked for so long.
    pub(super) fn is_unused(&self, limit: Duration) -> bool {
        let state = lock(&self.state);
        state.open == 0
            && state.opening == 0
            && state.shared.is_empty()
            && state.used.elapsed() > limit
    }
}

impl Kept {
    fn takes_requests(&self) -> bool {
        is_fresh(self.retire_at) && self.sender.is_ready() && self.since.elapsed() < IDLE_TIMEOUT
    }
}

impl Shared {
    fn takes_requests(&self) -> bool {
        is_fresh(*lock(&self.retire_at)) && !self.sender.is_closed()
    }

    fn is_idle(&self, limit: Duration) -> bool {
        self.streams.load(Ordering::Relaxed) == 0 && lock(&self.used).elapsed() > limit
    }
}

/// The right to make a connection. However that ends, those who wait are told.
struct Opening {
    host: Arc<Host>,
}

impl Opening {
    async fn open<F: Future<Output = Result<Connected, UpstreamError>>>(
        self,
        limit: Duration,
        connect: &impl Fn() -> F,
    ) -> Result<Lease, UpstreamError> {
        let opened = timeout(limit, async { self.handshake(connect().await?).await })
            .await
            .unwrap_or_else(|_| Err(UpstreamError::too_late(limit)));
        if let Err(error) = &opened {
            let mut state = lock(&self.host.state);
            state.failures = (state.failures.0 + 1, Some(error.clone()));
        }
        opened
    }

    async fn handshake(&self, connected: Connected) -> Result<Lease, UpstreamError> {
        let Connected {
            stream,
            http2,
            retire_at,
            watched,
            renewal,
        } = connected;
        let traffic = watched.as_ref().map(|watched| watched.traffic().clone());
        let io = TokioIo::new(stream);
        let failed = |error: hyper::Error| UpstreamError::Connect(error.to_string());
        if http2 {
            let handshake = http2_client().handshake(io).await;
            let (sender, connection) = handshake.map_err(failed)?;
            let (lease, shared) = self.shared(sender, traffic, retire_at);
            tokio::spawn(async move {
                tokio::select! {
                    () = live(watched, connection) => {}
                    // It never ends the connection: that goes on until its certificates end.
                    () = keep(renewal, shared) => {}
                }
            });
            return Ok(lease);
        }
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_BUFFER_BYTES)
            .handshake(io)
            .await
            .map_err(failed)?;
        let open = Open::new(&self.host);
        tokio::spawn(async move {
            live(watched, connection).await;
            drop(open);
        });
        Ok(Lease::Http1 {
            kept: Kept {
                sender,
                traffic,
                since: Instant::now(),
                retire_at,
            },
            is_new: true,
        })
    }

    fn shared(
        &self,
        sender: http2::SendRequest<Outgoing>,
        traffic: Option<Arc<Traffic>>,
        retire_at: Option<Instant>,
    ) -> (Lease, Weak<Shared>) {
        let shared = Arc::new(Shared {
            sender,
            traffic,
            retire_at: Mutex::new(retire_at),
            streams: AtomicUsize::new(0),
            used: Mutex::new(Instant::now()),
        });
        let slot = StreamSlot::new(&shared, &self.host);
        let weak = Arc::downgrade(&shared);
        let mut state = lock(&self.host.state);
        state.speaks = Some(Speaks::Http2);
        state.shared.push(shared);
        self.host.count_opened("http2");
        (Lease::Http2 { slot, is_new: true }, weak)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        lock(&self.host.state).opening -= 1;
        self.host.changed.notify_waiters();
    }
}

/// An HTTP/1.1 connection is open.
struct Open {
    host: Arc<Host>,
}

impl Open {
    fn new(host: &Arc<Host>) -> Self {
        let mut state = lock(&host.state);
        state.speaks = Some(Speaks::Http1);
        state.open += 1;
        host.count_opened("http1");
        Self { host: host.clone() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.host.state).open -= 1;
        self.host.changed.notify_one();
    }
}

impl Host {
    fn count_opened(&self, protocol: &'static str) {
        let direction = self.direction;
        let labels = OpenedLabels {
            direction,
            protocol,
        };
        self.metrics.upstream.opened.get_or_create(&labels).inc();
    }
}

/// A place among those who wait.
struct Waiting<'h> {
    host: &'h Host,
}

impl<'h> Waiting<'h> {
    fn new(host: &'h Host, most: usize) -> Result<Self, UpstreamError> {
        // Made first, so that whatever follows gives the place back.
        let before = host.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Self { host };
        match before < most {
            true => Ok(place),
            false => Err(UpstreamError::Bound("pending")),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.host.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Idle connections are asked as well whether they live: a dead one is found before a request is
/// lost on it.
fn http2_client() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_send_buf_size(MAX_SEND_BYTES)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE)
        .keep_alive_while_idle(true);
    builder
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

/// Keeps a connection beyond the end of its certificates for as long as somebody uses it. Does not
/// end while the connection lives.
async fn keep(renewal: Option<Renewal>, shared: Weak<Shared>) {
    if let Some(mut renewal) = renewal {
        while renewal.due().await {
            // Held only while asking: a connection that nobody uses any more ends.
            let Some(shared) = shared.upgrade() else {
                break;
            };
            let renewed = timeout(renewal::PATIENCE, renew(&mut renewal, &shared)).await;
            match renewed.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time"))) {
                Ok(()) => renewal.count("renewed"),
                Err(error) => {
                    renewal.count("failed");
                    tracing::warn!(
                        connection_id = renewal.id,
                        dst.identity = %renewal.expected,
                        error = format!("{error:#}"),
                        "a connection is not renewed; it ends with its certificates"
                    );
                }
            }
        }
    }
    std::future::pending().await
}

/// Shows our certificate, and sees the other end's.
async fn renew(renewal: &mut Renewal, shared: &Shared) -> anyhow::Result<()> {
    let (request, ours) = renewal.request()?;
    let mut sender = shared.sender.clone();
    sender.ready().await?;
    let answer = sender.send_request(request.map(Outgoing::own)).await?;
    let status = answer.status();
    anyhow::ensure!(status == StatusCode::OK, "the answer is {status}");
    let body = Limited::new(answer.into_body(), renewal::MAX_PROOF_BYTES);
    let proof = body.collect().await.map_err(anyhow::Error::from_boxed)?;
    renewal.answered(&proof.to_bytes(), ours)?;
    let left = renewal.until.duration_since(SystemTime::now());
    // As for a new one: well before the end it takes no new requests.
    *lock(&shared.retire_at) =
        Some(Instant::now() + renewal::until_retired(left.unwrap_or_default()));
    Ok(())
}

fn is_fresh(retire_at: Option<Instant>) -> bool {
    retire_at.is_none_or(|at| Instant::now() < at)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const PING_EVERY: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// Larger frames cost fewer records for large bodies, and are held whole in memory.
const MAX_FRAME_BYTES: u32 = 64 << 10;

/// How much of one request may wait in memory for a slow upstream.
const MAX_SEND_BYTES: usize = 256 << 10;

/// The longest head of an answer, and the most of its body that is read ahead.
const MAX_BUFFER_BYTES: usize = 64 << 10;
