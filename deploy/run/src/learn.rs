//! `postern-run learn`: which system calls a program and its children make.
//!
//! By ptrace, which tells every call of every thread and needs no right over processes of one's own. It
//! is not seccomp's user notification: that one tells only calls that a filter hands over, so that the
//! filter itself would be in the way, and its answer *go on* has no safe interface here.
//!
//! A program that watches others itself (a debugger) cannot be learnt this way.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsString,
};

use nix::{
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::WaitStatus,
    },
    unistd::Pid,
};
use postern_harden::Profile;

/// The numbers of all calls that were made.
#[derive(Debug, Default)]
pub(crate) struct Learnt {
    calls: BTreeSet<u64>,
    known: HashSet<Pid>,
}

impl Learnt {
    /// Takes a stop, and lets the thread go on.
    pub(crate) fn stopped(&mut self, status: WaitStatus) {
        // A thread that is gone by now needs nobody's leave.
        let _ = match status {
            WaitStatus::PtraceSyscall(thread) => {
                self.calls.extend(call(thread));
                ptrace::syscall(thread, None)
            }
            WaitStatus::PtraceEvent(thread, _, _) => ptrace::syscall(thread, None),
            WaitStatus::Stopped(thread, signal) => self.signal(thread, signal),
            _ => Ok(()),
        };
    }

    fn signal(&mut self, thread: Pid, signal: Signal) -> nix::Result<()> {
        let is_new = self.known.insert(thread);
        match signal {
            // The end of the first execution. From here on children are watched from their start.
            Signal::SIGTRAP if is_new => {
                ptrace::setoptions(
                    thread,
                    Options::PTRACE_O_TRACESYSGOOD
                        | Options::PTRACE_O_TRACEFORK
                        | Options::PTRACE_O_TRACEVFORK
                        | Options::PTRACE_O_TRACECLONE
                        | Options::PTRACE_O_TRACEEXEC
                        | Options::PTRACE_O_EXITKILL,
                )?;
                ptrace::syscall(thread, None)
            }
            // The start of a child.
            Signal::SIGSTOP if is_new => ptrace::syscall(thread, None),
            // The program is told to stop: it goes on, or nothing more would be learnt.
            _ if ptrace::getsiginfo(thread).is_err() => ptrace::syscall(thread, None),
            signal => ptrace::syscall(thread, signal),
        }
    }

    /// For the first stage.
    pub(crate) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&self.calls)
    }
}

/// The number of the call that a thread is about to make.
fn call(thread: Pid) -> Option<u64> {
    let told = ptrace::syscall_info(thread).ok()?;
    if told.op != ENTRY {
        return None;
    }
    number(thread)
}

#[cfg(target_arch = "x86_64")]
fn number(thread: Pid) -> Option<u64> {
    ptrace::getregs(thread)
        .ok()
        .map(|registers| registers.orig_rax)
}

#[cfg(target_arch = "aarch64")]
fn number(thread: Pid) -> Option<u64> {
    let registers = ptrace::getregs(thread).ok()?;
    registers.regs.get(8).copied()
}

#[cfg(target_arch = "riscv64")]
fn number(thread: Pid) -> Option<u64> {
    ptrace::getregs(thread).ok().map(|registers| registers.a7)
}

/// The profile that allows what was learnt.
///
/// # Errors
/// When the second stage told nothing, as it does when the program could not be started.
pub(crate) fn profile(told: &str, program: &[OsString]) -> anyhow::Result<String> {
    let mut calls: BTreeSet<u64> = serde_json::from_str(told)
        .map_err(|_| anyhow::anyhow!("nothing was learnt: the program did not start"))?;
    anyhow::ensure!(
        !calls.is_empty(),
        "nothing was learnt: the program did not start"
    );
    calls.extend(Profile::number("execve"));
    let words: Vec<_> = program.iter().map(|word| word.to_string_lossy()).collect();
    let comment = format!(
        "Learnt by postern-run from one run of `{}`. A call that it did not make is refused.",
        words.join(" ")
    );
    Ok(Profile::allowing(calls, &comment).to_json()?)
}

/// `PTRACE_SYSCALL_INFO_ENTRY`.
const ENTRY: u8 = 1;
