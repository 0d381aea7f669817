//! Who is at the other end of the Unix socket: a process, pinned by the kernel.
//!
//! A number names whatever process has it now. A pidfd names one process for ever. So the pidfd
//! comes first, and everything that is read under the number counts only if the pidfd says, before
//! and after, that the process still lives: while it does, the number is its.

mod http2_authority;
mod listener;

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::{io::unix::AsyncFd, net::UnixStream};

pub use listener::{Caller, Connection, bind, incoming};

/// A process that cannot be taken for another one.
#[derive(Debug)]
pub struct PinnedProcess {
    pid: i32,
    uid: u32,
    handle: OwnedFd,
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
        let handle = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(handle) => handle,
            // The kernel is older than 6.5. Anything else, `EINVAL` too, means a dead peer.
            Err(nix::errno::Errno::ENOPROTOOPT) => open_by_number(peer.pid())?,
            Err(_) => return Err(PinError::Gone),
        };
        let pinned = Self {
            pid: peer.pid(),
            uid: peer.uid(),
            handle,
        };
        // The kernel hands out a pidfd of a process that is dead and reaped as well.
        if pinned.is_alive() {
            Ok(pinned)
        } else {
            Err(PinError::Gone)
        }
    }

    /// Pins a process by its number, for a person who asks about it.
    ///
    /// # Errors
    /// [`PinError::Gone`] when there is no such process.
    pub fn by_number(pid: i32) -> Result<Self, PinError> {
        let handle = open_by_number(pid)?;
        let uid = std::fs::metadata(format!("/proc/{pid}"))
            .map(|found| std::os::unix::fs::MetadataExt::uid(&found))
            .map_err(|_| PinError::Gone)?;
        let pinned = Self { pid, uid, handle };
        if pinned.is_alive() {
            Ok(pinned)
        } else {
            Err(PinError::Gone)
        }
    }

    /// Its number, for people. It means the process only while [`PinnedProcess::is_alive`].
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The effective user at the time of the connection.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Does the process still run?
    pub fn is_alive(&self) -> bool {
        let mut waiting = [PollFd::new(&self.handle, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // A pidfd becomes readable when its process ends.
        matches!(poll(&mut waiting, Some(&now)), Ok(0))
    }

    /// Reads about the process, in its folder under `/proc`.
    ///
    /// # Errors
    /// [`PinError::Gone`] when the process ended before or meanwhile: what was read is thrown
    /// away then, it may be another process'.
    pub fn read<T>(&self, read: impl FnOnce(&ProcFolder) -> T) -> Result<T, PinError> {
        if !self.is_alive() {
            return Err(PinError::Gone);
        }
        let value = read(&ProcFolder(PathBuf::from(format!("/proc/{}", self.pid))));
        if self.is_alive() {
            Ok(value)
        } else {
            Err(PinError::Gone)
        }
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// The system's own, when the wait cannot be set up.
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may change their descriptor; an `OwnedFd` \
                  that nobody else touches does not"
    )]
    pub async fn ended(self: Arc<Self>) -> io::Result<()> {
        let handle = self.handle.try_clone()?;
        AsyncFd::new(handle)?.readable().await.map(|_| ())
    }
}

/// The folder of one process under `/proc`.
#[derive(Debug, Clone)]
pub struct ProcFolder(PathBuf);

impl ProcFolder {
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
    /// Its number cannot be told from here.
    #[error(
        "the process lives in a PID namespace that the agent cannot see; run the agent in the \
         host's (`--pid host`, `hostPID: true`)"
    )]
    OtherPidNamespace,
    /// The kernel told neither.
    #[error("the kernel does not tell who the peer is: {0}")]
    Kernel(io::Error),
}

/// The way of older kernels. The number may have passed to another process between the connection
/// and this call; that gap is theirs, and the owner check of the caller narrows it.
fn open_by_number(pid: i32) -> Result<OwnedFd, PinError> {
    let pid = Pid::from_raw(pid).ok_or(PinError::Gone)?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| PinError::Gone)?;
    handle
        .as_fd()
        .try_clone_to_owned()
        .map_err(PinError::Kernel)
}
