//! Watching the pods: what they hold, what they do, and when they have ended.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::atomic::Ordering,
    time::{Instant, SystemTime},
};

use postern_policies::{
    PolicySet,
    model::workload::{OnDrift, Surrounding, Workload, WorkloadName},
};

use super::{Agent, presence::Standing};
use crate::{
    attest::{
        Pod, procfs,
        reading::{Lack, read_as},
    },
    caller::{PinnedProcess, ProcFolder},
    drift::{self, Deviation, InPod, Kind, Learnt, Now, Sighting, Wanted, deviations, is_asked},
    monitor::Source,
    telemetry::{DRIFT_GROUNDS, DRIFT_LIST},
};

/// What came of a look at some pods.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// Whose identities are withdrawn as long as it lasts.
    pub(super) withdrawn: HashSet<(WorkloadName, Pod)>,
    /// Why not everything was seen; nothing is taken back for that.
    pub(super) lack: Option<Lack>,
    /// All pods there are, if it is known of all processes where they live.
    present: Option<HashSet<Pod>>,
}

impl Agent {
    /// One round of watching: forgets what has ended, looks at every pod that holds an identity.
    /// Blocking.
    pub fn watch_pods(&self, now: SystemTime) {
        let (held, written) = self.ledger.held(now, self.settled.now());
        if let Err(error) = written {
            self.not_noted(&error.into());
        }
        self.warm.forget_due();
        let held = match self.forget_others() {
            true => self.ledger.held(now, self.settled.now()).0,
            false => held,
        };
        self.followed.forget_ended();
        self.renew_old_lists();
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let set = self.registry.current();
        let watched: Vec<(&Workload, Pod)> = held
            .iter()
            .filter_map(|(name, pod)| Some((set.workload(name)?, *pod)))
            .filter(|(workload, _)| workload.baseline.is_some())
            .collect();
        let mut revoked = false;
        for source in Source::ALL.iter().filter(|one| lost & one.bit() != 0) {
            for (workload, pod) in &watched {
                let found = vec![Sighting::lost(*source)];
                revoked |= self.answer(workload, *pod, found, now, &mut Looked::default());
            }
        }
        if revoked {
            self.announce();
        }
        let known = self.known_pods(&held);
        if let Some(present) = self.look_for_drift(&watched, !known.is_empty()).present {
            for pod in self.pods.ended(&known, &present) {
                self.forget_pod(pod);
            }
        }
    }

    /// The pods that something is remembered of.
    fn known_pods(&self, held: &HashSet<(WorkloadName, Pod)>) -> HashSet<Pod> {
        let mut known = self.pods.kept();
        known.extend(held.iter().map(|(_, pod)| *pod));
        known.extend(self.drift.pods());
        known.extend(self.warm.pods());
        known
    }

    /// Forgets what belongs to the number of a pod that has ended, and lets the number go then.
    fn forget_pod(&self, pod: Pod) {
        self.forget_what_is_known(pod, Standing::Missed);
        self.pods.let_go(pod);
    }

    /// Forgets what belongs to the numbers of pods that are others' by now: nothing that they do is held
    /// against those that had the numbers before. Tells whether there was anything. Blocking.
    pub(super) fn forget_others(&self) -> bool {
        let (held, _) = self.ledger.held(SystemTime::now(), self.settled.now());
        let known = self.known_pods(&held);
        let mut is_any = false;
        let checked = self.pods.check(&known, |pod, standing| {
            is_any = true;
            self.forget_what_is_known(pod, standing);
        });
        if let Err(lack) = checked {
            self.lacks(&lack);
        }
        is_any
    }

    /// Forgets what belongs to the number of a pod. What it held is taken back where nobody can tell whether
    /// those who have its number now are it.
    pub(super) fn forget_what_is_known(&self, pod: Pod, standing: Standing) {
        tracing::info!(?pod, ?standing, "a pod has ended");
        if standing == Standing::Unclear {
            let taken = self.ledger.take(|record| record.pod == pod);
            self.take_back(&taken, SystemTime::now());
            self.announce();
        }
        if let Err(error) = self.ledger.end(pod) {
            self.not_noted(&error);
        }
        self.warm.forget_pod(pod);
        self.drift.end(pod);
        self.asking.forget(pod);
        self.mounts.forget(pod);
    }

