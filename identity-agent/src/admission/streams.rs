//! How many requests are open on the socket, in all, for each process and for each user.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use prometheus_client::metrics::gauge::Gauge;

use crate::shares::Shares;

#[derive(Debug)]
pub(super) struct Streams {
    limits: Limits,
    all: AtomicUsize,
    by_process: Shares<i32>,
    by_user: Shares<u32>,
}

/// How many there may be at once.
#[derive(Debug, Clone, Copy)]
struct Limits {
    all: usize,
    of_process: usize,
    of_user: usize,
}

impl Default for Streams {
    fn default() -> Self {
        Self::within(LIMITS)
    }
}

impl Streams {
    fn within(limits: Limits) -> Self {
        Self {
            limits,
            all: AtomicUsize::new(0),
            by_process: Shares::default(),
            by_user: Shares::default(),
        }
    }

    /// Counts one more, unless there are too many: then nothing is left behind.
    pub(super) fn open(
        self: Arc<Self>,
        (pid, uid): (i32, u32),
        gauge: &Gauge,
    ) -> Option<OpenStream> {
        let limit = self.limits.all;
        let one_more = |all: usize| (all < limit).then_some(all + 1);
        let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
        self.all.fetch_update(set, read, one_more).ok()?;
        if !self.by_user.take(uid, self.limits.of_user) {
            self.all.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if !self.by_process.take(pid, self.limits.of_process) {
            self.by_user.give_back(uid);
            self.all.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        gauge.inc();
        Some(OpenStream {
            streams: self,
            gauge: gauge.clone(),
            pid,
            uid,
        })
    }
}

/// One open stream; counted off when it is dropped, however it ended.
#[derive(Debug)]
pub(crate) struct OpenStream {
    streams: Arc<Streams>,
    gauge: Gauge,
    pid: i32,
    uid: u32,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.gauge.dec();
        self.streams.all.fetch_sub(1, Ordering::Relaxed);
        self.streams.by_process.give_back(self.pid);
        self.streams.by_user.give_back(self.uid);
    }
}

/// Of a user three quarters: nobody has all of them.
const LIMITS: Limits = Limits {
    all: 10_000,
    of_process: 256,
    of_user: 7_500,
};

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::Ordering};

    use prometheus_client::metrics::gauge::Gauge;

    use super::{Limits, OpenStream, Streams};

    struct Counted {
        streams: Arc<Streams>,
        gauge: Gauge,
    }

    impl Counted {
        fn within(all: usize, of_process: usize, of_user: usize) -> Self {
            let limits = Limits {
                all,
                of_process,
                of_user,
            };
            Self {
                streams: Arc::new(Streams::within(limits)),
                gauge: Gauge::default(),
            }
        }

        fn open(&self, pid: i32, uid: u32) -> Option<OpenStream> {
            self.streams.clone().open((pid, uid), &self.gauge)
        }

        /// In all, processes with any, users with any.
        fn left(&self) -> (usize, usize, usize) {
            let Streams {
                all,
                by_process,
                by_user,
                ..
            } = &*self.streams;
            assert_eq!(
                i64::try_from(all.load(Ordering::Relaxed)).unwrap(),
                self.gauge.get()
            );
            (all.load(Ordering::Relaxed), by_process.len(), by_user.len())
        }
    }

    #[test]
    fn a_process_a_user_and_all_have_so_many_and_others_are_not_refused_for_it() {
        // FAULTS 25
        let counted = Counted::within(6, 2, 3);
        let _of_seven = [counted.open(7, 1).unwrap(), counted.open(7, 1).unwrap()];
        assert!(counted.open(7, 1).is_none());
        let _of_eight = counted.open(8, 1).unwrap();
        assert!(counted.open(8, 1).is_none(), "three of one user");
        let more = [
            counted.open(9, 2).unwrap(),
            counted.open(9, 2).unwrap(),
            counted.open(10, 2).unwrap(),
        ];
        assert!(counted.open(11, 3).is_none(), "six in all");
        drop(more);
        assert!(counted.open(11, 3).is_some());
    }

    #[test]
    fn who_is_refused_or_goes_leaves_nothing_behind() {
        // FAULTS 28
        let counted = Counted::within(4, 2, 3);
        let mut held = vec![counted.open(1, 1).unwrap(), counted.open(1, 1).unwrap()];
        // Of a process that has enough, under a user who has none.
        assert!(counted.open(1, 9).is_none());
        assert_eq!(counted.left(), (2, 1, 1));
        // Of a user who has enough, by processes that have none.
        held.push(counted.open(2, 1).unwrap());
        for pid in 100..200 {
            assert!(counted.open(pid, 1).is_none());
        }
        assert_eq!(counted.left(), (3, 2, 1));
        // All have enough.
        held.push(counted.open(3, 2).unwrap());
        assert!(counted.open(4, 4).is_none());
        assert_eq!(counted.left(), (4, 3, 2));
        drop(held);
        assert_eq!(counted.left(), (0, 0, 0));
    }
}
