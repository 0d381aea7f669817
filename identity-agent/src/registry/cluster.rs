//! What the API server tells, beside the files.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use postern_policies::{PolicySet, SourceFile, decide::PolicyKind, model::workload::WorkloadName};

use crate::kubernetes::{ClusterObject, Kind, Snapshot};

/// What is known of a cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// What is in force.
    pub(super) known: Option<Arc<Snapshot>>,
    /// What was told last; another one where it did not load with the files.
    pub(super) newest: Option<Arc<Snapshot>>,
    /// What was left out when it was told last.
    left_out: BTreeSet<String>,
}

/// What files say, by kind and name.
pub(super) struct Named<'f> {
    sets: [Option<&'f PolicySet>; 2],
    policies: HashSet<(PolicyKind, Arc<str>)>,
}

impl<'f> Named<'f> {
    /// By the documents of Workloads, and by those of policies.
    pub(super) fn by(workloads: &'f PolicySet, policies: Option<&'f PolicySet>) -> Self {
        let all = policies.into_iter().flat_map(PolicySet::policies);
        Self {
            policies: all.map(|one| (one.kind, one.policy.clone())).collect(),
            sets: [Some(workloads), policies],
        }
    }

    /// Is there a file for this? Then it counts: whoever may make a pod or a policy in the cluster does
    /// not replace what stands on the node, and two of one name would refuse all of them.
    fn has(&self, object: &ClusterObject) -> bool {
        let mut sets = self.sets.iter().flatten();
        let (kind, name) = &object.of;
        match *kind {
            Kind::Namespace => sets.any(|set| set.is_described(name)),
            Kind::Pod => sets.any(|set| {
                let mut all = set.workloads();
                all.any(|one| *one.name.name == **name && *one.name.namespace == *object.namespace)
            }),
            kind => policy_kind(kind).is_some_and(|kind| {
                let name = format!("{}/{name}", object.namespace);
                self.policies.contains(&(kind, name.into()))
            }),
        }
    }

    /// Those of these objects that no file is for.
    pub(super) fn leave<'o>(
        &self,
        objects: &'o [ClusterObject],
    ) -> (Vec<&'o ClusterObject>, BTreeSet<String>) {
        let (taken, left): (Vec<_>, Vec<_>) = objects.iter().partition(|one| self.has(one));
        let name = |one: &&ClusterObject| one.file.path.display().to_string();
        (left, taken.iter().map(name).collect())
    }
}

impl Cluster {
    /// The pods that are others than those that had their names until now.
    pub(super) fn replaced_by(&self, next: &Snapshot) -> HashSet<WorkloadName> {
        let pods = |of: &Snapshot| -> HashMap<(String, String), String> {
            let pods = of.directory.iter().filter(|one| one.kind == Kind::Pod);
            pods.map(|one| ((one.namespace.clone(), one.name.clone()), one.uid.clone()))
                .collect()
        };
        let before = self.known.as_deref().map(pods).unwrap_or_default();
        let replaced = pods(next)
            .into_iter()
            .filter(|(name, uid)| before.get(name).is_some_and(|known| known != uid));
        replaced
            .map(|((namespace, name), _)| WorkloadName {
                namespace: namespace.into(),
                name: name.into(),
            })
            .collect()
    }

    /// Tells once what is left out.
    pub(super) fn tell(&mut self, left_out: BTreeSet<String>) {
        if let Some(object) = left_out.difference(&self.left_out).next() {
            let number = left_out.len();
            tracing::warn!(
                object,
                number,
                "files name what the API server has too: the files count"
            );
        }
        self.left_out = left_out;
    }
}

/// The texts of these objects.
pub(super) fn files(objects: &[&ClusterObject]) -> Vec<SourceFile> {
    objects.iter().map(|one| one.file.clone()).collect()
}

fn policy_kind(kind: Kind) -> Option<PolicyKind> {
    match kind {
        Kind::Pod | Kind::ServiceAccount | Kind::Namespace => None,
        Kind::NetworkPolicy => Some(PolicyKind::NetworkPolicy),
        Kind::PeerAuthentication => Some(PolicyKind::PeerAuthentication),
        Kind::AuthorizationPolicy => Some(PolicyKind::AuthorizationPolicy),
        Kind::RequestAuthentication => Some(PolicyKind::RequestAuthentication),
    }
}
