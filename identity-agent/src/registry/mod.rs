//! The Workloads of this node: from the folder of their documents, and registered over the admin
//! socket.
//!
//! A folder with a mistake is refused whole, and so is a change that does not fit to what is there;
//! the last good set stays in force.

mod matching;
mod store;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use postern_policies::{
    Diagnostic, Options, PolicySet, SourceFile, files,
    model::workload::{Workload, WorkloadName},
};

pub use matching::{Miss, matching, nearest_misses};
pub use store::{Store, StoreError};

/// The Workloads in force.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    options: Options,
    /// Locked while something changes.
    kept: Mutex<Kept>,
    current: ArcSwap<PolicySet>,
}

/// Where the Workloads come from.
#[derive(Debug)]
struct Kept {
    /// What the folder held when it was good last: a mistake in it does not keep anybody from taking a
    /// registered Workload away.
    folder: Vec<SourceFile>,
    store: Option<Store>,
}

/// Why Workloads could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file cannot be read.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// A document has mistakes.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Mistakes(Vec<Diagnostic>),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no Workload in what was sent.
    #[error("there is no Workload in it: send `Workload` documents or entries of SPIRE")]
    Nothing,
    /// One of this name is there.
    #[error("there is a Workload `{0}` already; `--replace` replaces it")]
    Exists(WorkloadName),
    /// It was not registered over the admin socket.
    #[error("there is no Workload `{0}` that was registered with `workload create`")]
    Unknown(String),
}

impl Registry {
    /// Reads folder and database for the first time.
    ///
    /// # Errors
    /// [`RegistryError`]; callers do not start.
    pub fn open(
        folder: PathBuf,
        options: Options,
        store: Option<Store>,
    ) -> Result<Self, RegistryError> {
        let kept = Kept {
            folder: files::read_documents(&folder)?,
            store,
        };
        let first = load(&kept.folder, &kept.registered()?, &options)?;
        Ok(Self {
            folder,
            options,
            kept: Mutex::new(kept),
            current: ArcSwap::from_pointee(first),
        })
    }

    /// The Workloads in force.
    pub fn current(&self) -> Arc<PolicySet> {
        self.current.load_full()
    }

    /// The names of those that were registered over the admin socket.
    pub fn registered(&self) -> BTreeSet<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let all = kept.registered().unwrap_or_default();
        all.into_iter().map(|(name, _)| name).collect()
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads the folder again.
    ///
    /// # Errors
    /// [`RegistryError`]; the set before stays in force.
    pub fn reload(&self) -> Result<usize, RegistryError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = files::read_documents(&self.folder)?;
        let next = load(&folder, &kept.registered()?, &self.options)?;
        kept.folder = folder;
        let count = next.workloads().count();
        self.current.store(Arc::new(next));
        Ok(count)
    }

    /// Registers the Workloads of a text, all or none. Tells their names.
    ///
    /// # Errors
    /// [`RegistryError`]; nothing has changed then.
    pub fn create(&self, text: Vec<u8>, replace: bool) -> Result<Vec<WorkloadName>, RegistryError> {
        let sent = SourceFile {
            path: PathBuf::from("sent"),
            text,
        };
        let options = Options {
            workloads_only: true,
            ..self.options.clone()
        };
        let sent = PolicySet::load(&[sent], &options).map_err(RegistryError::Mistakes)?;
        let sent: Vec<&Workload> = sent.set.workloads().collect();
        if sent.is_empty() {
            return Err(RegistryError::Nothing);
        }
        let documents = sent.iter().map(|workload| {
            let document = workload.to_document().to_string();
            (workload.name.to_string(), document)
        });
        let documents: Vec<(String, String)> = documents.collect();
        let names = sent.iter().map(|workload| workload.name.clone());
        let names: Vec<WorkloadName> = names.collect();

        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = kept.registered()?;
        let is_sent = |name: &str| documents.iter().any(|(one, _)| one == name);
        if !replace && let Some(known) = all.iter().find(|(name, _)| is_sent(name)) {
            let mut names = names.iter();
            let name = names.find(|name| name.to_string() == known.0);
            return Err(name.map_or(RegistryError::Nothing, |name| {
                RegistryError::Exists(name.clone())
            }));
        }
        all.retain(|(name, _)| !is_sent(name));
        all.extend(documents.iter().cloned());
        // What the folder has by the same name is told with its file.
        let next = load(&kept.folder, &all, &self.options)?;
        if let Some(store) = &kept.store {
            store.put(&documents)?;
        }
        self.current.store(Arc::new(next));
        Ok(names)
    }

    /// Takes a registered Workload away.
    ///
    /// # Errors
    /// [`RegistryError`]; nothing has changed then.
    pub fn delete(&self, name: &str) -> Result<(), RegistryError> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = kept.registered()?;
        let before = all.len();
        all.retain(|(one, _)| one != name);
        if all.len() == before {
            return Err(RegistryError::Unknown(name.to_owned()));
        }
        let next = load(&kept.folder, &all, &self.options)?;
        if let Some(store) = &kept.store {
            store.remove(name)?;
        }
        self.current.store(Arc::new(next));
        Ok(())
    }
}

impl Kept {
    fn registered(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.store
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), Store::all)
    }
}

/// The folder's documents, and those that were registered.
fn load(
    folder: &[SourceFile],
    registered: &[(String, String)],
    options: &Options,
) -> Result<PolicySet, RegistryError> {
    let mut files = folder.to_vec();
    files.extend(registered.iter().map(|(name, document)| SourceFile {
        path: PathBuf::from(format!("registry:{name}")),
        text: document.clone().into_bytes(),
    }));
    let loaded = PolicySet::load(&files, options).map_err(RegistryError::Mistakes)?;
    for warning in loaded.warnings {
        tracing::warn!(%warning, "a document is legal, and probably not what is meant");
    }
    Ok(loaded.set)
}
