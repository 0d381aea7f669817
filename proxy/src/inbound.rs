//! The road in: accept → who is it → may it connect → what is spoken → may it ask this → the app.
//!
//! The parts: `opaque` and `requests`, the two kinds of traffic.

mod opaque;
mod requests;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use postern_policies::{
    MtlsMode, PolicySet,
    decide::{DecidedBy, Direction, Verdict},
    model::declared::Declared,
};
use postern_spiffe::PeerRole;
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    access_log::Record,
    app::Proxy,
    config::{Forward, Protocol},
    connections::{Counted, End, Facts, Traffic},
    detect::{Detecting, Outcome, Spoken, Undetected, detect},
    listener,
    own::is_here,
    renewal::Binding,
    telemetry::RefusalLabels,
    tls::{self, Identity, Offer},
    until::until,
};
use opaque::{silent, tcp};
use requests::http;
pub(crate) use requests::{DENIED, class, upstream_failed};

/// One connection, from accept to end.
pub(crate) async fn connection(proxy: Arc<Proxy>, stream: TcpStream, from: SocketAddr) {
    let began = Instant::now();
    let wanted = wanted(proxy.config.inbound.forward, &stream);
    if let Wanted::Original(Ok(original)) = wanted
        && proxy.probe.caught(original, from)
    {
        return;
    }
    let facts = match facts(&proxy, wanted, from) {
        Ok(facts) => Facts {
            local_port: stream.local_addr().ok().map(|local| local.port()),
            ..facts
        },
        Err(error) => {
            tracing::warn!(src.addr = %from, %error, "a connection has no destination");
            let labels = RefusalLabels {
                direction: "inbound",
                reason: "destination",
            };
            proxy.metrics.refused.get_or_create(&labels).inc();
            return;
        }
    };
    if let Err(refusal) = road(&proxy, stream, facts.clone(), began).await {
        let labels = RefusalLabels {
            direction: "inbound",
            reason: refusal.label,
        };
        proxy.metrics.refused.get_or_create(&labels).inc();
        let record = refusal.record.map_or_else(
            || Record::of(&facts).refused(refusal.stage, refusal.reason),
            |record| *record,
        );
        proxy.access_log.write(&record.since(began));
    }
}

/// A connection that is refused: closed without a word, and told to the log.
struct Refusal {
    label: &'static str,
    stage: &'static str,
    reason: String,
    record: Option<Box<Record>>,
}

impl Refusal {
    fn new(label: &'static str, stage: &'static str, reason: impl Into<String>) -> Self {
        Self {
            label,
            stage,
            reason: reason.into(),
            record: None,
        }
    }

    fn decided(label: &'static str, record: Record) -> Self {
        Self {
            label,
            stage: "",
            reason: String::new(),
            record: Some(Box::new(record)),
        }
    }
}

async fn road(
    proxy: &Arc<Proxy>,
    stream: TcpStream,
    facts: Facts,
    began: Instant,
) -> Result<(), Refusal> {
    // Without an identity or policies there is nobody to say yes.
    let (identity, set) = proxy.ready().ok_or_else(|| {
        Refusal::new(
            "not_ready",
            "peerAuthentication",
            "the proxy has no identity or no policies",
        )
    })?;

    // Plaintext or TLS, and which of them this port takes.
    let port = facts.destination.port();
    let mode = facts
        .workload
        .as_ref()
        .map_or(MtlsMode::Strict, |name| set.mtls_mode(name, port));
    let place = proxy.unproven.enter();
    let offer = match protocol(proxy, &set, &facts) {
        Protocol::Tcp => Offer::Tcp,
        Protocol::Http1 => Offer::Http1,
        Protocol::Http2 => Offer::Http2,
        Protocol::Auto | Protocol::Http => Offer::Http,
    };
    let proving = prove(proxy, &identity, mode, offer, stream, facts);
    let proven = tokio::select! {
        proven = proving => proven?,
        () = place.gives_way() => {
            let reason = "too many callers have not proven who they are, and this one took longest";
            return Err(Refusal::new("gave_way", "peerAuthentication", reason));
        }
    };
    drop(place);
    match proven {
        Proven::Refused(facts) => Err(refused_plaintext(&set, &facts, began)),
        Proven::Mutual(stream, facts) => {
            let http2 = stream.get_ref().1.alpn_protocol().map(tls::is_http2);
            admitted(proxy, &identity, &set, *stream, facts, http2).await
        }
        Proven::Plain(stream, facts) => admitted(proxy, &identity, &set, stream, facts, None).await,
    }
}

/// What is spoken: what the configuration says, else what the port is declared for; else it is found out.
fn protocol(proxy: &Proxy, set: &PolicySet, facts: &Facts) -> Protocol {
    let configured = proxy.config.inbound.protocol;
    configured.unwrap_or_else(|| match declared(set, facts) {
        Some(Declared::Http | Declared::Http2) => Protocol::Http,
        Some(Declared::Tcp) => Protocol::Tcp,
        None => Protocol::Auto,
    })
}

