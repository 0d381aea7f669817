//! The checks of a chain. Each bad chain differs from a good one in one point.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{
    PeerRefused, PeerRole, RevocationLists, SvidError, VerifiedPeer, split_der, verify_peer,
};
use crate::{
    bundle::{BundleSet, X509Bundle},
    spiffe_id::SpiffeIdError,
    trust_domain::TrustDomain,
};

const HOUR: Duration = Duration::from_secs(3600);

/// An authority that also makes wrong certificates.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
    certificate: Certificate,
}

impl Authority {
    fn new(domain: &str) -> Self {
        let mut params = params(&format!("spiffe://{domain}"));
        params
            .distinguished_name
            .push(DnType::CommonName, "Test Root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            params,
            key,
            certificate,
        }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = leaf_params("spiffe://example.org/app");
        change(&mut params);
        params
            .signed_by(&KeyPair::generate().unwrap(), &self.issuer())
            .unwrap()
            .der()
            .clone()
    }

    fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> Authority {
        let mut params = params("spiffe://example.org");
        params
            .distinguished_name
            .push(DnType::CommonName, "Test Intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        Authority {
            params,
            key,
            certificate,
        }
    }

    fn bundles(&self) -> BundleSet {
        let domain = TrustDomain::parse("example.org").unwrap();
        let bundle = X509Bundle::new(domain, vec![self.certificate.der().clone()]).unwrap();
        BundleSet::from_iter([bundle])
    }

    fn revoke(&self, serial: u64) -> RevocationLists {
        let now = OffsetDateTime::from(SystemTime::now());
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: now + HOUR,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let der = list.signed_by(&self.issuer()).unwrap().der().to_vec();
        RevocationLists::from_der([der.as_slice()]).unwrap()
    }
}

fn params(uri: &str) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri_name(uri)];
    params.not_before = OffsetDateTime::from(now - HOUR);
    params.not_after = OffsetDateTime::from(now + HOUR);
    params
}

