//! The end that was called: takes the caller's proof, and gives its own.

use std::{sync::Arc, time::Instant};

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use postern_spiffe::{SpiffeId, VerifiedPeer};
use rustls_pki_types::CertificateDer;
use tokio::{sync::Mutex, time::timeout};

use super::{Binding, End, LEAST_PAUSE, MAX_PROOF_BYTES, PATIENCE, Unproven, check, prove};
use crate::app::Proxy;

/// The renewals of one connection.
pub(crate) struct Renewals {
    proxy: Arc<Proxy>,
    /// The connection's number.
    id: u64,
    binding: Binding,
    /// Who is at the other end.
    expected: SpiffeId,
    /// Held while one is under way.
    pace: Mutex<Pace>,
}

/// When the last one began: each costs two signatures.
#[derive(Debug, Default)]
struct Pace(Option<Instant>);

impl Pace {
    /// May another one begin now?
    fn takes(&mut self, now: Instant) -> bool {
        let is_soon = self.0.is_some_and(|last| now < last + LEAST_PAUSE);
        if !is_soon {
            self.0 = Some(now);
        }
        !is_soon
    }
}

/// The caller has proven itself anew.
pub(crate) struct Renewed {
    pub(crate) peer: VerifiedPeer,
    pub(crate) leaf: CertificateDer<'static>,
    /// That we have, too.
    pub(crate) proof: Vec<u8>,
}

/// Why a renewal is refused. The caller hears nothing of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRenewed {
    #[error("a renewal comes too soon after the one before")]
    TooOften,
    #[error("the proof of a renewal does not come within {PATIENCE:?}")]
    TooSlow,
    #[error("the proof of a renewal does not come whole: {0}")]
    Body(String),
    #[error(transparent)]
    Unproven(#[from] Unproven),
    #[error("we have no identity to show")]
    NotReady,
    #[error("we cannot sign: {0}")]
    Sign(#[from] rustls::Error),
}

impl Renewals {
    pub(crate) fn new(proxy: &Arc<Proxy>, id: u64, binding: Binding, expected: SpiffeId) -> Self {
        Self {
            proxy: proxy.clone(),
            id,
            binding,
            expected,
            pace: Mutex::default(),
        }
    }

    /// Takes the caller's proof; from then on its new certificate is the one that counts.
    ///
    /// # Errors
    /// [`NotRenewed`]; the connection ends when it would have.
    pub(crate) async fn take(&self, body: Incoming) -> Result<Renewed, NotRenewed> {
        let mut pace = self.pace.try_lock().map_err(|_| NotRenewed::TooOften)?;
        if !pace.takes(Instant::now()) {
            return Err(NotRenewed::TooOften);
        }
        let whole = Limited::new(body, MAX_PROOF_BYTES).collect();
        let proof = timeout(PATIENCE, whole)
            .await
            .map_err(|_| NotRenewed::TooSlow)?
            .map_err(|error| NotRenewed::Body(error.to_string()))?
            .to_bytes();
        let (identity, _) = self.proxy.ready().ok_or(NotRenewed::NotReady)?;
        let (binding, expected) = (&self.binding, &self.expected);
        let (peer, chain) = check(&proof, &identity, binding, End::Client, expected)?;
        let leaf = chain.first().cloned();
        let leaf = leaf.ok_or(Unproven::Malformed("no certificate"))?;
        let proof = prove(&identity, binding, End::Server)?;
        self.proxy.connections.renewed(self.id, &peer, chain);
        self.proxy.recheck_connection(self.id);
        Ok(Renewed { peer, leaf, proof })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{LEAST_PAUSE, Pace};

    #[test]
    fn renewals_keep_their_distance_and_one_that_comes_too_soon_puts_off_nothing() {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        let moment = Duration::from_millis(1);
        assert!(pace.takes(begun));
        assert!(!pace.takes(begun));
        assert!(!pace.takes(begun + LEAST_PAUSE - moment));
        assert!(pace.takes(begun + LEAST_PAUSE));
        assert!(!pace.takes(begun + 2 * LEAST_PAUSE - moment));
    }
}
