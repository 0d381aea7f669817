//! What is known of a cluster, bounded. Pure: it is told lists and changes, and makes documents.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use postern_policies::{Options, PolicySet, SourceFile};
use serde_json::{Value, json};

use super::{
    ClusterObject, Kind, Server, Snapshot,
    object::Object,
    policy::{self, Read, Standing},
    template::Names,
};

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Objects of all kinds together.
    pub objects: usize,
    /// Bytes of them, as far as they are kept.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            objects: 20_000,
            bytes: 64 << 20,
        }
    }
}

/// There is more than is kept. Callers keep what they have: a part would be other policies.
#[derive(Debug, thiserror::Error)]
pub(super) enum Full {
    #[error("the cluster has more than {0} objects, which is the limit (`kubernetes.maxObjects`)")]
    Objects(usize),
    #[error("the objects of the cluster have more than {0} bytes, which is the limit")]
    Bytes(usize),
}

/// All that is known.
#[derive(Debug)]
pub(super) struct Cache {
    server: Arc<Server>,
    options: Options,
    kinds: BTreeMap<Kind, BTreeMap<String, Kept>>,
    used: Used,
}

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    objects: usize,
    bytes: usize,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    uid: String,
    namespace: String,
    name: String,
    fact: Fact,
}

/// What counts of it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fact {
    Pod(Pod),
    Account,
    Namespace(BTreeMap<String, String>),
    Policy(Read),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pod {
    labels: BTreeMap<String, String>,
    account: String,
    node: String,
    addresses: Vec<IpAddr>,
    ports: Vec<Value>,
}

/// What a change has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing that counts.
    None,
    /// Something.
    Some,
    /// Something, and this object cannot be read.
    Unreadable(String, String),
}

impl Cache {
    pub(super) fn new(server: Arc<Server>, options: Options) -> Self {
        Self {
            server,
            options,
            kinds: BTreeMap::new(),
            used: Used::default(),
        }
    }

