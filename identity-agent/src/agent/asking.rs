//! What happens in pods is judged: at once where the kernel tells, and at the next look where it does
//! not. Programs by the baselines of their Workloads, everything by their rules.

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use postern_policies::{
    PolicySet,
    model::workload::{Workload, WorkloadName},
};

use super::{Agent, watching::Looked};
use crate::{
    attest::{
        Pod, procfs,
        reading::{Lack, known, read_as},
    },
    caller::{PinError, PinnedProcess, ProcFolder},
    drift::{
        self, Connection, Kind, Now, Parent, Program, Scan, Seen, Sighting, Socket, Standing,
        is_asked, process::Happened,
    },
    monitor::{Event, Source},
    rules::{self, Class, RuleSet},
    telemetry::SourceLabel,
};

/// The pods whose Workloads have a baseline.
#[derive(Debug, Default)]
pub(super) struct Asking {
    pods: Mutex<HashMap<Pod, HashSet<WorkloadName>>>,
    is_asked: AtomicBool,
}

impl Asking {
    fn locked(&self) -> MutexGuard<'_, HashMap<Pod, HashSet<WorkloadName>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn follow(&self, pod: Pod, workload: &WorkloadName) {
        self.locked()
            .entry(pod)
            .or_default()
            .insert(workload.clone());
        self.is_asked.store(true, Ordering::Relaxed);
    }

    fn of(&self, pod: Pod) -> HashSet<WorkloadName> {
        self.locked().get(&pod).cloned().unwrap_or_default()
    }

    fn is_asked(&self, pod: Pod) -> bool {
        self.locked().contains_key(&pod)
    }

    pub(super) fn forget(&self, pod: Pod) {
        let mut pods = self.locked();
        pods.remove(&pod);
        self.is_asked.store(!pods.is_empty(), Ordering::Relaxed);
    }
}

/// What rules have hit, by the Workload that has them and the pod.
pub(super) type Hits = HashMap<(WorkloadName, Pod), Vec<Sighting>>;

impl Agent {
    /// Is anybody to be told of what processes do?
    pub(crate) fn watches_events(&self) -> bool {
        self.asking.is_asked.load(Ordering::Relaxed)
    }

    /// What happened was not seen for a moment: all pods are looked at as soon as possible.
    pub(crate) fn has_lost(&self, source: Source) {
        let source_label = SourceLabel {
            source: source.as_str(),
        };
        self.metrics.events_lost.get_or_create(&source_label).inc();
        if self.lost.fetch_or(source.bit(), Ordering::Relaxed) & source.bit() == 0 {
            tracing::warn!(
                source = source.as_str(),
                "events were lost; all pods are looked at"
            );
        }
        self.look_again.notify_one();
    }

    /// Judges what the kernel told of processes, by their numbers. Blocking.
    pub(crate) fn happened(&self, events: &[Event], now: SystemTime) {
        let set = self.registry.current();
        let mut hits = Hits::new();
        for event in events {
            let (class, pid) = match event {
                Event::Changed(class, pid) => (class, pid),
                Event::Forked { parent, child } => {
                    self.was_forked(*parent, *child);
                    continue;
                }
                Event::Traced { process, tracer } => {
                    self.judge_tracer(*process, *tracer, &set, &mut hits);
                    continue;
                }
                // Was told before.
                Event::Lost(_) => continue,
            };
            let Some(process) = self.pinned(*pid) else {
                continue;
            };
            let Some((pod, standing)) = self.place(&process) else {
                continue;
            };
            let asked = self.asking.of(pod);
            let asked: Vec<&Workload> =
                asked.iter().filter_map(|name| set.workload(name)).collect();
            if *class == Class::Exec {
                self.judge_program(&asked, pod, &process, &mut hits);
            }
            if let Some(standing) = standing {
                self.judge_standing(&asked, pod, &process, &standing, &mut hits);
            }
            let have_rules = |one: &&Workload| self.registry.rules(&one.name).is_some();
            let asked: Vec<&Workload> = asked.into_iter().filter(have_rules).collect();
            let is_news = || match class {
                Class::Exec => seen(&process).is_some_and(|seen| self.drift.is_news(pod, &seen)),
                _ => true,
            };
            if asked.is_empty() || !is_news() {
                continue;
            }
            let event = Happened::new(*class, &process, &self.attestors);
            for workload in asked {
                self.ask(workload, pod, &process, &event, &mut hits);
            }
        }
        let mut revoked = false;
        for ((name, pod), found) in hits {
            if let Some(workload) = set.workload(&name) {
                revoked |= self.answer(workload, pod, found, now, &mut Looked::default());
            }
        }
        if revoked {
            self.announce();
        }
    }

