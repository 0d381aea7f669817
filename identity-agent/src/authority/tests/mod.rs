//! The authority: what it issues, when it rotates, and what it does with damaged state.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime},
};

use postern_spiffe::{
    BundleSet, JwtRefused, JwtSvid, PeerRefused, PeerRole, RevocationLists, SpiffeId, TrustDomain,
    VerifiedPeer, X509Bundle, verify_peer, x509_svid::split_der,
};
use tempfile::TempDir;

use super::{Authority, Issued, Lifetimes, RevokedSvid, Rotation, Standing, StateError};

const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn open(folder: &TempDir, now: SystemTime) -> Result<Authority, StateError> {
    let lifetimes = Lifetimes {
        root: 24 * HOUR,
        svid: HOUR,
        jwt: Duration::from_secs(300),
    };
    Authority::open(&folder.path().join("state"), domain(), lifetimes, now)
}

fn issue(authority: &Authority, now: SystemTime) -> Issued {
    let id = SpiffeId::parse("spiffe://example.org/app").unwrap();
    authority
        .issue(&id, &["app.test".into()], HOUR, now)
        .unwrap()
}

fn verify(
    authority: &Authority,
    issued: &Issued,
    now: SystemTime,
) -> Result<VerifiedPeer, PeerRefused> {
    let bundle = X509Bundle::from_der_run(domain(), &authority.bundle()).unwrap();
    let lists = authority.revocation_lists(now).unwrap();
    verify_peer(
        &split_der(&issued.chain).unwrap(),
        &BundleSet::from_iter([bundle]),
        &RevocationLists::from_der(lists.iter().map(Vec::as_slice)).unwrap(),
        PeerRole::Client,
        now,
    )
}

#[test]
fn what_is_issued_verifies_until_it_ends() {
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    let authority = open(&folder, now).unwrap();
    let issued = issue(&authority, now);
    assert_eq!(
        verify(&authority, &issued, now).unwrap().id().path(),
        "/app"
    );
    let end = issued.not_after;
    assert!(verify(&authority, &issued, end).is_ok());
    let after = end + Duration::from_secs(1);
    assert_eq!(
        verify(&authority, &issued, after),
        Err(PeerRefused::Expired)
    );
}

#[test]
fn an_svid_that_is_taken_back_takes_under_39_bytes_of_a_list() {
    // Of as many as may be out: under 3 MiB.
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    let authority = open(&folder, now).unwrap();
    let issued = issue(&authority, now);
    let svids: Vec<RevokedSvid> = (0..1_000_u16)
        .map(|number| RevokedSvid {
            serial: [&*issued.serial, &number.to_be_bytes()].concat()[2..].into(),
            issuer: issued.issuer.clone(),
            expires: issued.not_after,
        })
        .collect();
    authority.revoke(&svids, now, now).unwrap();
    assert_eq!(authority.revoked(now), 1_000);
    assert_eq!(authority.revoked(issued.not_after), 0);
    let lists = authority.revocation_lists(now).unwrap();
    let bytes: usize = lists.iter().map(Vec::len).sum();
    assert!(bytes < 39 * 1_000, "{bytes}");
}

#[test]
fn what_is_revoked_does_not_verify_and_its_twin_does() {
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    let authority = open(&folder, now).unwrap();
    let (bad, good) = (issue(&authority, now), issue(&authority, now));
    let svid = RevokedSvid {
        serial: bad.serial.clone(),
        issuer: bad.issuer.clone(),
        expires: bad.not_after,
    };
    authority.revoke(&[svid], now, now).unwrap();
    assert_eq!(verify(&authority, &bad, now), Err(PeerRefused::Revoked));
    assert!(verify(&authority, &good, now).is_ok());

    drop(authority);
    let authority = open(&folder, now).unwrap();
    assert_eq!(
        verify(&authority, &bad, now),
        Err(PeerRefused::Revoked),
        "after a restart"
    );
}

#[test]
fn what_was_revoked_stays_so_when_the_clock_was_ahead_and_goes_back() {
    // FAULTS 36, 37
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    let authority = open(&folder, now).unwrap();
    let revoked = |svid: &Issued| RevokedSvid {
        serial: svid.serial.clone(),
        issuer: svid.issuer.clone(),
        expires: svid.not_after,
    };
    let bad = issue(&authority, now);
    authority.revoke(&[revoked(&bad)], now, now).unwrap();
    let jumped = now + 2 * HOUR;
    let other = issue(&authority, jumped);
    let _ = authority.rotate(jumped);
    authority.revoke(&[revoked(&other)], jumped, now).unwrap();
    assert_eq!(authority.revoked(jumped), 1, "the first has ended");
    assert_eq!(verify(&authority, &bad, now), Err(PeerRefused::Revoked));
    drop(authority);
    let authority = open(&folder, now).unwrap();
    assert_eq!(verify(&authority, &bad, now), Err(PeerRefused::Revoked));
    // Once that is settled, it is forgotten.
    authority
        .revoke(&[revoked(&other)], jumped, jumped)
        .unwrap();
    assert!(authority.revoked(now) == 1 && verify(&authority, &bad, now).is_ok());
}

