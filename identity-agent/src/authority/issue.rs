//! Certificates and lists, made and signed. Pure but for the random numbers.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use bytes::Bytes;
use postern_spiffe::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::{
    keys::SigningKey,
    state::{Revoked, Root, StateError},
    upstream::Above,
};

/// An X.509-SVID and its key.
pub struct Issued {
    /// The chain in DER, leaf first, one certificate after the other.
    pub chain: Bytes,
    /// The leaf's key, PKCS#8 in DER; wiped on drop.
    pub key: Zeroizing<Vec<u8>>,
    /// The leaf's serial number.
    pub serial: Arc<[u8]>,
    /// The serial number of the root that signed it.
    pub issuer: Arc<[u8]>,
    /// The first second in which it is valid.
    pub not_before: SystemTime,
    /// The last second in which it is valid.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("not_after", &self.not_after)
            .field("key", &"<secret>")
            .finish_non_exhaustive()
    }
}

/// Makes a root of the trust domain, or one that an authority above vouches for.
///
/// Its subject is its own: verifiers match a revocation list to its issuer by name, so two signers
/// must not share one. Spec: X509-SVID sections 3 (no path), 4.1 and 4.3.
pub(super) fn new_signer(
    trust_domain: &TrustDomain,
    lifetime: Duration,
    now: SystemTime,
    above: Option<(&Issuer<'_, &KeyPair>, Above)>,
) -> Result<Root, StateError> {
    let key = SigningKey::generate()?;
    let serial = random_serial()?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Postern");
    let kind = match above {
        Some(_) => "Authority",
        None => "Root",
    };
    subject.push(DnType::CommonName, format!("{kind} {}", hex(&serial)));
    let (not_before, not_after) = (now - BACKDATED, now + lifetime);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = OffsetDateTime::from(not_before);
    params.not_after = OffsetDateTime::from(not_after);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(trust_domain.id_string().try_into()?)];
    match above {
        None => {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&*key)?.der().to_vec();
            Root::new(certificate, key, None)
        }
        Some((issuer, above)) => {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.use_authority_key_identifier_extension = true;
            let certificate = params.signed_by(&*key, issuer)?.der().to_vec();
            Root::new(certificate, key, Some(above))
        }
    }
}

/// When the life of a certificate begins and ends.
pub(super) fn validity(certificate: &[u8]) -> Result<(SystemTime, SystemTime), StateError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| StateError::damaged("a certificate cannot be read"))?;
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    };
    let validity = parsed.validity();
    Ok((
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    ))
}

/// Makes an SVID. Spec: X509-SVID sections 2, 4.1 to 4.4.
pub(super) fn svid(
    root: &Root,
    id: &SpiffeId,
    dns_names: &[String],
    lifetime: Duration,
    now: SystemTime,
) -> Result<Issued, StateError> {
    let key = SigningKey::generate()?;
    let serial = random_serial()?;
    let not_after = whole_seconds((now + lifetime).min(root.not_after));
    let mut params = CertificateParams::default();
    // Without a subject the name extension becomes critical, as it must.
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let not_before = whole_seconds((now - BACKDATED).max(root.not_before));
    params.not_before = OffsetDateTime::from(not_before);
    params.not_after = OffsetDateTime::from(not_after);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![SanType::URI(id.as_str().to_owned().try_into()?)];
    for name in dns_names {
        params
            .subject_alt_names
            .push(SanType::DnsName(name.clone().try_into()?));
    }
    let mut chain = params.signed_by(&*key, &issuer(root)?)?.der().to_vec();
    if let Some(above) = &root.above {
        chain.extend_from_slice(&root.certificate);
        above
            .chain
            .iter()
            .for_each(|one| chain.extend_from_slice(one));
    }
    Ok(Issued {
        // Kept for long, and one of many.
        chain: chain.into_boxed_slice().into(),
        key: key.pkcs8(),
        serial: serial.into(),
        issuer: root.serial.clone(),
        not_before,
        not_after,
    })
}

/// Makes a revocation list. Spec: RFC 5280 section 5.
pub(super) fn revocation_list(
    root: &Root,
    revoked: &[&Revoked],
    number: u64,
    now: SystemTime,
) -> Result<Vec<u8>, StateError> {
    let revoked_certs = revoked
        .iter()
        .map(|one| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&one.serial),
            revocation_time: OffsetDateTime::from(one.at),
            reason_code: None,
            invalidity_date: None,
        })
        .collect();
    let params = CertificateRevocationListParams {
        this_update: OffsetDateTime::from(now - BACKDATED),
        next_update: OffsetDateTime::from(now + LIST_LIFETIME),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(&issuer(root)?)?.der().to_vec())
}

fn issuer(root: &Root) -> Result<Issuer<'_, &KeyPair>, StateError> {
    let certificate = rustls_pki_types::CertificateDer::from(root.certificate.as_slice());
    Ok(Issuer::from_ca_cert_der(&certificate, &*root.key)?)
}

/// 127 random bits: a serial number is positive, and unforeseeable.
pub(super) fn random_serial() -> Result<Vec<u8>, StateError> {
    let mut serial = [0; 16];
    SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| StateError::Random)?;
    let [first, ..] = &mut serial;
    // Neither a leading zero nor a sign, which DER would shorten or lengthen.
    *first = (*first & 0x7f) | 0x40;
    Ok(serial.to_vec())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Certificates count in seconds.
pub(super) fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Peers' clocks may be this much behind ours.
const BACKDATED: Duration = Duration::from_secs(10);

/// Lists are pushed on every change, and signed anew long before they end.
const LIST_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
