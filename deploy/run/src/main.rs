//! `postern-run`: starts a program inside walls.
//!
//! Three processes, each this same file: the first one (`start`) makes control groups and namespaces and
//! waits outside; the second (`init`) is process 1 inside, builds the view of the file system and reaps;
//! the third (`confine`) gives up every right, closes the last walls around itself and becomes the
//! program. Stages are executed, not forked, so that no code runs between fork and exec.

#![forbid(unsafe_code)]

mod cgroup;
mod cli;
mod confine;
mod init;
mod learn;
mod network;
mod plan;
mod signals;
mod size;
mod stage;
mod start;
mod view;
mod wishes;

use std::process::ExitCode;

/// What ends a run before the program does anything; the codes are those of `docker run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failed {
    /// Wrong use, or a wall that cannot be put up.
    Here,
    /// The program is there and cannot be executed.
    NotExecutable,
    /// There is no such program.
    NotFound,
}

impl From<Failed> for ExitCode {
    fn from(failed: Failed) -> Self {
        Self::from(match failed {
            Failed::Here => 125,
            Failed::NotExecutable => 126,
            Failed::NotFound => 127,
        })
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    match stage::Stage::of(arguments.nth(1), arguments.next()) {
        None => cli::run(),
        Some((stage::Stage::Init, number)) => init::run(number),
        Some((stage::Stage::Confine, number)) => confine::run(number),
    }
}

/// Tells the caller something; with standard error gone there is nobody to tell.
fn notice(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "postern-run: {text}");
}

/// Tells why a run ends here.
fn complain(error: &anyhow::Error) -> ExitCode {
    notice(&format!("{error:#}"));
    Failed::Here.into()
}
