//! The process connector: a netlink socket on which the kernel tells of every program that is executed
//! and every change of user or group. Spec: the kernel's `connector.rst`, `linux/cn_proc.h`.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{CONNECTOR, SocketAddrNetlink},
        recvfrom, sendto, socket_with,
    },
};
use tokio::io::unix::AsyncFd;

use super::{Event, Followed, Source};
use crate::rules::Class;

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
    /// Something happened to a process.
    Happened(Event),
    /// Anything else.
    Other,
}

impl Kernel {
    /// Asks the kernel to tell, and to keep about so many events. Needs `CAP_NET_ADMIN` now, and not later.
    ///
    /// # Errors
    /// It does not: callers rely on their timers.
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may change their descriptor; an `OwnedFd` \
                  that nobody else touches does not"
    )]
    pub fn listen(waiting: usize) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(CONNECTOR),
        )?;
        setsockopt(&socket, sockopt::RcvBufForce, &(waiting * EVENT_BYTES / 2))?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        // From Linux 6.6 on less can be asked for, but to that there is no answer, because the kernel's
        // filter drops its own: who waited for it would wait in vain at every start.
        ask(&socket, &[LISTEN])?;
        AsyncFd::new(socket).map(Self)
    }

    /// Passes on what the kernel tells, for ever: to those who follow a process, and all of it to `heard`.
    ///
    /// # Errors
    /// The socket's own.
    pub async fn tell(
        self,
        followed: &Followed,
        heard: impl Fn(Event),
    ) -> io::Result<std::convert::Infallible> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| receive(socket.get_ref())) {
                Ok(Ok(Told::Happened(event))) => {
                    if let Event::Changed(_, pid) = event {
                        followed.changed(pid);
                    }
                    heard(event);
                }
                Ok(Ok(_)) | Err(_) => {}
                // More happened than there was room for: anything may have.
                Ok(Err(error)) if error.raw_os_error() == Some(NO_ROOM) => {
                    followed.all_changed();
                    heard(Event::Lost(Source::Connector));
                }
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
        (true, Some(what)) => {
            // A thread's number, then that of its process.
            let number = |at: usize| word(about + at).and_then(|pid| i32::try_from(pid).ok());
            event(what, number).map_or(Told::Other, Told::Happened)
        }
        _ => Told::Other,
    }
}

/// What a message tells; `number` reads what it is about.
fn event(what: u32, number: impl Fn(usize) -> Option<i32>) -> Option<Event> {
    match what {
        EXEC => Some(Event::Changed(Class::Exec, number(4)?)),
        UID | GID => Some(Event::Changed(Class::Credentials, number(4)?)),
        FORK => {
            let (parent, thread, child) = (number(4)?, number(8)?, number(12)?);
            // A new thread is no new process.
            (thread == child).then_some(Event::Forked { parent, child })
        }
        PTRACE => {
            let (process, tracer) = (number(4)?, number(12)?);
            // The end of it has no tracer.
            (tracer != 0).then_some(Event::Traced { process, tracer })
        }
        _ => None,
    }
}

const HEADER_BYTES: usize = 16;
const CONNECTOR_BYTES: usize = 20;

/// The kernel's messages have 76 bytes.
const MAX_MESSAGE_BYTES: usize = 512;

/// What a message takes of the kernel's memory. The kernel keeps twice what it is asked for.
const EVENT_BYTES: usize = 1024;

const NLMSG_DONE: u32 = 3;
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
/// The multicast group of `CN_IDX_PROC`.
const GROUP: u32 = 1;
const LISTEN: u32 = 1;

const ANSWER: u32 = 0;
const FORK: u32 = 0x1;
const EXEC: u32 = 0x2;
const UID: u32 = 0x4;
const GID: u32 = 0x40;
const PTRACE: u32 = 0x100;

/// `ENOBUFS`
const NO_ROOM: i32 = 105;

/// The kernel answers at once, or not at all.
const PATIENCE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::{ANSWER, Class, EXEC, Event, FORK, GID, PTRACE, Told, UID, question, read};

    /// A message of the kernel about a thread and a process, and perhaps two more.
    fn message(what: u32, about: [u32; 4]) -> Vec<u8> {
        let [thread, process, other_thread, other] = about;
        question(&[what, 0, 0, 0, thread, process, other_thread, other, 0, 0])
    }

    #[test]
    fn what_happens_to_a_process_is_told_by_its_number() {
        let happened = Told::Happened;
        let made = Event::Forked {
            parent: 7,
            child: 5,
        };
        let traced = Event::Traced {
            process: 7,
            tracer: 5,
        };
        for (what, about, expected) in [
            (EXEC, [8, 7, 0, 0], happened(Event::Changed(Class::Exec, 7))),
            (
                UID,
                [8, 7, 0, 0],
                happened(Event::Changed(Class::Credentials, 7)),
            ),
            (
                GID,
                [8, 7, 0, 0],
                happened(Event::Changed(Class::Credentials, 7)),
            ),
            (FORK, [8, 7, 5, 5], happened(made)),
            (FORK, [8, 7, 9, 7], Told::Other),
            (PTRACE, [8, 7, 6, 5], happened(traced)),
            (PTRACE, [8, 7, 0, 0], Told::Other),
            (0x8, [8, 7, 6, 5], Told::Other),
            (0x8000_0000, [8, 7, 0, 0], Told::Other),
            (ANSWER, [8, 7, 0, 0], Told::Answer { error: 8 }),
            (EXEC, [8, u32::MAX, 0, 0], Told::Other),
        ] {
            assert_eq!(read(&message(what, about)), expected, "{what:#x}");
        }
    }

    #[test]
    fn a_message_that_is_cut_or_of_another_connector_tells_nothing() {
        let whole = message(EXEC, [8, 7, 0, 0]);
        for length in 0..60 {
            let told = read(&whole[..length]);
            assert_eq!(told, Told::Other, "{length}");
        }
        let mut other = whole;
        other[16] = 9;
        assert_eq!(read(&other), Told::Other);
    }
}
