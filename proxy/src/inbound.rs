//! The road in: accept → who is it → may it connect → what is spoken → may it ask this → the app.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Request, Response, StatusCode, header::WWW_AUTHENTICATE};
use hyper::body::Incoming;
use postern_policies::{
    MtlsMode, PolicySet,
    decide::{Direction, HttpRequest, Verdict},
    model::request_authentication::JwtRule,
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
    connections::Facts,
    detect::{Detecting, Spoken, detect},
    http::{
        body::Answered,
        headers::{self, FORWARDED_CLIENT_CERT, REASON, REQUEST_ID},
        serve::{Clean, clean, own_answer, refuse_malformed, serve_within},
        upgrade,
    },
    listener,
    pool::{Connected, Limits, Outgoing, Upstream, UpstreamError},
    relay,
    telemetry::{AnswerLabels, RefusalLabels},
    tls::{Identity, Offer},
    tokens::{Verified, of_request, tell_app},
};

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
        Ok(facts) => facts,
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
    let proving = prove(proxy, &identity, mode, stream, facts);
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
            let http2 = stream
                .get_ref()
                .1
                .alpn_protocol()
                .map(|protocol| protocol == b"h2");
            admitted(proxy, &identity, &set, *stream, facts, http2).await
        }
        Proven::Plain(stream, facts) => admitted(proxy, &identity, &set, stream, facts, None).await,
    }
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
                    let (stream, facts) = handshake(proxy, identity, stream, facts).await?;
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
    facts: Facts,
    http2: Option<bool>,
) -> Result<(), Refusal> {
    let access = facts.access(None);
    let decision = set.decide_connection(&access);
    if decision.verdict == Verdict::Deny {
        let record = Record::of(&facts).decided(set, &access, &decision);
        return Err(Refusal::decided("policy", record));
    }
    let watched = proxy.connections.watch(facts.clone());
    let work = spoken(proxy, identity, set, stream, facts, http2);
    tokio::select! {
        ended = work => ended,
        // Revoked, expired, no longer allowed: cut, not asked to leave.
        () = watched.must_end() => Ok(()),
    }
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
    match (proxy.config.inbound.protocol, http2) {
        (Protocol::Tcp, _) => tcp(proxy, set, stream, facts).await,
        (Protocol::Http1, None | Some(false)) => http(proxy, identity, stream, facts, false).await,
        (Protocol::Http2, None | Some(true)) => http(proxy, identity, stream, facts, true).await,
        (Protocol::Auto | Protocol::Http, Some(http2)) => {
            http(proxy, identity, stream, facts, http2).await
        }
        (Protocol::Auto, None) => {
            let mut stream = Detecting::new(stream);
            let spoken = stream.spoken_within(DETECT_PATIENCE, HTTP_PATIENCE).await;
            match spoken.map_err(failed)? {
                None => silent(proxy, identity, set, stream, facts).await,
                Some(Spoken::Other) => tcp(proxy, set, stream.rewound(), facts).await,
                Some(http) => http_of(proxy, identity, stream.rewound(), facts, http).await,
            }
        }
        (Protocol::Http, None) => {
            let (spoken, stream) = detect(stream, HTTP_PATIENCE).await.map_err(failed)?;
            http_of(proxy, identity, stream, facts, spoken).await
        }
        (Protocol::Http1 | Protocol::Http2, Some(_)) => Err(Refusal::new(
            "protocol",
            "network",
            "the caller speaks another version of HTTP",
        )),
    }
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
            "the caller does not speak HTTP",
        )),
    }
}

/// A caller that says nothing: perhaps it waits for the app to speak first, perhaps it only takes
/// its time. Whoever speaks first decides; a request stays one, however late it comes.
async fn silent<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    identity: &Arc<Identity>,
    set: &PolicySet,
    mut stream: Detecting<S>,
    facts: Facts,
) -> Result<(), Refusal> {
    let began = Instant::now();
    let failed = |error: io::Error| Refusal::new("io", "network", error.to_string());
    let (spoken, app) = match permit(set, &facts) {
        // No opaque bytes for this caller: it speaks HTTP, or not at all.
        Err(refusal) => match timeout(HTTP_PATIENCE, stream.spoken()).await {
            Ok(spoken) => match spoken.map_err(failed)? {
                Spoken::Other => return Err(refusal),
                http => (http, None),
            },
            Err(_) => return Err(refusal),
        },
        Ok(record) => {
            let app = reach(&facts).await?;
            tokio::select! {
                _ = app.readable() => (Spoken::Other, Some((app, record))),
                spoken = stream.spoken() => (spoken.map_err(failed)?, Some((app, record))),
            }
        }
    };
    match (spoken, app) {
        (Spoken::Other, Some((app, record))) => {
            copy(proxy, stream.rewound(), app, record, began).await;
            Ok(())
        }
        (http, _) => http_of(proxy, identity, stream.rewound(), facts, http).await,
    }
}

