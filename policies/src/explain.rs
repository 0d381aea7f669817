//! Why: in one line for a log, or policy by policy for a person.

use crate::{
    compile::{Entry, origin},
    decide::{
        DecidedBy, Decision, Direction, Peer, PolicyKind, Question, RuleOrigin, Stage, Verdict,
        authorization, network,
    },
    model::{
        authorization_policy::{Action, AuthorizationPolicy, FieldMatch, Rule},
        network_policy as net,
    },
};

/// A decision with everything that was looked at on the way.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// Why, in one line.
    pub reason: String,
    /// Every rule that was looked at, in order.
    pub considered: Vec<Considered>,
}

/// One rule that was looked at.
#[derive(Debug, Clone)]
pub struct Considered {
    /// Which rule; its place is `None` for a policy without rules.
    pub origin: RuleOrigin,
    /// What it would do.
    pub action: &'static str,
    /// Did it match?
    pub matched: bool,
    /// What it missed, if it did not.
    pub why: String,
}

/// Why, in one line.
pub(crate) fn reason(question: &Question<'_>, decision: &Decision) -> String {
    match (&decision.decided_by, decision.stage) {
        (DecidedBy::Rule(_), Stage::PeerAuthentication) => {
            "plaintext is refused: mutual TLS is STRICT here".into()
        }
        (DecidedBy::Rule(origin), Stage::RequestAuthentication) => format!(
            "the token is not meant for here: none of its audiences is among those of rule {} of {}",
            origin.rule.unwrap_or_default(),
            origin.policy
        ),
        (DecidedBy::NoMatch(PolicyKind::RequestAuthentication), _) => {
            let issuer = question.access.token.map_or("", |token| token.issuer);
            format!(
                "no RequestAuthentication accepts the issuer `{}`",
                cut(issuer)
            )
        }
        (DecidedBy::Rule(origin), _) => {
            let verb = if decision.verdict == Verdict::Allow {
                "allows"
            } else {
                "denies"
            };
            match origin.rule {
                Some(rule) => format!("rule {rule} of {} {verb} it", origin.policy),
                None => format!("{} {verb} it", origin.policy),
            }
        }
        (DecidedBy::NoMatch(PolicyKind::NetworkPolicy), _) => network_miss(question),
        (DecidedBy::NoMatch(_), _) => authorization_miss(question),
        (DecidedBy::Default, Stage::Network) => default_text(
            question,
            decision.verdict,
            "no NetworkPolicy selects this end",
        ),
        (DecidedBy::Default, _) => default_text(
            question,
            decision.verdict,
            "no ALLOW policy selects the destination",
        ),
        (DecidedBy::Request, _) => "the path has no single meaning".into(),
        (DecidedBy::Unasked, _) => "no policy was asked".into(),
    }
}

/// Everything that was looked at.
pub(crate) fn considered(question: &Question<'_>) -> Vec<Considered> {
    let mut all = Vec::new();
    for (own, places) in isolating(question) {
        let _ = own;
        for &place in places {
            let Some(policy) = question.compiled.network.get(place) else {
                continue;
            };
            all.extend(network_rules(question, policy));
        }
    }
    if question.access.direction == Direction::Inbound
        && let Some(own) = question.destination()
    {
        for places in [&own.custom, &own.deny, &own.allow, &own.silent] {
            for policy in authorization::policies(question, places) {
                all.extend(authorization_rules(question, policy));
            }
        }
    }
    all
}

fn default_text(question: &Question<'_>, verdict: Verdict, why: &str) -> String {
    if question.access.direction == Direction::Inbound && question.destination().is_none() {
        return "the destination is no Workload".into();
    }
    match verdict {
        Verdict::Allow => format!("{why}, and the default allows"),
        Verdict::Deny => format!("{why}, and the default denies"),
    }
}

/// The entries whose network rules are asked, with the places of the policies.
fn isolating<'a>(question: &Question<'a>) -> Vec<(&'a Entry, &'a [usize])> {
    match (question.access.direction, question.access.source.peer) {
        (Direction::Inbound, _) => question
            .destination()
            .map(|own| (own, own.ingress.as_slice()))
            .into_iter()
            .collect(),
        (Direction::Outbound, Peer::Verified(id)) => question
            .compiled
            .by_identity(id)
            .map(|own| (own, own.egress.as_slice()))
            .collect(),
        (Direction::Outbound, Peer::Plaintext) => Vec::new(),
    }
}