    /// Looks at pods, answers what is found, and tells which identities are withdrawn as long as
    /// it lasts.
    pub(super) fn look_for_drift(
        &self,
        watched: &[(&Workload, Pod)],
        are_pods_known: bool,
    ) -> Looked {
        let mut looked = Looked::default();
        if watched.is_empty() && !are_pods_known {
            return looked;
        }
        let now = SystemTime::now();
        let set = self.registry.current();
        let mut scan = self.drift.scan(&self.attestors, &self.wanted(watched));
        if let Some(lack) = &scan.lack {
            self.lacks(lack);
        }
        let is_whole = scan.lack.is_none();
        let moment = Now::read();
        for seen in scan.seen.values_mut() {
            // Who was started long ago is in.
            let is_in = |one: &drift::Seen| one.started.saturating_add(ENTERS_IN) < moment.ticks;
            let is_entering =
                |one: &drift::Seen| self.drift.is_entering(one.pid, &ProcFolder::of(one.pid));
            seen.processes.retain(|one| is_in(one) || !is_entering(one));
        }
        let mut hits = self.ask_about(watched, &scan);
        for (pod, seen) in &scan.seen {
            for (pid, namespace) in seen.mount_namespaces() {
                self.mounts.follow(*pod, namespace, pid, &self.look_again);
            }
            if is_whole {
                let there = seen.mount_namespaces().map(|(_, namespace)| namespace);
                self.mounts.keep_only(*pod, &there.collect());
            }
        }
        let changed: HashMap<Pod, Vec<Sighting>> = scan
            .seen
            .iter_mut()
            .map(|(pod, seen)| (*pod, self.drift.changed(*pod, seen, is_whole, Now::read())))
            .collect();
        if self.drift.is_full() {
            self.metrics.reached(DRIFT_GROUNDS);
        }
        let mut revoked = false;
        for (workload, pod) in watched {
            let seen = scan.seen.get(pod);
            let mut found =
                seen.map_or_else(Vec::new, |seen| deviating(workload, *pod, seen, &set));
            let changed = changed.get(pod).into_iter().flatten();
            let is_asked = |one: &&Sighting| is_asked(one.kind, workload);
            found.extend(changed.filter(is_asked).cloned());
            found.extend(
                hits.remove(&(workload.name.clone(), *pod))
                    .unwrap_or_default(),
            );
            revoked |= self.answer(workload, *pod, found, now, &mut looked);
        }
        looked.present = (!scan.hides_pods).then_some(scan.present);
        looked.lack = scan.lack;
        if revoked {
            self.announce();
        }
        looked
    }

    /// What is to be looked at.
    fn wanted(&self, watched: &[(&Workload, Pod)]) -> Wanted {
        let mut wanted = Wanted::default();
        for (workload, pod) in watched {
            self.asking.follow(*pod, &workload.name);
            wanted.pods.insert(*pod);
            wanted.with_digests |= drift::wants_digests(workload);
            let Some(baseline) = &workload.baseline else {
                continue;
            };
            let asks_for_sockets = self.registry.rules(&workload.name);
            let asks_for_sockets = asks_for_sockets.is_some_and(|rules| rules.asks_for_sockets());
            if Surrounding::ALL
                .iter()
                .any(|one| !baseline.ignored.contains(one))
            {
                wanted.standings.insert(*pod);
            }
            if baseline.listen.is_some() || baseline.destinations.is_some() || asks_for_sockets {
                wanted.sockets.insert(*pod);
            }
            if baseline.writable.is_some() || !baseline.protected.is_empty() {
                wanted.files.insert(*pod);
            }
        }
        wanted
    }

