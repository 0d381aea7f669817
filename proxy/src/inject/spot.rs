//! Walking through a tree: each value is named by its path, and merge keys are looked through.

use std::collections::HashSet;

use postern_policies::diagnostic::Place;

use super::tree::{Entry, Link, MERGE, Map, Node, Value};

/// A value, and how it was reached.
#[derive(Debug, Clone)]
pub(super) struct Spot<'t> {
    pub(super) node: &'t Node,
    /// Where the key or item stands that leads here.
    pub(super) at: Place,
    /// Such as `spec.containers[0].name`.
    pub(super) path: String,
    /// An alias or a merge key led here: the text belongs to others as well.
    pub(super) is_shared: bool,
}

impl<'t> Spot<'t> {
    /// The root of a document.
    pub(super) fn root(node: &'t Node) -> Self {
        Self {
            node,
            at: node.at,
            path: String::new(),
            is_shared: node.is_named.get(),
        }
    }

    /// The value of a key. A null is the same as nothing, as Kubernetes has it.
    pub(super) fn get(&self, key: &str) -> Option<Self> {
        let (entry, is_merged) = find(self.map()?, key)?;
        self.under(entry, is_merged)
    }

    fn under(&self, entry: &'t Entry, is_merged: bool) -> Option<Self> {
        let node = &*entry.link.node;
        if matches!(&node.value, Value::Scalar(scalar) if scalar.is_null()) {
            return None;
        }
        Some(Self {
            node,
            at: entry.at,
            path: self.path_of(&entry.key),
            is_shared: self.is_shared || is_merged || entry.link.is_alias || node.is_named.get(),
        })
    }

    /// The value at the end of a path.
    pub(super) fn at(&self, path: &[&str]) -> Option<Self> {
        path.iter()
            .try_fold(self.clone(), |spot, key| spot.get(key))
    }

    /// The key itself, where this very map has it, with or without a value.
    pub(super) fn entry(&self, key: &str) -> Option<&'t Entry> {
        self.map()?.entries.iter().find(|entry| entry.key == key)
    }

    /// The map that this is.
    pub(super) fn map(&self) -> Option<&'t Map> {
        match &self.node.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// All keys with their values, those of merge keys too.
    pub(super) fn entries(&self) -> Vec<(&'t str, Self)> {
        let mut found = Vec::new();
        if let Some(map) = self.map() {
            self.collect(map, false, &mut HashSet::new(), &mut found);
        }
        found
    }

    fn collect(
        &self,
        map: &'t Map,
        is_merged: bool,
        seen: &mut HashSet<&'t str>,
        found: &mut Vec<(&'t str, Self)>,
    ) {
        for entry in &map.entries {
            let is_new = entry.key != MERGE && seen.insert(&entry.key);
            if let Some(spot) = is_new.then(|| self.under(entry, is_merged)).flatten() {
                found.push((&entry.key, spot));
            }
        }
        for base in merged(map) {
            self.collect(base, true, seen, found);
        }
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Vec<Self> {
        let Value::List(list) = &self.node.value else {
            return Vec::new();
        };
        let spot = |(index, link): (usize, &'t Link)| Self {
            node: &link.node,
            at: link.node.at,
            path: format!("{}[{index}]", self.path),
            is_shared: self.is_shared || link.is_alias || link.node.is_named.get(),
        };
        list.items.iter().enumerate().map(spot).collect()
    }

    /// The items of the list under a key.
    pub(super) fn list(&self, key: &str) -> Vec<Self> {
        self.get(key).map(|spot| spot.items()).unwrap_or_default()
    }

    /// What was written, in quotes or not.
    pub(super) fn text(&self) -> Option<&'t str> {
        match &self.node.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            _ => None,
        }
    }

    /// The text under a key.
    pub(super) fn text_of(&self, key: &str) -> Option<&'t str> {
        self.get(key)?.text()
    }

    /// A string as Kubernetes wants it: one in quotes, or one that is nothing else.
    pub(super) fn string(&self) -> Option<&'t str> {
        match &self.node.value {
            Value::Scalar(scalar) if !scalar.is_plain || !looks_otherwise(&scalar.text) => {
                Some(&scalar.text)
            }
            _ => None,
        }
    }

    /// Is it anything but a plain `false`? Of what weakens a pod the worse reading counts.
    pub(super) fn may_be_true(&self) -> bool {
        !matches!(
            self.text(),
            Some("false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n")
        )
    }

    /// A whole number, in every form that YAML or JSON has for it.
    pub(super) fn number(&self) -> Option<i64> {
        let text = self.text()?.replace('_', "");
        let of = |digits: &str, base| i64::from_str_radix(digits, base).ok();
        match text.as_bytes() {
            [b'0', b'x' | b'X', ..] => of(text.get(2..)?, 16),
            [b'0', b'o' | b'O', ..] => of(text.get(2..)?, 8),
            [b'0', b'b' | b'B', ..] => of(text.get(2..)?, 2),
            [b'0', _, ..] if !text.contains('.') => of(&text, 8),
            _ => text.parse().ok(),
        }
    }

    /// The path of a key in this map.
    pub(super) fn path_of(&self, key: &str) -> String {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '$';
        match (self.path.as_str(), key.chars().all(is_word)) {
            ("", true) => key.to_owned(),
            (path, true) => format!("{path}.{key}"),
            (path, false) => format!("{path}[\"{key}\"]"),
        }
    }
}

