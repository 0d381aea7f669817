//! The agent itself: what a caller is entitled to, and what is taken back.
//!
//! Blocking where it reads files; the Workload API calls it on a thread for that.

mod ledger;
mod warm;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use postern_policies::{
    PolicySet,
    model::workload::{OnDrift, Workload, WorkloadName},
};
use postern_proto::control::State;
use postern_spiffe::{JwtBundle, Selector, TrustDomain, X509Bundle, bundle::BundleDocument};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    admission::{Calls, Turns},
    attest::{AttestError, Attested, Attestors, Pod},
    audit,
    authority::{Authority, RevokedSvid, StateError},
    caller::PinnedProcess,
    control::{self, Policies},
    drift::{self, Drift},
    federation::Federation,
    monitor::Followed,
    registry::{Registry, matching, nearest_misses},
    telemetry::{AUDITED_REFUSALS, DRIFT_LIST, ISSUED, Metrics, ReasonLabel, WARM_SVIDS},
};

pub use ledger::Ledger;
use ledger::{NotNoted, Record};
pub use warm::Warm;
use warm::WarmSvids;

/// Everything that answers a caller.
#[derive(Debug)]
pub struct Agent {
    /// States what is true of a process.
    pub attestors: Attestors,
    /// The Workloads.
    pub registry: Registry,
    /// Signs.
    pub authority: Authority,
    /// The bundles of other trust domains.
    pub federation: Federation,
    /// What proxies are told of policies, if anything.
    pub policies: Option<Policies>,
    /// What was seen of drift.
    pub drift: Drift,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// How often a caller is looked at again.
    pub reattest: Duration,
    /// Whom the kernel tells of.
    pub followed: Followed,
    told_refusals: Calls,
    /// Who is looked at now.
    pub(crate) turns: Turns,
    ledger: Ledger,
    warm: WarmSvids,
    /// The revocation lists as signed last: signing them anew would look like a change.
    lists: Mutex<Option<SignedLists>>,
    trust: Mutex<HashMap<BTreeSet<TrustDomain>, Arc<Trust>>>,
    told: ArcSwap<State>,
    changed: watch::Sender<u64>,
}

/// Whom the holder of some identities may trust; one for all who may trust the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Trust {
    /// The roots of the own trust domain, in DER, one after the other.
    pub bundle: Vec<u8>,
    /// The revocation lists in force, in DER.
    pub lists: Vec<Vec<u8>>,
    /// The roots of other trust domains, by `spiffe://<trust domain>`.
    pub federated: Vec<(String, Vec<u8>)>,
}

/// Revocation lists in DER, and when they were signed.
type SignedLists = (Arc<[Vec<u8>]>, Instant);

/// What an agent is put together from.
#[derive(Debug)]
pub struct Parts {
    /// See [`Agent::attestors`].
    pub attestors: Attestors,
    /// See [`Agent::registry`].
    pub registry: Registry,
    /// See [`Agent::authority`].
    pub authority: Authority,
    /// See [`Agent::federation`].
    pub federation: Federation,
    /// See [`Agent::policies`].
    pub policies: Option<Policies>,
    /// The SVIDs that are out there.
    pub ledger: Ledger,
    /// See [`Agent::metrics`].
    pub metrics: Arc<Metrics>,
    /// See [`Agent::reattest`].
    pub reattest: Duration,
}

/// What a caller is entitled to at this moment. Never empty.
#[derive(Debug)]
pub struct Entitled {
    /// The Workloads it is, in a fixed order.
    pub workloads: Vec<Workload>,
    /// Its pod.
    pub pod: Pod,
}

impl Entitled {
    /// The trust domains whose bundles it gets beside its own.
    pub fn federates_with(&self) -> BTreeSet<TrustDomain> {
        let all = self.workloads.iter();
        all.flat_map(|workload| workload.federates_with.iter().cloned())
            .collect()
    }
}

