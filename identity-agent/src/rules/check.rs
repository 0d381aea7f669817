//! One test of one field, made ready: its values have the type of the field, and comparing allocates
//! nothing.

use std::net::IpAddr;

use ipnet::IpNet;
use regex::bytes::{Regex, RegexBuilder};

use super::{
    condition::{Literal, Operator},
    derived,
    event::{Argument, Event, Value},
    field::{Field, Kind},
};

/// A field with its argument, as an event is asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) field: Field,
    pub(super) argument: Given,
    pub(super) made: Made,
}

/// The argument of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Given {
    Nothing,
    Generation(u8),
    /// Any ancestor will do.
    AnyGeneration,
    Variable(Box<str>),
}

/// What is made of a text before it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) case: Case,
    pub(super) is_basename: bool,
    /// The number of its bytes is compared.
    pub(super) is_length: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    AsIs,
    Lower,
    Upper,
    /// Both sides count as if they were lower case.
    Either,
}

/// A test.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) asked: Asked,
    pub(super) wanted: Wanted,
    /// What is there must not be as wanted; what is not there does not hold either way.
    pub(super) is_negated: bool,
}

#[derive(Debug)]
pub(super) enum Wanted {
    Anything,
    Text(Texts),
    Pattern(Regex),
    Number(Order, i64),
    OneOf(Box<[i64]>),
    Flag(bool),
    Network(Box<[IpNet]>),
    Same(Other),
}

/// How another field is compared with.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) how: How,
    pub(super) other: Asked,
}

/// One of these texts, compared so.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) how: How,
    pub(super) any_of: Box<[Box<[u8]>]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Equal,
    Contains,
    StartsWith,
    EndsWith,
    Glob,
    /// It is this path, or lies below.
    Path,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Wanted {
    /// What an operator and its values want of a field of this kind.
    ///
    /// # Errors
    /// What does not fit, and a hint.
    pub(super) fn of(
        kind: Kind,
        operator: Operator,
        values: &[Literal],
    ) -> Result<Self, (String, &'static str)> {
        match kind {
            Kind::Text => Self::text(operator, values),
            Kind::Number => Self::number(operator, values),
            Kind::Flag => Self::flag(operator, values),
            Kind::Address => Self::address(operator, values),
        }
    }

    fn text(operator: Operator, values: &[Literal]) -> Result<Self, (String, &'static str)> {
        let how = match operator {
            Operator::Equal | Operator::Unequal | Operator::In | Operator::Intersects => How::Equal,
            Operator::Contains | Operator::ContainsInAnyCase => How::Contains,
            Operator::StartsWith => How::StartsWith,
            Operator::EndsWith => How::EndsWith,
            Operator::Glob | Operator::GlobInAnyCase => How::Glob,
            Operator::PathMatch => How::Path,
            Operator::Exists => return Ok(Self::Anything),
            Operator::Regex => return pattern(values),
            _ => {
                let message = "it is a text, and texts have no order".to_owned();
                return Err((message, "compare it with `=`, `in` or `startswith`"));
            }
        };
        let any_of = values.iter().map(|value| value.text.as_bytes().into());
        let any_of = any_of.collect();
        Ok(Self::Text(Texts { how, any_of }))
    }

    fn number(operator: Operator, values: &[Literal]) -> Result<Self, (String, &'static str)> {
        let number = |value: &Literal| {
            let hint = "write a whole number";
            value.text.parse::<i64>().map_err(|_| {
                (
                    format!("it is a number, and `{}` is none", value.text),
                    hint,
                )
            })
        };
        let order = match operator {
            Operator::Exists => return Ok(Self::Anything),
            Operator::In | Operator::Intersects => {
                let all: Result<_, _> = values.iter().map(number).collect();
                return Ok(Self::OneOf(all?));
            }
            Operator::Equal | Operator::Unequal => Order::Equal,
            Operator::Less => Order::Less,
            Operator::LessOrEqual => Order::LessOrEqual,
            Operator::Greater => Order::Greater,
            Operator::GreaterOrEqual => Order::GreaterOrEqual,
            _ => {
                let message = "it is a number, and this compares texts".to_owned();
                return Err((message, "compare it with `=`, `<`, `>` or `in`"));
            }
        };
        let only = values.first().map(number);
        let only = only.unwrap_or_else(|| Err(("it has no value".to_owned(), "write a number")))?;
        Ok(Self::Number(order, only))
    }

    fn flag(operator: Operator, values: &[Literal]) -> Result<Self, (String, &'static str)> {
        match (operator, values) {
            (Operator::Exists, _) => Ok(Self::Anything),
            (Operator::Equal | Operator::Unequal | Operator::In, [only]) => {
                match only.text.to_ascii_lowercase().as_str() {
                    "true" | "1" => Ok(Self::Flag(true)),
                    "false" | "0" => Ok(Self::Flag(false)),
                    _ => {
                        let message = format!("it is true or false, and not `{}`", only.text);
                        Err((message, "`= true` or `= false`"))
                    }
                }
            }
            _ => Err(("it is true or false".to_owned(), "`= true` or `= false`")),
        }
    }

    fn address(operator: Operator, values: &[Literal]) -> Result<Self, (String, &'static str)> {
        let network = |value: &Literal| {
            let text = value.text.as_str();
            let alone = |_| text.parse::<IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or_else(alone).map_err(|_| {
                let message = format!("it is an address, and `{text}` is none");
                (message, "such as `10.0.0.1` or `10.0.0.0/8`")
            })
        };
        match operator {
            Operator::Exists => Ok(Self::Anything),
            Operator::Equal | Operator::Unequal | Operator::In | Operator::Intersects => {
                let all: Result<_, _> = values.iter().map(network).collect();
                Ok(Self::Network(all?))
            }
            _ => {
                let message = "it is an address".to_owned();
                Err((message, "compare it with `=`, `!=` or `in`"))
            }
        }
    }
}

