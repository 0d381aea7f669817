//! What the kernel tells of processes as it happens, and who wants to know.
//!
//! A process that executes another program or changes its user is looked at again at once, not only
//! when the timer says so. Where the kernel does not tell (an agent without `CAP_NET_ADMIN`, or outside
//! the initial namespaces) the timer alone remains.

mod connector;
mod mounts;

use std::sync::{Arc, Weak};

use dashmap::DashMap;

use crate::{caller::PinnedProcess, rules::Class};

pub use connector::Kernel;
pub use mounts::Mounts;

/// What the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A process runs another program, or has another user or group.
    Changed(Class, i32),
    /// A process has made another one.
    Forked {
        /// Who.
        parent: i32,
        /// The new one.
        child: i32,
    },
    /// Somebody has begun to trace a process.
    Traced {
        /// Whom.
        process: i32,
        /// Who.
        tracer: i32,
    },
    /// More happened than there was room for.
    Lost(Source),
}

/// Who tells, or passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The process connector.
    Connector,
    /// The queue of what is to be judged.
    Queue,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Connector, Self::Queue];

    /// Its place in a set of them.
    pub(crate) fn bit(self) -> u8 {
        match self {
            Self::Connector => 1,
            Self::Queue => 2,
        }
    }

    /// As it is counted.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connector => "connector",
            Self::Queue => "queue",
        }
    }
}

/// The processes that somebody watches, by their numbers.
///
/// A number may pass on to another process; then one is looked at once more than needed.
#[derive(Debug, Default)]
pub struct Followed {
    by_number: DashMap<i32, Vec<Weak<PinnedProcess>>>,
}

impl Followed {
    /// Wakes those who wait for this process whenever the kernel tells something of it, for as long as
    /// it is held.
    pub fn follow(&self, process: &Arc<PinnedProcess>) {
        let mut known = self.by_number.entry(process.pid()).or_default();
        let is_known = |one: &Weak<PinnedProcess>| one.as_ptr() == Arc::as_ptr(process);
        if !known.iter().any(is_known) {
            known.retain(|one| one.strong_count() > 0);
            known.push(Arc::downgrade(process));
        }
    }

    /// Something happened to the process of this number.
    fn changed(&self, pid: i32) {
        if let Some(known) = self.by_number.get(&pid) {
            let held = known.iter().filter_map(Weak::upgrade);
            held.for_each(|process| process.has_changed());
        }
    }

    /// The kernel could not tell all that happened.
    fn all_changed(&self) {
        for known in &self.by_number {
            let held = known.iter().filter_map(Weak::upgrade);
            held.for_each(|process| process.has_changed());
        }
    }

    /// Forgets those whom nobody holds any more.
    pub fn forget_ended(&self) {
        self.by_number.retain(|_, known| {
            known.retain(|one| one.strong_count() > 0);
            !known.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Followed;
    use crate::caller::PinnedProcess;

    #[test]
    fn those_who_follow_a_process_hear_of_it_and_of_no_other() {
        let followed = Followed::default();
        let own = i32::try_from(std::process::id()).unwrap();
        let process = Arc::new(PinnedProcess::by_number(own).unwrap());
        followed.follow(&process);
        followed.follow(&process);
        assert_eq!(followed.by_number.get(&own).unwrap().len(), 1);
        let mut changes = process.changes();
        followed.changed(own + 1);
        assert!(!changes.has_changed().unwrap());
        followed.changed(own);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        followed.all_changed();
        assert!(changes.has_changed().unwrap());
        drop(process);
        followed.forget_ended();
        assert!(followed.by_number.is_empty());
    }
}
