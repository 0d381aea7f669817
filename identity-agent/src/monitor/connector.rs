//! The process connector: a netlink socket on which the kernel tells of every program that is executed
//! and every change of user or group. Spec: the kernel's `connector.rst`, `linux/cn_proc.h`.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{CONNECTOR, SocketAddrNetlink},
        recvfrom, sendto, socket_with,
    },
};
use tokio::io::unix::AsyncFd;

use super::Followed;

/// The kernel's word on processes.
#[derive(Debug)]
pub struct Kernel(AsyncFd<OwnedFd>);

/// What a message tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The answer to the question to be told.
    Answer {
        /// 0, or a number of errno.
        error: u32,
    },
    /// The process of this number runs another program, or has another user or group.
    Changed(i32),
    /// Anything else.
    Other,
}

impl Kernel {
    /// Asks the kernel to tell. Needs `CAP_NET_ADMIN` now, and not later.
    ///
    /// # Errors
    /// It does not: callers rely on their timers.
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may change their descriptor; an `OwnedFd` \
                  that nobody else touches does not"
    )]
    pub fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(CONNECTOR),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        // From Linux 6.6 on only what is asked for is told; before, the longer question has no answer.
        let events = EXEC | UID | GID;
        let asked = ask(&socket, &[LISTEN, events]);
        if asked
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
        {
            ask(&socket, &[LISTEN])?;
        } else {
            asked?;
        }
        AsyncFd::new(socket).map(Self)
    }

    /// Passes on what the kernel tells, for ever.
    ///
    /// # Errors
    /// The socket's own.
    pub async fn tell(self, followed: &Followed) -> io::Result<std::convert::Infallible> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| receive(socket.get_ref())) {
                Ok(Ok(Told::Changed(pid))) => followed.changed(pid),
                Ok(Ok(_)) | Err(_) => {}
                // More happened than there was room for: anything may have.
                Ok(Err(error)) if error.raw_os_error() == Some(NO_ROOM) => followed.all_changed(),
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

/// Asks, and waits for the answer.
fn ask(socket: &OwnedFd, words: &[u32]) -> io::Result<()> {
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(socket, &question(words), SendFlags::empty(), &kernel)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&limit))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match receive(socket) {
            Ok(Told::Answer { error: 0 }) => return Ok(()),
            Ok(Told::Answer { error }) => {
                let number = i32::try_from(error).unwrap_or(i32::MAX);
                return Err(io::Error::from_raw_os_error(number));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn receive(socket: &OwnedFd) -> io::Result<Told> {
    let mut space = [0; MAX_MESSAGE_BYTES];
    let (length, _, from) = recvfrom(socket, &mut space, RecvFlags::empty())?;
    let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
    // Others may send to this socket too.
    if from.is_none_or(|from| from.pid() != 0) {
        return Ok(Told::Other);
    }
    Ok(read(space.get(..length).unwrap_or_default()))
}

/// A message to the connector, with these words in it.
fn question(words: &[u32]) -> Vec<u8> {
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut message = Vec::new();
    let all = HEADER_BYTES + CONNECTOR_BYTES + payload.len();
    // nlmsghdr: length, type NLMSG_DONE and no flags, number, sender.
    for word in [length(all), NLMSG_DONE, 0, 0] {
        message.extend(word.to_ne_bytes());
    }
    // cn_msg: which connector, number, acknowledgement, length and no flags.
    for word in [CN_IDX_PROC, CN_VAL_PROC, 0, 0, length(payload.len())] {
        message.extend(word.to_ne_bytes());
    }
    message.extend(payload);
    message
}

/// Reads a message. Pure.
fn read(message: &[u8]) -> Told {
    let word = |at: usize| {
        let bytes = message.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let start = HEADER_BYTES + CONNECTOR_BYTES;
    let is_of_processes = word(HEADER_BYTES) == Some(CN_IDX_PROC);
    // proc_event: what, processor, time in 8 bytes, then what it is about.
    let about = start + 16;
    match (is_of_processes, word(start)) {
        (true, Some(ANSWER)) => word(about).map_or(Told::Other, |error| Told::Answer { error }),
        (true, Some(EXEC | UID | GID)) => {
            // The thread's number, then the process'.
            let pid = word(about + 4).and_then(|pid| i32::try_from(pid).ok());
            pid.map_or(Told::Other, Told::Changed)
        }
        _ => Told::Other,
    }
}

const HEADER_BYTES: usize = 16;
const CONNECTOR_BYTES: usize = 20;

/// The kernel's messages have 76 bytes.
const MAX_MESSAGE_BYTES: usize = 512;

const NLMSG_DONE: u32 = 3;
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
/// The multicast group of `CN_IDX_PROC`.
const GROUP: u32 = 1;
const LISTEN: u32 = 1;

const ANSWER: u32 = 0;
const EXEC: u32 = 0x2;
const UID: u32 = 0x4;
const GID: u32 = 0x40;

/// `ENOBUFS`
const NO_ROOM: i32 = 105;

/// The kernel answers at once, or not at all.
const PATIENCE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::{ANSWER, EXEC, GID, Told, UID, question, read};

    /// A message of the kernel about a thread and a process.
    fn message(what: u32, about: [u32; 2]) -> Vec<u8> {
        let [thread, process] = about;
        question(&[what, 0, 0, 0, thread, process, 0, 0, 0, 0])
    }

    #[test]
    fn executions_and_changes_of_users_are_told_by_the_process() {
        for (what, expected) in [
            (EXEC, Told::Changed(7)),
            (UID, Told::Changed(7)),
            (GID, Told::Changed(7)),
            (0x1, Told::Other),
            (0x8000_0000, Told::Other),
            (ANSWER, Told::Answer { error: 8 }),
        ] {
            assert_eq!(read(&message(what, [8, 7])), expected, "{what:#x}");
        }
        assert_eq!(read(&message(EXEC, [8, u32::MAX])), Told::Other);
    }

    #[test]
    fn a_message_that_is_cut_or_of_another_connector_tells_nothing() {
        let whole = message(EXEC, [8, 7]);
        for length in 0..60 {
            let told = read(&whole[..length]);
            assert_eq!(told, Told::Other, "{length}");
        }
        let mut other = whole;
        other[16] = 9;
        assert_eq!(read(&other), Told::Other);
    }
}
