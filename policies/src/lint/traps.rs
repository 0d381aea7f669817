//! Traps of the semantics: documents that say less, or more, than they seem to.

use super::warn;
use crate::{
    compile::MtlsMode,
    diagnostic::{Diagnostic, Place},
    model::{
        Documents,
        authorization_policy::{Action, AuthorizationPolicy, Field, FieldMatch},
        labels,
        network_policy::NetworkPolicy,
        pattern::Pattern,
        peer_authentication::PeerAuthentication,
    },
    normalize,
    set::Options,
};

pub(super) fn look(documents: &Documents, options: &Options, warnings: &mut Vec<Diagnostic>) {
    for policy in &documents.authorization_policies {
        for rule in &policy.rules {
            for field in rule.fields() {
                let mut say = |message: String, hint: &str| {
                    warn(
                        &policy.meta,
                        rule.at,
                        message,
                        Some(hint.to_owned()),
                        warnings,
                    );
                };
                paths(policy, field, options, &mut say);
                hosts(field, &mut say);
                nobody(field, documents, &mut say);
                other_domain(field, options, &mut say);
            }
        }
        open_root(policy, options, warnings);
        dropped_on_tcp(policy, warnings);
        not_http(policy, documents, options, warnings);
    }
    ties(documents, warnings);
    behind_deny(documents, options, warnings);
    for policy in &documents.peer_authentications {
        plaintext(policy, options, warnings);
    }
    for policy in &documents.network_policies {
        implied_types(policy, warnings);
    }
}

/// A pattern that no normalized path has; and matches that fail open where a spelling is missed.
fn paths(
    policy: &AuthorizationPolicy,
    field: &FieldMatch,
    options: &Options,
    say: &mut impl FnMut(String, &str),
) {
    if field.field != Field::Path {
        return;
    }
    for pattern in &field.patterns {
        let (Pattern::Exact(text) | Pattern::Prefix(text)) = pattern else {
            continue;
        };
        if text.starts_with('/') {
            match normalize::path(text, options.paths) {
                Ok(path) if path == *text => {}
                Ok(path) => say(
                    format!("path `{pattern}` never matches: normalization never produces it"),
                    &format!("requests for it arrive as `{path}`"),
                ),
                Err(refused) => say(
                    format!("path `{pattern}` never matches: normalization never produces it"),
                    &format!("such requests are refused: {refused}"),
                ),
            }
        }
    }
    let fails_open = match policy.action {
        Action::Allow => field.negated,
        Action::Deny => !field.negated,
        Action::Audit | Action::Custom => false,
    };
    if fails_open && policy.action == Action::Allow {
        say(
            "ALLOW with `notPaths` lets through every spelling that nobody thought of".into(),
            "name what is allowed with `paths`",
        );
    }
}

/// The port is part of the host, if the client sent one.
fn hosts(field: &FieldMatch, say: &mut impl FnMut(String, &str)) {
    if field.field != Field::Host {
        return;
    }
    for pattern in &field.patterns {
        let Pattern::Exact(host) = pattern else {
            continue;
        };
        let with_port = Pattern::Prefix(format!("{host}:"));
        if !host.contains(':') && !field.patterns.contains(&with_port) {
            say(
                format!("host `{host}` does not match `{host}:8080`"),
                &format!("add `{host}:*`"),
            );
        }
    }
}

/// A principal or an account that none of the known Workloads has.
fn nobody(field: &FieldMatch, documents: &Documents, say: &mut impl FnMut(String, &str)) {
    if documents.workloads.is_empty() {
        return;
    }
    for pattern in &field.patterns {
        let ids = documents
            .workloads
            .iter()
            .map(|(_, workload)| &workload.spiffe_id);
        let known = match (&field.field, pattern) {
            // What can never match is told by itself.
            (Field::Principal, Pattern::Exact(text)) if text.starts_with("spiffe://") => true,
            (Field::Principal, Pattern::Exact(text)) => {
                let rest = |text: &str| text.split_once('/').map(|(_, path)| path.to_owned());
                // By path: which name of the trust domain is used does not matter here.
                let mut paths = ids.map(|id| rest(id.principal()));
                paths.any(|path| path == rest(text))
            }
            (Field::ServiceAccount, Pattern::ServiceAccount(namespace, name)) => {
                let mut accounts = ids.filter_map(|id| id.service_account());
                accounts.any(|(ns, account)| ns == namespace && account == name)
            }
            _ => true,
        };
        if !known {
            say(
                format!(
                    "{} `{pattern}`: no known Workload has it",
                    field.field.noun()
                ),
                "is it a slip, or a Workload of another place?",
            );
        }
    }
}

