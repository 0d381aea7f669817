//! The policies in force, from folders or from the agent. What has a mistake is refused whole, and the
//! last good set stays.

mod agent;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use postern_policies::{
    Diagnostic, Options, PolicySet, SourceFile,
    files::{self, Fingerprint, Look, SETTLES_IN, Watch},
    model::workload::WorkloadName,
};
use postern_proto::control::{Document, State};
use postern_spiffe::TrustDomain;
use tokio::{
    sync::{Notify, watch},
    time::interval,
};

use crate::{
    config::{DocumentSource, PolicySources},
    telemetry::Metrics,
    tls::Current,
};

/// The set in force; none before the first good one.
pub(crate) type CurrentPolicies = watch::Receiver<Option<Arc<PolicySet>>>;

/// What the agent said last.
type Told = Option<Arc<State>>;

/// Keeps the set up to date, for ever. The trust domain of the documents is that of our identity,
/// so there is no set before there is an identity.
pub(crate) async fn follow(
    sources: PolicySources,
    mut identity: Current,
    reload: Arc<Reload>,
    current: watch::Sender<Option<Arc<PolicySet>>>,
    metrics: Arc<Metrics>,
) {
    let Ok(own) = identity.wait_for(Option::is_some).await.map(|identity| {
        identity
            .as_ref()
            .map(|identity| identity.id().trust_domain().clone())
    }) else {
        return;
    };
    let Some(own) = own else { return };
    let (sender, mut told) = watch::channel(Told::None);
    let agent = sources.agent.clone();
    let read = async {
        if sources.agent.is_some() {
            // Its first word: before it there is nothing to read.
            let _ = told.wait_for(Option::is_some).await;
        }
        read(&sources, own, &reload, &current, &metrics, told).await;
    };
    // In one task: a panic of either is one of this.
    match agent {
        Some(socket) => drop(tokio::join!(agent::follow(socket, sender), read)),
        None => read.await,
    }
}

/// Reads the sources whenever they look different, for ever.
async fn read(
    sources: &PolicySources,
    own: TrustDomain,
    reload: &Reload,
    current: &watch::Sender<Option<Arc<PolicySet>>>,
    metrics: &Metrics,
    mut told: watch::Receiver<Told>,
) {
    let mut watch = Watch::default();
    let mut every = interval(LOOK_EVERY);
    let mut is_asked = false;
    loop {
        tokio::select! {
            _ = every.tick() => {}
            _ = told.changed(), if sources.agent.is_some() => {}
            () = reload.asked.notified() => {
                is_asked = true;
                watch.forget();
            }
        }
        let told = told.borrow_and_update().clone();
        let looks = Looks::of(sources, told.clone());
        match watch.look(&looks) {
            Look::Same => continue,
            // What the agent tells is whole; a folder may be written to at this moment.
            Look::Again if sources.has_folders() => {
                watch.is_changing(looks);
                every.reset_after(SETTLES_IN);
                continue;
            }
            Look::Again | Look::Read => watch.was_read(looks),
        }
        let (sources, own) = (sources.clone(), own.clone());
        let loaded = tokio::task::spawn_blocking(move || load(&sources, told.as_deref(), own));
        match loaded.await {
            Ok(Ok(set)) => {
                metrics.policies_current.set(1);
                metrics.policy_reloads.inc();
                tracing::info!(workloads = set.workloads().count(), "policies in force");
                current.send_replace(Some(Arc::new(set)));
            }
            Ok(Err(error)) => {
                metrics.policies_current.set(0);
                metrics.policy_errors.inc();
                tracing::error!(
                    error = format!("{error:#}"),
                    "the policies were refused, the last good ones stay"
                );
            }
            Err(error) => {
                metrics.policies_current.set(0);
                metrics.policy_errors.inc();
                tracing::error!(%error, "reading the policies failed, the last good ones stay");
            }
        }
        if std::mem::take(&mut is_asked) {
            reload.done.notify_one();
        }
    }
}

