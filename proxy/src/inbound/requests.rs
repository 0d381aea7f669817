//! HTTP on the road in: every request is asked.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Request, Response, StatusCode, header::WWW_AUTHENTICATE};
use hyper::body::Incoming;
use postern_policies::{
    PolicySet,
    decide::{HttpRequest, Verdict},
    model::request_authentication::JwtRule,
};
use postern_spiffe::PeerRole;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{CONNECT_TIMEOUT, Refusal, takes_http2};
use crate::{
    access_log::Record,
    app::Proxy,
    connections::{Carried, Facts},
    http::{
        body::Answered,
        grpc,
        headers::{self, FORWARDED_CLIENT_CERT, REASON, REQUEST_ID},
        serve::{Clean, Ending, Marks, clean, own_answer, refuse_malformed, serve_within},
        upgrade,
    },
    listener,
    pool::{Connected, Limits, Outgoing, Upstream, UpstreamError},
    renewal::{self, NotRenewed, Renewals, Renewed},
    telemetry::{AnswerLabels, RefusalLabels, otlp},
    tls::Identity,
    tokens::{Verified, of_request, tell_app},
};

/// HTTP: every request is asked.
pub(super) async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    identity: &Arc<Identity>,
    stream: S,
    facts: Facts,
    http2: bool,
) -> Result<(), Refusal> {
    facts.traffic.carries(Carried::http(http2));
    let client_cert = facts.chain.first().and_then(|leaf| {
        let peer = identity
            .trust()
            .verify(&facts.chain, PeerRole::Client)
            .ok()?;
        headers::forwarded_client_cert(identity.id(), &peer, leaf)
    });
    let source = facts.source;
    let renewals = facts.renewable.zip(facts.source_identity.clone());
    let renewals =
        renewals.map(|(binding, caller)| Renewals::new(proxy, facts.id, binding, caller));
    let ending = Ending {
        steps: proxy.steps.clone(),
        // Who can show its next certificate has no end to be told of, and knows when to leave.
        leave_at: match renewals {
            Some(_) => None,
            None => facts.last_request_at(),
        },
    };
    let caller = Arc::new(Caller {
        proxy: proxy.clone(),
        facts,
        client_cert: RwLock::new(client_cert),
        renewals,
    });
    let answer = move |request| {
        let caller = caller.clone();
        async move { caller.request(request).await }
    };
    // How the caller ends its connection is its business; what it asked is in the log.
    let patience = proxy.config.inbound.patience;
    let ended = serve_within(patience, stream, http2, ending, answer).await;
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
    /// What the app is told of the certificate that was shown last.
    client_cert: RwLock<Option<HeaderValue>>,
    /// How the caller may show its next one, if it knows how.
    renewals: Option<Renewals>,
}

impl Caller {
    async fn request(&self, request: Request<Incoming>) -> Response<Answered> {
        let began = Instant::now();
        let (proxy, facts) = (&self.proxy, &self.facts);
        if let Some(renewals) = &self.renewals
            && request.method().as_str() == renewal::METHOD
        {
            return self.renew(renewals, request.into_body()).await;
        }
        facts.traffic.count_request();
        let (method, uri) = (request.method().clone(), request.uri().clone());

        // One spelling, before anything is judged.
        let mut clean = match clean(request, self.proxy.config.paths) {
            Ok(clean) => clean,
            Err(refused) => {
                let (malformed, marks) = *refused;
                self.count("malformed");
                let record = Record::of(facts).of_request(&method, uri.path());
                let record = record.refused("request", malformed.to_string());
                let answer = refuse_malformed(malformed, &marks.id);
                return self.finish(answer, record, &marks, began);
            }
        };
        let record = Record::of(facts).of_request(&method, clean.path());
        let (request, marks) = (&mut clean.request, &mut clean.marks);
        otlp::sample(
            proxy.config.otlp.as_ref(),
            &mut marks.trace,
            request.headers_mut(),
        );

        let Some((_, set)) = proxy.ready() else {
            self.count("not_ready");
            let answer = own_answer(
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready",
                &clean.marks.id,
            );
            let record = record.refused("peerAuthentication", "the proxy has no identity");
            return self.finish(answer, record, &clean.marks, began);
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
                let answer = unauthorized(&clean.marks.id);
                return self.finish(answer, record, &clean.marks, began);
            }
        };

