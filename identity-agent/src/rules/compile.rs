//! What a condition comes to for each kind of event that is seen.
//!
//! What is known of the kind (its type, which fields it never has) is put in, and what then holds or
//! fails whatever comes is cut away. A test of a field that nobody fills is neither true nor false. A rule
//! hits only where its condition is true whatever the unknown ones are, so that every hit is right: such
//! a rule runs in part. Where nothing is left, it does not run.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    check::{Check, Wanted},
    event::{Argument, Class, Event, Value},
    field::{Field, Filled, Source},
    resolve::{Leaf, Resolved, is_type},
    written::Spot,
};

/// A condition for one kind of event, ready to be asked.
#[derive(Debug, Clone)]
pub(super) enum Program {
    Always,
    Never,
    All(Box<[Program]>),
    Any(Box<[Program]>),
    Not(Box<Program>),
    Test(Arc<Check>),
}

impl Program {
    /// Does it hold? Allocates nothing.
    pub(super) fn holds(&self, event: &dyn Event) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::All(parts) => parts.iter().all(|part| part.holds(event)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(event)),
            Self::Not(inner) => !inner.holds(event),
            Self::Test(check) => check.holds(event),
        }
    }
}

/// What a condition comes to.
#[derive(Debug)]
pub(super) struct Compiled {
    /// For the kinds of events for which it may hold.
    pub(super) programs: Vec<(Class, Program)>,
    /// Fields whose values are not known where they would count, where each stands, and why.
    pub(super) unfilled: BTreeMap<String, (Spot, &'static str)>,
    /// Types of events that it means and that are not seen, by where they are named.
    pub(super) unseen: BTreeMap<Spot, Vec<String>>,
    /// It means every type of event.
    pub(super) means_all: bool,
    /// Kinds that are not seen whole.
    pub(super) sampled: Vec<Sampled>,
    /// The first test of what is the same for all events, and which no event passes.
    pub(super) never: Option<(String, Spot)>,
}

/// Events of which some are missed.
#[derive(Debug)]
pub(super) struct Sampled {
    /// Where the first of them is named, if it is.
    pub(super) at: Option<Spot>,
    /// Their types.
    pub(super) events: Vec<String>,
    pub(super) why: &'static str,
}

impl Compiled {
    pub(super) fn of(condition: &Resolved) -> Self {
        let mut compiled = Self {
            programs: Vec::new(),
            unfilled: BTreeMap::new(),
            unseen: BTreeMap::new(),
            means_all: false,
            sampled: Vec::new(),
            never: None,
        };
        let mut named = BTreeMap::new();
        collect_types(condition, &mut named);
        for class in Class::ALL {
            compiled.put_in(condition, class, &named);
        }
        compiled.look_for_unseen(condition, named);
        compiled.never = never(condition);
        compiled
    }

    fn put_in(&mut self, condition: &Resolved, class: Class, named: &Named) {
        let folded = fold(condition, &|leaf| of_class(leaf, class));
        if matches!(folded, Folded::False) {
            return;
        }
        folded.collect_unknown(&mut self.unfilled);
        let program = folded.program(false);
        if matches!(program, Program::Never) {
            return;
        }
        if let Some(why) = class.lack() {
            self.lacks(class, why, named);
        }
        self.programs.push((class, program));
    }

    fn lacks(&mut self, class: Class, why: &'static str, named: &Named) {
        let types = class.types();
        let event = types.first().map(|name| (*name).to_owned());
        let at = types.iter().find_map(|name| named.get(*name)).copied();
        let known = self.sampled.iter_mut();
        let mut known = known.filter(|lack| lack.why == why && lack.at == at);
        match known.next() {
            Some(lack) => lack.events.extend(event),
            None => self.sampled.push(Sampled {
                at,
                events: Vec::from_iter(event),
                why,
            }),
        }
    }

