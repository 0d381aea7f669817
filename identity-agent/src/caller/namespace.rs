//! Which PID namespace the agent is in: whom it cannot see it cannot attest.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};

use crate::{
    attest::{
        cgroup::Groups,
        reading::{inode, read_text},
    },
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

/// Is the agent's namespace that of a container, and not of a machine?
fn is_containers() -> bool {
    let own = inode(Path::new("/proc/self/ns/pid"));
    let groups = |of: &str| Groups::parse(&read_text(Path::new(of)).ok()?);
    let is_apart = || match (groups("/proc/self/cgroup"), groups("/proc/1/cgroup")) {
        (Some(own), Some(first)) => is_machines(&own, &first),
        _ => false,
    };
    own != Ok(FIRST_NAMESPACE) && !is_apart()
}

/// Pure: is the first process that of a machine, which may be a container itself? It has a control group apart then,
/// for an init. Where containers share a namespace, the first process is in the very group of one of them.
fn is_machines(own: &Groups, first: &Groups) -> bool {
    own != first && !first.end_in_a_container()
}

/// Spec: the kernel's `linux/proc_ns.h`, `PROC_PID_INIT_INO`.
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;

const MEND: &str = "run it in the host's PID namespace (`--pid host`, `hostPID: true`), or say \
                    `workloadApi.pidNamespace: own` where all that call it are in there, too";

#[cfg(test)]
mod tests {
    use super::is_machines;
    use crate::attest::cgroup::Groups;

    #[test]
    fn an_init_is_a_machines_and_the_process_of_a_container_is_none() {
        let id = "a".repeat(64);
        let own = format!("0::/kubepods/pod1/{id}\n");
        for (first, expected) in [
            ("0::/init.scope\n".to_owned(), true),
            ("0::/../../init.scope\n".to_owned(), true),
            (format!("0::/docker/{id}/init.scope\n"), true),
            (own.clone(), false),
            (format!("0::/../{}\n", "b".repeat(64)), false),
            (format!("0::/../cri-containerd-{id}.scope\n"), false),
        ] {
            let [own, first] = [&own, &first].map(|text| Groups::parse(text).unwrap());
            assert_eq!(is_machines(&own, &first), expected, "{first:?}");
        }
    }
}
