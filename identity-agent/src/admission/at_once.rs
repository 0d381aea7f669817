//! Answers on the thread that serves, for those about whom all is known: looked at a moment ago, and still
//! what they were. Anything that might have to be waited for is left to the other threads: looks at
//! processes that are not known, at pods for drift, and everything that signs.

use std::time::SystemTime;

use crate::{
    agent::{Agent, Entitled, keep_first_of_each_hint},
    caller::PinnedProcess,
};

/// What a process is entitled to, if that is known without waiting for anything. None says nothing
/// against it: somebody else has to look.
pub(super) fn entitled(agent: &Agent, process: &PinnedProcess) -> Option<Entitled> {
    let attested = agent.attestors.known(process)?;
    let set = agent.registry.current();
    if set.workloads().size_hint().0 > MAX_WORKLOADS {
        return None;
    }
    let mut entitled = Entitled::of(process, &attested, &set, SystemTime::now())?;
    let mut workloads = entitled.workloads.iter();
    if workloads.any(|workload| workload.baseline.is_some()) {
        return None;
    }
    keep_first_of_each_hint(&mut entitled.workloads);
    Some(entitled)
}

/// Comparing more of them takes long enough for others to notice.
const MAX_WORKLOADS: usize = 1_000;
