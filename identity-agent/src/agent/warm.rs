//! The SVIDs that are in use: one for each Workload in each pod, however many of its processes ask.
//!
//! Issuing costs two operations with a key; telling an SVID that is there costs none. What is not
//! asked for any more is forgotten when it would be renewed.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use dashmap::{DashMap, Entry};
use postern_policies::model::workload::{Workload, WorkloadName};

use crate::{
    attest::Pod,
    authority::{Issued, StateError},
};

/// An SVID in use.
#[derive(Debug)]
pub struct Warm {
    issued: Issued,
    spiffe_id: String,
    dns_names: Vec<String>,
    lifetime: Option<Duration>,
    renew_at: Instant,
}

impl Warm {
    pub(super) fn new(workload: &Workload, issued: Issued, now: SystemTime) -> Self {
        let life = issued.not_after.duration_since(now).unwrap_or_default();
        let random = issued.serial.last().copied().unwrap_or_default();
        Self {
            spiffe_id: workload.spiffe_id.to_string(),
            dns_names: workload.dns_names.clone(),
            lifetime: workload.svid_ttl,
            renew_at: Instant::now() + half_with_jitter(life, random),
            issued,
        }
    }

    /// The certificate and its key.
    pub fn issued(&self) -> &Issued {
        &self.issued
    }

    /// The identity.
    pub fn spiffe_id(&self) -> &str {
        &self.spiffe_id
    }

    /// Its serial number, in hexadecimal.
    pub fn serial(&self) -> String {
        hexadecimal(&self.issued.serial)
    }

    /// When it is to be renewed.
    pub fn renew_at(&self) -> Instant {
        self.renew_at
    }

    /// Is it what this Workload says?
    pub fn is_for(&self, workload: &Workload) -> bool {
        self.spiffe_id == workload.spiffe_id.as_str()
            && self.dns_names == workload.dns_names
            && self.lifetime == workload.svid_ttl
    }

    /// A clock that was set, or a machine that slept, may have ended it before its time, or made it
    /// one of the future.
    fn is_due(&self) -> bool {
        self.renew_at <= Instant::now() || is_wrong(&self.issued, SystemTime::now())
    }
}

/// All SVIDs in use.
#[derive(Debug, Default)]
pub(super) struct WarmSvids(DashMap<(WorkloadName, Pod), Arc<Warm>>);

impl WarmSvids {
    /// The SVID that is there and good, or a new one. Callers who ask for one at the same time get
    /// the same.
    pub(super) fn get_or_issue(
        &self,
        (workload, pod): (&WorkloadName, Pod),
        is_good: impl Fn(&Warm) -> bool,
        full: impl Fn(),
        issue: impl FnOnce() -> Result<Warm, StateError>,
    ) -> Result<Arc<Warm>, StateError> {
        let is_full = self.0.len() >= MAX_WARM;
        match self.0.entry((workload.clone(), pod)) {
            Entry::Occupied(mut known) => {
                if !known.get().is_due() && is_good(known.get()) {
                    return Ok(known.get().clone());
                }
                let fresh = Arc::new(issue()?);
                known.insert(fresh.clone());
                Ok(fresh)
            }
            // Too many to remember: each caller gets one of its own.
            Entry::Vacant(_) if is_full => {
                full();
                issue().map(Arc::new)
            }
            Entry::Vacant(free) => Ok(free.insert(Arc::new(issue()?)).clone()),
        }
    }

    /// Forgets what was taken back.
    pub(super) fn forget(&self, workload: &WorkloadName, pod: Pod) {
        self.0.remove(&(workload.clone(), pod));
    }

    /// Forgets what nobody has renewed.
    pub(super) fn forget_due(&self) {
        self.0
            .retain(|_, warm| !warm.is_due() || Arc::strong_count(warm) > 1);
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

const MAX_WARM: usize = 50_000;

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{half_with_jitter, is_wrong};
    use crate::authority::Issued;

    #[test]
    fn a_clock_that_is_set_makes_an_svid_due_when_peers_would_refuse_it() {
        // FAULTS 36, 37
        let now = SystemTime::now();
        let minute = Duration::from_secs(60);
        let issued = Issued {
            chain: Vec::new(),
            key: Vec::new().into(),
            serial: Vec::new(),
            issuer: Vec::new(),
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
