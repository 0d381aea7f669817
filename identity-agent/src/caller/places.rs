//! The places of a socket: how many connections there may be, and which of them gives way.
//!
//! A connection on which nothing is open keeps its place for a while, for the next question. When
//! places are short, the one on which nothing has been open for longest gives way; one with something
//! open never does.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use crate::shares::Shares;

/// The places of a socket.
#[derive(Debug)]
pub(super) struct Places {
    limits: Limits,
    free: Arc<Semaphore>,
    by_user: Shares<u32>,
    taken: Mutex<Taken>,
    /// What the times of places are reckoned from.
    epoch: Instant,
}

/// How many connections there may be, and for how long one on which nothing is open.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// At once.
    pub all: usize,
    /// At once, of one user.
    pub of_user: usize,
    /// With nothing open.
    pub idle: Duration,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    places: HashMap<u64, Arc<Place>>,
}

/// One of them.
#[derive(Debug)]
pub struct Place {
    number: u64,
    uid: u32,
    /// How many requests are open, or [`CLOSING`].
    open: AtomicUsize,
    /// Since when none is, in milliseconds after the epoch.
    idle_since: AtomicU64,
    epoch: Instant,
    /// The task of the connection, to be told when it gives way.
    waker: AtomicWaker,
}

/// A connection's hold of its place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) place: Arc<Place>,
    places: Arc<Places>,
    _permit: OwnedSemaphorePermit,
}

/// A request that is open on a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Place>);

/// What becomes of a connection that has been looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Idle {
    /// It ends: nothing has been open for too long, or it gave way.
    Ended,
    /// It stays, and is to be looked at again then.
    Until(Instant),
}

impl Places {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            free: Arc::new(Semaphore::new(limits.all)),
            by_user: Shares::default(),
            taken: Mutex::default(),
            epoch: Instant::now(),
        })
    }

    /// Waits for a place; `short` is called when all are taken.
    pub(super) async fn free(&self, short: impl FnOnce()) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.free.clone().try_acquire_owned() {
            return Some(permit);
        }
        short();
        loop {
            self.longest_idle(|_| true);
            // None may be idle now, and one soon.
            let free = self.free.clone().acquire_owned();
            if let Ok(permit) = timeout(LOOK_AGAIN, free).await {
                return permit.ok();
            }
        }
    }

    /// Takes a place for a user; `short` is called when he has no more of his own. None when nothing of
    /// his gives way.
    pub(super) fn take(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        uid: u32,
        now: Instant,
        short: impl FnOnce(),
    ) -> Option<Held> {
        if !self.by_user.take(uid, self.limits.of_user) {
            short();
            self.longest_idle(|place| place.uid == uid)
                .then(|| self.by_user.take(uid, self.limits.of_user))
                .filter(|taken| *taken)?;
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let number = taken.next;
        taken.next += 1;
        let place = Arc::new(Place {
            number,
            uid,
            open: AtomicUsize::new(0),
            idle_since: AtomicU64::new(milliseconds(now - self.epoch)),
            epoch: self.epoch,
            waker: AtomicWaker::new(),
        });
        taken.places.insert(number, place.clone());
        Some(Held {
            place,
            places: self.clone(),
            _permit: permit,
        })
    }

    /// Has the one of these give way on which nothing has been open for longest. Tells whether there
    /// is one.
    fn longest_idle(&self, is_meant: impl Fn(&Place) -> bool) -> bool {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let idle = taken.places.values().filter(|place| is_meant(place));
            let idle = idle.filter(|place| place.open.load(Ordering::Acquire) == 0);
            let longest = idle.min_by_key(|place| {
                let since = place.idle_since.load(Ordering::Relaxed);
                (since, place.number)
            });
            match longest {
                None => return false,
                Some(place) if self.close(place) => {
                    place.waker.wake();
                    return true;
                }
                // It was asked something just now.
                Some(_) => {}
            }
        }
    }

    /// Closes a place on which nothing is open. It counts no more from here on.
    fn close(&self, place: &Place) -> bool {
        let (set, read) = (Ordering::AcqRel, Ordering::Acquire);
        let is_closed = place.open.compare_exchange(0, CLOSING, set, read).is_ok();
        if is_closed {
            self.by_user.give_back(place.uid);
        }
        is_closed
    }
}

impl Held {
    /// Looks whether the connection is to end, and has it woken up when it gives way.
    pub(super) fn look(&self, now: Instant, waker: &Waker) -> Idle {
        self.place.waker.register(waker);
        let limit = self.places.limits.idle;
        match self.place.open.load(Ordering::Acquire) {
            CLOSING => Idle::Ended,
            0 => {
                let until = self.place.idle_since() + limit;
                match until <= now && self.places.close(&self.place) {
                    true => Idle::Ended,
                    // If it was asked something just now, that is not to be long.
                    false => Idle::Until(until.max(now + SHORTEST_LOOK)),
                }
            }
            _ => Idle::Until(now + limit),
        }
    }

    /// Has it given way already?
    pub(super) fn is_closed(&self, waker: &Waker) -> bool {
        self.place.waker.register(waker);
        self.place.open.load(Ordering::Acquire) == CLOSING
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut taken = (self.places.taken.lock()).unwrap_or_else(PoisonError::into_inner);
        taken.places.remove(&self.place.number);
        drop(taken);
        // What is still open ends with the connection, and counts for nobody.
        if self.place.open.swap(CLOSING, Ordering::AcqRel) != CLOSING {
            self.places.by_user.give_back(self.place.uid);
        }
    }
}

