//! Everything that could be asked of a Workload, in as few accesses as decide it all.
//!
//! Policies compare: an address with ranges, a path with patterns, an identity with names. Here their
//! rules are taken apart into terms (`terms`), each dimension of an access gets a value for every
//! way in which all comparisons of the dimension can turn out (`atoms`, `texts`), and the
//! dimensions are put together one by one, where what no rule tells apart any more becomes one. So
//! each class of accesses has one example, and no access is in none: what holds for the examples
//! holds for all.
//!
//! Two things are left out: header fields that are sent more than once, and texts with spaces in
//! claims that are split at spaces.

mod atoms;
mod dead;
mod example;
mod terms;
mod texts;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use postern_spiffe::SpiffeId;

pub use self::dead::{DeadRule, Why, dead_rules};
pub use self::example::{Example, HttpExample, TokenExample};
pub(crate) use self::terms::Site;
use self::{
    atoms::Value,
    terms::{Dimension, Terms},
};
use crate::{
    decide::{Direction, Protocol, Question, Verdict},
    model::{network_policy::Rule, workload::WorkloadName},
    normalize::PathNormalization,
    set::PolicySet,
};

/// What is asked; the rest is open.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// HTTP is spoken; otherwise anything, unread.
    pub http: bool,
    /// At this port.
    pub port: Option<(u16, Protocol)>,
    /// With this method.
    pub method: Option<String>,
    /// For this path, normalized.
    pub path: Option<String>,
    /// At this host.
    pub host: Option<String>,
}

/// Callers who are told apart by nothing.
#[derive(Debug, Clone)]
pub struct Callers {
    /// Who they are. Of those that no Workload has, one stands for all that are like it.
    pub all: Vec<Caller>,
    /// An access of the first of them for each class.
    pub examples: Vec<Example>,
}

/// Somebody who could ask.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    /// Who it is; nothing for plaintext.
    pub identity: Option<SpiffeId>,
    /// The Workloads that have the identity.
    pub workloads: Vec<WorkloadName>,
}

/// The policies tell more accesses apart than anybody could read about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policies tell too many accesses apart to ask about all of them; \
     ask about one port, method and path"
)]
pub struct TooMany;

/// The classes of accesses to `destination` that any of `sets` can tell apart.
///
/// # Errors
/// [`TooMany`].
pub fn of(
    sets: &[&PolicySet],
    destination: &WorkloadName,
    asked: &Asked,
) -> Result<Vec<Callers>, TooMany> {
    all_of(sets, destination, asked, false)
}

/// `through`: requests are asked about even where the connection is not allowed.
fn all_of(
    sets: &[&PolicySet],
    destination: &WorkloadName,
    asked: &Asked,
    through: bool,
) -> Result<Vec<Callers>, TooMany> {
    let sites: Vec<Site<'_>> = sets
        .iter()
        .filter_map(|set| set.site(destination))
        .collect();
    let how = sets
        .first()
        .map_or(PathNormalization::Base, |set| set.paths());
    let terms = Terms::of(&sites, asked.http);
    let mut start = Example::to(destination);
    start.http = asked.http.then(HttpExample::any);
    let space = Space::new(&terms, &sites, &start, asked, how)?;
    let mut groups: HashMap<(Bits, bool), Vec<Caller>> = HashMap::new();
    let mut order = Vec::new();
    for caller in callers(&sites, &terms)? {
        let mut example = start.clone();
        example.identity.clone_from(&caller.identity);
        let dead = dead(&terms, &Dimension::Caller, &example);
        // PeerAuthentication tells plaintext apart from everybody.
        let key = (dead, caller.identity.is_none());
        let group = groups.entry(key.clone()).or_insert_with(|| {
            order.push(key);
            Vec::new()
        });
        group.push(caller);
    }
    let mut all = Vec::new();
    for key in order {
        let members = groups.remove(&key).unwrap_or_default();
        let mut example = start.clone();
        example.identity = members.first().and_then(|first| first.identity.clone());
        all.push(Callers {
            examples: space.examples(&key.0, example, through)?,
            all: members,
        });
    }
    Ok(all)
}

