//! How many of something each of many has, so that nobody has all.

use std::hash::Hash;

use dashmap::{DashMap, Entry};

/// The counts of all. Who has none has no entry.
#[derive(Debug)]
pub(crate) struct Shares<K: Eq + Hash>(DashMap<K, usize>);

impl<K: Eq + Hash> Default for Shares<K> {
    fn default() -> Self {
        Self(DashMap::new())
    }
}

impl<K: Eq + Hash> Shares<K> {
    /// Counts one more of somebody's, if he has fewer than `limit`.
    pub(crate) fn take(&self, whose: K, limit: usize) -> bool {
        match self.0.entry(whose) {
            Entry::Occupied(own) if *own.get() >= limit => false,
            Entry::Occupied(mut own) => {
                *own.get_mut() += 1;
                true
            }
            Entry::Vacant(_) if limit == 0 => false,
            Entry::Vacant(free) => {
                free.insert(1);
                true
            }
        }
    }

    /// Counts one off again.
    pub(crate) fn give_back(&self, whose: K) {
        if let Entry::Occupied(mut own) = self.0.entry(whose) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }

    /// How many have any.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
