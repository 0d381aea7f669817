//! The policies in force, from folders. A folder with a mistake is refused whole, and the last
//! good set stays.

use std::{sync::Arc, time::Duration};

use anyhow::anyhow;
use postern_policies::{
    Options, PolicySet,
    files::{self, Fingerprint},
};
use postern_spiffe::TrustDomain;
use tokio::{
    sync::{Notify, watch},
    time::interval,
};

use crate::{config::PolicyFolders, telemetry::Metrics, tls::Current};

/// The set in force; none before the first good one.
pub(crate) type CurrentPolicies = watch::Receiver<Option<Arc<PolicySet>>>;

/// Keeps the set up to date, for ever. The trust domain of the documents is that of our identity,
/// so there is no set before there is an identity.
pub(crate) async fn follow(
    folders: PolicyFolders,
    mut identity: Current,
    reload: Arc<Notify>,
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
    let mut seen = None;
    let mut every = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = reload.notified() => seen = None,
        }
        let now = [Some(&folders.policies), folders.workloads.as_ref()]
            .map(|path| path.map(|path| Fingerprint::of(path)));
        if seen.as_ref() == Some(&now) {
            continue;
        }
        seen = Some(now);
        let (folders, own) = (folders.clone(), own.clone());
        let loaded = tokio::task::spawn_blocking(move || load(&folders, own)).await;
        match loaded {
            Ok(Ok(set)) => {
                metrics.policies_current.set(1);
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
    }
}

fn load(folders: &PolicyFolders, trust_domain: TrustDomain) -> anyhow::Result<PolicySet> {
    let mut all = files::read_documents(&folders.policies)?;
    if let Some(workloads) = &folders.workloads
        && *workloads != folders.policies
    {
        all.extend(files::read_documents(workloads)?);
    }
    let options = Options {
        namespace: folders.namespace.clone(),
        root_namespace: folders.root_namespace.clone(),
        defaults: folders.defaults,
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
    for warning in loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(loaded.set)
}

const LOOK_EVERY: Duration = Duration::from_millis(250);
