//! The road out: accept from the app → which Workload is it for → may we go there → mutual TLS with
//! exactly the identity that serves it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use postern_policies::{
    PolicySet,
    decide::{Direction, HttpRequest, Protocol, Verdict},
    model::workload::{Workload, WorkloadName},
};
use postern_spiffe::{PeerRole, SpiffeId};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    access_log::Record,
    app::Proxy,
    config::{Listener, ToPort},
    connections::Facts,
    detect::{Spoken, detect},
    http::{
        body::Answered,
        headers::{self, REQUEST_ID},
        pool::{Connected, Upstream, UpstreamError},
        serve::{clean, own_answer, refuse_malformed, serve},
    },
    inbound::{DENIED, DETECT_PATIENCE, class, upstream_failed},
    listener, relay,
    telemetry::{AnswerLabels, RefusalLabels},
    tls::Offer,
};

/// Where the app's connection is for.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// To the Workload of an explicit listener.
    To(Arc<Listener>),
    /// Wherever it wanted to go before it was redirected.
    Redirected,
}

/// What a way leads to.
#[derive(Debug, Clone)]
struct Target {
    workload: Option<(WorkloadName, SpiffeId)>,
    address: SocketAddr,
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
    let target = match target(&proxy, &set, &stream, &way).await {
        Ok(target) => target,
        Err(error) => {
            count(&proxy, "destination");
            tracing::warn!(src.addr = %from, %error, "a connection has no destination");
            return;
        }
    };
    let facts = Facts {
        server_name: None,
        id: proxy.connections.number(),
        direction: Direction::Outbound,
        source: from,
        source_identity: Some(identity.id().clone()),
        destination: target.address,
        destination_identity: target.workload.as_ref().map(|(_, id)| id.clone()),
        workload: target.workload.as_ref().map(|(name, _)| name.clone()),
        chain: Arc::from([]),
        expires: None,
    };
    let Ok((spoken, stream)) = detect(stream, DETECT_PATIENCE).await else {
        return;
    };
    match spoken {
        Spoken::Http1 => http(&proxy, stream, facts, target, false).await,
        Spoken::Http2 => http(&proxy, stream, facts, target, true).await,
        Spoken::Other => tcp(&proxy, &set, stream, facts, target).await,
    }
}

impl Target {
    /// The same place with the identity that the directory names now.
    fn in_force(&self, set: &PolicySet) -> Self {
        let workload = match &self.workload {
            Some((name, _)) => set.workload(name),
            None => at_address(set, self.address),
        };
        Self {
            workload: workload.map(|workload| (workload.name.clone(), workload.spiffe_id.clone())),
            address: self.address,
        }
    }
}

async fn target(
    proxy: &Proxy,
    set: &PolicySet,
    stream: &TcpStream,
    way: &Way,
) -> io::Result<Target> {
    let found = found(set, stream, way).await?;
    let own = proxy.config.own_addresses();
    listener::refuse_loop(found.address, own, listener::is_here)?;
    Ok(found)
}

async fn found(set: &PolicySet, stream: &TcpStream, way: &Way) -> io::Result<Target> {
    match way {
        Way::Redirected => {
            let address = listener::original_destination(stream)?;
            let workload = at_address(set, address)
                .map(|workload| (workload.name.clone(), workload.spiffe_id.clone()));
            Ok(Target { workload, address })
        }
        Way::To(listener) => {
            let unknown = |what: String| io::Error::new(io::ErrorKind::NotFound, what);
            let workload = set
                .workload(&listener.to)
                .ok_or_else(|| unknown(format!("there is no Workload `{}`", listener.to)))?;
            let port = port(workload, &listener.port).ok_or_else(|| {
                unknown(format!(
                    "Workload `{}` has no port {:?}",
                    listener.to, listener.port
                ))
            })?;
            let address = address(workload, port).await?;
            let workload = (workload.name.clone(), workload.spiffe_id.clone());
            Ok(Target {
                workload: Some(workload),
                address,
            })
        }
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

fn port(workload: &Workload, wanted: &ToPort) -> Option<u16> {
    let served = workload.ports.iter().find(|port| {
        port.protocol == Protocol::Tcp
            && match wanted {
                ToPort::Number(number) => port.port == *number,
                ToPort::Name(name) => port.name.as_deref() == Some(name),
            }
    });
    served.map(|port| port.port)
}

/// Where a Workload is reached: the first of its addresses that is one or resolves to one.
async fn address(workload: &Workload, port: u16) -> io::Result<SocketAddr> {
    for text in &workload.addresses {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, port));
        }
        if let Ok(mut found) = lookup_host((text.as_str(), port)).await
            && let Some(address) = found.next()
        {
            return Ok(address);
        }
    }
    let problem = format!(
        "Workload `{}` has no address that can be reached",
        workload.name
    );
    Err(io::Error::new(io::ErrorKind::NotFound, problem))
}

