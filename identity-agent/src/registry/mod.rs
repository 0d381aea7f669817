//! The Workloads of this node, from the folder of their documents.
//!
//! A folder with a mistake is refused whole; the last good set stays in force.

mod matching;

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use postern_policies::{Diagnostic, Options, PolicySet, files};

pub use matching::{Miss, matching, nearest_misses};

/// The Workloads in force.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    options: Options,
    current: ArcSwap<PolicySet>,
}

/// Why the folder could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file cannot be read.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// A document has mistakes.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Mistakes(Vec<Diagnostic>),
}

impl Registry {
    /// Reads the folder for the first time.
    ///
    /// # Errors
    /// [`RegistryError`]; callers do not start.
    pub fn open(folder: PathBuf, options: Options) -> Result<Self, RegistryError> {
        let first = load(&folder, &options)?;
        Ok(Self {
            folder,
            options,
            current: ArcSwap::from_pointee(first),
        })
    }

    /// The Workloads in force.
    pub fn current(&self) -> Arc<PolicySet> {
        self.current.load_full()
    }

    /// The folder.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Reads the folder again.
    ///
    /// # Errors
    /// [`RegistryError`]; the set before stays in force.
    pub fn reload(&self) -> Result<usize, RegistryError> {
        let next = load(&self.folder, &self.options)?;
        let count = next.workloads().count();
        self.current.store(Arc::new(next));
        Ok(count)
    }
}

fn load(folder: &std::path::Path, options: &Options) -> Result<PolicySet, RegistryError> {
    let files = files::read_documents(folder)?;
    PolicySet::load(&files, options)
        .map(|loaded| loaded.set)
        .map_err(RegistryError::Mistakes)
}
