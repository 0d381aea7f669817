//! Who is at the other end of the Unix socket: a process, pinned by the kernel.
//!
//! A number names whatever process has it now. A pidfd names one process for ever. So the pidfd
//! comes first, and everything that is read under the number counts only if the pidfd says, before
//! and after, that the process still lives: while it does, the number is its.

mod http2_authority;
mod listener;
pub(crate) mod namespace;
mod places;

use std::{
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use nix::sys::socket::{UnixCredentials, getsockopt, sockopt};
use pidfd_util::{PidFd, PidFdExt as _};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::{io::unix::AsyncFd, net::UnixStream, sync::watch};

pub use listener::{Caller, Connection, bind, check_inherited, incoming, turn_away_early};
pub(crate) use places::Busy;
pub use places::{Limits, Place};

use crate::attest::{
    Attested, procfs,
    reading::{Lack, ReadError, known, place_in_memory, read_as, read_text},
};

/// A process that cannot be taken for another one.
#[derive(Debug)]
pub struct PinnedProcess {
    pid: i32,
    uid: u32,
    handle: OwnedFd,
    /// Who it was when it connected; none for a process that a person asks about.
    first: Option<First>,
    /// How often the kernel told something of it.
    changed: watch::Sender<u64>,
    /// What was found out about it last.
    last: Mutex<Option<Look>>,
    /// Its end, made when somebody first waits for it; one for all who do.
    end: OnceLock<AsyncFd<OwnedFd>>,
}

/// What a process was when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct First {
    /// Effective user and group, by the kernel's record of that moment.
    owner: [u32; 2],
    /// Device and inode of its program, as soon as the connection was accepted.
    program: Option<(u64, u64)>,
}

impl Standing {
    /// Effective user and group.
    fn owner(&self) -> [u32; 2] {
        match self {
            Self::Handle { owner, .. } => *owner,
            Self::Folder {
                owner: [uids, gids],
            } => {
                let ([_, uid, ..], [_, gid, ..]) = (*uids, *gids);
                [uid, gid]
            }
        }
    }
}

/// What was found out about a process, when, and what it was then.
#[derive(Debug)]
struct Look {
    moment: Moment,
    at: Instant,
    attested: Arc<Attested>,
}

/// What a process is at a moment. Another program, user or control group makes it another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    standing: Standing,
    /// Its control groups in all hierarchies, as the kernel lists them.
    groups: String,
    /// Device and inode of the running program.
    program: Option<(u64, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// By the word of its pidfd (Linux 6.13): effective user and group, and the number of its control
    /// group in the unified hierarchy.
    Handle { owner: [u32; 2], cgroup: u64 },
    /// Users and groups as its folder under `/proc` has them.
    Folder { owner: [[u32; 4]; 2] },
}