    /// How many objects there are of a kind.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.kinds.get(&kind).map_or(0, BTreeMap::len)
    }

    /// How many of them cannot be read.
    pub(super) fn unreadable(&self) -> usize {
        let all = self.kinds.values().flat_map(BTreeMap::values);
        all.filter(
            |one| matches!(&one.fact, Fact::Policy(read) if read.standing != Standing::Current),
        )
        .count()
    }

    /// These are all objects of a kind.
    ///
    /// # Errors
    /// [`Full`]; what was known stays.
    pub(super) fn replace(&mut self, kind: Kind, objects: &[Object]) -> Result<Vec<Change>, Full> {
        let empty = BTreeMap::new();
        let before = self.kinds.get(&kind).unwrap_or(&empty);
        let mut next = BTreeMap::new();
        let mut used = self.used.without(before.values());
        let mut changes = Vec::new();
        for object in objects {
            let key = object.key();
            let known = before.get(&key);
            let Some(kept) = self.kept(kind, object, known) else {
                continue;
            };
            used = used.with(&kept, self.server.limits)?;
            if known != Some(&kept) {
                changes.push(change(&kept, &key));
            }
            next.insert(key, kept);
        }
        if before.keys().any(|key| !next.contains_key(key)) {
            changes.push(Change::Some);
        }
        self.kinds.insert(kind, next);
        self.used = used;
        Ok(changes)
    }

    /// This is what an object is now.
    ///
    /// # Errors
    /// [`Full`]; what was known stays.
    pub(super) fn put(&mut self, kind: Kind, object: &Object) -> Result<Change, Full> {
        let key = object.key();
        let known = self.kinds.get(&kind).and_then(|all| all.get(&key));
        let Some(kept) = self.kept(kind, object, known) else {
            return Ok(self.remove(kind, object));
        };
        if known == Some(&kept) {
            return Ok(Change::None);
        }
        let used = self.used.without(known.into_iter());
        self.used = used.with(&kept, self.server.limits)?;
        let change = change(&kept, &key);
        self.kinds.entry(kind).or_default().insert(key, kept);
        Ok(change)
    }

    /// It is gone.
    pub(super) fn remove(&mut self, kind: Kind, object: &Object) -> Change {
        let all = self.kinds.entry(kind).or_default();
        match all.remove(&object.key()) {
            Some(known) => {
                self.used = self.used.without(std::iter::once(&known));
                Change::Some
            }
            None => Change::None,
        }
    }

    /// What counts of an object; nothing of a pod that has ended, or is the node itself.
    fn kept(&self, kind: Kind, object: &Object, known: Option<&Kept>) -> Option<Kept> {
        let fact = match kind {
            Kind::ServiceAccount => Fact::Account,
            Kind::Pod => Fact::Pod(Pod::of(object)?),
            Kind::Namespace => Fact::Namespace(object.metadata.labels.clone()),
            _ => {
                // Another object of the same name has another past.
                let before = known.filter(|known| known.uid == object.metadata.uid);
                let before = before.and_then(|known| match &known.fact {
                    Fact::Policy(read) => Some(read),
                    _ => None,
                });
                Fact::Policy(policy::read(kind, object, before, &self.options))
            }
        };
        let kept = Kept {
            uid: object.metadata.uid.clone(),
            namespace: object.metadata.namespace.clone(),
            name: object.metadata.name.clone(),
            fact,
        };
        let is_same = known == Some(&kept);
        (is_same || self.is_readable(kind, &kept)).then_some(kept)
    }

    /// What the API takes and we do not is left out, and is nobody.
    fn is_readable(&self, kind: Kind, kept: &Kept) -> bool {
        let document = match &kept.fact {
            Fact::Pod(pod) => self.workload(kept, pod, true),
            Fact::Namespace(labels) => namespace(kept, labels),
            _ => return true,
        };
        let loaded = PolicySet::load(&[document.file], &self.options);
        let mistake = loaded.err().and_then(|all| all.into_iter().next());
        if let Some(mistake) = &mistake {
            let kind = kind.name();
            tracing::warn!(kind, error = %mistake, "an object of the API server is left out");
        }
        mistake.is_none()
    }

    fn all(&self, kind: Kind) -> impl Iterator<Item = &Kept> {
        self.kinds.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    /// The documents of all.
    pub(super) fn snapshot(&self) -> Snapshot {
        let accounts: BTreeSet<(&str, &str)> = self
            .all(Kind::ServiceAccount)
            .map(|one| (one.namespace.as_str(), one.name.as_str()))
            .collect();
        let described: BTreeSet<&str> = self
            .all(Kind::Namespace)
            .map(|one| one.name.as_str())
            .collect();
        let everything = Kind::ALL
            .into_iter()
            .flat_map(|kind| self.all(kind).map(move |one| (kind, one)));
        let mut directory = Vec::new();
        let mut policies = Vec::new();
        for (kind, kept) in everything {
            match &kept.fact {
                Fact::Account => {}
                Fact::Policy(read) => policies.push((kind, kept, read)),
                Fact::Namespace(labels) => directory.push(namespace(kept, labels)),
                // Labels that are not known yet are not labels that are absent: a selector may ask for that.
                Fact::Pod(_) if !described.contains(kept.namespace.as_str()) => {}
                Fact::Pod(pod) => {
                    let account = (kept.namespace.as_str(), pod.account.as_str());
                    directory.push(self.workload(kept, pod, accounts.contains(&account)));
                }
            }
        }
        // What stands in gives way to what has its name by right.
        policies.sort_by_key(|(_, _, read)| matches!(read.standing, Standing::Denied(_)));
        let mut names = BTreeSet::new();
        let policies = policies.into_iter().map(|(of, kept, read)| {
            let mut name = read.name.clone();
            // Of a stand-in: somebody may have made an object of its name.
            let mut others = 0_usize;
            while !names.insert((read.kind, kept.namespace.clone(), name.clone())) {
                others += 1;
                name = format!("{}.x{others}", read.name);
            }
            let text = match name == read.name {
                true => read.text.clone(),
                false => renamed(&read.text, &name),
            };
            ClusterObject {
                of: (of, kept.name.clone()),
                uid: kept.uid.clone(),
                kind: read.kind,
                namespace: kept.namespace.clone(),
                file: SourceFile {
                    path: policy::path(read.kind, &kept.namespace, &name),
                    text,
                },
                name,
            }
        });
        Snapshot {
            directory,
            policies: policies.collect(),
        }
    }

    /// The Workload of a pod. Its identity is given out on its own node, and only while its account is
    /// there.
    fn workload(&self, kept: &Kept, pod: &Pod, has_account: bool) -> ClusterObject {
        let own_node = self.server.node_name.as_deref();
        let is_here = own_node.is_none_or(|own| own == pod.node);
        let names = Names {
            namespace: &kept.namespace,
            service_account: &pod.account,
            pod: &kept.name,
            uid: &kept.uid,
            node: &pod.node,
        };
        let mut spec = json!({"serviceAccount": pod.account, "ports": pod.ports});
        if let Value::Object(spec) = &mut spec {
            if !pod.addresses.is_empty() {
                spec.insert("addresses".into(), json!(pod.addresses));
            }
            if is_here && has_account && !kept.uid.is_empty() {
                let selectors = self.server.selectors.iter().map(|one| one.of(names));
                spec.insert("selectors".into(), selectors.collect());
            }
        }
        let document = json!({
            "apiVersion": "postern.dev/v1",
            "kind": "Workload",
            "metadata": {"name": kept.name, "namespace": kept.namespace, "labels": pod.labels},
            "spec": spec,
        });
        ClusterObject {
            of: (Kind::Pod, kept.name.clone()),
            uid: kept.uid.clone(),
            kind: Kind::Pod,
            namespace: kept.namespace.clone(),
            name: kept.name.clone(),
            file: SourceFile {
                path: policy::path(Kind::Pod, &kept.namespace, &kept.name),
                text: document.to_string().into_bytes(),
            },
        }
    }
}

