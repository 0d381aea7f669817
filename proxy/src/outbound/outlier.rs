//! Endpoints that fail again and again are left out for a while, each time for longer. Pure: time
//! and random numbers are given.

use std::time::{Duration, Instant};

use crate::config::delivery::Outlier;

/// How an endpoint did of late.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Health {
    /// Failures without an answer between them.
    failures: u32,
    /// How often it was left out, of late.
    ejections: u32,
    /// Until when it is left out.
    until: Option<Instant>,
}

impl Health {
    /// Is it left out now?
    pub(crate) fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// It answered.
    pub(crate) fn succeeded(&mut self, settings: &Outlier, now: Instant) {
        self.failures = 0;
        // Each quiet period takes back one ejection.
        if let Some(until) = self.until
            && now.saturating_duration_since(until) > settings.max_ejection
        {
            self.ejections = self.ejections.saturating_sub(1);
            self.until = (self.ejections > 0).then_some(now);
        }
    }

    /// It failed. Tells for how long it is to be left out, if this was one time too many and `may`
    /// says that enough others are left. `random` spreads the returns.
    pub(crate) fn failed(
        &mut self,
        settings: &Outlier,
        may: bool,
        random: u64,
        now: Instant,
    ) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        if self.failures < settings.failures || self.is_ejected(now) || !may {
            return None;
        }
        self.failures = 0;
        let growth = 1_u32 << self.ejections.min(MOST_DOUBLINGS);
        self.ejections = self.ejections.saturating_add(1);
        let plain = settings
            .ejection
            .saturating_mul(growth)
            .min(settings.max_ejection);
        let period = plain + jitter(plain, random);
        self.until = now.checked_add(period);
        Some(period)
    }
}

/// May one more of `all` endpoints be left out when `out` are? Never all of them.
pub(crate) fn may_eject(out: usize, all: usize, most_percent: u32) -> bool {
    let most = u64::try_from(all)
        .unwrap_or(u64::MAX)
        .saturating_mul(most_percent.into())
        / 100;
    let next = u64::try_from(out).unwrap_or(u64::MAX).saturating_add(1);
    next <= most && out + 1 < all
}

/// Up to a quarter more, so that endpoints that failed together do not return together.
fn jitter(period: Duration, random: u64) -> Duration {
    let part = u32::try_from(random % 1024).unwrap_or_default();
    (period / 4).saturating_mul(part) / 1024
}

const MOST_DOUBLINGS: u32 = 10;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Health, may_eject};
    use crate::config::delivery::Outlier;

    const SETTINGS: Outlier = Outlier {
        failures: 3,
        ejection: Duration::from_secs(10),
        max_ejection: Duration::from_secs(35),
        max_percent: 50,
    };

    #[test]
    fn only_failures_in_a_row_count() {
        let now = Instant::now();
        let mut health = Health::default();
        for _ in 0..5 {
            assert_eq!(health.failed(&SETTINGS, true, 0, now), None);
            assert_eq!(health.failed(&SETTINGS, true, 0, now), None);
            health.succeeded(&SETTINGS, now);
        }
        assert!(!health.is_ejected(now));
        for _ in 0..2 {
            assert_eq!(health.failed(&SETTINGS, true, 0, now), None);
        }
        assert_eq!(
            health.failed(&SETTINGS, true, 0, now),
            Some(SETTINGS.ejection)
        );
        assert!(health.is_ejected(now));
    }

    #[test]
    fn each_ejection_is_longer_up_to_a_limit_and_jittered() {
        let mut now = Instant::now();
        let mut health = Health::default();
        let mut eject = |random| {
            now += Duration::from_secs(60);
            let failed = |_| health.failed(&SETTINGS, true, random, now);
            (0..3).find_map(failed).unwrap()
        };
        assert_eq!(eject(0), Duration::from_secs(10));
        assert_eq!(eject(0), Duration::from_secs(20));
        assert_eq!(eject(0), Duration::from_secs(35));
        let jittered = eject(512);
        assert!(jittered > Duration::from_secs(39) && jittered < Duration::from_secs(40));
    }

    #[test]
    fn quiet_periods_are_rewarded() {
        let mut now = Instant::now();
        let mut health = Health::default();
        let fail = |health: &mut Health, now| {
            (0..3)
                .find_map(|_| health.failed(&SETTINGS, true, 0, now))
                .unwrap()
        };
        fail(&mut health, now);
        now += Duration::from_secs(60);
        health.succeeded(&SETTINGS, now);
        assert_eq!(fail(&mut health, now), SETTINGS.ejection);
    }

    #[test]
    fn the_last_ones_stay() {
        let now = Instant::now();
        let mut health = Health::default();
        for _ in 0..50 {
            assert_eq!(health.failed(&SETTINGS, false, 0, now), None);
        }
        // (out, all, percent)
        for (out, all, percent, expected) in [
            (0, 1, 100, false),
            (0, 2, 50, true),
            (1, 2, 100, false),
            (0, 3, 50, true),
            (1, 3, 50, false),
            (1, 4, 50, true),
            (2, 4, 50, false),
            (0, 4, 0, false),
            (3, 4, 100, false),
        ] {
            assert_eq!(may_eject(out, all, percent), expected, "{out} of {all}");
        }
    }
}