impl PinnedProcess {
    /// Pins the process that opened the connection.
    ///
    /// The kernel's record of the peer is used, nothing that the peer sends.
    ///
    /// # Errors
    /// [`PinError`]; callers close the connection.
    pub fn at(stream: &UnixStream) -> Result<Self, PinError> {
        let peer = getsockopt(stream, sockopt::PeerCredentials)
            .map_err(|error| PinError::Kernel(error.into()))?;
        if peer.pid() <= 0 {
            return Err(PinError::OtherPidNamespace);
        }
        let mut pinned = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(handle) => Self::alive(peer.pid(), peer.uid(), handle),
            // The kernel is older than 6.5.
            Err(nix::errno::Errno::ENOPROTOOPT) => Self::without_peers_pidfd(peer),
            // Anything else, `EINVAL` too, means a dead peer.
            Err(error) => Err(lack_behind(&error.into()).map_or(PinError::Gone, PinError::Lack)),
        }?;
        pinned.first = Some(First {
            owner: [peer.uid(), peer.gid()],
            program: pinned.moment()?.program,
        });
        Ok(pinned)
    }

    /// Is this still who connected?
    ///
    /// Somebody may connect, share the connection with its parent, and execute a program of another user
    /// or one that has an identity: the parent would ask, and that program be judged.
    ///
    /// # Errors
    /// [`PinError::Another`]; the connection is good for nothing more.
    pub fn is_who_connected(&self, now: &Moment) -> Result<(), PinError> {
        let Some(first) = &self.first else {
            return Ok(());
        };
        match first.owner == now.standing.owner() && first.program == now.program {
            true => Ok(()),
            false => Err(PinError::Another),
        }
    }

    /// The way of older kernels, by the number of the peer.
    ///
    /// The number may have passed to another process between the connection and this call. That gap
    /// is theirs; a process of another user does not fit through it.
    fn without_peers_pidfd(peer: UnixCredentials) -> Result<Self, PinError> {
        let handle = open_by_number(peer.pid())?;
        let pinned = Self::alive(peer.pid(), peer.uid(), handle)?;
        let [_, uid, ..] = pinned
            .read(|folder| read_as(&folder.join("status"), procfs::status))??
            .uids;
        if uid != peer.uid() {
            return Err(PinError::Gone);
        }
        Ok(pinned)
    }

    /// The kernel hands out a pidfd of a process that is dead and reaped as well.
    fn alive(pid: i32, uid: u32, handle: OwnedFd) -> Result<Self, PinError> {
        let pinned = Self {
            pid,
            uid,
            handle,
            first: None,
            changed: watch::Sender::new(0),
            last: Mutex::default(),
            end: OnceLock::new(),
        };
        pinned.lives()?;
        Ok(pinned)
    }

    /// Pins a process by its number, for a person who asks about it.
    ///
    /// # Errors
    /// [`PinError::Gone`] when there is no such process.
    pub fn by_number(pid: i32) -> Result<Self, PinError> {
        let handle = open_by_number(pid)?;
        let uid = std::fs::metadata(format!("/proc/{pid}"))
            .map(|found| found.uid())
            .map_err(ReadError::from)?;
        Self::alive(pid, uid, handle)
    }

    /// Its number, for people. It means the process only while it [lives](PinnedProcess::lives).
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The pidfd.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// The effective user at the time of the connection.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Says that the process still runs.
    ///
    /// # Errors
    /// [`PinError::Gone`] when it does not, [`PinError::Lack`] when nobody knows.
    pub fn lives(&self) -> Result<(), PinError> {
        let mut waiting = [PollFd::new(&self.handle, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        loop {
            // A pidfd becomes readable when its process ends.
            return match poll(&mut waiting, Some(&now)) {
                Ok(0) => Ok(()),
                Ok(_) => Err(PinError::Gone),
                Err(Errno::INTR) => continue,
                Err(error) => Err(ReadError::from(io::Error::from(error)).into()),
            };
        }
    }

    /// Reads about the process, in its folder under `/proc`.
    ///
    /// # Errors
    /// [`PinError::Gone`] when the process ended before or meanwhile: what was read is thrown
    /// away then, it may be another process'.
    pub fn read<T>(&self, read: impl FnOnce(&ProcFolder) -> T) -> Result<T, PinError> {
        self.lives()?;
        let value = read(&ProcFolder::of(self.pid));
        self.lives()?;
        Ok(value)
    }

    /// What the process is now.
    ///
    /// # Errors
    /// [`PinError::Gone`] when it has ended, or may not be read.
    pub fn moment(&self) -> Result<Moment, PinError> {
        let told = self.standing_by_handle()?;
        self.read(|folder| {
            let standing = match told {
                Some(told) => told,
                None => standing_by_folder(folder)?,
            };
            Ok(Moment {
                standing,
                groups: read_text(&folder.join("cgroup")).map_err(ReadError::from)?,
                program: known(place_in_memory(&folder.join("exe")))?,
            })
        })?
    }

    /// None where the kernel is too old to tell.
    ///
    /// # Errors
    /// [`PinError::Lack`] where it could be asked and was not.
    fn standing_by_handle(&self) -> Result<Option<Standing>, PinError> {
        let handle = self.handle.try_clone().map_err(ReadError::from)?;
        let handle = PidFd::from(handle);
        let (Ok(creds), Ok(cgroup)) = (handle.get_creds(), handle.get_cgroupid()) else {
            return Ok(None);
        };
        Ok(Some(Standing::Handle {
            owner: [creds.euid, creds.egid],
            cgroup,
        }))
    }

    /// What was found out about it less than `age` ago, if it still is what it was.
    pub fn known(&self, moment: &Moment, age: Duration) -> Option<Arc<Attested>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = |look: &&Look| look.moment == *moment && look.at.elapsed() < age;
        last.as_ref()
            .filter(is_good)
            .map(|look| look.attested.clone())
    }

    /// Was anything found out about it less than `age` ago?
    pub fn was_looked_at(&self, age: Duration) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().is_some_and(|look| look.at.elapsed() < age)
    }

    /// Keeps what was found out about it.
    pub fn remember(&self, moment: Moment, attested: &Arc<Attested>) {
        let look = Look {
            moment,
            at: Instant::now(),
            attested: attested.clone(),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(look);
    }

    /// Fires when the kernel tells something of the process: another program, user or group.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The kernel told something of it.
    pub fn has_changed(&self) {
        self.changed
            .send_modify(|number| *number = number.wrapping_add(1));
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// The system's own, when the wait cannot be set up.
    pub async fn ended(&self) -> io::Result<()> {
        let end = match self.end.get() {
            Some(end) => end,
            None => {
                let fresh = self.watched_handle()?;
                self.end.get_or_init(|| fresh)
            }
        };
        end.readable().await.map(|_| ())
    }

    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may change their descriptor; an `OwnedFd` \
                  that nobody else touches does not"
    )]
    fn watched_handle(&self) -> io::Result<AsyncFd<OwnedFd>> {
        AsyncFd::new(self.handle.try_clone()?)
    }
}

