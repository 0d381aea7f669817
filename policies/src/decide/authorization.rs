//! AuthorizationPolicy: may this identity do this?
//!
//! CUSTOM first, then DENY, then ALLOW, then no. There is nobody to ask for a CUSTOM decision, so what
//! such a rule matches is denied. AUDIT and dry-run policies have no say. Where no HTTP was
//! parsed, an ALLOW rule that names HTTP is dropped whole, and a DENY rule is judged by the rest
//! of it, as Istio does: both err on the side of deny.

use std::{borrow::Cow, net::IpAddr};

use ipnet::IpNet;

use super::{DecidedBy, Decision, Peer, PolicyKind, Question, Stage, Verdict, token};
use crate::{
    compile::{Compiled, Spots, origin},
    model::{
        authorization_policy::{Action, AuthorizationPolicy, Field, FieldMatch, Rule},
        pattern::Pattern,
    },
    set::Observed,
};

/// Decides at the destination.
pub(crate) fn decide(question: &Question<'_>) -> Decision {
    let Some(own) = question.destination() else {
        return decision(question.defaults.authorization, DecidedBy::Default);
    };
    let [custom, deny, allow] = &own.spots;
    for denying in [custom, deny] {
        if let Some(origin) = first_match(question, denying) {
            return decision(Verdict::Deny, origin);
        }
    }
    if own.allow.is_empty() {
        return decision(question.defaults.authorization, DecidedBy::Default);
    }
    match first_match(question, allow) {
        Some(origin) => decision(Verdict::Allow, origin),
        None => decision(
            Verdict::Deny,
            DecidedBy::NoMatch(PolicyKind::AuthorizationPolicy),
        ),
    }
}

/// The policies without a say that match.
pub(crate) fn observed(question: &Question<'_>) -> Observed {
    let mut observed = Observed::default();
    let silent = question.destination().map(|own| own.silent.as_slice());
    for policy in policies(question, silent.unwrap_or_default()) {
        let matches = |rule| rule_matches(question, policy.action, rule);
        if policy.rules.iter().any(matches) {
            let list = match policy.dry_run {
                true => &mut observed.dry_run,
                false => &mut observed.audit,
            };
            list.push(policy.meta.full_name.clone());
        }
    }
    observed
}

fn first_match(question: &Question<'_>, spots: &Spots) -> Option<DecidedBy> {
    let principal = identity(question).map(|id| id.principal());
    spots.candidates(principal).find_map(|spot| {
        let at = |place| usize::try_from(place).unwrap_or(usize::MAX);
        let policy = question.compiled.authorization.get(at(spot.policy))?;
        let rule = policy.rules.get(at(spot.rule))?;
        rule_matches(question, policy.action, rule).then(|| {
            let kind = PolicyKind::AuthorizationPolicy;
            DecidedBy::Rule(origin(kind, &policy.meta, Some(spot.rule), rule.at.line))
        })
    })
}

fn decision(verdict: Verdict, decided_by: DecidedBy) -> Decision {
    Decision {
        verdict,
        stage: Stage::Authorization,
        decided_by,
    }
}

/// Does the rule speak of this access at all, where no HTTP was parsed?
pub(crate) fn is_dropped(question: &Question<'_>, action: Action, rule: &Rule) -> bool {
    question.access.http.is_none()
        && action == Action::Allow
        && rule.fields().any(|field| field.field.is_http_only())
}

/// Any source, any operation, all conditions.
pub(crate) fn rule_matches(question: &Question<'_>, action: Action, rule: &Rule) -> bool {
    let all = |fields: &[FieldMatch]| {
        fields
            .iter()
            .all(|field| is_left_out(question, field) || field_matches(question, action, field))
    };
    let any = |list: &[Vec<FieldMatch>]| list.is_empty() || list.iter().any(|fields| all(fields));
    !is_dropped(question, action, rule) && any(&rule.from) && any(&rule.to) && all(&rule.when)
}