    /// Types of events that it names, or any other, for which it might hold.
    fn look_for_unseen(&mut self, condition: &Resolved, named: Named) {
        let is_seen = |name: &str| {
            let mut all = Class::ALL.iter().flat_map(|class| class.types());
            all.any(|seen| *seen == name)
        };
        let might_hold = |name: &str| {
            let folded = fold(condition, &|leaf| of_type(leaf, name));
            !matches!(folded, Folded::False)
        };
        self.means_all = might_hold(NO_TYPE);
        for (name, at) in named {
            if !is_seen(&name) && might_hold(&name) {
                self.unseen.entry(at).or_default().push(name);
            }
        }
    }
}

/// A condition with what is known put in.
#[derive(Debug)]
enum Folded<'a> {
    True,
    False,
    All(Vec<Folded<'a>>),
    Any(Vec<Folded<'a>>),
    Not(Box<Folded<'a>>),
    Test(&'a Arc<Check>),
    Unknown(&'a Leaf),
}

fn fold<'a>(condition: &'a Resolved, put_in: &impl Fn(&'a Leaf) -> Folded<'a>) -> Folded<'a> {
    match condition {
        Resolved::Test(leaf) => put_in(leaf),
        Resolved::Not(inner) => match fold(inner, put_in) {
            Folded::True => Folded::False,
            Folded::False => Folded::True,
            other => Folded::Not(Box::new(other)),
        },
        Resolved::All(parts) => {
            let mut left = Vec::new();
            for part in parts {
                match fold(part, put_in) {
                    Folded::True => {}
                    Folded::False => return Folded::False,
                    other => left.push(other),
                }
            }
            match left.is_empty() {
                true => Folded::True,
                false => Folded::All(left),
            }
        }
        Resolved::Any(parts) => {
            let mut left = Vec::new();
            for part in parts {
                match fold(part, put_in) {
                    Folded::True => return Folded::True,
                    Folded::False => {}
                    other => left.push(other),
                }
            }
            match left.is_empty() {
                true => Folded::False,
                false => Folded::Any(left),
            }
        }
    }
}

/// A test, with what is known of every event of a class.
fn of_class(leaf: &Leaf, class: Class) -> Folded<'_> {
    match (leaf.known.on(class), &leaf.check) {
        (Filled::Never, _) => Folded::False,
        (Filled::By(field), Some(check)) if is_constant(field) => constant(check, class),
        (Filled::By(_), Some(check)) => Folded::Test(check),
        _ => Folded::Unknown(leaf),
    }
}

/// A test, with nothing known but the type of the event.
fn of_type<'a>(leaf: &'a Leaf, name: &str) -> Folded<'a> {
    let Some(check) = leaf.check.as_ref().filter(|_| is_type(leaf)) else {
        // Nothing else is known of an event that nobody sees, but that it is not the first.
        return match (leaf.known.source, &leaf.check) {
            (Source::Every(Field::EvtNum), Some(check)) => constant(check, Class::Exec),
            _ => Folded::Unknown(leaf),
        };
    };
    match check.holds(&OfType(name)) {
        true => Folded::True,
        false => Folded::False,
    }
}

fn constant(check: &Arc<Check>, class: Class) -> Folded<'_> {
    // Any of the types by which it may be called will do; and none of them, where it must not be.
    let mut types = class.types().iter();
    let holds = match check.is_negated {
        true => types.all(|name| check.holds(&OfType(name))),
        false => types.any(|name| check.holds(&OfType(name))),
    };
    if holds { Folded::True } else { Folded::False }
}

