//! The road out: accept from the app → which Workload is it for → may we go there → mutual TLS with
//! exactly the identity that serves it.
//!
//! The parts: `resolve` and `address` (where a Workload is reached, and what is never dialled),
//! `balance`, `outlier`, `retry`, `retry_budget` and `deadline` (pure decisions), `destination`
//! (what is known of a place), `permitted` (the next endpoint to which the policies let us),
//! `connect` (mutual TLS), `requests` and `opaque` (the two kinds of traffic).

mod address;
mod balance;
mod connect;
mod deadline;
mod destination;
mod opaque;
mod outlier;
mod permitted;
mod requests;
mod resolve;
mod retry;
mod retry_budget;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use postern_policies::{
    PolicySet,
    decide::{Direction, HttpRequest, Protocol, Verdict},
    model::workload::Workload,
};
use tokio::net::TcpStream;

use crate::{
    access_log::Record,
    app::Proxy,
    config::{Config, Listener, ToPort},
    connections::Facts,
    detect::{Spoken, detect},
    inbound::DETECT_PATIENCE,
    listener,
    telemetry::RefusalLabels,
};
use address::Own;
pub(crate) use destination::Destinations;
use destination::{Destination, Place};

/// Where the app's connection is for.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// To the Workload of an explicit listener.
    To(Arc<Listener>),
    /// Wherever it wanted to go before it was redirected.
    Redirected,
}

/// One connection, from accept to end.
pub(crate) async fn connection(proxy: Arc<Proxy>, stream: TcpStream, from: SocketAddr, way: Way) {
    if matches!(way, Way::Redirected) {
        let original = listener::original_destination(&stream);
        if original.is_ok_and(|original| proxy.probe.caught(original, from)) {
            return;
        }
        if !proxy.probe.lets_out() {
            count(&proxy, "not_ready");
            tracing::warn!(src.addr = %from, "the redirection is not proven, nothing goes out");
            return;
        }
    }
    let Some((identity, set)) = proxy.ready() else {
        count(&proxy, "not_ready");
        tracing::warn!(src.addr = %from, "the proxy has no identity or no policies, nothing goes out");
        return;
    };
    let wanted = match Wanted::of(&proxy, &stream, &way) {
        Ok(wanted) => wanted,
        Err(error) => {
            count(&proxy, "destination");
            tracing::warn!(src.addr = %from, %error, "a connection has no destination");
            return;
        }
    };
    let destination = wanted.destination(&proxy, &set).ok();
    // Neither an old key nor old policies live as long as this connection.
    let own = identity.id().clone();
    drop((identity, set));
    let facts = Facts {
        server_name: None,
        id: proxy.connections.number(),
        direction: Direction::Outbound,
        source: from,
        source_identity: Some(own),
        destination: wanted.address(),
        destination_identity: destination.as_ref().map(|known| known.identity.clone()),
        workload: destination.map(|known| known.workload.clone()),
        chain: Arc::from([]),
        expires: None,
    };
    let Ok((spoken, stream)) = detect(stream, DETECT_PATIENCE).await else {
        return;
    };
    match spoken {
        Spoken::Http1 => requests::serve_app(&proxy, stream, facts, wanted, false).await,
        Spoken::Http2 => requests::serve_app(&proxy, stream, facts, wanted, true).await,
        Spoken::Other => opaque::carry(&proxy, stream, facts, wanted).await,
    }
}

/// What a connection is for, as far as it is known without the directory.
#[derive(Debug, Clone)]
enum Wanted {
    /// The Workload of a listener.
    Workload(Arc<Listener>),
    /// An address.
    Address(SocketAddr),
}

impl Wanted {
    fn of(proxy: &Proxy, stream: &TcpStream, way: &Way) -> io::Result<Self> {
        match way {
            Way::To(listener) => Ok(Self::Workload(listener.clone())),
            Way::Redirected => {
                let address = listener::original_destination(stream)?;
                listener::refuse_loop(address, proxy.config.own_addresses(), listener::is_here)?;
                Ok(Self::Address(address))
            }
        }
    }

