//! The `Workload` document (`postern.dev/v1`): one identity, who may have it, where it serves.
//!
//! The same document is the directory entry that policies use: their selectors match its labels.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
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
            let said = [("name", &port.name), ("appProtocol", &port.app_protocol)];
            for (key, said) in said {
                if let (Some(said), Value::Object(fields)) = (said, &mut fields) {
                    fields.insert(key.into(), json!(said));
                }
            }
            fields
        });
        put("ports", ports.collect());
        if self.on_drift != OnDrift::Alert {
            put("onDrift", json!(self.on_drift.as_str()));
        }
        if let Some(baseline) = &self.baseline {
            put("baseline", baseline.to_block());
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
    /// What is spoken over it, where that was said; see [`Declared`](super::declared::Declared).
    pub app_protocol: Option<String>,
}

/// The answer to drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDrift {
    /// Log and count it.
    #[default]
    Alert,
    /// Take the identity back.
    Revoke,
    /// Take the identity back, and end the process that deviates. Best effort: it has run by then.
    Block,
}

impl OnDrift {
    /// As it is written in a document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Revoke => "revoke",
            Self::Block => "block",
        }
    }

    /// Is the identity taken back?
    pub fn withdraws(self) -> bool {
        matches!(self, Self::Revoke | Self::Block)
    }
}

/// The behaviour that was written down for a workload. What is absent is not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baseline {
    /// Paths, or `sha256:…` of the contents, of the programs that may run in its pod.
    pub executables: Option<Vec<String>>,
    /// The ports at which its pod may wait.
    pub listen: Option<Vec<Listening>>,
    /// Whom its pod may connect to.
    pub destinations: Option<Vec<Destination>>,
    /// Where its pod may write: these paths and what lies below.
    pub writable: Option<Vec<String>>,
    /// Where nobody of its pod may write, even where that would be writable.
    pub protected: Vec<String>,
    /// Files of rules in Falco's language, relative to the folder of Workloads.
    pub rules: Vec<String>,
    /// What of a pod's rights and surroundings may change.
    pub ignored: Vec<Surrounding>,
}

/// What is looked at in every pod that has a baseline, unless it is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Surrounding {
    /// What is mounted.
    Mount,
    /// The namespaces that a process lives in.
    Namespace,
    /// Users and capabilities that a process did not have.
    Privilege,
    /// Who traces whom.
    Ptrace,
}

impl Surrounding {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mount, Self::Namespace, Self::Privilege, Self::Ptrace];

    /// As it is written in a document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Namespace => "namespace",
            Self::Privilege => "privilege",
            Self::Ptrace => "ptrace",
        }
    }
}

/// A port at which somebody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listening {
    /// The number.
    pub port: u16,
    /// The transport.
    pub protocol: Protocol,
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.as_str().to_ascii_lowercase();
        write!(f, "{}/{protocol}", self.port)
    }
}

/// Whom a pod may connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Who.
    pub to: Reached,
    /// At this port; any where there is none.
    pub port: Option<u16>,
}

/// Who is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    /// Addresses.
    Net(IpNet),
    /// The addresses of a Workload.
    Workload(WorkloadName),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.to, self.port) {
            (Reached::Net(net @ IpNet::V6(_)), Some(_)) => write!(f, "[{net}]")?,
            (Reached::Net(net), _) => write!(f, "{net}")?,
            (Reached::Workload(name), _) => write!(f, "{name}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl Baseline {
    /// The block of a document that says the same.
    pub fn to_block(&self) -> Value {
        let mut block = Map::new();
        let mut put = |name: &str, items: Option<Vec<String>>| {
            let Some(mut items) = items else { return };
            if items.is_empty() {
                items.push(NONE.to_owned());
            }
            block.insert(name.into(), json!(items));
        };
        fn texts<T: ToString>(items: &[T]) -> Vec<String> {
            items.iter().map(ToString::to_string).collect()
        }
        let filled = |items: &[String]| (!items.is_empty()).then(|| items.to_vec());
        put("executables", self.executables.clone());
        put("listen", self.listen.as_deref().map(texts));
        put("destinations", self.destinations.as_deref().map(texts));
        put("writable", self.writable.clone());
        put("protected", filled(&self.protected));
        put("rules", filled(&self.rules));
        let ignored: Vec<String> = self
            .ignored
            .iter()
            .map(|one| one.as_str().to_owned())
            .collect();
        put("ignored", filled(&ignored));
        Value::Object(block)
    }
}

/// The only item of a list in a baseline that allows nothing: an empty one is a mistake.
pub(crate) const NONE: &str = "none";
