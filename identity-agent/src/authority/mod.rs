//! The embedded authority: roots, SVIDs, revocation.
//!
//! What to do and when is decided by pure functions that are given the time; the state is replaced
//! whole, on disk before in memory, so that nothing is handed out that a crash could forget.

mod issue;
mod jwt;
mod keys;
mod signers;
mod state;
mod upstream;

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use postern_spiffe::{JwtBundle, SpiffeId, TrustDomain};

pub use issue::Issued;
use jwt::JwtKey;
pub use signers::Standing;
use signers::{Lived, Signers};
use state::{Folder, Revoked, Root, State};
pub use state::{StateError, replace_file};
pub use upstream::Upstream;

/// Signs for one trust domain.
#[derive(Debug)]
pub struct Authority {
    trust_domain: TrustDomain,
    setting: Setting,
    folder: Folder,
    state: ArcSwap<State>,
    /// Locked while something changes, until it is on disk. Who only reads does not wait for that.
    changing: Mutex<()>,
}

/// How an authority works.
#[derive(Debug, Clone)]
pub struct Setting {
    /// How long things live.
    pub lifetimes: Lifetimes,
    /// Who vouches for our signers, if not they themselves.
    pub upstream: Option<Upstream>,
    /// The `iss` of tokens, for those who know us as an OIDC issuer.
    pub jwt_issuer: Option<String>,
}

impl From<Lifetimes> for Setting {
    fn from(lifetimes: Lifetimes) -> Self {
        Self {
            lifetimes,
            upstream: None,
            jwt_issuer: None,
        }
    }
}

impl Setting {
    fn new_signer(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<Root, StateError> {
        let lifetime = self.lifetimes.root;
        match &self.upstream {
            Some(upstream) => upstream.new_signer(trust_domain, lifetime, now),
            None => issue::new_signer(trust_domain, lifetime, now, None),
        }
    }
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
        setting: impl Into<Setting>,
        now: SystemTime,
    ) -> Result<Self, StateError> {
        let setting = setting.into();
        let folder = Folder::open(folder)?;
        let state = match folder.read(&trust_domain)? {
            Some(state) => state,
            None => {
                let root = setting.new_signer(&trust_domain, now)?;
                let mut state = State::default();
                state.roots.push(root, now);
                folder.write(&trust_domain, &state)?;
                state
            }
        };
        let authority = Self {
            trust_domain,
            setting,
            folder,
            state: ArcSwap::from_pointee(state),
            changing: Mutex::default(),
        };
        authority.rotate(now)?;
        authority.follow_upstream(now)?;
        Ok(authority)
    }

    /// Where the authority above is another than the one that vouches for what signs, the next signer
    /// is prepared at once.
    fn follow_upstream(&self, now: SystemTime) -> Result<(), StateError> {
        let state = self.state();
        let upstream = self.setting.upstream.as_ref();
        let wanted = upstream.map(Upstream::above).transpose()?;
        let newest = state.roots.iter().last();
        let fits = newest.is_none_or(|root| root.above == wanted);
        if fits || state.roots.prepare_for(now).is_err() {
            return Ok(());
        }
        self.change(|next| {
            let from = next.roots.prepare_for(now)?;
            let root = self.setting.new_signer(&self.trust_domain, now)?;
            next.roots.push(root, from);
            Ok(())
        })
    }

    /// Whose authority it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The lifetime of an SVID whose Workload says nothing.
    pub fn svid_lifetime(&self) -> Duration {
        self.setting.lifetimes.svid
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
        let root = state.roots.active(now).ok_or(StateError::NoRoot)?;
        issue::svid(root, id, dns_names, lifetime, now)
    }

    /// Issues a JWT-SVID for these audiences. It lives for `lifetime`, or as long as the configuration
    /// says, and never longer than its key.
    ///
    /// # Errors
    /// [`StateError::NoJwtKey`] and [`StateError::Token`]; callers give no token.
    pub fn issue_jwt(
        &self,
        id: &SpiffeId,
        audience: &[String],
        lifetime: Option<Duration>,
        now: SystemTime,
    ) -> Result<String, StateError> {
        let state = self.state();
        let key = state.jwt_keys.active(now).ok_or(StateError::NoJwtKey)?;
        let lifetime = lifetime.unwrap_or(self.setting.lifetimes.jwt);
        let issuer = self.setting.jwt_issuer.as_deref();
        key.sign(id, audience, issuer, lifetime, now)
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
        let state = self.state();
        let mut all: Vec<&[u8]> = Vec::new();
        for anchor in state.roots.iter().flat_map(|root| root.anchors()) {
            // Several of ours have one above them.
            if !all.contains(&anchor) {
                all.push(anchor);
            }
        }
        all.concat()
    }

