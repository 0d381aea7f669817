//! Proving anew, on an open connection, who one is.
//!
//! A connection ends with its peer's certificate, and certificates live for minutes. What runs on
//! it longer, such as a stream of gRPC, need not end with it: between two of our proxies each end
//! shows its next certificate over the connection itself. TLS has a form for that (RFC 9261), which
//! no library of ours speaks; this is the same thought with less in it. A proof is a chain and a
//! signature, made with the key of its leaf, over a value that only the two ends of this one
//! connection can derive (RFC 8446 section 7.5, RFC 9266 for the thought of it). So a proof is worth
//! nothing elsewhere, and nobody between the two can make one.
//!
//! Both ends say in the handshake that they understand it, by the protocol [`PROTOCOL`]: HTTP/2 as
//! ever, and one method more, [`METHOD`]. The identity must be the one that the connection began
//! with; another is refused, and the connection ends when it would have.
//!
//! ```text
//! proof     = scheme:u16 signature<u16> certificate<u24> certificate<u24> …     all big-endian
//! signature over 64 spaces, the end's context, 0, the connection's value, the chain as above
//! ```

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use postern_spiffe::{PeerRefused, PeerRole, SpiffeId, VerifiedPeer};
use rustls::{ConnectionCommon, SignatureScheme, crypto::CryptoProvider};
use rustls_pki_types::CertificateDer;

use crate::{
    telemetry::{Metrics, RenewalLabels},
    tls::Identity,
};
pub(crate) use client::Renewal;
pub(crate) use server::{NotRenewed, Renewals, Renewed};

/// The name in the handshake: HTTP/2, and renewals.
pub(crate) const PROTOCOL: &[u8] = b"postern/h2";

/// The method of a renewal. It is none of those that are ever forwarded.
pub(crate) const METHOD: &str = "POSTERN-RENEW";

/// The longest proof. A chain of ten certificates with large keys is shorter.
pub(crate) const MAX_PROOF_BYTES: usize = 64 << 10;

/// How long an exchange may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How soon a connection may renew again: each costs two signatures.
const LEAST_PAUSE: Duration = Duration::from_millis(500);

/// What binds proofs to one connection.
#[derive(Clone, Copy)]
pub(crate) struct Binding([u8; 32]);

impl std::fmt::Debug for Binding {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Binding(<secret>)")
    }
}

impl Binding {
    /// That of a connection whose two ends understand renewals.
    pub(crate) fn of<D>(session: &ConnectionCommon<D>) -> Option<Self> {
        if session.alpn_protocol() != Some(PROTOCOL) {
            return None;
        }
        let value = session.export_keying_material([0; 32], LABEL, None);
        value.ok().map(Self)
    }
}

/// Which end of the connection proves itself. The one cannot use the other's proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Server,
}

impl End {
    fn context(self) -> &'static [u8] {
        match self {
            Self::Client => b"Postern, renewal by the client",
            Self::Server => b"Postern, renewal by the server",
        }
    }

    fn role(self) -> PeerRole {
        match self {
            Self::Client => PeerRole::Client,
            Self::Server => PeerRole::Server,
        }
    }
}