/// The wish that everything is read again, changed or not, and the word that it was.
#[derive(Debug, Default)]
pub(crate) struct Reload {
    asked: Notify,
    done: Notify,
}

impl Reload {
    pub(crate) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Waits until everything was read that was asked for, whatever came of it.
    pub(crate) async fn done(&self) {
        self.done.notified().await;
    }
}

/// What sources look like from outside: another look is a reason to read them.
struct Looks {
    folders: [Option<Fingerprint>; 2],
    told: Told,
}

impl PartialEq for Looks {
    fn eq(&self, other: &Self) -> bool {
        let is_same_word = match (&self.told, &other.told) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        is_same_word && self.folders == other.folders
    }
}

impl Looks {
    fn of(sources: &PolicySources, told: Told) -> Self {
        let folder = |source: Option<&DocumentSource>| match source {
            Some(DocumentSource::Directory(path)) => Some(Fingerprint::of(path)),
            _ => None,
        };
        Self {
            folders: [
                folder(Some(&sources.policies)),
                folder(sources.workloads.as_ref()),
            ],
            told,
        }
    }
}

/// Reads the folders that are named, once. Of what an agent would tell nothing is known.
pub(crate) fn check(sources: &PolicySources) -> anyhow::Result<()> {
    // The own one is known with the identity; to Istio's policies it is this one, whatever it is.
    let trust_domain = TrustDomain::parse("cluster.local")?;
    match (&sources.policies, &sources.workloads) {
        (DocumentSource::Agent, Some(folder @ DocumentSource::Directory(_))) => {
            let alone = PolicySources {
                policies: folder.clone(),
                workloads: None,
                ..sources.clone()
            };
            load(&alone, None, trust_domain).map(drop)
        }
        (DocumentSource::Agent, _) => Ok(()),
        _ => load(sources, None, trust_domain).map(drop),
    }
}

fn load(
    sources: &PolicySources,
    told: Option<&State>,
    trust_domain: TrustDomain,
) -> anyhow::Result<PolicySet> {
    let mut namespace = sources.namespace.clone();
    let mut all = match &sources.policies {
        DocumentSource::Directory(path) => files::read_documents(path)?,
        DocumentSource::Agent => {
            let policies = told.and_then(|state| state.policies.as_ref());
            let policies = policies.context(
                "the agent has no policies to tell; name their folder in its `policies.directory`, \
                 or in ours",
            )?;
            namespace.clone_from(&policies.namespace);
            policies.documents.iter().map(source_file).collect()
        }
    };
    match &sources.workloads {
        Some(same) if *same == sources.policies && *same != DocumentSource::Agent => {}
        Some(DocumentSource::Directory(path)) => all.extend(files::read_documents(path)?),
        Some(DocumentSource::Agent) => {
            let directory = told.map(|state| state.directory.as_slice());
            all.extend(directory.unwrap_or_default().iter().map(source_file));
        }
        None => {}
    }
    let options = Options {
        namespace,
        root_namespace: sources.root_namespace.clone(),
        defaults: sources.defaults,
        ..Options::new(trust_domain)
    };
    let loaded = PolicySet::load(&all, &options).map_err(|found| {
        anyhow!(
            "{}",
            found
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        )
    })?;
    // Of its directory the agent itself has warned.
    let is_ours = |warning: &&Diagnostic| !warning.file.to_string_lossy().starts_with("agent:");
    for warning in loaded.warnings.iter().filter(is_ours) {
        tracing::warn!("{warning}");
    }
    let own = told.and_then(|state| state.workload.split_once('/'));
    Ok(loaded
        .set
        .read_for(own.map(|(namespace, name)| WorkloadName {
            namespace: namespace.into(),
            name: name.into(),
        })))
}

fn source_file(document: &Document) -> SourceFile {
    SourceFile {
        path: PathBuf::from(&document.path),
        text: document.text.to_vec(),
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(250);