impl Place {
    /// Its effective user, by the kernel's record.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    fn idle_since(&self) -> Instant {
        self.epoch + Duration::from_millis(self.idle_since.load(Ordering::Relaxed))
    }

    /// A request begins. None when the connection is giving way: then it has to be asked on another.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<Busy> {
        let one_more = |open: usize| (open != CLOSING).then(|| open + 1);
        let (set, read) = (Ordering::AcqRel, Ordering::Acquire);
        self.open.fetch_update(set, read, one_more).ok()?;
        Some(Busy(self.clone()))
    }

    fn end(&self, now: Instant) {
        // Before it counts as idle: whoever looks then must see since when.
        let since = milliseconds(now.saturating_duration_since(self.epoch));
        self.idle_since.store(since, Ordering::Relaxed);
        let one_less = |open: usize| (open != CLOSING).then(|| open - 1);
        let (set, read) = (Ordering::AcqRel, Ordering::Acquire);
        // An error says that the connection is gone.
        let _ = self.open.fetch_update(set, read, one_less);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.end(Instant::now());
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// In place of a number of requests: the connection ends.
const CLOSING: usize = usize::MAX;

const LOOK_AGAIN: Duration = Duration::from_secs(1);
const SHORTEST_LOOK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::Arc,
        task::Waker,
        time::{Duration, Instant as Clock},
    };

    use tokio::time::Instant;

    use super::{Held, Idle, Limits, Places};

    const IDLE: Duration = Duration::from_secs(300);
    const SECOND: Duration = Duration::from_secs(1);

    fn places(all: usize, of_user: usize) -> Arc<Places> {
        Places::new(Limits {
            all,
            of_user,
            idle: IDLE,
        })
    }

    /// Takes a place; tells it, and whether the user's were short.
    fn take(places: &Arc<Places>, uid: u32, now: Instant) -> (Option<Held>, bool) {
        let permit = places.free.clone().try_acquire_owned().unwrap();
        let is_short = Cell::new(false);
        let held = places.take(permit, uid, now, || is_short.set(true));
        (held, is_short.get())
    }

    fn is_ended(held: &Held, now: Instant) -> bool {
        held.look(now, Waker::noop()) == Idle::Ended
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_is_open_ends_after_a_while_and_one_on_which_something_is_does_not()
     {
        let places = places(8, 8);
        let now = places.epoch + SECOND;
        let [idle, busy] = [1, 1].map(|uid| take(&places, uid, now).0.unwrap());
        let request = busy.place.begin().unwrap();
        for held in [&idle, &busy] {
            let look = held.look(now, Waker::noop());
            assert_eq!(look, Idle::Until(now + IDLE));
            assert!(!is_ended(held, now + IDLE - SECOND));
        }
        assert!(is_ended(&idle, now + IDLE));
        assert!(idle.place.begin().is_none(), "it ends");
        assert!(!is_ended(&busy, now + 100 * IDLE));
        // From the end of the last request on.
        let more = busy.place.begin().unwrap();
        drop(request);
        assert!(!is_ended(&busy, now + 200 * IDLE));
        more.0.end(now + 300 * IDLE);
        assert!(!is_ended(&busy, now + 301 * IDLE - SECOND));
        assert!(is_ended(&busy, now + 301 * IDLE));
        drop(more);
        assert!(is_ended(&busy, now + 301 * IDLE));
    }

    #[tokio::test]
    async fn of_a_user_with_all_his_places_the_longest_idle_gives_way_and_nobody_elses() {
        let places = places(8, 3);
        let now = places.epoch;
        let other = take(&places, 2, now).0.unwrap();
        let at = |second: u32| now + second * SECOND;
        let own = [1, 2, 3].map(|second| take(&places, 1, at(second)).0.unwrap());
        let [first, second, third] = &own;
        let _request = first.place.begin().unwrap();
        let (fourth, is_short) = take(&places, 1, at(4));
        let fourth = fourth.unwrap();
        assert!(is_short);
        let gave_way =
            [&other, first, second, third, &fourth].map(|one| one.is_closed(Waker::noop()));
        assert_eq!(gave_way, [false, false, true, false, false]);
        // Where something is open on all, the new one is refused.
        let _requests = [third, &fourth].map(|one| one.place.begin().unwrap());
        let (refused, is_short) = take(&places, 1, at(5));
        assert!(refused.is_none() && is_short);
        assert!(!other.is_closed(Waker::noop()));
        let (fine, is_short) = take(&places, 2, at(5));
        assert!(fine.is_some() && !is_short);
        drop((own, fourth, other, fine));
        assert_eq!(places.by_user.len(), 0);
        assert_eq!(places.taken.lock().unwrap().places.len(), 0);
    }

    #[tokio::test]
    async fn when_all_places_are_taken_the_longest_idle_of_all_gives_way() {
        let places = places(2, 2);
        let [first, second] = [1, 2].map(|uid| take(&places, uid, places.epoch).0.unwrap());
        let request = first.place.begin().unwrap();
        let waits = tokio::spawn({
            let places = places.clone();
            async move { places.free(|| ()).await.is_some() }
        });
        let end = Clock::now() + Duration::from_secs(20);
        while !second.is_closed(Waker::noop()) {
            assert!(Clock::now() < end, "it keeps its place");
            tokio::task::yield_now().await;
        }
        assert!(!first.is_closed(Waker::noop()) && !waits.is_finished());
        drop(second);
        assert!(waits.await.unwrap());
        drop(request);
        drop(first);
        assert_eq!(places.by_user.len(), 0);
    }
}
