//! Drift: what a pod does that its baseline does not say.
//!
//! What is seen of every pod that holds an identity is compared with what its Workload lists, and its
//! rules are asked about what happened. This detects and answers; the boundary is the identity that is
//! withdrawn.

mod baseline;
mod grounds;
mod image;
mod learn;
pub(crate) mod process;
mod scan;
mod sockets;
mod standing;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use postern_policies::model::workload::{OnDrift, Surrounding, Workload, WorkloadName};

use crate::{
    attest::{
        Attestors, Pod,
        cgroup::Groups,
        procfs,
        reading::{Lack, read_as},
        unix,
    },
    caller::ProcFolder,
};
pub use baseline::{InPod, Sighting, deviations, outside};
use grounds::Grounds;
pub use grounds::Now;
pub(crate) use grounds::is_other_place;
pub use learn::Learnt;
use scan::Scanner;
pub use scan::{Scan, Wanted};
pub(crate) use sockets::{Connection, Socket};
pub use standing::{Parent, Standing};

/// One process that was seen in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub pid: i32,
    /// When it was started: another process of its number was started at another time.
    pub started: u64,
    /// Its program: a path, or what is known instead.
    pub program: Program,
}

/// What a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A file that is where its path says, with its digest if anybody asks for digests.
    File {
        /// The path.
        path: String,
        /// SHA-256 in hexadecimal.
        digest: Option<String>,
        /// Was it written since the container was made? Of the image it is not, then, whatever its path.
        is_changed: bool,
    },
    /// A program without a path of its own: deleted, replaced, in memory.
    Pathless {
        /// What the kernel calls it.
        name: String,
        /// SHA-256 in hexadecimal.
        digest: Option<String>,
    },
    /// It cannot be looked at.
    Unreadable,
}

impl Program {
    /// Does a baseline allow it?
    fn is_allowed(&self, executables: &[String]) -> bool {
        let (path, digest) = match self {
            Self::File {
                digest,
                is_changed: true,
                ..
            } => (None, digest.as_ref()),
            Self::File { path, digest, .. } => (Some(path), digest.as_ref()),
            Self::Pathless { digest, .. } => (None, digest.as_ref()),
            Self::Unreadable => (None, None),
        };
        executables
            .iter()
            .any(|allowed| match allowed.strip_prefix("sha256:") {
                Some(wanted) => digest.is_some_and(|digest| digest == wanted),
                None => path.is_some_and(|path| path == allowed),
            })
    }

    /// Its path, or what else is known of it.
    pub fn name(&self) -> &str {
        match self {
            Self::File { path, .. } => path,
            Self::Pathless { name, .. } => name,
            Self::Unreadable => "a program that cannot be read",
        }
    }
}

/// What a deviation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A program that may not run.
    Exec,
    /// A program that lies in memory alone.
    Memfd,
    /// Somebody waits at a port.
    Listen,
    /// Somebody is connected to.
    Connect,
    /// A file is open for writing, or was written.
    Write,
    /// A process may do more than it could.
    Privilege,
    /// Something is mounted that was not, or is not mounted any more.
    Mount,
    /// A process lives in another namespace than it did.
    Namespace,
    /// A process is traced.
    Ptrace,
    /// What happened could not be seen for a moment.
    Lost,
    /// A rule has hit.
    Rule,
}

impl Kind {
    /// Does it end with a process? Of a connection and of a mount nobody knows whose they are.
    pub(crate) fn is_of_a_process(self) -> bool {
        !matches!(self, Self::Connect | Self::Mount | Self::Lost)
    }

    /// As it is listed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Memfd => "memfd",
            Self::Listen => "listen",
            Self::Connect => "connect",
            Self::Write => "write",
            Self::Privilege => "privilege",
            Self::Mount => "mount",
            Self::Namespace => "namespace",
            Self::Ptrace => "ptrace",
            Self::Lost => "lost",
            Self::Rule => "rule",
        }
    }
}

/// What was done about a deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It was told.
    Alerted,
    /// The identity was taken back.
    Revoked,
    /// The same, and the process was ended.
    Blocked,
}

impl Answer {
    /// As it is listed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alerted => "alerted",
            Self::Revoked => "revoked",
            Self::Blocked => "blocked",
        }
    }
}