/// Opaque TCP: asked once, then copied.
async fn tcp<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    set: &PolicySet,
    stream: S,
    facts: Facts,
) -> Result<(), Refusal> {
    let began = Instant::now();
    let record = permit(set, &facts)?;
    let app = reach(&facts).await?;
    copy(proxy, stream, app, record, began).await;
    Ok(())
}

/// May this caller send opaque bytes?
fn permit(set: &PolicySet, facts: &Facts) -> Result<Record, Refusal> {
    let access = facts.access(None);
    let decision = set.decide_request(&access);
    let record = Record::of(facts).decided(set, &access, &decision);
    match decision.verdict {
        Verdict::Allow => Ok(record),
        Verdict::Deny => Err(Refusal::decided("policy", record)),
    }
}

async fn reach(facts: &Facts) -> Result<TcpStream, Refusal> {
    let app = timeout(CONNECT_TIMEOUT, TcpStream::connect(facts.destination))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| {
            Refusal::new(
                "upstream",
                "upstream",
                format!("cannot reach the app: {error}"),
            )
        })?;
    let _ = app.set_nodelay(true);
    Ok(app)
}

async fn copy<S: AsyncRead + AsyncWrite + Unpin>(
    proxy: &Proxy,
    mut stream: S,
    mut app: TcpStream,
    mut record: Record,
    began: Instant,
) {
    match relay::relay(&mut stream, &mut app).await {
        Ok((received, sent)) => (record.bytes_received, record.bytes_sent) = (received, sent),
        Err(error) => record.reason = Some(error.to_string()),
    }
    proxy.access_log.write(&record.since(began));
}

/// HTTP: every request is asked.
async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    identity: &Arc<Identity>,
    stream: S,
    facts: Facts,
    http2: bool,
) -> Result<(), Refusal> {
    let client_cert = facts.chain.first().and_then(|leaf| {
        let peer = identity
            .trust()
            .verify(&facts.chain, PeerRole::Client)
            .ok()?;
        headers::forwarded_client_cert(identity.id(), &peer, leaf)
    });
    let source = facts.source;
    let caller = Arc::new(Caller {
        proxy: proxy.clone(),
        facts,
        client_cert,
    });
    let answer = move |request| {
        let caller = caller.clone();
        async move { caller.request(request).await }
    };
    // How the caller ends its connection is its business; what it asked is in the log.
    let patience = proxy.config.inbound.patience;
    let draining = proxy.draining.clone();
    let ended = serve_within(patience, stream, http2, draining, answer).await;
    if let Err(cut) = &ended
        && let Some(reason) = cut.limit()
    {
        tracing::info!(src.addr = %source, reason = %cut, "a connection is cut");
        let labels = RefusalLabels {
            direction: "inbound",
            reason,
        };
        proxy.metrics.refused.get_or_create(&labels).inc();
    }
    Ok(())
}

/// Who asks, for all requests of a connection.
struct Caller {
    proxy: Arc<Proxy>,
    facts: Facts,
    client_cert: Option<HeaderValue>,
}