    /// A process of a pod has made another one, which may end up far from its parent.
    fn was_forked(&self, parent: i32, child: i32) {
        if !self.drift.is_member(parent) {
            return;
        }
        let stat = known(read_as(&ProcFolder::of(child).join("stat"), procfs::stat));
        // Read after the child: who has the number then has had it since before.
        let parent = self.looked(Parent::now(parent).map(Some));
        if let (Some(stat), Some(parent)) = (self.looked(stat), parent) {
            self.drift.forked(parent, child, stat.started, Now::read());
        }
    }

    /// The process of a number; none when it has ended.
    fn pinned(&self, pid: i32) -> Option<PinnedProcess> {
        self.looked(match PinnedProcess::by_number(pid) {
            Err(PinError::Lack(lack)) => Err(lack),
            process => Ok(process.ok()),
        })
    }

    /// What was found of an event. What the agent lacked to look is told and counted, and makes of the event one
    /// that was lost.
    fn looked<T>(&self, found: Result<Option<T>, Lack>) -> Option<T> {
        found.unwrap_or_else(|lack| {
            self.lacks(&lack);
            self.has_lost(Source::Queue);
            None
        })
    }

    /// The same of what was read of a pinned process.
    fn read<T>(
        &self,
        process: &PinnedProcess,
        look: impl FnOnce(&ProcFolder) -> Result<Option<T>, Lack>,
    ) -> Option<T> {
        self.looked(match process.read(look) {
            Ok(found) => found,
            Err(PinError::Lack(lack)) => Err(lack),
            Err(_) => Ok(None),
        })
    }

    /// The watched pod of a process, and its rights and surroundings: the pod that it lives in, or has left.
    fn place(&self, process: &PinnedProcess) -> Option<(Pod, Option<Standing>)> {
        let look = |folder: &ProcFolder| {
            let pod = known(self.attestors.pod(folder))?;
            let is_asked = pod.is_some_and(|pod| self.asking.is_asked(pod));
            let standing = match is_asked || self.drift.may_be_known(process.pid(), folder) {
                true => Standing::of(folder)?,
                false => None,
            };
            Ok(Some((pod.filter(|_| is_asked), standing)))
        };
        let (pod, standing) = self.read(process, look)?;
        let of = standing.as_ref();
        let left = of.and_then(|standing| self.drift.was_in(process.pid(), standing));
        let has_left = |left: &Pod| pod.is_none_or(|pod| drift::is_other_place(*left, pod));
        Some((left.filter(has_left).or(pod)?, standing))
    }

    /// Compares rights and surroundings of a process with what they were.
    fn judge_standing(
        &self,
        workloads: &[&Workload],
        pod: Pod,
        process: &PinnedProcess,
        standing: &Standing,
        hits: &mut Hits,
    ) {
        let found = self
            .drift
            .changed_one(pod, process.pid(), standing, Now::read());
        for (sighting, workload) in found
            .iter()
            .flat_map(|one| workloads.iter().map(move |workload| (one, workload)))
        {
            if is_asked(sighting.kind, workload) {
                let of = hits.entry((workload.name.clone(), pod)).or_default();
                of.push(sighting.clone());
            }
        }
    }

    /// Somebody traces a process: a deviation of the pods of both.
    fn judge_tracer(&self, traced: i32, tracer: i32, set: &PolicySet, hits: &mut Hits) {
        let pod = |pid: i32| {
            let process = self.pinned(pid)?;
            self.place(&process).map(|(pod, _)| pod)
        };
        let pods: HashSet<Pod> = [traced, tracer].into_iter().filter_map(pod).collect();
        for pod in pods {
            let name = drift::program_name(traced);
            for workload in self.asking.of(pod) {
                let is_asked = |one: &Workload| is_asked(Kind::Ptrace, one);
                if set.workload(&workload).is_some_and(is_asked) {
                    let of = hits.entry((workload, pod)).or_default();
                    of.push(Sighting::traces(&name, tracer));
                }
            }
        }
    }

