//! Who is in a pod, and what runs there.
//!
//! A member is whoever lives in the pod's network namespace, or shares its session where the pod is
//! one. Anybody can leave both: in a user namespace of his own he may make a network of his own. So who
//! lives in another user namespace, or may not be looked at, is a member where his ancestor is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::Path,
};

use super::{
    InPod, Program, Seen,
    grounds::is_other_place,
    image::is_changed,
    sockets::{Open, Socket, owners, sockets},
    standing::{self, Parent, Standing, View},
};
use crate::{
    attest::{
        Attestors, Pod,
        procfs::{self, Stat},
        reading::{Lack, ReadError, known, read_as},
        thread_names,
        unix::{self, Digests},
    },
    caller::{PinError, PinnedProcess, ProcFolder},
};

/// What is to be looked at.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The processes of these pods.
    pub pods: HashSet<Pod>,
    /// And the digests of their programs.
    pub with_digests: bool,
    /// The sockets of these pods.
    pub sockets: HashSet<Pod>,
    /// The files that are open for writing in these pods.
    pub files: HashSet<Pod>,
    /// The rights and surroundings of the processes of these pods.
    pub standings: HashSet<Pod>,
}

/// What was seen in some pods.
#[derive(Debug, Default)]
pub struct Scan {
    /// What each does.
    pub seen: BTreeMap<Pod, InPod>,
    /// All pods that have a process, asked for or not.
    pub present: HashSet<Pod>,
    /// Is there a process of which nobody knows where it lives?
    pub hides_pods: bool,
    /// Why there may be more: the agent lacked something to look at one, or at all.
    pub lack: Option<Lack>,
}

/// One look at all processes.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    attestors: &'a Attestors,
    wanted: &'a Wanted,
    /// Where digests are asked for.
    digests: Option<&'a Digests>,
}

/// A process, as the first look found it.
#[derive(Debug)]
struct Found {
    stat: Stat,
    /// None where that may not be looked at.
    pod: Option<Pod>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// In one of the pods, running this.
    Member { pod: Pod, program: Program },
    /// In one of the pods, running what cannot be looked at for now.
    Unseen { pod: Pod, lack: Lack },
    /// In none by its namespaces, which it may have made itself or which may not be looked at.
    Apart,
    /// In none.
    Elsewhere,
}

/// What runs in a process, and where that is to be seen: in its own folder, or in that of a thread if
/// the first one has ended.
#[derive(Debug)]
struct Running {
    folder: ProcFolder,
    /// Of the process itself.
    stat: Stat,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(attestors: &'a Attestors, wanted: &'a Wanted, digests: &'a Digests) -> Self {
        Self {
            attestors,
            wanted,
            digests: wanted.with_digests.then_some(digests),
        }
    }

    /// `was_in` tells the pod in which a process or its parent was seen.
    pub(super) fn scan(&self, was_in: &dyn Fn(i32, u64, Parent) -> Option<Pod>) -> Scan {
        let mut scan = Scan::default();
        let numbers = match numbers() {
            Ok(numbers) => numbers,
            Err(lack) => {
                (scan.lack, scan.hides_pods) = (Some(lack), true);
                return scan;
            }
        };
        let mut all: HashMap<i32, Found> = HashMap::new();
        for pid in numbers {
            match pinned(pid, |folder| self.look_at(folder)) {
                Ok(found) => all.extend(found.map(|found| (pid, found))),
                // What the others do is known all the same.
                Err(lack) => (scan.lack, scan.hides_pods) = (Some(lack), true),
            }
        }
        let apart = all
            .iter()
            .filter(|(_, found)| matches!(found.place, Place::Apart));
        for (pid, found) in apart {
            let Some(pod) = pod_of_ancestor(&all, found) else {
                continue;
            };
            match pinned(*pid, |folder| self.program_of(folder, &found.stat)) {
                Ok(Some(program)) => scan.add(pod, *pid, &found.stat, program),
                Ok(None) => {}
                Err(lack) => scan.lack = Some(lack),
            }
        }
        for (pid, found) in &all {
            let Some(pod) = self.left(&all, *pid, found, was_in) else {
                continue;
            };
            match pinned(*pid, Standing::of) {
                Ok(Some(standing)) if standing.is_of(&found.stat) => {
                    scan.seen
                        .entry(pod)
                        .or_default()
                        .standings
                        .push((*pid, standing));
                }
                Ok(_) => {}
                Err(lack) => scan.lack = Some(lack),
            }
        }
        for (pid, found) in all {
            scan.present.extend(found.pod);
            match found.place {
                Place::Member { pod, program } => scan.add(pod, pid, &found.stat, program),
                Place::Unseen { lack, .. } => scan.lack = Some(lack),
                Place::Apart | Place::Elsewhere => {}
            }
        }
        let mut lack = None;
        for (pod, seen) in &mut scan.seen {
            if let Err(error) = self.look_deeper(*pod, seen) {
                lack = Some(error);
            }
        }
        scan.lack = scan.lack.or(lack);
        scan
    }

