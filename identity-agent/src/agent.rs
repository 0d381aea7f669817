//! The agent itself: what a caller is entitled to, and what is taken back.
//!
//! Blocking where it reads files; the Workload API calls it on a thread for that.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use postern_policies::model::workload::{OnDrift, Workload, WorkloadName};
use postern_spiffe::Selector;
use tokio::sync::watch;

use crate::{
    attest::{AttestError, Attested, Attestors, Pod},
    authority::{Authority, Issued, RevokedSvid, StateError},
    caller::PinnedProcess,
    drift::{self, Drift},
    registry::{Registry, matching},
    telemetry::{Metrics, ReasonLabel},
};

/// Everything that answers a caller.
#[derive(Debug)]
pub struct Agent {
    /// States what is true of a process.
    pub attestors: Attestors,
    /// The Workloads.
    pub registry: Registry,
    /// Signs.
    pub authority: Authority,
    /// What was seen of drift.
    pub drift: Drift,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// How often a caller is looked at again.
    pub reattest: Duration,
    ledger: Mutex<Vec<Record>>,
    /// The revocation lists as signed last: signing them anew would look like a change.
    lists: Mutex<Option<Arc<[Vec<u8>]>>>,
    changed: watch::Sender<u64>,
}

/// An SVID that is out there.
#[derive(Debug, Clone)]
struct Record {
    workload: WorkloadName,
    pod: Pod,
    svid: RevokedSvid,
}

/// What a caller is entitled to at this moment. Never empty.
#[derive(Debug)]
pub struct Entitled {
    /// The Workloads it is, in a fixed order.
    pub workloads: Vec<Workload>,
    /// Its pod.
    pub pod: Pod,
}

/// Why a caller gets no identity.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It could not be attested.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// No Workload has its selectors.
    #[error("no Workload has the selectors of this process")]
    NoWorkload(Box<Attested>),
    /// Its pod is not what the baseline says.
    #[error("the pod has drifted from its baseline")]
    Drifted,
}

impl Refusal {
    /// A short, stable label for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Attest(_) => "attestation",
            Self::NoWorkload(_) => "no_workload",
            Self::Drifted => "drift",
        }
    }
}

impl Agent {
    /// Puts the parts together.
    pub fn new(
        attestors: Attestors,
        registry: Registry,
        authority: Authority,
        metrics: Arc<Metrics>,
        reattest: Duration,
    ) -> Self {
        Self {
            attestors,
            registry,
            authority,
            drift: Drift::default(),
            metrics,
            reattest,
            ledger: Mutex::default(),
            lists: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }

    /// Fires when streams should look again: Workloads, bundle or revocations have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells every stream to look again.
    pub fn announce(&self) {
        self.changed
            .send_modify(|number| *number = number.wrapping_add(1));
    }

    /// What is this process entitled to? Blocking.
    ///
    /// # Errors
    /// [`Refusal`]; the caller gets no identity, and the reason is counted and logged.
    pub fn entitled(&self, process: &PinnedProcess) -> Result<Entitled, Refusal> {
        let attested = self.attestors.attest(process)?;
        let set = self.registry.current();
        let mut workloads: Vec<Workload> = matching(set.workloads(), &attested.selectors)
            .into_iter()
            .cloned()
            .collect();
        if workloads.is_empty() {
            return Err(Refusal::NoWorkload(Box::new(attested)));
        }
        let pod = attested.pod;
        let watched: Vec<&Workload> = workloads
            .iter()
            .filter(|workload| workload.baseline.is_some())
            .collect();
        let withdrawn =
            self.look_for_drift(&watched.iter().map(|one| (*one, pod)).collect::<Vec<_>>());
        workloads.retain(|workload| !withdrawn.contains(&(workload.name.clone(), pod)));
        if workloads.is_empty() {
            return Err(Refusal::Drifted);
        }
        Ok(Entitled { workloads, pod })
    }

    /// Issues an SVID for a Workload to a pod, and remembers it.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue(
        &self,
        workload: &Workload,
        pod: Pod,
        now: SystemTime,
    ) -> Result<Issued, StateError> {
        let lifetime = workload
            .svid_ttl
            .unwrap_or_else(|| self.authority.svid_lifetime());
        let issued =
            self.authority
                .issue(&workload.spiffe_id, &workload.dns_names, lifetime, now)?;
        self.metrics.svids_issued.inc();
        let svid = RevokedSvid {
            serial: issued.serial.clone(),
            issuer: issued.issuer.clone(),
            expires: issued.not_after,
        };
        let record = Record {
            workload: workload.name.clone(),
            pod,
            svid,
        };
        self.ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(record);
        Ok(issued)
    }