    /// Compares the program of a process with baselines.
    fn judge_program(
        &self,
        workloads: &[&Workload],
        pod: Pod,
        process: &PinnedProcess,
        hits: &mut Hits,
    ) {
        let with_digests = workloads.iter().any(|one| drift::wants_digests(one));
        let baselines = workloads.iter().filter_map(|workload| {
            let baseline = workload.baseline.as_ref()?;
            Some((&workload.name, baseline.executables.as_ref()?))
        });
        let mut baselines = baselines.peekable();
        if baselines.peek().is_none() {
            return;
        }
        let look = |folder: &_| match self.drift.is_entering(process.pid(), folder) {
            true => Ok(None),
            false => self.drift.program(&self.attestors, folder, with_digests),
        };
        let Some(program) = self.read(process, look) else {
            return;
        };
        for (name, executables) in baselines {
            if let Some(sighting) = drift::outside(&program, executables, process.pid()) {
                let of = hits.entry((name.clone(), pod)).or_default();
                of.push(sighting);
            }
        }
    }

    /// Asks rules about what a look has found and no event has told.
    pub(super) fn ask_about(&self, watched: &[(&Workload, Pod)], scan: &Scan) -> Hits {
        let mut hits = Hits::new();
        let asked = watched
            .iter()
            .filter(|(workload, _)| self.registry.rules(&workload.name).is_some());
        let mut of_pod: HashMap<Pod, Vec<&Workload>> = HashMap::new();
        for (workload, pod) in asked {
            of_pod.entry(*pod).or_default().push(workload);
        }
        for (pod, workloads) in of_pod {
            let Some(seen) = scan.seen.get(&pod) else {
                continue;
            };
            let programs = seen.processes.iter().map(|one| (one, None));
            let sockets = seen.sockets.iter().filter_map(|(socket, pid)| {
                let owner = seen.processes.iter().find(|one| one.pid == *pid)?;
                Some((owner, Some(*socket)))
            });
            for (one, socket) in programs.chain(sockets) {
                let is_news = match &socket {
                    None => self.drift.is_news(pod, one),
                    Some(socket) => self.drift.is_socket_news(pod, socket),
                };
                if is_news {
                    self.ask_about_one(&workloads, pod, one, socket, &mut hits);
                }
            }
        }
        hits
    }

    fn ask_about_one(
        &self,
        workloads: &[&Workload],
        pod: Pod,
        one: &Seen,
        socket: Option<Socket>,
        hits: &mut Hits,
    ) {
        let Some(process) = self.pinned(one.pid) else {
            return;
        };
        if seen(&process).is_none_or(|now| now.started != one.started) {
            return;
        }
        let class = match socket.map(|socket| socket.connection) {
            None => Class::Exec,
            Some(Connection::Waits) => Class::Listen,
            Some(Connection::Out) => Class::Connect,
            Some(Connection::In) => Class::Accept,
        };
        let event = Happened::new(class, &process, &self.attestors);
        let event = match socket {
            Some(socket) => event.with_socket(socket),
            None => event,
        };
        for workload in workloads {
            self.ask(workload, pod, &process, &event, hits);
        }
    }

    fn ask(
        &self,
        workload: &Workload,
        pod: Pod,
        process: &PinnedProcess,
        event: &dyn rules::Event,
        hits: &mut Hits,
    ) {
        let rules: Option<Arc<RuleSet>> = self.registry.rules(&workload.name);
        let Some(rules) = rules else { return };
        let said: Vec<(String, String)> = rules
            .hits(event)
            .map(|rule| {
                let priority = rule.priority.as_str();
                (
                    rule.name.clone(),
                    format!("{priority} {}", rule.line(event)),
                )
            })
            .collect();
        // What was read of a process that has ended meanwhile may be another's.
        if said.is_empty() || process.lives().is_err() {
            return;
        }
        let found = said.into_iter().map(|(rule, what)| Sighting {
            kind: Kind::Rule,
            what,
            rule: Some(rule),
            pid: process.pid(),
        });
        let of = hits.entry((workload.name.clone(), pod)).or_default();
        of.extend(found);
    }
}

/// A pinned process, as far as it tells whether rules were asked about it.
fn seen(process: &PinnedProcess) -> Option<Seen> {
    let read = process.read(|folder| {
        let stat = read_as(&folder.join("stat"), procfs::stat).ok()?;
        let name = fs::read_link(folder.join("exe"))
            .ok()?
            .display()
            .to_string();
        let digest = None;
        Some(Seen {
            pid: process.pid(),
            started: stat.started,
            program: Program::Pathless { name, digest },
        })
    });
    read.ok().flatten()
}
