//! Open connections as they are told to those who run the proxy.

use std::{net::SocketAddr, time::SystemTime};

use postern_policies::decide::{DecidedBy, Direction, RuleOrigin};
use serde::Serialize;

use super::{Connections, End, Open};
use crate::access_log;

/// One open connection. Its members are a promise: docs/operation.md.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    id: u64,
    direction: &'static str,
    end: &'static str,
    peer_address: SocketAddr,
    peer_identity: Option<String>,
    local_port: Option<u16>,
    protocol: Option<&'static str>,
    tls_group: Option<&'static str>,
    age_seconds: u64,
    peer_certificate_ends_in_seconds: Option<u64>,
    bytes_received: u64,
    bytes_sent: u64,
    requests: u64,
    policy: Option<Policy>,
    source: SocketAddr,
    source_identity: Option<String>,
    destination: SocketAddr,
    destination_identity: Option<String>,
    workload: Option<String>,
}

/// The rule that let a connection in.
#[derive(Debug, Serialize)]
struct Policy {
    kind: &'static str,
    name: String,
    rule: Option<u32>,
    file: String,
    line: u32,
}

impl Connections {
    /// All that are open, in the order of their numbers.
    pub(crate) fn shown(&self) -> Vec<Shown> {
        let mut all: Vec<Shown> = self.open.iter().map(|open| Shown::of(&open)).collect();
        all.sort_unstable_by_key(|one| one.id);
        all
    }
}

impl Shown {
    fn of(open: &Open) -> Self {
        let facts = &open.facts;
        let (end, peer_address, peer_identity) = match (facts.end, facts.direction) {
            (End::App, _) => ("app", facts.source, &None),
            (End::Peer, Direction::Inbound) => ("peer", facts.source, &facts.source_identity),
            (End::Peer, Direction::Outbound) => {
                ("peer", facts.destination, &facts.destination_identity)
            }
        };
        let left = |end: SystemTime| end.duration_since(SystemTime::now()).unwrap_or_default();
        Self {
            id: facts.id,
            direction: access_log::direction(facts.direction),
            end,
            peer_address,
            peer_identity: peer_identity.as_ref().map(ToString::to_string),
            local_port: facts.local_port,
            protocol: facts.traffic.carried().map(|carried| carried.as_str()),
            tls_group: facts.tls_group.and_then(|group| group.as_str()),
            age_seconds: open.since.elapsed().as_secs(),
            peer_certificate_ends_in_seconds: facts.expires.map(|end| left(end).as_secs()),
            bytes_received: facts.traffic.received(),
            bytes_sent: facts.traffic.sent(),
            requests: facts.traffic.requests(),
            policy: match &facts.let_in_by {
                DecidedBy::Rule(origin) => Some(Policy::of(origin)),
                _ => None,
            },
            source: facts.source,
            source_identity: facts.source_identity.as_ref().map(ToString::to_string),
            destination: facts.destination,
            destination_identity: facts.destination_identity.as_ref().map(ToString::to_string),
            workload: facts.workload.as_ref().map(ToString::to_string),
        }
    }
}

impl Policy {
    fn of(origin: &RuleOrigin) -> Self {
        Self {
            kind: access_log::kind(origin.kind),
            name: origin.policy.to_string(),
            rule: origin.rule,
            file: origin.file.display().to_string(),
            line: origin.line,
        }
    }
}
