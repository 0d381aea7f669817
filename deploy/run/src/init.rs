//! The second stage: process 1 of the new PID namespace. It builds the view, starts the third stage, gives
//! up its own rights, hands signals on, reaps, and ends with the program's code; the kernel ends
//! whatever is left inside with it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use postern_harden::Profile;

use crate::{
    complain, confine,
    learn::Learnt,
    network, notice,
    plan::Plan,
    signals::{Heard, Signals, hand_on},
    stage::{self, Stage},
    view,
};

/// Runs the stage; `number` is the descriptor of the plan.
pub(crate) fn run(number: i32) -> ExitCode {
    match walled(number) {
        Ok(code) => ExitCode::from(code),
        Err(error) => complain(&error),
    }
}

fn walled(number: i32) -> anyhow::Result<u8> {
    // When the first stage dies, so does all that is inside.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let plan = stage::read(number)?;
    let mut numbers = std::env::args().skip(3).map(|text| text.parse::<i32>());
    let go = numbers.next().context("no word to go on will come")??;
    let result = numbers.next().transpose()?;
    wait_for_the_word(go)?;
    // In its groups by now, it takes them for the root of all.
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
        .context("cannot make namespaces of mounts and control groups")?;
    nix::unistd::sethostname(&plan.hostname).context("cannot set the host name")?;
    if plan.has_own_net {
        network::loopback_up()?;
    }
    let result = result.map(stage::open).transpose()?;
    let signals = Signals::block()?;
    view::build(&plan)?;
    let child = Stage::Confine.command(number).spawn().context(
        "cannot start the last stage inside; the program's libraries may be out of sight",
    )?;
    let program = Pid::from_raw(i32::try_from(child.id())?);
    let mut learnt = plan.is_learning.then(Learnt::default);
    give_up(&plan)?;
    let code = reap(program, &signals, learnt.as_mut())?;
    if let (Some(mut file), Some(learnt)) = (result, learnt) {
        file.write_all(&learnt.to_json()?)?;
    }
    Ok(code)
}

/// The first stage puts this process into its control groups, then says so.
fn wait_for_the_word(number: i32) -> anyhow::Result<()> {
    let path = format!("/proc/self/fd/{number}");
    let mut pipe = File::open(&path).with_context(|| format!("cannot open `{path}`"))?;
    // Both are the reading end; with the writer gone there is nothing to wait for.
    nix::unistd::close(number)?;
    let mut word = [0];
    if pipe.read(&mut word)? == 0 {
        bail!("the first stage is gone");
    }
    Ok(())
}

/// What is left is as little as the program has: whoever judges the pod by all its processes finds no
/// weaker one.
fn give_up(plan: &Plan) -> anyhow::Result<()> {
    confine::drop_bounds(&caps::CapsHashSet::new())?;
    confine::become_user(plan)?;
    postern_harden::keep_capabilities(&[])?;
    postern_harden::no_new_privileges()?;
    // The change of the user took it back.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    postern_harden::not_dumpable()?;
    Ok(Profile::parse("init", FILTER)?.enforce()?)
}

/// Waits for the program's end, and for the end of all that have no other parent.
fn reap(program: Pid, signals: &Signals, mut learnt: Option<&mut Learnt>) -> anyhow::Result<u8> {
    loop {
        match signals.next()? {
            Heard::ForTheProgram(signal) => hand_on(program, signal),
            Heard::FromTheTerminal(_) => continue,
            Heard::Child => {}
        }
        let any = Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL);
        loop {
            let status = match waitpid(None, any) {
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => break,
                Err(error) => return Err(error.into()),
                Ok(status) => status,
            };
            match status {
                WaitStatus::Exited(process, code) if process == program => {
                    return Ok(u8::try_from(code)?);
                }
                WaitStatus::Signaled(process, signal, _) if process == program => {
                    return Ok(killed_by(signal));
                }
                status => {
                    if let Some(learnt) = &mut learnt {
                        learnt.stopped(status);
                    }
                }
            }
        }
    }
}

fn killed_by(signal: Signal) -> u8 {
    if signal == Signal::SIGSYS {
        notice("the seccomp profile ended the program");
    }
    u8::try_from(128 + signal as i32).unwrap_or(125)
}

const FILTER: &str = include_str!("../../seccomp/init.json");
