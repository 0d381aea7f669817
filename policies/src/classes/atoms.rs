//! The values of each dimension that the tests of a destination can tell apart: at least one for
//! each way in which all of them can turn out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use postern_spiffe::SpiffeId;
use serde_json::Value as Json;

use super::{
    Asked, TooMany,
    example::{Example, TokenExample},
    terms::{Dimension, Terms, Test},
    texts::{Class, Domain, Element, Shape, chars, shape, witnesses},
};
use crate::{
    decide::Protocol,
    model::{
        authorization_policy::Field,
        network_policy::{Peer, Port, PortNumber},
        pattern::Pattern,
    },
    normalize::PathNormalization,
};

/// A value of a dimension.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Ip(Option<IpAddr>),
    Port(u16, Protocol),
    Text(Option<String>),
    /// Issuer, and subject if there is one.
    Token(Option<(String, Option<String>)>),
    Claim(Option<Json>),
}

impl Value {
    /// Gives the example this value; `false` where it cannot have it beside those that it has.
    pub(super) fn put(&self, dimension: &Dimension, example: &mut Example) -> bool {
        match (dimension, self) {
            (Dimension::SourceIp, Self::Ip(ip)) => example.ip = *ip,
            (Dimension::DestinationIp, Self::Ip(ip)) => example.destination_ip = *ip,
            (Dimension::Port, Self::Port(port, protocol)) => {
                (example.port, example.protocol) = (*port, *protocol);
            }
            (Dimension::ServerName, Self::Text(text)) => example.server_name.clone_from(text),
            (Dimension::Principal, Self::Token(token)) => {
                example.token = token.as_ref().map(|(issuer, subject)| {
                    let mut claims = serde_json::Map::new();
                    let issued = Some(issuer).filter(|issuer| !issuer.is_empty());
                    for (name, text) in [("iss", issued), ("sub", subject.as_ref())] {
                        if let Some(text) = text {
                            claims.insert(name.into(), text.clone().into());
                        }
                    }
                    TokenExample {
                        issuer: issuer.clone(),
                        claims,
                    }
                });
            }
            (Dimension::Claim(_), Self::Claim(None)) => {}
            (Dimension::Claim(path), Self::Claim(Some(value))) => {
                return example
                    .token
                    .as_mut()
                    .is_some_and(|token| put_claim(&mut token.claims, path, value));
            }
            (_, Self::Text(Some(text))) => {
                let Some(http) = &mut example.http else {
                    return false;
                };
                match dimension {
                    Dimension::Method => http.method.clone_from(text),
                    Dimension::Path => http.path.clone_from(text),
                    Dimension::Host => http.host.clone_from(text),
                    Dimension::Header(name) => {
                        http.headers.insert(name.clone(), text.clone());
                    }
                    _ => return false,
                }
            }
            (Dimension::Header(_), Self::Text(None)) => {}
            _ => return false,
        }
        true
    }
}

fn put_claim(claims: &mut serde_json::Map<String, Json>, path: &[String], value: &Json) -> bool {
    match path {
        [] => false,
        [name] => claims.insert(name.clone(), value.clone()).is_none(),
        [name, rest @ ..] => {
            let inner = claims
                .entry(name.clone())
                .or_insert_with(|| Json::Object(serde_json::Map::new()));
            inner
                .as_object_mut()
                .is_some_and(|inner| put_claim(inner, rest, value))
        }
    }
}

/// The tests of a dimension.
fn tests<'t, 'a>(
    terms: &'t Terms<'a>,
    dimension: &'t Dimension,
) -> impl Iterator<Item = Test<'a>> + use<'t, 'a> {
    let all = terms.all.iter().flat_map(|term| &term.tests);
    all.filter(move |(of, _)| of == dimension)
        .map(|(_, test)| *test)
}

/// The fields of a dimension, each with its patterns.
fn patterns<'a>(terms: &Terms<'a>, dimension: &Dimension) -> Vec<(&'a Field, &'a Pattern)> {
    let mut all = Vec::new();
    for test in tests(terms, dimension) {
        if let Test::Field(_, one) = test {
            all.extend(one.patterns.iter().map(|pattern| (&one.field, pattern)));
        }
    }
    all
}

