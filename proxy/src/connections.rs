//! What is open, and whether it still may be.
//!
//! Zero trust means that the answer is asked again: on every change of certificates, revocation
//! lists or policies each open connection is verified and decided anew, and at the end of its
//! peer's certificate it ends.
//!
//! The parts: `traffic`, what passed over each of them, and `shown`, what is told of them.

mod shown;
mod traffic;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use dashmap::DashMap;
use postern_policies::{
    PolicySet,
    decide::{
        Access, DecidedBy, Destination, Direction, HttpRequest, Peer, Protocol, Source, Token,
        Verdict,
    },
    model::workload::WorkloadName,
};
use postern_spiffe::{PeerRole, SpiffeId, VerifiedPeer};
use rustls::NamedGroup;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    access_log,
    renewal::Binding,
    telemetry::{DirectionLabel, Metrics, RefusalLabels},
    tls::Identity,
};
pub(crate) use traffic::{Carried, Counted, Traffic};

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Whoever calls us, or another proxy.
    Peer,
    /// The app of this pod, on its way out.
    App,
}

/// What is known of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) id: u64,
    pub(crate) direction: Direction,
    /// Who is at the other end of it.
    pub(crate) end: End,
    /// The address at the other end (inbound), or the app's (outbound).
    pub(crate) source: SocketAddr,
    /// Who the source proved to be; outbound, ourselves.
    pub(crate) source_identity: Option<SpiffeId>,
    /// Where it goes.
    pub(crate) destination: SocketAddr,
    /// Whose identity the destination has.
    pub(crate) destination_identity: Option<SpiffeId>,
    /// The Workload that the destination is.
    pub(crate) workload: Option<WorkloadName>,
    /// The server name of the handshake, as the caller said it.
    pub(crate) server_name: Option<Arc<str>>,
    /// What the peer at the other end of the mutual TLS showed.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    /// When the peer's certificate ends.
    pub(crate) expires: Option<SystemTime>,
    /// What binds proofs to this connection, if its ends can prove themselves anew.
    pub(crate) renewable: Option<Binding>,
    /// Our port of the connection.
    pub(crate) local_port: Option<u16>,
    /// How the keys of its TLS were agreed on.
    pub(crate) tls_group: Option<NamedGroup>,
    /// What let it in.
    pub(crate) let_in_by: DecidedBy,
    /// What passed over it.
    pub(crate) traffic: Arc<Traffic>,
}

impl Facts {
    /// The peer proved itself.
    pub(crate) fn verified(
        mut self,
        peer: &VerifiedPeer,
        chain: Vec<CertificateDer<'static>>,
    ) -> Self {
        match self.direction {
            Direction::Inbound => self.source_identity = Some(peer.id().clone()),
            Direction::Outbound => self.destination_identity = Some(peer.id().clone()),
        }
        self.expires = Some(peer.svid().not_after());
        self.chain = chain.into();
        self
    }

    /// From when on the peer is asked to leave: a little before its certificate ends, so that what it
    /// asked is answered by then. `None` where it has none.
    pub(crate) fn last_request_at(&self) -> Option<Instant> {
        let left = self.expires?.duration_since(SystemTime::now());
        let left = left.unwrap_or_default();
        Some(Instant::now() + (left - (left / 10).min(LEAVING)))
    }

    /// The question to the policies.
    pub(crate) fn access<'a>(&'a self, http: Option<HttpRequest<'a>>) -> Access<'a> {
        self.access_with(http, None)
    }

    /// The question to the policies about a request and its token.
    pub(crate) fn access_with<'a>(
        &'a self,
        http: Option<HttpRequest<'a>>,
        token: Option<Token<'a>>,
    ) -> Access<'a> {
        Access {
            direction: self.direction,
            source: Source {
                peer: self
                    .source_identity
                    .as_ref()
                    .map_or(Peer::Plaintext, Peer::Verified),
                ip: Some(self.source.ip().to_canonical()),
                namespace: None,
                labels: None,
            },
            destination: Destination {
                workload: self.workload.as_ref(),
                ip: Some(self.destination.ip().to_canonical()),
                port: self.destination.port(),
                protocol: Protocol::Tcp,
            },
            http,
            token,
            sni: self.server_name.as_deref(),
        }
    }
}

