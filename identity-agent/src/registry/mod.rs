//! The Workloads of this node: from the folder of their documents, registered over the admin socket, and
//! as the API server of a cluster tells them; and the policies that proxies are told together with them.
//!
//! A folder with a mistake is refused whole, and so is a change that does not fit to what is there.
//! Workloads and policies are checked as a pair and replaced as one, so that nobody is ever told a pair
//! that does not load; the last good pair stays in force.

mod cluster;
mod folder;
mod matching;
mod policies;
mod rules;
mod store;

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use postern_policies::{
    Diagnostic, Loaded, Options, PolicySet, SourceFile,
    files::Fingerprint,
    model::workload::{Workload, WorkloadName},
};

use crate::{kubernetes::Snapshot, rules::RuleSet};
use cluster::{Cluster, Named};
use rules::Rules;

pub use folder::Folder;
pub use matching::{Miss, matching, nearest_misses};
pub use policies::{Policies, directory};
pub use store::{Store, StoreError};

/// The Workloads in force.
#[derive(Debug)]
pub struct Registry {
    folder: Folder,
    options: Options,
    /// Locked while something changes.
    kept: Mutex<Kept>,
    current: ArcSwap<Pair>,
    /// The files of rules that were read last, or could not be.
    rule_files: Mutex<Vec<PathBuf>>,
    are_rules_news: AtomicBool,
    /// Is the API server to tell something, and has told nothing yet?
    awaits_cluster: AtomicBool,
}

/// Workloads, and policies that load together with them.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The Workloads.
    pub workloads: Arc<PolicySet>,
    /// The policies that proxies are told, if they are.
    pub policies: Option<Policies>,
    pub(crate) rules: Rules,
}

impl Pair {
    /// # Errors
    /// [`RegistryError::Unfit`]; the pair before stays.
    fn of(
        workloads: PolicySet,
        policies: Option<Policies>,
        rules: Rules,
    ) -> Result<Arc<Self>, RegistryError> {
        if let Some(policies) = &policies {
            policies.fit(&workloads)?;
        }
        Ok(Arc::new(Self {
            workloads: Arc::new(workloads),
            policies,
            rules,
        }))
    }
}

/// Where the Workloads come from.
#[derive(Debug)]
struct Kept {
    /// What the folder held when it was good last: a mistake in it does not keep anybody from taking a
    /// registered Workload away.
    folder: Vec<SourceFile>,
    /// Was the folder ever there?
    is_there: bool,
    store: Option<Store>,
    cluster: Cluster,
}

/// Why Workloads could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file cannot be read.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// A document has mistakes.
    #[error("{}", lines(.0))]
    Mistakes(Vec<Diagnostic>),
    /// The policies that proxies are told have mistakes, or do not fit to the Workloads.
    #[error("the policies in `{}` do not load with these Workloads:\n{}", .0.display(), lines(.1))]
    Unfit(PathBuf, Vec<Diagnostic>),
    /// What a Workload names in `baseline.rules` is no file of rules.
    #[error("the rules of Workload `{}` do not load:\n{}", .0, lines(.1))]
    Rules(WorkloadName, Vec<Diagnostic>),
    /// There is more than proxies are told.
    #[error(
        "the policies in `{}` have {bytes} bytes, at most {} are told", .folder.display(),
        policies::MAX_BYTES
    )]
    TooLarge {
        /// Where they lie.
        folder: PathBuf,
        /// How large they are.
        bytes: usize,
    },
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
    #[error(
        "there is no Workload `{0}` that was registered with `workload create`; one of the folder ends with its \
         file"
    )]
    Unknown(String),
}

