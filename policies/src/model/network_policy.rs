//! `networking.k8s.io/v1` NetworkPolicy.

use ipnet::IpNet;

use super::{Meta, labels::LabelSelector};
use crate::{decide::Protocol, diagnostic::Place};

#[derive(Debug, Clone)]
pub(crate) struct NetworkPolicy {
    pub(crate) meta: Meta,
    pub(crate) pods: LabelSelector,
    /// The rules of a direction that the policy isolates; `None` where it does not.
    pub(crate) ingress: Option<Vec<Rule>>,
    pub(crate) egress: Option<Vec<Rule>>,
    /// `policyTypes` was not written.
    pub(crate) types_implied: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) at: Place,
    /// Empty: any peer.
    pub(crate) peers: Vec<Peer>,
    /// Empty: any port of any protocol.
    pub(crate) ports: Vec<Port>,
}

#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// Pods by labels. Without a namespace selector: those of the policy's own namespace.
    Pods {
        namespaces: Option<LabelSelector>,
        pods: Option<LabelSelector>,
    },
    /// Addresses outside the mesh.
    Block { net: IpNet, except: Vec<IpNet> },
}

#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) protocol: Protocol,
    pub(crate) number: PortNumber,
}

#[derive(Debug, Clone)]
pub(crate) enum PortNumber {
    Any,
    Range(u16, u16),
    /// Looked up among the ports of the destination.
    Named(String),
}
