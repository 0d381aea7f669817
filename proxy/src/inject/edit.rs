//! Editing a text where it stands: what is added is worked into the lines that are there, and
//! nothing else of the text is touched.

use std::ops::Range;

use super::{
    item::{Item, Layout},
    spot::Spot,
    tree::{Entry, List, Map, Style, Value},
};

/// A replacement of some bytes, most often of none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    range: Range<usize>,
    text: String,
}

/// A place that cannot be edited without rewriting it, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("`{path}` {why}")]
pub(super) struct Fixed {
    pub(super) path: String,
    pub(super) why: &'static str,
    pub(super) at: postern_policies::diagnostic::Place,
}

impl Fixed {
    /// For a text that has other users.
    pub(super) fn shared(spot: &Spot<'_>) -> Self {
        Self {
            path: spot.path.clone(),
            why: SHARED,
            at: spot.at,
        }
    }
}

/// Makes all edits at once. Those of one place stay in their order.
pub(super) fn apply(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| edit.range.start);
    let mut out = String::with_capacity(text.len() + 4096 * edits.len());
    let mut done = 0;
    for edit in &edits {
        out.push_str(text.get(done..edit.range.start).unwrap_or_default());
        out.push_str(&edit.text);
        done = edit.range.end;
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out
}

/// Puts items before those of the list under `key`, and the list where there is none, before the
/// key `before` of the same map.
///
/// # Errors
/// [`Fixed`] where the text belongs to others as well or is written in a way that no line fits into.
pub(super) fn add_to_list(
    text: &str,
    map: &Spot<'_>,
    key: &str,
    items: Vec<Item>,
    before: &str,
) -> Result<Edit, Fixed> {
    let written = Written { text };
    let fixed = |why| Fixed {
        path: map.path_of(key),
        why,
        at: map.get(key).map_or(map.at, |list| list.at),
    };
    if map.is_shared {
        return Err(fixed(SHARED));
    }
    let Some(own) = map.map() else {
        return Err(fixed("must be in a map"));
    };
    if let Some(list) = map.get(key) {
        let Value::List(value) = &list.node.value else {
            return Err(fixed("must be a list"));
        };
        if list.is_shared {
            return Err(fixed(SHARED));
        }
        return written.first_in(value, &items).map_err(fixed);
    }
    let Some(neighbour) = map.entry(before) else {
        return Err(fixed(SHARED));
    };
    match map.entry(key) {
        Some(entry) => written.instead_of_nothing(entry, items).map_err(fixed),
        None => written
            .before(own, neighbour, &[(key, Item::List(items))])
            .map_err(fixed),
    }
}

/// Puts entries into a map, before the entry `neighbour`.
///
/// # Errors
/// As [`add_to_list`].
pub(super) fn add_entries(
    text: &str,
    map: &Spot<'_>,
    neighbour: &Entry,
    entries: &[(&str, Item)],
) -> Result<Edit, Fixed> {
    let fixed = |why| Fixed {
        path: map.path.clone(),
        why,
        at: map.at,
    };
    let own = map.map().filter(|_| !map.is_shared);
    let own = own.ok_or_else(|| fixed(SHARED))?;
    Written { text }
        .before(own, neighbour, entries)
        .map_err(fixed)
}

/// The byte behind an entry, as far as scalars say it.
fn end_of(entry: &Entry) -> usize {
    let mut end = entry.start;
    let mut left = vec![&entry.link];
    while let Some(link) = left.pop() {
        if link.is_alias {
            continue;
        }
        match &link.node.value {
            Value::Scalar(scalar) => end = end.max(scalar.end),
            Value::List(list) => left.extend(&list.items),
            Value::Map(map) => left.extend(map.entries.iter().map(|entry| &entry.link)),
        }
    }
    end
}

/// A text, read by lines.
struct Written<'a> {
    text: &'a str,
}

