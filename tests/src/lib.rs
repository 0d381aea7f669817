//! What the cross-process tests share: real daemons in a folder of their own, their logs, and the
//! programs of others.

#![forbid(unsafe_code)]

pub mod certificates;
pub mod world;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// The folder of the daemons, which are built once if need be.
///
/// # Errors
/// When they do not build.
pub fn binaries() -> anyhow::Result<&'static Path> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = FOLDER.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    match built {
        Ok(folder) => Ok(folder),
        Err(error) => bail!("{error}"),
    }
}

fn build() -> anyhow::Result<PathBuf> {
    // Tests lie in `target/<profile>/deps`.
    let own = std::env::current_exe().context("cannot find this test's file")?;
    let folder = own
        .parent()
        .and_then(Path::parent)
        .context("this test lies in no folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "-q", "--workspace", "--bins"]);
    command.current_dir(root());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    ensure!(command.status()?.success(), "the daemons do not build");
    Ok(folder.to_owned())
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Copies a program that is to be run. By another process: while this one has the copy open to write, another
/// test may start something that inherits it, and a file that somebody writes to cannot be executed.
///
/// # Errors
/// When it cannot be copied.
pub fn copy_program(from: impl AsRef<Path>, to: impl AsRef<Path>) -> anyhow::Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let copied = Command::new("cp").arg("--").args([from, to]).status()?;
    ensure!(copied.success(), "cannot copy `{}`", from.display());
    Ok(())
}

/// Runs a program of others to its end; a missing one fails the test with the line that installs it.
///
/// # Errors
/// When it cannot be run, or does not end; it is ended then.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| {
        format!("this test needs `{program}`: run tests/run, which installs what is missing")
    })?;
    let pid = Pid::from_child(&child);
    let (ended, end) = mpsc::sync_channel(1);
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    match end.recv_timeout(LONGEST_RUN) {
        Ok(output) => Ok(output?),
        Err(_) => {
            kill_process(pid, Signal::KILL)?;
            bail!("`{program} {}` does not end", arguments.join(" "));
        }
    }
}

/// The longest that a test does itself takes less; what hangs must not hang all of the tests.
const LONGEST_RUN: Duration = Duration::from_secs(600);

/// The lines that a program printed which must end well; `what` is told where it does not.
///
/// # Errors
/// What it said on standard error.
pub fn lines(output: &Output, what: &str) -> anyhow::Result<Vec<String>> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {error}");
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// When there is none within twenty seconds.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