/// Istio rewrites `cluster.local` in whole principals alone.
fn other_domain(field: &FieldMatch, options: &Options, say: &mut impl FnMut(String, &str)) {
    let own = options.trust_domain.as_str();
    let aliases = options.trust_domain_aliases.iter();
    let is_own = std::iter::once(own)
        .chain(aliases.map(postern_spiffe::TrustDomain::as_str))
        .any(|name| name == "cluster.local");
    if field.field != Field::Principal || is_own {
        return;
    }
    for pattern in &field.patterns {
        if let Pattern::Prefix(text) = pattern
            && text.starts_with("cluster.local/")
        {
            say(
                format!("principal `{pattern}` never matches: the trust domain is `{own}`"),
                "`cluster.local` stands for the own trust domain in whole principals alone",
            );
        }
    }
}

/// One HTTP field drops the whole ALLOW rule where no HTTP is spoken, its pure ports too.
fn dropped_on_tcp(policy: &AuthorizationPolicy, warnings: &mut Vec<Diagnostic>) {
    let is_tcp = |fields: &Vec<FieldMatch>| fields.iter().all(|one| !one.field.is_http_only());
    for rule in &policy.rules {
        let mixed = rule.to.iter().any(is_tcp) && !rule.to.iter().all(is_tcp);
        if policy.action == Action::Allow && mixed {
            let message = format!(
                "rule of `{}`: opaque TCP is not allowed by it, not even on the ports that it names                  alone, because another item of `to` names HTTP",
                policy.meta.full_name
            );
            let hint = Some("make two rules of it".into());
            warn(&policy.meta, rule.at, message, hint, warnings);
        }
    }
}

/// HTTP fields for ports whose names say that no HTTP is spoken there.
fn not_http(
    policy: &AuthorizationPolicy,
    documents: &Documents,
    options: &Options,
    warnings: &mut Vec<Diagnostic>,
) {
    let everywhere = policy.meta.namespace == options.root_namespace;
    let selected = documents.workloads.iter().filter(|(meta, workload)| {
        (everywhere || meta.namespace == policy.meta.namespace)
            && labels::contains(&workload.labels, &policy.selector)
    });
    let served: Vec<_> = selected.flat_map(|(_, workload)| &workload.ports).collect();
    for rule in policy
        .rules
        .iter()
        .filter(|rule| rule.fields().any(|one| one.field.is_http_only()))
    {
        let named = rule
            .fields()
            .filter(|one| one.field == Field::DestinationPort && !one.negated);
        for pattern in named.flat_map(|one| &one.patterns) {
            let Pattern::Port(number) = pattern else {
                continue;
            };
            let port = served.iter().find(|port| port.port == *number);
            let Some(name) = port.and_then(|port| port.name.as_deref()) else {
                continue;
            };
            let protocol = name.split('-').next().unwrap_or_default();
            if OPAQUE.contains(&protocol) {
                let effect = match policy.action {
                    Action::Allow => "never matches there",
                    _ => "matches every connection there",
                };
                let message = format!(
                    "rule of `{}`: port {number} is `{name}`, HTTP is not read on it, so the rule {effect}",
                    policy.meta.full_name
                );
                warn(&policy.meta, rule.at, message, None, warnings);
            }
        }
    }
}

/// Of PeerAuthentications in one place the oldest counts; of equally old ones, the first by name.
fn ties(documents: &Documents, warnings: &mut Vec<Diagnostic>) {
    let all = &documents.peer_authentications;
    for (place, policy) in all.iter().enumerate() {
        let other = all.iter().take(place).find(|other| {
            other.meta.namespace == policy.meta.namespace
                && other.selector == policy.selector
                && other.meta.created == policy.meta.created
        });
        if let Some(other) = other {
            let message = format!(
                "PeerAuthentications `{}` and `{}` say something about the same workloads and are equally \
                 old: the first by name counts, the other not at all",
                other.meta.full_name, policy.meta.full_name
            );
            let hint = Some("make one of them".into());
            warn(&policy.meta, policy.meta.at, message, hint, warnings);
        }
    }
}

