//! An authority above ours, from files: it vouches for the ones that sign, and its root is what the
//! trust domain trusts.
//!
//! The files are read whenever a new signer is made, so that a renewed authority is taken up. Its key
//! is in memory only as long as that takes.

use std::path::{Path, PathBuf};

use postern_spiffe::{
    BundleSet, PeerRole, RevocationLists, SpiffeId, TrustDomain, X509Bundle, verify_peer,
    x509_svid::split_der,
};
use rcgen::Issuer;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

use super::{
    issue,
    keys::SigningKey,
    state::{Root, StateError},
};

/// The files of an authority above ours, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Its certificate, then those that lead from it to the root, without the root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The roots that the trust domain trusts; `None` where the certificate is itself the root.
    pub bundle: Option<PathBuf>,
}

/// What lies between a signer and what is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Above {
    /// The certificates that follow the signer's own in a chain.
    pub(super) chain: Vec<Vec<u8>>,
    /// The roots.
    pub(super) anchors: Vec<Vec<u8>>,
}

impl Upstream {
    /// Makes a signer that this authority vouches for, and tries whether peers would believe it.
    pub(super) fn new_signer(
        &self,
        trust_domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Root, StateError> {
        let failed = |path: &Path, why: &dyn std::fmt::Display| {
            StateError::Upstream(format!("`{}`: {why}", path.display()))
        };
        let chain = certificates(&self.certificate)?;
        let own = self.own(&chain)?;
        let pem = std::fs::read_to_string(&self.key).map(Zeroizing::new);
        let pem = pem.map_err(|error| failed(&self.key, &error))?;
        let key = SigningKey::from_pem(&pem).map_err(|error| failed(&self.key, &error))?;
        let issuer = Issuer::from_ca_cert_der(own, &*key)
            .map_err(|error| failed(&self.certificate, &error))?;
        let above = self.above()?;
        let end = issue::validity(own)
            .map_err(|error| failed(&self.certificate, &error))?
            .1;
        let lifetime = end.duration_since(now).unwrap_or_default().min(lifetime);
        let signer = issue::new_signer(trust_domain, lifetime, now, Some((&issuer, above)))?;
        self.try_out(trust_domain, &signer, now)?;
        Ok(signer)
    }

    /// What lies between a signer and what is trusted, as the files have it now.
    pub(super) fn above(&self) -> Result<Above, StateError> {
        let all = |all: &[CertificateDer<'_>]| all.iter().map(|one| one.to_vec()).collect();
        let chain = certificates(&self.certificate)?;
        match &self.bundle {
            Some(path) => Ok(Above {
                chain: all(&chain),
                anchors: all(&certificates(path)?),
            }),
            None => Ok(Above {
                chain: Vec::new(),
                anchors: vec![self.own(&chain)?.to_vec()],
            }),
        }
    }

    fn own<'c>(
        &self,
        chain: &'c [CertificateDer<'static>],
    ) -> Result<&'c CertificateDer<'static>, StateError> {
        let why = || format!("`{}`: it holds no certificate", self.certificate.display());
        chain.first().ok_or_else(|| StateError::Upstream(why()))
    }

    /// Would a peer that trusts the roots believe what this one signs?
    fn try_out(
        &self,
        trust_domain: &TrustDomain,
        signer: &Root,
        now: SystemTime,
    ) -> Result<(), StateError> {
        let refused = |why: &dyn std::fmt::Display| {
            let file = self.certificate.display();
            StateError::Upstream(format!(
                "peers would refuse what `{file}` vouches for: {why}"
            ))
        };
        let id = SpiffeId::parse(&format!("spiffe://{trust_domain}/trial"));
        let id = id.map_err(|error| refused(&error))?;
        let minute = Duration::from_secs(60);
        let trial = issue::svid(signer, &id, &[], minute, now)?;
        let chain = split_der(&trial.chain).map_err(|error| refused(&error))?;
        let anchors = signer
            .anchors()
            .map(|one| CertificateDer::from(one.to_vec()));
        let bundle = X509Bundle::new(trust_domain.clone(), anchors.collect());
        let bundles: BundleSet = [bundle.map_err(|error| refused(&error))?]
            .into_iter()
            .collect();
        let none = RevocationLists::default();
        verify_peer(&chain, &bundles, &none, PeerRole::Server, now)
            .map(drop)
            .map_err(|error| refused(&error))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StateError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    all.map_err(|error| StateError::Upstream(format!("`{}`: {error}", path.display())))
}
