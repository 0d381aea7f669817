//! Whether all that stood in a text means the same after an edit: the last look before it is printed.

use std::{collections::HashMap, rc::Rc};

use super::tree::{Link, Node, Value};

/// Were only items added in front of lists, entries to maps, and lists in the place of nothing?
pub(super) fn all(before: &[Rc<Node>], after: &[Rc<Node>]) -> bool {
    let mut pairs = before.iter().zip(after);
    before.len() == after.len() && pairs.all(|(before, after)| node(before, after))
}

fn node(before: &Node, after: &Node) -> bool {
    match (&before.value, &after.value) {
        (Value::Scalar(one), Value::Scalar(other)) => {
            (&one.text, one.is_plain) == (&other.text, other.is_plain)
        }
        (Value::Scalar(nothing), Value::List(_)) => nothing.is_null(),
        (Value::List(one), Value::List(other)) => {
            let Some(added) = other.items.len().checked_sub(one.items.len()) else {
                return false;
            };
            let mut pairs = one.items.iter().zip(other.items.iter().skip(added));
            pairs.all(|(before, after)| link(before, after))
        }
        (Value::Map(one), Value::Map(other)) => {
            let others = other.entries.iter();
            let others: HashMap<_, _> = others.map(|entry| (&entry.key, &entry.link)).collect();
            let mut entries = one.entries.iter();
            entries.all(|entry| {
                let after = others.get(&entry.key);
                after.is_some_and(|after| link(&entry.link, after))
            })
        }
        _ => false,
    }
}

/// What an alias names is looked at where it stands.
fn link(before: &Link, after: &Link) -> bool {
    match (before.is_alias, after.is_alias) {
        (true, true) => true,
        (false, false) => node(&before.node, &after.node),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tree::read, all};

    #[test]
    fn what_is_lost_or_changed_is_seen_and_what_is_added_is_not() {
        let before = "a: &a [1]\nb: {c: ~}\nd: *a\n";
        for (after, expected) in [
            (before, true),
            ("a: &a [0, 1]\nb: {x: y, c: [z]}\nd: *a\ne: f\n", true),
            ("a: &a [1, 0]\nb: {c: ~}\nd: *a\n", false),
            ("a: &a ['1']\nb: {c: ~}\nd: *a\n", false),
            ("a: &a []\nb: {c: ~}\nd: *a\n", false),
            ("a: &a [1]\nb: {}\nd: *a\n", false),
            ("a: &a [1]\nb: {c: x}\nd: *a\n", false),
            ("a: &a [1]\nb: {c: ~}\nd: [1]\n", false),
            ("a: &a [1]\nb: {c: ~}\nd: *a\n---\nx: y\n", false),
        ] {
            let (before, after_read) = (read(before).unwrap(), read(after).unwrap());
            assert_eq!(all(&before, &after_read), expected, "{after}");
        }
    }
}
