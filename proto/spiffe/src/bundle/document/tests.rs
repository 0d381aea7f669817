//! Bundle documents: what is read, what is left out, what refuses the whole.

use std::time::Duration;

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use super::{BundleDocument, DocumentError, MAX_DOCUMENT};
use crate::{jwt_svid::JwtBundle, trust_domain::TrustDomain};

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn certificate(algorithm: &'static rcgen::SignatureAlgorithm, authority: bool) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let mut params = CertificateParams::default();
    if authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    }
    let key = KeyPair::generate_for(algorithm).unwrap();
    BASE64_STANDARD.encode(params.self_signed(&key).unwrap().der())
}

fn p256() -> String {
    certificate(&rcgen::PKCS_ECDSA_P256_SHA256, true)
}

fn parse(document: &Value) -> Result<BundleDocument, DocumentError> {
    BundleDocument::parse(domain(), document.to_string().as_bytes())
}

#[test]
fn keys_of_tokens_stand_beside_authorities() {
    let point = [4; 65];
    let jwt = JwtBundle::of_p256(domain(), [("one", point.as_slice())]);
    let mut document: Value = serde_json::from_str(&jwt.to_json()).unwrap();
    let authority = json!({"kty": "EC", "use": "x509-svid", "x5c": [p256()]});
    document["keys"].as_array_mut().unwrap().push(authority);
    let read = parse(&document).unwrap();
    assert_eq!((read.x509.authorities().len(), &read.jwt), (1, &jwt));
    let again = parse(&serde_json::from_str(&read.to_json().unwrap()).unwrap()).unwrap();
    assert_eq!((again.x509.authorities().len(), &again.jwt), (1, &jwt));
}

#[test]
fn a_document_is_read_and_written_again() {
    let document = json!({
        "keys": [
            {"kty": "EC", "use": "x509-svid", "x5c": [p256()]},
            {"kty": "EC", "use": "x509-svid", "crv": "P-384",
             "x5c": [certificate(&rcgen::PKCS_ECDSA_P384_SHA384, true)]},
        ],
        "spiffe_sequence": u64::MAX,
        "spiffe_refresh_hint": 600,
        "not_of_today": {},
    });
    let read = parse(&document).unwrap();
    assert_eq!(read.x509.authorities().len(), 2);
    assert_eq!(read.sequence, Some(u64::MAX));
    assert_eq!(read.refresh_hint, Some(Duration::from_secs(600)));

    let written: Value = serde_json::from_str(&read.to_json().unwrap()).unwrap();
    assert_eq!(written["keys"][0]["x5c"], document["keys"][0]["x5c"]);
    assert_eq!(written["keys"][0]["crv"], "P-256");
    assert_eq!(written["keys"][0]["x"].as_str().unwrap().len(), 43);
    assert_eq!(written["keys"][1]["crv"], "P-384");
    assert!(written["keys"][0].get("kid").is_none() && written["keys"][0].get("n").is_none());
    let again = parse(&written).unwrap();
    assert_eq!(again.x509.authorities(), read.x509.authorities());
}

#[test]
fn what_is_not_understood_is_left_out() {
    let cases = [
        json!({"kty": "EC", "use": "jwt-svid", "kid": "a"}),
        json!({"kty": "EC", "use": "X509-SVID", "x5c": [p256()]}),
        json!({"kty": "EC", "x5c": [p256()]}),
        json!({"kty": "ML-KEM", "use": "x509-svid", "x5c": [p256()]}),
        json!({"use": "x509-svid", "x5c": [p256()]}),
        json!({"kty": "EC", "use": "x509-svid"}),
        json!({"kty": "EC", "use": "x509-svid", "x5c": []}),
        json!({"kty": "EC", "use": "x509-svid", "x5c": p256()}),
        json!({"kty": "EC", "use": "x509-svid", "x5c": [1, p256()]}),
        json!({"kty": "EC", "use": null, "x5c": [p256()]}),
        json!({"kty": 1, "use": "x509-svid", "x5c": [p256()]}),
        json!("EC"),
    ];
    for key in cases {
        let good = json!({"kty": "EC", "use": "x509-svid", "x5c": [p256()]});
        let read = parse(&json!({"keys": [key, good]})).unwrap();
        assert_eq!(read.x509.authorities().len(), 1, "{key}");
    }
    // Of several certificates the first one is the authority.
    let leaf = certificate(&rcgen::PKCS_ECDSA_P256_SHA256, false);
    let chain = json!({"kty": "EC", "use": "x509-svid", "x5c": [p256(), leaf]});
    let read = parse(&json!({"keys": [chain]})).unwrap();
    assert_eq!(read.x509.authorities().len(), 1);
    // Trusts nobody: how a domain is revoked.
    assert!(
        parse(&json!({"keys": []}))
            .unwrap()
            .x509
            .authorities()
            .is_empty()
    );
}

#[test]
fn a_document_that_is_wrong_is_refused_whole() {
    let leaf = certificate(&rcgen::PKCS_ECDSA_P256_SHA256, false);
    let cases = [
        (json!({}), "no bundle document: missing field `keys`"),
        (json!({"keys": {}}), "no bundle document: invalid type"),
        (
            json!({"keys": [], "spiffe_sequence": -1}),
            "no bundle document: invalid value",
        ),
        (
            json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": [leaf, p256()]}]}),
            "certificate 0 of the bundle of `example.org` is no authority",
        ),
        (
            json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": ["?"]}]}),
            "key 0 of the bundle document: `x5c` holds no base64",
        ),
        (
            json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": [leaf]}]}),
            "certificate 0 of the bundle of `example.org` is no authority",
        ),
        (
            json!({"keys": [{"kty": "EC", "use": "x509-svid", "x5c": [""]}]}),
            "certificate 0 of the bundle of `example.org` is no authority",
        ),
    ];
    for (document, expected) in cases {
        let refused = parse(&document).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused} for {document}");
    }
    let long = vec![b' '; MAX_DOCUMENT + 1];
    assert_eq!(
        BundleDocument::parse(domain(), &long).unwrap_err(),
        DocumentError::TooLong {
            bytes: MAX_DOCUMENT + 1
        }
    );
}

#[test]
fn a_key_without_a_json_form_is_not_published() {
    let ed25519 = certificate(&rcgen::PKCS_ED25519, true);
    let read =
        parse(&json!({"keys": [{"kty": "OKP", "use": "x509-svid", "x5c": [ed25519]}]})).unwrap();
    assert!(matches!(
        read.to_json(),
        Err(DocumentError::Key { index: 0, .. })
    ));
}

proptest! {
    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = BundleDocument::parse(domain(), &bytes);
    }
}