/// Does the app take HTTP/2? As for [`protocol`].
fn takes_http2(proxy: &Proxy, set: &PolicySet, facts: &Facts) -> bool {
    match proxy.config.inbound.protocol {
        Some(protocol) => protocol == Protocol::Http2,
        None => declared(set, facts) == Some(Declared::Http2),
    }
}

fn declared(set: &PolicySet, facts: &Facts) -> Option<Declared> {
    let own = set.workload(facts.workload.as_ref()?)?;
    Declared::of(own, facts.destination.port())
}

/// What became of a caller's wish to prove himself.
enum Proven {
    /// By mutual TLS.
    Mutual(Box<TlsStream>, Facts),
    /// Not at all, where that is enough.
    Plain(TcpStream, Facts),
    /// Not at all, where that is not enough.
    Refused(Facts),
}

async fn prove(
    proxy: &Proxy,
    identity: &Identity,
    mode: MtlsMode,
    offer: Offer,
    stream: TcpStream,
    facts: Facts,
) -> Result<Proven, Refusal> {
    let patience = proxy.config.inbound.handshake_timeout;
    match mode {
        // Nothing is expected first: the app may be the one that begins.
        MtlsMode::Disable => Ok(Proven::Plain(stream, facts)),
        MtlsMode::Strict | MtlsMode::Permissive => {
            let patience = match mode {
                MtlsMode::Permissive => patience.min(PERMISSIVE_PATIENCE),
                _ => patience,
            };
            match (mode, looks_like_tls(&stream, mode, patience).await?) {
                (_, true) => {
                    let (stream, facts) = handshake(proxy, identity, offer, stream, facts).await?;
                    Ok(Proven::Mutual(Box::new(stream), facts))
                }
                (MtlsMode::Permissive, false) => Ok(Proven::Plain(stream, facts)),
                (_, false) => Ok(Proven::Refused(facts)),
            }
        }
    }
}

/// The caller is known, or known to be nobody. May it connect, and what does it speak?
async fn admitted<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    identity: &Arc<Identity>,
    set: &PolicySet,
    stream: S,
    mut facts: Facts,
    http2: Option<bool>,
) -> Result<(), Refusal> {
    let access = facts.access(None);
    let decision = set.decide_connection(&access);
    if decision.verdict == Verdict::Deny {
        let record = Record::of(&facts).decided(set, &access, &decision);
        return Err(Refusal::decided("policy", record));
    }
    facts.let_in_by = decision.decided_by;
    let watched = proxy.connections.watch(facts.clone());
    // Lists, roots and policies may be others than when the handshake began.
    proxy.recheck_connection(facts.id);
    let stream = Counted::new(stream, facts.traffic.clone());
    let work = spoken(proxy, identity, set, stream, facts, http2);
    // Revoked, expired, no longer allowed: cut, not asked to leave.
    until(work, watched.must_end()).await.unwrap_or(Ok(()))
}

async fn spoken<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    identity: &Arc<Identity>,
    set: &PolicySet,
    stream: S,
    facts: Facts,
    http2: Option<bool>,
) -> Result<(), Refusal> {
    let failed = |error: io::Error| Refusal::new("io", "network", error.to_string());
    match (protocol(proxy, set, &facts), http2) {
        (Protocol::Tcp, _) => tcp(proxy, set, stream, facts).await,
        (Protocol::Http1, None | Some(false)) => http(proxy, identity, stream, facts, false).await,
        (Protocol::Http2, None | Some(true)) => http(proxy, identity, stream, facts, true).await,
        (Protocol::Auto | Protocol::Http, Some(http2)) => {
            http(proxy, identity, stream, facts, http2).await
        }
        (Protocol::Auto, None) => {
            let mut stream = Detecting::new(stream);
            let patience = proxy.config.inbound.patience.head;
            let spoken = stream.spoken_within(patience).await;
            match spoken.map_err(|why| undetected(proxy, &facts, why))? {
                None => silent(proxy, identity, set, stream, facts).await,
                Some(Spoken::Other) => tcp(proxy, set, stream.rewound(), facts).await,
                Some(http) => http_of(proxy, identity, stream.rewound(), facts, http).await,
            }
        }
        (Protocol::Http, None) => {
            let patience = proxy.config.inbound.patience.head;
            let (spoken, stream) = detect(stream, patience).await.map_err(failed)?;
            http_of(proxy, identity, stream, facts, spoken).await
        }
        (Protocol::Http1 | Protocol::Http2, Some(_)) => Err(Refusal::new(
            "protocol",
            "network",
            "the caller speaks another version of HTTP",
        )),
    }
}

/// Nobody can tell what the caller speaks: it is refused.
fn undetected(proxy: &Proxy, facts: &Facts, why: Undetected) -> Refusal {
    let label = match why {
        Undetected::Io(_) => "io",
        Undetected::Unfinished(_) => {
            proxy.late.count(facts, Outcome::Unfinished);
            "unfinished"
        }
    };
    Refusal::new(label, "network", why.to_string())
}

