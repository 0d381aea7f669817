//! The streams: the first message at once, then one for every change, each the whole state.
//!
//! A message is made when the client is ready to take it, so a slow reader gets the newest state
//! and nothing piles up. The right to the stream is asked again on every change, on a timer and
//! before every rotation; one that lost it ends with `PermissionDenied`.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use postern_policies::model::workload::WorkloadName;
use postern_proto::workload_api::{
    JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse,
};
use tokio::sync::watch;
use tonic::Status;

use super::{OpenStream, entitled};
use crate::{
    agent::{Agent, Entitled},
    authority::{Issued, StateError},
    caller::PinnedProcess,
};

/// The stream of `FetchX509SVID`.
pub(super) fn svids(
    agent: Arc<Agent>,
    process: Arc<PinnedProcess>,
    open: OpenStream,
) -> BoxStream<'static, Result<X509svidResponse, Status>> {
    let subscription = Subscription::new(agent, process, open);
    // An error is the last message.
    stream::unfold(Some(subscription), |subscription| async {
        let mut subscription = subscription?;
        match subscription.next_svids().await {
            Ok(message) => Some((Ok(message), Some(subscription))),
            Err(status) => Some((Err(status), None)),
        }
    })
    .boxed()
}

/// The stream of `FetchX509Bundles`.
pub(super) fn bundles(
    agent: Arc<Agent>,
    process: Arc<PinnedProcess>,
    open: OpenStream,
) -> BoxStream<'static, Result<X509BundlesResponse, Status>> {
    let subscription = Subscription::new(agent, process, open);
    stream::unfold(Some(subscription), |subscription| async {
        let mut subscription = subscription?;
        match subscription.next_bundles().await {
            Ok(message) => Some((Ok(message), Some(subscription))),
            Err(status) => Some((Err(status), None)),
        }
    })
    .boxed()
}

/// The stream of `FetchJWTBundles`.
pub(super) fn jwt_bundles(
    agent: Arc<Agent>,
    process: Arc<PinnedProcess>,
    open: OpenStream,
) -> BoxStream<'static, Result<JwtBundlesResponse, Status>> {
    let subscription = Subscription::new(agent, process, open);
    stream::unfold(Some(subscription), |subscription| async {
        let mut subscription = subscription?;
        match subscription.next_jwt_bundles().await {
            Ok(message) => Some((Ok(message), Some(subscription))),
            Err(status) => Some((Err(status), None)),
        }
    })
    .boxed()
}

/// One stream: whose it is, and what it was sent last.
struct Subscription {
    agent: Arc<Agent>,
    process: Arc<PinnedProcess>,
    changes: watch::Receiver<u64>,
    sent: Option<Sent>,
    _open: OpenStream,
}

/// What the client has.
#[derive(Default)]
struct Sent {
    svids: Vec<Svid>,
    bundle: Vec<u8>,
    lists: Vec<Vec<u8>>,
    /// When the first of the SVIDs is to be renewed.
    renew_at: Option<Instant>,
}

/// An SVID that a client has, and for which Workload.
struct Svid {
    workload: WorkloadName,
    hint: String,
    spiffe_id: String,
    dns_names: Vec<String>,
    issued: Issued,
}

impl Subscription {
    fn new(agent: Arc<Agent>, process: Arc<PinnedProcess>, open: OpenStream) -> Self {
        agent.metrics.streams.inc();
        Self {
            changes: agent.changes(),
            agent,
            process,
            sent: None,
            _open: open,
        }
    }

    /// Waits for something to say, and says it.
    async fn next_svids(&mut self) -> Result<X509svidResponse, Status> {
        loop {
            self.wait().await;
            let entitled = entitled(&self.agent, &self.process).await?;
            let before = self.sent.take().unwrap_or_default();
            let is_first = before.svids.is_empty();
            let is_due = before.renew_at.is_some_and(|at| at <= Instant::now());
            let authority = &self.agent.authority;
            let is_good = |svid: &Svid| authority.stands_by(&svid.issued.issuer);
            let is_same = !is_first
                && !is_due
                && before.svids.iter().all(is_good)
                && is_what_they_are(&before.svids, &entitled);
            let (bundle, lists) = self.trust()?;
            if is_same && bundle == before.bundle && lists == before.lists {
                self.sent = Some(before);
                continue;
            }
            let (svids, renew_at) = match is_same {
                true => (before.svids, before.renew_at),
                false => self.issue(&entitled)?,
            };
            let message = response(&svids, &bundle, &lists);
            self.sent = Some(Sent {
                svids,
                bundle,
                lists,
                renew_at,
            });
            return Ok(message);
        }
    }

    async fn next_bundles(&mut self) -> Result<X509BundlesResponse, Status> {
        loop {
            self.wait().await;
            entitled(&self.agent, &self.process).await?;
            let (bundle, lists) = self.trust()?;
            let is_same = self
                .sent
                .as_ref()
                .is_some_and(|sent| sent.bundle == bundle && sent.lists == lists);
            if is_same {
                continue;
            }
            let message = X509BundlesResponse {
                crl: lists.clone(),
                bundles: HashMap::from([(
                    self.agent.authority.trust_domain().id_string(),
                    bundle.clone(),
                )]),
            };
            self.sent = Some(Sent {
                bundle,
                lists,
                ..Sent::default()
            });
            return Ok(message);
        }
    }