    /// The address for the log; none is known before a Workload's endpoint is chosen.
    fn address(&self) -> SocketAddr {
        match self {
            Self::Address(address) => *address,
            Self::Workload(listener) => {
                let port = match &listener.port {
                    ToPort::Number(port) => *port,
                    ToPort::Name(_) => 0,
                };
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
            }
        }
    }

    /// The place that the directory names now.
    ///
    /// # Errors
    /// What is missing; nothing is sent.
    fn destination(&self, proxy: &Proxy, set: &PolicySet) -> Result<Arc<Destination>, String> {
        let (workload, place) = match self {
            Self::Address(address) => {
                let workload = at_address(set, *address).ok_or_else(|| NO_IDENTITY.to_owned())?;
                (workload, Place::Address(*address))
            }
            Self::Workload(listener) => {
                let (to, port) = (&listener.to, &listener.port);
                let workload = set
                    .workload(to)
                    .ok_or_else(|| format!("there is no Workload `{to}`"))?;
                let port = served(workload, port)
                    .ok_or_else(|| format!("Workload `{to}` has no port {port:?}"))?;
                (workload, Place::Port(port))
            }
        };
        Ok(proxy.destinations.of(workload, place))
    }
}

/// The Workload that is reached at an address. Two of them mean that nobody knows which.
fn at_address(set: &PolicySet, address: SocketAddr) -> Option<&Workload> {
    let is_there = |workload: &&Workload| {
        let has = |text: &String| text.parse::<IpAddr>().is_ok_and(|ip| ip == address.ip());
        workload.addresses.iter().any(has)
            && workload
                .ports
                .iter()
                .any(|port| port.port == address.port())
    };
    let mut found = set.workloads().filter(is_there);
    let first = found.next()?;
    found
        .all(|other| other.spiffe_id == first.spiffe_id)
        .then_some(first)
}

/// The port of a Workload, if it serves it.
fn served(workload: &Workload, wanted: &ToPort) -> Option<u16> {
    let served = workload.ports.iter().find(|port| {
        port.protocol == Protocol::Tcp
            && match wanted {
                ToPort::Number(number) => port.port == *number,
                ToPort::Name(name) => port.name.as_deref() == Some(name),
            }
    });
    served.map(|port| port.port)
}

/// What is told of traffic that leads to no Workload. Where the app has chosen an address itself
/// the policies are asked; if they would let it pass, or there was no address to ask about, the
/// problem is told. Nothing is sent in either case.
fn decided_nowhere(
    proxy: &Proxy,
    set: &PolicySet,
    facts: &Facts,
    wanted: &Wanted,
    problem: String,
    http: Option<HttpRequest<'_>>,
) -> (Verdict, Record) {
    if let Wanted::Workload(_) = wanted {
        count(proxy, "destination");
        return (
            Verdict::Allow,
            Record::of(facts).refused("network", problem),
        );
    }
    let facts = Facts {
        workload: None,
        destination_identity: None,
        ..facts.clone()
    };
    let access = facts.access(http);
    let decision = set.decide_connection(&access);
    let mut record = Record::of(&facts).decided(set, &access, &decision);
    if decision.verdict == Verdict::Deny {
        count(proxy, "policy");
    } else {
        count(proxy, "destination");
        record.reason = Some(problem);
    }
    (decision.verdict, record)
}

/// The listeners of this proxy, which it never calls itself.
pub(crate) fn own_listeners(config: &Config) -> Own {
    let explicit = config.outbound.listeners.iter().map(|one| one.listen);
    // Redirected connections of IPv6 arrive at `::1`.
    let redirected = config.outbound.listen.into_iter().flat_map(|listen| {
        let twin = SocketAddr::from((Ipv6Addr::LOCALHOST, listen.port()));
        [listen, twin]
    });
    let doors = [config.admin, config.metrics];
    Own {
        closed: explicit.chain(redirected).chain(doors).collect(),
        inbound: Some(config.inbound.listen),
    }
}

fn count(proxy: &Proxy, reason: &'static str) {
    proxy
        .metrics
        .refused
        .get_or_create(&RefusalLabels {
            direction: "outbound",
            reason,
        })
        .inc();
}

const NOT_READY: &str = "the proxy has no identity or no policies";
const NO_IDENTITY: &str = "the destination is no Workload, so it has no identity";
