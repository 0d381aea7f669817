//! Switching protocols: WebSocket, where the configuration says so.
//!
//! The offer is judged as the request that it is. The app, or the proxy of another pod, is asked over
//! a connection of its own, and only when it answers 101 to exactly what was offered do bytes flow
//! both ways. They flow inside the caller's connection: when that is cut, so are they.

use std::{
    any::Any,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::{
    answer::{Ambiguous, lengths},
    body::Asked,
    head::{MAX_FIELDS, MAX_HEAD_BYTES},
    headers,
    serve::Marks,
};
use crate::{
    access_log::{AccessLog, Line, Record, may_not_go_on},
    app::Proxy,
    connections::Watched,
    pool::{Stream, UpstreamError},
    relay,
    telemetry::upstream::BoundLabels,
};

/// The tunnels of a connection. They end when the connection's task drops this.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tunnels(Arc<Mutex<JoinSet<()>>>);

impl Tunnels {
    fn spawn(&self, tunnel: impl Future<Output = ()> + Send + 'static) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while all.try_join_next().is_some() {}
        all.spawn(tunnel);
    }

    /// Waits until all have ended.
    pub(crate) async fn ended(&self) {
        let mut all = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *all)
        };
        while all.join_next().await.is_some() {}
    }
}

/// Does the request offer to speak WebSocket? Spec: RFC 6455 section 4.1.
pub(crate) fn offers_websocket(method: &Method, headers: &HeaderMap) -> bool {
    let one = |name| {
        let mut all = headers.get_all(name).iter();
        all.next().filter(|_| all.next().is_none())
    };
    let is = |value: Option<&HeaderValue>, wanted: &str| {
        value.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
    };
    let options = headers.get_all(CONNECTION).iter();
    let names_upgrade = options
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|option| option.trim().eq_ignore_ascii_case("upgrade"));
    method == Method::GET
        && names_upgrade
        && is(one(UPGRADE), "websocket")
        && is(one(SEC_WEBSOCKET_VERSION), "13")
        && one(SEC_WEBSOCKET_KEY).is_some()
}

/// A connection on which an offer is made, and nothing else.
pub(crate) struct Way {
    pub(crate) stream: Box<dyn Stream>,
    /// What watches it, if its peer has an identity.
    pub(crate) watched: Option<Watched>,
    /// Held until nothing flows any more, such as a place among connections.
    pub(crate) _held: Box<dyn Any + Send + Sync>,
}

impl Way {
    async fn must_end(&self) {
        match &self.watched {
            Some(watched) => watched.must_end().await,
            None => std::future::pending().await,
        }
    }
}

/// What is told of a tunnel when it ends.
pub(crate) struct Told {
    log: AccessLog,
    record: Record,
    began: Instant,
    /// Counts those that end because nothing moves.
    idle: Counter,
}

impl Told {
    /// The record is that of the request that makes the offer.
    pub(crate) fn of(proxy: &Proxy, mut record: Record, marks: &Marks, began: Instant) -> Self {
        record.marked(marks);
        record.status = Some(StatusCode::SWITCHING_PROTOCOLS.as_u16());
        let labels = BoundLabels {
            direction: record.direction(),
            bound: "idle",
        };
        let bounds = &proxy.metrics.upstream.bounds;
        Self {
            log: proxy.access_log.clone(),
            record,
            began,
            idle: bounds.get_or_create_owned(&labels),
        }
    }

    fn switched(self) -> (Line, Counter) {
        (Line::of(&self.log, self.record, self.began), self.idle)
    }
}

/// Carries the offer to the app of this pod; see [`offer`].
///
/// # Errors
/// [`UpstreamError`], as for any request.
pub(crate) async fn offer_app(
    request: Request<Asked>,
    app: SocketAddr,
    tunnels: &Tunnels,
    idle: Duration,
    told: Told,
) -> Result<Response<Incoming>, UpstreamError> {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(app)).await;
    let stream = connected
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| UpstreamError::Connect(error.to_string()))?;
    let _ = stream.set_nodelay(true);
    let way = Way {
        stream: Box::new(stream),
        watched: None,
        _held: Box::new(()),
    };
    let patience = Patience {
        answer: ANSWER_TIMEOUT,
        idle,
    };
    offer(request, way, tunnels, patience, told).await
}

