//! Accepting connections, and where a redirected one wanted to go.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use socket2::{Domain, SockRef, Socket, Type};
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

/// Binds an address at which connections for any address are accepted, as a TPROXY rule hands them
/// over. The right to do so is needed here and nowhere later.
pub(crate) fn bind_transparent(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
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

/// Binds where redirected connections of the app arrive: those of IPv6 are sent to `::1`, so that a
/// listener on IPv4's loopback has a twin there, unless IPv6 is off.
pub(crate) async fn bind_outbound(address: SocketAddr) -> anyhow::Result<Vec<TcpListener>> {
    let mut all = vec![bind(address, "outbound.listen").await?];
    if address.is_ipv4() && address.ip().is_loopback() {
        let twin = SocketAddr::from((Ipv6Addr::LOCALHOST, address.port()));
        match TcpListener::bind(twin).await {
            Ok(listener) => all.push(listener),
            Err(error) => {
                tracing::info!(%error, "no outbound connections of IPv6: `::1` cannot be had");
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
                // IPv4 at a listener for both is still IPv4.
                each(stream, canonical(from), place);
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

/// Refuses an inbound destination that is not the app of this pod. Behind somebody else's address we
/// would be a way around the caller's own egress rules.
///
/// # Errors
/// When it is no address of this pod, or a port of the proxy itself.
pub(crate) fn must_be_the_app(
    destination: SocketAddr,
    mut own: impl Iterator<Item = SocketAddr>,
    is_here: impl FnOnce(IpAddr) -> bool,
) -> io::Result<()> {
    if !is_here(destination.ip()) {
        let problem = format!("{destination} is no address of this pod");
        return Err(io::Error::other(problem));
    }
    // The pod is ours alone, so that its port is enough: what is told on loopback stays there.
    if own.any(|own| own.port() == destination.port()) {
        return Err(to_ourselves(destination));
    }
    Ok(())
}

/// Refuses a destination that is the proxy itself: it would be its own customer.
///
/// # Errors
/// When a connection to `destination` would arrive at one of our own listeners.
pub(crate) fn refuse_loop(
    destination: SocketAddr,
    mut own: impl Iterator<Item = SocketAddr>,
    is_here: impl Fn(IpAddr) -> bool,
) -> io::Result<()> {
    // A proxy of another pod may have the same port beside us. The kernel is asked only about the
    // few connections whose port is ours.
    let is_reached = |own: SocketAddr| {
        let ip = own.ip().to_canonical();
        own.port() == destination.port()
            && (ip == destination.ip() || ip.is_unspecified() && is_here(destination.ip()))
    };
    if own.any(is_reached) {
        return Err(to_ourselves(destination));
    }
    Ok(())
}

/// Whether an address is one of this network namespace. In doubt it is.
pub(crate) fn is_here(ip: IpAddr) -> bool {
    let bound = UdpSocket::bind((ip, 0));
    !bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn to_ourselves(destination: SocketAddr) -> io::Error {
    io::Error::other(format!("{destination} is the proxy itself"))
}

/// How many connections may be open at once, in each direction.
pub(crate) const MAX_CONNECTIONS: usize = 16_384;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{is_here, must_be_the_app, refuse_loop};

    fn own() -> impl Iterator<Item = SocketAddr> {
        let listeners = [
            "0.0.0.0:15006",
            "[::]:15020",
            "127.0.0.1:15000",
            "127.0.0.1:15001",
            "[::1]:15001",
            "127.0.0.2:8080",
        ];
        listeners.into_iter().map(|text| text.parse().unwrap())
    }

    #[test]
    fn only_what_arrives_at_the_proxys_own_listeners_is_a_loop() {
        // FAULTS 116
        let cases = [
            ("127.0.0.1:15001", true, false),
            ("[::1]:15001", true, false),
            ("10.0.0.9:15006", true, false),
            ("10.0.0.9:15020", true, false),
            ("[fd00::9]:15020", true, false),
            ("127.0.0.2:8080", true, false),
            // Nobody listens there, or somebody else.
            ("10.0.0.9:15006", false, true),
            ("127.0.0.3:8080", true, true),
            ("10.0.0.9:15001", true, true),
            ("10.0.0.9:8080", false, true),
        ];
        for (destination, here, passes) in cases {
            let judged = refuse_loop(destination.parse().unwrap(), own(), |_| here);
            assert_eq!(judged.is_ok(), passes, "{destination} {here}");
        }
    }

    #[test]
    fn an_inbound_destination_is_an_address_of_the_pod_and_no_port_of_the_proxy() {
        // FAULTS 116
        let cases = [
            ("10.0.0.9:9090", true, true),
            ("10.0.0.9:9090", false, false),
            ("10.0.0.9:15000", true, false),
            ("[fd00::9]:15006", true, false),
        ];
        for (destination, here, passes) in cases {
            let judged = must_be_the_app(destination.parse().unwrap(), own(), |_| here);
            assert_eq!(judged.is_ok(), passes, "{destination} {here}");
        }
    }

    #[test]
    fn the_kernel_knows_which_addresses_are_here() {
        assert!(is_here("127.0.0.1".parse().unwrap()));
        assert!(is_here("0.0.0.0".parse().unwrap()), "a way to say here");
        assert!(!is_here("192.0.2.1".parse().unwrap()));
    }
}
