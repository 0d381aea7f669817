//! HTTP on the road out: every request is asked, goes to one endpoint, and on failure to the next
//! if it can be repeated.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use postern_policies::{
    PolicySet,
    decide::{HttpRequest, Verdict},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    NOT_READY, Wanted,
    connect::connect,
    count, deadline, decided_nowhere,
    destination::{Destination, Endpoint},
    let_out,
    opaque::once,
    permitted::{Missing, Seen},
    retry::{self, Failure},
};
use crate::{
    access_log::Record,
    app::Proxy,
    connections::{Carried, Facts, MAX_WAYS},
    http::{
        body::{Answered, Asked},
        headers::{self, REASON, REQUEST_ID},
        serve::{Clean, Marks, clean, own_answer, refuse_malformed, serve},
        upgrade::{Patience, Told, Tunnels, Way, offer},
    },
    inbound::{DENIED, class, upstream_failed},
    pool::{Again, Answer, Failed, Outgoing, UpstreamError},
    telemetry::{AnswerLabels, otlp},
    tls::Offer,
};

/// Serves the app's connection until it ends.
pub(super) async fn serve_app<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    stream: S,
    facts: Facts,
    wanted: Wanted,
    http2: bool,
) {
    facts.traffic.carries(Carried::http(http2));
    let app = Arc::new(App {
        proxy: proxy.clone(),
        facts,
        wanted,
        route: Mutex::new(None),
    });
    let answer = move |request| {
        let app = app.clone();
        async move { app.request(request).await }
    };
    let _ = serve(stream, http2, proxy.steps.clone(), answer).await;
}

/// The app's connection, for all of its requests.
struct App {
    proxy: Arc<Proxy>,
    facts: Facts,
    wanted: Wanted,
    /// Where it leads to by these policies; looked for again when there are others.
    route: Mutex<Option<Route>>,
}

/// Where a connection leads to.
struct Route {
    of: Arc<PolicySet>,
    to: Arc<Destination>,
    /// The endpoints that it was let out to.
    let_out: Vec<SocketAddr>,
}

/// A request without an answer of an upstream, and what is told of it.
struct Refusal {
    answer: Response<Answered>,
    record: Record,
}

impl App {
    async fn request(&self, request: Request<Incoming>) -> Response<Answered> {
        let began = Instant::now();
        self.facts.traffic.count_request();
        let (method, uri) = (request.method().clone(), request.uri().clone());
        // One spelling, before anything is judged.
        let (marks, answered) = match clean(request, self.proxy.config.paths) {
            Ok(mut clean) => {
                let otlp = self.proxy.config.otlp.as_ref();
                let headers = clean.request.headers_mut();
                otlp::sample(otlp, &mut clean.marks.trace, headers);
                (clean.marks.clone(), self.answer(clean, began).await)
            }
            Err(refused) => {
                let (malformed, marks) = *refused;
                count(&self.proxy, "malformed");
                let record = Record::of(&self.facts).of_request(&method, uri.path());
                let record = record.refused("request", malformed.to_string());
                let answer = refuse_malformed(malformed, &marks.id);
                (marks, Err(Box::new(Refusal { answer, record })))
            }
        };
        match answered {
            Ok((response, record)) => self.finish(response, record, &marks, began),
            Err(refusal) => self.finish(refusal.answer, refusal.record, &marks, began),
        }
    }

    async fn answer(
        &self,
        clean: Clean,
        began: Instant,
    ) -> Result<(Response<Answered>, Record), Box<Refusal>> {
        // Without an identity or policies there is nobody to say yes.
        let Some((identity, set)) = self.proxy.ready() else {
            return Err(self.not_ready(&clean));
        };
        let mut facts = self.facts.clone();
        facts.source_identity = Some(identity.id().clone());

        // Who is there, and may we go there?
        let destination = match self.route(&set) {
            Ok(destination) => destination,
            Err(problem) => return Err(self.nowhere(&set, &facts, &clean, problem)),
        };
        let configured = destination.settings().request_timeout;
        let delivery = Delivery {
            app: self,
            set: &set,
            destination,
            facts,
            host: clean.host.clone(),
            marks: clean.marks.clone(),
            began,
            patience: deadline::patience(clean.request.headers(), configured),
            seen: Seen::default(),
            tries: 0,
        };
        delivery.run(clean).await
    }