    /// A number that grows with every change of the bundles. Spec: Trust Domain and Bundle section
    /// 4.1.1.
    pub fn sequence(&self) -> u64 {
        self.state().sequence
    }

    /// How often others should look for another bundle: often enough to have a new root long before
    /// it signs. Spec: SPIFFE Federation section 4.3.
    pub fn refresh_hint(&self) -> Duration {
        let longest = Duration::from_secs(5 * 60);
        (self.setting.lifetimes.root / 15).clamp(Duration::from_secs(1), longest)
    }

    /// The revocation lists in DER: one for each root, as soon as any has something to take back.
    ///
    /// Verifiers that look at lists at all want one of each authority, an empty one too.
    ///
    /// # Errors
    /// [`StateError::Crypto`] when the library refuses.
    pub fn revocation_lists(&self, now: SystemTime) -> Result<Vec<Vec<u8>>, StateError> {
        let state = self.state();
        let in_force = |one: &&Revoked| one.expires > now;
        if !state.revoked.iter().any(|one| in_force(&one)) {
            return Ok(Vec::new());
        }
        let lists = state.roots.iter().chain(state.former.iter()).map(|root| {
            let of_root = state.revoked.iter().filter(in_force);
            let of_root = of_root.filter(|one| *one.issuer == *root.serial);
            let revoked: Vec<&Revoked> = of_root.collect();
            issue::revocation_list(root, &revoked, state.list_number, now)
        });
        lists.collect()
    }

    /// How many SVIDs are on the lists.
    pub fn revoked(&self, now: SystemTime) -> usize {
        let state = self.state();
        let in_force = state.revoked.iter().filter(|one| one.expires > now);
        in_force.count()
    }

