//! RequestAuthentication: is the request's token one that is accepted here? And what a token says.
//!
//! An absent token is nobody's business: to demand one is an AuthorizationPolicy's. A token that no
//! rule accepts is refused, because it claims something. Without a RequestAuthentication a token
//! has no meaning at all. The signature and the times were checked by whoever asks.

use serde_json::{Map, Value};

use super::{DecidedBy, Decision, PolicyKind, Question, Stage, Verdict};
use crate::{
    compile::{Compiled, Entry, origin},
    model::{
        pattern::{Pattern, RequestPrincipal},
        request_authentication::{JwtRule, RequestAuthentication},
    },
};

/// A JSON Web Token whose signature and times were checked.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// Who issued it.
    pub issuer: &'a str,
    /// Its claims.
    pub claims: &'a Map<String, Value>,
    /// The rules whose keys and places it passed, by their places in
    /// [`PolicySet::token_rules`](crate::PolicySet::token_rules); `None` for all of them, as in a
    /// what-if.
    pub verified_by: Option<&'a [usize]>,
}

/// A token that a rule accepts, and the claims that the rule splits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accepted<'a> {
    token: Token<'a>,
    space_delimited: &'a [String],
}

/// The refusal of a token that nobody accepts.
pub(crate) fn refused(question: &Question<'_>) -> Option<Decision> {
    let token = token(question)?;
    let mut wrong_audience = None;
    let mut asked = false;
    for (policy, place, rule) in rules(question) {
        asked = true;
        if !issuer_matches(rule, token) {
            continue;
        }
        if audience_matches(rule, token) {
            return None;
        }
        wrong_audience.get_or_insert_with(|| {
            origin(
                PolicyKind::RequestAuthentication,
                &policy.meta,
                Some(place),
                rule.at.line,
            )
        });
    }
    asked.then_some(Decision {
        verdict: Verdict::Deny,
        stage: Stage::RequestAuthentication,
        decided_by: match wrong_audience {
            Some(origin) => DecidedBy::Rule(origin),
            None => DecidedBy::NoMatch(PolicyKind::RequestAuthentication),
        },
    })
}

/// The token, if a rule accepts it.
pub(crate) fn accepted<'a>(question: &Question<'a>) -> Option<Accepted<'a>> {
    Some(Accepted {
        token: token(question)?,
        space_delimited: &accepting(question)?.1.space_delimited,
    })
}

/// The first rule that accepts the token, and its place among all of the workload.
pub(crate) fn accepting<'a>(question: &Question<'a>) -> Option<(usize, &'a JwtRule)> {
    let token = token(question)?;
    numbered(question)
        .map(|(number, (_, _, rule))| (number, rule))
        .find(|(_, rule)| issuer_matches(rule, token) && audience_matches(rule, token))
}

/// Of HTTP alone: opaque TCP carries no token.
fn token<'a>(question: &Question<'a>) -> Option<Token<'a>> {
    question.access.http.and(question.access.token)
}

/// A rule, its policy, and its place there.
type Placed<'a> = (&'a RequestAuthentication, u32, &'a JwtRule);

/// The rules that the token may be accepted by.
pub(crate) fn rules<'a>(question: &Question<'a>) -> impl Iterator<Item = Placed<'a>> + use<'a> {
    numbered(question).map(|(_, rule)| rule)
}

fn numbered<'a>(question: &Question<'a>) -> impl Iterator<Item = (usize, Placed<'a>)> + use<'a> {
    let verified_by = question.access.token.and_then(|token| token.verified_by);
    rules_of(question.compiled, question.destination())
        .enumerate()
        .filter(move |(place, _)| verified_by.is_none_or(|these| these.contains(place)))
}

/// The rules of all policies that concern a Workload, in one order.
pub(crate) fn rules_of<'a>(
    compiled: &'a Compiled,
    destination: Option<&'a Entry>,
) -> impl Iterator<Item = Placed<'a>> + use<'a> {
    let places = destination
        .map(|own| own.requests.as_slice())
        .unwrap_or_default();
    places
        .iter()
        .filter_map(move |&place| compiled.requests.get(place))
        .flat_map(|policy| {
            (0..)
                .zip(&policy.rules)
                .map(move |(place, rule)| (policy, place, rule))
        })
}

/// Is the token of the rule's issuer?
pub(crate) fn issuer_matches(rule: &JwtRule, token: Token<'_>) -> bool {
    rule.issuer
        .as_ref()
        .is_none_or(|issuer| issuer == token.issuer)
}

/// Is the token meant for one of the rule's audiences?
pub(crate) fn audience_matches(rule: &JwtRule, token: Token<'_>) -> bool {
    rule.audiences.is_empty()
        || texts(token.claims.get("aud"))
            .any(|audience| rule.audiences.iter().any(|wanted| wanted == audience))
}

impl<'a> Accepted<'a> {
    /// A token of which it is asked what would be, if it were accepted.
    pub(crate) fn assumed(token: Token<'a>, space_delimited: &'a [String]) -> Self {
        Self {
            token,
            space_delimited,
        }
    }

    /// `iss/sub`, where both are there and neither is empty.
    pub(crate) fn principal(&self) -> Option<(&'a str, &'a str)> {
        let subject = self.token.claims.get("sub").and_then(Value::as_str)?;
        let issuer = self.token.issuer;
        (!issuer.is_empty() && !subject.is_empty()).then_some((issuer, subject))
    }

    pub(crate) fn principal_matches(&self, wanted: &RequestPrincipal) -> bool {
        self.principal()
            .is_some_and(|(issuer, subject)| wanted.matches(issuer, subject))
    }

    /// Does a text of the claim match? Lists match by any of their texts; numbers, booleans and
    /// objects never do.
    pub(crate) fn claim_matches(&self, path: &[String], patterns: &[Pattern]) -> bool {
        let matches = |text: &str| {
            patterns
                .iter()
                .any(|pattern| pattern.matches_text(text.as_bytes()))
        };
        let value = self.claim(path);
        if self.is_split(path) {
            texts(value)
                .flat_map(|text| text.split(' '))
                .filter(|word| !word.is_empty())
                .any(matches)
        } else {
            texts(value).any(matches)
        }
    }

    pub(crate) fn claim(&self, path: &[String]) -> Option<&'a Value> {
        let (first, rest) = path.split_first()?;
        rest.iter()
            .try_fold(self.token.claims.get(first)?, |value, key| value.get(key))
    }

    fn is_split(&self, path: &[String]) -> bool {
        let [name] = path else { return false };
        ALWAYS_SPLIT.contains(&name.as_str()) || self.space_delimited.contains(name)
    }
}

/// The texts of a value: itself, or the texts among its items.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let items = match value {
        Some(Value::Array(items)) => items.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    items.iter().filter_map(Value::as_str)
}

/// Claims that are lists of words (RFC 8693 section 4.2, and what Istio adds).
pub(crate) const ALWAYS_SPLIT: [&str; 2] = ["scope", "permission"];
