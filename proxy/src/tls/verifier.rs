//! What rustls asks during a handshake, answered by the SPIFFE checks.

use std::sync::Arc;

use postern_spiffe::{PeerRefused, PeerRole, SpiffeId, VerifiedPeer};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::Trust;

/// Verifies those who call us: any identity that a known trust domain vouches for.
#[derive(Debug)]
pub(super) struct Clients {
    trust: Arc<Trust>,
    provider: Arc<CryptoProvider>,
}

impl Clients {
    pub(super) fn new(trust: Arc<Trust>, provider: Arc<CryptoProvider>) -> Self {
        Self { trust, provider }
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints would tell strangers whom we trust, and grow with every trust domain.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = whole(leaf, intermediates);
        verified(&self.trust, &chain, PeerRole::Client)
            .map(|_| ClientCertVerified::assertion())
            .map_err(|refused| alert(&refused))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Verifies a chain, and tells the log what became of it.
fn verified(
    trust: &Trust,
    chain: &[CertificateDer<'_>],
    role: PeerRole,
) -> Result<VerifiedPeer, PeerRefused> {
    let verified = trust.verify(chain, role);
    match &verified {
        Ok(peer) => tracing::debug!(
            spiffe_id = %peer.id(),
            serial = %peer.svid().serial(),
            "a peer's certificate is good"
        ),
        Err(refused) => tracing::debug!(%refused, "a peer's certificate is refused"),
    }
    verified
}

/// Verifies the server that we call: it must be exactly the one that serves the destination.
#[derive(Debug)]
pub(super) struct Server {
    trust: Arc<Trust>,
    provider: Arc<CryptoProvider>,
    expected: SpiffeId,
}

impl Server {
    pub(super) fn new(
        trust: Arc<Trust>,
        provider: Arc<CryptoProvider>,
        expected: SpiffeId,
    ) -> Self {
        Self {
            trust,
            provider,
            expected,
        }
    }
}

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = whole(leaf, intermediates);
        let peer =
            verified(&self.trust, &chain, PeerRole::Server).map_err(|refused| alert(&refused))?;
        if *peer.id() != self.expected {
            tracing::warn!(found = %peer.id(), expected = %self.expected, "another identity serves the destination");
            return Err(Error::InvalidCertificate(CertificateError::NotValidForName));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Our own certificate, whatever is asked for.
#[derive(Debug)]
pub(super) struct Own(pub(super) Arc<CertifiedKey>);

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn whole<'c>(
    leaf: &CertificateDer<'c>,
    intermediates: &[CertificateDer<'c>],
) -> Vec<CertificateDer<'c>> {
    std::iter::once(leaf)
        .chain(intermediates)
        .cloned()
        .collect()
}

/// The alert that a refusal becomes. The peer learns no more; the rule is in our log.
fn alert(refused: &PeerRefused) -> Error {
    tracing::debug!(reason = %refused, "a certificate chain was refused");
    Error::InvalidCertificate(match refused {
        PeerRefused::Expired => CertificateError::Expired,
        PeerRefused::NotYetValid => CertificateError::NotValidYet,
        PeerRefused::Revoked => CertificateError::Revoked,
        PeerRefused::UnknownAuthority | PeerRefused::UnknownTrustDomain(_) => {
            CertificateError::UnknownIssuer
        }
        PeerRefused::ExtendedKeyUsage => CertificateError::InvalidPurpose,
        _ => CertificateError::ApplicationVerificationFailure,
    })
}
