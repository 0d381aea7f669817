//! The documents as written, read and checked, but not yet compiled.

pub mod workload;

pub(crate) mod labels;

pub(crate) mod network_policy;

pub(crate) mod peer_authentication;

pub(crate) mod authorization_policy;

pub mod declared;
pub mod request_authentication;

pub(crate) mod pattern;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use crate::{
    decide::{PolicyKind, RuleOrigin},
    diagnostic::Place,
};

/// What every document has.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// `namespace/name`, made once so that a decision can name it without making it.
    pub(crate) full_name: Arc<str>,
    /// `metadata.creationTimestamp`, by which Istio orders; RFC 3339 in UTC sorts as text.
    pub(crate) created: Option<String>,
    pub(crate) file: Arc<Path>,
    pub(crate) at: Place,
}

/// `v1` Namespace: its labels.
#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    pub(crate) meta: Meta,
    pub(crate) labels: BTreeMap<String, String>,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    pub(crate) workloads: Vec<(Meta, workload::Workload)>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) network_policies: Vec<network_policy::NetworkPolicy>,
    pub(crate) peer_authentications: Vec<peer_authentication::PeerAuthentication>,
    pub(crate) request_authentications: Vec<request_authentication::RequestAuthentication>,
    pub(crate) authorization_policies: Vec<authorization_policy::AuthorizationPolicy>,
}

impl Documents {
    /// Every policy as a whole, by kind and name.
    pub(crate) fn policies(&self) -> Vec<RuleOrigin> {
        let network = self.network_policies.iter().map(|one| &one.meta);
        let peers = self.peer_authentications.iter().map(|one| &one.meta);
        let requests = self.request_authentications.iter().map(|one| &one.meta);
        let authorization = self.authorization_policies.iter().map(|one| &one.meta);
        let of = |kind| {
            move |meta: &Meta| RuleOrigin {
                kind,
                policy: meta.full_name.clone(),
                rule: None,
                file: meta.file.clone(),
                line: meta.at.line,
            }
        };
        let network = network.map(of(PolicyKind::NetworkPolicy));
        let peers = peers.map(of(PolicyKind::PeerAuthentication));
        let requests = requests.map(of(PolicyKind::RequestAuthentication));
        let authorization = authorization.map(of(PolicyKind::AuthorizationPolicy));
        let all = network.chain(peers).chain(requests).chain(authorization);
        let mut all: Vec<RuleOrigin> = all.collect();
        all.sort_by(|one, other| (one.kind, &one.policy).cmp(&(other.kind, &other.policy)));
        all
    }
}
