//! Drift: what a pod does that its baseline does not say.
//!
//! The processes of every pod that holds an identity are compared with the executables that its
//! Workload lists. This detects and answers; the boundary is the identity that is withdrawn.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use postern_policies::model::workload::{OnDrift, Workload, WorkloadName};

use crate::{
    attest::{Attestors, Pod, procfs, read_text, unix},
    caller::{PinError, PinnedProcess, ProcFolder},
};

/// One process that was seen in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its number.
    pub pid: i32,
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
            Self::File { path, digest } => (Some(path), digest.as_ref()),
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

    fn name(&self) -> &str {
        match self {
            Self::File { path, .. } => path,
            Self::Pathless { name, .. } => name,
            Self::Unreadable => "a program that cannot be read",
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
    /// The program.
    pub what: String,
    /// The process that was seen first.
    pub pid: i32,
    /// What was done about it.
    pub answer: OnDrift,
    /// How many processes were seen.
    pub count: u64,
}

/// All deviations that were seen.
#[derive(Debug, Default)]
pub struct Drift {
    known: Mutex<BTreeMap<(WorkloadName, Pod, String), Known>>,
    digests: unix::Digests,
}

#[derive(Debug)]
struct Known {
    deviation: Deviation,
    pids: HashSet<i32>,
}

impl Drift {
    /// Compares a pod's processes with a Workload's baseline and tells the deviations; those that
    /// are new come with `true`.
    pub fn compare(
        &self,
        workload: &Workload,
        pod: Pod,
        processes: &[Seen],
        now: SystemTime,
        is_full: impl Fn(),
    ) -> Vec<(Deviation, bool)> {
        let Some(baseline) = &workload.baseline else {
            return Vec::new();
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for seen in processes {
            if seen.program.is_allowed(&baseline.executables) {
                continue;
            }
            let what = seen.program.name().to_owned();
            let key = (workload.name.clone(), pod, what.clone());
            let is_new = !known.contains_key(&key);
            if is_new && known.len() >= MAX_KNOWN {
                // The deviation still counts, it is only not remembered.
                is_full();
                found.push((deviation(workload, seen, what, now), true));
                continue;
            }
            let entry = known.entry(key).or_insert_with(|| Known {
                deviation: deviation(workload, seen, what, now),
                pids: HashSet::new(),
            });
            if entry.pids.len() < MAX_PIDS && entry.pids.insert(seen.pid) && !is_new {
                entry.deviation.count += 1;
            }
            found.push((entry.deviation.clone(), is_new));
        }
        found
    }

    /// All that is remembered, oldest first.
    pub fn list(&self) -> Vec<Deviation> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Deviation> = known
            .values()
            .map(|known| known.deviation.clone())
            .collect();
        all.sort_by_key(|deviation| deviation.time);
        all
    }

    /// The processes of some pods, with digests only where they are asked for. Blocking.
    ///
    /// # Errors
    /// Not all processes could be looked at: nobody knows what the others do.
    pub fn scan(
        &self,
        attestors: &Attestors,
        pods: &HashSet<Pod>,
        with_digests: bool,
    ) -> Result<BTreeMap<Pod, Vec<Seen>>, PinError> {
        let mut found: BTreeMap<Pod, Vec<Seen>> = BTreeMap::new();
        for entry in fs::read_dir("/proc").map_err(PinError::Kernel)? {
            let name = entry.map_err(PinError::Kernel)?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let process = match PinnedProcess::by_number(pid) {
                Ok(process) => process,
                Err(PinError::Gone) => continue,
                Err(error) => return Err(error),
            };
            let look = |folder: &ProcFolder| {
                let pod = attestors.pod(folder).filter(|pod| pods.contains(pod))?;
                Some((pod, self.program(folder, with_digests)?))
            };
            // One that ended meanwhile is no part of the pod any more.
            if let Ok(Some((pod, program))) = process.read(look) {
                found.entry(pod).or_default().push(Seen { pid, program });
            }
        }
        Ok(found)
    }

    /// The program of a process; `None` for one that has ended.
    fn program(&self, folder: &ProcFolder, with_digest: bool) -> Option<Program> {
        let status = procfs::status(&read_text(&folder.join("status")).ok()?)?;
        if status.is_zombie {
            return None;
        }
        let exe = folder.join("exe");
        let digest = || with_digest.then(|| self.digests.of(&exe)).flatten();
        if let Some(path) = unix::program(folder) {
            return Some(Program::File {
                path,
                digest: digest(),
            });
        }
        Some(match fs::read_link(&exe) {
            Ok(name) => Program::Pathless {
                name: name.display().to_string(),
                digest: digest(),
            },
            Err(_) => Program::Unreadable,
        })
    }
}

fn deviation(workload: &Workload, seen: &Seen, what: String, now: SystemTime) -> Deviation {
    Deviation {
        time: now,
        workload: workload.name.clone(),
        spiffe_id: workload.spiffe_id.to_string(),
        what,
        pid: seen.pid,
        answer: workload.on_drift,
        count: 1,
    }
}

/// Does a baseline name digests?
pub fn wants_digests(workload: &Workload) -> bool {
    workload
        .baseline
        .iter()
        .flat_map(|baseline| &baseline.executables)
        .any(|allowed| allowed.starts_with("sha256:"))
}

/// How many deviations are remembered, and how many processes of each.
const MAX_KNOWN: usize = 10_000;
const MAX_PIDS: usize = 1_000;

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
        };
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
