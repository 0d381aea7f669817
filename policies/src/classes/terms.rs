//! What the policies of a destination compare, taken apart: rules into terms, terms into tests, each
//! test of one dimension of an access.

use crate::{
    compile::{Compiled, Entry, MtlsMode},
    decide::{
        Question, authorization, network,
        token::{self, Accepted},
    },
    model::{
        authorization_policy::{Action, Field, FieldMatch, Rule},
        network_policy::{NetworkPolicy, Peer, Port},
        pattern::Pattern,
        request_authentication::JwtRule,
        workload::WorkloadName,
    },
    set::Defaults,
};

use super::example::Example;

/// One thing that an access has, independent of all others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Dimension {
    Caller,
    SourceIp,
    DestinationIp,
    Port,
    ServerName,
    Method,
    Path,
    Host,
    Header(String),
    /// Is there a token, whose, and of whom?
    Principal,
    /// A claim of the token.
    Claim(Vec<String>),
}

impl Dimension {
    pub(super) fn of(field: &Field) -> Self {
        match field {
            Field::Principal | Field::Namespace | Field::ServiceAccount | Field::TrustDomain => {
                Self::Caller
            }
            Field::SourceIp | Field::RemoteIp => Self::SourceIp,
            Field::DestinationIp => Self::DestinationIp,
            Field::DestinationPort => Self::Port,
            Field::ServerName => Self::ServerName,
            Field::Host => Self::Host,
            Field::Method => Self::Method,
            Field::Path => Self::Path,
            Field::Header(name) => Self::Header(name.clone()),
            Field::RequestPrincipal => Self::Principal,
            Field::Claim(path) if matches!(path.as_slice(), [one] if one == "iss" || one == "sub") => {
                Self::Principal
            }
            Field::Claim(path) => Self::Claim(path.clone()),
        }
    }
}

/// A comparison in one dimension.
#[derive(Debug, Clone, Copy)]
pub(super) enum Test<'a> {
    Field(Action, &'a FieldMatch),
    /// Of the caller and of the address, each by itself.
    Peer(&'a NetworkPolicy, &'a Peer),
    Port(&'a Port),
    /// Is plaintext refused here?
    Strict,
    Issuer(&'a JwtRule),
    Audience(&'a JwtRule),
}

/// All of its tests must hold.
#[derive(Debug)]
pub(super) struct Term<'a> {
    pub(super) site: Site<'a>,
    pub(super) tests: Vec<(Dimension, Test<'a>)>,
}

/// A group of terms of which one must hold, for each of its groups.
#[derive(Debug, Default)]
pub(super) struct Groups(pub(super) Vec<Vec<usize>>);

/// The destination as one set of policies sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) compiled: &'a Compiled,
    pub(crate) defaults: Defaults,
    pub(crate) entry: &'a Entry,
}

/// All terms of all sets, and how rules are made of them.
#[derive(Debug, Default)]
pub(super) struct Terms<'a> {
    pub(super) all: Vec<Term<'a>>,
    pub(super) rules: Vec<Groups>,
    /// Claims that some rule splits at spaces.
    pub(super) split: Vec<String>,
    pub(super) has_tokens: bool,
}

impl<'a> Site<'a> {
    pub(crate) fn of(
        compiled: &'a Compiled,
        defaults: Defaults,
        destination: &WorkloadName,
    ) -> Option<Self> {
        Some(Self {
            compiled,
            defaults,
            entry: compiled.by_name(destination)?,
        })
    }

    fn tokens(self) -> impl Iterator<Item = &'a JwtRule> {
        token::rules_of(self.compiled, Some(self.entry)).map(|(_, _, rule)| rule)
    }
}

impl<'a> Terms<'a> {
    /// Of one destination; `http`: HTTP is spoken with it.
    pub(super) fn of(sites: &[Site<'a>], http: bool) -> Self {
        let mut terms = Self::default();
        terms.split.extend(token::ALWAYS_SPLIT.map(str::to_owned));
        for &site in sites {
            terms.single(site, (Dimension::Port, Test::Strict));
            terms.network(site);
            if http {
                for rule in site.tokens() {
                    terms.has_tokens = true;
                    terms.split.extend(rule.space_delimited.iter().cloned());
                    let audience = Dimension::Claim(vec!["aud".into()]);
                    terms.single(site, (Dimension::Principal, Test::Issuer(rule)));
                    terms.single(site, (audience, Test::Audience(rule)));
                }
            }
            for places in [&site.entry.custom, &site.entry.deny, &site.entry.allow] {
                for policy in authorization::at(site.compiled, places) {
                    for rule in &policy.rules {
                        terms.authorization(site, policy.action, rule, http);
                    }
                }
            }
        }
        terms
    }

    /// Something that is worth telling apart by itself.
    fn single(&mut self, site: Site<'a>, test: (Dimension, Test<'a>)) {
        let term = self.term(site, vec![test]);
        self.rules.push(Groups(vec![vec![term]]));
    }