impl Written<'_> {
    fn before(
        &self,
        map: &Map,
        neighbour: &Entry,
        entries: &[(&str, Item)],
    ) -> Result<Edit, &'static str> {
        if let Style::Flow { open, .. } = map.style {
            let first = map.entries.first().map(|entry| entry.start);
            let parts = entries.iter();
            let parts = parts.map(|(key, item)| match item {
                Item::List(items) => {
                    let key = Item::from(*key).in_brackets();
                    format!("{key}: {}", self.list_in_brackets(items, open, first))
                }
                _ => format!("{}: {}", Item::from(*key).in_brackets(), item.in_brackets()),
            });
            return Ok(self.in_brackets(&parts.collect::<Vec<_>>(), open, first));
        }
        let line = self.line_start(neighbour.start);
        let indent = self.between(line, neighbour.start);
        if !indent.bytes().all(|byte| byte == b' ') {
            return Err(NO_LINE);
        }
        let before_dash = self.before_dash(neighbour);
        let layout = Layout {
            indent,
            before_dash: &before_dash,
            line_ending: self.line_ending(line),
        };
        let lines = entries.iter().map(|(key, item)| item.entry(key, &layout));
        let previous = map.entries.iter().rev();
        let previous = previous.skip_while(|entry| entry.start >= neighbour.start);
        let floor = previous.map(end_of).next().unwrap_or_default();
        Ok(Edit::insert(
            self.above_comments(line, indent, floor),
            lines.collect(),
        ))
    }

    /// Before the first item of a list.
    fn first_in(&self, list: &List, items: &[Item]) -> Result<Edit, &'static str> {
        let first = list.items.first();
        if let Style::Flow { open, close } = list.style {
            let Some(first) = first else {
                let text = self.list_in_brackets(items, open, None);
                return Ok(Edit {
                    range: open.saturating_sub(1)..close.saturating_add(1),
                    text,
                });
            };
            let items: Vec<String> = items.iter().map(Item::in_brackets).collect();
            // An alias stands elsewhere; the line of the bracket decides then.
            let first = Some(first.node.start).filter(|_| !first.is_alias);
            return Ok(self.in_brackets(&items, open, first));
        }
        let first = first.filter(|first| !first.is_alias).ok_or(SHARED)?;
        let dash = self.dash(first.node.start).ok_or(NO_LINE)?;
        let line = self.line_start(dash);
        let indent = self.between(line, dash);
        if !indent.bytes().all(|byte| byte == b' ') {
            return Err(NO_LINE);
        }
        let layout = Layout {
            indent,
            before_dash: "",
            line_ending: self.line_ending(line),
        };
        let lines = items.iter().map(|item| item.item(&layout)).collect();
        Ok(Edit::insert(self.above_comments(line, indent, 0), lines))
    }

    /// `key:` and nothing, or a null.
    fn instead_of_nothing(&self, entry: &Entry, items: Vec<Item>) -> Result<Edit, &'static str> {
        let Value::Scalar(nothing) = &entry.link.node.value else {
            return Err(NO_LINE);
        };
        if entry.link.is_alias {
            return Err(SHARED);
        }
        let start = entry.link.node.start;
        if start < nothing.end {
            let text = self.list_in_brackets(&items, start, None);
            return Ok(Edit {
                range: start..nothing.end,
                text,
            });
        }
        let line = self.line_start(entry.start);
        let indent = self.between(line, entry.start);
        let next = self.next_line(line);
        if !indent.bytes().all(|byte| byte == b' ') {
            return Err(NO_LINE);
        }
        let ending = self.line_ending(line);
        let layout = Layout {
            indent,
            before_dash: "",
            line_ending: ending,
        };
        let mut lines: String = items.iter().map(|item| item.item(&layout)).collect();
        if !self.between(line, next).ends_with('\n') {
            lines.insert_str(0, ending);
        }
        Ok(Edit::insert(next, lines))
    }

    /// Behind an opening bracket: on lines of their own if what follows is on another line.
    fn in_brackets(&self, parts: &[String], open: usize, first: Option<usize>) -> Edit {
        let text: String = match self.other_line(open, first) {
            Some(indent) => {
                let ending = self.line_ending(self.line_start(open));
                let parts = parts.iter();
                parts
                    .map(|part| format!("{ending}{indent}{part},"))
                    .collect()
            }
            None => parts.iter().map(|part| format!("{part}, ")).collect(),
        };
        Edit::insert(open, text)
    }

    /// A new list in brackets, on several lines if its surroundings have several.
    fn list_in_brackets(&self, items: &[Item], open: usize, first: Option<usize>) -> String {
        let parts: Vec<String> = items.iter().map(Item::in_brackets).collect();
        match self.other_line(open, first) {
            Some(indent) => {
                let ending = self.line_ending(self.line_start(open));
                let lines = parts.join(&format!(",{ending}{indent}  "));
                format!("[{ending}{indent}  {lines}{ending}{indent}]")
            }
            None => format!("[{}]", parts.join(", ")),
        }
    }

    /// The indentation of what follows a bracket, if that is on another line.
    fn other_line(&self, open: usize, first: Option<usize>) -> Option<&str> {
        let first = first?;
        let line = self.line_start(first);
        let indent = self.between(line, first);
        let is_alone = indent.bytes().all(|byte| matches!(byte, b' ' | b'\t'));
        (line > open && is_alone).then_some(indent)
    }

    /// How much deeper than their keys this text writes the dashes of lists.
    fn before_dash(&self, neighbour: &Entry) -> String {
        let Value::List(list) = &neighbour.link.node.value else {
            return String::new();
        };
        let first = list.items.first();
        let first = first.filter(|link| !link.is_alias && list.style == Style::Block);
        let dash = first.and_then(|first| self.dash(first.node.start));
        let column = |at: usize| at - self.line_start(at);
        let deeper = dash.map_or(0, |dash| {
            column(dash).saturating_sub(column(neighbour.start))
        });
        " ".repeat(deeper)
    }

    /// The dash of the item that begins here. Between the two stand only blanks and comments.
    fn dash(&self, item: usize) -> Option<usize> {
        let mut line = self.line_start(item);
        let mut end = item;
        loop {
            let text = self.between(line, end);
            let blank = text.len() - text.trim_start().len();
            if text.trim_start().starts_with('-') {
                return Some(line + blank);
            }
            end = line.checked_sub(1)?;
            line = self.line_start(end);
        }
    }

    /// Comments right above a line, indented as it is, belong to it. Above `floor` is the text of
    /// another value, and what looks like a comment there is none.
    fn above_comments(&self, mut line: usize, indent: &str, floor: usize) -> usize {
        while let Some(end) = line.checked_sub(1) {
            let above = self.line_start(end);
            let text = self.between(above, end);
            let is_its_own = text
                .strip_prefix(indent)
                .is_some_and(|rest| rest.starts_with('#'));
            if !is_its_own || above < floor {
                break;
            }
            line = above;
        }
        line
    }

    fn line_start(&self, at: usize) -> usize {
        let before = self.text.get(..at).unwrap_or_default();
        before.rfind('\n').map_or(0, |end| end + 1)
    }

    fn next_line(&self, at: usize) -> usize {
        let rest = self.text.get(at..).unwrap_or_default();
        rest.find('\n').map_or(self.text.len(), |end| at + end + 1)
    }

    /// As the line above ends, or this one where there is none above.
    fn line_ending(&self, line: usize) -> &'static str {
        let above = self.text.get(..line).unwrap_or_default();
        let own = self.between(line, self.next_line(line));
        match (above.is_empty(), above.ends_with("\r\n"), own) {
            (false, true, _) => "\r\n",
            (true, _, own) if own.ends_with("\r\n") => "\r\n",
            _ => "\n",
        }
    }

    fn between(&self, from: usize, to: usize) -> &str {
        self.text.get(from..to).unwrap_or_default()
    }
}

