//! Trust bundles: the authorities that may vouch for the identities of one trust domain.
//!
//! Bundles of different domains are never merged: an authority speaks for its own domain and for
//! no other. Spec: SPIFFE Trust Domain and Bundle sections 3 and 4.

mod document;

use std::collections::BTreeMap;

use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::{
    trust_domain::TrustDomain,
    x509_svid::{SvidError, check_authority, split_der},
};

pub use document::{BundleDocument, DocumentError, MAX_DOCUMENT};

/// The X.509 authorities of one trust domain, parsed once so that a handshake parses nothing.
#[derive(Debug, Clone)]
pub struct X509Bundle {
    trust_domain: TrustDomain,
    authorities: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl X509Bundle {
    /// Takes the authorities of `trust_domain`. None at all is legal and trusts nobody: it is how
    /// a domain is revoked (Trust Domain and Bundle section 4.2).
    ///
    /// # Errors
    /// One certificate that is not an authority refuses the whole bundle: a half-read bundle
    /// would quietly trust less, or other, than was meant.
    pub fn new(
        trust_domain: TrustDomain,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let anchors = authorities
            .iter()
            .enumerate()
            .map(|(index, certificate)| {
                check_authority(certificate, &trust_domain).map_err(|cause| BundleError {
                    trust_domain: trust_domain.clone(),
                    index,
                    cause,
                })?;
                webpki::anchor_from_trusted_cert(certificate)
                    .map(|anchor| anchor.to_owned())
                    .map_err(|_| BundleError {
                        trust_domain: trust_domain.clone(),
                        index,
                        cause: SvidError::Malformed,
                    })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            trust_domain,
            authorities,
            anchors,
        })
    }

    /// Reads certificates in DER that follow each other without a separator, the form of the
    /// Workload API.
    ///
    /// # Errors
    /// As [`X509Bundle::new`].
    pub fn from_der_run(trust_domain: TrustDomain, der: &[u8]) -> Result<Self, BundleError> {
        let certificates = split_der(der).map_err(|cause| BundleError {
            trust_domain: trust_domain.clone(),
            index: 0,
            cause,
        })?;
        Self::new(trust_domain, certificates)
    }

    /// The trust domain that this bundle speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The authorities' certificates.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// The authorities' certificates in DER, one after the other: the form of the Workload API.
    pub fn to_der_run(&self) -> Vec<u8> {
        self.authorities
            .iter()
            .flat_map(|certificate| certificate.iter().copied())
            .collect()
    }

    /// The authorities as trust anchors.
    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

/// A bundle that cannot be used, and which of its certificates is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("certificate {index} of the bundle of `{trust_domain}` is no authority: {cause}")]
pub struct BundleError {
    /// Whose bundle it is.
    pub trust_domain: TrustDomain,
    /// The place of the certificate in the bundle, from 0.
    pub index: usize,
    /// What is wrong with it.
    pub cause: SvidError,
}

/// The bundles that a verifier knows: one for each trust domain, its own and the federated ones.
#[derive(Debug, Clone, Default)]
pub struct BundleSet {
    bundles: BTreeMap<TrustDomain, X509Bundle>,
}

impl BundleSet {
    /// Puts a bundle in the place of the one that its trust domain had.
    pub fn insert(&mut self, bundle: X509Bundle) {
        self.bundles.insert(bundle.trust_domain.clone(), bundle);
    }

    /// The bundle of exactly this trust domain.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&X509Bundle> {
        self.bundles.get(trust_domain)
    }

    /// All bundles, in the order of their trust domains' names.
    pub fn iter(&self) -> impl Iterator<Item = &X509Bundle> {
        self.bundles.values()
    }
}

impl FromIterator<X509Bundle> for BundleSet {
    fn from_iter<I: IntoIterator<Item = X509Bundle>>(bundles: I) -> Self {
        let mut set = Self::default();
        bundles.into_iter().for_each(|bundle| set.insert(bundle));
        set
    }
}

#[cfg(test)]
mod tests;