    /// Writes down what deviates, tells it, and answers it. Tells whether anything was taken back.
    pub(super) fn answer(
        &self,
        workload: &Workload,
        pod: Pod,
        found: Vec<Sighting>,
        now: SystemTime,
        looked: &mut Looked,
    ) -> bool {
        let is_full = || self.metrics.reached(DRIFT_LIST);
        let found = self.drift.record(workload, pod, found, now, is_full);
        let was_hit = self.drift.was_hit(&workload.name, pod);
        let deviates = found.iter().any(|(one, _)| one.kind != Kind::Lost) || was_hit;
        for (deviation, is_new) in found {
            if is_new {
                self.metrics.deviations.inc();
                tell(&deviation, workload.on_drift);
            }
            if workload.on_drift == OnDrift::Block && deviation.kind.is_of_a_process() {
                self.end_process(&deviation, pod);
            }
        }
        if !deviates || !workload.on_drift.withdraws() {
            return false;
        }
        looked.withdrawn.insert((workload.name.clone(), pod));
        self.revoke(&workload.name, pod, now)
    }

    /// Ends the process that deviates, if it still is in its pod.
    fn end_process(&self, deviation: &Deviation, pod: Pod) {
        let Ok(process) = PinnedProcess::by_number(deviation.pid) else {
            return;
        };
        let is_there = process.read(|folder| {
            // It may have left by another network.
            let started = read_as(&folder.join("stat"), procfs::stat).map(|stat| stat.started);
            let was_there = started.is_ok_and(|at| self.drift.has_member(pod, process.pid(), at));
            was_there || self.attestors.pod(folder).ok() == Some(pod)
        });
        if !is_there.unwrap_or_default() {
            return;
        }
        let kill = rustix::process::Signal::KILL;
        match rustix::process::pidfd_send_signal(process.handle(), kill) {
            Ok(()) => self.drift.was_ended(pod, deviation),
            Err(error) => {
                tracing::warn!(%error, pid = deviation.pid, workload = %deviation.workload, "the process that deviates cannot be ended; its identity is taken back all the same");
            }
        }
    }

    /// What the pods of a Workload do at this moment. None where there is no such Workload. Blocking.
    pub fn learn(&self, name: &str) -> Option<Learnt> {
        let set = self.registry.current();
        let workload = set.workloads().find(|one| one.name.to_string() == name)?;
        let (held, _) = self.ledger.held(SystemTime::now(), self.settled.now());
        let pods = held.iter().filter(|(of, _)| *of == workload.name);
        let pods: HashSet<Pod> = pods.map(|(_, pod)| *pod).collect();
        let wanted = Wanted {
            sockets: pods.clone(),
            files: pods.clone(),
            pods,
            with_digests: true,
            ..Wanted::default()
        };
        let mut learnt = Learnt::default();
        for (pod, seen) in &self.drift.scan(&self.attestors, &wanted).seen {
            learnt.add(*pod, seen);
        }
        Some(learnt)
    }

    /// Counts that something could not be looked at, and logs it once a second.
    pub(super) fn lacks(&self, lack: &dyn std::fmt::Display) {
        self.metrics.looks_failed.inc();
        if self.told_lacks.take(0, Instant::now()) {
            tracing::error!(error = %lack, "processes cannot be looked at");
        }
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
}

/// What was seen that the baseline does not say.
fn deviating(workload: &Workload, pod: Pod, seen: &InPod, set: &PolicySet) -> Vec<Sighting> {
    let has_address = |name: &WorkloadName, address: IpAddr| {
        let addresses = set.workload(name).map(|one| one.addresses.as_slice());
        let mut addresses = addresses.unwrap_or_default().iter();
        addresses.any(|text| text.parse() == Ok(address))
    };
    let baseline = workload.baseline.as_ref();
    baseline.map_or_else(Vec::new, |baseline| {
        deviations(baseline, pod, seen, has_address)
    })
}

fn tell(deviation: &Deviation, answer: OnDrift) {
    tracing::warn!(
        workload = %deviation.workload,
        spiffe_id = deviation.spiffe_id,
        kind = deviation.kind.as_str(),
        what = deviation.what,
        rule = deviation.rule,
        pid = deviation.pid,
        answer = answer.as_str(),
        "a pod does what its baseline does not say"
    );
}

/// In ticks of the clock: what enters a pod is not older.
const ENTERS_IN: u64 = 3_000;
