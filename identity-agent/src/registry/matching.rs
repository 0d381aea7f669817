//! Which Workloads a process is. Pure.

use std::collections::BTreeSet;

use postern_policies::model::workload::Workload;
use postern_spiffe::Selector;

/// The Workloads whose selectors the process has, all of them, in the order of their names. A
/// Workload without selectors is nobody's.
pub fn matching<'w>(
    workloads: impl Iterator<Item = &'w Workload>,
    selectors: &BTreeSet<Selector>,
) -> Vec<&'w Workload> {
    workloads
        .filter(|workload| !workload.selectors.is_empty())
        .filter(|workload| workload.selectors.iter().all(|one| selectors.contains(one)))
        .collect()
}

/// A Workload that a process is not, and what it lacks.
#[derive(Debug)]
pub struct Miss<'w> {
    /// The Workload.
    pub workload: &'w Workload,
    /// The selectors that the process does not have.
    pub missing: Vec<&'w Selector>,
}

/// The Workloads that a process nearly is: those that lack least, at most `limit`.
pub fn nearest_misses<'w>(
    workloads: impl Iterator<Item = &'w Workload>,
    selectors: &BTreeSet<Selector>,
    limit: usize,
) -> Vec<Miss<'w>> {
    let mut misses: Vec<Miss<'w>> = workloads
        .filter(|workload| !workload.selectors.is_empty())
        .map(|workload| Miss {
            workload,
            missing: workload
                .selectors
                .iter()
                .filter(|one| !selectors.contains(*one))
                .collect(),
        })
        .filter(|miss| !miss.missing.is_empty())
        .collect();
    misses.sort_by_key(|miss| miss.missing.len());
    misses.truncate(limit);
    misses
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::PathBuf};

    use postern_policies::{Options, PolicySet, SourceFile};
    use postern_spiffe::{Selector, TrustDomain};

    use super::{matching, nearest_misses};

    fn set() -> PolicySet {
        let document = |name: &str, selectors: &str| {
            format!(
                "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\n\
                 spec: {{serviceAccount: {name}{selectors}}}\n---\n"
            )
        };
        let text = [
            document("b", ", selectors: ['unix:uid:1', 'unix:gid:2']"),
            document("a", ", selectors: ['unix:uid:1']"),
            document("nobody", ""),
        ]
        .concat();
        let file = SourceFile {
            path: PathBuf::from("w.yaml"),
            text: text.into_bytes(),
        };
        let options = Options::new(TrustDomain::parse("example.org").unwrap());
        PolicySet::load(&[file], &options).unwrap().set
    }

    #[track_caller]
    fn check(selectors: &[&str], expected: &[&str]) {
        let set = set();
        let selectors: BTreeSet<Selector> = selectors
            .iter()
            .map(|text| Selector::parse(text).unwrap())
            .collect();
        let names: Vec<_> = matching(set.workloads(), &selectors)
            .iter()
            .map(|workload| workload.name.name.to_string())
            .collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_process_is_every_workload_whose_selectors_it_has() {
        check(&["unix:uid:1", "unix:gid:2", "unix:gid:3"], &["a", "b"]);
        check(&["unix:uid:1", "unix:gid:3"], &["a"]);
        check(&["unix:gid:2"], &[]);
        check(&[], &[]);
    }

    #[test]
    fn the_nearest_misses_name_what_is_missing() {
        let set = set();
        let has = BTreeSet::from([Selector::parse("unix:uid:1").unwrap()]);
        let misses = nearest_misses(set.workloads(), &has, 3);
        let [miss] = misses.as_slice() else {
            panic!("{misses:?}")
        };
        assert_eq!(miss.workload.name.to_string(), "default/b");
        assert_eq!(miss.missing, [&Selector::parse("unix:gid:2").unwrap()]);
    }
}
