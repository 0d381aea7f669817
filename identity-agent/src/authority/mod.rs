//! The embedded authority: roots, SVIDs, revocation.
//!
//! What to do and when is decided by pure functions that are given the time; the state is replaced
//! whole, on disk before in memory, so that nothing is handed out that a crash could forget.

mod issue;
mod jwt;
mod state;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use postern_spiffe::{JwtBundle, SpiffeId, TrustDomain};

pub use issue::Issued;
use jwt::JwtKey;
pub use state::StateError;
use state::{Folder, Revoked, State};

/// Signs for one trust domain.
#[derive(Debug)]
pub struct Authority {
    trust_domain: TrustDomain,
    lifetimes: Lifetimes,
    folder: Folder,
    state: Mutex<Arc<State>>,
}

/// How long things live.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// A root.
    pub root: Duration,
    /// An SVID whose Workload says nothing else.
    pub svid: Duration,
    /// A JWT-SVID.
    pub jwt: Duration,
}

/// What happened to the roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Nothing.
    None,
    /// A new root is in the bundle, or an old one has left it.
    Changed,
}

impl Authority {
    /// Opens the state, or begins with a new root where there is none.
    ///
    /// # Errors
    /// [`StateError`]: damaged or foreign state is told and left as it is.
    pub fn open(
        folder: &Path,
        trust_domain: TrustDomain,
        lifetimes: Lifetimes,
        now: SystemTime,
    ) -> Result<Self, StateError> {
        let folder = Folder::open(folder)?;
        let state = match folder.read(&trust_domain)? {
            Some(state) => state,
            None => {
                let root = issue::new_root(&trust_domain, lifetimes.root, now, now)?;
                let state = State {
                    roots: vec![Arc::new(root)],
                    ..State::default()
                };
                folder.write(&trust_domain, &state)?;
                state
            }
        };
        let authority = Self {
            trust_domain,
            lifetimes,
            folder,
            state: Mutex::new(Arc::new(state)),
        };
        authority.rotate(now)?;
        Ok(authority)
    }

    /// Whose authority it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The lifetime of an SVID whose Workload says nothing.
    pub fn svid_lifetime(&self) -> Duration {
        self.lifetimes.svid
    }