/// How many of the addresses that the app's connection was let out to are asked about again.
pub(crate) const MAX_WAYS: usize = 16;

/// How long a peer has to leave at most.
const LEAVING: Duration = Duration::from_secs(30);

/// All open connections.
#[derive(Debug)]
pub(crate) struct Connections {
    next: AtomicU64,
    open: DashMap<u64, Open>,
    metrics: Arc<Metrics>,
}

/// One of them.
#[derive(Debug)]
struct Open {
    facts: Facts,
    /// Where the app's connection was let out to, in the order in which it was first.
    ways: Vec<SocketAddr>,
    since: Instant,
    ending: CancellationToken,
    /// Until when its peer has proven itself.
    expires: watch::Sender<Option<SystemTime>>,
}

impl Connections {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            next: AtomicU64::new(1),
            open: DashMap::new(),
            metrics,
        }
    }

    /// A number for a new connection.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Watches a connection for as long as the answer is held.
    pub(crate) fn watch(self: &Arc<Self>, facts: Facts) -> Watched {
        let ending = CancellationToken::new();
        let direction = DirectionLabel {
            direction: access_log::direction(facts.direction),
        };
        let counted = (facts.end == End::Peer).then_some(direction);
        if let Some(direction) = &counted {
            self.metrics.open.get_or_create(direction).inc();
        }
        let (expires, until) = watch::channel(facts.expires);
        let (id, traffic) = (facts.id, facts.traffic.clone());
        let open = Open {
            facts,
            ways: Vec::new(),
            since: Instant::now(),
            ending: ending.clone(),
            expires,
        };
        self.open.insert(id, open);
        Watched {
            connections: self.clone(),
            id,
            traffic,
            ending,
            until,
            counted,
        }
    }

    /// Asks of every open connection whether it may go on.
    pub(crate) fn recheck(&self, identity: Option<&Identity>, set: Option<&PolicySet>) {
        for mut entry in self.open.iter_mut() {
            self.recheck_one(&mut entry, identity, set);
        }
    }

    fn recheck_one(&self, open: &mut Open, identity: Option<&Identity>, set: Option<&PolicySet>) {
        let may_go_on = match open.facts.end {
            End::Peer => may_go_on(&open.facts, identity, set),
            End::App => open.may_go_out(set),
        };
        match may_go_on {
            Ok(decided_by) => open.facts.let_in_by = decided_by,
            Err(reason) => self.cut(&open.facts, &open.ending, reason),
        }
    }

    /// The peer of a connection has proven itself anew, with this chain.
    pub(crate) fn renewed(
        &self,
        id: u64,
        peer: &VerifiedPeer,
        chain: Vec<CertificateDer<'static>>,
    ) {
        let Some(mut open) = self.open.get_mut(&id) else {
            return;
        };
        open.facts = open.facts.clone().verified(peer, chain);
        let until = open.facts.expires;
        open.expires.send_replace(until);
    }

    /// Something more was decided about a connection, and let it in.
    pub(crate) fn let_in(&self, id: u64, decided_by: DecidedBy) {
        if let Some(mut open) = self.open.get_mut(&id) {
            open.facts.let_in_by = decided_by;
        }
    }

    /// The app's connection was let out to here.
    pub(crate) fn let_out(&self, id: u64, to: &Facts) {
        let Some(mut open) = self.open.get_mut(&id) else {
            return;
        };
        open.ways.retain(|known| *known != to.destination);
        if open.ways.len() >= MAX_WAYS {
            open.ways.remove(0);
        }
        open.ways.push(to.destination);
        let facts = &mut open.facts;
        facts.destination = to.destination;
        facts.destination_identity = to.destination_identity.clone();
        facts.workload = to.workload.clone();
        facts.let_in_by = to.let_in_by.clone();
    }

    /// Asks of one connection whether it may go on: what was known when its peer proved itself may
    /// have changed before the proof was written down.
    pub(crate) fn recheck_this(
        &self,
        id: u64,
        identity: Option<&Identity>,
        set: Option<&PolicySet>,
    ) {
        if let Some(mut open) = self.open.get_mut(&id) {
            self.recheck_one(&mut open, identity, set);
        }
    }

    fn cut(&self, facts: &Facts, ending: &CancellationToken, reason: &'static str) {
        if ending.is_cancelled() {
            return;
        }
        let direction = access_log::direction(facts.direction);
        self.metrics
            .cut
            .get_or_create(&RefusalLabels { direction, reason })
            .inc();
        tracing::info!(
            connection_id = facts.id,
            direction,
            src.identity = facts.source_identity.as_ref().map(tracing::field::display),
            dst.identity = facts
                .destination_identity
                .as_ref()
                .map(tracing::field::display),
            reason,
            "an open connection may not go on"
        );
        ending.cancel();
    }

    /// Cuts a connection whose peer's certificate is over, unless the peer was faster with its next one.
    /// `true` when it is cut.
    fn expire(&self, id: u64) -> bool {
        let Some(open) = self.open.get(&id) else {
            return true;
        };
        let is_over = open
            .facts
            .expires
            .is_some_and(|end| end < SystemTime::now());
        if is_over {
            self.cut(&open.facts, &open.ending, "expired");
        }
        is_over
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.open.len()
    }
}

