//! The SVIDs that are in use: one for each Workload in each pod, however many of its processes ask.
//!
//! Issuing costs two operations with a key; telling an SVID that is there costs none. What is not
//! asked for any more is forgotten when it would be renewed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use dashmap::{DashMap, Entry, try_result::TryResult};
use postern_policies::model::workload::{Workload, WorkloadName};
use postern_spiffe::SpiffeId;

use crate::{attest::Pod, authority::Issued, shares::Shares};

/// An SVID in use.
#[derive(Debug)]
pub struct Warm {
    /// Its chain is shared by all messages that tell it.
    issued: Issued,
    spiffe_id: SpiffeId,
    dns_names: Box<[String]>,
    lifetime: Option<Duration>,
    /// The user whose process asked for it first.
    owner: u32,
    /// Put off when there was no other to be had.
    renew_at: Mutex<Instant>,
}

impl Warm {
    pub(super) fn new(workload: &Workload, owner: u32, issued: Issued, now: SystemTime) -> Self {
        let life = issued.not_after.duration_since(now).unwrap_or_default();
        let random = issued.serial.last().copied().unwrap_or_default();
        Self {
            spiffe_id: workload.spiffe_id.clone(),
            dns_names: workload.dns_names.as_slice().into(),
            lifetime: workload.svid_ttl,
            owner,
            renew_at: Mutex::new(Instant::now() + half_with_jitter(life, random)),
            issued,
        }
    }

    /// The chain in DER, leaf first, one certificate after the other.
    pub fn chain(&self) -> &Bytes {
        &self.issued.chain
    }

    /// Its key, PKCS#8 in DER.
    pub fn key(&self) -> &[u8] {
        &self.issued.key
    }

    /// The serial number of the root that signed it.
    pub fn issuer(&self) -> &[u8] {
        &self.issued.issuer
    }

    /// The identity.
    pub fn spiffe_id(&self) -> &str {
        self.spiffe_id.as_str()
    }

    /// Its serial number, in hexadecimal.
    pub fn serial(&self) -> String {
        hexadecimal(&self.issued.serial)
    }

    /// When it is to be renewed.
    pub fn renew_at(&self) -> Instant {
        *self.renew_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it renewed a little later: there is no other to be had now, and it is still good.
    fn put_off(&self) {
        let mut renew_at = self.renew_at.lock().unwrap_or_else(PoisonError::into_inner);
        *renew_at = Instant::now() + RETRY_AFTER;
    }

    /// Is it what this Workload says?
    pub fn is_for(&self, workload: &Workload) -> bool {
        self.spiffe_id == workload.spiffe_id
            && *self.dns_names == *workload.dns_names
            && self.lifetime == workload.svid_ttl
    }

    /// A clock that was set, or a machine that slept, may have ended it before its time, or made it
    /// one of the future.
    fn is_due(&self) -> bool {
        self.renew_at() <= Instant::now() || self.is_wrong()
    }

    fn is_wrong(&self) -> bool {
        is_wrong(&self.issued, SystemTime::now())
    }
}

/// All SVIDs in use.
#[derive(Debug)]
pub(super) struct WarmSvids {
    all: DashMap<(WorkloadName, Pod), Arc<Warm>>,
    by_user: Shares<u32>,
    limit: usize,
}

impl Default for WarmSvids {
    fn default() -> Self {
        Self::up_to(MAX_WARM)
    }
}

impl WarmSvids {
    fn up_to(limit: usize) -> Self {
        Self {
            all: DashMap::new(),
            by_user: Shares::default(),
            limit,
        }
    }

    /// The SVID that is there and good, unless somebody has to be waited for to tell.
    pub(super) fn known(
        &self,
        workload: &WorkloadName,
        pod: Pod,
        is_good: impl Fn(&Warm) -> bool,
    ) -> Option<Arc<Warm>> {
        let TryResult::Present(known) = self.all.try_get(&(workload.clone(), pod)) else {
            return None;
        };
        (!known.is_due() && is_good(&known)).then(|| known.clone())
    }

