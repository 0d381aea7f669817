//! What is open, and whether it still may be.
//!
//! Zero trust means that the answer is asked again: on every change of certificates, revocation
//! lists or policies each open connection is verified and decided anew, and at the end of its
//! peer's certificate it ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use dashmap::DashMap;
use postern_policies::{
    PolicySet,
    decide::{Access, Destination, Direction, HttpRequest, Peer, Protocol, Source, Token, Verdict},
    model::workload::WorkloadName,
};
use postern_spiffe::{PeerRole, SpiffeId, VerifiedPeer};
use rustls_pki_types::CertificateDer;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    access_log,
    telemetry::{DirectionLabel, Metrics, RefusalLabels},
    tls::Identity,
};

/// What is known of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) id: u64,
    pub(crate) direction: Direction,
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

/// All open connections.
#[derive(Debug)]
pub(crate) struct Connections {
    next: AtomicU64,
    open: DashMap<u64, (Facts, CancellationToken)>,
    metrics: Arc<Metrics>,
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
        self.metrics.open.get_or_create(&direction).inc();
        let (id, expires) = (facts.id, facts.expires);
        self.open.insert(id, (facts, ending.clone()));
        Watched {
            connections: self.clone(),
            id,
            ending,
            expires,
            direction,
        }
    }

    /// Asks of every open connection whether it may go on.
    pub(crate) fn recheck(&self, identity: Option<&Identity>, set: Option<&PolicySet>) {
        for entry in &self.open {
            let (facts, ending) = entry.value();
            if let Some(reason) = may_not_go_on(facts, identity, set) {
                self.cut(facts, ending, reason);
            }
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

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.open.len()
    }

    /// Open connections with their identities, as JSON.
    pub(crate) fn describe(&self) -> serde_json::Value {
        self.open
            .iter()
            .map(|entry| {
                let (facts, _) = entry.value();
                json!({
                    "id": facts.id,
                    "direction": access_log::direction(facts.direction),
                    "source": facts.source.to_string(),
                    "sourceIdentity": facts.source_identity.as_ref().map(ToString::to_string),
                    "destination": facts.destination.to_string(),
                    "destinationIdentity": facts.destination_identity.as_ref().map(ToString::to_string),
                    "workload": facts.workload.as_ref().map(ToString::to_string),
                })
            })
            .collect()
    }
}

/// The reason why a connection must end, if there is one.
fn may_not_go_on(
    facts: &Facts,
    identity: Option<&Identity>,
    set: Option<&PolicySet>,
) -> Option<&'static str> {
    let (Some(identity), Some(set)) = (identity, set) else {
        return Some("no_identity");
    };
    if !facts.chain.is_empty() {
        let role = match facts.direction {
            Direction::Inbound => PeerRole::Client,
            Direction::Outbound => PeerRole::Server,
        };
        if let Err(refused) = identity.trust().verify(&facts.chain, role) {
            return Some(refused.label());
        }
    }
    if let (Direction::Outbound, Some(name)) = (facts.direction, &facts.workload) {
        let named = set.workload(name).map(|workload| &workload.spiffe_id);
        if named != facts.destination_identity.as_ref() {
            return Some("directory");
        }
    }
    // Of HTTP each request is asked anyway; this is the part below.
    let decision = set.decide_connection(&facts.access(None));
    (decision.verdict == Verdict::Deny).then_some("policy")
}

/// An open connection that is watched.
#[derive(Debug)]
pub(crate) struct Watched {
    connections: Arc<Connections>,
    id: u64,
    ending: CancellationToken,
    expires: Option<SystemTime>,
    direction: DirectionLabel,
}

impl Watched {
    /// Waits until the connection must end.
    pub(crate) async fn must_end(&self) {
        let left = self
            .expires
            .map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        tokio::select! {
            () = self.ending.cancelled() => {}
            () = async {
                match left {
                    // Certificates are valid through their last second.
                    Some(left) => tokio::time::sleep(left + Duration::from_secs(1)).await,
                    None => std::future::pending().await,
                }
            } => {
                let entry = self.connections.open.get(&self.id).map(|entry| entry.value().clone());
                if let Some((facts, ending)) = entry {
                    self.connections.cut(&facts, &ending, "expired");
                }
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.connections.open.remove(&self.id);
        self.connections
            .metrics
            .open
            .get_or_create(&self.direction)
            .dec();
    }
}
