//! How long to leave a server alone that failed us. Pure.

use std::time::Duration;

/// Longer each time, and never the same for two agents.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failed: u32,
}

impl Backoff {
    /// It works again.
    pub(super) fn reset(&mut self) {
        self.failed = 0;
    }

    /// It failed once more: how long to wait. `random` is any byte that nobody can foresee; `asked` is
    /// what the server wants, which is heeded up to [`LONGEST_ASKED`].
    pub(super) fn next(&mut self, asked: Option<Duration>, random: u8) -> Duration {
        let longest = FIRST * 2_u32.pow(self.failed.min(DOUBLINGS));
        self.failed = self.failed.saturating_add(1);
        let own = longest / 2 + longest / 2 * u32::from(random) / 255;
        own.max(asked.unwrap_or_default().min(LONGEST_ASKED))
    }
}

const FIRST: Duration = Duration::from_millis(500);

/// 32 seconds at most.
const DOUBLINGS: u32 = 6;

const LONGEST_ASKED: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Backoff, LONGEST_ASKED};

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(None, 0), Duration::from_millis(250));
        assert_eq!(backoff.next(None, 255), Duration::from_millis(1000));
        for _ in 0..100 {
            assert!(backoff.next(None, 255) <= Duration::from_secs(32));
        }
        assert_eq!(backoff.next(None, 0), Duration::from_secs(16));
        let hour = Duration::from_secs(3600);
        assert_eq!(backoff.next(Some(hour), 0), LONGEST_ASKED);
        backoff.reset();
        assert_eq!(backoff.next(None, 255), Duration::from_millis(500));
        let asked = Duration::from_secs(3);
        assert_eq!(backoff.next(Some(asked), 0), asked);
    }
}