    /// The pod that a process has left by entering another network.
    fn left(
        &self,
        all: &HashMap<i32, Found>,
        pid: i32,
        found: &Found,
        was_in: &dyn Fn(i32, u64, Parent) -> Option<Pod>,
    ) -> Option<Pod> {
        // Who lives apart is counted where its ancestor is.
        if let Place::Apart = found.place {
            return None;
        }
        let now = found.pod?;
        let stat = &found.stat;
        let started = all.get(&stat.parent).map(|parent| parent.stat.started);
        let parent = Parent {
            pid: stat.parent,
            started,
        };
        let known = was_in(pid, stat.started, parent);
        let left = known.or_else(|| pod_of_ancestor(all, found))?;
        let asked = self.wanted.standings.contains(&left);
        (asked && is_other_place(left, now)).then_some(left)
    }

    /// Looks at the sockets and files of a pod, where that is asked for.
    fn look_deeper(&self, pod: Pod, seen: &mut InPod) -> Result<(), Lack> {
        let with_sockets = self.wanted.sockets.contains(&pod);
        let with_files = self.wanted.files.contains(&pod);
        let with_standings = self.wanted.standings.contains(&pod);
        if !with_sockets && !with_files && !with_standings {
            return Ok(());
        }
        let mut all: Vec<(i32, Open)> = Vec::new();
        let mut table: Option<Vec<Socket>> = None;
        let mut standings: Vec<(i32, Standing)> = Vec::new();
        let mut views: Vec<(i32, View, Option<BTreeSet<String>>)> = Vec::new();
        for one in &seen.processes {
            let looked = pinned(one.pid, |folder| {
                let stat = known(read_as(&folder.join("stat"), procfs::stat))?;
                if stat.is_none_or(|stat| stat.started != one.started) {
                    return Ok(None);
                }
                if with_standings && let Some(standing) = Standing::of(folder)? {
                    if let Some(view) = standing::view(folder)?
                        && !views.iter().any(|(_, known, _)| *known == view)
                        && let Some(mounts) = known(standing::mounts(folder))?
                    {
                        views.push((one.pid, view, mounts));
                    }
                    standings.push((one.pid, standing));
                }
                if !with_sockets && !with_files {
                    return Ok(None);
                }
                // Who lives apart has another network.
                let is_there = self.attestors.pod(folder) == Ok(pod);
                let read = match with_sockets && table.is_none() && is_there {
                    true => Some(sockets(folder)?),
                    false => None,
                };
                Ok(Some((Open::of(folder, with_files)?, read)))
            });
            if let Some((open, read)) = looked? {
                all.push((one.pid, open));
                table = table.or(read);
            }
        }
        seen.standings.extend(standings);
        seen.views = views;
        let owners = owners(all.iter().map(|(pid, open)| (*pid, open)));
        for socket in table.unwrap_or_default() {
            match (owners.get(&socket.inode), pod) {
                (Some(pid), _) => seen.sockets.push((socket, *pid)),
                (None, Pod::Network(_)) => seen.sockets.push((socket, 0)),
                // Of many pods in one network, nobody knows whose it is.
                (None, _) => {}
            }
        }
        for (pid, open) in all {
            let written = open.written.into_iter().map(|path| (pid, path));
            seen.written.extend(written);
        }
        Ok(())
    }

