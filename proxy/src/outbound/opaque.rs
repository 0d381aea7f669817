//! Opaque TCP on the road out: asked once, carried over a mutual TLS connection of its own.

use std::{sync::Arc, time::Instant};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OwnedSemaphorePermit,
    time::timeout,
};

use super::{
    NOT_READY, Wanted,
    connect::connect,
    count, decided_nowhere,
    destination::{Destination, Endpoint, InFlight},
    permitted::{Missing, Seen},
    retry::{self, Failure},
};
use crate::{
    access_log::Record,
    app::Proxy,
    connections::Facts,
    pool::{Connected, UpstreamError},
    relay::{self, Passed},
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
    let record = match open(proxy, &facts, &wanted).await {
        Ok(opened) => opened.copy(stream).await,
        Err(record) => *record,
    };
    proxy.access_log.write(&record.since(began));
}

/// A way to the upstream, for one connection.
struct Opened {
    connected: Connected,
    destination: Arc<Destination>,
    record: Record,
    /// Its place among the connections at once, and on its endpoint.
    held: (OwnedSemaphorePermit, InFlight),
}

/// Connects to one endpoint after the other, within the budget of retries.
async fn open(proxy: &Arc<Proxy>, facts: &Facts, wanted: &Wanted) -> Result<Opened, Box<Record>> {
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
        let in_flight = endpoint.begin();
        let error = match once(proxy, &facts, &destination, &endpoints, &endpoint).await {
            Ok(connected) => {
                return Ok(Opened {
                    connected,
                    record,
                    held: (place, in_flight),
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
async fn once(
    proxy: &Arc<Proxy>,
    facts: &Facts,
    destination: &Destination,
    endpoints: &[Arc<Endpoint>],
    endpoint: &Endpoint,
) -> Result<Connected, UpstreamError> {
    let limit = destination.settings().connect_timeout;
    let began = Instant::now();
    let connecting = connect(proxy, facts, destination, endpoint, Offer::Tcp);
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
    async fn copy<S: AsyncRead + AsyncWrite + Unpin>(self, mut stream: S) -> Record {
        let Self {
            connected,
            destination,
            mut record,
            held,
        } = self;
        let Connected {
            stream: mut upstream,
            watched,
            ..
        } = connected;
        let must_end = async {
            match &watched {
                Some(watched) => watched.must_end().await,
                None => std::future::pending().await,
            }
        };
        let (passed, idle) = (Passed::default(), destination.settings().idle_timeout);
        tokio::select! {
            copied = relay::relay_within(&mut stream, &mut upstream, idle, &passed) => {
                if let Err(error) = copied {
                    if error.kind() == std::io::ErrorKind::TimedOut {
                        destination.count_bound("idle");
                    }
                    record.reason = Some(error.to_string());
                }
            }
            () = must_end => record.reason = Some("the connection may not go on".into()),
        }
        (record.bytes_sent, record.bytes_received) = passed.both();
        drop(held);
        record
    }
}
