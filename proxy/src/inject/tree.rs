//! YAML as a tree in which everything knows the bytes that it was written with.
//!
//! The readers of policies need lines for people; whoever edits a text needs offsets, and must know
//! how a collection was written. Aliases are links to what they name, never copies.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashSet},
    rc::Rc,
};

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, StructureStyle, Tag, options};
use postern_policies::diagnostic::Place;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Place,
    /// The byte at which it begins; of a block, that of its first key or item.
    pub(super) start: usize,
    pub(super) value: Value,
    /// An alias names it: its text has other users.
    pub(super) is_named: Cell<bool>,
}

/// What a node can be.
#[derive(Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(List),
    Map(Map),
}

/// Text, as YAML reads it.
#[derive(Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Written without quotes, so it may be a number, a boolean or nothing.
    pub(super) is_plain: bool,
    /// The byte behind it.
    pub(super) end: usize,
}

/// A list, in the order of the file.
#[derive(Debug)]
pub(super) struct List {
    pub(super) style: Style,
    pub(super) items: Vec<Link>,
}

/// A map, in the order of the file.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) style: Style,
    pub(super) entries: Vec<Entry>,
    /// How many maps its merge keys take in, those of these included. JSON has no merge keys.
    pub(super) merges: usize,
}

/// One key of a map with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) at: Place,
    pub(super) key: String,
    /// The byte at which the key begins.
    pub(super) start: usize,
    pub(super) link: Link,
}

/// How one gets from a collection to a value.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) node: Rc<Node>,
    /// By an alias: the value stands elsewhere and has other users.
    pub(super) is_alias: bool,
}

/// How a collection is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Block,
    /// In brackets; the byte behind the opening one, and that of the closing one.
    Flow {
        open: usize,
        close: usize,
    },
}

/// What is no YAML, or too much of it, and where.
pub(super) type Unread = (Place, String);

/// Reads all documents of a stream; empty ones are left out.
///
/// # Errors
/// The first place that cannot be read.
pub(super) fn read(text: &str) -> Result<Vec<Rc<Node>>, Unread> {
    let mut reader = Reader::default();
    for next in Parser::new_from_str_with_options(text, limits()) {
        let (event, span) =
            next.map_err(|error| (place(error.marker()), error.info().to_owned()))?;
        reader.take(event, span)?;
    }
    Ok(reader.documents)
}

fn limits() -> Options {
    options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    }
}

/// Puts events together.
#[derive(Default)]
struct Reader {
    documents: Vec<Rc<Node>>,
    /// What has begun and not ended, from the outside in.
    open: Vec<Open>,
    /// What this document's aliases may name.
    anchors: BTreeMap<usize, Rc<Node>>,
    /// Of this document, and of all.
    nodes: usize,
    all_nodes: usize,
}

struct Open {
    at: Place,
    start: usize,
    anchor: usize,
    value: Value,
    /// Of a map, so that no key stands there twice.
    keys: HashSet<String>,
    /// The key that waits for its value.
    key: Option<(Place, usize, String)>,
}