#[test]
fn no_svid_outlives_its_root() {
    // FAULTS 38
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    let lifetimes = Lifetimes {
        root: 2 * HOUR,
        svid: HOUR,
        jwt: Duration::from_secs(300),
    };
    let path = folder.path().join("state");
    let authority = Authority::open(&path, domain(), lifetimes, now).unwrap();
    let id = SpiffeId::parse("spiffe://example.org/app").unwrap();
    let issued = authority.issue(&id, &[], 24 * HOUR, now).unwrap();
    assert!(issued.not_after <= now + 2 * HOUR);
}

#[test]
fn the_next_root_is_in_every_bundle_long_before_it_signs() {
    // FAULTS 40
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    let authority = open(&folder, now).unwrap();
    let first = issue(&authority, now);
    assert_eq!(authority.rotate(now + 11 * HOUR).unwrap(), Rotation::None);
    assert_eq!(
        authority.rotate(now + 13 * HOUR).unwrap(),
        Rotation::Changed
    );
    assert_eq!(split_der(&authority.bundle()).unwrap().len(), 2, "prepared");
    assert_eq!(
        authority.rotate(now + 14 * HOUR).unwrap(),
        Rotation::None,
        "only one is prepared"
    );
    assert_eq!(
        issue(&authority, now + 14 * HOUR).issuer,
        first.issuer,
        "the old one signs"
    );

    let late = now + 21 * HOUR;
    let second = issue(&authority, late);
    assert_ne!(second.issuer, first.issuer, "the new one signs");
    assert!(verify(&authority, &second, late).is_ok());

    assert_eq!(
        authority.rotate(now + 24 * HOUR + HOUR / 2).unwrap(),
        Rotation::Changed
    );
    assert_eq!(
        split_der(&authority.bundle()).unwrap().len(),
        1,
        "the old one is gone"
    );
}

#[test]
fn a_stop_beyond_the_end_of_the_root_begins_a_new_one() {
    // FAULTS 39
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    drop(open(&folder, now).unwrap());
    let later = now + 48 * HOUR;
    let authority = open(&folder, later).unwrap();
    let issued = issue(&authority, later);
    assert!(verify(&authority, &issued, later).is_ok());
}

#[test]
fn the_root_survives_a_restart() {
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    let bundle = open(&folder, now).unwrap().bundle();
    assert_eq!(open(&folder, now).unwrap().bundle(), bundle);
}

#[test]
fn keys_are_for_their_owner_alone() {
    // FAULTS 32
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    drop(open(&folder, now).unwrap());
    let state = folder.path().join("state");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("authority.json")), 0o600);

    fs::set_permissions(
        state.join("authority.json"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    drop(open(&folder, now).unwrap());
    assert_eq!(mode(&state.join("authority.json")), 0o600, "repaired");
}

#[test]
fn a_second_agent_on_the_same_state_is_refused() {
    // FAULTS 22
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    let first = open(&folder, now).unwrap();
    assert!(matches!(open(&folder, now), Err(StateError::InUse(_))));
    drop(first);
    assert!(open(&folder, now).is_ok());
}

#[test]
fn damaged_state_is_refused_and_left_as_it_is() {
    // FAULTS 35
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    drop(open(&folder, now).unwrap());
    let path = folder.path().join("state/authority.json");
    let good = fs::read_to_string(&path).unwrap();
    let half = good.get(..good.len() / 2).unwrap().to_owned();
    let (other_folder, other) = (TempDir::new().unwrap(), SystemTime::now());
    drop(open(&other_folder, other).unwrap());
    let foreign = fs::read_to_string(other_folder.path().join("state/authority.json")).unwrap();
    let key = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        value["roots"][0]["key"].as_str().unwrap().to_owned()
    };
    for bad in [
        String::new(),
        half,
        "not json".into(),
        good.replace("\"version\": 3", "\"version\": 4"),
        good.replace("\"version\": 3", "\"version\": 0"),
        good.replace(&key(&good), &key(&foreign)),
        good.replace(&key(&good), "AAAA"),
    ] {
        fs::write(&path, &bad).unwrap();
        assert!(
            matches!(open(&folder, now), Err(StateError::Damaged(_))),
            "{bad:.60}"
        );
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            bad,
            "it was left as it is"
        );
    }
    fs::write(&path, good.replace("example.org", "example.net")).unwrap();
    assert!(matches!(
        open(&folder, now),
        Err(StateError::OtherTrustDomain { .. })
    ));
}