/// The whole text must be of this form.
fn pattern(values: &[Literal]) -> Result<Wanted, (String, &'static str)> {
    let hint = "write it in the syntax of RE2: no look-around and no references back";
    let text = values.first().map_or("", |value| value.text.as_str());
    RegexBuilder::new(&format!("^(?:{text})$"))
        .size_limit(MAX_PATTERN_BYTES)
        .dfa_size_limit(MAX_PATTERN_BYTES)
        .dot_matches_new_line(true)
        .build()
        .map(Wanted::Pattern)
        .map_err(|error| {
            let error = error.to_string();
            let last = error.lines().last().unwrap_or_default();
            (
                format!("the regular expression cannot be used: {last}"),
                hint,
            )
        })
}

impl Check {
    /// Does it hold?
    pub(super) fn holds(&self, event: &dyn Event) -> bool {
        match (self.asked.field, &self.asked.argument) {
            (Field::FdIp | Field::FdPort, _) => self.holds_of_ends(event),
            (field, Given::AnyGeneration) => {
                let mut generations = 1..=MAX_GENERATIONS;
                generations.any(|generation| {
                    let argument = Argument::Generation(generation);
                    self.holds_of(event, event.value(field, argument))
                })
            }
            _ => self.holds_of(event, self.asked.value(event)),
        }
    }

    /// One end must be as wanted; what must not be so, neither end may be.
    fn holds_of_ends(&self, event: &dyn Event) -> bool {
        let mut ends = derived::ends(event, self.asked.field).peekable();
        match self.is_negated {
            true => ends.peek().is_some() && ends.all(|end| self.holds_of(event, Some(end))),
            false => ends.any(|end| self.holds_of(event, Some(end))),
        }
    }

    fn holds_of(&self, event: &dyn Event, value: Option<Value<'_>>) -> bool {
        value.is_some_and(|value| self.is_wanted(event, value) != self.is_negated)
    }