fn namespace(kept: &Kept, labels: &BTreeMap<String, String>) -> ClusterObject {
    let document = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": kept.name, "labels": labels},
    });
    ClusterObject {
        of: (Kind::Namespace, kept.name.clone()),
        uid: kept.uid.clone(),
        kind: Kind::Namespace,
        namespace: kept.name.clone(),
        name: kept.name.clone(),
        file: SourceFile {
            path: policy::path(Kind::Namespace, "", &kept.name),
            text: document.to_string().into_bytes(),
        },
    }
}

fn change(kept: &Kept, key: &str) -> Change {
    match &kept.fact {
        Fact::Policy(Read {
            standing: Standing::LastGood(mistake) | Standing::Denied(mistake),
            ..
        }) => Change::Unreadable(key.to_owned(), mistake.clone()),
        _ => Change::Some,
    }
}

/// A document under another name.
fn renamed(text: &[u8], name: &str) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(text) else {
        return text.to_vec();
    };
    if let Some(own) = document.pointer_mut("/metadata/name") {
        *own = json!(name);
    }
    document.to_string().into_bytes()
}

impl Used {
    fn without<'k>(self, gone: impl Iterator<Item = &'k Kept>) -> Self {
        gone.fold(self, |used, one| Self {
            objects: used.objects.saturating_sub(1),
            bytes: used.bytes.saturating_sub(one.bytes()),
        })
    }

    fn with(self, more: &Kept, limits: Limits) -> Result<Self, Full> {
        let objects = self.objects.saturating_add(1);
        let bytes = self.bytes.saturating_add(more.bytes());
        if objects > limits.objects {
            return Err(Full::Objects(limits.objects));
        }
        if bytes > limits.bytes {
            return Err(Full::Bytes(limits.bytes));
        }
        Ok(Self { objects, bytes })
    }
}

impl Kept {
    /// What it takes, about.
    fn bytes(&self) -> usize {
        let labels = |all: &BTreeMap<String, String>| -> usize {
            all.iter()
                .map(|(name, value)| name.len() + value.len())
                .sum()
        };
        let fact = match &self.fact {
            Fact::Account => 0,
            Fact::Namespace(all) => labels(all),
            Fact::Policy(read) => read.text.len() + read.standing.bytes(),
            Fact::Pod(pod) => {
                let ports: usize = pod.ports.iter().map(|port| port.to_string().len()).sum();
                labels(&pod.labels) + pod.account.len() + pod.node.len() + ports
            }
        };
        OVERHEAD + self.uid.len() + 2 * (self.namespace.len() + self.name.len()) + fact
    }
}

impl Pod {
    /// None for one that has ended, whose addresses may be another's by now, and for one in the node's
    /// network, whose addresses are the node's.
    fn of(object: &Object) -> Option<Self> {
        let phase = object.status.phase.as_str().unwrap_or_default();
        let is_node = object.spec.get("hostNetwork").and_then(Value::as_bool);
        if matches!(phase, "Succeeded" | "Failed") || is_node == Some(true) {
            return None;
        }
        let addresses = object.status.pod_ips.as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|one| one.get("ip")?.as_str()?.parse().ok());
        let account = match object.text("serviceAccountName") {
            "" => "default",
            account => account,
        };
        Some(Self {
            labels: object.metadata.labels.clone(),
            account: account.to_owned(),
            node: object.text("nodeName").to_owned(),
            addresses: addresses.collect(),
            ports: ports(&object.spec),
        })
    }
}

/// The ports of all containers, sidecars among them.
fn ports(spec: &Value) -> Vec<Value> {
    let lists = ["containers", "initContainers"].into_iter();
    let containers = lists
        .filter_map(|name| spec.get(name)?.as_array())
        .flatten();
    let ports = containers.filter_map(|one| one.get("ports")?.as_array());
    let read = ports.flatten().map(|port| {
        let mut read = serde_json::Map::new();
        for (from, to) in [
            ("name", "name"),
            ("containerPort", "port"),
            ("protocol", "protocol"),
        ] {
            if let Some(value) = port.get(from) {
                read.insert(to.into(), value.clone());
            }
        }
        Value::Object(read)
    });
    read.take(MAX_PORTS).collect()
}

/// What the maps around an object take.
const OVERHEAD: usize = 300;

/// No pod has more.
const MAX_PORTS: usize = 1_024;
