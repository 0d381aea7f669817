//! Opaque TCP on the road out: asked once, carried over a mutual TLS connection of its own.

use std::{io, sync::Arc, time::Instant};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OwnedSemaphorePermit,
    time::timeout,
};

use super::{
    AppStream, NOT_READY, PATIENCE, Wanted,
    connect::connect,
    count, decided_nowhere,
    destination::{Destination, Endpoint, InFlight},
    let_out,
    permitted::{Missing, Seen},
    requests,
    retry::{self, Failure},
    undetected,
};
use crate::{
    access_log::{Line, Record, may_not_go_on},
    app::Proxy,
    connections::{Carried, Facts, Watched},
    detect::{Detecting, Outcome, Spoken, Undetected},
    pool::{Connected, UpstreamError},
    relay,
    tls::Offer,
};

/// Carries the app's connection until it ends.
pub(super) async fn carry<S: AsyncRead + AsyncWrite + Unpin + Send>(
    proxy: &Arc<Proxy>,
    stream: S,
    facts: Facts,
    wanted: Wanted,
) {
    let began = Instant::now();
    facts.traffic.carries(Carried::Tcp);
    match open(proxy, &facts, &wanted, began).await {
        Ok(opened) => opened.copy(stream).await,
        Err(record) => proxy.access_log.write(&record.since(began)),
    }
}

/// An app that says nothing: perhaps it waits for the other side to speak first, perhaps it opened
/// its connection before it has a request. Whoever speaks first decides.
pub(super) async fn silent(
    proxy: &Arc<Proxy>,
    mut stream: Detecting<AppStream>,
    facts: Facts,
    wanted: Wanted,
) {
    let began = Instant::now();
    proxy.late.count(&facts, Outcome::Silent);
    let mut opened = match open(proxy, &facts, &wanted, began).await {
        Ok(opened) => opened,
        Err(record) => return proxy.access_log.write(&record.since(began)),
    };
    match opened.whoever_begins(&mut stream).await {
        Ok(Spoken::Other) => {
            facts.traffic.carries(Carried::Tcp);
            opened.copy(stream.rewound()).await;
        }
        Ok(http) => {
            // The connection for opaque bytes was not needed.
            opened.unneeded();
            let (stream, is_http2) = (stream.rewound(), http == Spoken::Http2);
            requests::serve_app(proxy, stream, facts, wanted, is_http2).await;
        }
        Err(Undetected::Io(error)) => opened.ended(Err(error)),
        Err(why) => {
            opened.unneeded();
            undetected(proxy, &facts, &why);
        }
    }
}

/// A way to the upstream, for one connection.
struct Opened {
    connected: Connected,
    destination: Arc<Destination>,
    line: Line,
    /// Its place among the connections at once, and on its endpoint.
    _held: (OwnedSemaphorePermit, InFlight),
}