    fn not_ready(&self, clean: &Clean) -> Box<Refusal> {
        count(&self.proxy, "not_ready");
        let answer = own_answer(
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready",
            &clean.marks.id,
        );
        let record = Record::of(&self.facts).of_request(clean.request.method(), clean.path());
        let record = record.refused("peerAuthentication", NOT_READY);
        Box::new(Refusal { answer, record })
    }

    /// What the connection leads to by these policies.
    fn route(&self, set: &Arc<PolicySet>) -> Result<Arc<Destination>, String> {
        let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*route
            && Arc::ptr_eq(&known.of, set)
        {
            return Ok(known.to.clone());
        }
        let found = self.wanted.destination(&self.proxy, set)?;
        *route = Some(Route {
            of: set.clone(),
            to: found.clone(),
            let_out: Vec::new(),
        });
        Ok(found)
    }

    /// The connection is let out to here; told once for each endpoint under the same policies.
    fn is_let_out(&self, to: &Facts) {
        let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = &mut *route else { return };
        if !known.let_out.contains(&to.destination) {
            // As there: whoever is forgotten is told again.
            if known.let_out.len() >= MAX_WAYS {
                known.let_out.remove(0);
            }
            known.let_out.push(to.destination);
            drop(route);
            let_out(&self.proxy, to);
        }
    }

    /// The answer where there is no destination. Whether that would be allowed is told as well.
    fn nowhere(
        &self,
        set: &PolicySet,
        facts: &Facts,
        clean: &Clean,
        problem: String,
    ) -> Box<Refusal> {
        let fields = headers::Fields(clean.request.headers());
        let asked = HttpRequest {
            method: clean.request.method().as_str(),
            path: clean.path(),
            host: Some(&clean.host),
            headers: &fields,
        };
        let (proxy, wanted) = (&self.proxy, &self.wanted);
        let (verdict, record) = decided_nowhere(proxy, set, facts, wanted, problem, Some(asked));
        let answer = match verdict {
            Verdict::Deny => own_answer(StatusCode::FORBIDDEN, DENIED, &clean.marks.id),
            Verdict::Allow => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                own_answer(status, "upstream unavailable", &clean.marks.id)
            }
        };
        let record = record.of_request(clean.request.method(), clean.path());
        Box::new(Refusal { answer, record })
    }

    fn finish(
        &self,
        mut response: Response<Answered>,
        mut record: Record,
        marks: &Marks,
        began: Instant,
    ) -> Response<Answered> {
        // Of an answer that switches these fields say to what.
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            headers::strip_hop_by_hop(response.headers_mut());
        }
        response.headers_mut().insert(REQUEST_ID, marks.id.clone());
        let labels = AnswerLabels {
            direction: "outbound",
            class: class(response.status()),
        };
        self.proxy.metrics.answers.get_or_create(&labels).inc();
        record.status = Some(response.status().as_u16());
        record.marked(marks);
        let log = self.proxy.access_log.clone();
        response.map(|body| body.then_log(log, record, began))
    }
}

/// One request on its way, over all of its tries.
struct Delivery<'a> {
    app: &'a App,
    set: &'a PolicySet,
    destination: Arc<Destination>,
    facts: Facts,
    host: String,
    marks: Marks,
    began: Instant,
    /// How long the answer may take, all tries together.
    patience: Duration,
    seen: Seen,
    /// Retries so far.
    tries: u32,
}

/// What came of one try.
enum Tried {
    Answered(Box<Answer>),
    Again(Box<Request<Outgoing>>),
    Failed(UpstreamError),
}

