//! The rules that Workloads name: files beside their folder, read and checked with it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use postern_policies::{
    PolicySet, SourceFile,
    model::workload::{Workload, WorkloadName},
};

use super::RegistryError;
use crate::{
    guarded,
    rules::{MAX_FILE_BYTES, RuleSet},
};

/// The rules of each Workload that has some.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    of: BTreeMap<WorkloadName, (Texts, Arc<RuleSet>)>,
}

/// What the files held, in their order.
type Texts = Vec<(PathBuf, Vec<u8>)>;

impl Rules {
    /// Reads the files that Workloads name. What has not changed since `before` is that.
    ///
    /// # Errors
    /// A file cannot be read, can be changed by others, or is none of rules.
    pub(super) fn read(
        folder: &Path,
        set: &PolicySet,
        before: Option<&Self>,
    ) -> Result<Self, RegistryError> {
        let mut rules = Self::default();
        for workload in set.workloads() {
            let paths = paths(folder, workload);
            if paths.is_empty() {
                continue;
            }
            let texts: io::Result<Texts> = paths
                .into_iter()
                .map(|path| Ok((path.clone(), text(&path)?)))
                .collect();
            let texts = texts?;
            let known = before.and_then(|before| before.of.get(&workload.name));
            let read = match known.filter(|(known, _)| *known == texts) {
                Some((_, known)) => known.clone(),
                None => Arc::new(loaded(workload, &texts)?),
            };
            rules.of.insert(workload.name.clone(), (texts, read));
        }
        Ok(rules)
    }

    /// Those of a Workload.
    pub(super) fn of(&self, workload: &WorkloadName) -> Option<Arc<RuleSet>> {
        self.of.get(workload).map(|(_, rules)| rules.clone())
    }

    /// Are they the same as these?
    pub(super) fn are(&self, others: &Self) -> bool {
        let mut both = self.of.iter().zip(&others.of);
        self.of.len() == others.of.len()
            && both.all(|((name, (_, own)), (other_name, (_, other)))| {
                name == other_name && Arc::ptr_eq(own, other)
            })
    }
}

/// Where the files of a Workload lie.
pub(super) fn paths(folder: &Path, workload: &Workload) -> Vec<PathBuf> {
    let named = workload
        .baseline
        .iter()
        .flat_map(|baseline| &baseline.rules);
    named.map(|file| folder.join(file)).collect()
}

fn text(path: &Path) -> io::Result<Vec<u8>> {
    let named = |error: io::Error| {
        let text = format!("cannot read the rules `{}`: {error}", path.display());
        io::Error::new(error.kind(), text)
    };
    guarded::check(path)?;
    let most = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX);
    let mut text = Vec::new();
    let file = File::open(path).map_err(named)?;
    file.take(most + 1).read_to_end(&mut text).map_err(named)?;
    Ok(text)
}

fn loaded(workload: &Workload, texts: &[(PathBuf, Vec<u8>)]) -> Result<RuleSet, RegistryError> {
    let sources = texts.iter().map(|(path, text)| SourceFile {
        path: path.clone(),
        text: text.clone(),
    });
    let sources: Vec<SourceFile> = sources.collect();
    let set = RuleSet::load(&sources);
    set.map_err(|found| RegistryError::Rules(workload.name.clone(), found))
}