impl Caller {
    async fn request(&self, request: Request<Incoming>) -> Response<Answered> {
        let began = Instant::now();
        let (proxy, facts) = (&self.proxy, &self.facts);
        let mut record = Record::of(facts);
        record.method = Some(request.method().as_str().to_owned());
        record.path = Some(request.uri().path().to_owned());

        // One spelling, before anything is judged.
        let mut clean = match clean(request, self.proxy.config.paths) {
            Ok(clean) => clean,
            Err((malformed, id)) => {
                self.count("malformed");
                let record = record.refused("request", malformed.to_string());
                return self.finish(refuse_malformed(malformed, &id), record, &id, began);
            }
        };
        record.path = Some(clean.path().to_owned());

        let Some((_, set)) = proxy.ready() else {
            self.count("not_ready");
            let answer = own_answer(StatusCode::SERVICE_UNAVAILABLE, "not ready", &clean.id);
            let record = record.refused("peerAuthentication", "the proxy has no identity");
            return self.finish(answer, record, &clean.id, began);
        };

        // Is its token what it says?
        let rules = self.token_rules(&set);
        let now = SystemTime::now();
        let token = of_request(&clean.request, &rules, &proxy.token_keys, now).await;
        let token = match token {
            Ok(token) => token,
            Err(refused) => {
                self.count("token");
                let record = record.refused("requestAuthentication", refused.to_string());
                return self.finish(unauthorized(&clean.id), record, &clean.id, began);
            }
        };

        // May this identity do this?
        let (verdict, record, accepted) = self.judge(&set, &clean, token.as_ref(), record);
        if verdict == Verdict::Deny {
            self.count("policy");
            let mut answer = own_answer(StatusCode::FORBIDDEN, DENIED, &clean.id);
            if proxy.config.reason_header
                && let Some(Ok(reason)) = record.reason.as_deref().map(HeaderValue::try_from)
            {
                answer.headers_mut().insert(REASON, reason);
            }
            return self.finish(answer, record, &clean.id, began);
        }

        // To the app, as it was judged.
        let (id, wire) = (clean.id.clone(), clean.wire.take());
        let accepted = accepted.and_then(|number| rules.get(number).copied());
        let accepted = token.as_ref().zip(accepted);
        tell_app(&mut clean.request, &rules, accepted);
        match self.forward(clean).await {
            Ok(response) => self.finish(response, record, &id, began),
            Err(error) => {
                let mut record = record;
                // Whose fault is it that the body broke off?
                if let Some(refused) = wire.and_then(|wire| wire.broken()) {
                    self.count("malformed");
                    let record = record.refused("request", refused.to_string());
                    return self.finish(refuse_malformed(refused.into(), &id), record, &id, began);
                }
                record.reason = Some(error.to_string());
                self.finish(upstream_failed(&error, &id), record, &id, began)
            }
        }
    }

    /// Asks the policies; and which rule accepts the token.
    fn judge(
        &self,
        set: &PolicySet,
        clean: &Clean,
        token: Option<&Verified>,
        record: Record,
    ) -> (Verdict, Record, Option<usize>) {
        let fields = headers::Fields(clean.request.headers());
        let asked = HttpRequest {
            method: clean.request.method().as_str(),
            path: clean.path(),
            host: Some(&clean.host),
            headers: &fields,
        };
        let access = self
            .facts
            .access_with(Some(asked), token.map(Verified::token));
        let decision = set.decide_request(&access);
        let record = record.decided(set, &access, &decision);
        (decision.verdict, record, set.token_rule(&access))
    }

    /// What RequestAuthentication asks of requests here.
    fn token_rules<'s>(&self, set: &'s PolicySet) -> Vec<&'s JwtRule> {
        let own = self.facts.workload.as_ref();
        own.into_iter()
            .flat_map(|own| set.token_rules(own))
            .collect()
    }

    async fn forward(&self, clean: Clean) -> Result<Response<Answered>, UpstreamError> {
        let Clean {
            mut request,
            websocket,
            ..
        } = clean;
        if let Some(value) = &self.client_cert {
            request
                .headers_mut()
                .insert(FORWARDED_CLIENT_CERT, value.clone());
        }
        let is_grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let http2 = is_grpc || self.proxy.config.inbound.protocol == Protocol::Http2;
        let address = self.facts.destination;
        if let Some(tunnels) = websocket.filter(|_| self.proxy.config.inbound.websocket) {
            let answer = upgrade::websocket(request, address, &tunnels).await?;
            return Ok(answer.map(Answered::upstream));
        }
        let upstream = Upstream::App { address, http2 };
        let connect = || async move {
            let stream = TcpStream::connect(address)
                .await
                .map_err(|error| UpstreamError::Connect(error.to_string()))?;
            let _ = stream.set_nodelay(true);
            Ok(Connected {
                stream: Box::new(stream),
                http2,
                retire_at: None,
                watched: None,
            })
        };
        let request = request.map(Outgoing::from);
        let pool = &self.proxy.pool;
        let answer = pool.send(&upstream, request, &APP_LIMITS, connect).await;
        let answer = answer.map_err(|failed| failed.error)?;
        let body = |body| Answered::upstream(body).holding(answer.held);
        let mut response = answer.response.map(body);
        headers::strip_hop_by_hop(response.headers_mut());
        Ok(response)
    }

    /// The last steps of every answer: its id, its count, its line.
    fn finish(
        &self,
        mut response: Response<Answered>,
        mut record: Record,
        id: &HeaderValue,
        began: Instant,
    ) -> Response<Answered> {
        response.headers_mut().insert(REQUEST_ID, id.clone());
        let class = class(response.status());
        self.proxy
            .metrics
            .answers
            .get_or_create(&AnswerLabels {
                direction: "inbound",
                class,
            })
            .inc();
        record.status = Some(response.status().as_u16());
        record.request_id = id.to_str().ok().map(str::to_owned);
        let log = self.proxy.access_log.clone();
        response.map(|body| body.then_log(log, record, began))
    }

    fn count(&self, reason: &'static str) {
        let labels = RefusalLabels {
            direction: "inbound",
            reason,
        };
        self.proxy.metrics.refused.get_or_create(&labels).inc();
    }
}

