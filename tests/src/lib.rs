//! What the cross-process tests share: real daemons in a folder of their own, their logs, and the
//! programs of others.

#![forbid(unsafe_code)]

pub mod certificates;
pub mod world;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

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
    match cfg!(debug_assertions) {
        // With the features that `cargo test --workspace` has built everything with already.
        true => command.args(["--test", "all"]),
        false => command.arg("--release"),
    };
    ensure!(command.status()?.success(), "the daemons do not build");
    Ok(folder.to_owned())
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a program of others; a missing one fails the test with the line that installs it.
///
/// # Errors
/// When it cannot be run.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| {
            format!("this test needs `{program}`: run tests/run, which installs what is missing")
        })
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
