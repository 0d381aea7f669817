//! Reading typed values out of nodes, and saying what is wrong with the others.
//!
//! Every reader adds its mistakes to [`Problems`] and goes on, so that one run tells all of them.
//! `None` means that a mistake was told.

use std::time::Duration;

use super::node::{Entry, Node, Value};
use crate::diagnostic::{Place, Problems};

/// The entries of a map whose names are known.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'n> {
    /// Where the map begins.
    pub at: Place,
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// Takes a map and refuses every name that is not among `known`.
    pub fn of(
        node: &'n Node,
        what: &str,
        known: &[&str],
        problems: &mut Problems<'_>,
    ) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            problems.error(
                node.at,
                format!("{what} must be a map, and this is {}", kind_of(node)),
            );
            return None;
        };
        for entry in entries {
            if !known.contains(&entry.key.as_str()) {
                unknown(entry, what, known, problems);
            }
        }
        Some(Self {
            at: node.at,
            entries,
        })
    }

    /// The value of a name. A null is the same as nothing, as Kubernetes has it.
    pub fn get(&self, name: &str) -> Option<&'n Node> {
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        (!matches!(entry.node.value, Value::Null)).then_some(&entry.node)
    }

    /// The value of a name that must be there.
    pub fn required(
        &self,
        name: &str,
        what: &str,
        problems: &mut Problems<'_>,
    ) -> Option<&'n Node> {
        let found = self.get(name);
        if found.is_none() {
            problems.error(self.at, format!("{what} needs `{name}`"));
        }
        found
    }

    /// The items of a list; an absent one has none.
    pub fn list(&self, name: &str, problems: &mut Problems<'_>) -> &'n [Node] {
        self.get(name)
            .and_then(|node| list(node, name, problems))
            .unwrap_or_default()
    }

    /// A text that need not be there.
    pub fn text(&self, name: &str, problems: &mut Problems<'_>) -> Option<&'n str> {
        self.get(name).and_then(|node| text(node, name, problems))
    }
}

/// The items of a list. A null among them is a mistake: nobody writes an empty dash on purpose.
pub fn list<'n>(node: &'n Node, what: &str, problems: &mut Problems<'_>) -> Option<&'n [Node]> {
    let Value::List(items) = &node.value else {
        problems.error(
            node.at,
            format!("`{what}` must be a list, and this is {}", kind_of(node)),
        );
        return None;
    };
    for item in items
        .iter()
        .filter(|item| matches!(item.value, Value::Null))
    {
        problems.error(item.at, format!("an item of `{what}` is null"));
    }
    Some(items)
}

/// A text; numbers and booleans are refused, with the advice to put them in quotes.
pub fn text<'n>(node: &'n Node, what: &str, problems: &mut Problems<'_>) -> Option<&'n str> {
    match &node.value {
        Value::Text(text) => Some(text),
        Value::Integer(_) | Value::Number(_) | Value::Bool(_) => {
            problems.error_with(
                node.at,
                format!("`{what}` must be a string, and this is {}", kind_of(node)),
                "put it in quotes",
            );
            None
        }
        // A null in a list was told by `list`.
        Value::Null => None,
        _ => {
            problems.error(
                node.at,
                format!("`{what}` must be a string, and this is {}", kind_of(node)),
            );
            None
        }
    }
}

/// A text with at least one character.
pub fn filled<'n>(node: &'n Node, what: &str, problems: &mut Problems<'_>) -> Option<&'n str> {
    let text = text(node, what, problems)?;
    if text.is_empty() {
        problems.error(node.at, format!("`{what}` must not be empty"));
        return None;
    }
    Some(text)
}

/// A port number.
pub fn port(node: &Node, what: &str, problems: &mut Problems<'_>) -> Option<u16> {
    let number = match node.value {
        Value::Integer(number) => u16::try_from(number).ok().filter(|&port| port > 0),
        _ => None,
    };
    if number.is_none() {
        problems.error(node.at, format!("`{what}` must be a port from 1 to 65535"));
    }
    number
}

/// Text to text: labels and the like.
pub fn labels(
    node: &Node,
    what: &str,
    problems: &mut Problems<'_>,
) -> Option<crate::model::labels::Labels> {
    let Value::Map(entries) = &node.value else {
        problems.error(
            node.at,
            format!("`{what}` must be a map, and this is {}", kind_of(node)),
        );
        return None;
    };
    let mut labels = crate::model::labels::Labels::new();
    for entry in entries {
        check_label_key(&entry.key, entry.at, problems);
        if let Some(value) = text(&entry.node, &entry.key, problems) {
            check_label_value(value, entry.node.at, problems);
            labels.insert(entry.key.clone(), value.to_owned());
        }
    }
    Some(labels)
}

/// `prefix/name`, the prefix optional. Kubernetes, labels and selectors.
pub fn check_label_key(key: &str, at: Place, problems: &mut Problems<'_>) {
    let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
    let good_prefix = prefix.len() <= 253 && !prefix.contains('/');
    if name.is_empty() || !is_label_text(name) || !good_prefix {
        problems.error(at, format!("`{key}` is no label key"));
    }
}

/// At most 63 letters, digits, `-`, `_` and `.`; or nothing.
pub fn check_label_value(value: &str, at: Place, problems: &mut Problems<'_>) {
    if !value.is_empty() && !is_label_text(value) {
        problems.error_with(
            at,
            format!("`{value}` is no label value"),
            "at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit",
        );
    }
}

/// A name as Kubernetes allows it for most objects: RFC 1123 labels with dots between.
pub fn is_object_name(name: &str) -> bool {
    let good = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| matches!(c, 'a'..='z' | '0'..='9'));
    name.len() <= 253
        && name.chars().all(good)
        && edge(name.chars().next())
        && edge(name.chars().next_back())
}