/// What the caller is told when the upstream fails.
pub(crate) fn upstream_failed(error: &UpstreamError, id: &HeaderValue) -> Response<Answered> {
    match error {
        UpstreamError::Connect(_) | UpstreamError::ConnectTimeout(_) | UpstreamError::Tls(_) => {
            own_answer(StatusCode::SERVICE_UNAVAILABLE, "upstream unavailable", id)
        }
        UpstreamError::Bound(_) => {
            own_answer(StatusCode::SERVICE_UNAVAILABLE, "upstream overloaded", id)
        }
        UpstreamError::Timeout => own_answer(StatusCode::GATEWAY_TIMEOUT, "upstream timeout", id),
        UpstreamError::Answer(_) | UpstreamError::Ambiguous(_) => {
            own_answer(StatusCode::BAD_GATEWAY, "bad gateway", id)
        }
        UpstreamError::Request | UpstreamError::Caller(_) => {
            own_answer(StatusCode::BAD_REQUEST, "bad request", id)
        }
    }
}

/// The answer to a token that is not good. Spec: RFC 6750 section 3.1.
fn unauthorized(id: &HeaderValue) -> Response<Answered> {
    let mut answer = own_answer(StatusCode::UNAUTHORIZED, "unauthorized", id);
    let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    answer
}

/// The class of a status, for metrics.
pub(crate) fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
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
        Wanted::App(app) => app,
        Wanted::Original(original) => {
            let original = original?;
            listener::must_be_the_app(original, proxy.config.own_addresses(), listener::is_here)?;
            original
        }
    };
    if proxy.destinations.is_own(destination) {
        return Err(io::Error::other("the destination is the proxy itself"));
    }
    Ok(Facts {
        id: proxy.connections.number(),
        direction: Direction::Inbound,
        source: from,
        source_identity: None,
        destination,
        destination_identity: None,
        workload: proxy.own_workload(),
        server_name: None,
        chain: Arc::from([]),
        expires: None,
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
    stream: TcpStream,
    facts: Facts,
) -> Result<(TlsStream, Facts), Refusal> {
    let offer = match proxy.config.inbound.protocol {
        Protocol::Tcp => Offer::Tcp,
        _ => Offer::Http,
    };
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
        ..facts
    };
    Ok((accepted, facts.verified(&peer, chain)))
}

pub(crate) const DENIED: &str = "RBAC: access denied";

const TLS_HANDSHAKE: u8 = 22;

/// A caller of `auto` that says nothing for so long waits for the server to speak first.
pub(crate) const DETECT_PATIENCE: Duration = Duration::from_millis(200);
/// Where plaintext is welcome, a caller that says nothing for so long waits for the app to begin.
const PERMISSIVE_PATIENCE: Duration = Duration::from_secs(1);

const HTTP_PATIENCE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The app may be given as many connections as callers may have opened to us.
const APP_LIMITS: Limits = Limits {
    connect: CONNECT_TIMEOUT,
    answer: Duration::from_secs(60),
    connections: listener::MAX_CONNECTIONS,
    shared: 16,
    pending: 1024,
};
