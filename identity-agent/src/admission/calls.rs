//! How often a process may call: a bucket of calls each, filled steadily.

use std::time::Instant;

use dashmap::DashMap;

/// The calls of all processes.
#[derive(Debug, Default)]
pub(super) struct Calls {
    by_process: DashMap<i32, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * CALLS_PER_SECOND).min(BURST);
        self.at = now;
    }
}

impl Calls {
    /// May this process call once more?
    pub(super) fn take(&self, pid: i32, now: Instant) -> bool {
        if self.by_process.len() >= MAX_PROCESSES {
            // Who has not called for a while has a full bucket, which is like none.
            self.by_process.retain(|_, bucket| {
                bucket.fill(now);
                bucket.left < BURST
            });
        }
        let mut bucket = self.by_process.entry(pid).or_insert(Bucket {
            left: BURST,
            at: now,
        });
        bucket.fill(now);
        let may = bucket.left >= 1.0;
        if may {
            bucket.left -= 1.0;
        }
        may
    }
}

/// More tokens a second than any app needs that keeps them while they last.
const CALLS_PER_SECOND: f64 = 100.0;
const BURST: f64 = 500.0;

const MAX_PROCESSES: usize = 4096;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{BURST, CALLS_PER_SECOND, Calls, MAX_PROCESSES};

    fn takes(calls: &Calls, pid: i32, now: Instant) -> usize {
        (0..2000).take_while(|_| calls.take(pid, now)).count()
    }

    #[test]
    fn a_process_that_calls_too_often_waits_and_others_do_not() {
        // FAULTS 49
        let (calls, now) = (Calls::default(), Instant::now());
        assert_eq!(takes(&calls, 1, now) as f64, BURST);
        assert_eq!(takes(&calls, 1, now), 0);
        assert_eq!(takes(&calls, 2, now) as f64, BURST);
        let later = now + Duration::from_secs(1);
        assert_eq!(takes(&calls, 1, later) as f64, CALLS_PER_SECOND);
        assert_eq!(
            takes(&calls, 1, later + Duration::from_secs(3600)) as f64,
            BURST
        );
    }

    #[test]
    fn processes_that_are_gone_are_forgotten() {
        let (calls, now) = (Calls::default(), Instant::now());
        for pid in 0..10_000 {
            let when = now + Duration::from_millis(u64::try_from(pid).unwrap());
            assert!(calls.take(pid, when));
        }
        assert!(calls.by_process.len() <= MAX_PROCESSES);
    }
}
