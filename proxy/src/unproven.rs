//! Connections whose callers have not yet proven who they are.
//!
//! There is room for so many. When it is full, the one that has taken longest gives way: who proves
//! himself does so quickly, and who opens connections only to hold them pushes out his own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// All of them.
#[derive(Debug)]
pub(crate) struct Unproven {
    limit: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// In the order in which they came.
    places: BTreeMap<u64, CancellationToken>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<Unproven>,
    number: u64,
    gives_way: CancellationToken,
}

impl Unproven {
    /// Room for so many.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            waiting: Mutex::default(),
        }
    }

    /// Lets one more in.
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        let gives_way = CancellationToken::new();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let number = waiting.next;
        waiting.next += 1;
        waiting.places.insert(number, gives_way.clone());
        if waiting.places.len() > self.limit
            && let Some((_, longest)) = waiting.places.pop_first()
        {
            longest.cancel();
        }
        Place {
            of: self.clone(),
            number,
            gives_way,
        }
    }
}

impl Place {
    /// Waits until this one has to give way.
    pub(crate) async fn gives_way(&self) {
        self.gives_way.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self
            .of
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        waiting.places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Unproven;

    #[test]
    fn the_one_that_has_taken_longest_gives_way() {
        let all = Arc::new(Unproven::new(2));
        let (first, second) = (all.enter(), all.enter());
        assert!(!first.gives_way.is_cancelled());
        let third = all.enter();
        assert!(first.gives_way.is_cancelled());
        drop(second);
        let fourth = all.enter();
        assert!(!third.gives_way.is_cancelled() && !fourth.gives_way.is_cancelled());
        let _fifth = all.enter();
        assert!(third.gives_way.is_cancelled() && !fourth.gives_way.is_cancelled());
    }
}
