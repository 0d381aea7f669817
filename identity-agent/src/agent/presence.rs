//! Is a pod still the one that it was? Numbers of pods are given out again; members tell.
//!
//! Nobody joins a session but by being born in it or by beginning it, and its number is nobody else's while it
//! has a process. So a process of a session that was there already when the session was known shows that it
//! is still the same one, whether or not its leader lives. Who enters a network namespace later than at his
//! start could show that of another one; while the agent runs it keeps the namespace itself, and nothing has
//! to be shown.

use std::{collections::HashMap, fs, path::Path};

use crate::{
    attest::{
        Pod,
        procfs::{self, Stat},
        reading::{Lack, ReadError, inode, known, read_as},
    },
    caller::ProcFolder,
};

/// What shows that a pod is the one that it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// When it was known last, in ticks of the clock since the machine was started.
    pub(super) at: u64,
    /// A process that was in it then.
    pub(super) member: i32,
}

/// What became of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is the same.
    Same {
        /// Who shows it.
        member: i32,
    },
    /// It has ended, and its number is another's.
    Another,
    /// Its number is that of processes that all were started later, and it is not known whether they are
    /// of it.
    Unclear,
    /// No process of it was found. It may have been changing its processes just then.
    Missed,
}

/// Now, in ticks of the clock since the machine was started.
///
/// # Errors
/// The kernel does not tell.
pub(super) fn now() -> Result<u64, Lack> {
    let path = Path::new("/proc/uptime");
    known(read_as(path, procfs::uptime))?.ok_or_else(|| Lack::of("/proc/uptime"))
}

/// The processes of a machine, by their pods; looked through once at most, and only if need be.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// The process of each pod that was started first, and when.
    oldest: Option<HashMap<Pod, (u64, i32)>>,
}

impl Members {
    /// What became of a pod that was seen then.
    ///
    /// # Errors
    /// It cannot be told now.
    pub(super) fn standing(&mut self, pod: Pod, seen: Seen) -> Result<Standing, Lack> {
        if let Pod::Session(number) = pod
            && let Some(leader) = stat_of(number)?
        {
            let is_same = leader.session == number && leader.started <= seen.at;
            return Ok(match is_same {
                true => Standing::Same { member: number },
                false => Standing::Another,
            });
        }
        if let Some(started) = started_in(pod, seen.member)?
            && started <= seen.at
        {
            let member = seen.member;
            return Ok(Standing::Same { member });
        }
        if self.oldest.is_none() {
            self.oldest = Some(oldest_of_all()?);
        }
        let oldest = self.oldest.iter().find_map(|all| all.get(&pod));
        Ok(judge(seen, oldest.copied()))
    }
}

/// By the process of its number that was started first.
fn judge(seen: Seen, oldest: Option<(u64, i32)>) -> Standing {
    match oldest {
        None => Standing::Missed,
        Some((started, member)) if started <= seen.at => Standing::Same { member },
        Some(_) => Standing::Unclear,
    }
}

/// When a process was started that has this number and is in the pod of that one. Whether it is pinned does
/// not matter: what counts is that somebody was there.
///
/// # Errors
/// It cannot be told now.
pub(super) fn started_in(pod: Pod, number: i32) -> Result<Option<u64>, Lack> {
    let Some(stat) = stat_of(number)? else {
        return Ok(None);
    };
    let is_in = match pod {
        Pod::Session(session) => stat.session == session,
        Pod::Network(network) => network_of(number)? == Some(network),
        Pod::Ended => false,
    };
    Ok(is_in.then_some(stat.started))
}

fn stat_of(number: i32) -> Result<Option<Stat>, Lack> {
    known(read_as(&ProcFolder::of(number).join("stat"), procfs::stat))
}

fn network_of(number: i32) -> Result<Option<u64>, Lack> {
    known(inode(&ProcFolder::of(number).join("ns/net")))
}

fn oldest_of_all() -> Result<HashMap<Pod, (u64, i32)>, Lack> {
    let mut oldest: HashMap<Pod, (u64, i32)> = HashMap::new();
    let all = known(fs::read_dir("/proc"))?.ok_or_else(|| Lack::of("/proc"))?;
    for entry in all {
        let name = entry
            .map_err(ReadError::from)
            .map(|entry| entry.file_name());
        let number = known(name)?.and_then(|name| name.to_str()?.parse().ok());
        let Some(number) = number else { continue };
        let Some(stat) = stat_of(number)? else {
            continue;
        };
        let network = network_of(number)?.map(Pod::Network);
        for pod in [Some(Pod::Session(stat.session)), network]
            .into_iter()
            .flatten()
        {
            let found = (stat.started, number);
            let known = oldest.entry(pod).or_insert(found);
            *known = found.min(*known);
        }
    }
    Ok(oldest)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::{Members, Pod, Seen, Standing, judge, now, started_in};

    #[test]
    fn who_was_there_when_it_was_known_shows_that_it_is_the_same() {
        let seen = Seen { at: 100, member: 1 };
        for (oldest, expected) in [
            (Some((99, 7)), Standing::Same { member: 7 }),
            (Some((100, 7)), Standing::Same { member: 7 }),
            (Some((101, 7)), Standing::Unclear),
            (None, Standing::Missed),
        ] {
            assert_eq!(judge(seen, oldest), expected, "{oldest:?}");
        }
    }

    #[test]
    fn a_session_is_known_by_its_leader_and_without_one_by_its_members() {
        let mut leader = Command::new("setsid")
            .args(["sh", "-c", "sleep 60 & echo $!; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = std::io::BufReader::new(leader.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        let member: i32 = line.trim().parse().unwrap();
        let number = i32::try_from(leader.id()).unwrap();
        let pod = Pod::Session(number);
        let standing = |at, member| {
            let seen = Seen { at, member };
            Members::default().standing(pod, seen).unwrap()
        };
        let started = started_in(pod, number).unwrap().unwrap();
        let at = now().unwrap();
        assert!(started <= at);
        assert_eq!(standing(at, 0), Standing::Same { member: number });
        assert_eq!(
            standing(started - 1, 0),
            Standing::Another,
            "it began later"
        );
        leader.kill().unwrap();
        leader.wait().unwrap();
        for known in [member, 0] {
            assert_eq!(standing(at, known), Standing::Same { member });
        }
        let before = started_in(pod, member).unwrap().unwrap() - 1;
        assert_eq!(standing(before, 0), Standing::Unclear, "it was born later");
        assert_eq!(started_in(Pod::Session(number + 1), member).unwrap(), None);
        let kill = rustix::process::Signal::KILL;
        rustix::process::kill_process(rustix::process::Pid::from_raw(member).unwrap(), kill)
            .unwrap();
        wait_for_the_end_of(member);
        assert_eq!(standing(at, member), Standing::Missed);
    }

    /// Waits until nobody has this number.
    fn wait_for_the_end_of(number: i32) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while super::stat_of(number).unwrap().is_some() {
            assert!(std::time::Instant::now() < end, "it does not end");
            std::thread::yield_now();
        }
    }
}