    /// The SVID that is there and good, or a new one for this user. Callers who ask for one at the
    /// same time get the same. One that is to be renewed stays while it is good and no other can be
    /// issued.
    pub(super) fn get_or_issue<E>(
        &self,
        (workload, pod, owner): (&WorkloadName, Pod, u32),
        is_good: impl Fn(&Warm) -> bool,
        full: impl Fn(),
        issue: impl FnOnce() -> Result<Warm, E>,
    ) -> Result<Arc<Warm>, E> {
        let is_full = self.all.len() >= self.limit;
        match self.all.entry((workload.clone(), pod)) {
            Entry::Occupied(mut known) => {
                let is_known_good = is_good(known.get());
                if !known.get().is_due() && is_known_good {
                    return Ok(known.get().clone());
                }
                match issue() {
                    Ok(mut fresh) => {
                        fresh.owner = known.get().owner;
                        let fresh = Arc::new(fresh);
                        known.insert(fresh.clone());
                        Ok(fresh)
                    }
                    Err(_) if is_known_good && !known.get().is_wrong() => {
                        known.get().put_off();
                        Ok(known.get().clone())
                    }
                    Err(error) => Err(error),
                }
            }
            Entry::Vacant(free) => {
                let fresh = Arc::new(issue()?);
                // Too many to remember: each caller gets one of its own.
                match !is_full && self.by_user.take(owner, self.limit / 4 * 3) {
                    true => drop(free.insert(fresh.clone())),
                    false => full(),
                }
                Ok(fresh)
            }
        }
    }

    /// Forgets what was taken back.
    pub(super) fn forget(&self, workload: &WorkloadName, pod: Pod) {
        if let Some((_, warm)) = self.all.remove(&(workload.clone(), pod)) {
            self.by_user.give_back(warm.owner);
        }
    }

    /// Forgets what the processes of a pod had.
    pub(super) fn forget_pod(&self, pod: Pod) {
        self.all.retain(|(_, of), warm| {
            let is_kept = *of != pod;
            if !is_kept {
                self.by_user.give_back(warm.owner);
            }
            is_kept
        });
    }

    /// The pods whose SVIDs are here.
    pub(super) fn pods(&self) -> impl Iterator<Item = Pod> {
        self.all.iter().map(|known| known.key().1)
    }

    /// Forgets what nobody has renewed.
    pub(super) fn forget_due(&self) {
        self.all.retain(|_, warm| {
            let is_kept = !warm.is_due() || Arc::strong_count(warm) > 1;
            if !is_kept {
                self.by_user.give_back(warm.owner);
            }
            is_kept
        });
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Is it valid no more, or not yet?
fn is_wrong(issued: &Issued, now: SystemTime) -> bool {
    issued.not_after <= now || issued.not_before > now
}

/// Half of a lifetime, a tenth more or less, so that what was issued together is not renewed
/// together. `random` is any byte that nobody can foresee.
fn half_with_jitter(life: Duration, random: u8) -> Duration {
    let half = life / 2;
    half - half / 10 + half / 5 * u32::from(random) / 255
}

const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Of one user three quarters: nobody has all of them.
const MAX_WARM: usize = 50_000;

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::{Arc, Mutex},
        time::{Duration, Instant, SystemTime},
    };

    use bytes::Bytes;
    use postern_policies::model::workload::WorkloadName;
    use postern_spiffe::SpiffeId;

    use super::{Warm, WarmSvids, half_with_jitter, is_wrong};
    use crate::{attest::Pod, authority::Issued};

    fn name() -> WorkloadName {
        WorkloadName {
            namespace: "default".into(),
            name: "a".into(),
        }
    }

    /// One that ends in an hour, and is due now or later.
    fn warm(owner: u32, is_due: bool) -> Warm {
        let (now, clock) = (SystemTime::now(), Instant::now());
        let hour = Duration::from_secs(60 * 60);
        Warm {
            issued: Issued {
                chain: Bytes::new(),
                key: Vec::new().into(),
                serial: [].into(),
                issuer: [].into(),
                not_before: now,
                not_after: now + hour,
            },
            spiffe_id: SpiffeId::parse("spiffe://example.org/a").unwrap(),
            dns_names: [].into(),
            lifetime: None,
            owner,
            renew_at: Mutex::new(if is_due { clock } else { clock + hour }),
        }
    }

    /// What a user gets in this session, and whether the bound was reached.
    fn get(svids: &WarmSvids, session: i32, owner: u32) -> (Arc<Warm>, bool) {
        let is_full = Cell::new(false);
        let key = (&name(), Pod::Session(session), owner);
        let got = svids.get_or_issue(
            key,
            |_| true,
            || is_full.set(true),
            || Ok::<_, ()>(warm(owner, false)),
        );
        (got.unwrap(), is_full.get())
    }