impl<'a> Folded<'a> {
    /// With unknown tests taken for this.
    fn program(&self, unknown: bool) -> Program {
        match self {
            Self::True => Program::Always,
            Self::False => Program::Never,
            Self::Unknown(_) if unknown => Program::Always,
            Self::Unknown(_) => Program::Never,
            Self::Test(check) => Program::Test(Arc::clone(check)),
            Self::Not(inner) => match inner.program(!unknown) {
                Program::Always => Program::Never,
                Program::Never => Program::Always,
                other => Program::Not(Box::new(other)),
            },
            Self::All(parts) => {
                let parts = parts.iter().map(|part| part.program(unknown));
                let parts: Vec<Program> = parts
                    .filter(|part| !matches!(part, Program::Always))
                    .collect();
                match parts.iter().any(|part| matches!(part, Program::Never)) {
                    true => Program::Never,
                    false if parts.is_empty() => Program::Always,
                    false => Program::All(parts.into()),
                }
            }
            Self::Any(parts) => {
                let parts = parts.iter().map(|part| part.program(unknown));
                let parts: Vec<Program> = parts
                    .filter(|part| !matches!(part, Program::Never))
                    .collect();
                match parts.iter().any(|part| matches!(part, Program::Always)) {
                    true => Program::Always,
                    false if parts.is_empty() => Program::Never,
                    false => Program::Any(parts.into()),
                }
            }
        }
    }

    fn collect_unknown(&self, all: &mut BTreeMap<String, (Spot, &'static str)>) {
        match self {
            Self::True | Self::False | Self::Test(_) => {}
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().for_each(|part| part.collect_unknown(all));
            }
            Self::Not(inner) => inner.collect_unknown(all),
            Self::Unknown(leaf) => {
                let why = match leaf.known.source {
                    Source::Nobody(why) => why,
                    _ => "who it was before is not told",
                };
                all.entry(leaf.name.clone()).or_insert((leaf.at, why));
            }
        }
    }
}

/// Fields that have one value for all events of a class.
fn is_constant(field: Field) -> bool {
    matches!(
        field,
        Field::EvtType
            | Field::EvtDir
            | Field::EvtFailed
            | Field::EvtNum
            | Field::EvtRes
            | Field::EvtRawres
    )
}

/// An event of which its type is known, and that it was told because it happened.
struct OfType<'a>(&'a str);

impl Event for OfType<'_> {
    fn class(&self) -> Class {
        Class::Exec
    }

    fn value(&self, field: Field, _: Argument<'_>) -> Option<Value<'_>> {
        Some(match field {
            Field::EvtType => Value::Text(self.0.as_bytes()),
            Field::EvtDir => Value::Text(b"<"),
            Field::EvtFailed => Value::Flag(false),
            // Falco's own idiom: `evt.num = 0` never holds, `evt.num >= 0` always does.
            Field::EvtNum => Value::Number(1),
            Field::EvtRes => Value::Text(b"SUCCESS"),
            Field::EvtRawres => Value::Number(0),
            _ => return None,
        })
    }
}

/// Types of events, and where each is named first.
type Named = BTreeMap<String, Spot>;

fn collect_types(condition: &Resolved, all: &mut Named) {
    match condition {
        Resolved::All(parts) | Resolved::Any(parts) => {
            parts.iter().for_each(|part| collect_types(part, all));
        }
        Resolved::Not(inner) => collect_types(inner, all),
        Resolved::Test(leaf) if is_type(leaf) => {
            if let Some(Wanted::Text(texts)) = leaf.check.as_deref().map(|check| &check.wanted) {
                for text in &texts.any_of {
                    let name = String::from_utf8_lossy(text).into_owned();
                    all.entry(name).or_insert(leaf.at);
                }
            }
        }
        Resolved::Test(_) => {}
    }
}

/// The first test that must hold, is of what all events have alike, and holds for none.
fn never(condition: &Resolved) -> Option<(String, Spot)> {
    match condition {
        Resolved::All(parts) => parts.iter().find_map(never),
        Resolved::Any(_) | Resolved::Not(_) => None,
        Resolved::Test(leaf) => {
            let Source::Every(field) = leaf.known.source else {
                return None;
            };
            // These are of the rule's own making: its types, and Falco's words for always and never.
            let is_own = matches!(field, Field::EvtType | Field::EvtNum);
            let check = leaf.check.as_ref();
            let check = check.filter(|_| is_constant(field) && !is_own)?;
            let mut classes = Class::ALL.iter();
            let holds = classes.any(|class| matches!(constant(check, *class), Folded::True));
            (!holds).then(|| (leaf.name.clone(), leaf.at))
        }
    }
}

/// No type of event is called so.
const NO_TYPE: &str = "\0";
