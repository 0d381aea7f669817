//! A good proof, and its twins that differ in one point.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use postern_policies::decide::{DecidedBy, Direction};
use postern_spiffe::{BundleSet, PeerRefused, RevocationLists, SpiffeId, X509Bundle};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::PrivateKeyDer;
use time::OffsetDateTime;

use super::{Binding, End, MAX_CERTIFICATES, Unproven, check, prove};
use crate::{
    connections::{Connections, Facts},
    telemetry::Metrics,
    tls::{Identity, Trust},
};

const ID: &str = "spiffe://example.org/web";
const BINDING: Binding = Binding([7; 32]);

struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        let uri = "spiffe://example.org".try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self { params, key }
    }

    /// An identity of this authority, which trusts it.
    fn identity(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let leaf = params.signed_by(&key, &issuer).unwrap().der().clone();
        let root = self.params.self_signed(&self.key).unwrap().der().clone();
        let domain = "example.org".parse().unwrap();
        let trust = Trust {
            bundles: BundleSet::from_iter([X509Bundle::new(domain, vec![root]).unwrap()]),
            revocations: RevocationLists::default(),
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Identity::new(vec![leaf], key, trust).unwrap()
    }
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

#[test]
fn a_proof_is_good_for_its_end_of_its_connection_and_its_identity() {
    let authority = Authority::new();
    let (ours, theirs) = (
        authority.identity(ID, |_| {}),
        authority.identity(ID, |_| {}),
    );
    for end in [End::Client, End::Server] {
        let proof = prove(&theirs, &BINDING, end).unwrap();
        let (peer, chain) = check(&proof, &ours, &BINDING, end, &id(ID)).unwrap();
        assert_eq!(peer.id().as_str(), ID);
        assert_eq!(peer.svid().serial(), theirs.svid().serial());
        assert_eq!(chain.len(), 1);
    }
}

#[test]
fn a_proof_for_another_connection_or_of_the_other_end_is_none() {
    let authority = Authority::new();
    let (ours, theirs) = (
        authority.identity(ID, |_| {}),
        authority.identity(ID, |_| {}),
    );
    let proof = prove(&theirs, &BINDING, End::Client).unwrap();
    let other = check(&proof, &ours, &Binding([8; 32]), End::Client, &id(ID));
    assert!(matches!(other, Err(Unproven::Signature)));
    let reflected = check(&proof, &ours, &BINDING, End::Server, &id(ID));
    assert!(matches!(reflected, Err(Unproven::Signature)));
}

#[test]
fn a_good_proof_of_another_identity_is_refused() {
    let authority = Authority::new();
    let other = authority.identity("spiffe://example.org/other", |_| {});
    let ours = authority.identity(ID, |_| {});
    let proof = prove(&other, &BINDING, End::Client).unwrap();
    let refused = check(&proof, &ours, &BINDING, End::Client, &id(ID));
    assert!(matches!(refused, Err(Unproven::Identity { .. })));
}

#[test]
fn a_chain_that_a_handshake_would_refuse_is_refused() {
    let authority = Authority::new();
    let ours = authority.identity(ID, |_| {});
    // From an authority that we do not know.
    let stranger = Authority::new().identity(ID, |_| {});
    let proof = prove(&stranger, &BINDING, End::Client).unwrap();
    let refused = check(&proof, &ours, &BINDING, End::Client, &id(ID));
    assert!(matches!(refused, Err(Unproven::Chain(_))));
    // Good when it was made, and over when it is shown.
    let now = OffsetDateTime::now_utc();
    let short = authority.identity(ID, |params| {
        params.not_before = now - time::Duration::hours(1);
        params.not_after = now + time::Duration::seconds(1);
    });
    let proof = prove(&short, &BINDING, End::Client).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let refused = check(&proof, &ours, &BINDING, End::Client, &id(ID));
        if matches!(refused, Err(Unproven::Chain(PeerRefused::Expired))) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "it never ends");
        std::thread::yield_now();
    }
}

