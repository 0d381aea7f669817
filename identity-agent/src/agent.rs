//! The agent itself: what a caller is entitled to, and what is taken back.
//!
//! Blocking where it reads files; the Workload API calls it on a thread for that.

mod asking;
mod changes;
mod entitled;
mod ledger;
mod pods;
mod presence;
mod warm;
mod watching;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU8},
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use postern_policies::{
    PolicySet,
    model::workload::{Workload, WorkloadName},
};
use postern_spiffe::{JwtBundle, Selector, TrustDomain, X509Bundle, bundle::BundleDocument};
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
};

use crate::{
    admission::{Calls, Turns},
    attest::{Asked, AttestError, Attested, Attestors, Pod, why_lacking},
    audit,
    authority::{Authority, RevokedSvid, StateError},
    caller::PinnedProcess,
    control::Told,
    drift::Drift,
    federation::Federation,
    monitor::{Followed, Mounts},
    registry::{Registry, matching, nearest_misses},
    settled::Settled,
    telemetry::{AUDITED_REFUSALS, ISSUED, ISSUED_TO_USER, Metrics, PODS, ReasonLabel, WARM_SVIDS},
};

use asking::Asking;
use changes::Changes;
pub(crate) use entitled::keep_first_of_each_hint;
pub use entitled::{CannotIssue, Entitled, Refusal};
use ledger::Record;
pub use ledger::{Ledger, NotNoted};
use pods::Pods;
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
    pub federation: Arc<Federation>,
    /// What was seen of drift.
    pub drift: Drift,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// How often a caller is looked at again.
    pub reattest: Duration,
    /// Whom the kernel tells of.
    pub followed: Followed,
    told_refusals: Calls<i32>,
    told_lacks: Calls<i32>,
    /// Who is looked at now.
    pub(crate) turns: Turns,
    ledger: Ledger,
    pub(crate) settled: Settled,
    pods: Pods,
    asking: Asking,
    /// Whose events were lost since the last look, as a set.
    lost: AtomicU8,
    /// Somebody wants all pods to be looked at now.
    pub(crate) look_again: Arc<Notify>,
    mounts: Mounts,
    warm: WarmSvids,
    /// The revocation lists as signed last: signing them anew would look like a change.
    lists: Mutex<Option<SignedLists>>,
    trust: Mutex<HashMap<BTreeSet<TrustDomain>, Arc<Trust>>>,
    told: ArcSwap<Told>,
    changes: Changes,
    changed: watch::Sender<u64>,
}

/// Whom the holder of some identities may trust; one for all who may trust the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Trust {
    /// The roots of the own trust domain, in DER, one after the other.
    pub bundle: Bytes,
    /// The revocation lists in force, in DER.
    pub lists: Vec<Bytes>,
    /// The roots of other trust domains, by `spiffe://<trust domain>`.
    pub federated: Vec<(String, Vec<u8>)>,
}

/// Revocation lists in DER, and when they were signed.
#[derive(Debug)]
struct SignedLists {
    lists: Arc<[Bytes]>,
    at: SystemTime,
}

impl SignedLists {
    /// Are they about to end, or of the future? Where the clock was set back, what had ended by it is to be
    /// on them again, and for others they do not count yet.
    fn are_to_be_renewed(&self, now: SystemTime) -> bool {
        match now.duration_since(self.at) {
            Ok(age) => age > LISTS_RENEWED_AFTER && !self.lists.is_empty(),
            Err(_) => true,
        }
    }
}

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
    /// The SVIDs that are out there.
    pub ledger: Ledger,
    /// See [`Agent::metrics`].
    pub metrics: Arc<Metrics>,
    /// See [`Agent::reattest`].
    pub reattest: Duration,
}