    #[test]
    fn a_user_has_three_quarters_of_what_is_kept_and_another_one_still_has_room() {
        let svids = WarmSvids::up_to(4);
        for session in 0..3 {
            assert!(!get(&svids, session, 1).1);
        }
        assert!(get(&svids, 3, 1).1);
        let (first, is_full) = get(&svids, 9, 2);
        assert!(!is_full);
        assert!(Arc::ptr_eq(&first, &get(&svids, 9, 2).0));
        // One that is forgotten makes room.
        svids.forget(&name(), Pod::Session(0));
        assert!(!get(&svids, 3, 1).1);
        for session in [1, 2, 3, 9] {
            svids.forget(&name(), Pod::Session(session));
        }
        assert_eq!((svids.all.len(), svids.by_user.len()), (0, 0));
    }

    #[test]
    fn one_that_is_known_is_told_at_once_and_only_if_it_is_good_and_nobody_is_at_it() {
        let svids = WarmSvids::up_to(4);
        let pod = Pod::Session(1);
        let known = |is_good: bool| svids.known(&name(), pod, |_| is_good);
        assert!(known(true).is_none(), "there is none");
        let (fresh, _) = get(&svids, 1, 1);
        assert!(Arc::ptr_eq(&known(true).unwrap(), &fresh));
        assert!(
            known(false).is_none(),
            "it is another's, or its root is gone"
        );
        assert!(svids.known(&name(), Pod::Session(2), |_| true).is_none());
        // While one is issued in its place, who serves does not wait for it.
        let key = (name(), pod);
        let busy = svids.all.entry(key.clone());
        assert!(known(true).is_none(), "somebody is at it");
        drop(busy);
        svids.all.insert(key, Arc::new(warm(1, true)));
        assert!(known(true).is_none(), "it is due");
    }

    #[test]
    fn one_that_is_due_stays_while_it_is_good_and_no_other_can_be_issued() {
        // FAULTS 33
        let svids = WarmSvids::up_to(4);
        let key = || (name(), Pod::Session(1));
        let fails = |is_good: bool| {
            let name = name();
            let asked = (&name, Pod::Session(1), 1);
            svids.get_or_issue(asked, |_| is_good, || (), || Err(()))
        };
        assert!(fails(true).is_err(), "there is none");
        let known = Arc::new(warm(1, true));
        svids.all.insert(key(), known.clone());
        assert!(
            fails(false).is_err(),
            "it is another's, or its root is gone"
        );
        assert!(Arc::ptr_eq(&fails(true).unwrap(), &known));
        assert!(
            known.renew_at() > Instant::now(),
            "it is not tried again at once"
        );
        let ended = Warm {
            issued: Issued {
                not_after: SystemTime::now() - Duration::from_secs(1),
                ..warm(1, true).issued
            },
            ..warm(1, true)
        };
        svids.all.insert(key(), Arc::new(ended));
        assert!(fails(true).is_err(), "it has ended");
    }

    #[test]
    fn a_clock_that_is_set_makes_an_svid_due_when_peers_would_refuse_it() {
        // FAULTS 36, 37
        let now = SystemTime::now();
        let minute = Duration::from_secs(60);
        let issued = Issued {
            chain: Bytes::new(),
            key: Vec::new().into(),
            serial: [].into(),
            issuer: [].into(),
            not_before: now,
            not_after: now + 60 * minute,
        };
        for (clock, expected) in [
            (now, false),
            (now + 59 * minute, false),
            (now + 120 * minute, true),
            (now - 120 * minute, true),
        ] {
            assert_eq!(is_wrong(&issued, clock), expected, "{clock:?}");
        }
    }

    #[test]
    fn renewal_is_due_around_half_of_the_life() {
        let life = Duration::from_secs(3600);
        for random in [0, 1, 127, 128, 254, 255] {
            let due = half_with_jitter(life, random).as_secs();
            assert!((1620..=1980).contains(&due), "{random}: {due}");
        }
        assert!(half_with_jitter(life, 0) < half_with_jitter(life, 255));
        assert_eq!(half_with_jitter(Duration::ZERO, 255), Duration::ZERO);
    }
}
