//! Macros that nearly every rule uses, for files that do not define them. A file's own one wins.

use std::collections::BTreeMap;

use super::{
    condition::{Expr, parse},
    written::{Spot, Written},
};

/// By their names.
pub(super) fn macros() -> BTreeMap<&'static str, Expr> {
    let read = MACROS.iter().filter_map(|(name, condition)| {
        let written = Written::of(&[], Spot::default(), condition);
        Some((*name, parse(&written).ok()?))
    });
    read.collect()
}

const MACROS: [(&str, &str); 5] = [
    ("spawned_process", "evt.type in (execve, execveat)"),
    ("container", "container.id != host"),
    ("proc_name_exists", "proc.name exists"),
    ("never_true", "evt.num = 0"),
    ("always_true", "evt.num >= 0"),
];

#[cfg(test)]
mod tests {
    #[test]
    fn all_of_them_can_be_read() {
        assert_eq!(super::macros().len(), super::MACROS.len());
    }
}