impl Agent {
    /// Puts the parts together. What was issued to Workloads that are gone is taken back.
    pub fn new(parts: Parts) -> Self {
        let pods = Pods::of_before(parts.ledger.seen());
        let agent = Self {
            attestors: parts.attestors,
            registry: parts.registry,
            authority: parts.authority,
            federation: Arc::new(parts.federation),
            drift: Drift::default(),
            metrics: parts.metrics,
            reattest: parts.reattest,
            followed: Followed::default(),
            told_refusals: Calls::new(REFUSALS_PER_SECOND, REFUSALS_AT_ONCE),
            told_lacks: Calls::new(1.0, 1.0),
            turns: Turns::default(),
            ledger: parts.ledger,
            settled: Settled::begin(),
            pods,
            asking: Asking::default(),
            lost: AtomicU8::new(0),
            look_again: Arc::default(),
            mounts: Mounts::default(),
            warm: WarmSvids::default(),
            lists: Mutex::default(),
            trust: Mutex::default(),
            told: ArcSwap::default(),
            changes: Changes::default(),
            changed: watch::Sender::new(0),
        };
        agent.forget_others();
        agent.announce_documents();
        agent
    }

    /// Fires when streams should look again: Workloads, bundle or revocations have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Changes something that is kept, on a thread for it, after all changes that were asked for before.
    /// None when it panicked.
    pub async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let agent = self.clone();
        self.changes.make(move || change(&agent)).await
    }

    /// Looks at something for which a disk or a lock may have to be waited for, on a thread for it.
    /// None when it panicked.
    pub async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let agent = self.clone();
        spawn_blocking(move || look(&agent)).await.ok()
    }

    /// What proxies are told.
    pub(crate) fn told(&self) -> Arc<Told> {
        self.told.load_full()
    }

    /// Makes anew what proxies are told, if it is another.
    fn renew_told(&self) {
        let next = Told::of(&self.registry.pair());
        if !self.told.load().is_same(&next) {
            self.told.store(Arc::new(next));
        }
    }

    /// Tells every stream to look again: the Workloads or policies are others. Blocking, and a part of
    /// the change that made them so: of two at once the older one might be told last.
    pub fn announce_documents(&self) {
        self.warn_of_what_cannot_be();
        let set = self.registry.current();
        // Nobody's program is read for nothing.
        let selectors = set.workloads().flat_map(|one| &one.selectors);
        self.attestors.asked(&Asked::by(selectors));
        if self.registry.are_rules_news() {
            self.tell_of_rules();
            self.drift.ask_again();
        }
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

    /// A rule that does not run is none, and one that runs in part misses something.
    fn tell_of_rules(&self) {
        let set = self.registry.current();
        for workload in set.workloads() {
            let Some(rules) = self.registry.rules(&workload.name) else {
                continue;
            };
            for warning in &rules.warnings {
                tracing::warn!(workload = %workload.name, %warning, "a rule is probably not what is meant");
            }
            for one in rules.checked.iter().filter(|one| one.is_enabled) {
                for reason in &one.reasons {
                    let place = format!("{}:{}", reason.file.display(), reason.place.line);
                    let runs = one.runs.as_str();
                    tracing::warn!(workload = %workload.name, rule = one.rule, runs, place, why = reason.why, "a rule does not run whole");
                }
            }
        }
    }

    /// Takes back what Workloads hold that are gone, or have another identity now.
    fn take_back_what_is_nobodys(&self) {
        // What pods hold is theirs still, though nobody has told us of them yet.
        if self.registry.awaits_cluster() {
            return;
        }
        let set = self.registry.current();
        self.take_back_where(|record| {
            let workload = set.workload(&record.workload);
            workload.is_none_or(|workload| workload.spiffe_id != record.spiffe_id)
        });
    }

    /// Takes back what these hold: other pods have their names by now.
    pub(crate) fn take_back_of(&self, replaced: &HashSet<WorkloadName>) {
        self.take_back_where(|record| replaced.contains(&record.workload));
    }

    fn take_back_where(&self, is_taken: impl Fn(&Record) -> bool) {
        let taken = self.ledger.take(is_taken);
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
        let count = |error: &AttestError| {
            if matches!(error, AttestError::Lack(_) | AttestError::NoAnswer { .. }) {
                self.lacks(error);
            }
        };
        let attested = self.attestors.attest(process).inspect_err(count)?;
        let set = self.registry.current();
        let Some(mut entitled) = Entitled::of(process, &attested, &set, SystemTime::now()) else {
            // It says nothing against a pod that nobody has told us of it.
            return Err(match self.registry.awaits_cluster() {
                true => Refusal::NotSynced,
                false => Refusal::NoWorkload(attested),
            });
        };
        let pod = entitled.pod;
        let is_full = || self.metrics.reached(PODS);
        let forget = |standing| self.forget_what_is_known(pod, standing);
        let kept = self.pods.keep(process, pod, is_full, forget);
        kept.inspect_err(count)?;
        let watched = entitled.workloads.iter();
        let watched = watched.filter(|workload| workload.baseline.is_some());
        let watched: Vec<(&Workload, Pod)> = watched.map(|one| (one, pod)).collect();
        let looked = self.look_for_drift(&watched, false);
        let is_left =
            |workload: &Workload| !looked.withdrawn.contains(&(workload.name.clone(), pod));
        entitled.workloads.retain(is_left);
        if entitled.workloads.is_empty() {
            return Err(Refusal::Drifted);
        }
        // Who was not seen is not vouched for, where what he does would have been answered.
        let is_strict = |one: &Workload| one.baseline.is_some() && one.on_drift.withdraws();
        if let Some(lack) = looked.lack
            && entitled.workloads.iter().any(is_strict)
        {
            return Err(Refusal::Lack(lack));
        }
        keep_first_of_each_hint(&mut entitled.workloads);
        Ok(entitled)
    }

    /// The SVID of one of the Workloads that somebody is entitled to: the one that the processes of its
    /// pod have, or a new one if that is to be renewed. What is issued is remembered.
    ///
    /// # Errors
    /// [`CannotIssue`]; callers get nothing that they do not have.
    pub fn svid(
        &self,
        workload: &Workload,
        entitled: &Entitled,
        now: SystemTime,
    ) -> Result<Arc<Warm>, CannotIssue> {
        let is_good = |warm: &Warm| self.is_good(warm, workload);
        let is_full = || self.metrics.reached(WARM_SVIDS);
        let key = (&workload.name, entitled.pod, entitled.uid);
        // INVARIANT: the pods are locked before a shard of what is warm, never behind it: who forgets a pod
        // holds them and waits for all shards.
        let seen = self.pods.seen_at(entitled.pod);
        self.warm.get_or_issue(key, is_good, is_full, || {
            let issued = self.issue(workload, entitled, seen, now);
            issued.inspect_err(|error| self.not_issued(error))
        })
    }

    /// The same, if there is one that is good, and nobody has to be waited for to tell.
    pub(crate) fn known_svid(&self, workload: &Workload, pod: Pod) -> Option<Arc<Warm>> {
        let is_good = |warm: &Warm| self.is_good(warm, workload);
        self.warm.known(&workload.name, pod, is_good)
    }

    /// Is it what this Workload says, and of a signer that is still trusted?
    fn is_good(&self, warm: &Warm, workload: &Workload) -> bool {
        warm.is_for(workload) && self.authority.stands_by(warm.issuer())
    }

    fn issue(
        &self,
        workload: &Workload,
        entitled: &Entitled,
        seen: Option<u64>,
        now: SystemTime,
    ) -> Result<Warm, CannotIssue> {
        let (pod, owner) = (entitled.pod, entitled.uid);
        self.ledger
            .has_room(owner, self.authority.revoked(now), now)?;
        let lifetime = workload
            .svid_ttl
            .unwrap_or_else(|| self.authority.svid_lifetime());
        let issued =
            self.authority
                .issue(&workload.spiffe_id, &workload.dns_names, lifetime, now)?;
        self.ledger.note(Record {
            workload: workload.name.clone(),
            spiffe_id: workload.spiffe_id.clone(),
            pod,
            seen,
            owner: Some(owner),
            svid: RevokedSvid {
                serial: issued.serial.clone(),
                issuer: issued.issuer.clone(),
                expires: issued.not_after,
            },
        })?;
        self.metrics.svids_issued.inc();
        tracing::info!(
            workload = %workload.name,
            spiffe_id = %workload.spiffe_id,
            ?pod,
            serial = warm::hexadecimal(&issued.serial),
            "an identity was issued"
        );
        Ok(Warm::new(workload, owner, issued, now))
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

    /// Counts and logs why nothing was issued.
    fn not_issued(&self, error: &CannotIssue) {
        match error {
            CannotIssue::Signer(error) => tracing::error!(%error, "cannot issue"),
            CannotIssue::Ledger(error) => self.not_noted(error),
        }
    }

    /// Counts and logs that the ledger cannot be kept.
    fn not_noted(&self, error: &NotNoted) {
        match error {
            NotNoted::Full => self.metrics.reached(ISSUED),
            NotNoted::FullOfUser(_) => self.metrics.reached(ISSUED_TO_USER),
            NotNoted::Write(_) => drop(self.metrics.state_writes_failed.inc()),
        }
        tracing::error!(%error, "the ledger of issued SVIDs cannot be kept");
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
            bundle: self.authority.bundle().into(),
            lists: self.revocation_lists()?,
            federated: federated.collect(),
        });
        let mut known = locked();
        if *self.changed.borrow() == number {
            known.insert(federates_with.clone(), trust.clone());
        }
        Ok(trust)
    }

    /// The same, if it is known, and nobody has to be waited for to tell.
    pub(crate) fn known_trust(&self, federates_with: &BTreeSet<TrustDomain>) -> Option<Arc<Trust>> {
        let known = self.trust.try_lock().ok()?;
        known.get(federates_with).cloned()
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
    pub fn revocation_lists(&self) -> Result<Vec<Bytes>, StateError> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signed) = &*lists {
            return Ok(signed.lists.to_vec());
        }
        let at = SystemTime::now();
        let signed = self.authority.revocation_lists(at)?;
        let signed: Arc<[Bytes]> = signed.into_iter().map(Bytes::from).collect();
        *lists = Some(SignedLists {
            lists: signed.clone(),
            at,
        });
        Ok(signed.to_vec())
    }

    /// Has the lists signed anew when they are next asked for.
    pub fn renew_lists(&self) {
        *self.lists.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Has lists that were signed long ago, or by a clock that was set back, signed anew.
    fn renew_old_lists(&self) {
        let lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let signed = lists.as_ref();
        // By the time of whoever signed them, who had the lock.
        let now = SystemTime::now();
        let is_due = signed.is_some_and(|signed| signed.are_to_be_renewed(now));
        drop(lists);
        if is_due {
            self.renew_lists();
            self.announce();
        }
    }

    /// Puts SVIDs on the revocation lists.
    fn take_back(&self, taken: &[Record], now: SystemTime) {
        if taken.is_empty() {
            return;
        }
        // The others are kept for a clock that goes back.
        for record in taken.iter().filter(|one| one.svid.expires > now) {
            self.metrics.svids_revoked.inc();
            tracing::warn!(
                target: "audit",
                workload = %record.workload,
                spiffe_id = %record.spiffe_id,
                pod = ?record.pod,
                serial = warm::hexadecimal(&record.svid.serial),
                "taken back"
            );
        }
        let svids: Vec<RevokedSvid> = taken.iter().map(|record| record.svid.clone()).collect();
        if let Err(error) = self.authority.revoke(&svids, now, self.settled.now()) {
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
            "why": why_missing(&miss.missing, attested),
            "missing": texts(miss.missing),
        })).collect::<Vec<_>>(),
    })
}

/// Why a process lacks some selectors, as far as that was found out.
pub(crate) fn why_missing(missing: &[&Selector], attested: &Attested) -> Vec<String> {
    let why = missing.iter().filter_map(|one| {
        let why = why_lacking(&attested.findings, one.kind(), one.value())?;
        Some(format!("{one}: {why}"))
    });
    why.collect()
}

const SHOWN_MISSES: usize = 3;