    fn term(&mut self, site: Site<'a>, tests: Vec<(Dimension, Test<'a>)>) -> usize {
        self.all.push(Term { site, tests });
        self.all.len() - 1
    }

    fn network(&mut self, site: Site<'a>) {
        let places = site.entry.ingress.iter();
        for policy in places.filter_map(|&place| site.compiled.network.get(place)) {
            for rule in policy.ingress.iter().flatten() {
                let mut groups = Groups::default();
                if !rule.peers.is_empty() {
                    let peers = rule.peers.iter().map(|peer| {
                        let test = Test::Peer(policy, peer);
                        let mut tests = vec![(Dimension::Caller, test)];
                        if matches!(peer, Peer::Block { .. }) {
                            tests.push((Dimension::SourceIp, test));
                        }
                        self.term(site, tests)
                    });
                    groups.0.push(peers.collect());
                }
                if !rule.ports.is_empty() {
                    let ports = rule.ports.iter();
                    let ports = ports
                        .map(|port| self.term(site, vec![(Dimension::Port, Test::Port(port))]));
                    groups.0.push(ports.collect());
                }
                self.rules.push(groups);
            }
        }
    }

    fn authorization(&mut self, site: Site<'a>, action: Action, rule: &'a Rule, http: bool) {
        let is_dropped =
            action == Action::Allow && rule.fields().any(|one| one.field.is_http_only());
        if !http && is_dropped {
            return;
        }
        let takes_tokens = site.tokens().next().is_some();
        let mut groups = Groups::default();
        let conditions = rule.when.chunks(1);
        let lists = [
            rule.from.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            rule.to.iter().map(Vec::as_slice).collect(),
        ];
        let lists = lists.into_iter().filter(|list| !list.is_empty());
        let lists = lists.chain(conditions.map(|one| vec![one]));
        for list in lists {
            let mut group = Vec::new();
            for fields in list {
                let spoken = fields
                    .iter()
                    .filter(|one| http || !one.field.is_http_only());
                // Where no token has a meaning, nothing positive of one holds, and all else does.
                let (of_tokens, others): (Vec<_>, Vec<_>) =
                    spoken.partition(|one| !takes_tokens && is_of_token(&one.field));
                if of_tokens.iter().any(|one| !one.negated) {
                    continue;
                }
                let tests = others.into_iter();
                let tests = tests.map(|one| (Dimension::of(&one.field), Test::Field(action, one)));
                let tests = tests.collect();
                group.push(self.term(site, tests));
            }
            groups.0.push(group);
        }
        self.rules.push(groups);
    }
}

fn is_of_token(field: &Field) -> bool {
    matches!(field, Field::RequestPrincipal | Field::Claim(_))
}

impl Test<'_> {
    /// Does it hold, in its dimension? Other dimensions of the example are not looked at.
    pub(super) fn holds(
        self,
        dimension: &Dimension,
        site: Site<'_>,
        split: &[String],
        example: &Example,
    ) -> bool {
        let token = || {
            let token = example.token()?;
            Some(Accepted::assumed(token, split))
        };
        example.with(|access| {
            let question = Question {
                compiled: site.compiled,
                defaults: site.defaults,
                access,
            };
            match self {
                Self::Field(action, one) => match &one.field {
                    Field::RequestPrincipal => {
                        let any = token().is_some_and(|token| {
                            one.patterns.iter().any(|pattern| {
                                matches!(pattern, Pattern::RequestPrincipal(wanted)
                                    if token.principal_matches(wanted))
                            })
                        });
                        any != one.negated
                    }
                    Field::Claim(path) => {
                        let any =
                            token().is_some_and(|token| token.claim_matches(path, &one.patterns));
                        any != one.negated
                    }
                    _ => authorization::field_matches(&question, action, one),
                },
                // A block takes every stranger by the caller, and every caller by the address.
                Self::Peer(_, Peer::Block { net, except }) => match dimension {
                    Dimension::Caller => network::is_stranger(&question),
                    _ => access.source.ip.is_some_and(|ip| {
                        net.contains(&ip) && !except.iter().any(|inner| inner.contains(&ip))
                    }),
                },
                Self::Peer(policy, peer) => network::is_peer(&question, policy, peer),
                Self::Port(port) => network::port_matches(&question, port),
                Self::Strict => {
                    site.entry.mtls.of_port(access.destination.port).0 == MtlsMode::Strict
                }
                Self::Issuer(rule) => access
                    .token
                    .is_some_and(|token| token::issuer_matches(rule, token)),
                Self::Audience(rule) => access
                    .token
                    .is_some_and(|token| token::audience_matches(rule, token)),
            }
        })
    }
}
