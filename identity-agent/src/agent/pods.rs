//! The pods that something is remembered of: SVIDs, deviations.
//!
//! They are known by numbers, and the kernel gives a number out again: that of a network namespace as
//! soon as the namespace is gone, that of a session some time after its last process. So a namespace is
//! held open, which keeps its number, and what is remembered of a pod is forgotten when its last
//! process has ended. A pod that is missed in one look may have been changing its processes just then;
//! one that is missed twice has none.
//!
//! The number of a session cannot be held, and nothing is held while the agent does not run. There a pod
//! has to show that it is still the same (`presence.rs`), at every look and whenever somebody asks, before
//! anything that is remembered counts for him.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    os::unix::fs::MetadataExt as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::presence::{Members, Seen, Standing, now, started_in};
use crate::{
    attest::{
        AttestError, Pod,
        reading::{Lack, ReadError},
    },
    caller::PinnedProcess,
};

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Pods(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The network namespaces that are held open, each until its pod is forgotten.
    kept: HashMap<Pod, File>,
    missed: HashSet<Pod>,
    /// What shows that a pod is the same; of all that something is remembered of.
    seen: HashMap<Pod, Seen>,
}

impl Pods {
    /// What is remembered of them from before the agent was started.
    pub(super) fn of_before(seen: HashMap<Pod, u64>) -> Self {
        let of = |(pod, at)| (pod, Seen { at, member: 0 });
        Self(Mutex::new(Inner {
            seen: seen.into_iter().map(of).collect(),
            ..Inner::default()
        }))
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the number of a pod, of which a process is a member, or what shows that the pod is the same. If
    /// it is another one than before, `forget` is called first, while nobody else is told anything of it.
    /// Blocking.
    ///
    /// # Errors
    /// The process has left the pod meanwhile, or cannot be looked at; callers give no identity.
    pub(super) fn keep(
        &self,
        process: &PinnedProcess,
        pod: Pod,
        is_full: impl Fn(),
        forget: impl Fn(Standing),
    ) -> Result<(), AttestError> {
        if self.locked().kept.contains_key(&pod) {
            return Ok(());
        }
        let (at, member) = (now()?, process.pid());
        let started = process.read(|_| started_in(pod, member))??;
        let started = started.ok_or(AttestError::Restless)?;
        loop {
            let before = self.locked().seen.get(&pod).copied();
            // Looked at without the lock, which all callers take.
            let standing = match before {
                Some(before) if started > before.at => Members::default().standing(pod, before)?,
                // It was there then, or nothing is known of then.
                _ => Standing::Same { member },
            };
            let mut inner = self.locked();
            if inner.seen.get(&pod).copied() != before {
                // Somebody else has looked meanwhile.
                continue;
            }
            match standing {
                Standing::Same { .. } => {}
                another => forget(another),
            }
            inner.seen.insert(pod, Seen { at, member });
            break;
        }
        self.keep_open(process, pod, is_full)
    }

    /// Keeps a network namespace open.
    fn keep_open(
        &self,
        process: &PinnedProcess,
        pod: Pod,
        is_full: impl Fn(),
    ) -> Result<(), AttestError> {
        let Pod::Network(inode) = pod else {
            return Ok(());
        };
        if self.locked().kept.len() >= MAX_KEPT {
            is_full();
            return Ok(());
        }
        let open = process.read(|folder| {
            let network = File::open(folder.join("ns/net"))?;
            let is_it = network.metadata()?.ino() == inode;
            Ok::<_, std::io::Error>(is_it.then_some(network))
        })?;
        let network = open
            .map_err(ReadError::from)?
            .ok_or(AttestError::Restless)?;
        self.locked().kept.entry(pod).or_insert(network);
        Ok(())
    }

    /// Looks at pods of which something is remembered, and calls `forget` for those that are not the same
    /// any more, while nobody is told anything of them. Blocking.
    ///
    /// # Errors
    /// It cannot be told of all of them.
    pub(super) fn check(
        &self,
        known: &HashSet<Pod>,
        mut forget: impl FnMut(Pod, Standing),
    ) -> Result<(), Lack> {
        // What is found out from here on holds for this moment, too.
        let (at, mut members) = (now()?, Members::default());
        for pod in known {
            let (is_kept, before) = {
                let inner = self.locked();
                (inner.kept.contains_key(pod), inner.seen.get(pod).copied())
            };
            if is_kept {
                continue;
            }
            // Looked at without the lock, which all callers take.
            let standing = match before {
                Some(before) => members.standing(*pod, before)?,
                // Of a version that did not write it down.
                None => Standing::Another,
            };
            let mut inner = self.locked();
            if inner.seen.get(pod).copied() != before {
                // Somebody has looked meanwhile.
                continue;
            }
            match (standing, before) {
                (Standing::Missed, _) => {}
                (Standing::Same { member }, before) => {
                    let at = before.map_or(at, |before| before.at.max(at));
                    inner.seen.insert(*pod, Seen { at, member });
                }
                _ => {
                    inner.seen.remove(pod);
                    forget(*pod, standing);
                }
            }
        }
        Ok(())
    }

    /// A moment in which a pod was the same, in ticks of the clock since the machine was started; the newest
    /// that is known.
    pub(super) fn seen_at(&self, pod: Pod) -> Option<u64> {
        let inner = self.locked();
        let seen = inner.seen.get(&pod).map(|seen| seen.at);
        match inner.kept.contains_key(&pod) {
            true => now().ok().or(seen),
            false => seen,
        }
    }

    /// Those whose number is kept.
    pub(super) fn kept(&self) -> HashSet<Pod> {
        self.locked().kept.keys().copied().collect()
    }

    /// Of pods that were known before a look, those that it missed for the second time in a row.
    pub(super) fn ended(&self, known: &HashSet<Pod>, present: &HashSet<Pod>) -> Vec<Pod> {
        let missed: HashSet<Pod> = known.difference(present).copied().collect();
        let mut inner = self.locked();
        let (ended, missed): (HashSet<Pod>, _) =
            missed.iter().partition(|pod| inner.missed.contains(pod));
        inner.missed = missed;
        ended.into_iter().collect()
    }

    /// Lets the number go: nothing is remembered of the pod any more.
    pub(super) fn let_go(&self, pod: Pod) {
        let mut inner = self.locked();
        inner.kept.remove(&pod);
        inner.seen.remove(&pod);
    }
}

/// More pods than a node runs. Further ones are served, and their numbers not kept.
const MAX_KEPT: usize = 1024;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::Pods;
    use crate::{
        attest::{AttestError, Pod, reading},
        caller::PinnedProcess,
    };