/// Patterns of texts: those that are whole texts, and the shapes of the others.
#[derive(Default)]
struct Texts {
    exact: BTreeSet<String>,
    shapes: Vec<Shape>,
}

impl Texts {
    fn learn(&mut self, pattern: &Pattern) {
        match pattern {
            Pattern::Exact(text) => {
                self.exact.insert(text.clone());
            }
            other => self.add(shape(other, Class::Any)),
        }
    }

    fn add(&mut self, shape: Option<Shape>) {
        if let Some(shape) = shape
            && !self.shapes.contains(&shape)
        {
            self.shapes.push(shape);
        }
    }

    fn witnesses(&self, domain: Domain) -> Result<Vec<String>, TooMany> {
        witnesses(domain, &self.exact, &self.shapes)
    }
}

/// Identities that nobody of `known` has, one for each way in which the tests can turn out.
pub(super) fn strangers(
    terms: &Terms<'_>,
    known: &BTreeSet<&SpiffeId>,
) -> Result<Vec<SpiffeId>, TooMany> {
    let mut texts = Texts::default();
    for (field, pattern) in patterns(terms, &Dimension::Caller) {
        match (field, pattern) {
            (Field::Principal, pattern) => texts.learn(pattern),
            (Field::TrustDomain, pattern) => {
                texts.add(shape(pattern, Class::NotSlash).map(|mut name| {
                    name.extend([Element::Char('/'), Element::Many(Class::Any)]);
                    name
                }));
            }
            (Field::Namespace, pattern) => {
                let within = |behind: &[Element]| {
                    let begin = [Element::Many(Class::Any), Element::NamespaceBegins];
                    let name = shape(pattern, Class::NotSlash)?;
                    Some([&begin, name.as_slice(), behind].concat())
                };
                texts.add(within(&[]));
                texts.add(within(&[Element::Char('/'), Element::Many(Class::Any)]));
            }
            (Field::ServiceAccount, Pattern::ServiceAccount(namespace, name)) => {
                let path = format!("/ns/{namespace}/sa/{name}");
                let begin = std::iter::once(Element::Many(Class::NotSlash));
                texts.add(Some(begin.chain(chars(&path)).collect()));
            }
            _ => {}
        }
    }
    let known: BTreeSet<&str> = known.iter().map(|id| id.principal()).collect();
    loop {
        let found = texts.witnesses(Domain::Identity)?;
        // Somebody who is known stands for nobody else: once more, with that name taken.
        let taken: Vec<&String> = found
            .iter()
            .filter(|text| known.contains(text.as_str()) && !texts.exact.contains(*text))
            .collect();
        if taken.is_empty() {
            let others = found.iter().filter(|text| !known.contains(text.as_str()));
            let ids = others.filter_map(|text| SpiffeId::parse(&format!("spiffe://{text}")).ok());
            return Ok(ids.collect());
        }
        let taken: Vec<String> = taken.into_iter().cloned().collect();
        texts.exact.extend(taken);
    }
}

/// The values of a dimension, the plainest first.
pub(super) fn values(
    terms: &Terms<'_>,
    dimension: &Dimension,
    asked: &Asked,
    how: PathNormalization,
) -> Result<Vec<Value>, TooMany> {
    let some = |text: &String| Value::Text(Some(text.clone()));
    Ok(match dimension {
        Dimension::Caller => Vec::new(),
        Dimension::SourceIp | Dimension::DestinationIp => addresses(terms, dimension),
        Dimension::Port => ports(terms, asked),
        Dimension::ServerName => optional(terms, dimension, Domain::ServerName)?,
        Dimension::Header(_) => optional(terms, dimension, Domain::Header)?,
        Dimension::Method => match &asked.method {
            Some(method) => vec![some(method)],
            None => present(terms, dimension, Domain::Method, "GET")?,
        },
        Dimension::Path => match &asked.path {
            Some(path) => vec![some(path)],
            None => present(terms, dimension, Domain::Path(how), "/other")?,
        },
        Dimension::Host => match &asked.host {
            Some(host) => vec![some(host)],
            None => present(terms, dimension, Domain::Host, "other.invalid")?,
        },
        Dimension::Principal => tokens(terms)?,
        Dimension::Claim(path) => claims(terms, dimension, path)?,
    })
}