/// The accesses out of a Workload that any of `sets` can tell apart: to each Workload, and to what
/// is none.
///
/// # Errors
/// [`TooMany`].
pub fn outbound(sets: &[&PolicySet], source: &WorkloadName) -> Result<Vec<Example>, TooMany> {
    let sites: Vec<Site<'_>> = sets.iter().filter_map(|set| set.site(source)).collect();
    let rules = sites.iter().flat_map(|site| {
        let places = site.entry.egress.iter();
        let policies = places.filter_map(|&place| site.compiled.network.get(place));
        policies.flat_map(|policy| policy.egress.iter().flatten())
    });
    let rules: Vec<&Rule> = rules.collect();
    let isolated = |site: &Site<'_>| (site.entry.egress.is_empty(), site.defaults.network);
    let mut kinds = sites.iter().map(isolated);
    let first = kinds.next();
    let same = sites.len() == sets.len() && kinds.all(|kind| Some(kind) == first);
    if same && first.is_some_and(|(is_free, _)| is_free) {
        // Nobody says anything, and all say the same.
        return Ok(Vec::new());
    }
    let identities: BTreeSet<&SpiffeId> = sites
        .iter()
        .map(|site| &site.entry.workload.spiffe_id)
        .collect();
    let mut destinations: BTreeMap<Option<&WorkloadName>, BTreeSet<u16>> = BTreeMap::new();
    let begins = atoms::port_begins(rules.iter().flat_map(|rule| &rule.ports));
    destinations.insert(None, begins.clone());
    for site in &sites {
        for entry in &site.compiled.workloads {
            let ports = destinations.entry(Some(&entry.workload.name));
            let ports = ports.or_insert_with(|| begins.clone());
            ports.extend(entry.workload.ports.iter().map(|port| port.port));
        }
    }
    let nets = rules
        .iter()
        .flat_map(|rule| &rule.peers)
        .flat_map(atoms::nets);
    let addresses = atoms::address_begins(nets.collect());
    let mut all = Vec::new();
    for identity in identities {
        for (&destination, ports) in &destinations {
            let addresses = match destination {
                Some(_) => &[None],
                None => addresses.as_slice(),
            };
            for (&ip, &port) in addresses
                .iter()
                .flat_map(|ip| ports.iter().map(move |port| (ip, port)))
            {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    if all.len() == MAX_CLASSES {
                        return Err(TooMany);
                    }
                    all.push(Example {
                        direction: Direction::Outbound,
                        identity: Some(identity.clone()),
                        destination: destination.cloned(),
                        destination_ip: ip,
                        port,
                        protocol,
                        ..Example::to(source)
                    });
                }
            }
        }
    }
    Ok(all)
}

/// Workloads, then strangers, then nobody.
fn callers(sites: &[Site<'_>], terms: &Terms<'_>) -> Result<Vec<Caller>, TooMany> {
    let mut known: BTreeMap<&SpiffeId, BTreeSet<&WorkloadName>> = BTreeMap::new();
    for workload in sites.iter().flat_map(|site| &site.compiled.workloads) {
        let workload = &workload.workload;
        known
            .entry(&workload.spiffe_id)
            .or_default()
            .insert(&workload.name);
    }
    let strangers = atoms::strangers(terms, &known.keys().copied().collect())?;
    let known = known.into_iter().map(|(id, names)| Caller {
        identity: Some(id.clone()),
        workloads: names.into_iter().cloned().collect(),
    });
    let others = strangers.into_iter().map(Some).chain([None]);
    let others = others.map(|identity| Caller {
        identity,
        workloads: Vec::new(),
    });
    Ok(known.chain(others).collect())
}

/// A set of terms.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bits(Vec<u64>);

impl Bits {
    fn none(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn insert(&mut self, place: usize) {
        if let Some(word) = self.0.get_mut(place / 64) {
            *word |= 1 << (place % 64);
        }
    }

    fn extend(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }

    fn contains_all(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .all(|(own, other)| own & other == *other)
    }
}

/// The terms that fail in a dimension.
fn dead(terms: &Terms<'_>, dimension: &Dimension, example: &Example) -> Bits {
    let mut dead = Bits::none(terms.all.len());
    for (place, term) in terms.all.iter().enumerate() {
        let mut here = term.tests.iter().filter(|(of, _)| of == dimension);
        if !here.all(|(_, test)| test.holds(dimension, term.site, &terms.split, example)) {
            dead.insert(place);
        }
    }
    dead
}

/// Values of every dimension but the caller, each with the terms that fail by it.
struct Space<'a> {
    sites: &'a [Site<'a>],
    /// What is known once the connection stands.
    connection: Vec<Values>,
    request: Vec<Values>,
    /// Each rule: its groups, and all of its terms.
    rules: Vec<(Vec<Bits>, Bits)>,
}

struct Values {
    dimension: Dimension,
    all: Vec<(Arc<Value>, Bits)>,
}