fn network_rules(question: &Question<'_>, policy: &net::NetworkPolicy) -> Vec<Considered> {
    let rules = match question.access.direction {
        Direction::Inbound => policy.ingress.as_deref(),
        Direction::Outbound => policy.egress.as_deref(),
    }
    .unwrap_or_default();
    if rules.is_empty() {
        let origin = origin(
            PolicyKind::NetworkPolicy,
            &policy.meta,
            None,
            policy.meta.at.line,
        );
        return vec![Considered {
            origin,
            action: "isolate",
            matched: false,
            why: "it has no rules: it allows nothing".into(),
        }];
    }
    (0..)
        .zip(rules)
        .map(|(place, rule)| {
            let (peers, ports) = network::explain_rule(question, policy, rule);
            Considered {
                origin: origin(
                    PolicyKind::NetworkPolicy,
                    &policy.meta,
                    Some(place),
                    rule.at.line,
                ),
                action: "allow",
                matched: peers && ports,
                why: network_why(question, rule, peers, ports),
            }
        })
        .collect()
}

fn network_why(question: &Question<'_>, rule: &net::Rule, peers: bool, ports: bool) -> String {
    let port_text = || {
        let destination = &question.access.destination;
        format!(
            "{} {} is not in {}",
            protocol(destination.protocol),
            destination.port,
            ports_of(rule)
        )
    };
    match (peers, ports) {
        (true, true) => "it matches".into(),
        (true, false) => format!("matched all but the port: {}", port_text()),
        (false, true) => format!(
            "matched all but the peer: {} is not selected",
            other_end(question)
        ),
        (false, false) => {
            format!("neither the peer nor the port matches: {}", port_text())
        }
    }
}

/// The network rule that came nearest.
fn network_miss(question: &Question<'_>) -> String {
    let rules: Vec<Considered> = isolating(question)
        .iter()
        .flat_map(|(_, places)| places.iter())
        .filter_map(|&place| question.compiled.network.get(place))
        .flat_map(|policy| network_rules(question, policy))
        .collect();
    let nearest = rules
        .iter()
        .filter(|one| one.origin.rule.is_some())
        .min_by_key(|one| !one.why.starts_with("matched all but"));
    match (nearest, rules.first()) {
        (Some(nearest), _) => {
            let rule = nearest.origin.rule.unwrap_or_default();
            format!("rule {rule} of {} {}", nearest.origin.policy, nearest.why)
        }
        (None, Some(first)) => {
            format!(
                "{} isolates this end and no rule allows anything",
                first.origin.policy
            )
        }
        (None, None) => "no NetworkPolicy rule allows it".into(),
    }
}

fn authorization_rules(question: &Question<'_>, policy: &AuthorizationPolicy) -> Vec<Considered> {
    let action = match (policy.dry_run, policy.action) {
        (true, _) => "dry run",
        (false, Action::Allow) => "allow",
        (false, Action::Deny) => "deny",
        (false, Action::Audit) => "audit",
        (false, Action::Custom) => "custom",
    };
    let kind = PolicyKind::AuthorizationPolicy;
    if policy.rules.is_empty() {
        let origin = origin(kind, &policy.meta, None, policy.meta.at.line);
        let why = "it has no rules: it allows nothing".into();
        return vec![Considered {
            origin,
            action,
            matched: false,
            why,
        }];
    }
    (0..)
        .zip(&policy.rules)
        .map(|(place, rule)| {
            let matched = authorization::rule_matches(question, policy.action, rule);
            let why = if matched {
                "it matches".into()
            } else {
                rule_miss(question, policy.action, rule).1
            };
            Considered {
                origin: origin(kind, &policy.meta, Some(place), rule.at.line),
                action,
                matched,
                why,
            }
        })
        .collect()
}