    /// Issues an X.509-SVID with a new key. It lives for `lifetime`, and never longer than its
    /// root.
    ///
    /// # Errors
    /// [`StateError::Crypto`] when the library refuses; callers give no identity.
    pub fn issue(
        &self,
        id: &SpiffeId,
        dns_names: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, StateError> {
        let state = self.state();
        let root = active(&state.roots, now).ok_or(StateError::NoRoot)?;
        issue::svid(root, id, dns_names, lifetime, now)
    }

    /// Issues a JWT-SVID for these audiences. It lives as long as the configuration says, and never
    /// longer than its key.
    ///
    /// # Errors
    /// [`StateError::NoJwtKey`] and [`StateError::Token`]; callers give no token.
    pub fn issue_jwt(
        &self,
        id: &SpiffeId,
        audience: &[String],
        now: SystemTime,
    ) -> Result<String, StateError> {
        let state = self.state();
        let key = active(&state.jwt_keys, now).ok_or(StateError::NoJwtKey)?;
        key.sign(id, audience, self.lifetimes.jwt, now)
    }

    /// The keys that sign JWT-SVIDs, and those that soon will.
    pub fn jwt_bundle(&self) -> JwtBundle {
        let state = self.state();
        let keys = state.jwt_keys.iter();
        let keys = keys.map(|key| (key.id.as_str(), key.point.as_slice()));
        JwtBundle::of_p256(self.trust_domain.clone(), keys)
    }

    /// The roots of the trust domain in DER, one after the other: those that sign and those that
    /// soon will.
    pub fn bundle(&self) -> Vec<u8> {
        self.state()
            .roots
            .iter()
            .flat_map(|root| root.certificate.iter().copied())
            .collect()
    }

    /// The revocation lists in DER: one for each root that has something to take back.
    ///
    /// # Errors
    /// [`StateError::Crypto`] when the library refuses.
    pub fn revocation_lists(&self, now: SystemTime) -> Result<Vec<Vec<u8>>, StateError> {
        let state = self.state();
        state
            .roots
            .iter()
            .map(|root| {
                let revoked: Vec<&Revoked> = state
                    .revoked
                    .iter()
                    .filter(|one| one.issuer == root.serial && one.expires > now)
                    .collect();
                if revoked.is_empty() {
                    return Ok(None);
                }
                issue::revocation_list(root, &revoked, state.list_number, now).map(Some)
            })
            .filter_map(Result::transpose)
            .collect()
    }

    /// Takes SVIDs back, for as long as they would have lived.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be written down; they are revoked in memory all the same.
    pub fn revoke(&self, svids: &[RevokedSvid], now: SystemTime) -> Result<(), StateError> {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = State::clone(&guard);
        next.revoked.retain(|one| one.expires > now);
        for svid in svids {
            if next.revoked.iter().all(|one| one.serial != svid.serial) {
                next.revoked.push(Revoked {
                    serial: svid.serial.clone(),
                    issuer: svid.issuer.clone(),
                    at: now,
                    expires: svid.expires,
                });
            }
        }
        next.list_number += 1;
        let written = self.folder.write(&self.trust_domain, &next);
        *guard = Arc::new(next);
        written
    }

    /// Prepares the next root and the next key of tokens, and lets go of expired ones, if it is time.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be written down; nothing changes then, and the next call
    /// tries again.
    pub fn rotate(&self, now: SystemTime) -> Result<Rotation, StateError> {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = State::clone(&guard);
        let lifetime = self.lifetimes.root;
        next.roots.retain(|root| root.not_after > now);
        next.jwt_keys.retain(|key| key.life.not_after > now);
        if let Some(active_from) = next_due(&next.roots, now) {
            let root = issue::new_root(&self.trust_domain, lifetime, now, active_from)?;
            next.roots.push(Arc::new(root));
        }
        if let Some(active_from) = next_due(&next.jwt_keys, now) {
            let key = JwtKey::make(lifetime, now, active_from)?;
            next.jwt_keys.push(Arc::new(key));
        }
        if is_same(&next.roots, &guard.roots) && is_same(&next.jwt_keys, &guard.jwt_keys) {
            return Ok(Rotation::None);
        }
        self.folder.write(&self.trust_domain, &next)?;
        *guard = Arc::new(next);
        Ok(Rotation::Changed)
    }

    fn state(&self) -> Arc<State> {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// An SVID that is to be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedSvid {
    /// Its serial number.
    pub serial: Vec<u8>,
    /// The serial number of the root that signed it.
    pub issuer: Vec<u8>,
    /// When it would have ended.
    pub expires: SystemTime,
}

/// When something that signs lives, and from when on it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    not_before: SystemTime,
    active_from: SystemTime,
    not_after: SystemTime,
}

/// Something that signs for a while: a root, or a key of tokens.
trait Lived {
    fn life(&self) -> Life;
}

/// The one that signs now: of those that may, the one that was given the task last.
fn active<T: Lived>(all: &[Arc<T>], now: SystemTime) -> Option<&T> {
    all.iter()
        .filter(|one| one.life().active_from <= now && now < one.life().not_after)
        .max_by_key(|one| one.life().active_from)
        .map(|one| &**one)
}

/// Is it time for a new one, and from when on shall it sign?
///
/// It is made when the active one has lived half of its life, so that every bundle has it long
/// before anything is signed by it, and signs from the last sixth on. Where none is left, as after
/// a long stop, it signs at once.
fn next_due<T: Lived>(all: &[Arc<T>], now: SystemTime) -> Option<SystemTime> {
    let Some(active) = active(all, now) else {
        return Some(now);
    };
    let is_prepared = all.iter().any(|other| other.life().active_from > now);
    let Life {
        not_before,
        not_after,
        ..
    } = active.life();
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let is_due = now >= not_before + life / 2;
    (is_due && !is_prepared).then(|| not_after - life / 6)
}

fn is_same<T>(one: &[Arc<T>], other: &[Arc<T>]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| Arc::ptr_eq(one, other))
}

#[cfg(test)]
mod tests;
