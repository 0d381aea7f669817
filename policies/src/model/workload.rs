//! The `Workload` document (`postern.dev/v1`): one identity, who may have it, where it serves.
//!
//! The same document is the directory entry that policies use: their selectors match its labels.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use postern_spiffe::{Selector, SpiffeId, TrustDomain};

use crate::decide::Protocol;

/// `namespace/name`, the key of a Workload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name, unique in its namespace.
    pub name: Arc<str>,
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Workload, read and checked: nothing in it is left to interpret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its key.
    pub name: WorkloadName,
    /// The labels that policies' selectors match.
    pub labels: BTreeMap<String, String>,
    /// The identity, from `spiffeID` or made from namespace and service account.
    pub spiffe_id: SpiffeId,
    /// `spec.serviceAccount`, where it was given.
    pub service_account: Option<String>,
    /// The selectors a process must ALL have. Empty: a directory entry alone, nobody is given
    /// the identity.
    pub selectors: Vec<Selector>,
    /// Told to the client beside the SVID; unique.
    pub hint: Option<String>,
    /// The SVID's lifetime; `None` takes the authority's.
    pub svid_ttl: Option<Duration>,
    /// DNS names put into the SVID.
    pub dns_names: Vec<String>,
    /// The ports it serves.
    pub ports: Vec<WorkloadPort>,
    /// Where the mesh reaches it: addresses or DNS names, without port.
    pub addresses: Vec<String>,
    /// Trust domains whose bundles it gets beside its own.
    pub federates_with: Vec<TrustDomain>,
    /// What a deviation at run time does to the identity.
    pub on_drift: OnDrift,
    /// What the workload is expected to do, where it was written down.
    pub baseline: Option<Baseline>,
}

/// One port of a Workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadPort {
    /// The name by which rules and listeners may call it.
    pub name: Option<String>,
    /// The number.
    pub port: u16,
    /// The transport.
    pub protocol: Protocol,
}

/// The answer to drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDrift {
    /// Log and count it.
    #[default]
    Alert,
    /// Take the identity back.
    Revoke,
}

/// The behaviour that was written down for a workload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baseline {
    /// Paths, or `sha256:…` of the contents, of the programs that may run in its pod.
    pub executables: Vec<String>,
}