/// Why a caller gets no identity.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It could not be attested.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// No Workload has its selectors.
    #[error("no Workload has the selectors of this process")]
    NoWorkload(Arc<Attested>),
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
    /// Puts the parts together. What was issued to Workloads that are gone is taken back.
    pub fn new(parts: Parts) -> Self {
        let agent = Self {
            attestors: parts.attestors,
            registry: parts.registry,
            authority: parts.authority,
            federation: parts.federation,
            policies: parts.policies,
            drift: Drift::default(),
            metrics: parts.metrics,
            reattest: parts.reattest,
            followed: Followed::default(),
            told_refusals: Calls::new(REFUSALS_PER_SECOND, REFUSALS_AT_ONCE),
            turns: Turns::default(),
            ledger: parts.ledger,
            warm: WarmSvids::default(),
            lists: Mutex::default(),
            trust: Mutex::default(),
            told: ArcSwap::default(),
            changed: watch::Sender::new(0),
        };
        agent.announce_documents();
        agent
    }

    /// Fires when streams should look again: Workloads, bundle or revocations have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What all proxies are told.
    pub fn told(&self) -> Arc<State> {
        self.told.load_full()
    }

    /// Makes anew what proxies are told, if it is another.
    fn renew_told(&self) {
        let next = control::state(&self.registry.current(), self.policies.as_ref());
        if **self.told.load() != next {
            self.told.store(Arc::new(next));
        }
    }

    /// Tells every stream to look again: the Workloads or policies are others.
    pub fn announce_documents(&self) {
        self.warn_of_what_cannot_be();
        let set = self.registry.current();
        let mut selectors = set.workloads().flat_map(|one| &one.selectors);
        // Nobody's program is read for nothing.
        let is_asked = selectors.any(|one| one.to_string().starts_with("unix:sha256:"));
        self.attestors.state_digests(is_asked);
        self.renew_told();
        self.take_back_what_is_nobodys();
        self.announce();
    }

    /// A Workload that nobody can be, or whose friends are strangers here, is probably a mistake.
    fn warn_of_what_cannot_be(&self) {
        let set = self.registry.current();
        for workload in set.workloads() {
            let mut selectors = workload.selectors.iter();
            if let Some(selector) = selectors.find(|one| !self.attestors.knows(one.kind())) {
                let selector = audit::without_secrets(selector);
                tracing::warn!(workload = %workload.name, selector, "no attestor can state this selector");
            }
            for other in &workload.federates_with {
                let mut peers = self.federation.peers().iter();
                if peers.all(|peer| peer.trust_domain != *other) {
                    tracing::warn!(workload = %workload.name, trust_domain = %other, "no `federation` tells the bundle of this trust domain");
                }
            }
        }
    }

    /// Takes back what Workloads hold that are gone, or have another identity now.
    fn take_back_what_is_nobodys(&self) {
        let set = self.registry.current();
        let taken = self.ledger.take(|record| {
            let workload = set.workload(&record.workload);
            workload.is_none_or(|workload| workload.spiffe_id.as_str() != record.spiffe_id)
        });
        for record in &taken {
            self.warm.forget(&record.workload, record.pod);
        }
        self.take_back(&taken, SystemTime::now());
    }

    /// Tells every stream to look again.
    pub fn announce(&self) {
        // In one step: what is made of what was before must not be kept.
        let mut known = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
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
        let now = SystemTime::now();
        let in_force = set.workloads().filter(|workload| workload.is_in_force(now));
        let matching = matching(in_force, &attested.selectors).into_iter();
        let mut workloads: Vec<Workload> = matching.cloned().collect();
        if workloads.is_empty() {
            return Err(Refusal::NoWorkload(attested));
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
        keep_first_of_each_hint(&mut workloads);
        Ok(Entitled { workloads, pod })
    }

    /// The SVID of a Workload in a pod: the one that its processes have, or a new one if that is to
    /// be renewed. What is issued is remembered.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn svid(
        &self,
        workload: &Workload,
        pod: Pod,
        now: SystemTime,
    ) -> Result<Arc<Warm>, StateError> {
        let is_good =
            |warm: &Warm| warm.is_for(workload) && self.authority.stands_by(&warm.issued().issuer);
        let is_full = || self.metrics.reached(WARM_SVIDS);
        self.warm
            .get_or_issue((&workload.name, pod), is_good, is_full, || {
                self.issue(workload, pod, now)
            })
    }

    fn issue(&self, workload: &Workload, pod: Pod, now: SystemTime) -> Result<Warm, StateError> {
        self.ledger
            .has_room(self.authority.revoked())
            .map_err(|full| self.not_noted(&full))?;
        let lifetime = workload
            .svid_ttl
            .unwrap_or_else(|| self.authority.svid_lifetime());
        let issued =
            self.authority
                .issue(&workload.spiffe_id, &workload.dns_names, lifetime, now)?;
        self.metrics.svids_issued.inc();
        tracing::info!(
            workload = %workload.name,
            spiffe_id = %workload.spiffe_id,
            ?pod,
            serial = warm::hexadecimal(&issued.serial),
            "an identity was issued"
        );
        let svid = RevokedSvid {
            serial: issued.serial.clone(),
            issuer: issued.issuer.clone(),
            expires: issued.not_after,
        };
        let record = Record {
            workload: workload.name.clone(),
            spiffe_id: workload.spiffe_id.to_string(),
            pod,
            svid,
        };
        if let Err(error) = self.ledger.note(record) {
            self.not_noted(&error);
        }
        Ok(Warm::new(workload, issued, now))
    }

    /// Takes a tainted root or key of tokens out of the bundles, and back what it signed.
    ///
    /// # Errors
    /// As [`Authority::revoke_signer`].
    pub fn revoke_signer(&self, id: &str, now: SystemTime) -> Result<(), StateError> {
        self.authority.revoke_signer(id, now)?;
        let taken = self
            .ledger
            .take(|record| warm::hexadecimal(&record.svid.issuer) == id);
        self.take_back(&taken, now);
        Ok(())
    }

    /// Counts and logs that the ledger cannot be kept.
    fn not_noted(&self, error: &NotNoted) -> StateError {
        match error {
            NotNoted::Full => self.metrics.reached(ISSUED),
            NotNoted::Write(_) => drop(self.metrics.state_writes_failed.inc()),
        }
        tracing::error!(%error, "the ledger of issued SVIDs cannot be kept");
        StateError::TooMany
    }

    /// Whom somebody who federates with these trust domains may trust.
    ///
    /// # Errors
    /// As [`Authority::revocation_lists`].
    pub fn trust(&self, federates_with: &BTreeSet<TrustDomain>) -> Result<Arc<Trust>, StateError> {
        let locked = || self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = locked().get(federates_with) {
            return Ok(known.clone());
        }
        // Read before the bundles: what changes meanwhile is announced, and clears this again.
        let number = *self.changed.borrow();
        let others = federates_with.iter();
        let federated = others.filter_map(|name| {
            let bundle = self.federation.get(name)?.x509.to_der_run();
            // A bundle that trusts nobody is told by its absence: clients take no empty one.
            (!bundle.is_empty()).then(|| (name.id_string(), bundle))
        });
        let trust = Arc::new(Trust {
            bundle: self.authority.bundle(),
            lists: self.revocation_lists()?,
            federated: federated.collect(),
        });
        let mut known = locked();
        if *self.changed.borrow() == number {
            known.insert(federates_with.clone(), trust.clone());
        }
        Ok(trust)
    }

    /// The own bundle as others read it.
    pub fn bundle_document(&self) -> Option<BundleDocument> {
        let own = self.authority.trust_domain().clone();
        Some(BundleDocument {
            x509: X509Bundle::from_der_run(own, &self.authority.bundle()).ok()?,
            jwt: self.authority.jwt_bundle(),
            sequence: Some(self.authority.sequence()),
            refresh_hint: Some(self.authority.refresh_hint()),
        })
    }

    /// The keys of tokens of the own trust domain and of those.
    pub fn jwt_bundles(&self, federates_with: &BTreeSet<TrustDomain>) -> Vec<JwtBundle> {
        let others = federates_with.iter();
        let others = others.filter_map(|name| Some(self.federation.get(name)?.jwt.clone()));
        let mut all = vec![self.authority.jwt_bundle()];
        all.extend(others.filter(|bundle| !bundle.is_empty()));
        all
    }

    /// The revocation lists in force, in DER.
    ///
    /// # Errors
    /// As [`Authority::revocation_lists`].
    pub fn revocation_lists(&self) -> Result<Vec<Vec<u8>>, StateError> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((lists, _)) = &*lists {
            return Ok(lists.to_vec());
        }
        let signed: Arc<[Vec<u8>]> = self.authority.revocation_lists(SystemTime::now())?.into();
        *lists = Some((signed.clone(), Instant::now()));
        Ok(signed.to_vec())
    }

    /// Has the lists signed anew when they are next asked for.
    pub fn renew_lists(&self) {
        *self.lists.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Has lists that were signed long ago signed anew.
    fn renew_old_lists(&self) {
        let lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |at: Instant| at.elapsed() > LISTS_RENEWED_AFTER;
        let old = lists.as_ref();
        let is_old = old.is_some_and(|(lists, at)| !lists.is_empty() && is_old(*at));
        drop(lists);
        if is_old {
            self.renew_lists();
            self.announce();
        }
    }

    /// One round of watching: forgets what has ended, looks at every pod that holds an identity.
    /// Blocking.
    pub fn watch_pods(&self, now: SystemTime) {
        let (held, written) = self.ledger.held(now);
        if let Err(error) = written {
            self.not_noted(&error.into());
        }
        self.warm.forget_due();
        self.followed.forget_ended();
        self.renew_old_lists();
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
        let seen = match self.drift.scan(&self.attestors, &pods, with_digests) {
            Ok(seen) => seen,
            // Who cannot be looked at is not vouched for, where that would have been answered.
            Err(error) => {
                tracing::error!(%error, "the pods cannot be looked at");
                let strict = watched
                    .iter()
                    .filter(|(one, _)| one.on_drift == OnDrift::Revoke);
                return strict.map(|(one, pod)| (one.name.clone(), *pod)).collect();
            }
        };
        let mut revoked = false;
        for (workload, pod) in watched {
            let processes = seen.get(pod).map(Vec::as_slice).unwrap_or_default();
            let is_full = || self.metrics.reached(DRIFT_LIST);
            let found = self.drift.compare(workload, *pod, processes, now, is_full);
            for (deviation, is_new) in found {
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
        let taken = self
            .ledger
            .take(|record| record.workload == *workload && record.pod == pod);
        // Forgotten afterwards: what is issued in between is on the ledger, or warm no more.
        self.warm.forget(workload, pod);
        self.take_back(&taken, now);
        !taken.is_empty()
    }

    /// Puts SVIDs on the revocation lists.
    fn take_back(&self, taken: &[Record], now: SystemTime) {
        if taken.is_empty() {
            return;
        }
        let number = u64::try_from(taken.len()).unwrap_or(u64::MAX);
        self.metrics.svids_revoked.inc_by(number);
        for record in taken {
            tracing::warn!(
                target: "audit",
                workload = %record.workload,
                spiffe_id = record.spiffe_id,
                pod = ?record.pod,
                serial = warm::hexadecimal(&record.svid.serial),
                "taken back"
            );
        }
        let svids: Vec<RevokedSvid> = taken.iter().map(|record| record.svid.clone()).collect();
        if let Err(error) = self.authority.revoke(&svids, now) {
            self.metrics.state_writes_failed.inc();
            tracing::error!(%error, "a revocation holds, but could not be written down");
        }
        self.renew_lists();
    }

    /// What is true of a process, which Workloads it is, and which it nearly is, for people.
    /// Blocking.
    ///
    /// # Errors
    /// It cannot be attested.
    pub fn explain(&self, process: &PinnedProcess) -> Result<serde_json::Value, AttestError> {
        let attested = self.attestors.attest(process)?;
        let set = self.registry.current();
        Ok(explanation(process.pid(), &attested, &set))
    }

    /// Counts a refusal and tells it to the audit log, unless the same process is refused so often that
    /// it would fill it.
    pub(crate) fn refused(&self, method: &str, process: &PinnedProcess, refusal: &Refusal) {
        let reason = refusal.label();
        let label = ReasonLabel { reason };
        self.metrics.refused.get_or_create(&label).inc();
        match self.told_refusals.take(process.pid(), Instant::now()) {
            true => audit::refused(self, method, process, refusal),
            false => self.metrics.reached(AUDITED_REFUSALS),
        }
    }
}

/// How many refusals of a process the audit log has.
const REFUSALS_PER_SECOND: f64 = 1.0;
const REFUSALS_AT_ONCE: f64 = 20.0;

/// A quarter of the life of a list.
const LISTS_RENEWED_AFTER: Duration = Duration::from_secs(6 * 60 * 60);

/// What there is to say about a process that was attested.
pub fn explanation(pid: i32, attested: &Attested, set: &PolicySet) -> serde_json::Value {
    let now = SystemTime::now();
    let in_force = || set.workloads().filter(|workload| workload.is_in_force(now));
    let matched = matching(in_force(), &attested.selectors);
    let misses = nearest_misses(in_force(), &attested.selectors, SHOWN_MISSES);
    let ended = set
        .workloads()
        .filter(|workload| !workload.is_in_force(now));
    let ended = matching(ended, &attested.selectors);
    let texts = |all: Vec<&Selector>| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "pid": pid,
        "selectors": texts(attested.selectors.iter().collect()),
        "workloads": matched.iter().map(|workload| json!({
            "name": workload.name.to_string(),
            "spiffeID": workload.spiffe_id.as_str(),
        })).collect::<Vec<_>>(),
        "expired": ended.iter().map(|workload| workload.name.to_string()).collect::<Vec<_>>(),
        "nearestMisses": misses.into_iter().map(|miss| json!({
            "name": miss.workload.name.to_string(),
            "missing": texts(miss.missing),
        })).collect::<Vec<_>>(),
    })
}

