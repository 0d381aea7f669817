//! Documents to an index: for each Workload the policies that select it, and no others.
//!
//! After this nothing is left that could fail when a decision is asked for.

mod spots;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use postern_spiffe::SpiffeId;

use crate::{
    decide::{PolicyKind, RuleName, RuleOrigin},
    diagnostic::{Diagnostic, Place, Problems},
    model::{
        Documents, Meta, authorization_policy as authorization,
        labels::{self, Labels},
        network_policy as network, peer_authentication as peer, request_authentication as request,
        workload::{Workload, WorkloadName},
    },
    parse::NAMESPACE_NAME,
    set::Options,
};

pub(crate) use spots::Spots;

/// What PeerAuthentication says about plaintext on one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtlsMode {
    /// Mutual TLS or nothing.
    Strict,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Plaintext.
    Disable,
}

/// Everything, indexed.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) workloads: Vec<Entry>,
    by_name: HashMap<WorkloadName, usize>,
    by_identity: HashMap<SpiffeId, Vec<usize>>,
    /// The labels of each namespace, its own name always among them.
    namespaces: HashMap<String, Labels>,
    /// Those that have a document of their own.
    described: HashSet<String>,
    pub(crate) network: Vec<network::NetworkPolicy>,
    pub(crate) requests: Vec<request::RequestAuthentication>,
    pub(crate) authorization: Vec<authorization::AuthorizationPolicy>,
}

/// One Workload and the policies that concern it, by their places.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) workload: Workload,
    pub(crate) ingress: Vec<usize>,
    pub(crate) egress: Vec<usize>,
    pub(crate) requests: Vec<usize>,
    pub(crate) custom: Vec<usize>,
    pub(crate) deny: Vec<usize>,
    pub(crate) allow: Vec<usize>,
    /// The rules of the three before, found by who asks.
    pub(crate) spots: [Spots; 3],
    /// AUDIT and dry-run policies: they have no say.
    pub(crate) silent: Vec<usize>,
    pub(crate) mtls: Mtls,
}

/// The mode of each port, and who said so.
#[derive(Debug)]
pub(crate) struct Mtls {
    default: (MtlsMode, Option<RuleOrigin>),
    ports: BTreeMap<u16, (MtlsMode, Option<RuleOrigin>)>,
}

impl Mtls {
    /// The ports that are spoken of by themselves.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.keys().copied()
    }

    pub(crate) fn of_port(&self, port: u16) -> &(MtlsMode, Option<RuleOrigin>) {
        self.ports.get(&port).unwrap_or(&self.default)
    }
}

impl Compiled {
    pub(crate) fn by_name(&self, name: &WorkloadName) -> Option<&Entry> {
        self.by_name
            .get(name)
            .and_then(|&index| self.workloads.get(index))
    }

    pub(crate) fn by_identity(&self, id: &SpiffeId) -> impl Iterator<Item = &Entry> {
        let indexes = self
            .by_identity
            .get(id)
            .map(Vec::as_slice)
            .unwrap_or_default();
        indexes
            .iter()
            .filter_map(|&index| self.workloads.get(index))
    }

    /// Every rule of every policy that can match.
    pub(crate) fn rules(&self) -> impl Iterator<Item = RuleName> {
        let name = |kind, meta: &Meta, rule: u32, at: Place| RuleName {
            kind,
            policy: meta.full_name.clone(),
            rule: Some(rule),
            line: at.line,
        };
        let network = self.network.iter().flat_map(move |policy| {
            let directions = [&policy.ingress, &policy.egress];
            directions.into_iter().flatten().flat_map(move |rules| {
                (0..).zip(rules).map(move |(place, rule)| {
                    name(PolicyKind::NetworkPolicy, &policy.meta, place, rule.at)
                })
            })
        });
        let authorization = self.authorization.iter().flat_map(move |policy| {
            (0..).zip(&policy.rules).map(move |(place, rule)| {
                name(
                    PolicyKind::AuthorizationPolicy,
                    &policy.meta,
                    place,
                    rule.at,
                )
            })
        });
        network.chain(authorization)
    }

    /// Every namespace and its labels, in the order of their names.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = (&str, &Labels)> {
        let mut all: Vec<_> = self.namespaces.iter().collect();
        all.sort_by_key(|(name, _)| *name);
        all.into_iter()
            .map(|(name, labels)| (name.as_str(), labels))
    }

    /// Has this namespace a document of its own?
    pub(crate) fn is_described(&self, namespace: &str) -> bool {
        self.described.contains(namespace)
    }

    /// The labels of a namespace. One without a document has its name alone.
    pub(crate) fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces.get(namespace)
    }
}

