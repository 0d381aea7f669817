//! What is put into a manifest, and how it is written: as a block, as JSON (which is YAML in
//! brackets), or as a JSON value.

use std::fmt::Write as _;

/// A value whose maps keep their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Text(String),
    Number(i64),
    Bool(bool),
    List(Vec<Item>),
    Map(Vec<(&'static str, Item)>),
    /// A map of one entry whose key is somebody's name.
    Named(String, Box<Item>),
}

impl Item {
    /// A list of texts.
    pub(super) fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::List(texts.into_iter().map(Self::from).collect())
    }

    /// For a patch.
    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Text(text) => text.clone().into(),
            Self::Number(number) => (*number).into(),
            Self::Bool(value) => (*value).into(),
            Self::List(items) => items.iter().map(Self::json).collect(),
            Self::Map(_) | Self::Named(..) => {
                let entries = self.entries().into_iter();
                let entries = entries.map(|(key, item)| (key.to_owned(), item.json()));
                serde_json::Value::Object(entries.collect())
            }
        }
    }

    /// On one line: JSON, which YAML reads in every collection in brackets.
    pub(super) fn in_brackets(&self) -> String {
        match self {
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(Self::in_brackets).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Map(_) | Self::Named(..) => {
                let entries = self.entries().into_iter();
                let entries: Vec<String> = entries
                    .map(|(key, item)| format!("{}: {}", quoted(key), item.in_brackets()))
                    .collect();
                format!("{{{}}}", entries.join(", "))
            }
            Self::Text(text) => quoted(text),
            Self::Number(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
        }
    }

    /// Writes `key: value` as lines, each with this indentation and ending.
    pub(super) fn entry(&self, key: &str, layout: &Layout<'_>) -> String {
        let mut out = String::new();
        self.write_entry(key, layout, layout.indent, &mut out);
        out
    }

    /// Writes an item of a list as lines.
    pub(super) fn item(&self, layout: &Layout<'_>) -> String {
        let mut out = String::new();
        self.write_item(layout, layout.indent, &mut out);
        out
    }

    fn write_entry(&self, key: &str, layout: &Layout<'_>, indent: &str, out: &mut String) {
        let end = layout.line_ending;
        let key = plain_or_quoted(key);
        match self {
            Self::List(items) if items.iter().any(|item| !item.is_scalar()) => {
                let _ = write!(out, "{indent}{key}:{end}");
                let indent = format!("{indent}{}", layout.before_dash);
                for item in items {
                    item.write_item(layout, &indent, out);
                }
            }
            Self::Map(_) | Self::Named(..) if !self.entries().is_empty() => {
                let _ = write!(out, "{indent}{key}:{end}");
                let indent = format!("{indent}  ");
                for (key, item) in self.entries() {
                    item.write_entry(key, layout, &indent, out);
                }
            }
            _ => {
                let _ = write!(out, "{indent}{key}: {}{end}", self.short());
            }
        }
    }

    fn write_item(&self, layout: &Layout<'_>, indent: &str, out: &mut String) {
        let inner = format!("{indent}  ");
        let mut lines = String::new();
        match self {
            Self::Map(_) | Self::Named(..) => {
                for (key, item) in self.entries() {
                    item.write_entry(key, layout, &inner, &mut lines);
                }
            }
            _ => {
                let _ = write!(lines, "{inner}{}{}", self.short(), layout.line_ending);
            }
        }
        let rest = lines.strip_prefix(inner.as_str()).unwrap_or(&lines);
        let _ = write!(out, "{indent}- {rest}");
    }

    /// What fits behind a key.
    fn short(&self) -> String {
        match self {
            Self::Text(text) => plain_or_quoted(text),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(Self::short).collect();
                format!("[{}]", items.join(", "))
            }
            _ => self.in_brackets(),
        }
    }

    fn is_scalar(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Number(_) | Self::Bool(_))
    }

    fn entries(&self) -> Vec<(&str, &Self)> {
        match self {
            Self::Map(entries) => entries.iter().map(|(key, item)| (*key, item)).collect(),
            Self::Named(key, item) => vec![(key, item)],
            _ => Vec::new(),
        }
    }
}

impl<T: Into<String>> From<T> for Item {
    fn from(text: T) -> Self {
        Self::Text(text.into())
    }
}

/// How the text around is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout<'a> {
    /// Before each line.
    pub(super) indent: &'a str,
    /// How much deeper than its key the dash of a list stands.
    pub(super) before_dash: &'a str,
    pub(super) line_ending: &'a str,
}

/// In quotes, unless every reader of YAML takes it for the same string without.
fn plain_or_quoted(text: &str) -> String {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "/._-:@".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        || text.starts_with("./")
        || text.strip_prefix("--").is_some_and(|rest| {
            rest.starts_with(|c: char| c.is_ascii_alphabetic()) && !rest.contains(':')
        });
    let is_word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n" | "null"
    );
    let is_number = text.parse::<f64>().is_ok();
    match begins && text.chars().all(is_inner) && !text.ends_with(':') && !is_word && !is_number {
        true => text.to_owned(),
        false => quoted(text),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::{Item, Layout, plain_or_quoted};

    #[test]
    fn a_block_is_laid_out_like_its_surroundings() {
        let item = Item::List(vec![Item::Map(vec![
            ("name", "a".into()),
            ("command", Item::texts(["/bin/a", "--port", "22,80"])),
            ("env", Item::List(vec![Item::Map(vec![("on", "1".into())])])),
            ("empty", Item::Map(Vec::new())),
        ])]);
        let layout = Layout {
            indent: "  ",
            before_dash: "  ",
            line_ending: "\r\n",
        };
        assert_eq!(
            item.entry("containers", &layout).replace("\r\n", "\n"),
            "  containers:\n    - name: a\n      command: [/bin/a, --port, \"22,80\"]\n      \
             env:\n        - \"on\": \"1\"\n      empty: {}\n"
        );
        assert_eq!(
            item.in_brackets(),
            r#"[{"name": "a", "command": ["/bin/a", "--port", "22,80"], "env": [{"on": "1"}], "empty": {}}]"#
        );
    }

    #[test]
    fn only_what_no_reader_takes_for_something_else_goes_without_quotes() {
        for plain in [
            "/postern-proxy",
            "--config",
            "postern/proxy:0.1.0",
            "unix:///run/a.sock",
            "./a",
        ] {
            assert_eq!(plain_or_quoted(plain), plain);
        }
        for text in [
            "yes", "No", "1", "1e3", "", "-", "--", "a: b", "a:", "a #b", "{a", "*a", ".5", "inf",
            ".nan", "~",
        ] {
            assert!(plain_or_quoted(text).starts_with('"'), "{text}");
        }
    }
}