#[test]
fn a_stolen_chain_without_its_key_proves_nothing() {
    let authority = Authority::new();
    let ours = authority.identity(ID, |_| {});
    let victim = authority.identity(ID, |_| {});
    let thief = authority.identity("spiffe://example.org/thief", |_| {});
    let stolen = super::chain_bytes(&victim.key().cert).unwrap();
    let message = super::message(&BINDING, End::Client, &stolen);
    let signer = thief.key().key.choose_scheme(&super::SCHEMES).unwrap();
    let signature = signer.sign(&message).unwrap();
    let mut proof = u16::from(signer.scheme()).to_be_bytes().to_vec();
    proof.extend(u16::try_from(signature.len()).unwrap().to_be_bytes());
    proof.extend(signature);
    proof.extend(stolen);
    let refused = check(&proof, &ours, &BINDING, End::Client, &id(ID));
    assert!(matches!(refused, Err(Unproven::Signature)));
}

#[test]
fn a_proof_that_is_cut_short_changed_or_too_long_is_refused() {
    let authority = Authority::new();
    let (ours, theirs) = (
        authority.identity(ID, |_| {}),
        authority.identity(ID, |_| {}),
    );
    let proof = prove(&theirs, &BINDING, End::Client).unwrap();
    let is_good = |proof: &[u8]| check(proof, &ours, &BINDING, End::Client, &id(ID)).is_ok();
    assert!(is_good(&proof));
    for length in 0..proof.len() {
        assert!(!is_good(proof.get(..length).unwrap()), "{length} bytes");
    }
    for place in 0..proof.len() {
        let mut changed = proof.clone();
        *changed.get_mut(place).unwrap() ^= 1;
        assert!(!is_good(&changed), "byte {place}");
    }
    let certificate = super::chain_bytes(&theirs.key().cert).unwrap();
    let mut long = proof.clone();
    for _ in 0..MAX_CERTIFICATES {
        long.extend(&certificate);
    }
    let refused = check(&long, &ours, &BINDING, End::Client, &id(ID));
    assert!(matches!(refused, Err(Unproven::Malformed(_))));
}

/// Until when an identity is good.
fn ends_in(seconds: i64) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(seconds)
}

#[tokio::test]
async fn a_renewed_connection_ends_with_the_certificate_that_was_shown_last_and_not_before() {
    let authority = Authority::new();
    let ours = authority.identity(ID, |_| {});
    let shown = [2, 4].map(|seconds| {
        let theirs = authority.identity(ID, ends_in(seconds));
        let proof = prove(&theirs, &BINDING, End::Client).unwrap();
        check(&proof, &ours, &BINDING, End::Client, &id(ID)).unwrap()
    });
    let [(first, chain), (next, next_chain)] = shown;
    let connections = Arc::new(Connections::new(Arc::new(Metrics::new())));
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let facts = Facts {
        end: crate::connections::End::Peer,
        id: connections.number(),
        direction: Direction::Inbound,
        source: address,
        source_identity: None,
        destination: address,
        destination_identity: None,
        workload: None,
        server_name: None,
        chain: Arc::from([]),
        expires: None,
        renewable: Some(BINDING),
        local_port: None,
        tls_group: None,
        let_in_by: DecidedBy::Unasked,
        traffic: Arc::default(),
    };
    let facts = facts.verified(&first, chain);
    let number = facts.id;
    let watched = connections.watch(facts);
    connections.renewed(number, &next, next_chain);
    let ended = tokio::time::timeout(Duration::from_secs(30), watched.must_end());
    ended
        .await
        .expect("it outlives its peer's last certificate");
    assert!(SystemTime::now() > next.svid().not_after());
}

proptest! {
    #[test]
    fn nothing_that_comes_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(chain) = super::chain(&bytes) {
            prop_assert!(chain.len() <= MAX_CERTIFICATES);
            prop_assert_eq!(super::chain_bytes(&chain).unwrap(), bytes);
        }
    }
}