/// ALLOW policies are one union: what root leaves out, any namespace can add.
fn open_root(policy: &AuthorizationPolicy, options: &Options, warnings: &mut Vec<Diagnostic>) {
    if policy.action == Action::Allow
        && policy.meta.namespace == options.root_namespace
        && !policy.rules.is_empty()
    {
        let message = format!(
            "ALLOW `{}` stands in the root namespace: every namespace can allow more, \
             only a DENY is a guard rail",
            policy.meta.full_name
        );
        warn(&policy.meta, policy.meta.at, message, None, warnings);
    }
}

/// An ALLOW that speaks only where a DENY has denied everything already.
fn behind_deny(documents: &Documents, options: &Options, warnings: &mut Vec<Diagnostic>) {
    let policies = &documents.authorization_policies;
    let walls = policies.iter().filter(|policy| {
        policy.action == Action::Deny
            && !policy.dry_run
            && policy
                .rules
                .iter()
                .any(|rule| rule.fields().next().is_none())
    });
    for wall in walls {
        let covers = |policy: &AuthorizationPolicy| {
            let everywhere = wall.meta.namespace == options.root_namespace;
            let there = everywhere || wall.meta.namespace == policy.meta.namespace;
            there
                && wall
                    .selector
                    .iter()
                    .all(|(key, value)| policy.selector.get(key) == Some(value))
        };
        for policy in policies {
            if policy.action == Action::Allow && covers(policy) && !policy.rules.is_empty() {
                let message = format!(
                    "the rules of ALLOW `{}` never matter: DENY `{}` denies everything there",
                    policy.meta.full_name, wall.meta.full_name
                );
                warn(&policy.meta, policy.meta.at, message, None, warnings);
            }
        }
    }
}

/// What the names of ports begin with where no HTTP is spoken, as Istio has it.
const OPAQUE: [&str; 12] = [
    "tcp", "tls", "udp", "mongo", "mysql", "redis", "postgres", "smtp", "nats", "kafka", "amqp",
    "dns",
];

fn plaintext(policy: &PeerAuthentication, options: &Options, warnings: &mut Vec<Diagnostic>) {
    if policy.meta.namespace == options.root_namespace && !policy.selector.is_empty() {
        let message = format!(
            "PeerAuthentication `{}` is ignored: in the root namespace none with a selector counts",
            policy.meta.full_name
        );
        let hint = Some("move it to the namespace of the workload".into());
        warn(&policy.meta, policy.meta.at, message, hint, warnings);
        return;
    }
    let ports = policy.ports.values().flatten();
    let open = policy
        .mode
        .iter()
        .chain(ports)
        .find(|(_, mode)| *mode != MtlsMode::Strict);
    if let Some((at, mode)) = open {
        let message = format!(
            "PeerAuthentication `{}` takes plaintext ({})",
            policy.meta.full_name,
            if *mode == MtlsMode::Disable {
                "DISABLE"
            } else {
                "PERMISSIVE"
            }
        );
        let hint = Some("write `STRICT` when every caller has a certificate".into());
        warn(&policy.meta, *at, message, hint, warnings);
    }
}

fn implied_types(policy: &NetworkPolicy, warnings: &mut Vec<Diagnostic>) {
    let only_egress = policy
        .egress
        .as_ref()
        .is_some_and(|rules| !rules.is_empty())
        && policy.ingress.as_ref().is_some_and(Vec::is_empty);
    if policy.types_implied && only_egress {
        let message = format!(
            "NetworkPolicy `{}` has egress rules alone, and isolates ingress as well",
            policy.meta.full_name
        );
        let hint = Some("write `policyTypes: [Egress]` if that is not meant".into());
        warn(&policy.meta, policy.meta.at, message, hint, warnings);
    }
}

/// Two Workloads that share an identity and differ in their labels: nobody can tell them apart.
pub(super) fn shared_identities(documents: &Documents, warnings: &mut Vec<Diagnostic>) {
    let mut seen = std::collections::HashMap::new();
    for (meta, workload) in &documents.workloads {
        let Some((first, other)) = seen.insert(&workload.spiffe_id, (meta, &workload.labels))
        else {
            continue;
        };
        if *other != workload.labels {
            let at: Place = meta.at;
            let message = format!(
                "Workloads `{}` and `{}` have one identity and different labels: \
                 a NetworkPolicy selects neither by what they do not share",
                first.full_name, meta.full_name
            );
            warn(meta, at, message, None, warnings);
        }
    }
}