        // May this identity do this?
        let (verdict, record, accepted) = self.judge(&set, &clean, token.as_ref(), record);
        if verdict == Verdict::Deny {
            self.count("policy");
            let mut answer = own_answer(StatusCode::FORBIDDEN, DENIED, &clean.marks.id);
            if proxy.config.reason_header
                && let Some(Ok(reason)) = record.reason.as_deref().map(HeaderValue::try_from)
            {
                answer.headers_mut().insert(REASON, reason);
            }
            return self.finish(answer, record, &clean.marks, began);
        }

        // To the app, as it was judged.
        let (marks, wire) = (clean.marks.clone(), clean.wire.take());
        let accepted = accepted.and_then(|number| rules.get(number).copied());
        let accepted = token.as_ref().zip(accepted);
        tell_app(&mut clean.request, &rules, accepted);
        let takes_http2 = takes_http2(proxy, &set, facts);
        match self.forward(clean, takes_http2, &record, began).await {
            Ok(response) => self.finish(response, record, &marks, began),
            Err(error) => {
                let mut record = record;
                // Whose fault is it that the body broke off?
                if let Some(refused) = wire.and_then(|wire| wire.broken()) {
                    self.count("malformed");
                    let record = record.refused("request", refused.to_string());
                    let answer = refuse_malformed(refused.into(), &marks.id);
                    return self.finish(answer, record, &marks, began);
                }
                record.reason = Some(error.to_string());
                self.finish(upstream_failed(&error, &marks.id), record, &marks, began)
            }
        }
    }

    /// The caller shows its next certificate, and sees ours.
    async fn renew(&self, renewals: &Renewals, proof: Incoming) -> Response<Answered> {
        match renewals.take(proof).await {
            Ok(Renewed { peer, leaf, proof }) => {
                renewal::count(&self.proxy.metrics, "inbound", "renewed");
                if let Some((identity, _)) = self.proxy.ready() {
                    let value = headers::forwarded_client_cert(identity.id(), &peer, &leaf);
                    let told = self.client_cert.write();
                    *told.unwrap_or_else(PoisonError::into_inner) = value;
                }
                Response::new(Answered::own(proof))
            }
            Err(refused) => {
                renewal::count(&self.proxy.metrics, "inbound", "refused");
                let caller = self.facts.source_identity.as_ref();
                let (id, reason) = (self.facts.id, refused.to_string());
                match refused {
                    // Whoever asks all the time is counted, and does not fill the log.
                    NotRenewed::TooOften => tracing::debug!(connection_id = id, reason),
                    _ => tracing::warn!(
                        connection_id = id,
                        src.identity = caller.map(tracing::field::display),
                        reason,
                        "a connection is not renewed; it ends with its certificates"
                    ),
                }
                let id = headers::request_id(&mut http::HeaderMap::new());
                own_answer(StatusCode::FORBIDDEN, DENIED, &id)
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

    async fn forward(
        &self,
        clean: Clean,
        takes_http2: bool,
        record: &Record,
        began: Instant,
    ) -> Result<Response<Answered>, UpstreamError> {
        let Clean {
            mut request,
            websocket,
            marks,
            ..
        } = clean;
        let told = self.client_cert.read().map(|value| value.clone());
        if let Some(value) = told.unwrap_or_else(|poisoned| poisoned.into_inner().clone()) {
            request.headers_mut().insert(FORWARDED_CLIENT_CERT, value);
        }
        let http2 = grpc::is_grpc(request.headers()) || takes_http2;
        let address = self.facts.destination;
        let idle = self.proxy.config.inbound.idle_timeout;
        if let Some(tunnels) = websocket.filter(|_| self.proxy.config.inbound.websocket) {
            let told = upgrade::Told::of(&self.proxy, record.clone(), &marks, began);
            let answer = upgrade::offer_app(request, address, &tunnels, idle, told).await?;
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
                renewal: None,
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

    /// The last steps of every answer: its marks, its count, its line.
    fn finish(
        &self,
        mut response: Response<Answered>,
        mut record: Record,
        marks: &Marks,
        began: Instant,
    ) -> Response<Answered> {
        response.headers_mut().insert(REQUEST_ID, marks.id.clone());
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
        record.marked(marks);
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

pub(crate) const DENIED: &str = "RBAC: access denied";

/// The app may be given as many connections as callers may have opened to us.
const APP_LIMITS: Limits = Limits {
    connect: CONNECT_TIMEOUT,
    answer: Duration::from_secs(60),
    connections: listener::MAX_CONNECTIONS,
    shared: 16,
    pending: 1024,
};