    #[test]
    fn a_pod_has_ended_when_it_is_missed_twice_in_a_row() {
        let pods = Pods::default();
        let [a, b, c] = [Pod::Network(1), Pod::Network(2), Pod::Session(3)];
        let known = HashSet::from([a, b, c]);
        let only = |pods: &[Pod]| pods.iter().copied().collect::<HashSet<_>>();
        assert_eq!(pods.ended(&known, &only(&[a])), []);
        assert_eq!(pods.ended(&known, &only(&[a, b])), [c], "`b` is back");
        assert_eq!(pods.ended(&only(&[a, b]), &only(&[a])), []);
        assert_eq!(pods.ended(&only(&[a, b]), &only(&[a])), [b]);
        assert_eq!(pods.ended(&only(&[a]), &only(&[a])), []);
    }

    #[test]
    fn the_number_of_a_network_is_kept_and_that_of_another_is_not() {
        let pods = Pods::default();
        let own = i32::try_from(std::process::id()).unwrap();
        let process = PinnedProcess::by_number(own).unwrap();
        let inode = reading::inode(std::path::Path::new("/proc/self/ns/net")).unwrap();
        let keep = |inode| {
            let is_another = |standing| panic!("it is new: {standing:?}");
            pods.keep(
                &process,
                Pod::Network(inode),
                || panic!("there is room"),
                is_another,
            )
        };
        keep(inode).unwrap();
        let other = keep(inode + 1);
        assert!(matches!(other, Err(AttestError::Restless)), "{other:?}");
        assert_eq!(pods.kept(), HashSet::from([Pod::Network(inode)]));
        pods.let_go(Pod::Network(inode));
        assert!(pods.kept().is_empty());
    }
}