/// Is the field one that this access cannot have?
fn is_left_out(question: &Question<'_>, field: &FieldMatch) -> bool {
    question.access.http.is_none() && field.field.is_http_only()
}

/// The fields of one source, operation or condition list that do not hold.
pub(crate) fn misses<'f>(
    question: &Question<'_>,
    action: Action,
    fields: &'f [FieldMatch],
) -> Vec<&'f FieldMatch> {
    fields
        .iter()
        .filter(|field| !is_left_out(question, field) && !field_matches(question, action, field))
        .collect()
}

/// Compares one field. Absence matches nothing, so its `not…` form holds: plaintext has no
/// principal, and `notPrincipals` is true of it.
pub(crate) fn field_matches(question: &Question<'_>, action: Action, field: &FieldMatch) -> bool {
    let access = question.access;
    let patterns = &field.patterns;
    let text = |value: Option<&str>| {
        value.is_some_and(|value| {
            patterns
                .iter()
                .any(|pattern| pattern.matches_text(value.as_bytes()))
        })
    };
    let address = |ip: Option<IpAddr>| {
        ip.is_some_and(|ip| {
            patterns
                .iter()
                .any(|pattern| matches!(pattern, Pattern::Net(net) if contains(net, ip)))
        })
    };
    let any = match &field.field {
        Field::Principal => text(identity(question).map(|id| id.principal())),
        Field::TrustDomain => text(identity(question).map(|id| id.trust_domain().as_str())),
        Field::Namespace => text(namespace(question)),
        Field::ServiceAccount => {
            identity(question).and_then(|id| id.service_account()).is_some_and(|(namespace, name)| {
                patterns.iter().any(|pattern| {
                    matches!(pattern, Pattern::ServiceAccount(ns, sa) if ns == namespace && sa == name)
                })
            })
        }
        // No proxy in front is trusted to tell another address.
        Field::SourceIp | Field::RemoteIp => address(access.source.ip),
        Field::DestinationIp => address(access.destination.ip),
        Field::DestinationPort => patterns.contains(&Pattern::Port(access.destination.port)),
        Field::ServerName => text(access.sni),
        Field::Host => access.http.and_then(|http| http.host).is_some_and(|host| {
            patterns.iter().any(|pattern| pattern.matches_host(host.as_bytes()))
        }),
        Field::Method => access.http.is_some_and(|http| {
            patterns.iter().any(|pattern| {
                *pattern == Pattern::Present || pattern.matches_text(http.method.as_bytes())
            })
        }),
        Field::Path => text(access.http.map(|http| http.path)),
        Field::Header(name) => header_matches(question, action, field, name),
        Field::RequestPrincipal => token::accepted(question).is_some_and(|token| {
            patterns.iter().any(|pattern| {
                matches!(pattern, Pattern::RequestPrincipal(wanted) if token.principal_matches(wanted))
            })
        }),
        Field::Claim(path) => {
            token::accepted(question).is_some_and(|token| token.claim_matches(path, patterns))
        }
    };
    any != field.negated
}

/// Repeated fields are compared as one text, joined with commas. A DENY looks at each value, and at
/// each part between commas, too: its `values` need one that matches and its `notValues` one that
/// does not, so that it cannot be dodged by saying two things at once.
fn header_matches(question: &Question<'_>, action: Action, field: &FieldMatch, name: &str) -> bool {
    let Some(http) = question.access.http else {
        return false;
    };
    let patterns = &field.patterns;
    let matches = |value: &[u8]| patterns.iter().any(|pattern| pattern.matches_text(value));
    let mut joined: Option<Vec<u8>> = None;
    let (mut one, mut all) = (false, true);
    http.headers.values(name, &mut |value| {
        one |= matches(value);
        for part in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let part_matches = matches(part);
            one |= part_matches;
            all &= part_matches;
        }
        match &mut joined {
            None => joined = Some(value.to_vec()),
            Some(joined) => {
                joined.push(b',');
                joined.extend_from_slice(value);
            }
        }
    });
    let Some(joined) = joined else { return false };
    // A star means that the field is there, even when it is empty.
    if patterns.contains(&Pattern::Present) {
        return true;
    }
    let is_exact =
        |pattern: &Pattern| matches!(pattern, Pattern::Exact(text) if text.as_bytes() == joined);
    match (action, field.negated) {
        (Action::Deny, false) => one || matches(&joined),
        (Action::Deny, true) => all || patterns.iter().any(is_exact),
        _ => matches(&joined),
    }
}

