//! Rules that never matter: no access matches them, or each that does is denied all the same.

use std::collections::BTreeMap;

use super::{Asked, Example, Site, TooMany, all_of};
use crate::{
    compile::origin,
    decide::{PolicyKind, Question, RuleOrigin, authorization},
    model::authorization_policy::{Action, AuthorizationPolicy},
    set::PolicySet,
};

/// A rule of an AuthorizationPolicy that never matters to any Workload that its policy selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadRule {
    /// Which.
    pub rule: RuleOrigin,
    /// Why.
    pub why: Why,
}

/// Why a rule never matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Its fields exclude each other.
    Never,
    /// Whatever it allows, this one denies, or others together with it.
    Denied(RuleOrigin),
}

/// What is known of a rule.
#[derive(Debug, Default)]
struct Seen {
    matters: bool,
    denied: Option<RuleOrigin>,
}

/// Rules that never matter, in the order of their policies. Asks everything that the policies can
/// tell apart; for `check`, not for a proxy that loads them.
///
/// # Errors
/// [`TooMany`], also where there are more Workloads, or more rules at one, than anybody wants to wait
/// for.
pub fn dead_rules(set: &PolicySet) -> Result<Vec<DeadRule>, TooMany> {
    let mut seen: BTreeMap<(usize, usize), Seen> = BTreeMap::new();
    if set.workloads().count() > MAX_WORKLOADS {
        return Err(TooMany);
    }
    let mut compiled = None;
    for workload in set.workloads() {
        let Some(site) = set.site(&workload.name) else {
            continue;
        };
        compiled = Some(site.compiled);
        let lists = [&site.entry.custom, &site.entry.deny, &site.entry.allow];
        let places: Vec<usize> = lists.into_iter().flatten().copied().collect();
        if places.is_empty() {
            continue;
        }
        let rules = |place: &usize| policy(site, *place).map_or(0, |policy| policy.rules.len());
        if places.iter().map(rules).sum::<usize>() > MAX_RULES {
            return Err(TooMany);
        }
        for http in [true, false] {
            let asked = Asked {
                http,
                ..Asked::default()
            };
            for group in all_of(&[set], &workload.name, &asked, true)? {
                for example in &group.examples {
                    look(site, &places, example, &mut seen);
                }
            }
        }
    }
    let dead = seen.into_iter().filter(|(_, seen)| !seen.matters);
    let named = dead.filter_map(|((place, rule), seen)| {
        Some(DeadRule {
            rule: named(compiled?.authorization.get(place)?, rule)?,
            why: seen.denied.map_or(Why::Never, Why::Denied),
        })
    });
    Ok(named.collect())
}

fn policy<'a>(site: Site<'a>, place: usize) -> Option<&'a AuthorizationPolicy> {
    site.compiled.authorization.get(place)
}

fn named(policy: &AuthorizationPolicy, rule: usize) -> Option<RuleOrigin> {
    let line = policy.rules.get(rule)?.at.line;
    let kind = PolicyKind::AuthorizationPolicy;
    let number = u32::try_from(rule).ok();
    Some(origin(kind, &policy.meta, number, line))
}

fn look(
    site: Site<'_>,
    places: &[usize],
    example: &Example,
    seen: &mut BTreeMap<(usize, usize), Seen>,
) {
    example.with(|access| {
        let question = Question {
            compiled: site.compiled,
            defaults: site.defaults,
            access,
        };
        let mut denied: Option<RuleOrigin> = None;
        for &place in places {
            let Some(policy) = policy(site, place) else {
                continue;
            };
            for (number, rule) in policy.rules.iter().enumerate() {
                let known = seen.entry((place, number)).or_default();
                if !authorization::rule_matches(&question, policy.action, rule) {
                    continue;
                }
                match (policy.action, &denied) {
                    (Action::Allow, Some(by)) => {
                        known.denied.get_or_insert_with(|| by.clone());
                    }
                    (Action::Allow, None) => known.matters = true,
                    _ => {
                        known.matters = true;
                        denied = denied.take().or_else(|| named(policy, number));
                    }
                }
            }
        }
    });
}

/// Each is asked about all others.
const MAX_WORKLOADS: usize = 1000;

/// More rules than that at one Workload are many to ask about together.
const MAX_RULES: usize = 200;