fn leaf_params(uri: &str) -> CertificateParams {
    let mut params = params(uri);
    params.serial_number = Some(SerialNumber::from(7));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

fn uri_name(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

fn verify(chain: &[CertificateDer<'_>], bundles: &BundleSet) -> Result<VerifiedPeer, PeerRefused> {
    let none = RevocationLists::default();
    verify_peer(chain, bundles, &none, PeerRole::Client, SystemTime::now())
}

#[test]
fn a_good_chain_tells_who_the_peer_is() {
    let root = Authority::new("example.org");
    let peer = verify(&[root.leaf(|_| {})], &root.bundles()).unwrap();
    assert_eq!(peer.id().as_str(), "spiffe://example.org/app");
    assert_eq!(peer.svid().serial().as_bytes(), [7]);
}

#[track_caller]
fn refused(change: impl FnOnce(&mut CertificateParams), expected: PeerRefused) {
    let root = Authority::new("example.org");
    let bundles = root.bundles();
    assert!(verify(&[root.leaf(|_| {})], &bundles).is_ok(), "the twin");
    assert_eq!(verify(&[root.leaf(change)], &bundles), Err(expected));
}

#[test]
fn an_expired_leaf_is_refused() {
    // FAULTS 51
    let past = OffsetDateTime::from(SystemTime::now() - Duration::from_secs(2));
    refused(|params| params.not_after = past, PeerRefused::Expired);
}

#[test]
fn a_leaf_of_tomorrow_is_refused() {
    // FAULTS 51
    let soon = OffsetDateTime::from(SystemTime::now() + Duration::from_secs(60));
    refused(|params| params.not_before = soon, PeerRefused::NotYetValid);
}

#[test]
fn a_leaf_of_another_trust_domain_is_refused() {
    // FAULTS 53
    for name in ["example.net", "example.org.evil.test", "evil.example.org"] {
        let domain = TrustDomain::parse(name).unwrap();
        refused(
            |params| params.subject_alt_names = vec![uri_name(&format!("spiffe://{name}/app"))],
            PeerRefused::UnknownTrustDomain(domain),
        );
    }
}

#[test]
fn a_leaf_with_two_uri_names_is_refused_in_either_order() {
    // FAULTS 54
    for names in [
        ["spiffe://example.org/app", "spiffe://example.org/other"],
        ["https://example.org", "spiffe://example.org/app"],
        ["spiffe://example.org/app", "https://example.org"],
    ] {
        refused(
            |params| params.subject_alt_names = names.map(uri_name).to_vec(),
            PeerRefused::Leaf(SvidError::ManyUriNames { count: 2 }),
        );
    }
}

#[test]
fn a_leaf_without_a_spiffe_id_is_refused() {
    // FAULTS 55
    let dns = || SanType::DnsName("example.org".try_into().unwrap());
    refused(
        |params| params.subject_alt_names = vec![dns()],
        PeerRefused::Leaf(SvidError::NoUriName),
    );
    refused(
        |params| params.subject_alt_names = vec![uri_name("https://example.org/app")],
        PeerRefused::Leaf(SvidError::SpiffeId(SpiffeIdError::Scheme)),
    );
    refused(
        |params| params.subject_alt_names = vec![uri_name("spiffe://example.org")],
        PeerRefused::Leaf(SvidError::RootPath),
    );
}

#[test]
fn a_leaf_that_is_an_authority_is_refused() {
    // FAULTS 56
    refused(
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        PeerRefused::Leaf(SvidError::LeafIsAuthority),
    );
}

#[test]
fn a_leaf_that_may_sign_certificates_or_lists_is_refused() {
    // FAULTS 56
    for (usage, expected) in [
        (
            KeyUsagePurpose::KeyCertSign,
            SvidError::LeafSignsCertificates,
        ),
        (
            KeyUsagePurpose::CrlSign,
            SvidError::LeafSignsRevocationLists,
        ),
    ] {
        refused(
            |params| params.key_usages.push(usage),
            PeerRefused::Leaf(expected),
        );
    }
}

#[test]
fn a_leaf_without_its_key_usage_is_refused() {
    // FAULTS 57
    refused(
        |params| params.key_usages.clear(),
        PeerRefused::Leaf(SvidError::KeyUsageMissing),
    );
    refused(
        |params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement],
        PeerRefused::Leaf(SvidError::NoDigitalSignature),
    );
}

#[test]
fn key_usage_must_be_critical() {
    // digitalSignature, as a bit string (RFC 5280 section 4.2.1.3).
    let usage = |critical| {
        let mut extension =
            CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![0x03, 0x02, 0x07, 0x80]);
        extension.set_criticality(critical);
        extension
    };
    let root = Authority::new("example.org");
    let leaf = |critical| {
        root.leaf(|params| {
            params.key_usages.clear();
            params.custom_extensions = vec![usage(critical)];
        })
    };
    assert!(verify(&[leaf(true)], &root.bundles()).is_ok());
    assert_eq!(
        verify(&[leaf(false)], &root.bundles()).unwrap_err(),
        PeerRefused::Leaf(SvidError::KeyUsageNotCritical)
    );
}

#[test]
fn a_leaf_must_be_meant_for_its_role() {
    // FAULTS 58
    let root = Authority::new("example.org");
    for (usage, fits, other) in [
        (
            ExtendedKeyUsagePurpose::ClientAuth,
            PeerRole::Client,
            PeerRole::Server,
        ),
        (
            ExtendedKeyUsagePurpose::ServerAuth,
            PeerRole::Server,
            PeerRole::Client,
        ),
    ] {
        let chain = [root.leaf(|params| params.extended_key_usages = vec![usage])];
        let as_role = |role| {
            let none = RevocationLists::default();
            verify_peer(&chain, &root.bundles(), &none, role, SystemTime::now()).map(|_| ())
        };
        assert_eq!(as_role(fits), Ok(()));
        assert_eq!(as_role(other), Err(PeerRefused::ExtendedKeyUsage));
    }
}

#[test]
fn an_authority_of_the_same_name_is_not_the_same_authority() {
    // FAULTS 52
    let (root, other) = (Authority::new("example.org"), Authority::new("example.org"));
    let chain = [other.leaf(|_| {})];
    assert!(verify(&chain, &other.bundles()).is_ok(), "the twin");
    assert!(verify(&chain, &root.bundles()).is_err());
}

#[test]
fn a_self_signed_leaf_is_refused() {
    // FAULTS 52
    let root = Authority::new("example.org");
    let own = leaf_params("spiffe://example.org/app")
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap();
    assert_eq!(
        verify(&[own.der().clone()], &root.bundles()),
        Err(PeerRefused::UnknownAuthority)
    );
}

#[test]
fn intermediates_must_be_there_and_be_authorities_of_the_same_domain() {
    // FAULTS 62
    let root = Authority::new("example.org");
    let good = root.intermediate(|_| {});
    let chain = [good.leaf(|_| {}), good.certificate.der().clone()];
    assert!(verify(&chain, &root.bundles()).is_ok());
    assert_eq!(
        verify(&chain[..1], &root.bundles()),
        Err(PeerRefused::UnknownAuthority)
    );

    let other = TrustDomain::parse("other.test").unwrap();
    let foreign = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![uri_name("spiffe://other.test")];
    };
    let silent =
        |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::CrlSign];
    for (bad, expected) in [
        (
            root.intermediate(foreign),
            SvidError::AuthorityOfOtherDomain(other),
        ),
        (root.intermediate(silent), SvidError::NoCertificateSigning),
    ] {
        let chain = [bad.leaf(|_| {}), bad.certificate.der().clone()];
        assert_eq!(
            verify(&chain, &root.bundles()),
            Err(PeerRefused::Intermediate(expected))
        );
    }
}

