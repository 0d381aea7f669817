//! The filter of system calls that the agent puts around itself.
//!
//! There is no Landlock fence, and there cannot be one: who is inside a fence looks into no process outside of
//! it, not at its namespaces and not at its program, and that is what an agent does.

use std::fs;

use anyhow::Context as _;
use postern_harden::Profile;
use postern_policies::yaml::walls::{Filter, Walls};

/// Puts up what was asked for, and says which walls stand.
pub(crate) fn put_up(walls: &Walls) -> anyhow::Result<()> {
    let Some((name, profile)) = profile(walls)? else {
        tracing::warn!("`walls.seccomp` is off: a bug in the agent reaches every system call");
        return Ok(());
    };
    profile.enforce().context(
        "`walls.seccomp`; a profile around this container must allow the call `seccomp`",
    )?;
    tracing::info!(
        seccomp = name,
        landlock = "none, an agent looks into other processes",
        no_new_privs = true,
        dumpable = false,
        "walls stand"
    );
    Ok(())
}

/// The profile of system calls and its name, if one is asked for.
///
/// # Errors
/// It cannot be read, or is none.
pub(crate) fn profile(walls: &Walls) -> anyhow::Result<Option<(String, Profile)>> {
    let (name, text) = match &walls.seccomp {
        Filter::Off => return Ok(None),
        Filter::Shipped => ("agent".to_owned(), SHIPPED.to_owned()),
        Filter::File(path) => {
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read `walls.seccomp`, `{}`", path.display()))?;
            (path.display().to_string(), text)
        }
    };
    let profile = Profile::parse(&name, &text)?;
    Ok(Some((name, profile)))
}

const SHIPPED: &str = include_str!("../../deploy/seccomp/agent.json");
