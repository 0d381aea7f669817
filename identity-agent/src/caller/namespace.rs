//! Which PID namespace the agent is in: whom it cannot see it cannot attest.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};

use crate::{
    attest::reading::{inode, read_text},
    config::Sees,
};

/// Tells what the agent lacks to see those that call it, if anything.
///
/// # Errors
/// `/proc` is that of another PID namespace: a number that the kernel tells would be somebody else's there.
pub(crate) fn lacks(sees: Sees) -> anyhow::Result<Option<String>> {
    let shown = fs::read_link("/proc/self").context("`/proc` does not show the agent")?;
    ensure!(
        shown == Path::new(&std::process::id().to_string()),
        "`/proc` shows another PID namespace than the agent's own, so its numbers are those of others; {MEND}"
    );
    let is_seen = sees == Sees::Own || !is_containers();
    Ok((!is_seen)
        .then(|| format!("the agent sees the processes of its own container alone; {MEND}")))
}

/// Is the agent's namespace that of a container, and not of a machine? A node that is a container itself has
/// an init of its own, in a control group apart.
fn is_containers() -> bool {
    let own = inode(Path::new("/proc/self/ns/pid"));
    let groups = |of: &str| read_text(Path::new(of)).ok();
    let is_apart = || match (groups("/proc/self/cgroup"), groups("/proc/1/cgroup")) {
        (Some(own), Some(first)) => own != first,
        _ => false,
    };
    own != Ok(FIRST_NAMESPACE) && !is_apart()
}

/// Spec: the kernel's `linux/proc_ns.h`, `PROC_PID_INIT_INO`.
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;

const MEND: &str = "run it in the host's PID namespace (`--pid host`, `hostPID: true`)";