impl<'a> Space<'a> {
    fn new(
        terms: &Terms<'a>,
        sites: &'a [Site<'a>],
        start: &Example,
        asked: &Asked,
        how: PathNormalization,
    ) -> Result<Self, TooMany> {
        let spoken_of: BTreeSet<Dimension> = terms
            .all
            .iter()
            .flat_map(|term| &term.tests)
            .map(|(dimension, _)| dimension.clone())
            .chain([Dimension::Method, Dimension::Path, Dimension::Host])
            .collect();
        let (mut connection, mut request) = (Vec::new(), Vec::new());
        for dimension in spoken_of {
            let list = match dimension {
                Dimension::Caller => continue,
                Dimension::SourceIp
                | Dimension::DestinationIp
                | Dimension::Port
                | Dimension::ServerName => &mut connection,
                _ if !asked.http => continue,
                _ => &mut request,
            };
            list.push(Values::of(terms, dimension, start, asked, how)?);
        }
        let count = terms.all.len();
        let bits = |terms: &Vec<usize>| {
            let mut bits = Bits::none(count);
            terms.iter().for_each(|&term| bits.insert(term));
            bits
        };
        let rules = terms.rules.iter().map(|rule| {
            let groups: Vec<Bits> = rule.0.iter().map(bits).collect();
            let mut all = Bits::none(count);
            groups.iter().for_each(|group| all.extend(group));
            (groups, all)
        });
        Ok(Self {
            sites,
            connection,
            request,
            rules: rules.collect(),
        })
    }

    /// An example of each class that begins so.
    fn examples(
        &self,
        dead: &Bits,
        start: Example,
        through: bool,
    ) -> Result<Vec<Example>, TooMany> {
        let mut first = dead.clone();
        self.collapse(&mut first);
        let stand = self.widen(vec![(first, start)], &self.connection)?;
        // Where nobody lets the connection stand, nothing is asked on it.
        let (go_on, over): (Vec<_>, Vec<_>) = stand.into_iter().partition(|(_, example)| {
            through || self.sites.iter().any(|site| site.connects(example))
        });
        let all = self.widen(go_on, &self.request)?;
        Ok(over
            .into_iter()
            .chain(all)
            .map(|(_, example)| example)
            .collect())
    }

    /// Puts each value of each dimension to each class, and makes one of those that are alike.
    fn widen(
        &self,
        mut classes: Vec<(Bits, Example)>,
        dimensions: &[Values],
    ) -> Result<Vec<(Bits, Example)>, TooMany> {
        for values in dimensions {
            // A token that nobody accepts is not like none.
            let mut seen: BTreeSet<(Vec<u64>, bool)> = BTreeSet::new();
            let mut wider = Vec::new();
            for (dead, example) in &classes {
                for (value, more) in &values.all {
                    let mut dead = dead.clone();
                    dead.extend(more);
                    self.collapse(&mut dead);
                    let mut example = example.clone();
                    if !value.put(&values.dimension, &mut example)
                        || !seen.insert((dead.0.clone(), example.token.is_some()))
                    {
                        continue;
                    }
                    if wider.len() == MAX_CLASSES {
                        return Err(TooMany);
                    }
                    wider.push((dead, example));
                }
            }
            classes = wider;
        }
        Ok(classes)
    }

    /// A rule that cannot match any more: none of its terms matters.
    fn collapse(&self, dead: &mut Bits) {
        for (groups, all) in &self.rules {
            if groups.iter().any(|group| dead.contains_all(group)) {
                dead.extend(all);
            }
        }
    }
}

impl Values {
    fn of(
        terms: &Terms<'_>,
        dimension: Dimension,
        start: &Example,
        asked: &Asked,
        how: PathNormalization,
    ) -> Result<Self, TooMany> {
        let mut all: Vec<(Arc<Value>, Bits)> = Vec::new();
        let mut seen = BTreeSet::new();
        for value in atoms::values(terms, &dimension, asked, how)? {
            let mut example = start.clone();
            if matches!(dimension, Dimension::Claim(_)) {
                let token = Value::Token(Some((String::new(), None)));
                token.put(&Dimension::Principal, &mut example);
            }
            if !value.put(&dimension, &mut example) {
                continue;
            }
            let dead = dead(terms, &dimension, &example);
            if seen.insert((dead.0.clone(), is_plain(&value))) {
                all.push((Arc::new(value), dead));
            }
        }
        Ok(Self { dimension, all })
    }
}

/// Can every access have it? A claim needs a token, so its absence is not like another value.
fn is_plain(value: &Value) -> bool {
    matches!(value, Value::Claim(None) | Value::Token(None))
}

impl Site<'_> {
    /// Is the connection allowed here?
    fn connects(&self, example: &Example) -> bool {
        example.with(|access| {
            let question = Question {
                compiled: self.compiled,
                defaults: self.defaults,
                access,
            };
            question.connection().verdict == Verdict::Allow
        })
    }
}

/// As many as nobody reads.
const MAX_CLASSES: usize = 50_000;

#[cfg(test)]
mod tests;