/// A deviation, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// When it was seen first.
    pub time: SystemTime,
    /// Whose baseline it breaks.
    pub workload: WorkloadName,
    /// The identity.
    pub spiffe_id: String,
    /// What it is.
    pub kind: Kind,
    /// The program, the address, the file, or what the rule says.
    pub what: String,
    /// The rule that has hit.
    pub rule: Option<String>,
    /// The process that was seen first; 0 where nobody knows whose it is.
    pub pid: i32,
    /// Its container.
    pub container: Option<String>,
    /// What was done about it.
    pub answer: Answer,
    /// How often it was seen: by how many processes, or how many events have hit the rule.
    pub count: u64,
}

/// All deviations that were seen.
#[derive(Debug, Default)]
pub struct Drift {
    known: Mutex<BTreeMap<Key, Known>>,
    /// Of pods that have ended, newest last.
    past: Mutex<VecDeque<Deviation>>,
    digests: unix::Digests,
    asked: Mutex<Asked>,
    grounds: Mutex<Grounds>,
}

type Key = (WorkloadName, Pod, Kind, String);

#[derive(Debug)]
struct Known {
    deviation: Deviation,
    pids: HashSet<i32>,
}

/// What rules were asked about already.
#[derive(Debug, Default)]
struct Asked {
    /// When the process was started, and its program.
    programs: HashMap<(Pod, i32), (u64, String)>,
    sockets: HashSet<(Pod, u64, bool)>,
}

impl Drift {
    /// Writes down what deviates in a pod. Those that are new come with `true`.
    pub fn record(
        &self,
        workload: &Workload,
        pod: Pod,
        sightings: Vec<Sighting>,
        now: SystemTime,
        is_full: impl Fn(),
    ) -> Vec<(Deviation, bool)> {
        let mut known = locked(&self.known);
        let mut found = Vec::new();
        for seen in sightings {
            let key = key(&known, workload, pod, &seen);
            let is_new = !known.contains_key(&key);
            if is_new && known.len() >= MAX_KNOWN {
                // The deviation still counts, it is only not remembered.
                is_full();
                found.push((deviation(workload, seen, now), true));
                continue;
            }
            let is_event = seen.rule.is_some() || seen.kind == Kind::Lost;
            let pid = seen.pid;
            let entry = known.entry(key).or_insert_with(|| Known {
                deviation: deviation(workload, seen, now),
                pids: HashSet::new(),
            });
            // An event is one each time; what is seen again in the same process is not.
            let is_another = is_event || entry.pids.len() < MAX_PIDS && entry.pids.insert(pid);
            if is_another && !is_new {
                entry.deviation.count += 1;
            }
            // Of this process, which may be another one than the first.
            found.push((
                Deviation {
                    pid,
                    ..entry.deviation.clone()
                },
                is_new,
            ));
        }
        found
    }

    /// The process of a deviation was ended.
    pub fn was_ended(&self, pod: Pod, deviation: &Deviation) {
        let what = deviation.what.clone();
        let key = (deviation.workload.clone(), pod, deviation.kind, what);
        if let Some(known) = locked(&self.known).get_mut(&key) {
            known.deviation.answer = Answer::Blocked;
        }
    }

    /// Has a rule hit in this pod? What it saw is not undone by the end of a process.
    pub fn was_hit(&self, workload: &WorkloadName, pod: Pod) -> bool {
        let known = locked(&self.known);
        let from = (workload.clone(), pod, Kind::Rule, String::new());
        let next = known.range(from..).next();
        next.is_some_and(|((name, of, kind, _), _)| {
            name == workload && *of == pod && *kind == Kind::Rule
        })
    }

    /// The pods that have deviated.
    pub fn pods(&self) -> HashSet<Pod> {
        let known = locked(&self.known);
        known.keys().map(|(_, pod, ..)| *pod).collect()
    }

    /// A pod has ended: what was seen there is listed, and is not that of another pod that comes to
    /// have the number.
    pub fn end(&self, pod: Pod) {
        let of_pod: Vec<_> = locked(&self.known)
            .extract_if(.., |(_, of, ..), _| *of == pod)
            .map(|(_, known)| known.deviation)
            .collect();
        let mut asked = locked(&self.asked);
        asked.programs.retain(|(of, _), _| *of != pod);
        asked.sockets.retain(|(of, ..)| *of != pod);
        drop(asked);
        locked(&self.grounds).forget(pod);
        let mut past = locked(&self.past);
        past.extend(of_pod);
        let too_many = past.len().saturating_sub(MAX_KNOWN);
        past.drain(..too_many);
    }

