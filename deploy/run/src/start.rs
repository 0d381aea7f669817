//! The first stage: outside. It makes what only the caller can make, waits, and cleans up.

use std::{
    fs,
    io::{PipeWriter, Read as _, Seek as _, Write as _},
    process::{Child, ExitCode, Stdio},
};

use anyhow::{Context as _, bail};
use caps::{CapSet, CapsHashSet};
use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        signal::{Signal, raise},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    cgroup::{Groups, Limits},
    learn, notice,
    plan::{Caller, Plan},
    signals::{Heard, Signals, hand_on},
    stage::{self, Stage},
};

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: ExitCode,
    /// The profile, if one was to be learnt.
    pub(crate) learnt: Option<String>,
}

/// Runs a program to its end.
///
/// # Errors
/// A wall that cannot be put up.
pub(crate) fn run(
    plan: &Plan,
    limits: &Limits,
    caller: Caller,
    output_is_taken: bool,
) -> anyhow::Result<Ended> {
    let mut groups = Groups::make(limits).context(
        "limits need control groups that the caller may make: run it as root or in a delegated \
         group, or say --no-limits",
    )?;
    let text = stage::write(plan)?;
    let (reader, go) = std::io::pipe()?;
    let learnt = plan
        .is_learning
        .then(|| stage::memory("postern-run learnt"))
        .transpose()?;
    let mut command = Stage::Init.command(stage::inherit(&text)?);
    command.arg(stage::inherit(&reader)?.to_string());
    if let Some(file) = &learnt {
        command.arg(stage::inherit(file)?.to_string());
    }
    if output_is_taken {
        command.stdout(Stdio::from(rustix::io::dup(std::io::stderr())?));
    }
    namespaces(plan, caller)?;
    let signals = Signals::block()?;
    let init = command
        .spawn()
        .context("cannot start the first process inside")?;
    drop(reader);
    let status = watch(&init, &mut groups, go, &signals)?;
    if groups.killed_for_memory() > 0 {
        notice("the limit of memory was reached, and the kernel ended processes for it");
    }
    let learnt = learnt.map(|mut file| {
        let mut told = String::new();
        file.rewind()?;
        file.read_to_string(&mut told)?;
        learn::profile(&told, &plan.program)
    });
    Ok(Ended {
        code: ExitCode::from(status),
        learnt: learnt.transpose()?,
    })
}

/// Nothing that was left open by the caller goes in.
///
/// # Errors
/// When `/proc` is not there.
pub(crate) fn close_all_but(kept: &[i32]) -> anyhow::Result<()> {
    let listed = fs::read_dir("/proc/self/fd").context("cannot read `/proc/self/fd`")?;
    let numbers: Vec<i32> = listed
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers {
        if number > 2 && !kept.contains(&number) {
            // The listing's own is closed by now.
            let _ = nix::unistd::close(number);
        }
    }
    Ok(())
}

fn namespaces(plan: &Plan, caller: Caller) -> anyhow::Result<()> {
    // Not that of mounts: the first process inside makes its own, or its new root would be this one's too.
    let mut all = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if plan.has_own_net {
        all |= CloneFlags::CLONE_NEWNET;
    }
    if !caller.is_privileged {
        all |= CloneFlags::CLONE_NEWUSER;
    }
    if let Err(error) = unshare(all) {
        bail!(
            "cannot make namespaces: {error}{}",
            match caller.is_privileged {
                true => "",
                false =>
                    "; without root this takes user namespaces, which this machine may forbid \
                     (user.max_user_namespaces, kernel.unprivileged_userns_clone, AppArmor)",
            }
        );
    }
    if !caller.is_privileged {
        map(caller)?;
    }
    Ok(())
}

/// The caller alone, as himself. The capabilities that he has in his namespace are let through to the next
/// stage, which an ordinary user's execution would take away.
fn map(caller: Caller) -> anyhow::Result<()> {
    let write = |file: &str, text: String| {
        let path = format!("/proc/self/{file}");
        fs::write(&path, text).with_context(|| format!("cannot write `{path}`"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("{0} {0} 1", caller.uid))?;
    write("gid_map", format!("{0} {0} 1", caller.gid))?;
    let all: CapsHashSet = caps::read(None, CapSet::Permitted)?;
    caps::set(None, CapSet::Inheritable, &all)?;
    caps::set(None, CapSet::Ambient, &all)?;
    Ok(())
}

/// Lets the first process inside go on once it is in its groups, and waits for its end.
fn watch(
    init: &Child,
    groups: &mut Groups,
    mut go: PipeWriter,
    signals: &Signals,
) -> anyhow::Result<u8> {
    let process = Pid::from_raw(i32::try_from(init.id())?);
    // Without the word to go on it ends by itself.
    groups.take(init.id())?;
    go.write_all(&[1])?;
    loop {
        match signals.next()? {
            Heard::ForTheProgram(Signal::SIGTSTP) | Heard::FromTheTerminal(Signal::SIGTSTP) => {
                raise(Signal::SIGSTOP)?;
            }
            Heard::ForTheProgram(signal) => hand_on(process, signal),
            Heard::FromTheTerminal(_) => {}
            Heard::Child => match waitpid(process, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(_, code) => return Ok(u8::try_from(code).unwrap_or(125)),
                WaitStatus::Signaled(_, signal, _) => {
                    return Ok(u8::try_from(128 + signal as i32).unwrap_or(125));
                }
                _ => {}
            },
        }
    }
}
