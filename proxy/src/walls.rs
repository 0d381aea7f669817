//! The walls that the proxy puts around itself: a Landlock fence and a filter of system calls.
//!
//! They come after the access log was opened, which is the last file that is written. From then on no thread
//! but those two that write the logs changes anything on the disk or executes anything: a fence binds only the
//! calling thread and those that it starts later. Reading stays, for policies, certificates and names.

use std::fs;

use anyhow::Context as _;
use postern_harden::{Fence, Profile};
use postern_policies::yaml::walls::{Filter, Walls};

/// Puts up what was asked for, and says which walls stand.
pub(crate) fn put_up(walls: &Walls) -> anyhow::Result<()> {
    // Before the filter, which lets nobody put up a fence.
    let landlock = match walls.landlock {
        Some(false) => {
            tracing::warn!("`walls.landlock` is off: a bug in the proxy may write files");
            "off".to_owned()
        }
        _ => Fence::default().put_up()?.to_string(),
    };
    let Some((name, profile)) = profile(walls)? else {
        tracing::warn!("`walls.seccomp` is off: a bug in the proxy reaches every system call");
        tracing::info!(
            seccomp = "off",
            landlock,
            no_new_privs = true,
            "walls stand"
        );
        return Ok(());
    };
    profile.enforce().context(
        "`walls.seccomp`; a profile around this container must allow the call `seccomp`",
    )?;
    tracing::info!(seccomp = name, landlock, no_new_privs = true, "walls stand");
    Ok(())
}

/// The profile of system calls and its name, if one is asked for.
///
/// # Errors
/// It cannot be read, or is none.
pub(crate) fn profile(walls: &Walls) -> anyhow::Result<Option<(String, Profile)>> {
    let (name, text) = match &walls.seccomp {
        Filter::Off => return Ok(None),
        Filter::Shipped => ("proxy".to_owned(), SHIPPED.to_owned()),
        Filter::File(path) => {
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read `walls.seccomp`, `{}`", path.display()))?;
            (path.display().to_string(), text)
        }
    };
    let profile = Profile::parse(&name, &text)?;
    Ok(Some((name, profile)))
}

const SHIPPED: &str = include_str!("../../deploy/seccomp/proxy.json");
