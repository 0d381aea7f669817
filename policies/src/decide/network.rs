//! NetworkPolicy: may these two ends talk at all?
//!
//! Selectors match the labels of the verified identity's Workload, never an address. Where several
//! Workloads share an identity, a selector matches only what all of them satisfy: nobody can tell
//! which of them it was.

use std::net::IpAddr;

use super::{Access, DecidedBy, Decision, Peer, PolicyKind, Question, Stage, Verdict};
use crate::{
    compile::{Compiled, Entry, origin},
    model::{
        labels::{LabelSelector, Labels},
        network_policy as model,
    },
};

/// The end that the rules speak of.
#[derive(Debug, Clone, Copy)]
enum OtherEnd<'a> {
    /// Somebody whose Workload, or what-if, is known.
    Source(&'a Access<'a>),
    /// A Workload.
    Workload(&'a Entry),
    /// Somebody of whom only the address is known, if that.
    Address(Option<IpAddr>),
}

/// Inbound: the destination's ingress rules.
pub(crate) fn ingress(question: &Question<'_>) -> Decision {
    let Some(own) = question.destination() else {
        return by_default(question);
    };
    if own.ingress.is_empty() {
        return by_default(question);
    }
    let other = source(question);
    let rules = rules(question.compiled, &own.ingress, |policy| {
        policy.ingress.as_deref()
    });
    first_match(question, rules, other)
}

/// Outbound: the egress rules of the asking workload. Of several with one identity, all must
/// allow it.
pub(crate) fn egress(question: &Question<'_>) -> Decision {
    let Peer::Verified(id) = question.access.source.peer else {
        return by_default(question);
    };
    let other = match question.destination() {
        Some(entry) => OtherEnd::Workload(entry),
        None => OtherEnd::Address(question.access.destination.ip),
    };
    let mut allowed = None;
    for own in question.compiled.by_identity(id) {
        let decision = if own.egress.is_empty() {
            by_default(question)
        } else {
            let rules = rules(question.compiled, &own.egress, |policy| {
                policy.egress.as_deref()
            });
            first_match(question, rules, other)
        };
        if decision.verdict == Verdict::Deny {
            return decision;
        }
        allowed.get_or_insert(decision);
    }
    allowed.unwrap_or_else(|| by_default(question))
}

/// Does the rule allow this access? Asked again, piece by piece, by `explain`.
pub(crate) fn explain_rule(
    question: &Question<'_>,
    policy: &model::NetworkPolicy,
    rule: &model::Rule,
) -> (bool, bool) {
    let other = match question.access.direction {
        super::Direction::Inbound => source(question),
        super::Direction::Outbound => match question.destination() {
            Some(entry) => OtherEnd::Workload(entry),
            None => OtherEnd::Address(question.access.destination.ip),
        },
    };
    (
        peers_match(question.compiled, policy, rule, other),
        ports_match(question, rule),
    )
}

/// Does one peer of an ingress rule speak of the source of this access?
pub(crate) fn is_peer(
    question: &Question<'_>,
    policy: &model::NetworkPolicy,
    peer: &model::Peer,
) -> bool {
    peer_matches(question.compiled, policy, peer, source(question))
}

/// Is the source nobody of whom more is known than the address?
pub(crate) fn is_stranger(question: &Question<'_>) -> bool {
    matches!(source(question), OtherEnd::Address(_))
}

fn source<'a>(question: &Question<'a>) -> OtherEnd<'a> {
    let source = &question.access.source;
    let is_known = match source.peer {
        Peer::Plaintext => false,
        Peer::Verified(id) => {
            source.labels.is_some()
                || source.namespace.is_some()
                || question.compiled.by_identity(id).next().is_some()
        }
    };
    if is_known {
        OtherEnd::Source(question.access)
    } else {
        OtherEnd::Address(source.ip)
    }
}

/// The policies at these places, each with its rules.
fn rules<'a>(
    compiled: &'a Compiled,
    places: &'a [usize],
    rules: fn(&model::NetworkPolicy) -> Option<&[model::Rule]>,
) -> impl Iterator<Item = (&'a model::NetworkPolicy, &'a [model::Rule])> {
    places
        .iter()
        .filter_map(|&place| compiled.network.get(place))
        .map(move |policy| (policy, rules(policy).unwrap_or_default()))
}

