//! Which sets of patterns a text can match at once, each with the shortest text that does.
//!
//! All patterns are walked together, character by character, as one automaton; what it can reach is
//! all there is. Nothing is sampled.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use super::TooMany;
use crate::{
    model::pattern::{Part, Pattern},
    normalize::PathNormalization,
};

/// A pattern, as a chain of what it takes from the front of a text.
pub(super) type Shape = Vec<Element>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    Char(char),
    One(Class),
    /// Any number, none too.
    Many(Class),
    /// Takes nothing, where the namespace of an identity begins.
    NamespaceBegins,
    /// The end of the text, for the pattern of this number.
    End(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Any,
    NotSlash,
    /// What `{*}` of a path template takes.
    Segment,
    /// What `{**}` takes.
    Path,
}

impl Class {
    fn contains(self, c: char) -> bool {
        let segment = || c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@".contains(c);
        match self {
            Self::Any => true,
            Self::NotSlash => c != '/',
            Self::Segment => segment(),
            Self::Path => c == '/' || segment(),
        }
    }

    const ALL: [Self; 4] = [Self::Any, Self::NotSlash, Self::Segment, Self::Path];
}

pub(super) fn chars(text: &str) -> impl Iterator<Item = Element> {
    text.chars().map(Element::Char)
}

/// The shape of a pattern of texts whose stars stand for characters of `class`; `None` for patterns
/// of other things.
pub(super) fn shape(pattern: &Pattern, class: Class) -> Option<Shape> {
    let many = || std::iter::once(Element::Many(class));
    Some(match pattern {
        Pattern::Present => vec![Element::One(class), Element::Many(class)],
        Pattern::Exact(text) => chars(text).collect(),
        Pattern::Prefix(text) => chars(text).chain(many()).collect(),
        Pattern::Suffix(text) => many().chain(chars(text)).collect(),
        Pattern::Template(template) => {
            let (head, tail) = template.parts();
            let mut shape = Shape::new();
            for part in head {
                match part {
                    Part::Literal(text) => shape.extend(chars(text)),
                    Part::Segment => {
                        shape.extend([Element::One(Class::Segment), Element::Many(Class::Segment)]);
                    }
                }
            }
            if let Some(tail) = tail {
                shape.push(Element::Many(Class::Path));
                shape.extend(chars(tail));
            }
            shape
        }
        Pattern::Net(_)
        | Pattern::Port(_)
        | Pattern::ServiceAccount(..)
        | Pattern::RequestPrincipal(_) => return None,
    })
}

/// Which texts there are at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Domain {
    /// Any, the empty one too.
    Text,
    /// One that a claim is split into.
    Word,
    /// The value of a header field. Spec: RFC 9110 section 5.5.
    Header,
    Method,
    /// A path in its one spelling.
    Path(PathNormalization),
    Host,
    ServerName,
    /// The SPIFFE ID of a workload, without its scheme.
    Identity,
}

/// Where the automaton of a domain stands.
type State = u8;

