//! How many of a user's processes are looked at, at the same time.

use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of all users. A machine has few users, and nobody makes himself another one.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    by_user: DashMap<u32, Arc<Semaphore>>,
}

impl Turns {
    /// Waits for a turn. None is never to be had: nobody closes them.
    pub(crate) async fn of(&self, uid: u32) -> Option<OwnedSemaphorePermit> {
        let turns = {
            let new = || Arc::new(Semaphore::new(AT_ONCE));
            self.by_user.entry(uid).or_insert_with(new).clone()
        };
        turns.acquire_owned().await.ok()
    }
}

/// A part of the threads that there are for this.
const AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use super::{AT_ONCE, Turns};

    #[tokio::test]
    async fn a_user_waits_for_his_own_processes_and_for_nobody_elses() {
        let turns = Turns::default();
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(turns.of(1).await);
        }
        let mut waits = std::pin::pin!(turns.of(1));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waits.as_mut().poll(&mut context).is_pending());
        assert!(turns.of(2).await.is_some());
        held.pop();
        assert!(waits.await.is_some());
    }
}