/// Connects to one endpoint after the other, within the budget of retries.
async fn open(
    proxy: &Arc<Proxy>,
    facts: &Facts,
    wanted: &Wanted,
    began: Instant,
) -> Result<Opened, Box<Record>> {
    let Some((_, set)) = proxy.ready() else {
        count(proxy, "not_ready");
        let record = Record::of(facts);
        return Err(Box::new(record.refused("peerAuthentication", NOT_READY)));
    };
    let set = &*set;
    let nowhere = |problem| Box::new(decided_nowhere(proxy, set, facts, wanted, problem, None).1);
    let destination = wanted.destination(proxy, set).map_err(nowhere)?;
    let Some(place) = destination.connect() else {
        let error = UpstreamError::Bound("connections");
        return Err(failed(proxy, Record::of(facts), &error));
    };
    destination.asked();
    let endpoints = destination.endpoints().await;
    let (mut seen, mut tries) = (Seen::default(), 0);
    loop {
        let chosen = seen.next(set, facts, &destination, &endpoints, None);
        let (endpoint, facts, record) = chosen.map_err(|missing| match missing {
            Missing::Address => {
                let error = UpstreamError::Connect(destination.no_address());
                failed(proxy, Record::of(facts), &error)
            }
            Missing::Denied(record) => {
                count(proxy, "policy");
                record
            }
        })?;
        let_out(proxy, &facts);
        let in_flight = endpoint.begin();
        let (to, offer) = (&*endpoint, Offer::Tcp);
        let error = match once(proxy, &facts, &destination, &endpoints, to, offer).await {
            Ok(connected) => {
                return Ok(Opened {
                    connected,
                    line: Line::of(&proxy.access_log, record, began),
                    _held: (place, in_flight),
                    destination,
                });
            }
            Err(error) => error,
        };
        let others = seen.leaves_others(&endpoints);
        let attempts = destination.settings().retries.attempts;
        let again = Failure::of(&error).filter(|failure| {
            retry::makes_sense(*failure, tries, attempts, others) && destination.may_retry(*failure)
        });
        if again.is_none() {
            return Err(failed(proxy, record, &error));
        }
        tokio::time::sleep(destination.pause(tries, others)).await;
        tries += 1;
    }
}

/// One try, and what is learnt from it.
pub(super) async fn once(
    proxy: &Arc<Proxy>,
    facts: &Facts,
    destination: &Destination,
    endpoints: &[Arc<Endpoint>],
    endpoint: &Endpoint,
    offer: Offer,
) -> Result<Connected, UpstreamError> {
    let limit = destination.settings().connect_timeout;
    let began = Instant::now();
    let connecting = connect(proxy, facts, destination, endpoint, offer);
    let connected = timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(UpstreamError::too_late(limit)));
    match &connected {
        Ok(_) => destination.succeeded(endpoint, began.elapsed()),
        Err(_) => destination.failed(endpoints, endpoint, began.elapsed()),
    }
    connected
}

fn failed(proxy: &Proxy, mut record: Record, error: &UpstreamError) -> Box<Record> {
    count(proxy, "upstream");
    record.reason = Some(error.to_string());
    Box::new(record)
}

impl Opened {
    /// What the app speaks, if it speaks before the upstream.
    async fn whoever_begins(
        &mut self,
        stream: &mut Detecting<AppStream>,
    ) -> Result<Spoken, Undetected> {
        let (idle, watched) = (
            self.destination.settings().idle_timeout,
            &self.connected.watched,
        );
        // A box that is put away for the one that remembers what the upstream said.
        let upstream = std::mem::replace(&mut self.connected.stream, Box::new(tokio::io::empty()));
        let mut upstream = Detecting::new(upstream);
        let spoken = tokio::select! {
            spoken = stream.whoever_begins(upstream.begun(), idle, PATIENCE) => spoken,
            () = must_end(watched.as_ref()) => Err(may_not_go_on().into()),
        };
        self.connected.stream = Box::new(upstream.rewound());
        spoken
    }

    /// Something else is done instead.
    fn unneeded(self) {
        self.line.unneeded();
    }

    /// The connection ended like this.
    fn ended(self, how: io::Result<()>) {
        if let Err(error) = &how
            && relay::is_too_silent(error)
        {
            self.destination.count_bound("idle");
        }
        self.line.ended(how);
    }

    async fn copy<S: AsyncRead + AsyncWrite + Unpin>(mut self, mut stream: S) {
        let idle = self.destination.settings().idle_timeout;
        let Connected {
            stream: upstream,
            watched,
            ..
        } = &mut self.connected;
        let ended = tokio::select! {
            copied = relay::relay(&mut stream, upstream, idle, &self.line.passed) => copied,
            () = must_end(watched.as_ref()) => Err(may_not_go_on()),
        };
        self.ended(ended);
    }
}

/// Waits until a connection must end, if it is watched.
async fn must_end(watched: Option<&Watched>) {
    match watched {
        Some(watched) => watched.must_end().await,
        None => std::future::pending().await,
    }
}
