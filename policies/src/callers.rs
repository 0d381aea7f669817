//! Who could ask: the callers that the policies of a destination can tell apart.
//!
//! Every Workload, everybody whom a policy names, and for each pattern somebody who fits it and is
//! no Workload; the last with no identity at all. Two callers who fit the same patterns get the
//! same answer, so these few stand for all.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use postern_spiffe::SpiffeId;

use crate::{
    compile::Compiled,
    decide::authorization,
    model::{
        authorization_policy::Field,
        network_policy::Peer,
        pattern::Pattern,
        workload::{Workload, WorkloadName},
    },
};

/// Somebody who could ask.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    /// Who it is; nothing for plaintext.
    pub identity: Option<SpiffeId>,
    /// An address that stands for those of a range, where a policy speaks of ranges.
    pub ip: Option<IpAddr>,
    /// The Workloads that have the identity.
    pub workloads: Vec<WorkloadName>,
}

/// Everybody whom the policies of `destination` can tell apart, in order: Workloads, strangers,
/// and nobody.
pub(crate) fn of(compiled: &Compiled, destination: &WorkloadName) -> Vec<Caller> {
    let Some(own) = compiled.by_name(destination) else {
        return Vec::new();
    };
    let mut names = Names::default();
    let mut ips = BTreeSet::new();
    for places in [&own.custom, &own.deny, &own.allow] {
        for policy in authorization::at(compiled, places) {
            for field in policy.rules.iter().flat_map(|rule| rule.fields()) {
                names.learn(&field.field, &field.patterns);
                for pattern in &field.patterns {
                    if let (Field::SourceIp | Field::RemoteIp, Pattern::Net(net)) =
                        (&field.field, pattern)
                    {
                        ips.insert(net.addr());
                    }
                }
            }
        }
    }
    for policy in own
        .ingress
        .iter()
        .filter_map(|&place| compiled.network.get(place))
    {
        for peer in policy.ingress.iter().flatten().flat_map(|rule| &rule.peers) {
            if let Peer::Block { net, except } = peer {
                ips.insert(net.addr());
                ips.extend(except.iter().map(|inner| inner.addr()));
            }
        }
    }
    // An address in no range, if any is spoken of.
    if !ips.is_empty() {
        ips.insert(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    }
    callers(compiled, &names, &ips)
}

fn callers(compiled: &Compiled, names: &Names, ips: &BTreeSet<IpAddr>) -> Vec<Caller> {
    let somewhere = || {
        let none = ips.is_empty().then_some(None);
        ips.iter().copied().map(Some).chain(none)
    };
    let known = compiled.workloads.iter().map(|entry| &entry.workload);
    let known: BTreeSet<&SpiffeId> = known.map(|workload| &workload.spiffe_id).collect();
    let mut all = Vec::new();
    for id in known.iter().copied() {
        let has = |workload: &&Workload| workload.spiffe_id == *id;
        let workloads = compiled.workloads.iter().map(|entry| &entry.workload);
        let names = workloads.filter(has).map(|workload| workload.name.clone());
        let names: Vec<WorkloadName> = names.collect();
        all.extend(somewhere().map(|ip| Caller {
            identity: Some(id.clone()),
            ip,
            workloads: names.clone(),
        }));
    }
    let strangers = names.identities();
    for id in strangers.iter().filter(|id| !known.contains(id)) {
        all.extend(somewhere().map(|ip| Caller {
            identity: Some(id.clone()),
            ip,
            workloads: Vec::new(),
        }));
    }
    all.extend(somewhere().map(|ip| Caller {
        identity: None,
        ip,
        workloads: Vec::new(),
    }));
    all
}

/// The parts of identities that policies speak of.
#[derive(Debug, Default)]
struct Names {
    principals: BTreeSet<String>,
    /// With what principals begin and end.
    begins: BTreeSet<String>,
    ends: BTreeSet<String>,
    domains: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    accounts: BTreeSet<(String, String)>,
}

impl Names {
    fn learn(&mut self, field: &Field, patterns: &[Pattern]) {
        for pattern in patterns {
            match (field, pattern) {
                (Field::Principal, Pattern::Exact(text)) => {
                    self.principals.insert(text.clone());
                }
                (Field::Principal, Pattern::Prefix(text)) => {
                    self.begins.insert(text.clone());
                }
                (Field::Principal, Pattern::Suffix(text)) => {
                    self.ends.insert(text.clone());
                }
                (Field::Namespace, _) => {
                    self.namespaces.extend(example(pattern));
                }
                (Field::TrustDomain, _) => {
                    self.domains.extend(example(pattern));
                }
                (Field::ServiceAccount, Pattern::ServiceAccount(namespace, name)) => {
                    self.accounts.insert((namespace.clone(), name.clone()));
                }
                _ => {}
            }
        }
    }

    /// Identities that fit the parts, by themselves and together; those that are none are left out.
    fn identities(&self) -> BTreeSet<SpiffeId> {
        let or = |some: &BTreeSet<String>, other: &str| -> Vec<String> {
            let other = std::iter::once(other.to_owned());
            some.iter().cloned().chain(other).collect()
        };
        let mut texts: BTreeSet<String> = self.principals.clone();
        for begin in or(&self.begins, "") {
            for end in or(&self.ends, "") {
                // The middle makes an identity of a beginning or an end alone.
                for middle in [
                    "",
                    STRANGER,
                    "/stranger",
                    "stranger.invalid",
                    "stranger.invalid/",
                ] {
                    texts.insert(format!("{begin}{middle}{end}"));
                }
            }
        }
        for domain in or(&self.domains, "stranger.invalid") {
            for namespace in or(&self.namespaces, STRANGER) {
                texts.insert(format!("{domain}/ns/{namespace}/sa/{STRANGER}"));
            }
            for (namespace, account) in &self.accounts {
                texts.insert(format!("{domain}/ns/{namespace}/sa/{account}"));
            }
        }
        let ids = texts
            .iter()
            .take(MAX_STRANGERS)
            .filter_map(|text| SpiffeId::parse(&format!("spiffe://{text}")).ok());
        ids.filter(|id| !id.path().is_empty()).collect()
    }
}

/// A text that fits.
fn example(pattern: &Pattern) -> Option<String> {
    match pattern {
        Pattern::Exact(text) => Some(text.clone()),
        Pattern::Prefix(text) => Some(format!("{text}{STRANGER}")),
        Pattern::Suffix(text) => Some(format!("{STRANGER}{text}")),
        _ => None,
    }
}

const STRANGER: &str = "stranger";

/// So many parts taken together are no question that a person asks.
const MAX_STRANGERS: usize = 100_000;