const SHOWN_MISSES: usize = 3;

/// Hints are unique in an answer: of two Workloads with one hint the older one is taken, and of two
/// of one age the first by name. Spec: SPIFFE Workload API section 5.2.1.
fn keep_first_of_each_hint(workloads: &mut Vec<Workload>) {
    let mut first: HashMap<String, (Option<SystemTime>, WorkloadName)> = HashMap::new();
    for workload in workloads.iter() {
        let Some(hint) = &workload.hint else { continue };
        let own = (workload.created, workload.name.clone());
        match first.get_mut(hint) {
            Some(known) => *known = own.min(known.clone()),
            None => drop(first.insert(hint.clone(), own)),
        }
    }
    workloads.retain(|workload| {
        let chosen = workload.hint.as_ref().and_then(|hint| first.get(hint));
        let is_chosen = chosen.is_none_or(|(_, name)| *name == workload.name);
        if !is_chosen {
            tracing::debug!(workload = %workload.name, hint = workload.hint, "another Workload of the same process has this hint; this one is left out");
        }
        is_chosen
    });
}

#[cfg(test)]
mod tests {
    use std::{
        path::PathBuf,
        time::{Duration, SystemTime},
    };

    use postern_policies::{Options, PolicySet, SourceFile, model::workload::Workload};
    use postern_spiffe::TrustDomain;