    fn is_wanted(&self, event: &dyn Event, value: Value<'_>) -> bool {
        let made = self.asked.made;
        match (&self.wanted, value) {
            (Wanted::Anything, _) => true,
            (Wanted::Number(order, wanted), value) => made
                .number(value)
                .is_some_and(|number| order.holds(number, *wanted)),
            (Wanted::OneOf(all), value) => made
                .number(value)
                .is_some_and(|number| all.contains(&number)),
            (Wanted::Text(texts), Value::Text(text)) => {
                let text = made.part(text);
                let mut any = texts.any_of.iter();
                any.any(|wanted| texts.how.holds(text, wanted, made.case))
            }
            (Wanted::Pattern(pattern), Value::Text(text)) => pattern.is_match(made.part(text)),
            (Wanted::Flag(wanted), Value::Flag(flag)) => flag == *wanted,
            (Wanted::Network(all), Value::Address(address)) => {
                all.iter().any(|network| network.contains(&address))
            }
            (Wanted::Same(same), value) => match (value, same.other.value(event)) {
                (Value::Text(text), Some(Value::Text(other))) => {
                    let other = same.other.made.part(other);
                    same.how.holds(made.part(text), other, made.case)
                }
                (value, Some(other)) => same.how == How::Equal && value == other,
                (_, None) => false,
            },
            _ => false,
        }
    }
}

impl Asked {
    fn value<'e>(&self, event: &'e dyn Event) -> Option<Value<'e>> {
        let argument = match &self.argument {
            Given::Nothing | Given::AnyGeneration => Argument::None,
            Given::Generation(generation) => Argument::Generation(*generation),
            Given::Variable(name) => Argument::Variable(name),
        };
        derived::value(event, self.field, argument)
    }
}

impl Made {
    pub(super) const NOTHING: Self = Self {
        case: Case::AsIs,
        is_basename: false,
        is_length: false,
    };

    fn part(self, text: &[u8]) -> &[u8] {
        match self.is_basename {
            true => text.rsplit(|byte| *byte == b'/').next().unwrap_or_default(),
            false => text,
        }
    }

    fn number(self, value: Value<'_>) -> Option<i64> {
        match value {
            Value::Number(number) if !self.is_length => Some(number),
            Value::Text(text) if self.is_length => i64::try_from(self.part(text).len()).ok(),
            _ => None,
        }
    }
}

impl Order {
    fn holds(self, number: i64, wanted: i64) -> bool {
        match self {
            Self::Equal => number == wanted,
            Self::Less => number < wanted,
            Self::LessOrEqual => number <= wanted,
            Self::Greater => number > wanted,
            Self::GreaterOrEqual => number >= wanted,
        }
    }
}

impl Case {
    fn same(self, byte: u8, wanted: u8) -> bool {
        match self {
            Self::AsIs => byte == wanted,
            Self::Lower => byte.to_ascii_lowercase() == wanted,
            Self::Upper => byte.to_ascii_uppercase() == wanted,
            Self::Either => byte.eq_ignore_ascii_case(&wanted),
        }
    }

    fn same_texts(self, text: &[u8], wanted: &[u8]) -> bool {
        if self == Self::AsIs {
            return text == wanted;
        }
        let mut both = text.iter().zip(wanted);
        text.len() == wanted.len() && both.all(|(byte, wanted)| self.same(*byte, *wanted))
    }
}

impl How {
    fn holds(self, text: &[u8], wanted: &[u8], case: Case) -> bool {
        let start = || text.get(..wanted.len());
        match self {
            Self::Equal => case.same_texts(text, wanted),
            Self::Contains => {
                wanted.is_empty()
                    || text
                        .windows(wanted.len())
                        .any(|part| case.same_texts(part, wanted))
            }
            Self::StartsWith => start().is_some_and(|part| case.same_texts(part, wanted)),
            Self::EndsWith => {
                let from = text.len().checked_sub(wanted.len());
                let part = from.and_then(|from| text.get(from..));
                part.is_some_and(|part| case.same_texts(part, wanted))
            }
            Self::Glob => glob(text, wanted, case),
            Self::Path => is_below(text, wanted, case),
        }
    }
}

