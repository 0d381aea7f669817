//! A good token, and its twins that each break one rule.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm, EncodingKey, crypto::sign, jwk::Jwk};
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, PublicKeyData as _,
    RsaKeySize,
};
use serde_json::{Value, json};

use super::{JwtBundle, JwtRefused, JwtSvid};

const NOW: u64 = 1_700_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

struct Signer(KeyPair);

impl Signer {
    fn new() -> Self {
        Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    fn bundle(&self, trust_domain: &str) -> JwtBundle {
        let keys = [("one", self.0.der_bytes())];
        JwtBundle::of_p256(trust_domain.parse().unwrap(), keys)
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let key = EncodingKey::from_ec_der(&self.0.serialize_der());
        signed(header, claims, &key, Algorithm::ES256)
    }
}

fn signed(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    let part = |value: &Value| BASE64.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "one", "typ": "JWT"})
}

fn claims() -> Value {
    json!({"sub": "spiffe://example.org/web", "aud": ["api", "other"], "exp": NOW + 300})
}

fn with(mut value: Value, name: &str, new: Value) -> Value {
    match new {
        Value::Null => {
            value.as_object_mut().unwrap().remove(name);
        }
        new => value[name] = new,
    }
    value
}

fn verify(signer: &Signer, token: &str) -> Result<JwtSvid, JwtRefused> {
    JwtSvid::verify(token, "api", &[signer.bundle("example.org")], now())
}

#[test]
fn a_good_token_is_accepted() {
    let signer = Signer::new();
    let svid = verify(&signer, &signer.token(&header(), &claims())).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://example.org/web");
    assert_eq!(svid.claims()["aud"][1], "other");
    for (name, value) in [("typ", json!("JOSE")), ("typ", Value::Null)] {
        let token = signer.token(&with(header(), name, value), &claims());
        assert!(verify(&signer, &token).is_ok());
    }
    for (name, value) in [
        ("aud", json!("api")),
        ("exp", json!(NOW - 9)),
        ("nbf", json!(NOW + 9)),
        ("more", json!({"any": 1})),
    ] {
        let token = signer.token(&header(), &with(claims(), name, value));
        assert!(verify(&signer, &token).is_ok(), "{name}");
    }
}

#[test]
fn a_header_with_anything_wrong_is_refused() {
    // FAULTS 47
    let signer = Signer::new();
    for (name, value, refused) in [
        ("alg", json!("none"), JwtRefused::Algorithm),
        ("alg", json!("HS256"), JwtRefused::Algorithm),
        ("alg", json!("EdDSA"), JwtRefused::Algorithm),
        ("alg", json!("es256"), JwtRefused::Algorithm),
        ("alg", json!("RS256"), JwtRefused::Algorithm),
        ("alg", json!("ES384"), JwtRefused::Signature),
        ("alg", Value::Null, JwtRefused::Algorithm),
        ("kid", json!("two"), JwtRefused::UnknownKey),
        ("kid", json!(""), JwtRefused::Header),
        ("kid", Value::Null, JwtRefused::Header),
        ("typ", json!("at+jwt"), JwtRefused::Header),
        ("jwk", json!({}), JwtRefused::Header),
        ("jku", json!("https://keys.example"), JwtRefused::Header),
        ("crit", json!(["exp"]), JwtRefused::Header),
        ("x5c", json!([]), JwtRefused::Header),
    ] {
        let token = signer.token(&with(header(), name, value.clone()), &claims());
        assert_eq!(verify(&signer, &token), Err(refused), "{name} {value}");
    }
}