impl Edit {
    fn insert(at: usize, text: String) -> Self {
        Self {
            range: at..at,
            text,
        }
    }
}

const SHARED: &str = "is an alias, is named by one or comes from a merge key, so its text has other users too: write it out";
const NO_LINE: &str = "is written in a way that no line fits into: write it on lines of its own";

#[cfg(test)]
mod tests {
    use super::{super::tree::read, Item, Spot, add_to_list, apply};

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let documents = read(text).unwrap();
        let spec = Spot::root(&documents[0]).get("spec").unwrap();
        let items = vec![Item::Map(vec![("name", "new".into())])];
        let edit = add_to_list(text, &spec, "init", items, "containers").unwrap();
        let edited = apply(text, vec![edit]);
        assert_eq!(edited, expected);
        let documents = read(&edited).unwrap();
        let spec = Spot::root(&documents[0]).get("spec").unwrap();
        let first = spec.list("init");
        assert_eq!(first[0].text_of("name"), Some("new"));
    }

    #[test]
    fn a_list_is_added_as_its_neighbours_are_written() {
        check(
            "spec:\n  # the app\n  containers:\n    - name: a\n",
            "spec:\n  init:\n    - name: new\n  # the app\n  containers:\n    - name: a\n",
        );
        check(
            "spec:\r\n  x: |\r\n    # no comment\r\n  containers:\r\n  - name: a",
            "spec:\r\n  x: |\r\n    # no comment\r\n  init:\r\n  - name: new\r\n  containers:\r\n  - name: a",
        );
        check(
            "spec: {containers: [{name: a}]}",
            "spec: {\"init\": [{\"name\": \"new\"}], containers: [{name: a}]}",
        );
        check(
            "{\n  \"spec\": {\n    \"containers\": []\n  }\n}\n",
            "{\n  \"spec\": {\n    \"init\": [\n      {\"name\": \"new\"}\n    ],\n    \"containers\": []\n  }\n}\n",
        );
    }

    #[test]
    fn what_looks_like_a_comment_in_another_value_is_none() {
        check(
            "spec:\n  nodeName: \"a\n  # b\"\n  containers: []\n",
            "spec:\n  nodeName: \"a\n  # b\"\n  init:\n  - name: new\n  containers: []\n",
        );
        check(
            "spec:\n  nodeName: \"a\"\n  # b\n  containers: []\n",
            "spec:\n  nodeName: \"a\"\n  init:\n  - name: new\n  # b\n  containers: []\n",
        );
    }

    #[test]
    fn items_are_added_before_those_that_are_there() {
        check(
            "spec:\n  init:\n  # waits\n  - name: a\n  containers: []\n",
            "spec:\n  init:\n  - name: new\n  # waits\n  - name: a\n  containers: []\n",
        );
        check(
            "spec:\n  containers: []\n  init:\n    -   # odd\n        name: a\n",
            "spec:\n  containers: []\n  init:\n    - name: new\n    -   # odd\n        name: a\n",
        );
        check(
            "spec:\n  init: [{name: a}] # all\n  containers: []\n",
            "spec:\n  init: [{\"name\": \"new\"}, {name: a}] # all\n  containers: []\n",
        );
        check(
            "spec:\n  init:\n    [\n      {name: a},\n    ]\n  containers: []\n",
            "spec:\n  init:\n    [\n      {\"name\": \"new\"},\n      {name: a},\n    ]\n  containers: []\n",
        );
    }

    #[test]
    fn nothing_becomes_a_list() {
        check(
            "spec:\n  init: []\n  containers: []\n",
            "spec:\n  init: [{\"name\": \"new\"}]\n  containers: []\n",
        );
        check(
            "spec:\n  init: null # none\n  containers: []\n",
            "spec:\n  init: [{\"name\": \"new\"}] # none\n  containers: []\n",
        );
        check(
            "spec:\n  init: # none\n  containers: []\n",
            "spec:\n  init: # none\n  - name: new\n  containers: []\n",
        );
        check(
            "spec:\n  containers: []\n  init:",
            "spec:\n  containers: []\n  init:\n  - name: new\n",
        );
    }

    #[test]
    fn what_others_use_is_not_edited() {
        for (text, path) in [
            (
                "b: &b [{name: a}]\nspec: {init: *b, containers: []}\n",
                "spec.init",
            ),
            (
                "b: &b {init: [{name: a}]}\nspec: {<<: *b, containers: []}\n",
                "spec.init",
            ),
            ("b: &b {containers: []}\nspec: *b\n", "spec.init"),
            ("b: &b {containers: []}\nspec: {<<: *b}\n", "spec.init"),
        ] {
            let documents = read(text).unwrap();
            let spec = Spot::root(&documents[0]).get("spec").unwrap();
            let refused = add_to_list(text, &spec, "init", Vec::new(), "containers").unwrap_err();
            assert_eq!(refused.path, path, "{text}");
            assert!(refused.to_string().contains("write it out"));
        }
    }
}
