//! Opaque TCP on the road in: asked once, then copied.

use std::{io, sync::Arc, time::Instant};

use postern_policies::{PolicySet, decide::Verdict};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use super::{CONNECT_TIMEOUT, Refusal, http_of, undetected};
use crate::{
    access_log::{Line, Record},
    app::Proxy,
    connections::{Carried, Facts},
    detect::{Detecting, Outcome, Spoken, Undetected},
    relay,
    telemetry::upstream::BoundLabels,
    tls::Identity,
};

/// A caller that says nothing: perhaps it waits for the app to speak first, perhaps it only takes
/// its time. Whoever speaks first decides; a request stays one, however late it comes.
pub(super) async fn silent<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    identity: &Arc<Identity>,
    set: &PolicySet,
    mut stream: Detecting<S>,
    facts: Facts,
) -> Result<(), Refusal> {
    let began = Instant::now();
    proxy.late.count(&facts, Outcome::Silent);
    let patience = proxy.config.inbound.patience.head;
    let (spoken, app) = match permit(proxy, set, &facts) {
        // No opaque bytes for this caller: it speaks HTTP, or not at all.
        Err(refusal) => match timeout(patience, stream.spoken()).await {
            Ok(Ok(Spoken::Other)) | Err(_) => return Err(refusal),
            Ok(Err(error)) => return Err(undetected(proxy, &facts, error.into())),
            Ok(Ok(http)) => (http, None),
        },
        Ok(record) => {
            let app = reach(&facts).await?;
            let line = Line::of(&proxy.access_log, record, began);
            let idle = proxy.config.inbound.idle_timeout;
            let spoken = stream.whoever_begins(app.readable(), idle, patience);
            match spoken.await {
                Ok(spoken) => (spoken, Some((app, line))),
                Err(Undetected::Io(error)) => {
                    ended(proxy, line, Err(error));
                    return Ok(());
                }
                Err(why) => {
                    line.unneeded();
                    return Err(undetected(proxy, &facts, why));
                }
            }
        }
    };
    match (spoken, app) {
        (Spoken::Other, Some((app, line))) => {
            carries_opaque(proxy, &facts);
            copy(proxy, stream.rewound(), app, line).await;
        }
        (http, app) => {
            if let Some((_, line)) = app {
                line.unneeded();
            }
            return http_of(proxy, identity, stream.rewound(), facts, http).await;
        }
    }
    Ok(())
}

/// Opaque TCP: asked once, then copied.
pub(super) async fn tcp<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    proxy: &Arc<Proxy>,
    set: &PolicySet,
    stream: S,
    facts: Facts,
) -> Result<(), Refusal> {
    let began = Instant::now();
    let record = permit(proxy, set, &facts)?;
    carries_opaque(proxy, &facts);
    let app = reach(&facts).await?;
    let line = Line::of(&proxy.access_log, record, began);
    copy(proxy, stream, app, line).await;
    Ok(())
}

/// May this caller send opaque bytes?
fn permit(proxy: &Proxy, set: &PolicySet, facts: &Facts) -> Result<Record, Refusal> {
    let access = facts.access(None);
    let decision = set.decide_request(&access);
    let record = Record::of(facts).decided(set, &access, &decision);
    match decision.verdict {
        Verdict::Allow => {
            proxy.connections.let_in(facts.id, decision.decided_by);
            Ok(record)
        }
        Verdict::Deny => Err(Refusal::decided("policy", record)),
    }
}

/// From now on each change of the policies asks about opaque bytes. There may have been one already
/// since this caller was asked.
fn carries_opaque(proxy: &Proxy, facts: &Facts) {
    facts.traffic.carries(Carried::Tcp);
    proxy.recheck_connection(facts.id);
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
    line: Line,
) {
    let idle = proxy.config.inbound.idle_timeout;
    let copied = relay::relay(&mut stream, &mut app, idle, &line.passed).await;
    ended(proxy, line, copied);
}

/// How a connection ended, and why, where its ends did not end it.
fn ended(proxy: &Proxy, line: Line, how: io::Result<()>) {
    if let Err(error) = &how
        && relay::is_too_silent(error)
    {
        let labels = BoundLabels {
            direction: "inbound",
            bound: "idle",
        };
        let bounds = &proxy.metrics.upstream.bounds;
        bounds.get_or_create(&labels).inc();
    }
    line.ended(how);
}
