//! What a process may do and where it lives, as the kernel has it.

use std::{collections::BTreeSet, fs, path::Path, time::Instant};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};

use super::Now;

use crate::{
    attest::{
        posture::{host, mountinfo},
        procfs::{self, Stat},
        read_text,
        reading::{Lack, ReadError, inode, known, place_in_memory, read_as},
    },
    caller::ProcFolder,
};

/// Who has made a process. Numbers are given out again, so the number alone is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Its number.
    pub pid: i32,
    /// When the one was started that has the number now; none where nobody has.
    pub started: Option<u64>,
}

impl Parent {
    /// Who has the number now.
    ///
    /// # Errors
    /// The agent lacks something to look.
    pub(crate) fn now(pid: i32) -> Result<Self, Lack> {
        let stat = known(read_as(&ProcFolder::of(pid).join("stat"), procfs::stat))?;
        let started = stat.map(|stat| stat.started);
        Ok(Self { pid, started })
    }
}

/// A process' rights and surroundings. Of its first thread: others may have entered other mounts and
/// networks, if they have the rights of an administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// In ticks of the clock since the machine was started.
    pub(super) started: u64,
    /// Who has made it.
    pub(super) parent: Parent,
    /// What it may.
    pub(super) rights: Rights,
    /// The inodes of its namespaces, in the order of [`NAMESPACES`]; 0 where that is not known.
    pub(super) namespaces: [u64; NAMESPACES.len()],
    /// The number of the process that traces it, or 0.
    pub(super) tracer: i32,
    /// The name of its program.
    pub(super) program: String,
}

/// What the kernel lets a process do beyond others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rights {
    /// Is one of its users root? Who has saved it can be it again.
    pub(super) is_root: bool,
    /// What it has or may take.
    pub(super) capabilities: u64,
}

impl Rights {
    /// What both have.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            is_root: self.is_root && other.is_root,
            capabilities: self.capabilities & other.capabilities,
        }
    }

    /// What these have beyond others.
    pub(super) fn beyond(self, other: Self) -> Self {
        Self {
            is_root: self.is_root && !other.is_root,
            capabilities: self.capabilities & !other.capabilities,
        }
    }
}

impl Standing {
    /// That of the process of this folder; none for one that has ended.
    ///
    /// # Errors
    /// The agent lacks something to look.
    pub(crate) fn of(folder: &ProcFolder) -> Result<Option<Self>, Lack> {
        let Some(stat) = known(read_as(&folder.join("stat"), procfs::stat))? else {
            return Ok(None);
        };
        let text = known(read_text(&folder.join("status")).map_err(ReadError::from))?;
        let status = text.as_deref().and_then(procfs::status);
        let (Some(text), Some(status)) = (text, status) else {
            return Ok(None);
        };
        let [_, permitted, effective, ..] = status.capabilities;
        let mut namespaces = [0; NAMESPACES.len()];
        for (slot, name) in namespaces.iter_mut().zip(NAMESPACES) {
            *slot = known(inode(&folder.join(&format!("ns/{name}"))))?.unwrap_or_default();
        }
        let Stat {
            parent, started, ..
        } = stat;
        Ok(Some(Self {
            started,
            parent: Parent::now(parent)?,
            rights: Rights {
                is_root: status.uids.contains(&0),
                capabilities: permitted | effective,
            },
            namespaces,
            tracer: procfs::tracer(&text).unwrap_or_default(),
            program: name_of(folder),
        }))
    }

    /// Is it that of the process that this tells of?
    pub(super) fn is_of(&self, stat: &Stat) -> bool {
        self.started == stat.started
    }
}

/// What a process runs, for people.
pub(super) fn name_of(folder: &ProcFolder) -> String {
    let name = fs::read_link(folder.join("exe"));
    name.map_or_else(
        |_| "a program that cannot be read".to_owned(),
        |name| name.display().to_string(),
    )
}

impl Now {
    /// Now.
    pub fn read() -> Self {
        let uptime = read_as(Path::new("/proc/uptime"), procfs::uptime);
        Self {
            instant: Instant::now(),
            // Unread, it is later than any start: what a parent gave up late is its children's still.
            ticks: uptime.unwrap_or(u64::MAX),
        }
    }
}

/// Whose mounts a table lists: those of a mount namespace, as far as they are seen from a root.
pub(super) type View = (u64, u64, u64);

/// Whose mounts a process sees.
///
/// None where they are those of the agent, or of the machine's first process: there others mount what they
/// need.
///
/// # Errors
/// The agent lacks something to look.
pub(super) fn view(folder: &ProcFolder) -> Result<Option<View>, Lack> {
    let Some(own) = namespace_of_container(folder)? else {
        return Ok(None);
    };
    let root = known(place_in_memory(&folder.join("root")))?;
    Ok(root.map(|(device, inode)| (own, device, inode)))
}

/// The mount namespace of a process, where that is neither the agent's nor that of the machine's first process.
///
/// # Errors
/// The agent lacks something to look.
pub(super) fn namespace_of_container(folder: &ProcFolder) -> Result<Option<u64>, Lack> {
    let namespace = |folder: &ProcFolder| known(inode(&folder.join("ns/mnt")));
    let Some(own) = namespace(folder)? else {
        return Ok(None);
    };
    for host in [ProcFolder::own(), ProcFolder::of(1)] {
        if namespace(&host)? == Some(own) {
            return Ok(None);
        }
    }
    Ok(Some(own))
}

/// The mounts that a process sees, each in words; none where they cannot be read though the process is there.
///
/// # Errors
/// The process has ended, or the agent lacks something to look.
pub(super) fn mounts(folder: &ProcFolder) -> Result<Option<BTreeSet<String>>, ReadError> {
    let text = match host::table(folder) {
        Err(ReadError::Refused) => return Ok(None),
        text => text?,
    };
    let all = mountinfo::parse(&text);
    Ok(all.map(|all| all.iter().map(ToString::to_string).collect()))
}

/// Was the program of a process started where other mounts are than where it lives now? So it is with what
/// enters a container, until it runs a program of that. What cannot be read was not.
pub(super) fn is_of_elsewhere(folder: &ProcFolder) -> bool {
    let exe = statx(
        CWD,
        folder.join("exe"),
        AtFlags::STATX_DONT_SYNC,
        StatxFlags::MNT_ID,
    );
    let has_told = |found: &Statx| found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    let Some(exe) = exe.ok().filter(has_told) else {
        return false;
    };
    let text = host::table(folder);
    let Some(mounts) = text.as_deref().ok().and_then(mountinfo::parse) else {
        return false;
    };
    !mounts.iter().any(|one| u64::from(one.id) == exe.stx_mnt_id)
}

/// The namespaces of a process, as `/proc/PID/ns` names them.
pub(super) const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

#[cfg(test)]
mod tests {
    use super::{NAMESPACES, ProcFolder, Standing, mounts, view};

    #[test]
    fn this_process_is_where_it_is_and_traced_by_nobody() {
        let own = Standing::of(&ProcFolder::own()).unwrap().unwrap();
        assert_eq!(own.tracer, 0);
        assert!(own.namespaces.iter().all(|inode| *inode > 0), "{own:?}");
        assert_eq!(Standing::of(&ProcFolder::of(-1)).unwrap(), None);
        // Who shares the agent's mounts is not judged by them.
        assert_eq!(view(&ProcFolder::own()).unwrap(), None);
        assert!(!mounts(&ProcFolder::own()).unwrap().unwrap().is_empty());
        assert_eq!(NAMESPACES.len(), own.namespaces.len());
    }
}