fn lines(mistakes: &[Diagnostic]) -> String {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

impl Registry {
    /// Reads folders and database for the first time.
    ///
    /// # Errors
    /// [`RegistryError`]; callers do not start.
    pub fn open(
        folder: Folder,
        options: Options,
        store: Option<Store>,
        policies: Option<Policies>,
    ) -> Result<Self, RegistryError> {
        let documents = folder.read(false)?;
        if documents.is_none() {
            let folder = folder.path().display();
            tracing::info!(%folder, "there is no folder of Workloads yet; it is read as soon as it is there");
        }
        let kept = Kept {
            is_there: documents.is_some(),
            folder: documents.unwrap_or_default(),
            store,
            cluster: Cluster::default(),
        };
        let first = load(&kept.folder, &kept.registered()?, &[], &options)?;
        let policies = policies.map(|policies| policies.read()).transpose()?;
        let rules = Rules::read(folder.path(), &first, None)?;
        let rule_files = rule_files(folder.path(), &first);
        Ok(Self {
            folder,
            options,
            kept: Mutex::new(kept),
            current: ArcSwap::new(Pair::of(first, policies, rules)?),
            rule_files: Mutex::new(rule_files),
            are_rules_news: AtomicBool::new(true),
            awaits_cluster: AtomicBool::new(false),
        })
    }

    /// The same, to which the API server of a cluster is to tell more.
    #[must_use]
    pub fn awaiting_cluster(mut self) -> Self {
        *self.awaits_cluster.get_mut() = true;
        self
    }

    /// Is there more to come from the API server, so that nobody knows yet who is who?
    pub fn awaits_cluster(&self) -> bool {
        self.awaits_cluster.load(Ordering::Acquire)
    }

    /// This is what the API server has. Returns the pods that are others than those that had their names.
    ///
    /// # Errors
    /// [`RegistryError`]; the pair before stays in force, and this one is tried again when the folders
    /// change.
    pub fn take_cluster(&self, snapshot: Snapshot) -> Result<HashSet<WorkloadName>, RegistryError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = Arc::new(snapshot);
        kept.cluster.newest = Some(snapshot.clone());
        let before = self.pair();
        let (folder, registered) = (kept.folder.clone(), kept.registered()?);
        let (next, left_out) = self.pair_of(
            (&folder, &registered),
            before.policies.clone(),
            Some(&snapshot),
            &before,
        )?;
        self.replace(next);
        kept.cluster.tell(left_out);
        Ok(self.is_in_force(&mut kept.cluster, snapshot))
    }

    /// This is in force of the cluster from now on. Returns the pods that are others than before.
    fn is_in_force(&self, cluster: &mut Cluster, snapshot: Arc<Snapshot>) -> HashSet<WorkloadName> {
        let replaced = cluster.replaced_by(&snapshot);
        cluster.known = Some(snapshot);
        self.awaits_cluster.store(false, Ordering::Release);
        replaced
    }

    /// Workloads and policies of files, and what the API server has beside them. Tells what of it is left
    /// out.
    fn pair_of(
        &self,
        (folder, registered): (&[SourceFile], &[(String, String)]),
        policies: Option<Policies>,
        cluster: Option<&Arc<Snapshot>>,
        before: &Pair,
    ) -> Result<(Arc<Pair>, BTreeSet<String>), RegistryError> {
        let Some(snapshot) = cluster else {
            let own = load(folder, registered, &[], &self.options)?;
            let rules = self.read_rules(&own, before)?;
            return Ok((Pair::of(own, policies, rules)?, BTreeSet::new()));
        };
        let own = load_silently(folder, registered, &[], &self.options)?.set;
        let alone = policies.as_ref().map(Policies::alone).transpose()?;
        let named = Named::by(&own, alone.as_ref());
        let (directory, mut left_out) = named.leave(&snapshot.directory);
        let (told, more) = named.leave(&snapshot.policies);
        left_out.extend(more);
        let next = load(
            folder,
            registered,
            &cluster::files(&directory),
            &self.options,
        )?;
        let policies = policies.map(|one| one.with(told.into_iter().cloned().collect()));
        let rules = self.read_rules(&next, before)?;
        Ok((Pair::of(next, policies, rules)?, left_out))
    }

    /// The Workloads in force.
    pub fn current(&self) -> Arc<PolicySet> {
        self.current.load().workloads.clone()
    }

    /// The same, with the policies that proxies are told.
    pub fn pair(&self) -> Arc<Pair> {
        self.current.load_full()
    }

    /// The rules of a Workload, if it has some.
    pub fn rules(&self, workload: &WorkloadName) -> Option<Arc<RuleSet>> {
        self.current.load().rules.of(workload)
    }

    /// Are there other rules than when this was asked last?
    pub fn are_rules_news(&self) -> bool {
        self.are_rules_news.swap(false, Ordering::Relaxed)
    }

    /// The names of those that were registered over the admin socket.
    pub fn registered(&self) -> BTreeSet<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let all = kept.registered().unwrap_or_default();
        all.into_iter().map(|(name, _)| name).collect()
    }

    /// What the folders look like from outside.
    pub fn looks(&self) -> Vec<Fingerprint> {
        let pair = self.pair();
        let policies = pair.policies.as_ref().and_then(Policies::folder);
        let folders = std::iter::once(self.folder.path()).chain(policies);
        let rule_files = self.rule_files.lock();
        let rule_files = rule_files.unwrap_or_else(PoisonError::into_inner);
        let rules = rule_files.iter().map(PathBuf::as_path);
        folders.chain(rules).map(Fingerprint::of).collect()
    }

    /// Reads the folders again. Tells how many Workloads there are, and the pods that are others than those
    /// that had their names, where what the API server has came into force by it.
    ///
    /// # Errors
    /// [`RegistryError`]; the pair before stays in force.
    pub fn reload(&self) -> Result<(usize, Option<HashSet<WorkloadName>>), RegistryError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let documents = self.folder.read(kept.is_there)?;
        let is_there = documents.is_some();
        let folder = documents.unwrap_or_default();
        let before = self.pair();
        let policies = before.policies.as_ref().map(Policies::read).transpose()?;
        let (registered, cluster) = (kept.registered()?, kept.cluster.newest.clone());
        let files = (folder.as_slice(), registered.as_slice());
        let (next, left_out) = self.pair_of(files, policies, cluster.as_ref(), &before)?;
        let count = next.workloads.workloads().count();
        self.replace(next);
        kept.cluster.tell(left_out);
        (kept.folder, kept.is_there) = (folder, is_there);
        let replaced = cluster.map(|snapshot| self.is_in_force(&mut kept.cluster, snapshot));
        Ok((count, replaced))
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
        let next = self.with(&kept, &all)?;
        if let Some(store) = &kept.store {
            store.put(&documents)?;
        }
        self.replace(next);
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
        let next = self.with(&kept, &all)?;
        if let Some(store) = &kept.store {
            store.remove(name)?;
        }
        self.replace(next);
        Ok(())
    }

    /// The pair that there is with these registered Workloads.
    fn with(&self, kept: &Kept, all: &[(String, String)]) -> Result<Arc<Pair>, RegistryError> {
        let before = self.pair();
        let policies = before.policies.clone();
        let cluster = kept.cluster.known.as_ref();
        let (next, _) = self.pair_of((&kept.folder, all), policies, cluster, &before)?;
        Ok(next)
    }

    /// Whether they can be read or not, their files are looked at from now on.
    fn read_rules(&self, next: &PolicySet, before: &Pair) -> Result<Rules, RegistryError> {
        let files = rule_files(self.folder.path(), next);
        let mut known = self
            .rule_files
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *known = files;
        drop(known);
        Rules::read(self.folder.path(), next, Some(&before.rules))
    }

    fn replace(&self, next: Arc<Pair>) {
        if !self.current.load().rules.are(&next.rules) {
            self.are_rules_news.store(true, Ordering::Relaxed);
        }
        self.current.store(next);
    }
}