    /// The revocation lists in force, in DER.
    ///
    /// # Errors
    /// As [`Authority::revocation_lists`].
    pub fn revocation_lists(&self) -> Result<Vec<Vec<u8>>, StateError> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lists) = &*lists {
            return Ok(lists.to_vec());
        }
        let signed: Arc<[Vec<u8>]> = self.authority.revocation_lists(SystemTime::now())?.into();
        *lists = Some(signed.clone());
        Ok(signed.to_vec())
    }

    /// Has the lists signed anew when they are next asked for.
    pub fn renew_lists(&self) {
        *self.lists.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// One round of watching: forgets what has ended, looks at every pod that holds an identity.
    /// Blocking.
    pub fn watch_pods(&self, now: SystemTime) {
        let held: HashSet<(WorkloadName, Pod)> = {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.retain(|record| record.svid.expires > now);
            ledger
                .iter()
                .map(|record| (record.workload.clone(), record.pod))
                .collect()
        };
        let set = self.registry.current();
        let watched: Vec<(&Workload, Pod)> = held
            .iter()
            .filter_map(|(name, pod)| Some((set.workload(name)?, *pod)))
            .filter(|(workload, _)| workload.baseline.is_some())
            .collect();
        self.look_for_drift(&watched);
    }

    /// Looks at pods, answers what is found, and tells which identities are withdrawn as long as
    /// it lasts.
    fn look_for_drift(&self, watched: &[(&Workload, Pod)]) -> HashSet<(WorkloadName, Pod)> {
        let mut withdrawn = HashSet::new();
        if watched.is_empty() {
            return withdrawn;
        }
        let now = SystemTime::now();
        let pods = watched.iter().map(|(_, pod)| *pod).collect();
        let with_digests = watched
            .iter()
            .any(|(workload, _)| drift::wants_digests(workload));
        let seen = self.drift.scan(&self.attestors, &pods, with_digests);
        let mut revoked = false;
        for (workload, pod) in watched {
            let processes = seen.get(pod).map(Vec::as_slice).unwrap_or_default();
            for (deviation, is_new) in self.drift.compare(workload, *pod, processes, now) {
                if is_new {
                    self.metrics.deviations.inc();
                    tracing::warn!(
                        workload = %deviation.workload,
                        spiffe_id = deviation.spiffe_id,
                        what = deviation.what,
                        pid = deviation.pid,
                        answer = ?deviation.answer,
                        "a pod runs what its baseline does not say"
                    );
                }
                if deviation.answer == OnDrift::Revoke {
                    withdrawn.insert((workload.name.clone(), *pod));
                    revoked |= self.revoke(&workload.name, *pod, now);
                }
            }
        }
        if revoked {
            self.announce();
        }
        withdrawn
    }

    /// Takes back what a Workload holds in a pod. Tells whether there was anything.
    fn revoke(&self, workload: &WorkloadName, pod: Pod, now: SystemTime) -> bool {
        let taken: Vec<RevokedSvid> = {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let is_taken = |record: &Record| record.workload == *workload && record.pod == pod;
            let taken = ledger
                .iter()
                .filter(|one| is_taken(one))
                .map(|one| one.svid.clone())
                .collect();
            ledger.retain(|record| !is_taken(record));
            taken
        };
        if taken.is_empty() {
            return false;
        }
        self.metrics
            .svids_revoked
            .inc_by(u64::try_from(taken.len()).unwrap_or(u64::MAX));
        tracing::warn!(%workload, svids = taken.len(), "the identity was taken back");
        if let Err(error) = self.authority.revoke(&taken, now) {
            self.metrics.state_writes_failed.inc();
            tracing::error!(%error, "a revocation holds, but could not be written down");
        }
        self.renew_lists();
        true
    }

    /// Counts and logs a refusal. Selectors are only in the debug log, and without the values of
    /// variables.
    pub fn log_refusal(&self, process: &PinnedProcess, refusal: &Refusal) {
        self.metrics
            .refused
            .get_or_create(&ReasonLabel {
                reason: refusal.label(),
            })
            .inc();
        tracing::info!(pid = process.pid(), uid = process.uid(), reason = %refusal, "no identity issued");
        if let Refusal::NoWorkload(attested) = refusal {
            let selectors: Vec<String> = attested.selectors.iter().map(without_secrets).collect();
            tracing::debug!(pid = process.pid(), ?selectors, "attested");
        }
    }
}

/// A selector for the log. Values of variables are often passwords.
fn without_secrets(selector: &Selector) -> String {
    let text = selector.to_string();
    match text.split_once('=') {
        Some((name, _)) if name.starts_with("docker:env:") => format!("{name}=<hidden>"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use postern_spiffe::Selector;

    use super::without_secrets;

    #[test]
    fn the_log_has_the_names_of_variables_alone() {
        // FAULTS 50
        for (selector, shown) in [
            ("docker:env:PASSWORD=a=b", "docker:env:PASSWORD=<hidden>"),
            ("docker:label:a:b=c", "docker:label:a:b=c"),
            ("unix:uid:0", "unix:uid:0"),
        ] {
            assert_eq!(without_secrets(&Selector::parse(selector).unwrap()), shown);
        }
    }
}