fn first_match<'a>(
    question: &Question<'_>,
    policies: impl Iterator<Item = (&'a model::NetworkPolicy, &'a [model::Rule])>,
    other: OtherEnd<'_>,
) -> Decision {
    for (policy, rules) in policies {
        for (place, rule) in (0..).zip(rules) {
            if peers_match(question.compiled, policy, rule, other) && ports_match(question, rule) {
                let origin = origin(
                    PolicyKind::NetworkPolicy,
                    &policy.meta,
                    Some(place),
                    rule.at.line,
                );
                return decision(Verdict::Allow, DecidedBy::Rule(origin));
            }
        }
    }
    decision(Verdict::Deny, DecidedBy::NoMatch(PolicyKind::NetworkPolicy))
}

fn by_default(question: &Question<'_>) -> Decision {
    decision(question.defaults.network, DecidedBy::Default)
}

fn decision(verdict: Verdict, decided_by: DecidedBy) -> Decision {
    Decision {
        verdict,
        stage: Stage::Network,
        decided_by,
    }
}

fn peers_match(
    compiled: &Compiled,
    policy: &model::NetworkPolicy,
    rule: &model::Rule,
    other: OtherEnd<'_>,
) -> bool {
    let matches = |peer| peer_matches(compiled, policy, peer, other);
    rule.peers.is_empty() || rule.peers.iter().any(matches)
}

fn peer_matches(
    compiled: &Compiled,
    policy: &model::NetworkPolicy,
    peer: &model::Peer,
    other: OtherEnd<'_>,
) -> bool {
    match peer {
        model::Peer::Block { net, except } => match other {
            OtherEnd::Address(Some(ip)) => {
                net.contains(&ip) && !except.iter().any(|inner| inner.contains(&ip))
            }
            _ => false,
        },
        model::Peer::Pods { namespaces, pods } => {
            let home = policy.meta.namespace.as_str();
            let selects = |namespace: &str, labels: &Labels| {
                selects(
                    compiled,
                    home,
                    namespaces.as_ref(),
                    pods.as_ref(),
                    namespace,
                    labels,
                )
            };
            pods_match(compiled, other, selects)
        }
    }
}

/// Does `selects` hold for the other end, whoever of those with its identity it is?
fn pods_match(
    compiled: &Compiled,
    other: OtherEnd<'_>,
    selects: impl Fn(&str, &Labels) -> bool,
) -> bool {
    let access = match other {
        OtherEnd::Address(_) => return false,
        OtherEnd::Workload(entry) => {
            return selects(&entry.workload.name.namespace, &entry.workload.labels);
        }
        OtherEnd::Source(access) => access,
    };
    let Peer::Verified(id) = access.source.peer else {
        return false;
    };
    let (namespace, labels) = (access.source.namespace, access.source.labels);
    let mut any = false;
    for entry in compiled.by_identity(id) {
        any = true;
        let namespace = namespace.unwrap_or(&entry.workload.name.namespace);
        if !selects(namespace, labels.unwrap_or(&entry.workload.labels)) {
            return false;
        }
    }
    // Nobody has this identity: only the what-if, and the namespace that the identity names.
    let of_id = id.service_account().map(|(namespace, _)| namespace);
    any || match (namespace.or(of_id), labels) {
        (Some(namespace), Some(labels)) => selects(namespace, labels),
        (Some(namespace), None) => selects(namespace, &Labels::new()),
        (None, _) => false,
    }
}

/// One element of `from` or `to`: pods of the policy's own namespace, all pods of the selected
/// namespaces, or both at once.
fn selects(
    compiled: &Compiled,
    home: &str,
    namespaces: Option<&LabelSelector>,
    pods: Option<&LabelSelector>,
    namespace: &str,
    labels: &Labels,
) -> bool {
    let namespace_matches = match namespaces {
        None => namespace == home,
        Some(selector) => match compiled.namespace_labels(namespace) {
            Some(labels) => selector.matches(labels),
            None => selector.matches(&Labels::from([(
                crate::parse::NAMESPACE_NAME.to_owned(),
                namespace.to_owned(),
            )])),
        },
    };
    namespace_matches && pods.is_none_or(|selector| selector.matches(labels))
}

fn ports_match(question: &Question<'_>, rule: &model::Rule) -> bool {
    rule.ports.is_empty() || rule.ports.iter().any(|port| port_matches(question, port))
}

/// Does one port of a rule speak of the destination's?
pub(crate) fn port_matches(question: &Question<'_>, port: &model::Port) -> bool {
    let destination = &question.access.destination;
    let number = || match &port.number {
        model::PortNumber::Any => true,
        model::PortNumber::Range(first, last) => (*first..=*last).contains(&destination.port),
        model::PortNumber::Named(name) => question.destination().is_some_and(|entry| {
            entry.workload.ports.iter().any(|served| {
                served.name.as_deref() == Some(name)
                    && served.port == destination.port
                    && served.protocol == port.protocol
            })
        }),
    };
    port.protocol == destination.protocol && number()
}