impl Reader {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Unread> {
        let (at, start) = (place(&span.start), offset(&span.start));
        match event {
            Event::DocumentStart(..) => {
                self.anchors.clear();
                self.nodes = 0;
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain;
                if let Some(tag) = &tag {
                    let is_harmless = of_scalar(tag, &text, is_plain);
                    agreed(is_harmless, tag, at)?;
                }
                let scalar = Scalar {
                    text: text.into_owned(),
                    is_plain: is_plain && !tag.is_some_and(|tag| is_core(&tag, "str")),
                    end: offset(&span.end),
                };
                return self.whole(at, start, anchor, Value::Scalar(scalar));
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Err((at, "an alias within what it names".to_owned()));
                };
                node.is_named.set(true);
                self.count(at)?;
                return self.put(Link {
                    node,
                    is_alias: true,
                });
            }
            Event::SequenceStart(style, anchor, tag) => {
                if let Some(tag) = &tag {
                    agreed(is_core(tag, "seq"), tag, at)?;
                }
                let (style, items) = (written(style, &span), Vec::new());
                self.begin(at, start, anchor, Value::List(List { style, items }))?;
            }
            Event::MappingStart(style, anchor, tag) => {
                if let Some(tag) = &tag {
                    agreed(is_core(tag, "map"), tag, at)?;
                }
                let map = Map {
                    style: written(style, &span),
                    entries: Vec::new(),
                    merges: 0,
                };
                self.begin(at, start, anchor, Value::Map(map))?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(mut open) = self.open.pop() else {
                    return Ok(());
                };
                let (Value::List(List { style, .. }) | Value::Map(Map { style, .. })) =
                    &mut open.value
                else {
                    return Ok(());
                };
                if let Style::Flow { close, .. } = style {
                    *close = start;
                }
                if let Value::Map(map) = &mut open.value {
                    map.merges = merges(map);
                    if map.merges > MAX_MERGES {
                        let why = format!(
                            "merge keys take in more than {MAX_MERGES} maps: write them out"
                        );
                        return Err((open.at, why));
                    }
                }
                return self.whole(open.at, open.start, open.anchor, open.value);
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(
        &mut self,
        at: Place,
        start: usize,
        anchor: usize,
        value: Value,
    ) -> Result<(), Unread> {
        if self.open.len() >= MAX_DEPTH {
            return Err((at, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        self.open.push(Open {
            at,
            start,
            anchor,
            value,
            keys: HashSet::new(),
            key: None,
        });
        Ok(())
    }

    fn whole(
        &mut self,
        at: Place,
        start: usize,
        anchor: usize,
        value: Value,
    ) -> Result<(), Unread> {
        self.count(at)?;
        let node = Rc::new(Node {
            at,
            start,
            value,
            is_named: Cell::new(false),
        });
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.put(Link {
            node,
            is_alias: false,
        })
    }

    fn count(&mut self, at: Place) -> Result<(), Unread> {
        self.nodes += 1;
        self.all_nodes += 1;
        if self.nodes > MAX_NODES {
            let why = format!("more than {MAX_NODES} values in a document: split it");
            return Err((at, why));
        }
        if self.all_nodes > MAX_ALL_NODES {
            let why = format!("more than {MAX_ALL_NODES} values in a file: split it");
            return Err((at, why));
        }
        Ok(())
    }

    /// Gives a value its place in what is open.
    fn put(&mut self, link: Link) -> Result<(), Unread> {
        let Some(open) = self.open.last_mut() else {
            let is_empty = matches!(&link.node.value, Value::Scalar(scalar) if scalar.is_null());
            if !is_empty {
                self.documents.push(link.node);
            }
            return Ok(());
        };
        match (&mut open.value, open.key.take()) {
            (Value::List(list), _) => list.items.push(link),
            (Value::Map(map), Some((at, start, key))) => map.entries.push(Entry {
                at,
                key,
                start,
                link,
            }),
            (Value::Map(_), None) => {
                let (at, start) = (link.node.at, link.node.start);
                let Value::Scalar(scalar) = &link.node.value else {
                    return Err((at, "a key must be a string".to_owned()));
                };
                let key = &scalar.text;
                if !open.keys.insert(key.clone()) {
                    return Err((at, format!("duplicate key `{key}`")));
                }
                open.key = Some((at, start, key.clone()));
            }
            (Value::Scalar(_), _) => {}
        }
        Ok(())
    }
}

impl Scalar {
    /// Nothing, as YAML writes it.
    pub(super) fn is_null(&self) -> bool {
        self.is_plain && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

/// Does a tag say what the text means without it?
fn of_scalar(tag: &Tag, text: &str, is_plain: bool) -> bool {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    is_core(tag, "str")
        || (is_plain && is_core(tag, "int") && !text.is_empty() && (is_number || text == "0"))
        || (is_plain && is_core(tag, "bool") && matches!(text, "true" | "false"))
}

fn is_core(tag: &Tag, name: &str) -> bool {
    tag.handle() == "tag:yaml.org,2002:" && tag.suffix() == name
}

/// A tag that changes what is meant would hide it from all who look at the text.
fn agreed(is_harmless: bool, tag: &Tag, at: Place) -> Result<(), Unread> {
    if is_harmless {
        return Ok(());
    }
    let written = format!("{}{}", tag.original_handle(), tag.suffix());
    let why =
        format!("the tag `{written}` may change what this means: write the plain value without it");
    Err((at, why))
}

/// How many maps a map takes in. The maps under its merge keys are whole by then.
fn merges(map: &Map) -> usize {
    let of = |link: &Link| match &link.node.value {
        Value::Map(base) => base.merges.saturating_add(1),
        _ => 0,
    };
    let bases = map.entries.iter().filter(|entry| entry.key == MERGE);
    let taken = bases.map(|entry| match &entry.link.node.value {
        Value::List(list) => list.items.iter().map(of).fold(0, usize::saturating_add),
        _ => of(&entry.link),
    });
    taken.fold(0, usize::saturating_add)
}

fn written(style: StructureStyle, span: &Span) -> Style {
    match style {
        StructureStyle::Block => Style::Block,
        StructureStyle::Flow => Style::Flow {
            open: offset(&span.end),
            close: offset(&span.end),
        },
    }
}

/// Of a text the reader always knows it.
fn offset(marker: &granit_parser::Marker) -> usize {
    marker.byte_offset().unwrap_or_default()
}

fn place(marker: &granit_parser::Marker) -> Place {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Place {
        line: number(marker.line()),
        column: number(marker.col().saturating_add(1)),
    }
}

impl Node {
    /// The same tree from JSON, which has no places.
    ///
    /// # Errors
    /// More values than a pod can have.
    pub(super) fn of_json(json: &serde_json::Value) -> Result<Rc<Self>, String> {
        let mut left = MAX_NODES;
        Self::within(json, &mut left)
            .ok_or_else(|| format!("more than {MAX_NODES} values in the pod"))
    }

    fn within(json: &serde_json::Value, left: &mut usize) -> Option<Rc<Self>> {
        use serde_json::Value as Json;
        *left = left.checked_sub(1)?;
        let mut link = |json: &Json| {
            let node = Self::within(json, left)?;
            Some(Link {
                node,
                is_alias: false,
            })
        };
        let scalar = |text: String, is_plain: bool| {
            Value::Scalar(Scalar {
                text,
                is_plain,
                end: 0,
            })
        };
        let value = match json {
            Json::String(text) => scalar(text.clone(), false),
            Json::Array(items) => Value::List(List {
                style: Style::Block,
                items: items.iter().map(link).collect::<Option<_>>()?,
            }),
            Json::Object(entries) => Value::Map(Map {
                style: Style::Block,
                entries: entries
                    .iter()
                    .map(|(key, json)| {
                        Some(Entry {
                            at: Place::default(),
                            key: key.clone(),
                            start: 0,
                            link: link(json)?,
                        })
                    })
                    .collect::<Option<_>>()?,
                merges: 0,
            }),
            Json::Null | Json::Bool(_) | Json::Number(_) => scalar(json.to_string(), true),
        };
        Some(Rc::new(Self {
            at: Place::default(),
            start: 0,
            value,
            is_named: Cell::new(false),
        }))
    }
}

/// Kubernetes' own documents go to about fifteen.
const MAX_DEPTH: usize = 64;

/// Of one document; the largest definitions of resources have about half of it.
const MAX_NODES: usize = 50_000;

/// Of all documents of a file.
const MAX_ALL_NODES: usize = 1_000_000;

/// Maps that one map takes in. Nobody follows more of them either.
const MAX_MERGES: usize = 64;

pub(super) const MERGE: &str = "<<";

#[cfg(test)]
mod tests {
    use super::{MAX_NODES, Node, Style, Value, read};

    #[test]
    fn places_are_bytes_also_behind_letters_of_more_than_one() {
        let text = "ä: é\r\nspec: {ö: [ü]}\r\n---\r\n# nothing\r\n---\r\n- a\r\n";
        let documents = read(text).unwrap();
        assert_eq!(documents.len(), 2);
        let Value::Map(map) = &documents[0].value else {
            panic!("{documents:?}");
        };
        let spec = &map.entries[1];
        assert_eq!(text.get(spec.start..spec.start + 4), Some("spec"));
        let Value::Map(inner) = &spec.link.node.value else {
            panic!("{spec:?}");
        };
        let Style::Flow { open, close } = inner.style else {
            panic!("{inner:?}");
        };
        assert_eq!(text.get(open..close), Some("ö: [ü]"));
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_place() {
        for (text, line, part) in [
            ("a: b\nc: [d\n", 2, "unclosed bracket"),
            ("a: 1\na: 2\n", 2, "duplicate key `a`"),
            ("a: &x [*x]\n", 1, "alias"),
            ("a: *none\n", 1, "anchor"),
            ("{{ .Values.x }}: y\n", 1, "key"),
            ("a: b\nadd: [!!binary TkVUX0FETUlO]\n", 2, "the tag"),
            ("!!binary aG9zdE5ldHdvcms=: true\n", 1, "the tag"),
            ("kind: !!binary UG9k\n", 1, "the tag `!!binary`"),
            ("kind: !mine Pod\n", 1, "the tag `!mine`"),
            ("kind: ! Pod\n", 1, "the tag"),
            ("a: !!null\n", 1, "the tag"),
            ("a: !!bool \"true\"\n", 1, "the tag"),
            ("a: !!set {b}\n", 1, "the tag"),
        ] {
            let (at, error) = read(text).unwrap_err();
            assert_eq!(at.line, line, "{text}: {error}");
            assert!(error.contains(part), "{text}: {error}");
        }
        let (_, error) = read(&"[".repeat(100_000)).unwrap_err();
        assert!(!error.is_empty());
        assert!(
            read("!!str a: !!str true\nb: !!int 80\nc: !!bool true\nd: !!map {e: !!seq []}\n")
                .is_ok()
        );
    }

    #[test]
    fn more_values_than_a_document_has_are_refused_by_the_limit() {
        let list = |count: usize| format!("[{}0]\n", "0,".repeat(count - 2));
        assert!(read(&list(MAX_NODES)).is_ok());
        let (_, error) = read(&list(MAX_NODES + 1)).unwrap_err();
        assert!(error.contains("50000 values"), "{error}");
        let json = |count: usize| serde_json::Value::from(vec![0; count - 1]);
        assert!(Node::of_json(&json(MAX_NODES)).is_ok());
        let error = Node::of_json(&json(MAX_NODES + 1)).unwrap_err();
        assert!(error.contains("50000 values"), "{error}");
    }

    #[test]
    fn merge_keys_that_multiply_are_refused() {
        let mut text = "b0: &b0 {x: 1}\n".to_owned();
        for level in 1..=8 {
            let base = vec![format!("*b{}", level - 1); 16].join(", ");
            text.push_str(&format!("b{level}: &b{level} {{<<: [{base}]}}\n"));
        }
        let (at, error) = read(&text).unwrap_err();
        assert_eq!(at.line, 3);
        assert!(error.contains("more than 64 maps"), "{error}");
        assert!(read(text.lines().take(2).collect::<Vec<_>>().join("\n").as_str()).is_ok());
    }
}