fn of_texts(
    terms: &Terms<'_>,
    dimension: &Dimension,
    domain: Domain,
) -> Result<Vec<String>, TooMany> {
    let mut texts = Texts::default();
    for (_, pattern) in patterns(terms, dimension) {
        texts.learn(pattern);
    }
    texts.witnesses(domain)
}

fn optional(
    terms: &Terms<'_>,
    dimension: &Dimension,
    domain: Domain,
) -> Result<Vec<Value>, TooMany> {
    let texts = of_texts(terms, dimension, domain)?.into_iter().map(Some);
    Ok(std::iter::once(None)
        .chain(texts)
        .map(Value::Text)
        .collect())
}

fn present(
    terms: &Terms<'_>,
    dimension: &Dimension,
    domain: Domain,
    plain: &str,
) -> Result<Vec<Value>, TooMany> {
    let texts = of_texts(terms, dimension, domain)?.into_iter();
    let all = std::iter::once(plain.to_owned()).chain(texts);
    Ok(all.map(|text| Value::Text(Some(text))).collect())
}

/// One of each range between two addresses at which something begins or ends.
fn addresses(terms: &Terms<'_>, dimension: &Dimension) -> Vec<Value> {
    let mut all: Vec<IpNet> = Vec::new();
    for test in tests(terms, dimension) {
        match test {
            Test::Field(_, one) => all.extend(one.patterns.iter().filter_map(|one| match one {
                Pattern::Net(net) => Some(*net),
                _ => None,
            })),
            Test::Peer(_, peer) => all.extend(nets(peer)),
            _ => {}
        }
    }
    address_begins(all).into_iter().map(Value::Ip).collect()
}

/// The ranges of a peer.
pub(super) fn nets(peer: &Peer) -> Vec<IpNet> {
    match peer {
        Peer::Block { net, except } => std::iter::once(net).chain(except).copied().collect(),
        Peer::Pods { .. } => Vec::new(),
    }
}

/// Addresses at which a range begins, or the rest behind it; none at all where there are no ranges.
pub(super) fn address_begins(nets: Vec<IpNet>) -> Vec<Option<IpAddr>> {
    if nets.is_empty() {
        return vec![None];
    }
    let mut all = vec![
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    for net in nets {
        all.push(net.network());
        all.extend(match net.broadcast() {
            IpAddr::V4(last) => u32::from(last)
                .checked_add(1)
                .map(|next| IpAddr::V4(next.into())),
            IpAddr::V6(last) => u128::from(last)
                .checked_add(1)
                .map(|next| IpAddr::V6(next.into())),
        });
    }
    all.into_iter().map(Some).collect()
}

/// One of each range of ports, those that the destination says it serves first.
fn ports(terms: &Terms<'_>, asked: &Asked) -> Vec<Value> {
    if let Some((port, protocol)) = asked.port {
        return vec![Value::Port(port, protocol)];
    }
    let mut begins = BTreeSet::from([1]);
    let mut learn = |first: u16, last: u16| {
        begins.insert(first);
        begins.extend(last.checked_add(1));
    };
    let mut served = Vec::new();
    for term in &terms.all {
        for port in &term.site.entry.workload.ports {
            served.push(port.port);
            learn(port.port, port.port);
        }
        for port in term.site.entry.mtls.ports() {
            learn(port, port);
        }
    }
    for test in tests(terms, &Dimension::Port) {
        match test {
            Test::Field(_, one) => {
                for pattern in &one.patterns {
                    if let Pattern::Port(port) = pattern {
                        learn(*port, *port);
                    }
                }
            }
            Test::Port(port) => {
                if let PortNumber::Range(first, last) = port.number {
                    learn(first, last);
                }
            }
            _ => {}
        }
    }
    let protocols: &[Protocol] = match asked.http {
        true => &[Protocol::Tcp],
        false => &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
    };
    let each = served.into_iter().chain(begins);
    each.flat_map(|port| {
        protocols
            .iter()
            .map(move |protocol| Value::Port(port, *protocol))
    })
    .collect()
}

/// Ports at which a range begins, or the rest behind it.
pub(super) fn port_begins<'p>(ports: impl Iterator<Item = &'p Port>) -> BTreeSet<u16> {
    let mut begins = BTreeSet::from([1]);
    for port in ports {
        if let PortNumber::Range(first, last) = port.number {
            begins.insert(first);
            begins.extend(last.checked_add(1));
        }
    }
    begins
}