impl Domain {
    /// The next state, unless no text goes on so.
    fn step(self, state: State, c: char) -> Option<State> {
        match self {
            Self::Text => (!c.is_control()).then_some(0),
            Self::Word => (!c.is_control() && c != ' ').then_some(1),
            Self::Header => match (state, c) {
                (0, ' ') => None,
                (_, ' ') => Some(2),
                _ => (c.is_ascii_graphic() || !c.is_ascii()).then_some(1),
            },
            Self::Method => {
                (c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)).then_some(1)
            }
            Self::Host => {
                let good = c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_:[]".contains(c);
                good.then_some(1)
            }
            Self::ServerName => {
                let good = c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
                good.then_some(1)
            }
            Self::Path(how) => path_step(how, state, c),
            Self::Identity => identity_step(state, c),
        }
    }

    fn accepts(self, state: State) -> bool {
        match self {
            Self::Text => true,
            Self::Header => state != 2,
            Self::Path(_) => matches!(state, path::BEGIN | path::INSIDE),
            Self::Identity => state >= identity::PATH && !identity::is_open(state),
            _ => state == 1,
        }
    }

    fn is_namespace(self, state: State) -> bool {
        self == Self::Identity && state == identity::NAMESPACE
    }

    /// Characters to begin with; the first of each kind is enough.
    fn candidates(self) -> &'static str {
        match self {
            Self::Text | Self::Header => "x/=, .",
            Self::Word => "x/=,.",
            Self::Method => "X",
            Self::Path(_) => "x/=.0123456789ABCDEF",
            Self::Host | Self::ServerName => "x.",
            Self::Identity => "x/ns.",
        }
    }

    /// Characters of one kind are alike to the domain.
    fn kind(self, c: char) -> char {
        match self {
            Self::Path(_)
                if "/.%".contains(c) || c.is_ascii_digit() || ('A'..='F').contains(&c) =>
            {
                c
            }
            Self::Identity if "/.ns".contains(c) => c,
            Self::Identity if c.is_ascii_uppercase() => 'X',
            Self::Header | Self::Word if c == ' ' => c,
            _ => 'x',
        }
    }
}

/// States of a path. From [`path::HIGH`] on: the first digit of an escape was read.
mod path {
    pub(super) const BEGIN: u8 = 1;
    pub(super) const DOT: u8 = 2;
    pub(super) const DOTS: u8 = 3;
    pub(super) const INSIDE: u8 = 4;
    pub(super) const ESCAPE: u8 = 5;
    /// An escape behind `.` or `..`, and its digit 3: `%3B` does not stay there.
    pub(super) const ESCAPE_BEHIND_DOTS: u8 = 6;
    pub(super) const THREE_BEHIND_DOTS: u8 = 7;
    pub(super) const HIGH: u8 = 16;
}

/// The paths that [`crate::normalize::path`] leaves as they are.
fn path_step(how: PathNormalization, state: State, c: char) -> Option<State> {
    let digit = || {
        let digit = c.to_digit(16).filter(|_| !c.is_ascii_lowercase())?;
        u8::try_from(digit).ok()
    };
    match (state, c) {
        (0, '/') => return Some(path::BEGIN),
        (0, _) => return None,
        (path::ESCAPE_BEHIND_DOTS, '3') => return Some(path::THREE_BEHIND_DOTS),
        (path::THREE_BEHIND_DOTS, 'B') => return None,
        (path::THREE_BEHIND_DOTS, _) => return path_step(how, path::HIGH + 3, c),
        (path::ESCAPE | path::ESCAPE_BEHIND_DOTS, _) => {
            return digit().map(|digit| path::HIGH + digit);
        }
        (path::HIGH.., _) => {
            let byte = (state - path::HIGH) * 16 + digit()?;
            let stays = !byte.is_ascii_alphanumeric() && !b"-._~/\\\0".contains(&byte);
            return stays.then_some(path::INSIDE);
        }
        _ => {}
    }
    match c {
        '%' if matches!(state, path::DOT | path::DOTS) => Some(path::ESCAPE_BEHIND_DOTS),
        '%' => Some(path::ESCAPE),
        ';' if matches!(state, path::DOT | path::DOTS) => None,
        '/' => match state {
            path::BEGIN if how == PathNormalization::Base => Some(path::BEGIN),
            path::INSIDE => Some(path::BEGIN),
            _ => None,
        },
        '.' => Some(match state {
            path::BEGIN => path::DOT,
            path::DOT => path::DOTS,
            _ => path::INSIDE,
        }),
        '?' | '#' | '\\' | ' ' => None,
        c => (!c.is_control()).then_some(path::INSIDE),
    }
}

/// States of an identity: in its trust domain 0 and 1; then eight for each phase of the path, which
/// are before a segment `ns`, in the one after it, and behind that.
mod identity {
    pub(super) const PATH: u8 = 2;
    pub(super) const NAMESPACE: u8 = PATH + 8;
    pub(super) const BEGIN: u8 = 0;
    pub(super) const N: u8 = 1;
    pub(super) const NS: u8 = 2;
    pub(super) const OTHER: u8 = 3;
    pub(super) const DOT: u8 = 4;
    pub(super) const DOTS: u8 = 5;

