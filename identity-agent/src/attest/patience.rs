//! How long the file system of a workload is waited for.
//!
//! One in user space or behind a network answers when its server likes, and whoever asks it hangs for as
//! long, in the kernel, where nothing ends it. So it is asked on a thread of its own, which is left behind
//! when there is no answer in time. Such threads are bounded: in one lane, that of a user on one file
//! system, one look is made after the other, and while one hangs the next is refused at once. A user has so
//! many lanes, and all have so many.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{major, minor};

use super::{
    procfs,
    reading::{Lack, known, read_as},
};

/// Has something looked at that may never answer, and waits for a while.
///
/// # Errors
/// [`Lack`]: there is no answer. The look goes on, and what it keeps is there for the next one.
pub(super) fn patiently<T: Send + 'static>(
    lane: Lane,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Lack> {
    static ALL: LazyLock<Arc<Lanes>> = LazyLock::new(|| Lanes::within(LIMITS));
    ALL.look(lane, look)
}

/// Where looks are made one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    /// The user whose process it is about.
    pub(super) uid: u32,
    /// The file system, by the number of its device.
    pub(super) device: u64,
    /// What is asked: who reads large files holds up nobody who asks for names.
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum What {
    Names,
    Contents,
}

impl Lane {
    /// That of a process, by its folder under `/proc` or that of a thread of it.
    pub(super) fn of(folder: &Path, device: u64, what: What) -> Result<Self, Lack> {
        // Its own word, and not whose folder it is: who may not be traced has a folder of root's.
        let status = known(read_as(&folder.join("status"), procfs::status))?;
        // Of one that has ended nothing more is to be had, whoever's it was.
        let uid = status.map_or(0, |status| {
            let [_, effective, ..] = status.uids;
            effective
        });
        Ok(Self { uid, device, what })
    }

    fn unanswered(&self, patience: Duration) -> Lack {
        let (Self { uid, device, .. }, seconds) = (self, patience.as_secs_f32());
        let (major, minor) = (major(*device), minor(*device));
        Lack::because(format!(
            "the file system {major}:{minor}, where a process of user {uid} has its program or its \
             root, gives no answer within {seconds} s; its server has to answer or to be ended"
        ))
    }
}

#[derive(Debug)]
struct Lanes {
    limits: Limits,
    /// Those in which a look is made, and when it began.
    busy: Mutex<HashMap<Lane, Instant>>,
    freed: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    patience: Duration,
    of_user: usize,
    all: usize,
}

/// A lane that is taken, until this is dropped.
struct Taken {
    lane: Lane,
    lanes: Arc<Lanes>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.lanes.locked().remove(&self.lane);
        self.lanes.freed.notify_all();
    }
}

impl Lanes {
    fn within(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            busy: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Lane, Instant>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look<T: Send + 'static>(
        self: &Arc<Self>,
        lane: Lane,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lack> {
        let unanswered = || lane.unanswered(self.limits.patience);
        let deadline = Instant::now() + self.limits.patience;
        let taken = self.take(lane, deadline).ok_or_else(unanswered)?;
        let (tell, answer) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("look".into())
            .stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || {
            let found = look();
            drop(taken);
            // Nobody waits any more when it took too long.
            let _ = tell.send(found);
        });
        spawned.map_err(|error| Lack::because(format!("no thread can be started: {error}")))?;
        let left = deadline.saturating_duration_since(Instant::now());
        answer.recv_timeout(left).map_err(|_| unanswered())
    }