    /// Takes SVIDs back, for as long as they would have lived. What has ended for good by `settled` is
    /// forgotten; what ended since may be valid again, if the clock is set back.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be written down; they are revoked in memory all the same.
    pub fn revoke(
        &self,
        svids: &[RevokedSvid],
        now: SystemTime,
        settled: SystemTime,
    ) -> Result<(), StateError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = State::clone(&self.state());
        let is_much = next.revoked.len() + svids.len() > MAX_REVOKED;
        let ended = if is_much { now } else { settled };
        next.revoked.retain(|one| one.expires > ended);
        let known: HashSet<Vec<u8>> = next.revoked.iter().map(|one| one.serial.clone()).collect();
        for svid in svids {
            if !known.contains(&*svid.serial) {
                next.revoked.push(Revoked {
                    serial: svid.serial.to_vec(),
                    issuer: svid.issuer.to_vec(),
                    at: now,
                    expires: svid.expires,
                });
            }
        }
        next.list_number += 1;
        let written = self.folder.write(&self.trust_domain, &next);
        self.state.store(Arc::new(next));
        written
    }

    /// Prepares the next root and the next key of tokens, and lets go of expired ones, if it is time.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be written down; nothing changes then, and the next call
    /// tries again.
    pub fn rotate(&self, now: SystemTime) -> Result<Rotation, StateError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = State::clone(&self.state());
        // Both, whatever the first says.
        let mut changed = next.roots.forget_ended(now) | next.jwt_keys.forget_ended(now);
        changed |= next.former.forget_ended(now);
        let mut failed = None;
        if let Some(active_from) = next.roots.next_due(now) {
            match self.setting.new_signer(&self.trust_domain, now) {
                Ok(root) => {
                    next.roots.push(root, active_from);
                    changed = true;
                }
                // Told at the end: the keys of tokens must not wait for an authority above.
                Err(error) => failed = Some(error),
            }
        }
        if let Some(active_from) = next.jwt_keys.next_due(now) {
            let key = JwtKey::make(self.setting.lifetimes.root, now)?;
            next.jwt_keys.push(key, active_from);
            changed = true;
        }
        if changed {
            next.sequence += 1;
            self.folder.write(&self.trust_domain, &next)?;
            self.state.store(Arc::new(next));
        }
        match (failed, changed) {
            (Some(error), _) => Err(error),
            (None, true) => Ok(Rotation::Changed),
            (None, false) => Ok(Rotation::None),
        }
    }

    /// All roots and keys of tokens, oldest first.
    pub fn show(&self, now: SystemTime) -> Vec<Shown> {
        fn shown<T: Lived>(
            kind: &'static str,
            signers: &Signers<T>,
            now: SystemTime,
        ) -> Vec<Shown> {
            let all = signers.standings(now).map(|(one, standing)| Shown {
                kind,
                id: one.id(),
                standing,
                active_from: one.active_from,
                not_after: one.not_after(),
            });
            all.collect()
        }
        let state = self.state();
        let mut all = shown("x509", &state.roots, now);
        all.extend(shown("jwt", &state.jwt_keys, now));
        all
    }

    /// Makes the next root and the next key of tokens before their time, and tells them in bundles.
    ///
    /// # Errors
    /// [`StateError::AlreadyPrepared`], or it cannot be written down; nothing changes then.
    pub fn prepare(&self, now: SystemTime) -> Result<(), StateError> {
        self.change(|next| {
            // One kind may be prepared already, as after another authority above was named.
            let (root_from, key_from) =
                (next.roots.prepare_for(now), next.jwt_keys.prepare_for(now));
            if root_from.is_err() && key_from.is_err() {
                return Err(StateError::AlreadyPrepared);
            }
            if let Ok(from) = root_from {
                let root = self.setting.new_signer(&self.trust_domain, now)?;
                next.roots.push(root, from);
            }
            if let Ok(from) = key_from {
                let key = JwtKey::make(self.setting.lifetimes.root, now)?;
                next.jwt_keys.push(key, from);
            }
            Ok(())
        })
    }

    /// Has what is prepared sign from now on.
    ///
    /// # Errors
    /// [`StateError::NothingPrepared`], or it cannot be written down; nothing changes then.
    pub fn activate(&self, now: SystemTime) -> Result<(), StateError> {
        self.change(
            |next| match (next.roots.activate(now), next.jwt_keys.activate(now)) {
                (Err(error), Err(_)) => Err(error),
                _ => Ok(()),
            },
        )
    }

    /// Has all that a root or key signed be replaced. It stays in the bundles until it is revoked.
    ///
    /// # Errors
    /// [`StateError::Signs`], [`StateError::Unknown`], or it cannot be written down.
    pub fn taint(&self, id: &str, now: SystemTime) -> Result<(), StateError> {
        self.change(|next| {
            let found = next.roots.taint(id, now)? || next.jwt_keys.taint(id, now)?;
            found
                .then_some(())
                .ok_or_else(|| StateError::Unknown(id.to_owned()))
        })
    }

    /// Takes a tainted root or key out of the bundles: nobody trusts what it signed any more. Of a signer
    /// that an authority above vouches for, only that authority can say so; here its list stays.
    ///
    /// # Errors
    /// [`StateError::Signs`], [`StateError::NotTainted`], [`StateError::Unknown`], or it cannot be
    /// written down.
    pub fn revoke_signer(&self, id: &str, now: SystemTime) -> Result<(), StateError> {
        self.change(|next| {
            if let Some(root) = next.roots.remove(id, now)? {
                // Whoever trusts the authority above goes on to believe it: its list must be told.
                if root.above.is_some() {
                    next.former.take_in(root);
                }
                return Ok(());
            }
            match next.jwt_keys.remove(id, now)? {
                Some(_) => Ok(()),
                None => Err(StateError::Unknown(id.to_owned())),
            }
        })
    }

    /// Is what the root of this serial number signed still to be used?
    pub fn stands_by(&self, root: &[u8]) -> bool {
        let state = self.state();
        state
            .roots
            .iter()
            .any(|one| *one.serial == *root && !one.tainted)
    }

    /// Changes the state whole, on disk before in memory.
    fn change(
        &self,
        how: impl FnOnce(&mut State) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = State::clone(&self.state());
        how(&mut next)?;
        next.sequence += 1;
        self.folder.write(&self.trust_domain, &next)?;
        self.state.store(Arc::new(next));
        Ok(())
    }

    fn state(&self) -> Arc<State> {
        self.state.load_full()
    }
}

/// A root or a key of tokens, as administration shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// `x509` or `jwt`.
    pub kind: &'static str,
    /// The root's serial number, or the key's `kid`; hexadecimal.
    pub id: String,
    /// Where it stands.
    pub standing: Standing,
    /// From when on it signs.
    pub active_from: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// An SVID that is to be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedSvid {
    /// Its serial number.
    pub serial: Arc<[u8]>,
    /// The serial number of the root that signed it.
    pub issuer: Arc<[u8]>,
    /// When it would have ended.
    pub expires: SystemTime,
}

/// So many are kept, ended or not: no more than a list may hold that clients take.
const MAX_REVOKED: usize = 80_000;

#[cfg(test)]
mod tests;