/// The ALLOW rule that came nearest.
fn authorization_miss(question: &Question<'_>) -> String {
    let Some(own) = question.destination() else {
        return "the destination is no Workload".into();
    };
    let nearest = authorization::policies(question, &own.allow)
        .flat_map(|policy| (0..).zip(&policy.rules).map(move |rule| (policy, rule)))
        .map(|(policy, (place, rule))| {
            let (misses, why) = rule_miss(question, policy.action, rule);
            (misses, policy, place, why)
        })
        .min_by_key(|(misses, ..)| *misses);
    match nearest {
        Some((_, policy, place, why)) => {
            let place: u32 = place;
            format!("rule {place} of {} {why}", policy.meta.full_name)
        }
        None => "the ALLOW policies have no rules: they allow nothing".into(),
    }
}

/// How many fields a rule missed, and the first of them in words.
fn rule_miss(question: &Question<'_>, action: Action, rule: &Rule) -> (usize, String) {
    if authorization::is_dropped(question, action, rule) {
        return (usize::MAX, "names HTTP, and this is not HTTP".into());
    }
    let least = |list: &'_ [Vec<FieldMatch>]| -> Vec<FieldMatch> {
        list.iter()
            .map(|fields| authorization::misses(question, action, fields))
            .min_by_key(Vec::len)
            .unwrap_or_default()
            .into_iter()
            .cloned()
            .collect()
    };
    let mut missed = least(&rule.from);
    missed.extend(least(&rule.to));
    missed.extend(
        authorization::misses(question, action, &rule.when)
            .into_iter()
            .cloned(),
    );
    let Some(first) = missed.first() else {
        return (0, "matches".into());
    };
    let text = field_miss(question, first);
    let why = match missed.len() {
        1 => format!("matched all but the {text}"),
        more => format!("missed {more} fields, the first is the {text}"),
    };
    (missed.len(), why)
}

fn field_miss(question: &Question<'_>, field: &FieldMatch) -> String {
    let noun = field.field.noun();
    let patterns: Vec<String> = field
        .patterns
        .iter()
        .take(SHOWN)
        .map(|pattern| format!("`{}`", cut(&pattern.to_string())))
        .collect();
    let more = if field.patterns.len() > SHOWN {
        ", …"
    } else {
        ""
    };
    let list = format!("{}{more}", patterns.join(", "));
    let value = authorization::shown(question, &field.field);
    match (value, field.negated) {
        (Some(value), false) => format!("{noun}: `{}` is not in {list}", cut(&value)),
        (Some(value), true) => format!("{noun}: `{}` is in {list}, which is excluded", cut(&value)),
        (None, _) => format!("{noun}: there is none, and {list} is asked for"),
    }
}

/// Values come from a peer: long ones are cut, control characters are shown, not sent on.
fn cut(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARS)
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

fn other_end(question: &Question<'_>) -> String {
    let access = question.access;
    match (
        access.direction,
        access.source.peer,
        access.destination.workload,
    ) {
        (Direction::Inbound, Peer::Verified(id), _) => format!("`{id}`"),
        (Direction::Inbound, Peer::Plaintext, _) => match access.source.ip {
            Some(ip) => format!("`{ip}`, without an identity,"),
            None => "a peer without an identity".into(),
        },
        (Direction::Outbound, _, Some(name)) => format!("`{name}`"),
        (Direction::Outbound, _, None) => match access.destination.ip {
            Some(ip) => format!("`{ip}`"),
            None => "the destination".into(),
        },
    }
}

fn ports_of(rule: &net::Rule) -> String {
    let shown: Vec<String> = rule
        .ports
        .iter()
        .take(SHOWN)
        .map(|port| match &port.number {
            net::PortNumber::Any => protocol(port.protocol).to_owned(),
            net::PortNumber::Range(first, last) if first == last => {
                format!("{} {first}", protocol(port.protocol))
            }
            net::PortNumber::Range(first, last) => {
                format!("{} {first}-{last}", protocol(port.protocol))
            }
            net::PortNumber::Named(name) => format!("{} {name}", protocol(port.protocol)),
        })
        .collect();
    shown.join(", ")
}

fn protocol(protocol: crate::decide::Protocol) -> &'static str {
    match protocol {
        crate::decide::Protocol::Tcp => "TCP",
        crate::decide::Protocol::Udp => "UDP",
        crate::decide::Protocol::Sctp => "SCTP",
    }
}

/// How much of a list, and of a value, is shown.
const SHOWN: usize = 8;
const SHOWN_CHARS: usize = 200;