/// The folder of one process under `/proc`.
#[derive(Debug, Clone)]
pub struct ProcFolder(PathBuf);

impl ProcFolder {
    /// The agent's own.
    pub fn own() -> Self {
        Self(PathBuf::from("/proc/self"))
    }

    /// That of the process of this number. What is read there counts only while the process is pinned.
    pub(crate) fn of(pid: i32) -> Self {
        Self(PathBuf::from(format!("/proc/{pid}")))
    }

    /// That of one of its threads.
    pub(crate) fn thread(&self, name: &str) -> Self {
        Self(self.0.join("task").join(name))
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Why a process cannot be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It has ended.
    #[error("the process has ended")]
    Gone,
    /// It is another program, or another user's, than the one that connected.
    #[error("the process is no more what it was when it connected; it has to connect again")]
    Another,
    /// Its number cannot be told from here.
    #[error(
        "the process lives in a PID namespace that the agent cannot see; run the agent in the \
         host's (`--pid host`, `hostPID: true`)"
    )]
    OtherPidNamespace,
    /// The kernel told neither.
    #[error("the kernel does not tell who the peer is: {0}")]
    Kernel(io::Error),
    /// The agent lacks something; this says nothing about the process.
    #[error(transparent)]
    Lack(#[from] Lack),
}

impl From<ReadError> for PinError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Lack(lack) => Self::Lack(lack),
            ReadError::Absent | ReadError::Refused => Self::Gone,
        }
    }
}

fn standing_by_folder(folder: &ProcFolder) -> Result<Standing, ReadError> {
    let status = read_as(&folder.join("status"), procfs::status)?;
    Ok(Standing::Folder {
        owner: [status.uids, status.gids],
    })
}

/// The lack that an error is, if it is one.
fn lack_behind(error: &io::Error) -> Option<Lack> {
    Lack::behind(std::iter::once(error as &(dyn std::error::Error + 'static)))
}

fn open_by_number(pid: i32) -> Result<OwnedFd, PinError> {
    let pid = Pid::from_raw(pid).ok_or(PinError::Gone)?;
    // A thread that leads no process is none; that there are no descriptors left says nothing of it.
    pidfd_open(pid, PidfdFlags::empty()).map_err(|error| match error {
        Errno::SRCH | Errno::INVAL | Errno::NOENT => PinError::Gone,
        other => {
            let error = other.into();
            lack_behind(&error).map_or(PinError::Kernel(error), PinError::Lack)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::CommandExt as _,
        process::{Command, Stdio},
    };

    use nix::sys::socket::{getsockopt, sockopt};
    use tokio::net::UnixStream;

    use super::{PinError, PinnedProcess, Standing, standing_by_folder};

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    }

    #[test]
    fn both_ways_of_pinning_find_the_peer() {
        let runtime = runtime();
        let _entered = runtime.enter();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = getsockopt(&ours, sockopt::PeerCredentials).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(PinnedProcess::at(&ours).unwrap().pid(), own);
        let found = PinnedProcess::without_peers_pidfd(peer).unwrap();
        assert_eq!((found.pid(), found.uid()), (own, peer.uid()));
    }

    #[test]
    fn both_ways_of_looking_see_that_a_process_is_another() {
        // FAULTS 6, 11
        let mut child = Command::new("sh");
        let mut child = child
            .args(["-c", "read go; exec sleep 60"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let process = PinnedProcess::by_number(i32::try_from(child.id()).unwrap()).unwrap();
        let by_folder = || process.read(standing_by_folder).unwrap().unwrap();
        let (before, folder) = (process.moment().unwrap(), by_folder());
        assert_eq!(process.moment().unwrap(), before);
        assert_eq!(by_folder(), folder);
        assert!(matches!(folder, Standing::Folder { .. }));
        // Two programs, one after the other.
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while process.moment().unwrap().program == before.program {
            assert!(std::time::Instant::now() < end, "it never became another");
            std::thread::yield_now();
        }
        assert_eq!(process.moment().unwrap().standing, before.standing);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(process.moment(), Err(PinError::Gone)));
    }

    #[test]
    fn a_process_that_has_ended_is_not_pinned_by_its_number() {
        let mut child = Command::new("true").stdout(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert!(matches!(PinnedProcess::by_number(pid), Err(PinError::Gone)));
    }

    #[test]
    fn what_is_read_of_a_process_that_ends_meanwhile_is_thrown_away() {
        let mut child = Command::new("cat");
        let mut child = child
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let process = PinnedProcess::by_number(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.read(|folder| folder.join("stat").exists()).unwrap());
        let read = process.read(|_| {
            drop(child.stdin.take());
            child.wait().unwrap();
        });
        assert!(matches!(read, Err(PinError::Gone)));
    }
}
