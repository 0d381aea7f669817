//! An authority in memory that also makes wrong certificates.

use std::{fs, path::Path, time::SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// Signs whatever it is asked to.
#[derive(Debug)]
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    /// Its own certificate in PEM.
    pub pem: String,
}

impl Authority {
    /// A root of a trust domain.
    ///
    /// # Errors
    /// The library's own.
    pub fn new(domain: &str) -> anyhow::Result<Self> {
        let mut params = params(&format!("spiffe://{domain}"))?;
        params
            .distinguished_name
            .push(DnType::CommonName, "Test Root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { params, key, pem })
    }

    /// One that this one vouches for; `change` makes it a wrong one. Writes `NAME.crt`
    /// and `NAME.key`.
    ///
    /// # Errors
    /// The library's or the system's own.
    pub fn write_authority(
        &self,
        folder: &Path,
        name: &str,
        domain: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> anyhow::Result<()> {
        let named = |params: &mut CertificateParams| {
            params
                .distinguished_name
                .push(DnType::CommonName, name.to_owned());
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.extended_key_usages = Vec::new();
            change(params);
        };
        self.write_leaf(folder, name, &format!("spiffe://{domain}"), named)
    }

    /// Writes its own certificate and key, `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// The system's own.
    pub fn write(&self, folder: &Path, name: &str) -> anyhow::Result<()> {
        fs::write(folder.join(format!("{name}.crt")), &self.pem)?;
        fs::write(folder.join(format!("{name}.key")), self.key.serialize_pem())?;
        Ok(())
    }

    /// Writes `NAME.crt` and `NAME.key`: a good leaf for `id`, but for `change`.
    ///
    /// # Errors
    /// The library's or the system's own.
    pub fn write_leaf(
        &self,
        folder: &Path,
        name: &str,
        id: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> anyhow::Result<()> {
        let mut params = params(id)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?;
        fs::write(folder.join(format!("{name}.crt")), leaf.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }
}

fn params(uri: &str) -> anyhow::Result<CertificateParams> {
    let now = OffsetDateTime::from(SystemTime::now());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::hours(1);
    Ok(params)
}