    /// Is the last segment one with which no path ends?
    pub(super) fn is_open(state: u8) -> bool {
        matches!((state - PATH) % 8, BEGIN | DOT | DOTS)
    }
}

/// Spec: SPIFFE-ID sections 2.1 and 2.2.
fn identity_step(state: State, c: char) -> Option<State> {
    if state < identity::PATH {
        return match c {
            '/' => (state == 1).then_some(identity::PATH),
            c if c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c) => Some(1),
            _ => None,
        };
    }
    let (phase, segment) = ((state - identity::PATH) / 8, (state - identity::PATH) % 8);
    if c == '/' {
        let next = match (phase, segment) {
            (_, identity::BEGIN | identity::DOT | identity::DOTS) => return None,
            (0, identity::NS) => 1,
            (0, _) => 0,
            _ => 2,
        };
        return Some(identity::PATH + next * 8);
    }
    if !(c.is_ascii_alphanumeric() || ".-_".contains(c)) {
        return None;
    }
    let next = match (segment, c) {
        (identity::BEGIN, 'n') => identity::N,
        (identity::N, 's') => identity::NS,
        (identity::BEGIN, '.') => identity::DOT,
        (identity::DOT, '.') => identity::DOTS,
        _ => identity::OTHER,
    };
    Some(identity::PATH + phase * 8 + next)
}

/// A text for each set of patterns that some text of the domain matches exactly; each of `exact` by
/// itself. The set of none too, if there is such a text.
pub(super) fn witnesses(
    domain: Domain,
    exact: &BTreeSet<String>,
    shapes: &[Shape],
) -> Result<Vec<String>, TooMany> {
    search(domain, exact, shapes, MAX_STATES)
}

fn search(
    domain: Domain,
    exact: &BTreeSet<String>,
    shapes: &[Shape],
    limit: usize,
) -> Result<Vec<String>, TooMany> {
    let walk = Walk::new(domain, exact, shapes);
    let start = walk.start();
    let mut seen = HashSet::from([start.clone()]);
    let mut nodes: Vec<(usize, char)> = vec![(0, '\0')];
    let mut queue = VecDeque::from([(start, 0)]);
    let mut found: BTreeMap<(Option<usize>, Vec<usize>), String> = BTreeMap::new();
    while let Some((at, node)) = queue.pop_front() {
        if let Some(signature) = walk.signature(&at) {
            found
                .entry(signature)
                .or_insert_with(|| spell(&nodes, node));
        }
        for &c in &walk.alphabet {
            let Some(next) = walk.step(&at, c) else {
                continue;
            };
            if seen.contains(&next) {
                continue;
            }
            if seen.len() == limit {
                return Err(TooMany);
            }
            seen.insert(next.clone());
            nodes.push((node, c));
            queue.push_back((next, nodes.len() - 1));
        }
    }
    let mut texts: Vec<String> = found.into_values().collect();
    texts.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    Ok(texts)
}

fn spell(nodes: &[(usize, char)], mut node: usize) -> String {
    let mut reversed = Vec::new();
    while let Some(&(parent, c)) = nodes.get(node).filter(|_| node != 0) {
        reversed.push(c);
        node = parent;
    }
    reversed.iter().rev().collect()
}

/// Where all automatons stand.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct At {
    domain: State,
    /// In the tree of the exact texts; `None` once the text is none of them.
    tree: Option<usize>,
    /// In the shapes, sorted.
    shapes: Vec<usize>,
}

struct Walk {
    domain: Domain,
    elements: Vec<Element>,
    starts: Vec<usize>,
    tree: HashMap<(usize, char), usize>,
    /// The text that ends at a node of the tree.
    ends: HashMap<usize, usize>,
    alphabet: Vec<char>,
}

