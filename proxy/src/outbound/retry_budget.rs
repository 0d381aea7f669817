//! How many retries there may be: a share of the requests of the last seconds, and a few at any
//! rate. So retries cannot multiply the load of an upstream that fails because of load. Pure.

use std::time::{Duration, Instant};

/// What was asked and retried in the last seconds, a slot for each.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    slots: [Slot; SLOTS],
    /// The second that the newest slot counts.
    second: u64,
    start: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    requests: u32,
    retries: u32,
}

impl RetryBudget {
    /// Nothing was asked yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            slots: [Slot::default(); SLOTS],
            second: 0,
            start: now,
        }
    }

    /// A request that is no retry.
    pub(crate) fn asked(&mut self, now: Instant) {
        let slot = self.slot(now);
        slot.requests = slot.requests.saturating_add(1);
    }

    /// Takes one retry, if there is one left: `percent` of the requests, and `floor` a second.
    pub(crate) fn take(&mut self, percent: u32, floor: u32, now: Instant) -> bool {
        self.slot(now);
        let (requests, retries) =
            self.slots
                .iter()
                .fold((0_u64, 0_u64), |(requests, retries), slot| {
                    (
                        requests + u64::from(slot.requests),
                        retries + u64::from(slot.retries),
                    )
                });
        let allowed = requests * u64::from(percent) / 100 + u64::from(floor) * WINDOW.as_secs();
        if retries >= allowed {
            return false;
        }
        let slot = self.slot(now);
        slot.retries = slot.retries.saturating_add(1);
        true
    }

    /// The slot of this second; those of seconds that passed begin anew.
    fn slot(&mut self, now: Instant) -> &mut Slot {
        let second = now.saturating_duration_since(self.start).as_secs();
        let passed = second.saturating_sub(self.second);
        for step in 1..=passed.min(WINDOW.as_secs()) {
            *Self::at(&mut self.slots, self.second + step) = Slot::default();
        }
        self.second = self.second.max(second);
        Self::at(&mut self.slots, self.second)
    }

    fn at(slots: &mut [Slot; SLOTS], second: u64) -> &mut Slot {
        let [first, rest @ ..] = slots;
        let place = usize::try_from(second % WINDOW.as_secs()).unwrap_or_default();
        match place.checked_sub(1).and_then(|place| rest.get_mut(place)) {
            Some(slot) => slot,
            None => first,
        }
    }
}

const SLOTS: usize = 10;
const WINDOW: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::RetryBudget;

    fn taken(budget: &mut RetryBudget, percent: u32, floor: u32, now: Instant) -> u32 {
        (0..1000)
            .map(|_| u32::from(budget.take(percent, floor, now)))
            .sum()
    }

    #[test]
    fn there_are_as_many_as_the_share_and_the_floor_say() {
        for (requests, percent, floor, expected) in [
            (0, 20, 0, 0),
            (0, 20, 1, 10),
            (100, 20, 0, 20),
            (100, 20, 1, 30),
            (100, 0, 0, 0),
            (4, 20, 0, 0),
            (5, 20, 0, 1),
        ] {
            let now = Instant::now();
            let mut budget = RetryBudget::new(now);
            for _ in 0..requests {
                budget.asked(now);
            }
            let found = taken(&mut budget, percent, floor, now);
            assert_eq!(found, expected, "{requests} {percent} {floor}");
        }
    }

    #[test]
    fn what_is_longer_ago_than_the_window_does_not_count() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(start);
        (0..100).for_each(|_| budget.asked(start));
        let almost = start + Duration::from_secs(9);
        assert_eq!(taken(&mut budget, 20, 0, almost), 20);
        let later = start + Duration::from_secs(10);
        assert_eq!(
            taken(&mut budget, 20, 0, later),
            0,
            "the retries count longer"
        );
        let much_later = start + Duration::from_secs(3600);
        assert_eq!(taken(&mut budget, 20, 0, much_later), 0);
        (0..10).for_each(|_| budget.asked(much_later));
        assert_eq!(taken(&mut budget, 20, 0, much_later), 2);
    }
}