/// Compiles documents; mistakes that only show when all are seen together are added to `found`.
pub(crate) fn compile(
    documents: Documents,
    options: &Options,
    found: &mut Vec<Diagnostic>,
) -> Compiled {
    refuse_duplicates(&documents, found);
    let Documents {
        workloads,
        namespaces,
        mut network_policies,
        mut peer_authentications,
        mut request_authentications,
        mut authorization_policies,
    } = documents;
    // The order of files never matters: where one policy is named out of several, it is the first
    // by name.
    network_policies.sort_by(|a, b| key(&a.meta).cmp(&key(&b.meta)));
    request_authentications.sort_by(|a, b| key(&a.meta).cmp(&key(&b.meta)));
    authorization_policies.sort_by(|a, b| key(&a.meta).cmp(&key(&b.meta)));
    peer_authentications.sort_by(|a, b| age(&a.meta).cmp(&age(&b.meta)));

    let mut compiled = Compiled {
        workloads: Vec::new(),
        by_name: HashMap::new(),
        by_identity: HashMap::new(),
        namespaces: HashMap::new(),
        described: HashSet::new(),
        network: network_policies,
        requests: request_authentications,
        authorization: authorization_policies,
    };
    let near = Near {
        network: by_namespace(compiled.network.iter().map(|one| &one.meta)),
        requests: by_namespace(compiled.requests.iter().map(|one| &one.meta)),
        authorization: by_namespace(compiled.authorization.iter().map(|one| &one.meta)),
    };
    for namespace in namespaces {
        compiled.described.insert(namespace.meta.name.clone());
        compiled
            .namespaces
            .insert(namespace.meta.name, namespace.labels);
    }
    let mut workloads: Vec<Workload> = workloads
        .into_iter()
        .map(|(_, workload)| workload)
        .collect();
    workloads.sort_by(|a, b| a.name.cmp(&b.name));
    for workload in workloads {
        let name = workload.name.namespace.to_string();
        compiled
            .namespaces
            .entry(name.clone())
            .or_insert_with(|| Labels::from([(NAMESPACE_NAME.to_owned(), name)]));
        let index = compiled.workloads.len();
        compiled.by_name.insert(workload.name.clone(), index);
        compiled
            .by_identity
            .entry(workload.spiffe_id.clone())
            .or_default()
            .push(index);
        let entry = entry(workload, &compiled, &near, &peer_authentications, options);
        compiled.workloads.push(entry);
    }
    compiled
}

/// The places of policies by their namespace, so that each Workload looks at its own alone.
struct Near {
    network: HashMap<String, Vec<usize>>,
    requests: HashMap<String, Vec<usize>>,
    authorization: HashMap<String, Vec<usize>>,
}

fn by_namespace<'m>(metas: impl Iterator<Item = &'m Meta>) -> HashMap<String, Vec<usize>> {
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (place, meta) in metas.enumerate() {
        places
            .entry(meta.namespace.clone())
            .or_default()
            .push(place);
    }
    places
}

/// What concerns one Workload.
fn entry(
    workload: Workload,
    compiled: &Compiled,
    near: &Near,
    peers: &[peer::PeerAuthentication],
    options: &Options,
) -> Entry {
    let namespace = &*workload.name.namespace;
    let home = [namespace];
    let home_and_root = [namespace, options.root_namespace.as_str()];
    let home_and_root = match namespace == options.root_namespace {
        true => home.as_slice(),
        false => home_and_root.as_slice(),
    };
    let network = |isolates: fn(&network::NetworkPolicy) -> bool| {
        places(&compiled.network, &near.network, &home, |policy| {
            isolates(policy) && policy.pods.matches(&workload.labels)
        })
    };
    let selects = |selector: &Labels| labels::contains(&workload.labels, selector);
    let authorization = |wanted: &dyn Fn(&authorization::AuthorizationPolicy) -> bool| {
        let all = &compiled.authorization;
        places(all, &near.authorization, home_and_root, |policy| {
            wanted(policy) && selects(&policy.selector)
        })
    };
    let with_a_say = |action: authorization::Action| {
        authorization(&|policy| !policy.dry_run && policy.action == action)
    };
    let (custom, deny, allow) = (
        with_a_say(authorization::Action::Custom),
        with_a_say(authorization::Action::Deny),
        with_a_say(authorization::Action::Allow),
    );
    let all = &compiled.authorization;
    Entry {
        spots: [&custom, &deny, &allow].map(|places| Spots::of(all, places)),
        ingress: network(|policy| policy.ingress.is_some()),
        egress: network(|policy| policy.egress.is_some()),
        requests: places(
            &compiled.requests,
            &near.requests,
            home_and_root,
            |policy| selects(&policy.selector),
        ),
        custom,
        deny,
        allow,
        silent: authorization(&|policy| {
            policy.dry_run || policy.action == authorization::Action::Audit
        }),
        mtls: mtls(&workload, peers, options),
        workload,
    }
}

