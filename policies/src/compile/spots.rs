//! The rules of one action at one Workload, found by who asks.
//!
//! Most rules name their callers whole. Those are looked up; only the others are walked over, so a
//! decision does not grow with the number of callers that policies name.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::model::{
    authorization_policy::{AuthorizationPolicy, Field, FieldMatch, Rule},
    pattern::Pattern,
};

/// A rule, by the place of its policy among all and its own in the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    pub(crate) policy: u32,
    pub(crate) rule: u32,
}

/// Rules in the order of their policies.
#[derive(Debug, Default)]
pub(crate) struct Spots {
    /// Rules that nobody matches but the principals that they name, by the hash of each; sorted.
    named: Vec<(u64, Spot)>,
    /// All others, sorted.
    others: Vec<Spot>,
}

impl Spots {
    /// Of the policies at these places.
    pub(crate) fn of(all: &[AuthorizationPolicy], places: &[usize]) -> Self {
        let mut spots = Self::default();
        for &place in places {
            let rules = all.get(place).map_or(&[][..], |policy| &policy.rules);
            for (number, rule) in rules.iter().enumerate() {
                let (Ok(policy), Ok(number)) = (u32::try_from(place), u32::try_from(number)) else {
                    continue;
                };
                let spot = Spot {
                    policy,
                    rule: number,
                };
                match callers(rule) {
                    Some(names) => spots
                        .named
                        .extend(names.into_iter().map(|name| (hash(name), spot))),
                    None => spots.others.push(spot),
                }
            }
        }
        spots.named.sort_unstable();
        spots.named.dedup();
        spots
    }

    /// Every rule that this principal may match, in order; some of them it does not.
    pub(crate) fn candidates(&self, principal: Option<&str>) -> impl Iterator<Item = Spot> + '_ {
        let wanted = principal
            .filter(|_| !self.named.is_empty())
            .map(hash)
            .unwrap_or_default();
        let first = match principal {
            Some(_) => self.named.partition_point(|(other, _)| *other < wanted),
            None => self.named.len(),
        };
        let named = self.named.get(first..).unwrap_or_default().iter();
        let mut named = named
            .take_while(move |(other, _)| *other == wanted)
            .map(|(_, spot)| *spot)
            .peekable();
        let mut others = self.others.iter().copied().peekable();
        std::iter::from_fn(move || match (named.peek(), others.peek()) {
            (Some(a), Some(b)) if b < a => others.next(),
            (Some(_), _) => named.next(),
            (None, _) => others.next(),
        })
    }
}

/// The principals that a rule names, if nobody else can match it.
fn callers(rule: &Rule) -> Option<Vec<&str>> {
    if rule.from.is_empty() {
        return None;
    }
    let sources: Option<Vec<Vec<&str>>> = rule.from.iter().map(|one| named(one)).collect();
    Some(sources?.concat())
}

fn named(source: &[FieldMatch]) -> Option<Vec<&str>> {
    let field = source
        .iter()
        .find(|one| one.field == Field::Principal && !one.negated)?;
    let exact = field.patterns.iter().map(|pattern| match pattern {
        Pattern::Exact(text) => Some(text.as_str()),
        _ => None,
    });
    exact.collect()
}

fn hash(principal: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    principal.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