#[test]
fn other_algorithms_are_verified_each_by_its_own_kind_of_key() {
    use Algorithm::{ES384, PS256, PS384, PS512, RS256, RS384, RS512};
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = EncodingKey::from_ec_der(&p384.serialize_der());
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    // Behind what PKCS #8 puts before it.
    let rsa = EncodingKey::from_rsa_der(&rsa.serialize_der()[26..]);
    let all = [RS256, RS384, RS512, PS256, PS384, PS512];
    let of_rsa = all.into_iter().zip(all.into_iter().cycle().skip(1));
    let of_rsa = of_rsa.map(|(algorithm, other)| (algorithm, &rsa, other));
    for (algorithm, key, other) in of_rsa.chain([(ES384, &p384, ES384)]) {
        let mut jwk =
            serde_json::to_value(Jwk::from_encoding_key(key, algorithm).unwrap()).unwrap();
        jwk["use"] = json!("jwt-svid");
        jwk["kid"] = json!("one");
        let set = json!({"keys": [jwk]}).to_string();
        let bundle = JwtBundle::parse("example.org".parse().unwrap(), set.as_bytes()).unwrap();
        let header = with(header(), "alg", json!(format!("{algorithm:?}")));
        let verify =
            |token: &str| JwtSvid::verify(token, "api", std::slice::from_ref(&bundle), now());
        let good = signed(&header, &claims(), key, algorithm);
        assert!(verify(&good).is_ok(), "{algorithm:?}");
        // Its twins: other claims under the same signature, and a signature of another algorithm.
        let (_, signature) = good.rsplit_once('.').unwrap();
        let changed = with(claims(), "sub", json!("spiffe://example.org/root"));
        let changed = signed(&header, &changed, key, algorithm);
        let (message, _) = changed.rsplit_once('.').unwrap();
        let refused = verify(&format!("{message}.{signature}"));
        assert_eq!(refused, Err(JwtRefused::Signature), "{algorithm:?}");
        if other != algorithm {
            let confused = signed(&header, &claims(), key, other);
            assert_eq!(verify(&confused), Err(JwtRefused::Signature), "{other:?}");
        }
    }
}

#[test]
fn claims_with_anything_wrong_are_refused() {
    let signer = Signer::new();
    for (name, value, refused) in [
        ("sub", Value::Null, JwtRefused::Subject),
        ("sub", json!("web"), JwtRefused::Subject),
        ("sub", json!("spiffe://example.org"), JwtRefused::Subject),
        (
            "sub",
            json!("spiffe://example.net/web"),
            JwtRefused::TrustDomain,
        ),
        ("aud", Value::Null, JwtRefused::Audience),
        ("aud", json!([]), JwtRefused::Audience),
        ("aud", json!("apis"), JwtRefused::Audience),
        ("aud", json!([["api"]]), JwtRefused::Audience),
        ("exp", Value::Null, JwtRefused::NoEnd),
        ("exp", json!("9999999999"), JwtRefused::NoEnd),
        ("exp", json!(NOW - 11), JwtRefused::Expired),
        ("nbf", json!(NOW + 11), JwtRefused::NotYet),
        ("nbf", json!("now"), JwtRefused::NotYet),
    ] {
        let token = signer.token(&header(), &with(claims(), name, value.clone()));
        assert_eq!(verify(&signer, &token), Err(refused), "{name} {value}");
    }
}

#[test]
fn what_another_signed_is_refused() {
    let (signer, other) = (Signer::new(), Signer::new());
    let token = other.token(&header(), &claims());
    assert_eq!(verify(&signer, &token), Err(JwtRefused::Signature));
    // A key of the same name, of another trust domain.
    let bundles = [signer.bundle("example.org"), other.bundle("example.net")];
    let refused = JwtSvid::verify(&token, "api", &bundles, now());
    assert_eq!(refused, Err(JwtRefused::Signature));
    let good = signer.token(&header(), &claims());
    assert!(JwtSvid::verify(&good, "api", &bundles, now()).is_ok());
    for (what, token) in [
        ("short", good.rsplit_once('.').unwrap().0.to_owned()),
        ("long", format!("{good}.x")),
        ("unsigned", format!("{}.", good.rsplit_once('.').unwrap().0)),
        ("empty", String::new()),
        ("huge", format!("{good}{}", "x".repeat(20_000))),
    ] {
        assert!(verify(&signer, &token).is_err(), "{what}");
    }
}

#[test]
fn a_bundle_is_read_as_it_is_written_and_takes_no_keys_of_another_use() {
    let signer = Signer::new();
    let bundle = signer.bundle("example.org");
    let read = |json: &str| JwtBundle::parse("example.org".parse().unwrap(), json.as_bytes());
    assert_eq!(read(&bundle.to_json()).unwrap(), bundle);
    let token = signer.token(&header(), &claims());
    for (from, to) in [
        ("\"use\":\"jwt-svid\"", "\"use\":\"x509-svid\""),
        ("\"use\":\"jwt-svid\"", "\"use\":\"sig\""),
        ("\"use\":\"jwt-svid\",", ""),
        ("\"kty\":\"EC\"", "\"kty\":\"XX\""),
        (",\"kid\":\"one\"", ""),
    ] {
        let json = bundle.to_json();
        assert!(json.contains(from), "{from} in {json}");
        let other = read(&json.replace(from, to)).unwrap();
        let refused = JwtSvid::verify(&token, "api", &[other], now());
        assert_eq!(refused, Err(JwtRefused::UnknownKey), "{to}");
    }
    assert!(read("{}").is_err() && read("[]").is_err());
}