/// Why a proof is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unproven {
    /// Not the form above.
    #[error("the proof of a renewal is malformed: {0}")]
    Malformed(&'static str),
    /// The chain is not to be trusted.
    #[error("the chain of a renewal is refused: {0}")]
    Chain(#[from] PeerRefused),
    /// Somebody else.
    #[error("a renewal by another identity, `{found}`: the connection is that of `{expected}`")]
    Identity {
        found: Box<SpiffeId>,
        expected: Box<SpiffeId>,
    },
    /// Not signed with the leaf's key, or not for this connection.
    #[error("the signature of a renewal is not that of its certificate for this connection")]
    Signature,
}

/// Proves that we hold the key of our present certificate.
///
/// # Errors
/// [`rustls::Error`] when the key cannot sign; callers let the connection end when it must.
pub(crate) fn prove(
    identity: &Identity,
    binding: &Binding,
    end: End,
) -> Result<Vec<u8>, rustls::Error> {
    let key = identity.key();
    let certificates = chain_bytes(&key.cert)?;
    let signer = key
        .key
        .choose_scheme(&SCHEMES)
        .ok_or_else(|| rustls::Error::General("the key knows no scheme of TLS 1.3".into()))?;
    let signature = signer.sign(&message(binding, end, &certificates))?;
    let too_long = |_| rustls::Error::General("the signature is too long".into());
    let length = u16::try_from(signature.len()).map_err(too_long)?;
    let mut proof = Vec::with_capacity(4 + signature.len() + certificates.len());
    proof.extend(u16::from(signer.scheme()).to_be_bytes());
    proof.extend(length.to_be_bytes());
    proof.extend(signature);
    proof.extend(certificates);
    Ok(proof)
}

/// Checks a proof of the other end, and tells who it is and with which chain.
///
/// # Errors
/// [`Unproven`]; callers keep what they knew, and the connection ends when it would have.
pub(crate) fn check(
    proof: &[u8],
    identity: &Identity,
    binding: &Binding,
    end: End,
    expected: &SpiffeId,
) -> Result<(VerifiedPeer, Vec<CertificateDer<'static>>), Unproven> {
    let (scheme, rest) = number::<2>(proof).ok_or(Unproven::Malformed("no scheme"))?;
    let (length, rest) = number::<2>(rest).ok_or(Unproven::Malformed("no signature"))?;
    let (signature, certificates) = rest
        .split_at_checked(length)
        .ok_or(Unproven::Malformed("the signature is cut off"))?;
    let chain = chain(certificates)?;
    let leaf = chain.first().ok_or(Unproven::Malformed("no certificate"))?;
    let peer = identity.trust().verify(&chain, end.role())?;
    if peer.id() != expected {
        return Err(Unproven::Identity {
            found: Box::new(peer.id().clone()),
            expected: Box::new(expected.clone()),
        });
    }
    let scheme = u16::try_from(scheme).map_or(SignatureScheme::Unknown(0), SignatureScheme::from);
    verify(
        identity.provider(),
        scheme,
        leaf,
        &message(binding, end, certificates),
        signature,
    )?;
    Ok((peer, chain))
}

fn verify(
    provider: &CryptoProvider,
    scheme: SignatureScheme,
    leaf: &CertificateDer<'_>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), Unproven> {
    if !SCHEMES.contains(&scheme) {
        return Err(Unproven::Signature);
    }
    let known = provider.signature_verification_algorithms.mapping;
    // The first algorithm is the one of TLS 1.3, where a scheme names its curve.
    let algorithm = known
        .iter()
        .find(|(name, _)| *name == scheme)
        .and_then(|(_, algorithms)| algorithms.first())
        .ok_or(Unproven::Signature)?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|_| Unproven::Signature)?;
    leaf.verify_signature(*algorithm, message, signature)
        .map_err(|_| Unproven::Signature)
}

fn message(binding: &Binding, end: End, certificates: &[u8]) -> Vec<u8> {
    let mut message = vec![b' '; 64];
    message.extend(end.context());
    message.push(0);
    message.extend(binding.0);
    message.extend(certificates);
    message
}

fn chain_bytes(chain: &[CertificateDer<'_>]) -> Result<Vec<u8>, rustls::Error> {
    let mut bytes = Vec::new();
    for certificate in chain {
        let length = u32::try_from(certificate.len()).ok();
        let [0, length @ ..] = length.unwrap_or(u32::MAX).to_be_bytes() else {
            return Err(rustls::Error::General("a certificate is too long".into()));
        };
        bytes.extend(length);
        bytes.extend(certificate.as_ref());
    }
    Ok(bytes)
}

fn chain(mut bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unproven> {
    let mut chain = Vec::new();
    while !bytes.is_empty() {
        if chain.len() == MAX_CERTIFICATES {
            return Err(Unproven::Malformed("too many certificates"));
        }
        let (length, rest) = number::<3>(bytes).ok_or(Unproven::Malformed("no length"))?;
        let (certificate, rest) = rest
            .split_at_checked(length)
            .ok_or(Unproven::Malformed("a certificate is cut off"))?;
        chain.push(CertificateDer::from(certificate.to_vec()));
        bytes = rest;
    }
    Ok(chain)
}

/// A number of `N` bytes, and what follows.
fn number<const N: usize>(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<N>()?;
    let value = number
        .iter()
        .fold(0, |value, byte| value << 8 | usize::from(*byte));
    Some((value, rest))
}

/// How long a connection takes new requests that is renewed at half of what is `left`: the rest is
/// there to try again, and to end what has begun.
pub(crate) fn until_retired(left: Duration) -> Duration {
    left / 4 * 3
}

/// Counts a renewal.
pub(crate) fn count(metrics: &Metrics, direction: &'static str, result: &'static str) {
    let labels = RenewalLabels { direction, result };
    metrics.renewals.get_or_create(&labels).inc();
}

/// Spec: RFC 5705 section 4, a label of our own.
const LABEL: &[u8] = b"EXPERIMENTAL postern renewal";

/// What TLS 1.3 takes for the signature of a certificate's owner. Spec: RFC 8446 section 4.2.3.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

const MAX_CERTIFICATES: usize = 10;
