//! By what time something has ended for good. Pure, but for [`Settled::now`].
//!
//! Clocks are set forward by mistake, and back again. An SVID that had ended in between is valid once
//! more, and who forgot that it was taken back would tell peers to believe it. So what has ended is forgotten
//! by a time that does not jump along: only when the clock has stood by its jump for a day is it believed.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};

/// Follows the wall clock, and how far it may have to go back.
#[derive(Debug)]
pub(crate) struct Settled(Mutex<Course>);

impl Settled {
    /// From now on.
    pub(crate) fn begin() -> Self {
        Self(Mutex::new(Course::begin(SystemTime::now(), since_boot())))
    }

    /// The time by which things have ended for good.
    pub(crate) fn now(&self) -> SystemTime {
        let mut course = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        course.at(SystemTime::now(), since_boot())
    }
}

/// The same for somebody who has just begun: nothing is known of how the clock was set before.
pub(crate) fn at_start(now: SystemTime) -> SystemTime {
    now.checked_sub(UNKNOWN).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A time that nobody sets, and that goes on while the machine sleeps.
fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

#[derive(Debug)]
struct Course {
    wall: SystemTime,
    steady: Duration,
    /// By so much the clock may be ahead.
    ahead: Duration,
    /// Until then nobody has set it back: it was right.
    until: Duration,
}

impl Course {
    fn begin(wall: SystemTime, steady: Duration) -> Self {
        Self {
            wall,
            steady,
            ahead: UNKNOWN,
            until: steady + BELIEVED_AFTER,
        }
    }

    /// The clock says `wall`, and so long has passed. What is adjusted little by little is no jump.
    fn at(&mut self, wall: SystemTime, steady: Duration) -> SystemTime {
        let expected = self.wall + steady.saturating_sub(self.steady);
        match wall.duration_since(expected) {
            Ok(forward) if forward > NO_JUMP => {
                self.ahead += forward;
                self.until = steady + BELIEVED_AFTER;
            }
            Ok(_) => {}
            Err(back) => self.ahead = self.ahead.saturating_sub(back.duration()),
        }
        if steady >= self.until {
            self.ahead = Duration::ZERO;
        }
        (self.wall, self.steady) = (wall, steady);
        wall.checked_sub(self.ahead)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// So far the clock may be ahead when somebody begins.
const UNKNOWN: Duration = Duration::from_secs(3 * 60 * 60);

const BELIEVED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

const NO_JUMP: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{BELIEVED_AFTER, Course, UNKNOWN, at_start};

    const HOUR: Duration = Duration::from_secs(60 * 60);

    /// One whose clock has been right for a day.
    fn settled() -> (Course, SystemTime, Duration) {
        let (wall, steady) = (SystemTime::now(), HOUR);
        let mut course = Course::begin(wall, steady);
        let (wall, steady) = (wall + BELIEVED_AFTER, steady + BELIEVED_AFTER);
        assert_eq!(course.at(wall, steady), wall);
        (course, wall, steady)
    }

    #[test]
    fn a_jump_forward_settles_nothing_until_the_clock_has_stood_by_it_for_a_day() {
        // FAULTS 36
        let (mut course, wall, steady) = settled();
        assert_eq!(course.at(wall + 2 * HOUR, steady), wall);
        let later = |passed: Duration| (wall + 2 * HOUR + passed, steady + passed);
        let (then, now) = later(23 * HOUR);
        assert_eq!(course.at(then, now), then - 2 * HOUR);
        let (then, now) = later(24 * HOUR);
        assert_eq!(course.at(then, now), then);
    }

    #[test]
    fn a_clock_that_goes_back_from_its_jump_has_settled_what_it_had_before() {
        // FAULTS 37
        let (mut course, wall, steady) = settled();
        course.at(wall + 2 * HOUR, steady);
        assert_eq!(course.at(wall + HOUR, steady + HOUR), wall + HOUR);
        assert_eq!(course.at(wall, steady + HOUR), wall, "and farther");
    }

    #[test]
    fn a_clock_that_runs_and_is_adjusted_little_by_little_is_believed() {
        let (mut course, wall, steady) = settled();
        for second in 1..=1_000 {
            let passed = Duration::from_secs(second);
            let fast = Duration::from_millis(second);
            let then = wall + passed + fast;
            assert_eq!(course.at(then, steady + passed), then);
        }
    }

    #[test]
    fn who_begins_takes_the_clock_to_be_ahead_for_a_day() {
        let (wall, steady) = (SystemTime::now(), HOUR);
        let mut course = Course::begin(wall, steady);
        assert_eq!(course.at(wall, steady), at_start(wall));
        assert_eq!(course.at(wall + HOUR, steady + HOUR), wall + HOUR - UNKNOWN);
    }
}
