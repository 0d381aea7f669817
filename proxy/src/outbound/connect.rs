//! Mutual TLS with the endpoint of a Workload, and nobody else.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use postern_spiffe::PeerRole;
use rustls_pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::destination::{Destination, Endpoint};
use crate::{
    app::Proxy,
    connections::{Carried, Counted, End, Facts, Traffic},
    pool::{Connected, UpstreamError},
    renewal::{self, Binding, Renewal},
    tls::{self, Offer},
};

/// Connects to the very address that was checked, and proves that exactly the destination's
/// identity is there. Not a byte of a request is sent before.
///
/// # Errors
/// [`UpstreamError::Connect`] and [`UpstreamError::Tls`].
pub(crate) async fn connect(
    proxy: &Arc<Proxy>,
    facts: &Facts,
    destination: &Destination,
    endpoint: &Endpoint,
    offer: Offer,
) -> Result<Connected, UpstreamError> {
    let refused = |reason: String| UpstreamError::Tls(reason);
    let (identity, _) = proxy
        .ready()
        .ok_or_else(|| refused("we have no identity".into()))?;
    let mut config = identity
        .client(destination.identity.clone(), offer)
        .map_err(|error| refused(error.to_string()))?;
    // The name is a hint for whoever routes by it: the identity is what is checked.
    let (name, is_said) = destination.server_name(endpoint);
    config.enable_sni = is_said;
    let stream = dial(endpoint.address)
        .await
        .map_err(|error| UpstreamError::Connect(error.to_string()))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| refused(error.to_string()))?;
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol().is_some_and(tls::is_http2);
    let carried = match offer {
        Offer::Tcp => Carried::Tcp,
        Offer::Http | Offer::Http1 | Offer::Http2 => Carried::http(http2),
    };
    let traffic = Traffic::of(carried);
    let tls_group = tls::group(session);
    let local = stream.get_ref().0.local_addr();
    let binding = Binding::of(session);
    let chain: Vec<CertificateDer<'static>> = session
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|certificate| certificate.clone().into_owned())
        .collect();
    let peer = identity
        .trust()
        .verify(&chain, PeerRole::Server)
        .map_err(|error| refused(error.to_string()))?;
    // Well before its certificate ends a connection takes no new requests, so that none is cut.
    let left = peer
        .svid()
        .not_after()
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    let usable = match binding {
        Some(_) => renewal::until_retired(left),
        None => left / 2,
    };
    let facts = Facts {
        end: End::Peer,
        id: proxy.connections.number(),
        renewable: binding,
        local_port: local.ok().map(|local| local.port()),
        tls_group,
        traffic: traffic.clone(),
        ..facts.clone()
    }
    .verified(&peer, chain);
    let renewal = binding.map(|binding| Renewal {
        identity: proxy.identity(),
        connections: proxy.connections.clone(),
        metrics: proxy.metrics.clone(),
        id: facts.id,
        binding,
        expected: peer.id().clone(),
        until: peer.svid().not_after().min(identity.svid().not_after()),
    });
    let id = facts.id;
    let watched = proxy.connections.watch(facts);
    // Lists, roots and policies may be others than when the handshake began.
    proxy.recheck_connection(id);
    Ok(Connected {
        stream: Box::new(Counted::new(stream, traffic)),
        http2,
        retire_at: Some(Instant::now() + usable),
        watched: Some(watched),
        renewal,
    })
}

/// A connection that does not wait to send little, and finds out when nobody is there any more.
async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    let _ = stream.set_nodelay(true);
    let alive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_TRIES);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&alive);
    Ok(stream)
}

const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;