/// Own keys count before merged ones, and of these the first.
fn find<'t>(map: &'t Map, key: &str) -> Option<(&'t Entry, bool)> {
    if let Some(entry) = map.entries.iter().find(|entry| entry.key == key) {
        return Some((entry, false));
    }
    let found = merged(map).find_map(|base| find(base, key));
    found.map(|(entry, _)| (entry, true))
}

/// The maps that a map takes in: `<<: *base`, `<<: [*one, *other]`.
fn merged(map: &Map) -> impl Iterator<Item = &Map> {
    let bases = map.entries.iter();
    let bases = bases.filter(|entry| map.merges > 0 && entry.key == MERGE);
    let bases = bases.flat_map(|entry| match &entry.link.node.value {
        Value::List(list) => list.items.iter().map(|link| &*link.node).collect(),
        _ => vec![&*entry.link.node],
    });
    bases.filter_map(|node| match &node.value {
        Value::Map(map) => Some(map),
        _ => None,
    })
}

/// Would Kubernetes read it as something else than a string?
fn looks_otherwise(text: &str) -> bool {
    let word = text.to_ascii_lowercase();
    let is_word = matches!(
        word.as_str(),
        "" | "~" | "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    is_word || text.parse::<f64>().is_ok() || text.starts_with("0x") || text.starts_with("0o")
}

#[cfg(test)]
mod tests {
    use super::{super::tree::read, Spot};

    #[test]
    fn merge_keys_are_looked_through_and_known_as_shared() {
        let documents =
            read("base: &b {x: 1, y: 2}\nweb: {<<: *b, y: 3}\ncopy: *b\nnone: ~\n").unwrap();
        let root = Spot::root(&documents[0]);
        let web = root.get("web").unwrap();
        let (x, y) = (web.get("x").unwrap(), web.get("y").unwrap());
        assert_eq!((x.text(), x.is_shared), (Some("1"), true));
        assert_eq!((y.text(), y.is_shared), (Some("3"), false));
        assert_eq!(y.path, "web.y");
        assert_eq!(web.entries().len(), 2);
        assert!(root.at(&["copy", "x"]).unwrap().is_shared);
        assert!(root.get("none").is_none() && root.entry("none").is_some());
        assert_eq!(root.path_of("a.b/c"), "[\"a.b/c\"]");
    }

    #[test]
    fn a_number_is_one_in_every_form() {
        for text in [
            "1337",
            "0x539",
            "0o2471",
            "02471",
            "1_337",
            "\"1337\"",
            "0b10100111001",
        ] {
            let documents = read(&format!("uid: {text}\n")).unwrap();
            let uid = Spot::root(&documents[0]).get("uid").unwrap();
            assert_eq!(uid.number(), Some(1337), "{text}");
        }
    }
}
