//! The end that called: when a renewal is due, what is asked, and what the answer means.

use std::{sync::Arc, time::SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Uri};
use postern_spiffe::SpiffeId;

use super::{Binding, End, LEAST_PAUSE, METHOD, Unproven, check, prove};
use crate::{connections::Connections, telemetry::Metrics, tls::Current};

/// What is needed to keep one connection beyond its certificates.
#[derive(Debug)]
pub(crate) struct Renewal {
    pub(crate) identity: Current,
    pub(crate) connections: Arc<Connections>,
    pub(crate) metrics: Arc<Metrics>,
    /// The connection's number.
    pub(crate) id: u64,
    pub(crate) binding: Binding,
    /// Who is at the other end.
    pub(crate) expected: SpiffeId,
    /// Until when both ends have proven themselves.
    pub(crate) until: SystemTime,
}

impl Renewal {
    /// Waits until there is something to renew: we have another certificate, or half of the time is
    /// over. `false` when there never will be.
    pub(crate) async fn due(&mut self) -> bool {
        let left = self.until.duration_since(SystemTime::now());
        let half = (left.unwrap_or_default() / 2).max(LEAST_PAUSE * 2);
        tokio::select! {
            changed = self.identity.changed() => changed.is_ok(),
            () = tokio::time::sleep(half) => true,
        }
    }

    /// The question: our proof, and when the certificate ends that it shows.
    ///
    /// # Errors
    /// When there is no identity, or its key does not sign.
    pub(crate) fn request(&mut self) -> anyhow::Result<(Request<Bytes>, SystemTime)> {
        let identity = self.identity.borrow_and_update().clone();
        let identity = identity.context("we have no identity")?;
        let proof = prove(&identity, &self.binding, End::Client)?;
        let mut request = Request::new(Bytes::from(proof));
        *request.method_mut() = Method::from_bytes(METHOD.as_bytes())?;
        *request.uri_mut() = Uri::from_static("https://postern.invalid/");
        Ok((request, identity.svid().not_after()))
    }

    /// The answer: the server's proof. `ours` is when our certificate, as the server knows it now,
    /// ends.
    ///
    /// # Errors
    /// [`Unproven`]; the connection ends when it would have.
    pub(crate) fn answered(&mut self, proof: &[u8], ours: SystemTime) -> Result<(), Unproven> {
        let current = self.identity.borrow().clone();
        let identity = current.ok_or(Unproven::Malformed("we have no identity"))?;
        let (peer, chain) = check(proof, &identity, &self.binding, End::Server, &self.expected)?;
        self.until = peer.svid().not_after().min(ours);
        self.connections.renewed(self.id, &peer, chain);
        Ok(())
    }

    /// Counts how it went.
    pub(crate) fn count(&self, result: &'static str) {
        super::count(&self.metrics, "outbound", result);
    }
}