impl Kept {
    fn registered(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.store
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), Store::all)
    }
}

fn rule_files(folder: &Path, set: &PolicySet) -> Vec<PathBuf> {
    let all = set.workloads();
    all.flat_map(|workload| rules::paths(folder, workload))
        .collect()
}

/// The folder's documents, those that were registered, and those of the API server.
fn load(
    folder: &[SourceFile],
    registered: &[(String, String)],
    cluster: &[SourceFile],
    options: &Options,
) -> Result<PolicySet, RegistryError> {
    let loaded = load_silently(folder, registered, cluster, options)?;
    // Of pods nobody has written anything that he could write better.
    let is_of_a_file = |one: &Diagnostic| !one.file.to_string_lossy().starts_with("kubernetes:");
    for warning in loaded.warnings.into_iter().filter(is_of_a_file) {
        tracing::warn!(%warning, "a document is legal, and probably not what is meant");
    }
    Ok(loaded.set)
}

/// The same, without a word on what is legal and probably not meant.
fn load_silently(
    folder: &[SourceFile],
    registered: &[(String, String)],
    cluster: &[SourceFile],
    options: &Options,
) -> Result<Loaded, RegistryError> {
    let mut files = folder.to_vec();
    files.extend(registered.iter().map(|(name, document)| SourceFile {
        path: PathBuf::from(format!("registry:{name}")),
        text: document.clone().into_bytes(),
    }));
    files.extend_from_slice(cluster);
    PolicySet::load(&files, options).map_err(RegistryError::Mistakes)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use postern_policies::{Options, SourceFile};
    use postern_spiffe::TrustDomain;

    use super::{Folder, Policies, Registry, RegistryError, Snapshot, Store};
    use crate::kubernetes::{ClusterObject, Kind};

    fn workload(name: &str) -> String {
        format!(
            "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\n\
             spec: {{serviceAccount: {name}, selectors: ['unix:uid:1']}}\n---\n"
        )
    }

    /// A folder of Workloads, one of policies that has a Workload of its own, and a database.
    struct Folders(tempfile::TempDir);

    impl Folders {
        fn new() -> Self {
            let folders = Self(tempfile::tempdir().unwrap());
            for name in ["workloads", "policies", "state"] {
                fs::create_dir(folders.at(name)).unwrap();
            }
            folders.write("workloads/w.yaml", &workload("web"));
            folders.write("policies/p.yaml", &workload("database"));
            folders
        }

        fn at(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.at(name), text).unwrap();
        }

        fn open(&self) -> Registry {
            let options = || Options::new(TrustDomain::parse("example.org").unwrap());
            let store = Store::open(&self.at("state")).unwrap();
            let policies = Policies::of(self.at("policies"), options());
            Registry::open(
                Folder::named(self.at("workloads")),
                options(),
                Some(store),
                Some(policies),
            )
            .unwrap()
        }
    }

    /// The names of the Workloads, and the text of the policies.
    fn told(registry: &Registry) -> (Vec<String>, String) {
        let pair = registry.pair();
        let names = pair.workloads.workloads();
        let names = names.map(|one| one.name.name.to_string()).collect();
        let files = pair.policies.as_ref().unwrap().files();
        let texts: Vec<u8> = files.iter().flat_map(|one| one.text.clone()).collect();
        (names, String::from_utf8(texts).unwrap())
    }

    #[track_caller]
    fn is_unfit<T: std::fmt::Debug>(done: Result<T, RegistryError>, folder: &Path, place: &str) {
        let error = done.unwrap_err();
        assert!(matches!(error, RegistryError::Unfit(..)), "{error}");
        let said = error.to_string();
        assert!(said.contains(folder.to_str().unwrap()), "{said}");
        assert!(said.contains(place), "{said}");
    }

    fn pod(uid: &str) -> Snapshot {
        let object = ClusterObject {
            of: (Kind::Pod, "cart".into()),
            uid: uid.into(),
            kind: Kind::Pod,
            namespace: "default".into(),
            name: "cart".into(),
            file: SourceFile {
                path: "pods/default/cart".into(),
                text: workload("cart").into_bytes(),
            },
        };
        Snapshot {
            directory: vec![object],
            policies: Vec::new(),
        }
    }

    #[test]
    fn a_pod_that_was_replaced_is_told_whenever_that_comes_into_force() {
        let folders = Folders::new();
        let with_rules = workload("web").replace("1']", "1'], baseline: {rules: [rules/r.yaml]}");
        folders.write("workloads/w.yaml", &with_rules);
        fs::create_dir(folders.at("workloads/rules")).unwrap();
        folders.write("workloads/rules/r.yaml", "[]");
        let registry = folders.open();
        assert!(registry.take_cluster(pod("1")).unwrap().is_empty());
        assert!(registry.take_cluster(pod("1")).unwrap().is_empty());
        assert_eq!(registry.take_cluster(pod("2")).unwrap().len(), 1);
        // Something else keeps it from being in force for a while.
        folders.write("workloads/rules/r.yaml", "- rule: [");
        let refused = registry.take_cluster(pod("3"));
        assert!(
            matches!(refused, Err(RegistryError::Rules(..))),
            "{refused:?}"
        );
        folders.write("workloads/rules/r.yaml", "[]");
        let (_, replaced) = registry.reload().unwrap();
        let replaced: Vec<String> = replaced.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(replaced, ["default/cart"]);
        assert!(registry.take_cluster(pod("3")).unwrap().is_empty());
    }

    #[test]
    fn workloads_and_policies_are_replaced_as_a_pair_that_loads_or_not_at_all() {
        let folders = Folders::new();
        let registry = folders.open();
        let before = told(&registry);
        // Each is good by itself, and has something new.
        folders.write(
            "workloads/w.yaml",
            &(workload("web") + &workload("database")),
        );
        let policies = workload("database") + &workload("more");
        folders.write("policies/p.yaml", &policies);
        is_unfit(registry.reload(), &folders.at("policies"), "p.yaml:1");
        assert_eq!(told(&registry), before);
        // One that has a mistake keeps the other one back.
        folders.write("workloads/w.yaml", &workload("other"));
        folders.write("policies/p.yaml", "kind: Nothing\n");
        is_unfit(registry.reload(), &folders.at("policies"), "p.yaml:1");
        assert_eq!(told(&registry), before);
        folders.write("policies/p.yaml", &policies);
        folders.write("workloads/w.yaml", "kind: Nothing\n");
        let refused = registry.reload();
        assert!(matches!(refused, Err(RegistryError::Mistakes(_))));
        assert_eq!(told(&registry), before);
        folders.write("workloads/w.yaml", &workload("other"));
        registry.reload().unwrap();
        assert_eq!(told(&registry), (vec!["other".to_owned()], policies));
    }

    #[test]
    fn a_registration_that_the_policies_do_not_load_with_is_refused_and_not_kept() {
        let folders = Folders::new();
        {
            let registry = folders.open();
            let refused = registry.create(workload("database").into(), false);
            is_unfit(refused, &folders.at("policies"), "p.yaml:1");
            assert!(registry.registered().is_empty());
            registry
                .create(workload("databases").into(), false)
                .unwrap();
            assert_eq!(told(&registry).0, ["databases", "web"]);
            // What is broken by now keeps nobody from taking one away.
            folders.write("policies/p.yaml", "kind: Nothing\n");
            assert!(registry.reload().is_err());
            registry.delete("default/databases").unwrap();
            assert_eq!(told(&registry).0, ["web"]);
        }
        folders.write("policies/p.yaml", &workload("database"));
        assert_eq!(told(&folders.open()).0, ["web"]);
    }
}