    async fn next_jwt_bundles(&mut self) -> Result<JwtBundlesResponse, Status> {
        loop {
            self.wait().await;
            entitled(&self.agent, &self.process).await?;
            let bundle = self.agent.authority.jwt_bundle().to_json().into_bytes();
            if self.sent.as_ref().is_some_and(|sent| sent.bundle == bundle) {
                continue;
            }
            let name = self.agent.authority.trust_domain().id_string();
            let message = JwtBundlesResponse {
                bundles: HashMap::from([(name, bundle.clone())]),
            };
            self.sent = Some(Sent {
                bundle,
                ..Sent::default()
            });
            return Ok(message);
        }
    }

    /// Waits until there is a reason to look again. The first time there is.
    async fn wait(&mut self) {
        let Some(sent) = &self.sent else { return };
        let timer = self.agent.reattest;
        let until_renewal = sent.renew_at.map_or(timer, |at| {
            at.saturating_duration_since(Instant::now()).min(timer)
        });
        tokio::select! {
            _ = self.changes.changed() => {}
            () = tokio::time::sleep(until_renewal) => {}
            _ = self.process.clone().ended() => {}
        }
    }

    fn trust(&self) -> Result<(Vec<u8>, Vec<Vec<u8>>), Status> {
        let lists = self
            .agent
            .revocation_lists()
            .map_err(|error| unavailable(&error))?;
        Ok((self.agent.authority.bundle(), lists))
    }

    fn issue(&self, entitled: &Entitled) -> Result<(Vec<Svid>, Option<Instant>), Status> {
        let now = SystemTime::now();
        let mut svids = Vec::new();
        let mut renew_in: Option<Duration> = None;
        for workload in &entitled.workloads {
            let issued = self
                .agent
                .issue(workload, entitled.pod, now)
                .map_err(|error| unavailable(&error))?;
            let life = issued.not_after.duration_since(now).unwrap_or_default();
            let due = half_with_jitter(life, issued.serial.last().copied().unwrap_or_default());
            renew_in = Some(renew_in.map_or(due, |before| before.min(due)));
            tracing::info!(
                pid = self.process.pid(),
                uid = self.process.uid(),
                workload = %workload.name,
                spiffe_id = %workload.spiffe_id,
                serial = issued.serial.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
                "an identity was issued"
            );
            svids.push(Svid {
                workload: workload.name.clone(),
                hint: workload.hint.clone().unwrap_or_default(),
                spiffe_id: workload.spiffe_id.to_string(),
                dns_names: workload.dns_names.clone(),
                issued,
            });
        }
        Ok((svids, renew_in.map(|due| Instant::now() + due)))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.agent.metrics.streams.dec();
    }
}

/// Are the SVIDs a client has those that it is entitled to?
fn is_what_they_are(svids: &[Svid], entitled: &Entitled) -> bool {
    svids.len() == entitled.workloads.len()
        && svids
            .iter()
            .zip(&entitled.workloads)
            .all(|(svid, workload)| {
                svid.workload == workload.name
                    && svid.spiffe_id == workload.spiffe_id.as_str()
                    && svid.dns_names == workload.dns_names
                    && svid.hint == workload.hint.as_deref().unwrap_or_default()
            })
}

fn response(svids: &[Svid], bundle: &[u8], lists: &[Vec<u8>]) -> X509svidResponse {
    X509svidResponse {
        svids: svids
            .iter()
            .map(|svid| X509svid {
                spiffe_id: svid.spiffe_id.clone(),
                x509_svid: svid.issued.chain.clone(),
                x509_svid_key: svid.issued.key.to_vec(),
                bundle: bundle.to_vec(),
                hint: svid.hint.clone(),
            })
            .collect(),
        crl: lists.to_vec(),
        federated_bundles: HashMap::new(),
    }
}

/// Half of a lifetime, a tenth more or less, so that what was issued together is not renewed
/// together. `random` is any byte that nobody can foresee.
fn half_with_jitter(life: Duration, random: u8) -> Duration {
    let half = life / 2;
    half - half / 10 + half / 5 * u32::from(random) / 255
}

pub(super) fn unavailable(error: &StateError) -> Status {
    tracing::error!(%error, "cannot issue");
    Status::unavailable("cannot issue now")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::half_with_jitter;

    #[test]
    fn renewal_is_due_around_half_of_the_life() {
        let life = Duration::from_secs(3600);
        for random in [0, 1, 127, 128, 254, 255] {
            let due = half_with_jitter(life, random).as_secs();
            assert!((1620..=1980).contains(&due), "{random}: {due}");
        }
        assert!(half_with_jitter(life, 0) < half_with_jitter(life, 255));
        assert_eq!(half_with_jitter(Duration::ZERO, 255), Duration::ZERO);
    }
}