impl Open {
    /// What still lets the app's connection out: it ends where nothing does any more. What was let out
    /// nowhere yet waits, and without policies nothing goes out.
    fn may_go_out(&self, set: Option<&PolicySet>) -> Result<DecidedBy, &'static str> {
        let (Some(set), false) = (set, self.ways.is_empty()) else {
            return Ok(self.facts.let_in_by.clone());
        };
        for destination in self.ways.iter().rev() {
            let mut facts = self.facts.clone();
            facts.destination = *destination;
            let decision = set.decide_connection(&facts.access(None));
            if decision.verdict == Verdict::Allow {
                return Ok(decision.decided_by);
            }
        }
        Err("policy")
    }
}

/// What lets a connection go on, or the reason why it must end.
fn may_go_on(
    facts: &Facts,
    identity: Option<&Identity>,
    set: Option<&PolicySet>,
) -> Result<DecidedBy, &'static str> {
    let (Some(identity), Some(set)) = (identity, set) else {
        return Err("no_identity");
    };
    if !facts.chain.is_empty() {
        let role = match facts.direction {
            Direction::Inbound => PeerRole::Client,
            Direction::Outbound => PeerRole::Server,
        };
        if let Err(refused) = identity.trust().verify(&facts.chain, role) {
            return Err(refused.label());
        }
    }
    if let (Direction::Outbound, Some(name)) = (facts.direction, &facts.workload) {
        let named = set.workload(name).map(|workload| &workload.spiffe_id);
        if named != facts.destination_identity.as_ref() {
            return Err("directory");
        }
    }
    // Of HTTP each request is asked anyway; this is the part below. Opaque bytes were asked about
    // once, so they are asked about again.
    let access = facts.access(None);
    let decision = match facts.traffic.carried() {
        Some(Carried::Tcp) => set.decide(&access),
        _ => set.decide_connection(&access),
    };
    match decision.verdict {
        Verdict::Allow => Ok(decision.decided_by),
        Verdict::Deny => Err("policy"),
    }
}

/// An open connection that is watched.
#[derive(Debug)]
pub(crate) struct Watched {
    connections: Arc<Connections>,
    id: u64,
    traffic: Arc<Traffic>,
    ending: CancellationToken,
    until: watch::Receiver<Option<SystemTime>>,
    /// Where it counts as open.
    counted: Option<DirectionLabel>,
}

impl Watched {
    /// What passes over it.
    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Waits until the connection must end.
    pub(crate) fn must_end(&self) -> impl Future<Output = ()> + Send + use<> {
        let (connections, id) = (self.connections.clone(), self.id);
        let (ending, mut until) = (self.ending.clone(), self.until.clone());
        async move {
            loop {
                let end = *until.borrow_and_update();
                tokio::select! {
                    () = ending.cancelled() => return,
                    // Its peer has proven itself anew.
                    Ok(()) = until.changed() => {}
                    () = over(end) => if connections.expire(id) { return },
                }
            }
        }
    }
}

/// Waits until a certificate that ends then is over. They are valid through their last second.
async fn over(end: Option<SystemTime>) {
    match end {
        Some(end) => {
            let left = end.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left + Duration::from_secs(1)).await;
        }
        None => std::future::pending().await,
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.connections.open.remove(&self.id);
        if let Some(direction) = &self.counted {
            let open = &self.connections.metrics.open;
            open.get_or_create(direction).dec();
        }
    }
}
