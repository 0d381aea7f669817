//! The service manager above a daemon: what it gives at the start, and what it wants to hear.
//!
//! The protocol is systemd's (`sd_listen_fds(3)`, `sd_notify(3)`, `sd_watchdog_enabled(3)`), and
//! others speak it too. A leaf: it knows nothing of Postern. [`Supervisor::take`] reads the
//! environment once, at the top of `main`, and clears it, so that no program that is started later
//! takes the sockets or the words for its own. [`sockets`] hands out what was inherited, and
//! refuses what does not fit; [`notify`] tells how the daemon is.

pub mod notify;
pub mod sockets;
mod sys;

use std::{env, time::Duration};

pub use notify::Notify;
pub use sockets::Sockets;

/// What the service manager gave us, taken out of the environment.
#[derive(Debug)]
pub struct Supervisor {
    /// Where it is told how we are.
    pub notify: Notify,
    /// The sockets that it holds for us.
    pub sockets: Sockets,
    /// How long it waits for a sign of life.
    pub watchdog: Option<Duration>,
}

impl Supervisor {
    /// Takes over what was given, and clears the environment of it. Called while the process has one
    /// thread. What was given to another process is cleared and left alone.
    ///
    /// # Errors
    /// [`SupervisorError`]; callers do not start.
    pub fn take() -> Result<Self, SupervisorError> {
        let given = Given::read();
        sys::forget(&VARIABLES)?;
        let own = std::process::id();
        let notify = match given.notify {
            Some(address) => Notify::to(&address)?,
            None => Notify::nobody(),
        };
        let numbered = numbered(own, given.listen, given.names.as_deref())?;
        let mut sockets = Vec::new();
        for (number, name) in numbered {
            let descriptor = sys::descriptor(number).ok_or(SupervisorError::Closed(number))?;
            sockets.push((number, name, descriptor));
        }
        Ok(Self {
            notify,
            sockets: Sockets::of(sockets)?,
            watchdog: watchdog(own, given.watchdog)?,
        })
    }
}

/// The variables, as they stand.
struct Given {
    notify: Option<std::ffi::OsString>,
    /// For whom, and how many.
    listen: [Option<String>; 2],
    names: Option<String>,
    /// For whom, and for how long.
    watchdog: [Option<String>; 2],
}

impl Given {
    fn read() -> Self {
        // What is no text is no number either, and is refused as such.
        let text = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self {
            notify: env::var_os(NOTIFY_SOCKET),
            listen: [text(LISTEN_PID), text(LISTEN_FDS)],
            names: text(LISTEN_FDNAMES),
            watchdog: [text(WATCHDOG_PID), text(WATCHDOG_USEC)],
        }
    }
}

/// The numbers of the descriptors that are ours, and their names. Pure.
fn numbered(
    own: u32,
    listen: [Option<String>; 2],
    names: Option<&str>,
) -> Result<Vec<(i32, String)>, SupervisorError> {
    let [Some(pid), Some(count)] = listen else {
        return Ok(Vec::new());
    };
    if number::<u32>(LISTEN_PID, &pid)? != own {
        return Ok(Vec::new());
    }
    let many = number::<u16>(LISTEN_FDS, &count)?;
    if many > MAX_DESCRIPTORS {
        return Err(SupervisorError::TooMany(many));
    }
    let many = usize::from(many);
    let names: Vec<String> = match names {
        // Who gives no names has none; an empty text is one empty name.
        None => vec![String::new(); many],
        Some("") if many == 0 => Vec::new(),
        Some(text) => text.split(':').map(str::to_owned).collect(),
    };
    if names.len() != many {
        return Err(SupervisorError::Names {
            descriptors: many,
            names: names.len(),
        });
    }
    Ok((FIRST_DESCRIPTOR..).zip(names).collect())
}