fn contains(net: &IpNet, ip: IpAddr) -> bool {
    net.contains(&ip.to_canonical())
}

fn identity<'a>(question: &Question<'a>) -> Option<&'a postern_spiffe::SpiffeId> {
    match question.access.source.peer {
        Peer::Verified(id) => Some(id),
        Peer::Plaintext => None,
    }
}

/// The segment after `/ns/` of the identity; where its path has none, the namespace of its
/// Workload.
fn namespace<'a>(question: &Question<'a>) -> Option<&'a str> {
    let id = identity(question)?;
    let mut segments = id
        .path()
        .split('/')
        .skip_while(|segment| *segment != "ns")
        .skip(1);
    segments
        .next()
        .or(question.access.source.namespace)
        .or_else(|| {
            let mut known = question
                .compiled
                .by_identity(id)
                .map(|entry| &*entry.workload.name.namespace);
            let first = known.next()?;
            known.all(|other| other == first).then_some(first)
        })
}

/// What the access has in the place of a field, for people.
pub(crate) fn shown<'a>(question: &Question<'a>, field: &Field) -> Option<Cow<'a, str>> {
    let access = question.access;
    let number = |text: String| Some(Cow::Owned(text));
    match field {
        Field::Principal => identity(question).map(|id| id.principal().into()),
        Field::TrustDomain => identity(question).map(|id| id.trust_domain().as_str().into()),
        Field::Namespace => namespace(question).map(Into::into),
        Field::ServiceAccount => identity(question)
            .and_then(|id| id.service_account())
            .map(|(namespace, name)| format!("{namespace}/{name}").into()),
        Field::SourceIp | Field::RemoteIp => access.source.ip.and_then(|ip| number(ip.to_string())),
        Field::DestinationIp => access.destination.ip.and_then(|ip| number(ip.to_string())),
        Field::DestinationPort => number(access.destination.port.to_string()),
        Field::ServerName => access.sni.map(Into::into),
        Field::Host => access.http.and_then(|http| http.host).map(Into::into),
        Field::Method => access.http.map(|http| http.method.into()),
        Field::Path => access.http.map(|http| http.path.into()),
        Field::Header(name) => {
            let mut text = None;
            access.http?.headers.values(name, &mut |value| {
                text.get_or_insert_with(|| String::from_utf8_lossy(value).into_owned());
            });
            text.map(Cow::Owned)
        }
        Field::RequestPrincipal => token::accepted(question)
            .and_then(|token| token.principal())
            .map(|(issuer, subject)| format!("{issuer}/{subject}").into()),
        Field::Claim(path) => {
            let token = token::accepted(question)?;
            token.claim(path).map(|value| match value.as_str() {
                Some(text) => text.into(),
                None => value.to_string().into(),
            })
        }
    }
}

/// The policies at these places.
pub(crate) fn policies<'a>(
    question: &Question<'a>,
    places: &'a [usize],
) -> impl Iterator<Item = &'a AuthorizationPolicy> {
    at(question.compiled, places)
}

/// The policies of a compiled set at these places.
pub(crate) fn at<'a>(
    compiled: &'a Compiled,
    places: &'a [usize],
) -> impl Iterator<Item = &'a AuthorizationPolicy> {
    places
        .iter()
        .filter_map(|&place| compiled.authorization.get(place))
}
