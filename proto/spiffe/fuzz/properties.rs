//! What must hold for any bytes. The fuzzer looks for a counterexample; an ordinary test runs the
//! corpus through the same functions.

use std::time::{Duration, SystemTime};

use postern_spiffe::{
    BundleSet, PeerRole, RevocationLists, Selector, SpiffeId, TrustDomain, X509Bundle,
    bundle::BundleDocument, verify_peer, x509_svid,
};
use rustls_pki_types::CertificateDer;

/// A name that is accepted is written as it was read, and keeps to the standard's bounds.
pub(crate) fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(id.as_str(), text);
        assert!(text.len() <= 2048);
        assert_eq!(SpiffeId::parse(id.as_str()), Ok(id.clone()));
        let domain = id.trust_domain().as_str();
        assert_eq!(format!("spiffe://{domain}{}", id.path()), text);
    }
    if let Ok(domain) = TrustDomain::parse(text) {
        assert_eq!(domain.as_str(), text);
        assert!(text.len() <= 255 && !text.is_empty());
    }
    if let Ok(selector) = text.parse::<Selector>() {
        assert_eq!(selector.to_string(), text);
    }
}

/// No bytes of a stranger are verified, and none break the reader.
pub(crate) fn certificates(bytes: &[u8]) {
    let domain = TrustDomain::parse("example.org").expect("the name is valid");
    let run = X509Bundle::from_der_run(domain.clone(), bytes);
    if let Ok(bundle) = &run {
        assert_eq!(bundle.to_der_run(), bytes);
    }
    let _ = RevocationLists::from_der([bytes]);
    let Ok(chain) = x509_svid::split_der(bytes) else {
        return;
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let none = RevocationLists::default();
    let nobody = BundleSet::default();
    assert!(verify_peer(&chain, &nobody, &none, PeerRole::Client, now).is_err());
    let alone = [CertificateDer::from(bytes)];
    if let Ok(bundle) = run {
        let trusted = BundleSet::from_iter([bundle]);
        // An authority is nobody's peer, not even its own.
        assert!(verify_peer(&alone, &trusted, &none, PeerRole::Server, now).is_err());
    }
}

/// A document that is accepted is written so that it says the same when it is read again.
pub(crate) fn bundle_document(bytes: &[u8]) {
    let domain = TrustDomain::parse("example.org").expect("the name is valid");
    let Ok(document) = BundleDocument::parse(domain.clone(), bytes) else {
        return;
    };
    let Ok(written) = document.to_json() else {
        return;
    };
    let again = BundleDocument::parse(domain, written.as_bytes()).expect("our own document");
    assert_eq!(again.x509.authorities(), document.x509.authorities());
    assert_eq!(again.sequence, document.sequence);
    assert_eq!(again.refresh_hint, document.refresh_hint);
}