    /// Finds the place of a process; `None` for one that has ended.
    fn look_at(&self, folder: &ProcFolder) -> Result<Option<Found>, Lack> {
        let mut restless = None;
        for _ in 0..READINGS {
            let Some(Running { folder, stat }) = running(folder)? else {
                return Ok(None);
            };
            let pod = match self.attestors.pod(&folder) {
                Ok(pod) => Some(pod),
                Err(ReadError::Refused) => None,
                // Its thread ends at this moment.
                Err(ReadError::Absent) => continue,
                Err(ReadError::Lack(lack)) => return Err(lack),
            };
            let asked = pod.filter(|pod| self.wanted.pods.contains(pod));
            let Some(asked) = asked else {
                let place = match unix::is_of_our_users(&folder)? {
                    true => Place::Elsewhere,
                    false => Place::Apart,
                };
                return Ok(Some(Found { stat, pod, place }));
            };
            let found = |place| Found { stat, pod, place };
            let member = |program| Place::Member {
                pod: asked,
                program,
            };
            match self.program(&folder) {
                Ok(Some(program)) => return Ok(Some(found(member(program)))),
                Ok(None) => restless = Some(found(member(Program::Unreadable))),
                Err(lack) => return Ok(Some(found(Place::Unseen { pod: asked, lack }))),
            }
        }
        // Who becomes another one all the time does not escape by it.
        Ok(restless)
    }

    /// The program of a process that was found before.
    fn program_of(&self, folder: &ProcFolder, known: &Stat) -> Result<Option<Program>, Lack> {
        let mut restless = None;
        for _ in 0..READINGS {
            let Some(Running { folder, stat }) = running(folder)? else {
                return Ok(None);
            };
            // Another one may have the number by now.
            if stat.started != known.started {
                return Ok(None);
            }
            match self.program(&folder)? {
                None => restless = Some(Program::Unreadable),
                program => return Ok(program),
            }
        }
        Ok(restless)
    }

    /// The program that runs where this folder tells of; `None` where it becomes another one, or ends,
    /// while it is looked at.
    pub(super) fn program(&self, folder: &ProcFolder) -> Result<Option<Program>, Lack> {
        let exe = folder.join("exe");
        let name = match fs::read_link(&exe).map_err(ReadError::from) {
            Ok(name) => name,
            Err(ReadError::Absent) => return Ok(None),
            Err(ReadError::Refused) => return Ok(Some(Program::Unreadable)),
            Err(ReadError::Lack(lack)) => return Err(lack),
        };
        let path = unix::program(folder)?;
        let digest = match self.digests {
            Some(digests) => digests.of(&exe)?,
            None => None,
        };
        if known(fs::read_link(&exe))?.as_ref() != Some(&name) {
            return Ok(None);
        }
        Ok(Some(match path {
            Some(path) => Program::File {
                is_changed: is_changed(folder, Path::new(&path))?,
                path,
                digest,
            },
            None => Program::Pathless {
                name: name.display().to_string(),
                digest,
            },
        }))
    }
}

impl Scan {
    fn add(&mut self, pod: Pod, pid: i32, stat: &Stat, program: Program) {
        let started = stat.started;
        let seen = Seen {
            pid,
            started,
            program,
        };
        self.seen.entry(pod).or_default().processes.push(seen);
    }
}

