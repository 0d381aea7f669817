//! Accepting connections, and where a redirected one wanted to go.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use anyhow::Context as _;
use postern_supervisor::Sockets;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

/// A place where connections arrive: what an inherited socket of it is called, and the key of the
/// configuration.
pub(crate) type Place = (&'static str, &'static str);

pub(crate) const INBOUND: Place = ("inbound", "inbound.listen");
pub(crate) const REDIRECTED: Place = ("outbound", "outbound.listen");
pub(crate) const OUTBOUND: Place = ("outbound", "outbound.listeners");
pub(crate) const METRICS: Place = ("metrics", "metrics.listen");
pub(crate) const ADMIN: Place = ("admin", "admin.listen");

/// Takes the inherited socket of an address, or binds it.
pub(crate) async fn open(
    inherited: &mut Sockets,
    address: SocketAddr,
    (name, key): Place,
) -> anyhow::Result<TcpListener> {
    if let Some(listener) = inherited.tcp(name, address, key) {
        return Ok(TcpListener::from_std(listener)?);
    }
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (`{key}`)"))
}

/// As [`open`], for an address at which connections for any address are accepted, as a TPROXY rule
/// hands them over. The right to do so is needed by whoever makes the socket, and nowhere later.
pub(crate) fn open_transparent(
    inherited: &mut Sockets,
    address: SocketAddr,
    (name, key): Place,
) -> anyhow::Result<TcpListener> {
    if let Some(listener) = inherited.tcp(name, address, key) {
        let socket = SockRef::from(&listener);
        let is_transparent = match address {
            SocketAddr::V4(_) => socket.ip_transparent_v4()?,
            SocketAddr::V6(_) => socket.ip_transparent_v6()?,
        };
        anyhow::ensure!(
            is_transparent,
            "the inherited socket `{name}` does not take connections for other addresses, which \
             `inbound.forward: transparent` needs; `Transparent=yes`"
        );
        return Ok(TcpListener::from_std(listener)?);
    }
    transparent_socket(address)
        .and_then(|socket| TcpListener::from_std(socket.into()))
        .with_context(|| {
            format!(
                "cannot listen on {address} (`{key}`) for `inbound.forward: transparent`, which needs CAP_NET_ADMIN at start"
            )
        })
}

fn transparent_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// As [`open`], where redirected connections of the app arrive: those of IPv6 are sent to `::1`, so
/// that a listener on IPv4's loopback has a twin there, unless IPv6 is off.
pub(crate) async fn open_outbound(
    inherited: &mut Sockets,
    address: SocketAddr,
) -> anyhow::Result<Vec<TcpListener>> {
    let mut all = vec![open(inherited, address, REDIRECTED).await?];
    if address.is_ipv4() && address.ip().is_loopback() {
        let twin = SocketAddr::from((Ipv6Addr::LOCALHOST, address.port()));
        match open(inherited, twin, REDIRECTED).await {
            Ok(listener) => all.push(listener),
            Err(error) => {
                tracing::info!(
                    error = format!("{error:#}"),
                    "no outbound connections of IPv6: `::1` cannot be had"
                );
            }
        }
    }
    Ok(all)
}

/// Accepts until it is told to stop; each connection comes with its place among those that may be
/// open at once. No error of one connection ends the loop, and none makes it spin.
pub(crate) async fn accept(
    listener: TcpListener,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    mut each: impl FnMut(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let mut each = |stream: TcpStream, from, place| {
        // Small answers must not wait for more.
        let _ = stream.set_nodelay(true);
        // IPv4 at a listener for both is still IPv4.
        each(stream, canonical(from), place);
    };
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Some((Ok((stream, from)), place)) => each(stream, from, place),
            Some((Err(error), _)) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            None => return,
        }
    }
    // Whom the kernel has let in already is served: closing would reset what he has sent. Who comes
    // meanwhile looks the same, so no more are taken than wait at most.
    for _ in 0..MAX_WAITING {
        let Ok(place) = places.clone().try_acquire_owned() else {
            break;
        };
        let Some((stream, from)) = waiting(&listener).await else {
            break;
        };
        each(stream, from, place);
    }
}

/// As long as the queue is that the runtime asks the kernel for.
const MAX_WAITING: usize = 1024;

/// Who waits to be accepted, if there is anybody.
async fn waiting(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    // What the kernel has to tell is heard between two turns.
    tokio::task::yield_now().await;
    poll_fn(|context| match listener.poll_accept(context) {
        Poll::Ready(accepted) => Poll::Ready(accepted.ok()),
        Poll::Pending => Poll::Ready(None),
    })
    .await
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
    let original = canonical(original);
    if original == canonical(local) {
        return Err(to_ourselves(original));
    }
    Ok(original)
}

/// Where a connection wanted to go that a TPROXY rule handed over: that is the near end of it.
///
/// # Errors
/// When its near end is unknown.
pub(crate) fn transparent_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.local_addr().map(canonical)
}

pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The error of a connection that would lead to the proxy itself.
pub(crate) fn to_ourselves(destination: SocketAddr) -> io::Error {
    io::Error::other(format!("{destination} is the proxy itself"))
}

/// How many connections may be open at once, in each direction.
pub(crate) const MAX_CONNECTIONS: usize = 16_384;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;
