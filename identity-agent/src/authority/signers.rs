//! What signs, as it comes and goes: prepared, active, retired, tainted, gone. Pure.
//!
//! The next one is told to everybody long before it signs, and the one before stays until all that it
//! signed has ended.

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::state::StateError;

/// A root, or a key of tokens.
pub(super) trait Lived {
    /// Its name in administration.
    fn id(&self) -> String;
    /// When its life began.
    fn not_before(&self) -> SystemTime;
    /// When it ends.
    fn not_after(&self) -> SystemTime;
}

/// One, and where it stands.
#[derive(Debug)]
pub(super) struct Signer<T> {
    own: Arc<T>,
    /// From when on it signs.
    pub(super) active_from: SystemTime,
    /// It is not trusted any more: what it signed is replaced.
    pub(super) tainted: bool,
}

impl<T> Clone for Signer<T> {
    fn clone(&self) -> Self {
        Self {
            own: self.own.clone(),
            active_from: self.active_from,
            tainted: self.tainted,
        }
    }
}

impl<T> Deref for Signer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.own
    }
}

/// Where one stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is told, and does not sign yet.
    Prepared,
    /// It signs.
    Active,
    /// It signed, and what it signed is still good.
    Retired,
    /// What it signed is being replaced.
    Tainted,
}

/// All of one kind, oldest first.
#[derive(Debug)]
pub(super) struct Signers<T>(Vec<Signer<T>>);

impl<T> Clone for Signers<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Signers<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> FromIterator<Signer<T>> for Signers<T> {
    fn from_iter<I: IntoIterator<Item = Signer<T>>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl<T> Signer<T> {
    pub(super) fn new(own: T, active_from: SystemTime, tainted: bool) -> Self {
        Self {
            own: Arc::new(own),
            active_from,
            tainted,
        }
    }
}

impl<T: Lived> Signers<T> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Signer<T>> {
        self.0.iter()
    }

    pub(super) fn push(&mut self, own: T, active_from: SystemTime) {
        self.0.push(Signer::new(own, active_from, false));
    }

    pub(super) fn take_in(&mut self, one: Signer<T>) {
        self.0.push(one);
    }

    /// The one that signs now: of those that may, the one that was given the task last.
    pub(super) fn active(&self, now: SystemTime) -> Option<&Signer<T>> {
        self.0
            .iter()
            .filter(|one| one.active_from <= now && now < one.not_after() && !one.tainted)
            .max_by_key(|one| one.active_from)
    }

    /// Is it time for a new one, and from when on shall it sign?
    ///
    /// It is made when the active one has lived half of its life, so that every bundle has it long
    /// before anything is signed by it, and signs from the last sixth on. Where none is left, as
    /// after a long stop, it signs at once.
    pub(super) fn next_due(&self, now: SystemTime) -> Option<SystemTime> {
        let Some(active) = self.active(now) else {
            return Some(now);
        };
        let life = life(active);
        let is_due = now >= active.not_before() + life / 2;
        (is_due && self.prepared(now).is_none()).then(|| active.not_after() - life / 6)
    }

    /// From when on one that is prepared by hand shall sign, if nobody activates it before.
    pub(super) fn prepare_for(&self, now: SystemTime) -> Result<SystemTime, StateError> {
        match (self.prepared(now), self.active(now)) {
            (Some(_), _) => Err(StateError::AlreadyPrepared),
            (None, Some(active)) => Ok((active.not_after() - life(active) / 6).max(now)),
            (None, None) => Ok(now),
        }
    }

    /// Has the one that is prepared sign from now on.
    pub(super) fn activate(&mut self, now: SystemTime) -> Result<(), StateError> {
        let mut all = self.0.iter_mut();
        let next = all.find(|one| one.active_from > now && !one.tainted);
        next.ok_or(StateError::NothingPrepared)?.active_from = now;
        Ok(())
    }

    /// Lets go of those that have ended. Tells whether there were any.
    pub(super) fn forget_ended(&mut self, now: SystemTime) -> bool {
        let before = self.0.len();
        self.0.retain(|one| one.not_after() > now);
        self.0.len() != before
    }

    /// Taints the one of this ID. Tells whether it is one of these.
    pub(super) fn taint(&mut self, id: &str, now: SystemTime) -> Result<bool, StateError> {
        self.is_not_active(id, now)?;
        let found = self.0.iter_mut().find(|one| one.id() == id);
        Ok(found.map(|one| one.tainted = true).is_some())
    }

    /// Takes the tainted one of this ID away, if it is one of these.
    pub(super) fn remove(
        &mut self,
        id: &str,
        now: SystemTime,
    ) -> Result<Option<Signer<T>>, StateError> {
        self.is_not_active(id, now)?;
        let Some(place) = self.0.iter().position(|one| one.id() == id) else {
            return Ok(None);
        };
        if self.0.get(place).is_some_and(|one| !one.tainted) {
            return Err(StateError::NotTainted(id.to_owned()));
        }
        Ok(Some(self.0.remove(place)))
    }

    /// Where each stands.
    pub(super) fn standings(
        &self,
        now: SystemTime,
    ) -> impl Iterator<Item = (&Signer<T>, Standing)> {
        let active = self.active(now).map(|active| active.id());
        self.0.iter().map(move |one| {
            let standing = match one {
                one if one.tainted => Standing::Tainted,
                one if active.as_ref() == Some(&one.id()) => Standing::Active,
                one if one.active_from > now => Standing::Prepared,
                _ => Standing::Retired,
            };
            (one, standing)
        })
    }

    fn prepared(&self, now: SystemTime) -> Option<&Signer<T>> {
        self.0
            .iter()
            .find(|one| one.active_from > now && !one.tainted)
    }

    fn is_not_active(&self, id: &str, now: SystemTime) -> Result<(), StateError> {
        match self.active(now) {
            Some(active) if active.id() == id => Err(StateError::Signs(id.to_owned())),
            _ => Ok(()),
        }
    }
}

fn life<T: Lived>(one: &Signer<T>) -> Duration {
    one.not_after()
        .duration_since(one.not_before())
        .unwrap_or_default()
}