impl Walk {
    fn new(domain: Domain, exact: &BTreeSet<String>, shapes: &[Shape]) -> Self {
        let mut walk = Self {
            domain,
            elements: Vec::new(),
            starts: Vec::new(),
            tree: HashMap::new(),
            ends: HashMap::new(),
            alphabet: Vec::new(),
        };
        let mut literal: BTreeSet<char> = BTreeSet::new();
        for (number, shape) in shapes.iter().enumerate() {
            walk.starts.push(walk.elements.len());
            walk.elements.extend(shape);
            walk.elements.push(Element::End(number));
            literal.extend(shape.iter().filter_map(|element| match element {
                Element::Char(c) => Some(*c),
                _ => None,
            }));
        }
        let mut nodes = 1;
        for (number, text) in exact.iter().enumerate() {
            let mut node = 0;
            for c in text.chars() {
                node = *walk.tree.entry((node, c)).or_insert_with(|| {
                    nodes += 1;
                    nodes - 1
                });
                literal.insert(c);
            }
            walk.ends.insert(node, number);
        }
        let mut kinds = HashSet::new();
        let escapes = literal.contains(&'%');
        for c in domain.candidates().chars().chain(FRESH.chars()) {
            let is_digit = c.is_ascii_digit() || c.is_ascii_uppercase();
            let needed = !matches!(domain, Domain::Path(_)) || escapes || !is_digit;
            let kind = (Class::ALL.map(|class| class.contains(c)), domain.kind(c));
            if needed && !literal.contains(&c) && kinds.insert(kind) {
                walk.alphabet.push(c);
            }
        }
        walk.alphabet.extend(literal);
        walk
    }

    fn start(&self) -> At {
        let mut shapes = Vec::new();
        for &start in &self.starts {
            self.reach(start, 0, &mut shapes);
        }
        At {
            domain: 0,
            tree: Some(0),
            shapes: sorted(shapes),
        }
    }

    /// Stands at an element, and behind it where it may take nothing.
    fn reach(&self, place: usize, domain: State, into: &mut Vec<usize>) {
        into.push(place);
        let passes = match self.elements.get(place) {
            Some(Element::Many(_)) => true,
            Some(Element::NamespaceBegins) => self.domain.is_namespace(domain),
            _ => false,
        };
        if passes {
            self.reach(place + 1, domain, into);
        }
    }

    fn step(&self, at: &At, c: char) -> Option<At> {
        let domain = self.domain.step(at.domain, c)?;
        let mut shapes = Vec::new();
        for &place in &at.shapes {
            match self.elements.get(place) {
                Some(Element::Char(own)) if *own == c => {
                    self.reach(place + 1, domain, &mut shapes);
                }
                Some(Element::One(class)) if class.contains(c) => {
                    self.reach(place + 1, domain, &mut shapes);
                }
                Some(Element::Many(class)) if class.contains(c) => {
                    self.reach(place, domain, &mut shapes);
                }
                _ => {}
            }
        }
        Some(At {
            domain,
            tree: at.tree.and_then(|node| self.tree.get(&(node, c)).copied()),
            shapes: sorted(shapes),
        })
    }

    /// Which patterns match the text that ends here, if there is one.
    fn signature(&self, at: &At) -> Option<(Option<usize>, Vec<usize>)> {
        let ended = |place: &usize| match self.elements.get(*place) {
            Some(Element::End(number)) => Some(*number),
            _ => None,
        };
        let exact = at.tree.and_then(|node| self.ends.get(&node).copied());
        self.domain
            .accepts(at.domain)
            .then(|| (exact, at.shapes.iter().filter_map(ended).collect()))
    }
}

fn sorted(mut places: Vec<usize>) -> Vec<usize> {
    places.sort_unstable();
    places.dedup();
    places
}

/// So many ways in which patterns overlap are no question that a person asks.
const MAX_STATES: usize = 200_000;

/// Where a candidate is taken by a pattern, another of its kind stands for the rest.
const FRESH: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_~!$&'()+,;:@";

#[cfg(test)]
mod tests;
