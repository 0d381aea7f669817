//! How often somebody may call, a process or a user: a bucket of calls each, filled steadily.

use std::{hash::Hash, time::Instant};

use dashmap::DashMap;

/// The calls of all, each by its number.
#[derive(Debug)]
pub(crate) struct Calls<K: Eq + Hash> {
    per_second: f64,
    burst: f64,
    by_number: DashMap<K, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Eq + Hash> Calls<K> {
    /// So many of each in a second, and so many at once.
    pub(crate) fn new(per_second: f64, burst: f64) -> Self {
        Self {
            per_second,
            burst,
            by_number: DashMap::new(),
        }
    }

    fn fill(&self, bucket: &mut Bucket, now: Instant) {
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + since * self.per_second).min(self.burst);
        bucket.at = now;
    }

    /// May this one call once more?
    pub(crate) fn take(&self, number: K, now: Instant) -> bool {
        if self.by_number.len() >= MAX_KNOWN {
            // Who has not called for a while has a full bucket, which is like none.
            self.by_number.retain(|_, bucket| {
                self.fill(bucket, now);
                bucket.left < self.burst
            });
        }
        let mut bucket = self.by_number.entry(number).or_insert(Bucket {
            left: self.burst,
            at: now,
        });
        self.fill(&mut bucket, now);
        let may = bucket.left >= 1.0;
        if may {
            bucket.left -= 1.0;
        }
        may
    }
}

const MAX_KNOWN: usize = 4096;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Calls, MAX_KNOWN};

    const BURST: f64 = 500.0;
    const CALLS_PER_SECOND: f64 = 100.0;

    fn takes(calls: &Calls<i32>, pid: i32, now: Instant) -> usize {
        (0..2000).take_while(|_| calls.take(pid, now)).count()
    }

    #[test]
    fn a_process_that_calls_too_often_waits_and_others_do_not() {
        // FAULTS 49
        let (calls, now) = (Calls::new(CALLS_PER_SECOND, BURST), Instant::now());
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
        let (calls, now) = (Calls::new(CALLS_PER_SECOND, BURST), Instant::now());
        for pid in 0..10_000 {
            let when = now + Duration::from_millis(u64::try_from(pid).unwrap());
            assert!(calls.take(pid, when));
        }
        assert!(calls.by_number.len() <= MAX_KNOWN);
    }
}