/// Looks at a process while it is pinned; `None` for one that has ended.
fn pinned<T>(
    pid: i32,
    look: impl FnOnce(&ProcFolder) -> Result<Option<T>, Lack>,
) -> Result<Option<T>, Lack> {
    match PinnedProcess::by_number(pid).and_then(|process| process.read(look)) {
        Ok(looked) => looked,
        Err(PinError::Lack(lack)) => Err(lack),
        // One that ended meanwhile is no part of the pod any more.
        Err(_) => Ok(None),
    }
}

/// The pod of the nearest ancestor that is in one.
fn pod_of_ancestor(all: &HashMap<i32, Found>, found: &Found) -> Option<Pod> {
    let mut child = found;
    for _ in 0..MAX_ANCESTORS {
        let parent = all.get(&child.stat.parent)?;
        // The number was given out again since: a parent is older.
        if parent.stat.started > child.stat.started {
            return None;
        }
        if let Place::Member { pod, .. } | Place::Unseen { pod, .. } = parent.place {
            return Some(pod);
        }
        child = parent;
    }
    None
}

/// The numbers of all processes.
fn numbers() -> Result<Vec<i32>, Lack> {
    let mut numbers = Vec::new();
    let all = known(fs::read_dir("/proc"))?.ok_or_else(|| Lack::of("/proc"))?;
    for entry in all {
        let name = known(entry)?.map(|entry| entry.file_name());
        numbers.extend(name.and_then(|name| name.to_str()?.parse::<i32>().ok()));
    }
    Ok(numbers)
}

/// Where the program of a process is to be seen. None if nothing runs in it any more.
fn running(folder: &ProcFolder) -> Result<Option<Running>, Lack> {
    let stat = |folder: &ProcFolder| known(read_as(&folder.join("stat"), procfs::stat));
    let Some(own) = stat(folder)? else {
        return Ok(None);
    };
    let running = |folder: ProcFolder| Some(Running { folder, stat: own });
    if !own.has_left {
        return Ok(running(folder.clone()));
    }
    for name in known(thread_names(folder))?.unwrap_or_default() {
        let thread = folder.thread(&name);
        if stat(&thread)?.is_some_and(|stat| !stat.has_left) {
            return Ok(running(thread));
        }
    }
    Ok(None)
}

/// Who becomes another one so many times while he is looked at has no program that could be allowed.
const READINGS: usize = 4;

/// More generations than any pod has.
const MAX_ANCESTORS: usize = 256;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{Found, Place, Pod, Program, Stat, pod_of_ancestor};

    fn found(parent: i32, started: u64, place: Place) -> Found {
        let stat = Stat {
            parent,
            session: 1,
            has_left: false,
            started,
        };
        Found {
            stat,
            pod: None,
            place,
        }
    }

    fn member(parent: i32, started: u64) -> Found {
        let program = Program::Unreadable;
        let pod = Pod::Network(7);
        found(parent, started, Place::Member { pod, program })
    }

    #[test]
    fn who_lives_apart_belongs_to_the_pod_of_an_older_ancestor() {
        let all = HashMap::from([
            (1, found(0, 0, Place::Elsewhere)),
            (2, member(1, 10)),
            (3, found(2, 20, Place::Apart)),
            (5, found(1, 20, Place::Elsewhere)),
            (6, found(6, 20, Place::Apart)),
        ]);
        let apart = |parent, started| found(parent, started, Place::Apart);
        let pod = Some(Pod::Network(7));
        assert_eq!(pod_of_ancestor(&all, &apart(2, 10)), pod, "its child");
        assert_eq!(pod_of_ancestor(&all, &apart(3, 30)), pod, "its grandchild");
        assert_eq!(pod_of_ancestor(&all, &apart(2, 9)), None, "older than it");
        assert_eq!(pod_of_ancestor(&all, &apart(5, 30)), None, "another's");
        assert_eq!(pod_of_ancestor(&all, &apart(4, 30)), None, "nobody's");
        assert_eq!(pod_of_ancestor(&all, &apart(6, 30)), None, "a circle");
    }
}