async fn http_of<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    identity: &Arc<Identity>,
    stream: S,
    facts: Facts,
    spoken: Spoken,
) -> Result<(), Refusal> {
    match spoken {
        Spoken::Http1 => http(proxy, identity, stream, facts, false).await,
        Spoken::Http2 => http(proxy, identity, stream, facts, true).await,
        Spoken::Other => Err(Refusal::new(
            "protocol",
            "network",
            "the caller does not speak HTTP, and the configuration, or `appProtocol` or the name of the port, says that it does",
        )),
    }
}

/// Where a connection is to go.
enum Wanted {
    /// To the one app.
    App(SocketAddr),
    /// Wherever the caller wanted to go, if that is known.
    Original(io::Result<SocketAddr>),
}

fn wanted(forward: Forward, stream: &TcpStream) -> Wanted {
    match forward {
        Forward::To(app) => Wanted::App(app),
        Forward::OriginalDestination => Wanted::Original(listener::original_destination(stream)),
        Forward::Transparent => Wanted::Original(listener::transparent_destination(stream)),
    }
}

fn facts(proxy: &Proxy, wanted: Wanted, from: SocketAddr) -> io::Result<Facts> {
    let destination = match wanted {
        Wanted::App(app) => {
            proxy.own.refuse_loop(app, is_here)?;
            app
        }
        Wanted::Original(original) => {
            let original = original?;
            proxy.own.must_be_the_app(original, is_here)?;
            original
        }
    };
    Ok(Facts {
        id: proxy.connections.number(),
        direction: Direction::Inbound,
        end: End::Peer,
        source: from,
        source_identity: None,
        destination,
        destination_identity: None,
        workload: proxy.own_workload(),
        server_name: None,
        chain: Arc::from([]),
        expires: None,
        renewable: None,
        local_port: None,
        tls_group: None,
        let_in_by: DecidedBy::Unasked,
        traffic: Arc::new(Traffic::default()),
    })
}

/// A TLS handshake begins with a record of type 22. Looked at, not read.
async fn looks_like_tls(
    stream: &TcpStream,
    mode: MtlsMode,
    patience: Duration,
) -> Result<bool, Refusal> {
    let mut first = [0];
    match timeout(patience, stream.peek(&mut first)).await {
        // Nobody who speaks TLS waits for the other side.
        Err(_) if mode == MtlsMode::Permissive => Ok(false),
        Ok(Ok(1)) => Ok(first == [TLS_HANDSHAKE]),
        Ok(Ok(_)) => Err(Refusal::new(
            "closed",
            "peerAuthentication",
            "closed before the first byte",
        )),
        Ok(Err(error)) => Err(Refusal::new("io", "peerAuthentication", error.to_string())),
        Err(_) => Err(Refusal::new(
            "handshake_timeout",
            "peerAuthentication",
            "no first byte in time",
        )),
    }
}

fn refused_plaintext(set: &PolicySet, facts: &Facts, began: Instant) -> Refusal {
    let access = facts.access(None);
    let decision = set.decide_connection(&access);
    let record = Record::of(facts)
        .decided(set, &access, &decision)
        .since(began);
    // A Workload that nobody knows takes no plaintext, whatever the policies would say.
    let record = match decision.verdict {
        Verdict::Deny => record,
        Verdict::Allow => record.refused("peerAuthentication", "plaintext is refused"),
    };
    Refusal::decided("plaintext", record)
}

type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

async fn handshake(
    proxy: &Proxy,
    identity: &Identity,
    offer: Offer,
    stream: TcpStream,
    facts: Facts,
) -> Result<(TlsStream, Facts), Refusal> {
    let refused = |label, reason: String| Refusal::new(label, "peerAuthentication", reason);
    let acceptor = TlsAcceptor::from(identity.server(offer));
    let accepted = timeout(
        proxy.config.inbound.handshake_timeout,
        acceptor.accept(stream),
    )
    .await
    .map_err(|_| refused("handshake_timeout", "the handshake took too long".into()))?
    .map_err(|error| refused("handshake", format!("handshake: {error}")))?;
    let server_name = accepted.get_ref().1.server_name().map(Arc::from);
    let chain: Vec<CertificateDer<'static>> = accepted
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|certificate| certificate.clone().into_owned())
        .collect();
    let peer = identity
        .trust()
        .verify(&chain, PeerRole::Client)
        .map_err(|error| refused(error.label(), error.to_string()))?;
    let facts = Facts {
        server_name,
        renewable: Binding::of(accepted.get_ref().1),
        tls_group: tls::group(accepted.get_ref().1),
        ..facts
    };
    Ok((accepted, facts.verified(&peer, chain)))
}

const TLS_HANDSHAKE: u8 = 22;

/// Where plaintext is welcome, a caller that says nothing for so long waits for the app to begin.
const PERMISSIVE_PATIENCE: Duration = Duration::from_secs(1);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