#[test]
fn a_leaf_is_no_issuer() {
    // FAULTS 59
    let root = Authority::new("example.org");
    let fake = root.intermediate(|params| {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![uri_name("spiffe://example.org/app")];
    });
    let chain = [fake.leaf(|_| {}), fake.certificate.der().clone()];
    assert!(verify(&chain, &root.bundles()).is_err());
}

#[test]
fn the_authority_itself_is_no_peer() {
    // FAULTS 59
    let root = Authority::new("example.org");
    assert_eq!(
        verify(&[root.certificate.der().clone()], &root.bundles()),
        Err(PeerRefused::Leaf(SvidError::LeafIsAuthority))
    );
}

#[test]
fn a_revoked_leaf_is_refused_and_its_twin_is_not() {
    let root = Authority::new("example.org");
    let check = |serial, lists: &RevocationLists| {
        let chain = [root.leaf(|params| params.serial_number = Some(SerialNumber::from(serial)))];
        let role = PeerRole::Client;
        verify_peer(&chain, &root.bundles(), lists, role, SystemTime::now()).map(|_| ())
    };
    let lists = root.revoke(7);
    assert_eq!(check(7, &lists), Err(PeerRefused::Revoked));
    assert_eq!(check(8, &lists), Ok(()));
}

#[test]
fn a_list_that_its_issuer_did_not_sign_lets_nobody_in() {
    let (root, forger) = (Authority::new("example.org"), Authority::new("example.org"));
    let (lists, chain) = (forger.revoke(7), [root.leaf(|_| {})]);
    let role = PeerRole::Client;
    assert!(verify_peer(&chain, &root.bundles(), &lists, role, SystemTime::now()).is_err());
}

#[test]
fn nothing_and_too_much_are_refused() {
    let root = Authority::new("example.org");
    assert_eq!(
        verify(&[], &root.bundles()),
        Err(PeerRefused::NoCertificate)
    );
    // FAULTS 66
    let many = vec![root.leaf(|_| {}); 17];
    assert_eq!(
        verify(&many, &root.bundles()),
        Err(PeerRefused::ChainTooLong { certificates: 17 })
    );
    assert!(
        verify(&many[..16], &root.bundles()).is_ok(),
        "strays are passed over"
    );
}

#[test]
fn no_bytes_make_the_reader_panic() {
    let good = Authority::new("example.org").leaf(|_| {});
    for cut in 0..good.len() {
        assert!(
            super::X509Svid::parse(&good[..cut]).is_err(),
            "cut at {cut}"
        );
        let mut flipped = good.to_vec();
        flipped[cut] ^= 0xff;
        let _ = super::X509Svid::parse(&flipped);
        let _ = split_der(&flipped);
    }
    let run = [good.as_ref(), good.as_ref()].concat();
    assert_eq!(split_der(&run).unwrap(), [good.clone(), good]);
}
