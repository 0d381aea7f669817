//! Speaking HTTP with whoever called: the bounds, the checks that every request must pass, and the
//! answers that are ours.

use std::{
    convert::Infallible,
    error::Error as _,
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, SERVER, TRANSFER_ENCODING},
    uri::PathAndQuery,
};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_policies::normalize::{self, HostRefused, PathNormalization, PathRefused};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::timeout,
};

use super::{
    body::{Answered, Asked, Untaken},
    grpc,
    guard::{Guarded, Wire},
    head::{self, MAX_HEAD_BYTES},
    headers,
    trace::TraceContext,
    upgrade::{Tunnels, offers_websocket},
};
use crate::{
    config::Patience,
    detect::{Detecting, Spoken},
    drain::Steps,
    pool::{CONNECTION_WINDOW, MAX_HEADER_LIST_BYTES, MAX_HEADERS, STREAM_WINDOW},
    until::until,
};

/// Why a connection did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    /// What came, or how it stopped coming.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// Answers that nobody took.
    #[error("the caller took nothing of an answer for {0:?}")]
    Untaken(Duration),
    /// Nothing that begins HTTP/2, or not in time.
    #[error("the caller did not begin HTTP/2 within {0:?}")]
    Preface(Duration),
}

impl Cut {
    /// The limit that was reached, if it was one of ours.
    pub(crate) fn limit(&self) -> Option<&'static str> {
        let error = match self {
            Self::Untaken(_) => return Some("untaken"),
            Self::Preface(_) => return Some("too_slow"),
            Self::Http(error) => error,
        };
        let cause = error
            .source()
            .and_then(|cause| cause.downcast_ref::<io::Error>());
        let is_late = cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut);
        (is_late || error.is_timeout()).then_some("too_slow")
    }
}

/// When a connection is to end, without anything that is in flight being lost.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    /// With the proxy.
    pub(crate) steps: Steps,
    /// The caller is asked to leave, and may finish what it has begun: its certificate ends soon.
    pub(crate) leave_at: Option<Instant>,
}

impl Ending {
    async fn begins(&self) {
        let leave = async {
            match self.leave_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.steps.leaving.cancelled() => {}
            () = leave => {}
        }
    }

    fn must_leave(&self) -> bool {
        self.steps.leaving.is_cancelled() || self.leave_at.is_some_and(|at| Instant::now() >= at)
    }

    /// Waits until a connection of HTTP/1 on which nothing is asked is to end. Who has just come is
    /// about to ask: its first request is waited for.
    async fn ends_idle(&self, came: Instant, asked: &Notify) {
        self.steps.closing.cancelled().await;
        tokio::select! {
            () = asked.notified() => {}
            () = tokio::time::sleep_until((came + FIRST_REQUEST).into()) => {}
        }
    }
}

