//! The bytes that wait to be written, with a bound.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// How many bytes of lines may wait; as many again may be on their way to the disk.
pub(crate) const BOUND: usize = 2 << 20;

/// How many more of lines that must not be lost.
pub(crate) const KEPT: usize = 512 << 10;

/// So many bytes are written at once, however long the thread would wait for more.
const GATHERED: usize = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// How long the first line waits for others to be written with it.
    gathers: Duration,
    /// There is something to do for the thread that writes.
    some: Condvar,
    /// There is room again.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    lines: u64,
    reopen: bool,
    is_closed: bool,
    /// What would wake the thread: that costs a system call, which is spared otherwise.
    sleep: Sleep,
}

/// Does the thread that writes sleep?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Sleep {
    /// No, or it knows already that it is needed.
    #[default]
    Awake,
    /// Until there is a line.
    Idle,
    /// Until there are many lines, or the first of them has waited long enough.
    Gathering,
}

/// What is to be done next, apart from the bytes.
pub(crate) struct Next {
    pub(crate) lines: u64,
    pub(crate) reopen: bool,
}

impl Queue {
    /// One that lets lines wait so long for others.
    pub(crate) fn gathering(gathers: Duration) -> Self {
        Self {
            gathers,
            ..Self::default()
        }
    }

    /// Takes a line, unless there would be more than `bound` bytes.
    pub(crate) fn push(&self, line: &[u8], bound: usize) -> bool {
        let mut state = self.lock();
        if state.is_closed || state.pending.len() + line.len() > bound {
            return false;
        }
        state.pending.extend_from_slice(line);
        state.lines += 1;
        if state.sleep != Sleep::Gathering || state.pending.len() >= GATHERED {
            self.wake(state);
        }
        true
    }

    pub(crate) fn reopen(&self) {
        let mut state = self.lock();
        state.reopen = true;
        self.wake(state);
    }

    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        self.wake(state);
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        if std::mem::take(&mut state.sleep) != Sleep::Awake {
            drop(state);
            self.some.notify_one();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().pending.len()
    }

    /// Waits until the share of lines that must not be lost is free.
    pub(crate) async fn room(&self) {
        loop {
            let mut freed = std::pin::pin!(self.room.notified());
            // From here on no news is missed.
            freed.as_mut().enable();
            if self.len() <= BOUND {
                return;
            }
            freed.await;
        }
    }

    /// Waits for something to write and puts it into `batch`, which is empty; `None` at the end.
    pub(crate) fn next(&self, batch: &mut Vec<u8>) -> Option<Next> {
        let mut state = self.lock();
        let mut gathered_at = None;
        loop {
            if !state.pending.is_empty() || state.reopen {
                let due = *gathered_at.get_or_insert_with(|| Instant::now() + self.gathers);
                let left = due.saturating_duration_since(Instant::now());
                let is_much = state.pending.len() >= GATHERED;
                if !(left.is_zero() || is_much || state.reopen || state.is_closed) {
                    state.sleep = Sleep::Gathering;
                    let woken = self.some.wait_timeout(state, left);
                    state = woken.unwrap_or_else(PoisonError::into_inner).0;
                    state.sleep = Sleep::Awake;
                    continue;
                }
                std::mem::swap(&mut state.pending, batch);
                let next = Next {
                    lines: std::mem::take(&mut state.lines),
                    reopen: std::mem::take(&mut state.reopen),
                };
                drop(state);
                self.room.notify_waiters();
                return Some(next);
            }
            if state.is_closed {
                return None;
            }
            state.sleep = Sleep::Idle;
            state = self
                .some
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
