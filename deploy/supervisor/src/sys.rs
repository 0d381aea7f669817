//! The two steps for which the standard library has no safe form: a descriptor that is known by its
//! number alone, and the environment.

#![expect(
    unsafe_code,
    reason = "inherited descriptors are numbers, and the environment is shared with the C library"
)]

use std::{
    fs,
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
};

use socket2::SockRef;

use crate::SupervisorError;

/// Takes over the inherited descriptor of this number, if it is open, and keeps it from programs that
/// are started later.
pub(crate) fn descriptor(number: i32) -> Option<OwnedFd> {
    // Not followed: it may lead to anything.
    fs::symlink_metadata(format!("/proc/self/fd/{number}")).ok()?;
    // SAFETY: it is open, as the kernel has just said. Nobody else in this process owns it: the
    // service manager opened it for whoever reads LISTEN_FDS, that variable is gone by now, and no
    // number is taken twice.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    SockRef::from(&descriptor).set_cloexec(true).ok()?;
    Some(descriptor)
}

/// Takes variables out of the environment.
///
/// # Errors
/// Where one of them is set and another thread might be reading it.
pub(crate) fn forget(variables: &[&str]) -> Result<(), SupervisorError> {
    let set = variables
        .iter()
        .filter(|name| std::env::var_os(name).is_some());
    for name in set {
        if !is_alone() {
            return Err(SupervisorError::Threads);
        }
        // SAFETY: this is the only thread, so nobody reads or writes the environment meanwhile.
        #[expect(clippy::disallowed_methods, reason = "there is no other thread")]
        unsafe {
            std::env::remove_var(name);
        }
    }
    Ok(())
}

/// Is this the only thread of the process? It can start others, and nobody else can.
fn is_alone() -> bool {
    fs::read_dir(Path::new("/proc/self/task")).is_ok_and(|all| all.count() == 1)
}