/// Serves a connection until it ends. When the proxy ends it finishes what is in flight and ends.
pub(crate) async fn serve<S, F>(
    stream: S,
    is_http2: bool,
    steps: Steps,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> Result<(), Cut>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Answered>> + Send + 'static,
{
    let ending = Ending {
        steps,
        leave_at: None,
    };
    serve_within(Patience::default(), stream, is_http2, ending, answer).await
}

/// Serves a connection of a caller that may stand still for so long and no longer.
pub(crate) async fn serve_within<S, F>(
    patience: Patience,
    stream: S,
    is_http2: bool,
    ending: Ending,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> Result<(), Cut>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Answered>> + Send + 'static,
{
    // On the heap: a connection without a request has no room for one.
    let answer = move |request| survived(Box::pin(answer(request)));
    if is_http2 {
        serve_http2(patience, stream, ending, answer).await
    } else {
        serve_http1(patience, stream, ending, answer).await
    }
}

async fn serve_http2<S, F>(
    patience: Patience,
    stream: S,
    ending: Ending,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> Result<(), Cut>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Answered>> + Send + 'static,
{
    // The library would wait for the preface for ever.
    let mut stream = Detecting::new(stream);
    match timeout(patience.head, stream.spoken()).await {
        Ok(Ok(Spoken::Http2)) => {}
        _ => return Err(Cut::Preface(patience.head)),
    }
    let stream = stream.rewound();
    let untaken = Untaken::new(patience.write);
    let service = {
        let untaken = untaken.clone();
        service_fn(move |request| {
            let (answer, untaken) = (answer.clone(), untaken.clone());
            async move {
                let is_call = grpc::is_grpc(request.headers());
                let mut response = answer(request).await;
                if is_call {
                    response = grpc::in_form(response);
                }
                let is_stream = grpc::is_grpc(response.headers());
                Ok::<_, Infallible>(response.map(|body| body.watched(&untaken, is_stream)))
            }
        })
    };
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .max_send_buf_size(MAX_SEND_BYTES)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = async {
        match until(connection.as_mut(), ending.begins()).await {
            Ok(ended) => ended,
            Err(()) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    match until(served, untaken.for_too_long()).await {
        Ok(ended) => Ok(ended?),
        Err(()) => Err(Cut::Untaken(patience.write)),
    }
}

/// Below the library the stream is watched: see [`Guarded`].
async fn serve_http1<S, F>(
    patience: Patience,
    stream: S,
    ending: Ending,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> Result<(), Cut>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Answered>> + Send + 'static,
{
    let (wire, tunnels) = (Arc::new(Wire::default()), Tunnels::default());
    let stream = Guarded::new(stream, wire.clone(), patience);
    // Each request has its own handle on both.
    let (ending, asked) = (Arc::new(ending), Arc::new(Notify::new()));
    let came = Instant::now();
    let service = {
        let (tunnels, ending, asked) = (tunnels.clone(), ending.clone(), asked.clone());
        service_fn(move |mut request: Request<Incoming>| {
            asked.notify_one();
            let (number, refused) = wire.take_up();
            if let Some(refused) = refused {
                request.extensions_mut().insert(refused);
            }
            if wire.is_offer(number) {
                request.extensions_mut().insert(tunnels.clone());
            }
            let (answer, wire, ending) = (answer.clone(), wire.clone(), ending.clone());
            if !request.body().is_end_stream() {
                request.extensions_mut().insert(wire.clone());
            }
            async move {
                let mut response = answer(request).await;
                let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                wire.answered(number, switches);
                // A connection that nobody uses stays: its caller may be about to ask.
                if ending.must_leave() && !switches {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let outcome = match until(connection.as_mut(), ending.ends_idle(came, &asked)).await {
        Ok(ended) => ended,
        Err(()) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    tunnels.ended().await;
    Ok(outcome?)
}

/// The answer of a request, or 500 where its making panics: that is a defect of ours, and neither other
/// requests nor the connection pay for it. Nobody looks again at what is dropped here half done.
async fn survived(
    mut answer: impl Future<Output = Response<Answered>> + Unpin,
) -> Response<Answered> {
    let outcome = poll_fn(|context| {
        let polled = AssertUnwindSafe(|| Pin::new(&mut answer).poll(context));
        match catch_unwind(polled) {
            Ok(polled) => polled.map(Some),
            Err(_) => Poll::Ready(None),
        }
    });
    outcome.await.unwrap_or_else(|| {
        let id = headers::request_id(&mut HeaderMap::new());
        tracing::error!(request_id = ?id, "a request is answered by 500: its task panicked");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let mut answer = own_answer(status, "internal error", &id);
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(CONNECTION, close);
        answer
    })
}

/// Why a request is refused before any policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error(transparent)]
    Wire(#[from] head::Refused),
    #[error("method {0} is never forwarded")]
    Method(&'static str),
    #[error("the method is none that is known; names of methods are in capital letters")]
    UnknownMethod,
    #[error("the target's scheme is neither http nor https")]
    Scheme,
    #[error("the request has no host, or more than one")]
    Host,
    #[error("the request's host is not that of its target")]
    HostMismatch,
    #[error("a field's value begins or ends with a space or a tab")]
    Padding,
    #[error("the request has two lengths")]
    Length,
    #[error("HTTP/1.0 has no transfer encoding")]
    OldEncoding,
    #[error(transparent)]
    HostForm(#[from] HostRefused),
    #[error(transparent)]
    Path(#[from] PathRefused),
}

impl Malformed {
    fn status(self) -> StatusCode {
        match self {
            Self::Wire(refused) => refused.status(),
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnknownMethod => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// By what a request is found again, here and elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Marks {
    pub(crate) id: HeaderValue,
    pub(crate) trace: TraceContext,
}

impl Marks {
    /// Takes them from a request's fields, and says there what the next one is to see.
    fn take(headers: &mut HeaderMap) -> Self {
        Self {
            id: headers::request_id(headers),
            trace: TraceContext::take(headers),
        }
    }
}

/// A request in its one spelling: what is judged, and what will be forwarded.
#[derive(Debug)]
pub(crate) struct Clean {
    pub(crate) request: Request<Asked>,
    /// The authority, with its port if one was sent.
    pub(crate) host: String,
    pub(crate) marks: Marks,
    /// The stream that its body comes from, where that is watched.
    pub(crate) wire: Option<Arc<Wire>>,
    /// Where bytes flow if the app takes up the offer to speak WebSocket; `None` without one.
    pub(crate) websocket: Option<Tunnels>,
}

impl Clean {
    pub(crate) fn path(&self) -> &str {
        self.request.uri().path()
    }
}

/// Brings a request into its one spelling: target, host, path, header fields.
///
/// # Errors
/// [`Malformed`] with the request's marks: it is refused, and the app does not see it.
pub(crate) fn clean(
    mut request: Request<Incoming>,
    paths: PathNormalization,
) -> Result<Clean, Box<(Malformed, Marks)>> {
    headers::strip_identity(request.headers_mut());
    let marks = Marks::take(request.headers_mut());
    match check(&request, paths) {
        Ok((host, target)) => {
            let websocket = request.extensions_mut().remove::<Tunnels>();
            let websocket =
                websocket.filter(|_| offers_websocket(request.method(), request.headers()));
            let wire = request.extensions_mut().remove::<Arc<Wire>>();
            headers::strip_hop_by_hop(request.headers_mut());
            headers::join_cookies(request.headers_mut());
            frame(&mut request);
            if let Ok(value) = HeaderValue::try_from(host.as_str()) {
                request.headers_mut().insert(HOST, value);
            }
            *request.uri_mut() = Uri::from(target);
            Ok(Clean {
                request: request.map(Asked::from),
                host,
                marks,
                wire,
                websocket,
            })
        }
        Err(malformed) => Err(Box::new((malformed, marks))),
    }
}

/// Says how a body of unknown length travels. Without it a library takes for granted that a GET
/// has none.
fn frame(request: &mut Request<Incoming>) {
    let body = request.body();
    if !body.is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH) {
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(TRANSFER_ENCODING, chunked);
    }
}

fn check(
    request: &Request<Incoming>,
    paths: PathNormalization,
) -> Result<(String, PathAndQuery), Malformed> {
    if let Some(refused) = request.extensions().get::<head::Refused>() {
        return Err(Malformed::Wire(*refused));
    }
    match request.method().as_str() {
        "CONNECT" => return Err(Malformed::Method("CONNECT")),
        "TRACE" => return Err(Malformed::Method("TRACE")),
        method if METHODS.contains(&method) => {}
        _ => return Err(Malformed::UnknownMethod),
    }
    if !matches!(request.uri().scheme_str(), None | Some("http" | "https")) {
        return Err(Malformed::Scheme);
    }
    let headers = request.headers();
    // Of HTTP/1 the spaces around a value belong to the line; of HTTP/2 they would to the value, and an
    // app that speaks HTTP/1 would not see them. Spec: RFC 9113 section 8.2.1.
    if request.version() == Version::HTTP_2 && headers.values().any(is_padded) {
        return Err(Malformed::Padding);
    }
    lengths(request.version(), headers)?;
    // The library takes `?x` for a path, and adds the slash that it does not have.
    let target = request.uri().path_and_query().map(PathAndQuery::as_str);
    if request.version() == Version::HTTP_2 && target.is_some_and(|target| !target.starts_with('/'))
    {
        return Err(PathRefused::NotAbsolute.into());
    }
    let host = host(request.version(), request.uri(), headers)?;
    let path = normalize::path(request.uri().path(), paths)?;
    let target = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    };
    let target = PathAndQuery::try_from(target).map_err(|_| PathRefused::Character)?;
    Ok((host, target))
}

fn is_padded(value: &HeaderValue) -> bool {
    let ends = [value.as_bytes().first(), value.as_bytes().last()];
    ends.iter().any(|end| matches!(end, Some(b' ' | b'\t')))
}

/// Two statements about the length are two readings of where the request ends.
fn lengths(version: Version, headers: &HeaderMap) -> Result<(), Malformed> {
    let encoded = headers.contains_key(TRANSFER_ENCODING);
    if encoded && version == Version::HTTP_10 {
        return Err(Malformed::OldEncoding);
    }
    if (encoded && headers.contains_key(CONTENT_LENGTH))
        || headers.get_all(CONTENT_LENGTH).iter().count() > 1
    {
        return Err(Malformed::Length);
    }
    if let Some(length) = headers.get(CONTENT_LENGTH) {
        head::length(length.as_bytes())?;
    }
    Ok(())
}

/// One host: the target's, the `Host` field's, or both if they agree. Spec: RFC 9112 section 3.2.
fn host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<String, Malformed> {
    let mut fields = headers.get_all(HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (_, Some(_)) => return Err(Malformed::Host),
        (field, None) => field
            .map(|value| value.to_str().map_err(|_| Malformed::Host))
            .transpose()?,
    };
    let field = field.map(normalize::host).transpose()?;
    let target = uri
        .authority()
        .map(|target| normalize::host(target.as_str()))
        .transpose()?;
    match (target, field) {
        // Of HTTP/1 the target counts, and `Host` is set anew from it; of HTTP/2 both must agree.
        (Some(target), Some(field)) if target != field && version == Version::HTTP_2 => {
            Err(Malformed::HostMismatch)
        }
        (Some(host), _) | (None, Some(host)) => Ok(host.into_owned()),
        (None, None) => Err(Malformed::Host),
    }
}

/// An answer of our own.
pub(crate) fn own_answer(
    status: StatusCode,
    text: &'static str,
    id: &HeaderValue,
) -> Response<Answered> {
    let mut response = Response::new(Answered::own(text));
    *response.status_mut() = status;
    response.extensions_mut().insert(grpc::Words(text));
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("postern"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(headers::REQUEST_ID, id.clone());
    response
}

/// The answer to a malformed request. Over HTTP/1 the connection ends with it: where the next
/// request begins is in doubt.
pub(crate) fn refuse_malformed(malformed: Malformed, id: &HeaderValue) -> Response<Answered> {
    let text = match malformed.status() {
        StatusCode::METHOD_NOT_ALLOWED => "method not allowed",
        StatusCode::NOT_IMPLEMENTED => "method not implemented",
        StatusCode::URI_TOO_LONG => "target too long",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "header fields too large",
        StatusCode::EXPECTATION_FAILED => "expectation failed",
        StatusCode::HTTP_VERSION_NOT_SUPPORTED => "version not supported",
        _ => "bad request",
    };
    let mut answer = own_answer(malformed.status(), text, id);
    let close = HeaderValue::from_static("close");
    answer.headers_mut().insert(CONNECTION, close);
    answer
}

/// The methods that are forwarded: those of the IANA registry that are in use, and a few that
/// everybody knows. A method is compared as it stands; `get` is none.
const METHODS: [&str; 32] = [
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "HEAD",
    "PATCH",
    "OPTIONS",
    "QUERY",
    "SEARCH",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "ACL",
    "MKCALENDAR",
    "CHECKIN",
    "CHECKOUT",
    "MERGE",
    "MKACTIVITY",
    "BIND",
    "REBIND",
    "UNBIND",
    "LINK",
    "UNLINK",
    "PURGE",
    "NOTIFY",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
];

/// How long a caller may take from its first byte to its first request while the proxy ends.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

const MAX_STREAMS: u32 = 100;
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 128;

/// What is kept of an answer that its caller does not read yet, for each stream.
const MAX_SEND_BYTES: usize = 128 << 10;