/// Opaque TCP: asked once, carried over a mutual TLS connection of its own.
async fn tcp<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    set: &PolicySet,
    mut stream: S,
    facts: Facts,
    target: Target,
) {
    let began = Instant::now();
    let access = facts.access(None);
    let decision = set.decide_connection(&access);
    let mut record = Record::of(&facts).decided(set, &access, &decision);
    if decision.verdict == Verdict::Deny {
        count(proxy, "policy");
        proxy.access_log.write(&record.since(began));
        return;
    }
    let connected = timeout(CONNECT_TIMEOUT, connect(proxy, &facts, &target, Offer::Tcp))
        .await
        .unwrap_or(Err(UpstreamError::Timeout));
    match connected {
        Ok(Connected {
            stream: mut upstream,
            watched,
            ..
        }) => {
            let must_end = async {
                match &watched {
                    Some(watched) => watched.must_end().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                copied = relay::relay(&mut stream, &mut upstream) => match copied {
                    Ok((sent, received)) => {
                        (record.bytes_sent, record.bytes_received) = (sent, received);
                    }
                    Err(error) => record.reason = Some(error.to_string()),
                },
                () = must_end => record.reason = Some("the connection may not go on".into()),
            }
        }
        Err(error) => {
            count(proxy, "upstream");
            record.reason = Some(error.to_string());
        }
    }
    proxy.access_log.write(&record.since(began));
}

/// HTTP: every request is asked, and goes out over a pooled connection.
async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    stream: S,
    facts: Facts,
    target: Target,
    http2: bool,
) {
    let app = Arc::new(App {
        proxy: proxy.clone(),
        facts,
        target,
    });
    let answer = move |request| {
        let app = app.clone();
        async move { app.request(request).await }
    };
    let _ = serve(stream, http2, proxy.draining.clone(), answer).await;
}

/// The app's connection, for all of its requests.
struct App {
    proxy: Arc<Proxy>,
    facts: Facts,
    target: Target,
}

impl App {
    async fn request(&self, request: Request<Incoming>) -> Response<Answered> {
        let began = Instant::now();
        let mut record = Record::of(&self.facts);
        record.method = Some(request.method().as_str().to_owned());
        record.path = Some(request.uri().path().to_owned());
        let clean = match clean(request, self.proxy.config.paths) {
            Ok(clean) => clean,
            Err((malformed, id)) => {
                count(&self.proxy, "malformed");
                let record = record.refused("request", malformed.to_string());
                return self.finish(refuse_malformed(malformed, &id), record, &id, began);
            }
        };
        let id = clean.id.clone();

        // May we go there?
        let Some((identity, set)) = self.proxy.ready() else {
            count(&self.proxy, "not_ready");
            let answer = own_answer(StatusCode::SERVICE_UNAVAILABLE, "not ready", &id);
            let record = record.refused("peerAuthentication", "the proxy has no identity");
            return self.finish(answer, record, &id, began);
        };
        let fields = headers::Fields(clean.request.headers());
        let target = self.target.in_force(&set);
        let mut facts = self.facts.clone();
        facts.source_identity = Some(identity.id().clone());
        facts.workload = target.workload.as_ref().map(|(name, _)| name.clone());
        facts.destination_identity = target.workload.as_ref().map(|(_, id)| id.clone());
        let access = facts.access(Some(HttpRequest {
            method: clean.request.method().as_str(),
            path: clean.path(),
            host: Some(&clean.host),
            headers: &fields,
        }));
        let decision = set.decide_connection(&access);
        let record = record.decided(&set, &access, &decision);
        if decision.verdict == Verdict::Deny {
            count(&self.proxy, "policy");
            return self.finish(
                own_answer(StatusCode::FORBIDDEN, DENIED, &id),
                record,
                &id,
                began,
            );
        }

        // To exactly the identity that serves it.
        let sent = match &target.workload {
            Some((_, identity)) => {
                let upstream = Upstream::Mesh {
                    identity: identity.clone(),
                    address: target.address,
                };
                let connect = || connect(&self.proxy, &facts, &target, Offer::Http);
                self.proxy
                    .pool
                    .send(&upstream, clean.request, connect)
                    .await
            }
            None => Err(UpstreamError::Tls(NO_IDENTITY.into())),
        };
        match sent {
            Ok(response) => self.finish(response.map(Answered::upstream), record, &id, began),
            Err(error) => {
                count(&self.proxy, "upstream");
                let mut record = record;
                record.reason = Some(error.to_string());
                self.finish(upstream_failed(&error, &id), record, &id, began)
            }
        }
    }

    fn finish(
        &self,
        mut response: Response<Answered>,
        mut record: Record,
        id: &HeaderValue,
        began: Instant,
    ) -> Response<Answered> {
        headers::strip_hop_by_hop(response.headers_mut());
        response.headers_mut().insert(REQUEST_ID, id.clone());
        let labels = AnswerLabels {
            direction: "outbound",
            class: class(response.status()),
        };
        self.proxy.metrics.answers.get_or_create(&labels).inc();
        record.status = Some(response.status().as_u16());
        record.request_id = id.to_str().ok().map(str::to_owned);
        let log = self.proxy.access_log.clone();
        response.map(|body| body.then_log(log, record, began))
    }
}

/// Mutual TLS with the target, and nobody else.
async fn connect(
    proxy: &Arc<Proxy>,
    facts: &Facts,
    target: &Target,
    offer: Offer,
) -> Result<Connected, UpstreamError> {
    let refused = |reason: String| UpstreamError::Tls(reason);
    let (_, expected) = target
        .workload
        .clone()
        .ok_or_else(|| refused(NO_IDENTITY.into()))?;
    let (identity, _) = proxy
        .ready()
        .ok_or_else(|| refused("we have no identity".into()))?;
    let config = identity
        .client(expected, offer)
        .map_err(|error| refused(error.to_string()))?;
    let stream = TcpStream::connect(target.address)
        .await
        .map_err(|error| UpstreamError::Connect(error.to_string()))?;
    let _ = stream.set_nodelay(true);
    let name = ServerName::from(target.address.ip());
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| refused(error.to_string()))?;
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol() == Some(b"h2");
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
    let facts = Facts {
        id: proxy.connections.number(),
        ..facts.clone()
    }
    .verified(&peer, chain);
    Ok(Connected {
        stream: Box::new(stream),
        http2,
        retire_at: Some(Instant::now() + left / 2),
        watched: Some(proxy.connections.watch(facts)),
    })
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

const NO_IDENTITY: &str = "the destination is no Workload, so it has no identity";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