impl Delivery<'_> {
    async fn run(mut self, mut clean: Clean) -> Result<(Response<Answered>, Record), Box<Refusal>> {
        let offer = clean.websocket.take();
        if let Some(tunnels) = offer.filter(|_| self.app.proxy.config.outbound.websocket) {
            return self.switch(clean.request, tunnels).await;
        }
        let destination = self.destination.clone();
        let mut request = clean.request.map(Outgoing::from);
        let Some(place) = destination.enter() else {
            let record = Record::of(&self.facts);
            let record = record.of_request(request.method(), request.uri().path());
            return Err(self.failed(&UpstreamError::Bound("requests"), record));
        };
        destination.asked();
        let endpoints = destination.endpoints().await;
        loop {
            let (endpoint, facts, record) = self.next(&endpoints, &request)?;
            let in_flight = endpoint.begin();
            let left = match self.tries {
                0 => self.patience,
                _ => self.patience.saturating_sub(self.began.elapsed()),
            };
            match self
                .once(&endpoints, &endpoint, &facts, request, left)
                .await
            {
                Tried::Answered(answer) => {
                    let held = (answer.held, in_flight, place);
                    let body = |body| Answered::upstream(body).holding(held);
                    return Ok((answer.response.map(body), record));
                }
                Tried::Failed(error) => return Err(self.failed(&error, record)),
                Tried::Again(again) => request = *again,
            }
            drop(in_flight);
            let others = self.seen.leaves_others(&endpoints);
            tokio::time::sleep(destination.pause(self.tries, others)).await;
            self.tries += 1;
        }
    }

    /// A request that offers to speak WebSocket: over a connection of its own, and no other endpoint
    /// is tried once there is one.
    async fn switch(
        mut self,
        request: Request<Asked>,
        tunnels: Tunnels,
    ) -> Result<(Response<Answered>, Record), Box<Refusal>> {
        let destination = self.destination.clone();
        let Some(place) = destination.connect() else {
            let record = Record::of(&self.facts);
            let record = record.of_request(request.method(), request.uri().path());
            return Err(self.failed(&UpstreamError::Bound("connections"), record));
        };
        destination.asked();
        let endpoints = destination.endpoints().await;
        loop {
            let (endpoint, facts, record) = self.next(&endpoints, &request)?;
            let in_flight = endpoint.begin();
            let proxy = &self.app.proxy;
            let tried = once(
                proxy,
                &facts,
                &destination,
                &endpoints,
                &endpoint,
                Offer::Http1,
            );
            let error = match tried.await {
                Ok(connected) => {
                    if let Some(watched) = &connected.watched {
                        watched.traffic().count_request();
                    }
                    let way = Way {
                        stream: connected.stream,
                        watched: connected.watched,
                        _held: Box::new((place, in_flight)),
                    };
                    let patience = Patience {
                        answer: self.patience.saturating_sub(self.began.elapsed()),
                        idle: destination.settings().idle_timeout,
                    };
                    let told = Told::of(proxy, record.clone(), &self.marks, self.began);
                    let answer = offer(request, way, &tunnels, patience, told).await;
                    return match answer {
                        Ok(response) => Ok((response.map(Answered::upstream), record)),
                        Err(error) => Err(self.failed(&error, record)),
                    };
                }
                Err(error) => error,
            };
            let others = self.seen.leaves_others(&endpoints);
            let failure = Failure::of(&error);
            if !failure.is_some_and(|failure| self.may_retry(failure, others)) {
                return Err(self.failed(&error, record));
            }
            drop(in_flight);
            tokio::time::sleep(destination.pause(self.tries, others)).await;
            self.tries += 1;
        }
    }

    /// The endpoint for the next try.
    fn next<B>(
        &mut self,
        endpoints: &[Arc<Endpoint>],
        request: &Request<B>,
    ) -> Result<(Arc<Endpoint>, Facts, Record), Box<Refusal>> {
        let fields = headers::Fields(request.headers());
        let (method, path) = (request.method(), request.uri().path());
        let asked = HttpRequest {
            method: method.as_str(),
            path,
            host: Some(&self.host),
            headers: &fields,
        };
        let (set, facts) = (self.set, &self.facts);
        let next = self
            .seen
            .next(set, facts, &self.destination, endpoints, Some(&asked));
        match next {
            Ok((endpoint, facts, record)) => {
                self.app.is_let_out(&facts);
                Ok((endpoint, facts, record.of_request(method, path)))
            }
            Err(Missing::Denied(record)) => {
                count(&self.app.proxy, "policy");
                let answer = own_answer(StatusCode::FORBIDDEN, DENIED, &self.marks.id);
                let record = record.of_request(method, path);
                Err(Box::new(Refusal { answer, record }))
            }
            Err(Missing::Address) => {
                let error = UpstreamError::Connect(self.destination.no_address());
                let record = Record::of(&self.facts).of_request(method, path);
                Err(self.failed(&error, record))
            }
        }
    }

    /// One try, and what is learnt from it.
    async fn once(
        &self,
        endpoints: &[Arc<Endpoint>],
        endpoint: &Endpoint,
        facts: &Facts,
        request: Request<Outgoing>,
        left: Duration,
    ) -> Tried {
        let (proxy, destination) = (&self.app.proxy, &*self.destination);
        let longest = destination.settings().retries.try_timeout;
        let limits = destination.limits(longest.map_or(left, |longest| longest.min(left)));
        let connect = || connect(proxy, facts, destination, endpoint, Offer::Http);
        let others = self.seen.leaves_others(endpoints);
        let began = Instant::now();
        let sent = proxy
            .pool
            .send(&endpoint.upstream, request, &limits, connect);
        match sent.await {
            Ok(answer) => self.answered(endpoints, endpoint, answer, others),
            Err(failed) => {
                let took = began.elapsed();
                self.unanswered(endpoints, endpoint, failed, took, others)
            }
        }
    }

    /// An answer may still say that its endpoint, or what is behind it, does not work.
    fn answered(
        &self,
        endpoints: &[Arc<Endpoint>],
        endpoint: &Endpoint,
        mut answer: Answer,
        others: bool,
    ) -> Tried {
        let status = answer.response.status();
        match retry::is_gateway_failure(status) {
            true => self.destination.failed(endpoints, endpoint, answer.took),
            false => self.destination.succeeded(endpoint, answer.took),
        }
        let again = answer.again.take().filter(Again::is_possible);
        let again = again.zip(Failure::of_status(status));
        let again = again.filter(|(_, failure)| self.may_retry(*failure, others));
        match again.and_then(|(again, _)| again.request()) {
            Some(request) => Tried::Again(Box::new(request)),
            None => Tried::Answered(Box::new(answer)),
        }
    }

    fn unanswered(
        &self,
        endpoints: &[Arc<Endpoint>],
        endpoint: &Endpoint,
        failed: Failed,
        took: Duration,
        others: bool,
    ) -> Tried {
        let Failed { error, again } = failed;
        let failure = Failure::of(&error);
        if failure.is_some() {
            self.destination.failed(endpoints, endpoint, took);
        }
        if let UpstreamError::Bound(bound) = error {
            self.destination.tell_bound(bound);
        }
        let again = again.zip(failure);
        match again.filter(|(_, failure)| self.may_retry(*failure, others)) {
            Some((request, _)) => Tried::Again(Box::new(request)),
            None => Tried::Failed(error),
        }
    }

    fn may_retry(&self, failure: Failure, others: bool) -> bool {
        let settings = self.destination.settings();
        let has_time = self.began.elapsed() < self.patience;
        let attempts = settings.retries.attempts;
        has_time
            && retry::makes_sense(failure, self.tries, attempts, others)
            && self.destination.may_retry(failure)
    }

    fn failed(&self, error: &UpstreamError, mut record: Record) -> Box<Refusal> {
        let proxy = &self.app.proxy;
        count(proxy, "upstream");
        let reason = error.to_string();
        let mut answer = upstream_failed(error, &self.marks.id);
        if proxy.config.reason_header
            && let Ok(reason) = HeaderValue::try_from(reason.as_str())
        {
            answer.headers_mut().insert(REASON, reason);
        }
        record.reason = Some(reason);
        Box::new(Refusal { answer, record })
    }
}