/// How long the other side may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the head of its answer.
    pub(crate) answer: Duration,
    /// While nothing moves in either direction.
    pub(crate) idle: Duration,
}

/// Makes the offer. When it is taken up, bytes flow until both ends are done, nothing moved for too
/// long, or the connection must end.
///
/// # Errors
/// [`UpstreamError`], as for any request; an answer that switches to anything else is one, too.
pub(crate) async fn offer(
    mut request: Request<Asked>,
    mut way: Way,
    tunnels: &Tunnels,
    patience: Patience,
    told: Told,
) -> Result<Response<Incoming>, UpstreamError> {
    let caller = hyper::upgrade::on(&mut request);
    set(request.headers_mut());
    let target = request.uri().path_and_query().map(|target| target.as_str());
    *request.uri_mut() = target
        .unwrap_or("/")
        .parse()
        .map_err(|_| UpstreamError::Request)?;

    let stream = std::mem::replace(&mut way.stream, Box::new(tokio::io::empty()));
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(MAX_FIELDS)
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| UpstreamError::Answer(error.to_string()))?;
    let way = Arc::new(way);
    let driven = way.clone();
    tunnels.spawn(async move {
        tokio::select! {
            _ = connection.with_upgrades() => {}
            () = driven.must_end() => {}
        }
    });
    let mut response = timeout(patience.answer, sender.send_request(request))
        .await
        .map_err(|_| UpstreamError::Timeout)?
        .map_err(|error| UpstreamError::Answer(error.to_string()))?;
    lengths(response.version(), response.headers())?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        headers::strip_hop_by_hop(response.headers_mut());
        return Ok(response);
    }
    let taken = response.headers().get(UPGRADE);
    if !taken.is_some_and(|taken| taken.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return Err(Ambiguous::Switch.into());
    }
    let app = hyper::upgrade::on(&mut response);
    let (line, idle) = told.switched();
    tunnels.spawn(async move {
        let carried = async {
            let (caller, app) = tokio::try_join!(caller, app).map_err(io::Error::other)?;
            let (mut caller, mut app) = (TokioIo::new(caller), TokioIo::new(app));
            relay::relay(&mut caller, &mut app, patience.idle, &line.passed).await
        };
        let how = tokio::select! {
            how = carried => how,
            () = way.must_end() => Err(may_not_go_on()),
        };
        if how.as_ref().is_err_and(relay::is_too_silent) {
            idle.inc();
        }
        line.ended(how);
    });
    headers::strip_hop_by_hop(response.headers_mut());
    set(response.headers_mut());
    Ok(response)
}

fn set(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, Method};

    use super::offers_websocket;

    #[test]
    fn only_a_plain_offer_of_websocket_is_one() {
        // FAULTS 91
        let good = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let map = |fields: &[(&str, &str)]| -> HeaderMap {
            let field = |(name, value): &(&str, &str)| {
                (
                    name.parse::<HeaderName>().unwrap(),
                    HeaderValue::try_from(*value).unwrap(),
                )
            };
            fields.iter().map(field).collect()
        };
        assert!(offers_websocket(&Method::GET, &map(&good)));
        assert!(!offers_websocket(&Method::POST, &map(&good)));
        for left_out in 0..good.len() {
            let mut fields = good.to_vec();
            fields.remove(left_out);
            assert!(!offers_websocket(&Method::GET, &map(&fields)), "{fields:?}");
        }
        for (name, value) in [("upgrade", "h2c"), ("sec-websocket-version", "13")] {
            let mut fields = good.to_vec();
            fields.push((name, value));
            assert!(!offers_websocket(&Method::GET, &map(&fields)), "{fields:?}");
        }
        for (place, value) in [(0, "close"), (1, "h2c"), (1, "websocket, h2c"), (2, "8")] {
            let mut fields = good.to_vec();
            fields[place].1 = value;
            assert!(!offers_websocket(&Method::GET, &map(&fields)), "{fields:?}");
        }
    }
}