/// `*`, `?` and `[…]`, as fnmatch(3) without flags. In time that grows with the product of the lengths.
fn glob(text: &[u8], pattern: &[u8], case: Case) -> bool {
    let (mut text, mut pattern) = (text, pattern);
    // Where to go on if what follows the last star does not fit.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            again = Some((text, rest));
            pattern = rest;
            continue;
        }
        let step = match text {
            [byte, ..] => one_of(*byte, pattern, case),
            [] if pattern.is_empty() => return true,
            [] => None,
        };
        match (step, again) {
            (Some(rest), _) => {
                text = text.get(1..).unwrap_or_default();
                pattern = rest;
            }
            (None, Some(([_, later @ ..], after_star))) => {
                again = Some((later, after_star));
                (text, pattern) = (later, after_star);
            }
            (None, _) => return false,
        }
    }
}

/// The rest of a pattern if its beginning fits to this byte.
fn one_of(byte: u8, pattern: &[u8], case: Case) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'\\', wanted, rest @ ..] => case.same(byte, *wanted).then_some(rest),
        [b'[', inner @ ..] => match set(byte, inner, case) {
            Some((true, rest)) => Some(rest),
            Some((false, _)) => None,
            None => (byte == b'[').then_some(inner),
        },
        [wanted, rest @ ..] => case.same(byte, *wanted).then_some(rest),
        [] => None,
    }
}

/// Is a byte in a set, and what follows it? None where the set does not end.
fn set(byte: u8, inner: &[u8], case: Case) -> Option<(bool, &[u8])> {
    let (is_other, mut rest) = match inner {
        [b'!' | b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut is_in = false;
    let mut is_first = true;
    loop {
        match rest {
            [b']', after @ ..] if !is_first => return Some((is_in != is_other, after)),
            [low, b'-', high, after @ ..] if *high != b']' => {
                is_in |= (*low..=*high).contains(&byte);
                rest = after;
            }
            [wanted, after @ ..] => {
                is_in |= case.same(byte, *wanted);
                rest = after;
            }
            [] => return None,
        }
        is_first = false;
    }
}

/// Is a path this one, or below it? Each part of it may be a pattern.
fn is_below(path: &[u8], wanted: &[u8], case: Case) -> bool {
    let parts =
        |path| <[u8]>::split(path, |byte| *byte == b'/').filter(|part: &&[u8]| !part.is_empty());
    let mut own = parts(path);
    let mut wanted = parts(wanted);
    wanted.all(|wanted| own.next().is_some_and(|part| glob(part, wanted, case)))
}

/// Generations of ancestors that are looked at.
pub(super) const MAX_GENERATIONS: u8 = 32;

/// A compiled regular expression.
const MAX_PATTERN_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::{Case, glob, is_below};

    #[test]
    fn a_glob_fits_as_that_of_a_shell() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("*b*", "abc", true),
            ("**a", "bba", true),
            ("?", "", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("[ab", "[ab", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("/home/*/.ssh/*", "/home/a/b/.ssh/key", true),
        ] {
            let fits = glob(text.as_bytes(), pattern.as_bytes(), Case::AsIs);
            assert_eq!(fits, expected, "{pattern} {text}");
        }
        assert!(glob(b"ABC", b"a*C", Case::Either));
    }

    #[test]
    fn a_glob_that_is_made_to_be_slow_is_not() {
        let text = vec![b'a'; 20_000];
        assert!(!glob(&text, b"a*a*a*a*a*a*a*a*a*b", Case::AsIs));
    }

    #[test]
    fn a_path_is_below_another_by_whole_parts() {
        for (wanted, path, expected) in [
            ("/etc", "/etc/passwd", true),
            ("/etc", "/etc", true),
            ("/etc", "/etcetera", false),
            ("/etc/passwd", "/etc", false),
            ("/home/*/.ssh", "/home/a/.ssh/id", true),
            ("/home/*/.ssh", "/home/a/b/.ssh", false),
        ] {
            let fits = is_below(path.as_bytes(), wanted.as_bytes(), Case::AsIs);
            assert_eq!(fits, expected, "{wanted} {path}");
        }
    }
}