    /// All that is remembered, oldest first.
    pub fn list(&self) -> Vec<Deviation> {
        let known = locked(&self.known);
        let mut all: Vec<Deviation> = known
            .values()
            .map(|known| known.deviation.clone())
            .collect();
        drop(known);
        all.extend(locked(&self.past).iter().cloned());
        all.sort_by_key(|deviation| deviation.time);
        all
    }

    /// What some pods do, as far as it is asked for. Blocking.
    pub fn scan(&self, attestors: &Attestors, wanted: &Wanted) -> Scan {
        let was_in = |pid, started, parent| locked(&self.grounds).pod_of(pid, started, parent);
        Scanner::new(attestors, wanted, &self.digests).scan(&was_in)
    }

    /// What of the rights and surroundings of a pod is not what it was, from a look at all of it.
    /// `is_whole` where nothing kept the agent from looking at all of it.
    pub fn changed(&self, pod: Pod, seen: &mut InPod, is_whole: bool, now: Now) -> Vec<Sighting> {
        let (standings, views) = (mem::take(&mut seen.standings), mem::take(&mut seen.views));
        let mut grounds = locked(&self.grounds);
        let mut found = grounds.judge_all(pod, standings, now);
        found.extend(grounds.judge_mounts(pod, views, is_whole, now.instant));
        found
    }

    /// The same of one process, which may have left the network of its pod.
    pub fn changed_one(&self, pod: Pod, pid: i32, standing: &Standing, now: Now) -> Vec<Sighting> {
        locked(&self.grounds).judge(pod, pid, standing, now)
    }

    /// Is there more to compare with what it was than is remembered?
    pub fn is_full(&self) -> bool {
        locked(&self.grounds).are_full()
    }

    /// The pod in which this process or its parent was seen.
    pub fn was_in(&self, pid: i32, standing: &Standing) -> Option<Pod> {
        locked(&self.grounds).pod_of(pid, standing.started, standing.parent)
    }

    /// May this process, or its parent, be known to have been in a pod?
    pub(crate) fn may_be_known(&self, pid: i32, folder: &ProcFolder) -> bool {
        let parent = || read_as(&folder.join("stat"), procfs::stat).map(|stat| stat.parent);
        self.is_member(pid) || parent().is_ok_and(|parent| self.is_member(parent))
    }

    /// Does it enter a pod at this moment, and has not run a program there yet? What a runtime or `nsenter`
    /// is then is none of the pod's programs.
    pub fn is_entering(&self, pid: i32, folder: &ProcFolder) -> bool {
        let seen = Standing::of(folder).ok().flatten();
        let may_be =
            |seen: &Standing| locked(&self.grounds).may_be_entering(pid, seen, Instant::now());
        seen.as_ref().is_some_and(may_be) && standing::is_of_elsewhere(folder)
    }

    /// Is somebody of this number known to be in a pod with a baseline?
    pub fn is_member(&self, pid: i32) -> bool {
        locked(&self.grounds).is_member(pid)
    }

    /// Was this very process seen in this pod?
    pub fn has_member(&self, pod: Pod, pid: i32, started: u64) -> bool {
        locked(&self.grounds).has(pod, pid, started)
    }

    /// A process of a pod has made another one.
    pub fn forked(&self, parent: Parent, child: i32, started: u64, now: Now) {
        locked(&self.grounds).forked(parent, child, started, now);
    }

    /// What the process of this folder runs, with its digest if a baseline of a Workload names digests.
    /// None where it becomes another one meanwhile.
    ///
    /// # Errors
    /// The agent lacks something to look.
    pub fn program(
        &self,
        attestors: &Attestors,
        folder: &ProcFolder,
        with_digests: bool,
    ) -> Result<Option<Program>, Lack> {
        let wanted = Wanted {
            with_digests,
            ..Wanted::default()
        };
        Scanner::new(attestors, &wanted, &self.digests).program(folder)
    }

    /// Rules are to be asked about this process: no event has told of its program, and no look.
    pub fn is_news(&self, pod: Pod, seen: &Seen) -> bool {
        let program = (seen.started, seen.program.name().to_owned());
        let mut asked = locked(&self.asked);
        if asked.programs.len() >= MAX_ASKED {
            asked.programs.clear();
        }
        let before = asked.programs.insert((pod, seen.pid), program.clone());
        before != Some(program)
    }

    /// The same of a socket.
    pub(crate) fn is_socket_news(&self, pod: Pod, socket: &Socket) -> bool {
        let mut asked = locked(&self.asked);
        if asked.sockets.len() >= MAX_ASKED {
            asked.sockets.clear();
        }
        let waits = socket.connection == Connection::Waits;
        asked.sockets.insert((pod, socket.inode, waits))
    }

