//! The walls that a daemon puts around itself at start.
//!
//! A leaf: it knows the kernel's calls and nothing of Postern. Each wall is one function, and a
//! wall that cannot be put up is an error, never a shrug. All of them bind the calling thread and
//! the threads it starts later, so they belong at the top of `main`, before any runtime; only a
//! seccomp filter binds the threads that are there already.

#![forbid(unsafe_code)]

mod fence;
mod seccomp;

use caps::{CapSet, CapsHashSet};

pub use caps::Capability;
pub use fence::{Fence, Reached};
pub use seccomp::{Filter, NotEnforced, Profile, ProfileError};

/// Sets `no_new_privs`: from here on no set-uid file and no file capability gives this process,
/// or any that it starts, a right that it does not have now. It cannot be undone.
///
/// # Errors
/// The kernel's own; callers do not start.
pub fn no_new_privileges() -> Result<(), HardenError> {
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| HardenError::new("set no_new_privs", &error))
}

/// Makes the process not dumpable: no core file holds its keys, and no other process of the same
/// user may read its memory or attach to it.
///
/// # Errors
/// The kernel's own; callers do not start.
pub fn not_dumpable() -> Result<(), HardenError> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| HardenError::new("make the process not dumpable", &error))
}

/// Forbids core files by the resource limit, hard and soft: what remains of [`not_dumpable`] where
/// the process must stay readable to its own user.
///
/// # Errors
/// The kernel's own; callers do not start.
pub fn no_core_files() -> Result<(), HardenError> {
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(rustix::process::Resource::Core, none)
        .map_err(|error| HardenError::new("forbid core files", &error))
}

/// Raises the number of descriptors that may be open to as many as the process may have: the lower one
/// that is usual is for programs that still use `select`.
///
/// # Errors
/// The kernel's own; callers do not start.
pub fn all_descriptors() -> Result<(), HardenError> {
    let resource = rustix::process::Resource::Nofile;
    let limit = rustix::process::getrlimit(resource);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(resource, raised)
        .map_err(|error| HardenError::new("raise the number of descriptors", &error))
}

/// Drops every capability but the named ones, from all five sets. Of the named ones only those
/// that the process has are kept: nothing is gained here.
///
/// # Errors
/// The kernel's own; callers do not start.
pub fn keep_capabilities(keep: &[Capability]) -> Result<(), HardenError> {
    let failed = |error: caps::errors::CapsError| HardenError::new("drop capabilities", &error);
    let keep: CapsHashSet = keep.iter().copied().collect();

    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    // The bounding set may be lowered only while CAP_SETPCAP is in effect, so it goes first; a
    // process without it has no way to raise itself either, once no_new_privs is set.
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed)?;
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(failed)? {
            if !keep.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
            }
        }
    }
    let kept: CapsHashSet = permitted.intersection(&keep).copied().collect();
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(failed)?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)
}

/// A wall that could not be put up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {wall}: {cause}")]
pub struct HardenError {
    wall: &'static str,
    cause: String,
}

impl HardenError {
    fn new(wall: &'static str, cause: &dyn std::fmt::Display) -> Self {
        Self {
            wall,
            cause: cause.to_string(),
        }
    }
}