    use super::keep_first_of_each_hint;

    #[test]
    fn of_two_workloads_with_one_hint_the_older_one_is_told() {
        // FAULTS 45
        let document = |name: &str, hint: &str| {
            format!(
                "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\n\
                 spec: {{spiffeID: 'spiffe://example.org/{name}'{hint}}}\n---\n"
            )
        };
        let text = document("a", ", hint: x") + &document("b", ", hint: x") + &document("c", "");
        let file = SourceFile {
            path: PathBuf::from("w.yaml"),
            text: text.into_bytes(),
        };
        let options = Options::new(TrustDomain::parse("example.org").unwrap());
        let set = PolicySet::load(&[file], &options).unwrap().set;
        let names = |mut all: Vec<Workload>| {
            keep_first_of_each_hint(&mut all);
            let names = all.iter().map(|one| one.name.name.to_string());
            names.collect::<Vec<_>>()
        };
        let mut all: Vec<Workload> = set.workloads().cloned().collect();
        assert_eq!(names(all.clone()), ["a", "c"]);
        let (old, new) = (
            SystemTime::UNIX_EPOCH,
            SystemTime::UNIX_EPOCH + Duration::from_secs(9),
        );
        for (workload, created) in all.iter_mut().zip([new, old]) {
            workload.created = Some(created);
        }
        assert_eq!(names(all), ["b", "c"]);
    }
}
