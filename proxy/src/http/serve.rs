//! Speaking HTTP with whoever called: the bounds, the checks that every request must pass, and the
//! answers that are ours.

use std::{convert::Infallible, time::Duration};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, SERVER, TRANSFER_ENCODING},
    uri::PathAndQuery,
};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_policies::normalize::{self, HostRefused, PathNormalization, PathRefused};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::{body::Answered, headers};
use crate::pool::{CONNECTION_WINDOW, MAX_HEADER_LIST_BYTES, MAX_HEADERS, STREAM_WINDOW};

/// Serves a connection until it ends. When `draining` is cancelled it finishes what is in flight
/// and ends.
pub(crate) async fn serve<S, F>(
    stream: S,
    is_http2: bool,
    draining: CancellationToken,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Answered>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer(request).await) }
    });
    let io = TokioIo::new(stream);
    if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = draining.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        return connection.await;
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .half_close(true)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = draining.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Why a request is refused before any policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("method {0} is never forwarded")]
    Method(&'static str),
    #[error("the request has no host, or more than one")]
    Host,
    #[error("the request's host is not that of its target")]
    HostMismatch,
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
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// A request in its one spelling: what is judged, and what will be forwarded.
#[derive(Debug)]
pub(crate) struct Clean {
    pub(crate) request: Request<Incoming>,
    /// The authority, with its port if one was sent.
    pub(crate) host: String,
    pub(crate) id: HeaderValue,
}

impl Clean {
    pub(crate) fn path(&self) -> &str {
        self.request.uri().path()
    }
}

/// Brings a request into its one spelling: target, host, path, header fields.
///
/// # Errors
/// [`Malformed`] with the request's id: it is refused, and the app does not see it.
pub(crate) fn clean(
    mut request: Request<Incoming>,
    paths: PathNormalization,
) -> Result<Clean, (Malformed, HeaderValue)> {
    headers::strip_identity(request.headers_mut());
    let id = headers::request_id(request.headers_mut());
    match check(&request, paths) {
        Ok((host, target)) => {
            headers::strip_hop_by_hop(request.headers_mut());
            headers::trace(request.headers_mut());
            if let Ok(value) = HeaderValue::try_from(host.as_str()) {
                request.headers_mut().insert(HOST, value);
            }
            *request.uri_mut() = Uri::from(target);
            Ok(Clean { request, host, id })
        }
        Err(malformed) => Err((malformed, id)),
    }
}

fn check(
    request: &Request<Incoming>,
    paths: PathNormalization,
) -> Result<(String, PathAndQuery), Malformed> {
    match *request.method() {
        Method::CONNECT => return Err(Malformed::Method("CONNECT")),
        Method::TRACE => return Err(Malformed::Method("TRACE")),
        _ => {}
    }
    let headers = request.headers();
    lengths(request.version(), headers)?;
    let host = host(request.uri(), headers)?;
    let path = normalize::path(request.uri().path(), paths)?;
    let target = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    };
    let target = PathAndQuery::try_from(target).map_err(|_| PathRefused::Character)?;
    Ok((host, target))
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
    Ok(())
}

/// One host: the target's, the `Host` field's, or both if they agree. Spec: RFC 9112 section 3.2.
fn host(uri: &Uri, headers: &HeaderMap) -> Result<String, Malformed> {
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
        (Some(target), Some(field)) if target != field => Err(Malformed::HostMismatch),
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
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("postern"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(headers::REQUEST_ID, id.clone());
    response
}

/// The answer to a malformed request.
pub(crate) fn refuse_malformed(malformed: Malformed, id: &HeaderValue) -> Response<Answered> {
    match malformed.status() {
        StatusCode::METHOD_NOT_ALLOWED => {
            own_answer(StatusCode::METHOD_NOT_ALLOWED, "method not allowed", id)
        }
        status => own_answer(status, "bad request", id),
    }
}

const MAX_STREAMS: u32 = 100;
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 128;
const MAX_HEAD_BYTES: usize = 64 << 10;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