    /// Rules are others: they are asked again about what is there.
    pub fn ask_again(&self) {
        *locked(&self.asked) = Asked::default();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Under which key something is remembered. A rule that says something else each time does not fill the
/// list: from some number on its hits count as the first one.
fn key(known: &BTreeMap<Key, Known>, workload: &Workload, pod: Pod, seen: &Sighting) -> Key {
    let name = &workload.name;
    let key = (name.clone(), pod, seen.kind, seen.what.clone());
    if seen.rule.is_none() || known.contains_key(&key) {
        return key;
    }
    let from = (name.clone(), pod, Kind::Rule, String::new());
    let of_pod = known
        .range(from..)
        .take_while(|((of, other, kind, _), _)| of == name && *other == pod && *kind == Kind::Rule);
    let mut of_rule = of_pod.filter(|(_, known)| known.deviation.rule == seen.rule);
    match of_rule.nth(MAX_LINES) {
        Some((last, _)) => last.clone(),
        None => key,
    }
}

fn deviation(workload: &Workload, seen: Sighting, now: SystemTime) -> Deviation {
    Deviation {
        time: now,
        workload: workload.name.clone(),
        spiffe_id: workload.spiffe_id.to_string(),
        kind: seen.kind,
        container: container(seen.pid),
        what: seen.what,
        rule: seen.rule,
        pid: seen.pid,
        answer: match workload.on_drift {
            _ if seen.kind == Kind::Lost => Answer::Alerted,
            OnDrift::Alert => Answer::Alerted,
            OnDrift::Revoke | OnDrift::Block => Answer::Revoked,
        },
        count: 1,
    }
}

/// The container of a process that has just been seen; for people, so it need not be pinned.
fn container(pid: i32) -> Option<String> {
    let groups = Groups::of(&ProcFolder::of(pid)).ok()?;
    groups.container().ok()?.map(str::to_owned)
}

/// What the process of this number runs, for people.
pub(crate) fn program_name(pid: i32) -> String {
    standing::name_of(&ProcFolder::of(pid))
}

/// Is something of this kind a deviation from what a Workload says?
pub fn is_asked(kind: Kind, workload: &Workload) -> bool {
    let Some(baseline) = &workload.baseline else {
        return false;
    };
    let surrounding = match kind {
        Kind::Privilege => Surrounding::Privilege,
        Kind::Mount => Surrounding::Mount,
        Kind::Namespace => Surrounding::Namespace,
        Kind::Ptrace => Surrounding::Ptrace,
        _ => return true,
    };
    !baseline.ignored.contains(&surrounding)
}

/// Does a baseline name digests?
pub fn wants_digests(workload: &Workload) -> bool {
    workload
        .baseline
        .iter()
        .filter_map(|baseline| baseline.executables.as_ref())
        .flatten()
        .any(|allowed| allowed.starts_with("sha256:"))
}

/// How many deviations are remembered, how many processes of each, and how many lines of a rule in a pod.
const MAX_KNOWN: usize = 10_000;
const MAX_PIDS: usize = 1_000;
const MAX_LINES: usize = 100;

/// Processes and sockets of which it is known that rules were asked. Beyond, they are asked again.
const MAX_ASKED: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::Program;

    #[track_caller]
    fn check(program: &Program, allowed: &[&str], expected: bool) {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        assert_eq!(
            program.is_allowed(&allowed),
            expected,
            "{program:?} in {allowed:?}"
        );
    }

    #[test]
    fn a_program_is_allowed_by_its_path_or_its_digest_and_by_nothing_else() {
        let digest = || Some("ab".to_owned());
        let file = Program::File {
            path: "/bin/app".into(),
            digest: digest(),
            is_changed: false,
        };
        let changed = Program::File {
            path: "/bin/app".into(),
            digest: digest(),
            is_changed: true,
        };
        check(&changed, &["/bin/app"], false);
        check(&changed, &["sha256:ab"], true);
        let deleted = Program::Pathless {
            name: "/bin/app (deleted)".into(),
            digest: digest(),
        };
        check(&file, &["/bin/app"], true);
        check(&file, &["/bin/app2"], false);
        check(&file, &["sha256:ab"], true);
        check(&file, &["sha256:ac"], false);
        check(&deleted, &["/bin/app (deleted)"], false);
        check(&deleted, &["sha256:ab"], true);
        check(&Program::Unreadable, &["/bin/app", "sha256:ab"], false);
        check(&file, &[], false);
    }
}