/// No token, and each issuer with each subject and without.
fn tokens(terms: &Terms<'_>) -> Result<Vec<Value>, TooMany> {
    if !terms.has_tokens {
        return Ok(vec![Value::Token(None)]);
    }
    let (mut issuers, mut subjects) = (Texts::default(), Texts::default());
    for test in tests(terms, &Dimension::Principal) {
        if let Test::Issuer(rule) = test {
            issuers.exact.extend(rule.issuer.clone());
        }
    }
    for (field, pattern) in patterns(terms, &Dimension::Principal) {
        match (field, pattern) {
            (Field::RequestPrincipal, Pattern::RequestPrincipal(both)) => {
                let (issuer, subject) = both.parts();
                issuer
                    .into_iter()
                    .for_each(|pattern| issuers.learn(pattern));
                subject
                    .into_iter()
                    .for_each(|pattern| subjects.learn(pattern));
            }
            (Field::Claim(path), pattern) => match path.first().map(String::as_str) {
                Some("iss") => issuers.learn(pattern),
                _ => subjects.learn(pattern),
            },
            _ => {}
        }
    }
    let subjects = subjects.witnesses(Domain::Text)?.into_iter().map(Some);
    let subjects: Vec<Option<String>> = std::iter::once(None).chain(subjects).collect();
    let mut all = vec![Value::Token(None)];
    for issuer in issuers.witnesses(Domain::Text)? {
        let each = subjects.iter();
        all.extend(each.map(|subject| Value::Token(Some((issuer.clone(), subject.clone())))));
    }
    Ok(all)
}

/// No claim, a text, and lists of texts that match together what none matches alone.
fn claims(
    terms: &Terms<'_>,
    dimension: &Dimension,
    path: &[String],
) -> Result<Vec<Value>, TooMany> {
    let mut texts = Texts::default();
    for test in tests(terms, dimension) {
        match test {
            Test::Audience(rule) => texts.exact.extend(rule.audiences.iter().cloned()),
            Test::Field(_, one) => one.patterns.iter().for_each(|one| texts.learn(one)),
            _ => {}
        }
    }
    let is_split = matches!(path, [name] if terms.split.contains(name));
    let domain = if is_split { Domain::Word } else { Domain::Text };
    // Of a list, each test looks for any text that matches.
    let matched = |text: &str| -> Vec<bool> {
        tests(terms, dimension)
            .map(|test| match test {
                Test::Audience(rule) => rule.audiences.iter().any(|one| one == text),
                Test::Field(_, one) => one
                    .patterns
                    .iter()
                    .any(|one| one.matches_text(text.as_bytes())),
                _ => false,
            })
            .collect()
    };
    let mut lists: BTreeMap<Vec<bool>, Vec<String>> = BTreeMap::new();
    for text in texts.witnesses(domain)? {
        lists.entry(matched(&text)).or_insert_with(|| vec![text]);
    }
    let single: Vec<(Vec<bool>, Vec<String>)> = lists.clone().into_iter().collect();
    let mut new = single.clone();
    while let Some((signature, list)) = new.pop() {
        for (other, text) in &single {
            let both: Vec<bool> = signature.iter().zip(other).map(|(a, b)| a | b).collect();
            if !lists.contains_key(&both) {
                if lists.len() == MAX_LISTS {
                    return Err(TooMany);
                }
                let list: Vec<String> = list.iter().chain(text).cloned().collect();
                lists.insert(both.clone(), list.clone());
                new.push((both, list));
            }
        }
    }
    let mut lists: Vec<Vec<String>> = lists.into_values().collect();
    lists.sort_by_key(Vec::len);
    let values = lists.into_iter().map(|mut list| match list.len() {
        1 => Json::String(list.remove(0)),
        _ => Json::from(list),
    });
    let all = std::iter::once(None).chain(values.map(Some));
    Ok(all.map(Value::Claim).collect())
}

/// So many lists of one claim are no question that a person asks.
const MAX_LISTS: usize = 4096;