    /// Is there room for one lane more beside these?
    fn has_room<'a>(&self, lane: Lane, taken: impl Iterator<Item = &'a Lane> + Clone) -> bool {
        let of_user = taken.clone().filter(|one| one.uid == lane.uid).count();
        of_user < self.limits.of_user && taken.count() < self.limits.all
    }

    /// Waits for its turn in a lane. None if it does not come, or cannot be expected to.
    fn take(self: &Arc<Self>, lane: Lane, deadline: Instant) -> Option<Taken> {
        let mut busy = self.locked();
        loop {
            let now = Instant::now();
            let Limits { patience, .. } = self.limits;
            let hangs = |began: &Instant| now.duration_since(*began) >= patience;
            let hanging = busy.iter().filter(|(_, began)| hangs(began));
            let hanging: Vec<Lane> = hanging.map(|(one, _)| *one).collect();
            match busy.contains_key(&lane) {
                true if hanging.contains(&lane) => return None,
                false if self.has_room(lane, busy.keys()) => {
                    busy.insert(lane, now);
                    let lanes = self.clone();
                    return Some(Taken { lane, lanes });
                }
                // All that might be waited for hang.
                false if !self.has_room(lane, hanging.iter()) => return None,
                _ if now >= deadline => return None,
                _ => {}
            }
            let wait = self.freed.wait_timeout(busy, deadline - now);
            busy = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Longer than any disk takes to tell of a file, and shorter than clients wait for an identity.
const LIMITS: Limits = Limits {
    patience: Duration::from_secs(2),
    of_user: 4,
    all: 32,
};

/// A look needs little.
const STACK_BYTES: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        time::{Duration, Instant},
    };

    use super::{Lane, Lanes, Limits, What};

    /// Longer than a busy machine needs for a thread.
    const PATIENCE: Duration = Duration::from_secs(1);

    fn lanes(patience: Duration) -> Arc<Lanes> {
        Lanes::within(Limits {
            patience,
            of_user: 2,
            all: 3,
        })
    }

    fn lane(uid: u32, device: u64) -> Lane {
        let what = What::Names;
        Lane { uid, device, what }
    }

    /// Has a look hang until what is returned here is dropped.
    fn hang(lanes: &Arc<Lanes>, lane: Lane) -> mpsc::SyncSender<()> {
        let (end, wait) = mpsc::sync_channel(1);
        let hung = lanes.look(lane, move || wait.recv().is_ok());
        assert!(hung.is_err());
        end
    }

    #[test]
    fn a_look_that_hangs_holds_up_its_own_lane_and_that_one_at_once() {
        let lanes = lanes(PATIENCE);
        let end = hang(&lanes, lane(1, 7));
        let refused = lanes.look(lane(1, 7), || panic!("it is made while one hangs"));
        let error = refused.unwrap_err().to_string();
        assert!(
            error.contains("file system 0:7") && error.contains("user 1"),
            "{error}"
        );
        for other in [lane(1, 8), lane(2, 7)] {
            assert_eq!(lanes.look(other, || 5), Ok(5), "{other:?}");
        }
        let contents = Lane {
            what: What::Contents,
            ..lane(1, 7)
        };
        assert_eq!(lanes.look(contents, || 5), Ok(5));
        drop(end);
        let end = Instant::now() + Duration::from_secs(20);
        while lanes.look(lane(1, 7), || 5).is_err() {
            assert!(Instant::now() < end, "its lane is never free again");
        }
        assert!(lanes.locked().is_empty());
    }

    #[test]
    fn a_user_has_so_many_threads_that_hang_and_all_have_so_many() {
        let lanes = lanes(PATIENCE);
        let mut ends = vec![hang(&lanes, lane(1, 1)), hang(&lanes, lane(1, 2))];
        assert!(lanes.look(lane(1, 3), || ()).is_err(), "two of one user");
        assert!(lanes.look(lane(2, 3), || ()).is_ok());
        ends.push(hang(&lanes, lane(2, 3)));
        assert!(lanes.look(lane(3, 4), || ()).is_err(), "three in all");
        assert_eq!(lanes.locked().len(), 3);
    }

    #[test]
    fn who_comes_while_another_looks_waits_for_his_turn() {
        let lanes = lanes(Duration::from_secs(20));
        let (go, wait) = mpsc::sync_channel(1);
        let (began, begun) = mpsc::sync_channel(1);
        let first = std::thread::spawn({
            let lanes = lanes.clone();
            move || {
                lanes.look(lane(1, 1), move || {
                    began.send(()).unwrap();
                    wait.recv().unwrap();
                })
            }
        });
        begun.recv().unwrap();
        let second = std::thread::spawn({
            let lanes = lanes.clone();
            move || lanes.look(lane(1, 1), || 5)
        });
        go.send(()).unwrap();
        assert_eq!(first.join().unwrap(), Ok(()));
        assert_eq!(second.join().unwrap(), Ok(5));
    }
}