/// The places of what is wanted in these namespaces, in order.
fn places<T>(
    all: &[T],
    near: &HashMap<String, Vec<usize>>,
    namespaces: &[&str],
    wanted: impl Fn(&T) -> bool,
) -> Vec<usize> {
    let mut found: Vec<usize> = namespaces
        .iter()
        .filter_map(|namespace| near.get(*namespace))
        .flatten()
        .copied()
        .filter(|&place| all.get(place).is_some_and(&wanted))
        .collect();
    // All are in the order of their names, whatever namespace they are of.
    found.sort_unstable();
    found
}

/// Port, workload, namespace, mesh: the narrowest scope that says something holds. In each scope
/// the oldest policy alone counts, even where it says nothing.
fn mtls(workload: &Workload, peers: &[peer::PeerAuthentication], options: &Options) -> Mtls {
    let at = |namespace: &str, with_selector: bool| {
        peers.iter().find(|policy| {
            policy.meta.namespace == namespace
                && policy.selector.is_empty() != with_selector
                && labels::contains(&workload.labels, &policy.selector)
        })
    };
    let namespace = &*workload.name.namespace;
    let in_root = namespace == options.root_namespace;
    let mesh = at(&options.root_namespace, false);
    let whole = if in_root { None } else { at(namespace, false) };
    // A selector in the root namespace is ignored altogether, as Istio does.
    let own = if in_root { None } else { at(namespace, true) };

    let mut mode = (MtlsMode::Permissive, None);
    for policy in [mesh, whole, own].into_iter().flatten() {
        if let Some((place, said)) = policy.mode {
            mode = (
                said,
                Some(origin(
                    PolicyKind::PeerAuthentication,
                    &policy.meta,
                    None,
                    place.line,
                )),
            );
        }
    }
    let mut ports = BTreeMap::new();
    for (port, said) in own.iter().flat_map(|policy| &policy.ports) {
        if let (Some((place, said)), Some(policy)) = (said, own) {
            let kind = PolicyKind::PeerAuthentication;
            ports.insert(
                *port,
                (*said, Some(origin(kind, &policy.meta, None, place.line))),
            );
        }
    }
    Mtls {
        default: mode,
        ports,
    }
}

/// Where a rule stands.
pub(crate) fn origin(kind: PolicyKind, meta: &Meta, rule: Option<u32>, line: u32) -> RuleOrigin {
    RuleOrigin {
        kind,
        policy: meta.full_name.clone(),
        rule,
        file: Arc::<Path>::clone(&meta.file),
        line,
    }
}

/// Two documents of one kind and name: which one counts would depend on the order of files.
fn refuse_duplicates(documents: &Documents, found: &mut Vec<Diagnostic>) {
    let Documents {
        workloads,
        namespaces,
        network_policies,
        peer_authentications,
        request_authentications,
        authorization_policies,
    } = documents;
    unique("Workload", workloads.iter().map(|(meta, _)| meta), found);
    unique("Namespace", namespaces.iter().map(|one| &one.meta), found);
    unique(
        "NetworkPolicy",
        network_policies.iter().map(|one| &one.meta),
        found,
    );
    unique(
        "PeerAuthentication",
        peer_authentications.iter().map(|one| &one.meta),
        found,
    );
    unique(
        "RequestAuthentication",
        request_authentications.iter().map(|one| &one.meta),
        found,
    );
    unique(
        "AuthorizationPolicy",
        authorization_policies.iter().map(|one| &one.meta),
        found,
    );

    let mut hints: HashMap<&str, &Meta> = HashMap::new();
    for (meta, workload) in workloads {
        let Some(hint) = workload.hint.as_deref() else {
            continue;
        };
        if let Some(first) = hints.insert(hint, meta) {
            Problems::new(&meta.file, found).warn(
                meta.at,
                format!(
                    "hint `{hint}` is that of `{}/{}` too",
                    first.namespace, first.name
                ),
                "a process that is both is told one of them alone, the older one",
            );
        }
    }
}

fn unique<'m>(kind: &str, metas: impl Iterator<Item = &'m Meta>, found: &mut Vec<Diagnostic>) {
    let mut seen: HashMap<(&str, &str), &Meta> = HashMap::new();
    for meta in metas {
        if let Some(first) = seen.insert((&meta.namespace, &meta.name), meta) {
            Problems::new(&meta.file, found).error(
                meta.at,
                format!(
                    "{kind} `{}/{}` stands in `{}:{}` too",
                    meta.namespace,
                    meta.name,
                    first.file.display(),
                    first.at.line
                ),
            );
        }
    }
}

fn key(meta: &Meta) -> (&str, &str) {
    (&meta.namespace, &meta.name)
}

/// Oldest first; those without a date after all others, by name.
fn age(meta: &Meta) -> (bool, Option<&str>, &str, &str) {
    (
        meta.created.is_none(),
        meta.created.as_deref(),
        &meta.name,
        &meta.namespace,
    )
}
