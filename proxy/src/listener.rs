//! Accepting connections, and where a redirected one wanted to go.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

/// Binds an address.
pub(crate) async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (`{key}`)"))
}

/// Accepts until it is told to stop; each connection comes with its place among those that may be
/// open at once. No error of one connection ends the loop, and none makes it spin.
pub(crate) async fn accept(
    listener: TcpListener,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    mut each: impl FnMut(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                // Small answers must not wait for more.
                let _ = stream.set_nodelay(true);
                each(stream, from, place);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Where a connection wanted to go before a REDIRECT rule sent it here.
///
/// # Errors
/// When it was not redirected: to answer it would be to talk to ourselves.
pub(crate) fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let local = stream.local_addr()?;
    let original = match local.ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    let original = original
        .ok()
        .and_then(|address| address.as_socket())
        .ok_or_else(|| io::Error::other("the connection was not redirected"))?;
    let original = SocketAddr::new(original.ip().to_canonical(), original.port());
    if original == SocketAddr::new(local.ip().to_canonical(), local.port()) {
        return Err(io::Error::other(
            "the connection was made to the proxy itself",
        ));
    }
    Ok(original)
}

/// How many connections may be open at once, in each direction.
pub(crate) const MAX_CONNECTIONS: usize = 16_384;