fn is_label_text(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(good)
        && edge(text.chars().next())
        && edge(text.chars().next_back())
}

/// A boolean.
pub fn boolean(node: &Node, what: &str, problems: &mut Problems<'_>) -> Option<bool> {
    match node.value {
        Value::Bool(value) => Some(value),
        _ => {
            problems.error(node.at, format!("`{what}` must be `true` or `false`"));
            None
        }
    }
}

/// An address with a port.
pub fn socket_address(
    node: &Node,
    what: &str,
    problems: &mut Problems<'_>,
) -> Option<std::net::SocketAddr> {
    let text = text(node, what, problems)?;
    match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let hint = "write it as `127.0.0.1:8080` or `[::1]:8080`";
            problems.error_with(
                node.at,
                format!("`{text}` in `{what}` is no address with a port"),
                hint,
            );
            None
        }
    }
}

/// A duration of more than zero: a whole number and a unit (`500ms`, `30s`, `5m`, `1h`, `7d`).
pub fn duration(node: &Node, what: &str, problems: &mut Problems<'_>) -> Option<Duration> {
    let Value::Text(text) = &node.value else {
        problems.error_with(
            node.at,
            format!("`{what}` needs a unit"),
            "such as `30s` or `1h`",
        );
        return None;
    };
    let parsed = parse_duration(text).filter(|duration| !duration.is_zero());
    if parsed.is_none() {
        let hint = "a whole number and `ms`, `s`, `m`, `h` or `d`, more than zero";
        problems.error_with(
            node.at,
            format!("`{text}` in `{what}` is no duration"),
            hint,
        );
    }
    parsed
}

/// Reads a duration: a whole number and a unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(split)?;
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    // A thousand years: what is longer is a slip, and would not fit a certificate.
    let limit = 1_000 * 366 * 86_400;
    number
        .checked_mul(seconds)
        .filter(|&all| all <= limit)
        .map(Duration::from_secs)
}

/// What a value is, for people.
pub fn kind_of(node: &Node) -> &'static str {
    match node.value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Integer(_) | Value::Number(_) => "a number",
        Value::Text(_) => "a string",
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
    }
}

/// Tells of an unknown name, and which one was probably meant.
fn unknown(entry: &Entry, what: &str, known: &[&str], problems: &mut Problems<'_>) {
    let message = format!("unknown field `{}` in {what}", entry.key);
    match nearest(&entry.key, known) {
        Some(name) => problems.error_with(entry.at, message, format!("did you mean `{name}`?")),
        None => problems.error_with(
            entry.at,
            message,
            format!(
                "known are {}",
                known
                    .iter()
                    .map(|name| format!("`{name}`"))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        ),
    }
}

/// The known word that differs least, if it differs little.
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let (distance, name) = known
        .iter()
        .map(|&name| (distance(word, name), name))
        .min_by_key(|&(far, _)| far)?;
    (distance <= word.len().max(3) / 3).then_some(name)
}

/// How many letters must be changed, added, left out, or swapped with their neighbour, without
/// regard to case.
fn distance(left: &str, right: &str) -> usize {
    let letters = |text: &str| -> Vec<char> {
        let short = text.chars().take(NAME_LIMIT);
        short.map(|c| c.to_ascii_lowercase()).collect()
    };
    let (left, right) = (letters(left), letters(right));
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    let mut before = None;
    for (i, l) in left.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, r) in right.iter().enumerate() {
            let at = |row: &[usize], place: usize| row.get(place).copied().unwrap_or(usize::MAX);
            let change = at(&row, j) + usize::from(l != r);
            let mut least = change.min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            let swapped = j > 0 && before == Some(r) && right.get(j - 1) == Some(l);
            if swapped {
                least = least.min(at(&above, j - 1).saturating_add(1));
            }
            next.push(least);
        }
        before = Some(l);
        above = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or_default()
}

/// No field name is longer.
const NAME_LIMIT: usize = 64;