/// How long the service manager waits for a sign of life of ours, if it waits at all. Pure.
fn watchdog(own: u32, given: [Option<String>; 2]) -> Result<Option<Duration>, SupervisorError> {
    let [pid, Some(micros)] = given else {
        return Ok(None);
    };
    if let Some(pid) = pid
        && number::<u32>(WATCHDOG_PID, &pid)? != own
    {
        return Ok(None);
    }
    let micros = number::<u64>(WATCHDOG_USEC, &micros)?;
    Ok((micros > 0).then(|| Duration::from_micros(micros)))
}

fn number<T: std::str::FromStr>(variable: &'static str, text: &str) -> Result<T, SupervisorError> {
    text.parse().map_err(|_| SupervisorError::NoNumber {
        variable,
        text: text.chars().take(SHOWN).collect(),
    })
}

/// What a service manager gave that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// A variable that is to hold a number.
    #[error("`{text}` in {variable} is no number that fits; the service manager sets it")]
    NoNumber {
        /// Which one.
        variable: &'static str,
        /// What it says.
        text: String,
    },
    /// More than a daemon can have a use for.
    #[error("LISTEN_FDS promises {0} sockets, and at most {MAX_DESCRIPTORS} are taken")]
    TooMany(u16),
    /// Names and descriptors that cannot be paired.
    #[error("LISTEN_FDNAMES has {names} names for {descriptors} descriptors")]
    Names {
        /// How many there are.
        descriptors: usize,
        /// How many are named.
        names: usize,
    },
    /// A promise that is not kept.
    #[error("descriptor {0} is promised by LISTEN_FDS and is not open")]
    Closed(i32),
    /// A descriptor of another kind.
    #[error(
        "descriptor {number} (`{name}`) is {what}, not a listening stream socket; `ListenStream=` makes one"
    )]
    Kind {
        /// Its number.
        number: i32,
        /// Its name.
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// A name that this daemon has no use for.
    #[error(
        "descriptor {number} has the name `{name}`; `FileDescriptorName=` is one of {known}{hint}"
    )]
    Unknown {
        /// Its number.
        number: i32,
        /// Its name.
        name: String,
        /// Those that there are.
        known: String,
        /// Which one is probably meant.
        hint: String,
    },
    /// A socket at another place than the configuration says.
    #[error("descriptor {number} (`{name}`) listens at `{at}`, but {wanted}; make them the same")]
    Elsewhere {
        /// Its number.
        number: i32,
        /// Its name.
        name: String,
        /// Where it listens.
        at: String,
        /// Where the configuration says.
        wanted: String,
    },
    /// One place twice.
    #[error(
        "descriptor {number} (`{name}`) listens at `{at}`, as another one does; give one of them"
    )]
    Twice {
        /// Its number.
        number: i32,
        /// Its name.
        name: String,
        /// Where it listens.
        at: String,
    },
    /// The address of the notification socket.
    #[error("cannot reach the service manager at `{address}` (NOTIFY_SOCKET)")]
    Notify {
        /// Where it should be.
        address: String,
        /// Why it cannot be reached.
        #[source]
        cause: std::io::Error,
    },
    /// The environment can be changed by a process of one thread alone.
    #[error("the process has more than one thread, and its environment cannot be cleared any more")]
    Threads,
    /// The kernel's own.
    #[error("cannot look at an inherited socket")]
    Kernel(#[from] std::io::Error),
}

const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
const WATCHDOG_PID: &str = "WATCHDOG_PID";
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";

/// All that is taken out. `LISTEN_PIDFDID` came with systemd 258.
const VARIABLES: [&str; 7] = [
    NOTIFY_SOCKET,
    LISTEN_PID,
    "LISTEN_PIDFDID",
    LISTEN_FDS,
    LISTEN_FDNAMES,
    WATCHDOG_PID,
    WATCHDOG_USEC,
];

/// `SD_LISTEN_FDS_START`.
const FIRST_DESCRIPTOR: i32 = 3;

const MAX_DESCRIPTORS: u16 = 64;

/// How much of a bad value is shown.
const SHOWN: usize = 32;

#[cfg(test)]
mod tests;
