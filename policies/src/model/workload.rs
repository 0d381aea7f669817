//! The `Workload` document (`postern.dev/v1`): one identity, who may have it, where it serves.
//!
//! The same document is the directory entry that policies use: their selectors match its labels.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use postern_spiffe::{Selector, SpiffeId, TrustDomain};
use serde_json::{Map, Value, json};

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
    /// A JWT-SVID's lifetime; `None` takes the authority's.
    pub jwt_ttl: Option<Duration>,
    /// From when on nobody is given the identity any more.
    pub expires: Option<SystemTime>,
    /// When it was registered, where that is known.
    pub created: Option<SystemTime>,
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

impl Workload {
    /// May its identity be given out at this time?
    pub fn is_in_force(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|end| now < end)
    }

    /// The document that says the same, in JSON; with a time in it, as SPIRE would write it.
    pub fn to_document(&self) -> Value {
        if self.expires.is_some() || self.created.is_some() {
            return self.to_entry();
        }
        let mut spec = Map::new();
        let mut put = |name: &str, value: Value| spec.insert(name.into(), value);
        match &self.service_account {
            Some(account) => put("serviceAccount", json!(account)),
            None => put("spiffeID", json!(self.spiffe_id.as_str())),
        };
        if let Some(hint) = &self.hint {
            put("hint", json!(hint));
        }
        for (name, life) in [("svidTTL", self.svid_ttl), ("jwtTTL", self.jwt_ttl)] {
            if let Some(life) = life {
                put(name, json!(format!("{}ms", life.as_millis())));
            }
        }
        let selectors = self.selectors.iter().map(ToString::to_string);
        let federates_with = self.federates_with.iter().map(ToString::to_string);
        for (name, list) in [
            ("selectors", selectors.collect()),
            ("dnsNames", self.dns_names.clone()),
            ("addresses", self.addresses.clone()),
            ("federatesWith", federates_with.collect::<Vec<_>>()),
        ] {
            // An empty list is a mistake in a document.
            if !list.is_empty() {
                put(name, json!(list));
            }
        }
        let ports = self.ports.iter().map(|port| {
            let mut fields = json!({"port": port.port, "protocol": port.protocol.as_str()});
            if let (Some(name), Value::Object(fields)) = (&port.name, &mut fields) {
                fields.insert("name".into(), json!(name));
            }
            fields
        });
        put("ports", ports.collect());
        if self.on_drift == OnDrift::Revoke {
            put("onDrift", json!("revoke"));
        }
        if let Some(baseline) = &self.baseline {
            put("baseline", json!({"executables": baseline.executables}));
        }
        json!({
            "apiVersion": "postern.dev/v1",
            "kind": "Workload",
            "metadata": {
                "name": &*self.name.name,
                "namespace": &*self.name.namespace,
                "labels": self.labels,
            },
            "spec": spec,
        })
    }

    /// The document of a directory: whom it names and where it serves, and nothing of who may have
    /// the identity.
    pub fn to_directory_entry(&self) -> Value {
        let entry = Self {
            selectors: Vec::new(),
            hint: None,
            expires: None,
            created: None,
            baseline: None,
            ..self.clone()
        };
        entry.to_document()
    }

    fn to_entry(&self) -> Value {
        let seconds = |time: Option<SystemTime>| {
            let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            since.unwrap_or_default().as_secs()
        };
        let life = |life: Option<Duration>| life.unwrap_or_default().as_secs();
        let name = &*self.name.name;
        json!({"entries": [{
            "id": name.strip_prefix("entry-").unwrap_or(name),
            "spiffe_id": self.spiffe_id.as_str(),
            "selectors": self.selectors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "hint": self.hint.as_deref().unwrap_or_default(),
            "x509_svid_ttl": life(self.svid_ttl),
            "jwt_svid_ttl": life(self.jwt_ttl),
            "expires_at": seconds(self.expires),
            "created_at": seconds(self.created),
            "dns_names": self.dns_names,
            "federates_with": self.federates_with.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }]})
    }
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
