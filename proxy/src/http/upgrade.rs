//! Switching protocols: WebSocket, where the configuration says so.
//!
//! The offer is judged as the request that it is. The app is asked over a connection of its own,
//! and only when it answers 101 to exactly what was offered do bytes flow both ways. They flow
//! inside the caller's connection: when that is cut, so are they.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::{
    answer::{Ambiguous, lengths},
    body::Asked,
    head::{MAX_FIELDS, MAX_HEAD_BYTES},
    headers,
};
use crate::{pool::UpstreamError, relay};

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

/// Carries the offer to the app. When it is taken up, bytes flow until either end is done.
///
/// # Errors
/// [`UpstreamError`], as for any request.
pub(crate) async fn websocket(
    mut request: Request<Asked>,
    app: SocketAddr,
    tunnels: &Tunnels,
) -> Result<Response<Incoming>, UpstreamError> {
    let caller = hyper::upgrade::on(&mut request);
    set(request.headers_mut());
    let target = request.uri().path_and_query().map(|target| target.as_str());
    *request.uri_mut() = target
        .unwrap_or("/")
        .parse()
        .map_err(|_| UpstreamError::Request)?;

    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(app)).await;
    let stream = connected
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(|error| UpstreamError::Connect(error.to_string()))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(MAX_FIELDS)
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| UpstreamError::Answer(error.to_string()))?;
    tunnels.spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let mut response = timeout(ANSWER_TIMEOUT, sender.send_request(request))
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
    tunnels.spawn(async move {
        if let (Ok(caller), Ok(app)) = tokio::join!(caller, app) {
            let (mut caller, mut app) = (TokioIo::new(caller), TokioIo::new(app));
            // How a tunnel ends is the business of its ends.
            let _ = relay::relay(&mut caller, &mut app).await;
        }
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