#[test]
fn tokens_verify_until_they_end_and_their_keys_rotate_in_two_steps() {
    let (folder, start) = (TempDir::new().unwrap(), SystemTime::now());
    let authority = open(&folder, start).unwrap();
    let id = SpiffeId::parse("spiffe://example.org/app").unwrap();
    let issue = |now| {
        authority
            .issue_jwt(&id, &["api".into()], None, now)
            .unwrap()
    };
    let verify = |token: &str, now| {
        let bundles = [authority.jwt_bundle()];
        JwtSvid::verify(token, "api", &bundles, now).map(|svid| svid.id().clone())
    };
    let first = issue(start);
    assert_eq!(verify(&first, start), Ok(id.clone()));
    let late = start + Duration::from_secs(312);
    assert_eq!(verify(&first, late), Err(JwtRefused::Expired));
    let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid;
    // The next key is told long before anything is signed by it.
    let before = authority.jwt_bundle();
    assert_eq!(
        authority.rotate(start + 13 * HOUR).unwrap(),
        Rotation::Changed
    );
    assert_ne!(authority.jwt_bundle(), before);
    assert_eq!(kid(&issue(start + 13 * HOUR)), kid(&first));
    let then = start + 21 * HOUR;
    let second = issue(then);
    assert_ne!(kid(&second), kid(&first));
    assert_eq!(verify(&second, then), Ok(id.clone()));
    // A token never outlives its key.
    let end = start + 24 * HOUR - Duration::from_secs(60);
    drop(authority.rotate(end));
    let again = open(&TempDir::new().unwrap(), start).unwrap();
    let last = again.issue_jwt(&id, &["api".into()], None, end).unwrap();
    let bundles = [again.jwt_bundle()];
    let over = start + 24 * HOUR + Duration::from_secs(11);
    let refused = JwtSvid::verify(&last, "api", &bundles, over);
    assert_eq!(refused, Err(JwtRefused::Expired));
}

#[test]
fn keys_of_tokens_survive_a_restart_and_a_state_without_them_is_taken() {
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    let first = open(&folder, now).unwrap();
    let (keys, roots) = (first.jwt_bundle(), first.bundle());
    drop(first);
    let second = open(&folder, now).unwrap();
    assert_eq!(second.jwt_bundle(), keys);
    drop(second);
    // As the version before wrote it.
    let file = folder.path().join("state/authority.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    state["version"] = 1.into();
    state.as_object_mut().unwrap().remove("jwtKeys");
    fs::write(&file, state.to_string()).unwrap();
    let third = open(&folder, now).unwrap();
    assert_eq!(third.bundle(), roots);
    assert_ne!(third.jwt_bundle(), keys);
}

#[test]
fn a_root_is_replaced_by_hand_in_four_steps_and_never_in_fewer() {
    // FAULTS 41
    let (folder, now) = (TempDir::new().unwrap(), SystemTime::now());
    let authority = open(&folder, now).unwrap();
    let old = issue(&authority, now);
    let standings = |kind| -> Vec<(String, Standing)> {
        let all = authority.show(now).into_iter();
        let these = all.filter(|one| one.kind == kind);
        these.map(|one| (one.id, one.standing)).collect()
    };
    let first = standings("x509")[0].0.clone();
    assert!(matches!(
        authority.activate(now),
        Err(StateError::NothingPrepared)
    ));
    assert!(matches!(
        authority.taint(&first, now),
        Err(StateError::Signs(_))
    ));
    assert!(matches!(
        authority.revoke_signer(&first, now),
        Err(StateError::Signs(_))
    ));
    assert!(matches!(
        authority.taint("00", now),
        Err(StateError::Unknown(_))
    ));

    authority.prepare(now).unwrap();
    assert!(matches!(
        authority.prepare(now),
        Err(StateError::AlreadyPrepared)
    ));
    assert_eq!(split_der(&authority.bundle()).unwrap().len(), 2);
    assert_eq!(
        issue(&authority, now).issuer,
        old.issuer,
        "it does not sign yet"
    );
    authority.activate(now).unwrap();
    let new = issue(&authority, now);
    assert_ne!(new.issuer, old.issuer);
    assert!(verify(&authority, &old, now).is_ok());
    assert!(authority.stands_by(&old.issuer));

    assert!(matches!(
        authority.revoke_signer(&first, now),
        Err(StateError::NotTainted(_))
    ));
    authority.taint(&first, now).unwrap();
    assert!(!authority.stands_by(&old.issuer) && authority.stands_by(&new.issuer));
    assert!(
        verify(&authority, &old, now).is_ok(),
        "peers still trust it"
    );
    authority.revoke_signer(&first, now).unwrap();
    assert_eq!(
        verify(&authority, &old, now),
        Err(PeerRefused::UnknownAuthority)
    );
    assert!(verify(&authority, &new, now).is_ok());

    let key = standings("jwt")[0].0.clone();
    authority.taint(&key, now).unwrap();
    authority.revoke_signer(&key, now).unwrap();
    let left = (standings("x509").len(), standings("jwt").len());
    assert_eq!(left, (1, 1));
    drop(authority);
    let again = open(&folder, now).unwrap();
    assert!(verify(&again, &old, now).is_err() && verify(&again, &new, now).is_ok());
}
