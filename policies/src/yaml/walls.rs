//! `walls: {seccomp: on | off | FILE, landlock: on | off}`: what a daemon puts around itself.
//!
//! Read here because both daemons have it, and never depend on each other.

use std::path::{Path, PathBuf};

use super::{Fields, Node, Value, fields};
use crate::diagnostic::Problems;

/// What was written, or is so by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walls {
    /// The filter of system calls.
    pub seccomp: Filter,
    /// The fence around files; `None` if nothing was written.
    pub landlock: Option<bool>,
}

/// Which filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// The one that comes with the program.
    Shipped,
    /// None.
    Off,
    /// A profile in the form of Docker and OCI.
    File(PathBuf),
}

/// Reads the section. Relative paths are relative to `folder`.
pub fn read(all: &Fields<'_>, folder: &Path, problems: &mut Problems<'_>) -> Option<Walls> {
    let mut walls = Walls {
        seccomp: Filter::Shipped,
        landlock: None,
    };
    let Some(node) = all.get("walls") else {
        return Some(walls);
    };
    let section = Fields::of(node, "walls", &["seccomp", "landlock"], problems)?;
    if let Some(node) = section.get("seccomp") {
        walls.seccomp = filter(node, folder, problems)?;
    }
    if let Some(node) = section.get("landlock") {
        let Value::Bool(on) = node.value else {
            problems.error(node.at, "`walls.landlock` must be `on` or `off`");
            return None;
        };
        walls.landlock = Some(on);
    }
    Some(walls)
}

/// YAML takes `on` and `off` for booleans.
fn filter(node: &Node, folder: &Path, problems: &mut Problems<'_>) -> Option<Filter> {
    match node.value {
        Value::Bool(true) => Some(Filter::Shipped),
        Value::Bool(false) => Some(Filter::Off),
        _ => fields::filled(node, "walls.seccomp", problems)
            .map(|file| Filter::File(folder.join(file))),
    }
}
