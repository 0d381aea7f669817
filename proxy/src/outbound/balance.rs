//! Which endpoint gets the next request: of two taken at random the less loaded one.
//!
//! The load is the endpoint's latency times the requests that it works on. The latency is a peak
//! moving average: it rises at once and falls slowly, so that an endpoint that has become slow is
//! spared before its average shows it. Pure: time and random numbers are given.

use std::time::{Duration, Instant};

/// The latency of an endpoint, remembered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeakEwma {
    seconds: f64,
    at: Instant,
}

impl PeakEwma {
    /// An endpoint of which nothing is known is taken for a quick one, so that it is tried.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            seconds: UNKNOWN.as_secs_f64(),
            at: now,
        }
    }

    /// An answer took so long.
    pub(crate) fn observe(&mut self, took: Duration, now: Instant) {
        let took = took.as_secs_f64();
        let kept = self.weight(now);
        self.seconds = match took > self.seconds {
            true => took,
            false => took.mul_add(1.0 - kept, self.seconds * kept),
        };
        self.at = now;
    }

    /// The load with so many requests in flight.
    pub(crate) fn load(&self, in_flight: u32, now: Instant) -> f64 {
        // Without news a bad memory fades, or a slow endpoint would never be asked again.
        let seconds = (self.seconds * self.weight(now)).max(UNKNOWN.as_secs_f64());
        seconds * f64::from(in_flight.saturating_add(1))
    }

    /// How much the past counts.
    fn weight(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at).as_secs_f64();
        (-age / DECAY.as_secs_f64()).exp()
    }
}

/// Takes two of `loads` at random and tells the place of the smaller one. `None` for an empty list.
pub(crate) fn pick(loads: &[f64], random: u64) -> Option<usize> {
    let (high, low) = (random >> 32, random & u64::from(u32::MAX));
    let first = below(high, loads.len())?;
    // The second is another one wherever there is another.
    let step = below(low, loads.len().saturating_sub(1)).map_or(0, |step| step + 1);
    let second = (first + step) % loads.len();
    let load = |place: usize| loads.get(place).copied().unwrap_or(f64::INFINITY);
    Some(if load(second) < load(first) {
        second
    } else {
        first
    })
}

/// A number below `count` from 32 random bits.
fn below(random: u64, count: usize) -> Option<usize> {
    let count = u64::try_from(count).ok().filter(|&count| count > 0)?;
    usize::try_from((random.wrapping_mul(count) >> 32).min(count - 1)).ok()
}

/// Random numbers for choices that nobody must be able to use against us is not what these are
/// for: they spread load and retries. Spec: SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn mix(state: u64) -> u64 {
    let z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// After this long a latency counts a third.
const DECAY: Duration = Duration::from_secs(10);

/// The latency of the unknown, and the least that any endpoint has: below a millisecond it is the
/// network's noise that would choose.
const UNKNOWN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{PeakEwma, mix, pick};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_latency_rises_at_once_and_falls_slowly() {
        let start = Instant::now();
        let mut latency = PeakEwma::new(start);
        latency.observe(100 * MS, start);
        assert!((latency.load(0, start) - 0.1).abs() < 1e-9);
        latency.observe(MS, start + 10 * MS);
        assert!(latency.load(0, start + 10 * MS) > 0.09);
        // With every quick answer a little, and in the end it is quick again.
        let mut now = start;
        for _ in 0..600 {
            now += 100 * MS;
            latency.observe(2 * MS, now);
        }
        assert!(latency.load(0, now) < 0.003);
    }

    #[test]
    fn work_in_flight_weighs_and_a_bad_memory_fades() {
        let start = Instant::now();
        let mut latency = PeakEwma::new(start);
        latency.observe(10 * MS, start);
        assert!((latency.load(3, start) / latency.load(0, start) - 4.0).abs() < 1e-9);
        let later = start + Duration::from_secs(120);
        assert!((latency.load(0, later) - 0.001).abs() < 1e-9);
    }

    #[test]
    fn of_two_the_less_loaded_is_taken() {
        assert_eq!(pick(&[], 7), None);
        for random in (0..200).map(mix) {
            assert_eq!(pick(&[5.0], random), Some(0));
            assert_eq!(pick(&[5.0, 1.0], random), Some(1));
            assert_eq!(pick(&[1.0, 5.0], random), Some(0));
            // The worst of three is never taken.
            assert_ne!(pick(&[1.0, 2.0, 3.0], random), Some(2));
        }
    }

    #[test]
    fn equals_share_the_load() {
        let mut taken = [0; 4];
        for random in (0..4000).map(mix) {
            taken[pick(&[1.0; 4], random).unwrap()] += 1;
        }
        assert!(taken.iter().all(|&count| count > 850), "{taken:?}");
    }
}
