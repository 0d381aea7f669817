//! Signals as something to read, for the two stages that wait.

use nix::sys::{
    signal::{SigSet, Signal, kill},
    signalfd::SignalFd,
};
use nix::unistd::Pid;

/// What a waiting stage hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A child ended, or stopped.
    Child,
    /// For the program.
    ForTheProgram(Signal),
    /// The terminal's own: the program has had it too.
    FromTheTerminal(Signal),
}

/// Blocks the signals that are handed on, and reads them.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    pub(crate) fn block() -> nix::Result<Self> {
        let set = SigSet::from_iter(HANDED_ON.into_iter().chain([Signal::SIGCHLD]));
        set.thread_block()?;
        // The stages behind must not inherit it.
        SignalFd::with_flags(&set, nix::sys::signalfd::SfdFlags::SFD_CLOEXEC).map(Self)
    }

    pub(crate) fn next(&self) -> nix::Result<Heard> {
        loop {
            let Some(told) = self.0.read_signal()? else {
                continue;
            };
            let number = i32::try_from(told.ssi_signo).unwrap_or_default();
            return Ok(match Signal::try_from(number)? {
                Signal::SIGCHLD => Heard::Child,
                signal if told.ssi_code == FROM_THE_KERNEL => Heard::FromTheTerminal(signal),
                signal => Heard::ForTheProgram(signal),
            });
        }
    }
}

/// Lets the program hear everything again.
pub(crate) fn unblock_all() -> nix::Result<()> {
    SigSet::empty().thread_set_mask()
}

/// Hands a signal on. A process that is gone has ended of itself, and its end will be heard.
pub(crate) fn hand_on(process: Pid, signal: Signal) {
    let _ = kill(process, signal);
}

/// `SI_KERNEL`.
const FROM_THE_KERNEL: i32 = 0x80;

const HANDED_ON: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
];
