//! The policies that proxies are told, and whether they fit to the Workloads.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use postern_policies::{Diagnostic, Options, PolicySet, SourceFile};
use serde_json::{Value, json};

use super::RegistryError;
use crate::{guarded, kubernetes::ClusterObject};

/// The policies of a folder, as they were written.
#[derive(Debug, Clone)]
pub struct Policies {
    folder: Option<PathBuf>,
    options: Options,
    files: Arc<Vec<SourceFile>>,
    /// Those of the API server that no file is for.
    cluster: Arc<Vec<ClusterObject>>,
}

impl Policies {
    /// Those of a folder that is read later. Documents that name no namespace have that of `options`.
    pub fn of(folder: PathBuf, options: Options) -> Self {
        Self {
            folder: Some(folder),
            ..Self::without_folder(options)
        }
    }

    /// Those that somebody else tells.
    pub fn without_folder(options: Options) -> Self {
        Self {
            folder: None,
            options,
            files: Arc::default(),
            cluster: Arc::default(),
        }
    }

    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The namespace whose Istio policies hold everywhere.
    pub fn root_namespace(&self) -> String {
        self.options.root_namespace.clone()
    }

    /// The policies of the API server.
    pub fn of_cluster(&self) -> &[ClusterObject] {
        &self.cluster
    }

    /// The same, with these policies of the API server.
    pub(super) fn with(self, cluster: Vec<ClusterObject>) -> Self {
        Self {
            cluster: Arc::new(cluster),
            ..self
        }
    }

    /// The documents of the folder alone.
    ///
    /// # Errors
    /// [`RegistryError::Unfit`] with file and line.
    pub(super) fn alone(&self) -> Result<PolicySet, RegistryError> {
        let loaded = PolicySet::load(&self.files, &self.options);
        let loaded = loaded.map_err(|mistakes| self.unfit(mistakes));
        loaded.map(|loaded| loaded.set)
    }

    fn unfit(&self, mistakes: Vec<Diagnostic>) -> RegistryError {
        let folder = self
            .folder
            .clone()
            .unwrap_or_else(|| "the API server".into());
        RegistryError::Unfit(folder, mistakes)
    }

    /// The documents of the folder.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// The namespace of documents that name none.
    pub fn namespace(&self) -> &str {
        &self.options.namespace
    }

    /// The same folder, read again. Whether they load is asked with the Workloads that they are for.
    ///
    /// # Errors
    /// A file cannot be read, or all of them are too large.
    pub(super) fn read(&self) -> Result<Self, RegistryError> {
        let Some(folder) = &self.folder else {
            return Ok(self.clone());
        };
        let files = guarded::documents(folder)?;
        let bytes: usize = files.iter().map(|file| file.text.len()).sum();
        if bytes > MAX_BYTES {
            return Err(RegistryError::TooLarge {
                folder: folder.clone(),
                bytes,
            });
        }
        Ok(Self {
            files: Arc::new(files),
            ..self.clone()
        })
    }

    /// Do they load together with what proxies are told of these Workloads? A proxy that is told a pair
    /// that does not load keeps what it had.
    ///
    /// # Errors
    /// [`RegistryError::Unfit`] with file and line; callers keep the pair before.
    pub(super) fn fit(&self, workloads: &PolicySet) -> Result<(), RegistryError> {
        let mut all = self.files.to_vec();
        all.extend(self.cluster.iter().map(|one| one.file.clone()));
        all.extend(directory(workloads));
        match PolicySet::load(&all, &self.options) {
            Ok(_) => Ok(()),
            Err(mistakes) => Err(self.unfit(mistakes)),
        }
    }
}

/// What proxies are told of Workloads, as documents. Selectors stay here: they name what a thief would
/// have to be.
pub fn directory(workloads: &PolicySet) -> Vec<SourceFile> {
    let document = |path: String, value: Value| SourceFile {
        path: PathBuf::from(path),
        text: value.to_string().into_bytes(),
    };
    let entries = workloads.workloads().map(|workload| {
        let entry = workload.to_directory_entry();
        document(format!("agent:{}", workload.name), entry)
    });
    // Those that have a document; every other has its name alone.
    let described = workloads
        .namespaces()
        .filter(|(_, labels)| labels.len() > 1);
    let namespaces = described.map(|(name, labels)| {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels},
        });
        document(format!("agent:{name}"), namespace)
    });
    entries.chain(namespaces).collect()
}

/// More policies than any node has.
pub(super) const MAX_BYTES: usize = 32 << 20;
