//! A pod: one session whose processes belong together.
//!
//! The supervisor is this program again. It starts processes as lines of JSON on its standard
//! input say, answers each with a line on its standard output, and ends them all when the input
//! ends, so nothing outlives the demo, however the demo ends.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde::{Deserialize, Serialize};

use crate::network::{Network, Pod};

/// What a pod is asked to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The program and its arguments.
    pub(crate) argv: Vec<String>,
    /// The user as which it runs; the supervisor's own if none is given.
    pub(crate) uid: Option<u32>,
    /// Where its output goes. Without it the supervisor waits for the end and sends the output.
    pub(crate) log: Option<PathBuf>,
}

/// What a pod answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Started {
    /// Its exit code, if it was waited for.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running pod, seen from outside.
#[derive(Debug)]
pub(crate) struct PodHandle {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl PodHandle {
    /// Starts an empty pod. With `walls`, nothing in it can gain a privilege that it lacks.
    pub(crate) fn start(
        network: &Network,
        pod: Pod,
        program: &Path,
        walls: bool,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command
            .arg("pod")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if !walls {
            command.arg("--without-walls");
        }
        let mut child = network.spawn(pod, command)?;
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("the pod has no output")?);
        Ok(Self {
            child,
            commands,
            answers,
        })
    }

    /// Starts a process in the pod and, unless it has a log, waits for its end.
    pub(crate) fn run(&mut self, start: &Start) -> anyhow::Result<Started> {
        let commands = self.commands.as_mut().context("the pod was stopped")?;
        let mut line = serde_json::to_vec(start)?;
        line.push(b'\n');
        commands.write_all(&line).context("the pod is gone")?;
        let mut answer = String::new();
        self.answers
            .read_line(&mut answer)
            .context("the pod is gone")?;
        let answer: Result<Started, String> =
            serde_json::from_str(&answer).context("the pod is gone")?;
        answer.map_err(|error| anyhow::anyhow!("`{}`: {error}", start.argv.join(" ")))
    }

    /// Ends the pod and all that runs in it.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        drop(self.commands.take());
        let status = self.child.wait().context("cannot wait for a pod")?;
        if !status.success() {
            bail!("a pod ended with {status}");
        }
        Ok(())
    }
}

impl Drop for PodHandle {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.child.wait();
    }
}

/// The supervisor's life.
pub(crate) fn supervise(without_walls: bool) -> anyhow::Result<()> {
    rustix::process::setsid().context("cannot begin a session")?;
    if !without_walls {
        postern_harden::no_new_privileges()?;
    }
    let mut children = Vec::new();
    for line in io::stdin().lock().lines() {
        let start: Start = serde_json::from_str(&line?).context("not a line of the demo")?;
        let answer = start_one(&start, &mut children).map_err(|error| format!("{error:#}"));
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &answer)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    children.iter_mut().try_for_each(end)
}

fn start_one(start: &Start, children: &mut Vec<Child>) -> anyhow::Result<Started> {
    let (program, arguments) = start
        .argv
        .split_first()
        .context("there is no program to start")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    if let Some(uid) = start.uid {
        command.uid(uid).gid(uid);
    }
    let Some(log) = &start.log else {
        let output = command.output().context("cannot start it")?;
        return Ok(Started {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    };
    let log = File::create(log).context("cannot open its log")?;
    let child = command
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start it")?;
    children.push(child);
    Ok(Started {
        code: None,
        stdout: String::new(),
        stderr: String::new(),
    })
}

/// Asks a process to end, and makes it end if it does not.
fn end(child: &mut Child) -> anyhow::Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    let pid = Pid::from_child(child);
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    kill_process(pid, Signal::TERM)?;
    let mut waiting = [PollFd::new(&handle, PollFlags::IN)];
    if poll(&mut waiting, Some(&GRACE))? == 0 {
        child.kill()?;
    }
    child.wait()?;
    Ok(())
}

/// The life of a program that nobody expected.
pub(crate) fn wait_to_be_ended() -> anyhow::Result<()> {
    loop {
        std::thread::park();
    }
}

/// How long a process may take to end by itself.
const GRACE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
