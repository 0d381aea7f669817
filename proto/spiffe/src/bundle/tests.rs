//! Bundles: whole or not at all.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;

use super::X509Bundle;
use crate::{trust_domain::TrustDomain, x509_svid::SvidError};

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn certificate(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
    change(&mut params);
    params
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .clone()
}

#[test]
fn authorities_are_read_from_a_run_and_written_as_one() {
    let (a, b) = (
        certificate(|_| {}),
        certificate(|params| params.subject_alt_names.clear()),
    );
    let run = [a.as_ref(), b.as_ref()].concat();
    let bundle = X509Bundle::from_der_run(domain(), &run).unwrap();
    assert_eq!(bundle.authorities(), [a, b]);
    assert_eq!(bundle.to_der_run(), run);
    assert!(
        X509Bundle::from_der_run(domain(), &[])
            .unwrap()
            .authorities()
            .is_empty()
    );
}

#[test]
fn one_certificate_that_is_no_authority_refuses_the_bundle() {
    // FAULTS 68
    let other = SanType::URI("spiffe://other.test".try_into().unwrap());
    let path = SanType::URI("spiffe://example.org/a".try_into().unwrap());
    for (bad, expected) in [
        (
            certificate(|params| params.is_ca = IsCa::ExplicitNoCa),
            SvidError::NotAuthority,
        ),
        (
            certificate(|params| params.key_usages.clear()),
            SvidError::KeyUsageMissing,
        ),
        (
            certificate(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
            SvidError::NoCertificateSigning,
        ),
        (
            certificate(|params| params.subject_alt_names = vec![other]),
            SvidError::AuthorityOfOtherDomain(TrustDomain::parse("other.test").unwrap()),
        ),
        (
            certificate(|params| params.subject_alt_names = vec![path]),
            SvidError::AuthorityWithPath,
        ),
        (CertificateDer::from(vec![0x30, 0x00]), SvidError::Malformed),
    ] {
        let refused = X509Bundle::new(domain(), vec![certificate(|_| {}), bad]).unwrap_err();
        assert_eq!((refused.index, refused.cause), (1, expected));
    }
    let run = [certificate(|_| {}).as_ref(), &[0x30]].concat();
    assert!(
        X509Bundle::from_der_run(domain(), &run).is_err(),
        "a byte too many"
    );
}
