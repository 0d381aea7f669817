//! YAML as a tree in which everything knows its place.
//!
//! The one module that knows the YAML library. Its limits are set here, on purpose: a policy file
//! is text that people write, and whatever is far beyond that is refused rather than read slowly.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Options, Spanned, budget::Budget};

use crate::diagnostic::Place;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it stands.
    pub at: Place,
    /// What it is.
    pub value: Value,
}

/// What a node can be.
#[derive(Debug, Clone)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true`, `false`, and what YAML 1.1 takes for them.
    Bool(bool),
    /// An integer of 64 bits.
    Integer(i64),
    /// A number that is not an integer of 64 bits, as nearly as it can be held.
    Number(f64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order of the file.
    Map(Vec<Entry>),
}

/// One key of a map with its value.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where the key stands.
    pub at: Place,
    /// The key.
    pub key: String,
    /// The value.
    pub node: Node,
}

/// Reads all documents of a stream; empty ones are left out.
///
/// # Errors
/// The first place that is not YAML, or that breaks a limit, and why.
pub fn read(text: &str) -> Result<Vec<Node>, (Place, String)> {
    let brackets = text.bytes().filter(|byte| matches!(byte, b'[' | b'{'));
    if brackets.take(MAX_DEPTH + 1).count() <= MAX_DEPTH {
        return read_here(text);
    }
    // The library goes deeper than our limit before it looks at it, and a small stack is not enough
    // for that.
    let first = Place { line: 1, column: 1 };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || read_here(text))
            .map_err(|error| (first, format!("cannot start a thread to read it: {error}")))?
            .join()
            .unwrap_or_else(|_| Err((first, "the YAML reader failed".to_owned())))
    })
}

fn read_here(text: &str) -> Result<Vec<Node>, (Place, String)> {
    let documents: Vec<Node> =
        serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| {
            let place = error
                .location()
                .map(place_of)
                .unwrap_or(Place { line: 1, column: 1 });
            (place, in_our_words(&error))
        })?;
    Ok(documents
        .into_iter()
        .filter(|node| !matches!(node.value, Value::Null))
        .collect())
}

/// The library's message, without its advice to programmers and the place that we tell ourselves.
fn in_our_words(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    let text = text
        .split(", set DuplicateKeyPolicy")
        .next()
        .unwrap_or_default();
    if text.starts_with("recursion limit") || text.contains("budget breached: Depth") {
        return format!("lists and maps lie deeper than {MAX_DEPTH} in each other");
    }
    if text.contains("budget breached: ") {
        return format!(
            "it has more than {MAX_NODES} values, aliases counted as often as they are used, or \
             anchors for more than {MAX_ANCHORED}"
        );
    }
    match text.strip_prefix("duplicate mapping key: ") {
        Some(key) => format!("duplicate key `{key}`"),
        None => text.to_owned(),
    }
}

fn options() -> Options {
    let mut budget = Budget::default();
    budget.max_documents = MAX_DOCUMENTS;
    budget.max_nodes = MAX_NODES;
    budget.max_events = MAX_NODES * 2;
    budget.max_depth = MAX_DEPTH;
    budget.max_recorded_anchor_events = MAX_ANCHORED;
    let mut options = Options::default();
    options.budget = Some(budget);
    // As kubectl reads it.
    options.legacy_octal_numbers = true;
    options
}

fn place_of(location: serde_saphyr::Location) -> Place {
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Place {
        line: number(location.line()),
        column: number(location.column()),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        // Of an alias the place where it is used, not the one where its anchor stands.
        Ok(Self {
            at: place_of(spanned.referenced),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        let number = Value::Number(value as f64);
        Ok(i64::try_from(value).map_or(number, Value::Integer))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            if entries.iter().any(|entry| entry.key == key.value) {
                return Err(A::Error::custom(format!("duplicate key `{}`", key.value)));
            }
            let node = access.next_value()?;
            entries.push(Entry {
                at: place_of(key.referenced),
                key: key.value,
                node,
            });
        }
        Ok(Value::Map(entries))
    }
}

/// Documents in one stream.
const MAX_DOCUMENTS: usize = 50_000;

/// Values in one stream, aliases counted as often as they are used.
const MAX_NODES: usize = 4_000_000;

/// What the library keeps of values that have an anchor.
const MAX_ANCHORED: usize = 1_000_000;

/// What the library needs for the 255 levels at which it stops by itself, several times over.
const STACK_BYTES: usize = 32 << 20;

/// How deep lists and maps may lie in each other. Kubernetes' own documents go to about fifteen; each
/// level takes some ten kilobytes of a stack that may have no more than two megabytes.
const MAX_DEPTH: usize = 32;
