//! How one stage starts the next: the same file, with the number of a descriptor that holds the plan.

use std::{
    ffi::OsString,
    fs::File,
    io::{Seek as _, Write as _},
    os::fd::AsRawFd as _,
    process::Command,
};

use anyhow::Context as _;
use rustix::{fs::MemfdFlags, io::FdFlags};

use crate::plan::Plan;

/// A stage behind the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Init,
    Confine,
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Self::Init => "--stage=init",
            Self::Confine => "--stage=confine",
        }
    }

    /// Reads the first two arguments.
    pub(crate) fn of(word: Option<OsString>, number: Option<OsString>) -> Option<(Self, i32)> {
        let word = word?;
        let stage = [Self::Init, Self::Confine]
            .into_iter()
            .find(|stage| word == stage.word())?;
        let number = number?.to_str()?.parse().ok()?;
        Some((stage, number))
    }

    /// The command that runs it.
    pub(crate) fn command(self, plan: i32) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg(self.word()).arg(plan.to_string());
        command
    }
}

/// Writes a plan where the next stages find it.
///
/// # Errors
/// The kernel's own.
pub(crate) fn write(plan: &Plan) -> anyhow::Result<File> {
    let mut file = memory("postern-run plan")?;
    serde_json::to_writer(&mut file, plan)?;
    file.flush()?;
    Ok(file)
}

/// A file in memory that the next stage inherits.
///
/// # Errors
/// The kernel's own.
pub(crate) fn memory(name: &str) -> anyhow::Result<File> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::empty())
        .context("cannot make a file in memory")?;
    Ok(File::from(file))
}

/// Reads the plan.
///
/// # Errors
/// When the descriptor holds none: somebody else than `postern-run` started this.
pub(crate) fn read(number: i32) -> anyhow::Result<Plan> {
    let mut file = open(number)?;
    file.rewind()?;
    serde_json::from_reader(file).context("the plan cannot be read")
}

/// Opens an inherited descriptor anew.
///
/// # Errors
/// The kernel's own.
pub(crate) fn open(number: i32) -> anyhow::Result<File> {
    let path = format!("/proc/self/fd/{number}");
    File::options()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open `{path}`"))
}

/// Lets the next stage inherit a descriptor, and tells its number.
///
/// # Errors
/// The kernel's own.
pub(crate) fn inherit(file: &impl std::os::fd::AsFd) -> anyhow::Result<i32> {
    rustix::io::fcntl_setfd(file, FdFlags::empty())?;
    Ok(file.as_fd().as_raw_fd())
}
