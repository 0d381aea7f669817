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
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use postern_policies::{
    PolicySet,
    decide::{DecidedBy, Direction, HttpRequest, Protocol, Verdict},
    model::{declared::Declared, workload::Workload},
};
use tokio::net::TcpStream;

use crate::{
    access_log::Record,
    app::Proxy,
    config::{Listener, ToPort},
    connections::{Counted, End, Facts, Traffic},
    detect::{Detecting, Outcome, Spoken, Undetected, detect},
    listener,
    own::is_here,
    telemetry::RefusalLabels,
};
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
    let declared = wanted.declared(&set);
    // Neither an old key nor old policies live as long as this connection.
    let own = identity.id().clone();
    drop((identity, set));
    let facts = Facts {
        server_name: None,
        id: proxy.connections.number(),
        direction: Direction::Outbound,
        end: End::App,
        source: from,
        source_identity: Some(own),
        destination: wanted.address(),
        destination_identity: destination.as_ref().map(|known| known.identity.clone()),
        workload: destination.map(|known| known.workload.clone()),
        chain: Arc::from([]),
        expires: None,
        renewable: None,
        local_port: stream.local_addr().ok().map(|local| local.port()),
        tls_group: None,
        let_in_by: DecidedBy::Unasked,
        traffic: Arc::new(Traffic::default()),
    };
    let watched = proxy.connections.watch(facts.clone());
    let stream = Counted::new(stream, facts.traffic.clone());
    tokio::select! {
        // What is carried has a word for its end, and says it first.
        biased;
        () = spoken(&proxy, stream, facts, wanted, declared) => {}
        () = watched.must_end() => {}
    }
}

/// The app's connection.
type AppStream = Counted<TcpStream>;

async fn spoken(
    proxy: &Arc<Proxy>,
    stream: AppStream,
    facts: Facts,
    wanted: Wanted,
    declared: Option<Declared>,
) {
    match declared {
        Some(Declared::Tcp) => Box::pin(opaque::carry(proxy, stream, facts, wanted)).await,
        Some(Declared::Http | Declared::Http2) => must_be_http(proxy, stream, facts, wanted).await,
        None => found_out(proxy, stream, facts, wanted).await,
    }
}

/// The app's connection was let out to here. The policies may have changed since they were asked.
fn let_out(proxy: &Proxy, to: &Facts) {
    proxy.connections.let_out(to.id, to);
    proxy.recheck_connection(to.id);
}

/// The port is declared to speak HTTP: anything else is refused.
async fn must_be_http(proxy: &Arc<Proxy>, stream: AppStream, facts: Facts, wanted: Wanted) {
    let (spoken, stream) = match detect(stream, PATIENCE).await {
        Ok(detected) => detected,
        Err(error) => return undetected(proxy, &facts, &error.into()),
    };
    if spoken == Spoken::Other {
        count(proxy, "protocol");
        let record = Record::of(&facts).refused("network", NO_HTTP);
        return proxy.access_log.write(&record);
    }
    let is_http2 = spoken == Spoken::Http2;
    Box::pin(requests::serve_app(proxy, stream, facts, wanted, is_http2)).await;
}

/// Nothing is declared: the first bytes tell.
async fn found_out(proxy: &Arc<Proxy>, stream: AppStream, facts: Facts, wanted: Wanted) {
    let mut stream = Detecting::new(stream);
    match stream.spoken_within(PATIENCE).await {
        // Each on the heap: a connection has no room for what it does not become.
        Ok(None) => Box::pin(opaque::silent(proxy, stream, facts, wanted)).await,
        Ok(Some(spoken)) => {
            let stream = stream.rewound();
            match spoken {
                Spoken::Other => Box::pin(opaque::carry(proxy, stream, facts, wanted)).await,
                http => {
                    let is_http2 = http == Spoken::Http2;
                    Box::pin(requests::serve_app(proxy, stream, facts, wanted, is_http2)).await;
                }
            }
        }
        Err(why) => undetected(proxy, &facts, &why),
    }
}

/// Nobody can tell what the app speaks: nothing of it is sent.
fn undetected(proxy: &Proxy, facts: &Facts, why: &Undetected) {
    count(
        proxy,
        match why {
            Undetected::Io(_) => "io",
            Undetected::Unfinished(_) => {
                proxy.late.count(facts, Outcome::Unfinished);
                "unfinished"
            }
        },
    );
    let record = Record::of(facts).refused("network", why.to_string());
    proxy.access_log.write(&record);
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
                proxy.own.refuse_loop(address, is_here)?;
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
        let (workload, place) = self.place(set)?;
        Ok(proxy.destinations.of(workload, place))
    }

    /// What the port is declared to speak.
    fn declared(&self, set: &PolicySet) -> Option<Declared> {
        let (workload, place) = self.place(set).ok()?;
        let port = match place {
            Place::Port(port) => port,
            Place::Address(address) => address.port(),
        };
        Declared::of(workload, port)
    }

    fn place<'s>(&self, set: &'s PolicySet) -> Result<(&'s Workload, Place), String> {
        let found = match self {
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
        Ok(found)
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

/// How long a request may take from its first letter until it is known to be one.
const PATIENCE: Duration = Duration::from_secs(10);

const NO_HTTP: &str = "the app does not speak HTTP, and `appProtocol` or the name of the port in `ports` says that it does";
const NOT_READY: &str = "the proxy has no identity or no policies";
const NO_IDENTITY: &str = "the destination is no Workload, so it has no identity";
