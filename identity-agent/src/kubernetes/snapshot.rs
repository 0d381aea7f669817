//! What is known of a cluster at one moment, as documents.

use postern_policies::SourceFile;

use super::Kind;

/// Pods, namespaces and policies.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Workloads (of pods) and Namespaces.
    pub directory: Vec<ClusterObject>,
    /// Policies.
    pub policies: Vec<ClusterObject>,
}

/// One document.
#[derive(Debug, Clone)]
pub struct ClusterObject {
    /// The object that it is of, by kind and name: another one where it stands in.
    pub of: (Kind, String),
    /// What tells that object from others that have had its name.
    pub uid: String,
    /// What it is: a Workload where it says [`Kind::Pod`].
    pub kind: Kind,
    /// Its namespace; of a Namespace its own name.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The text, under a name that says where it is from.
    pub file: SourceFile,
}
