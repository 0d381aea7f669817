//! Signatures that OpenSSL makes in cosign's two forms, and their twins.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{Key, Signed, pre_authentication, read};
use crate::attest::image::fixtures::{MANIFEST, digest, parsed, with};

/// A folder with keys that OpenSSL makes and signs with.
struct Keys(tempfile::TempDir);

impl Keys {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a key. Tells the public one.
    fn make(&self, name: &str, options: &[&str]) -> Vec<u8> {
        let (private, public) = (self.at(name), self.at(&format!("{name}.pub")));
        let mut all = vec!["genpkey", "-out", private.to_str().unwrap()];
        all.extend(options);
        openssl(&all);
        let of = ["pkey", "-in", private.to_str().unwrap(), "-pubout", "-out"];
        openssl(&[of.as_slice(), &[public.to_str().unwrap()]].concat());
        std::fs::read(public).unwrap()
    }

    fn sign(&self, name: &str, message: &[u8]) -> String {
        let (private, message_file, out) = (self.at(name), self.at("message"), self.at("out"));
        std::fs::write(&message_file, message).unwrap();
        let [private, message, written] =
            [&private, &message_file, &out].map(|path| path.to_str().unwrap());
        match name.starts_with("ed") {
            true => openssl(&[
                "pkeyutl", "-sign", "-rawin", "-inkey", private, "-in", message, "-out", written,
            ]),
            false => openssl(&[
                "dgst", "-sha256", "-sign", private, "-out", written, message,
            ]),
        }
        BASE64_STANDARD.encode(std::fs::read(&out).unwrap())
    }
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
}

const EC: [&str; 4] = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const ED: [&str; 2] = ["-algorithm", "ed25519"];

fn payload() -> Value {
    json!({
        "critical": {
            "identity": {"docker-reference": "registry.test/web"},
            "image": {"docker-manifest-digest": digest(MANIFEST)},
            "type": "cosign container image signature"
        },
        "optional": null
    })
}

fn simple(payload: &Value, signature: &str) -> Value {
    json!({"Base64Signature": signature, "Payload": BASE64_STANDARD.encode(payload.to_string()),
           "Cert": null, "Chain": null, "Bundle": null, "RFC3161Timestamp": null})
}

fn statement() -> Value {
    json!({"_type": "https://in-toto.io/Statement/v1",
           "subject": [{"digest": {"sha256": MANIFEST.repeat(32)}, "annotations": {}}],
           "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {}})
}

const IN_TOTO: &str = "application/vnd.in-toto+json";

fn bundle(statement: &Value, signature: &str) -> Value {
    json!({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
           "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
           "dsseEnvelope": {"payload": BASE64_STANDARD.encode(statement.to_string()),
                            "payloadType": IN_TOTO, "signatures": [{"sig": signature}]}})
}

fn one(document: &Value) -> Signed {
    let mut all = read(document.to_string().as_bytes()).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[track_caller]
fn refused(document: &Value, part: &str) {
    let why = read(document.to_string().as_bytes())
        .unwrap_err()
        .to_string();
    assert!(why.contains(part), "`{part}` in `{why}`");
}

#[test]
fn the_holder_of_a_key_has_signed_what_he_signed_and_nothing_else() {
    let keys = Keys::new();
    for (name, options) in [("ec", EC.as_slice()), ("ed", ED.as_slice())] {
        let key = Key::read(&keys.make(name, options)).unwrap();
        let other = Key::read(&keys.make(&format!("{name}-other"), options)).unwrap();
        let signature = keys.sign(name, payload().to_string().as_bytes());
        let signed = one(&simple(&payload(), &signature));
        assert_eq!(signed.manifest, parsed(MANIFEST));
        assert!(key.has_made(&signed), "{name}");
        assert!(!other.has_made(&signed), "{name}: another key");
        // The same signature over another payload.
        let altered = with(
            payload(),
            "/critical/image/docker-manifest-digest",
            Some(json!(digest("ee"))),
        );
        assert!(
            !key.has_made(&one(&simple(&altered, &signature))),
            "{name}: altered"
        );
        let noted = with(payload(), "/optional", Some(json!({})));
        assert!(
            !key.has_made(&one(&simple(&noted, &signature))),
            "{name}: a note"
        );

        let message = pre_authentication(IN_TOTO, statement().to_string().as_bytes());
        let signature = keys.sign(name, &message);
        let signed = one(&bundle(&statement(), &signature));
        assert_eq!(signed.manifest, parsed(MANIFEST));
        assert!(key.has_made(&signed), "{name}: bundle");
        assert!(!other.has_made(&signed), "{name}: bundle, another key");
        let altered = with(
            statement(),
            "/subject/0/digest/sha256",
            Some(json!("ee".repeat(32))),
        );
        assert!(
            !key.has_made(&one(&bundle(&altered, &signature))),
            "{name}: bundle, altered"
        );
        // What was signed as it stands is signed as no envelope.
        let bare = keys.sign(name, statement().to_string().as_bytes());
        assert!(
            !key.has_made(&one(&bundle(&statement(), &bare))),
            "{name}: not as an envelope"
        );
    }
}

#[test]
fn one_of_several_signatures_is_enough_and_each_is_told_apart() {
    let keys = Keys::new();
    let (first, second) = (keys.make("ec", &EC), keys.make("ec-second", &EC));
    let (first, second) = (Key::read(&first).unwrap(), Key::read(&second).unwrap());
    let by = |name: &str| {
        simple(
            &payload(),
            &keys.sign(name, payload().to_string().as_bytes()),
        )
        .to_string()
    };
    let lines = format!("{}\n{}\n", by("ec"), by("ec-second"));
    let all = read(lines.as_bytes()).unwrap();
    let made: Vec<_> = all
        .iter()
        .map(|one| (first.has_made(one), second.has_made(one)))
        .collect();
    assert_eq!(made, [(true, false), (false, true)]);
    let half = format!("{}\n{{\"Base64Signature\": ", by("ec"));
    assert!(read(half.as_bytes()).is_err());
    let many = by("ec").repeat(65);
    let why = read(many.as_bytes()).unwrap_err().to_string();
    assert!(why.contains("more than 64 signatures"), "{why}");
}

#[test]
fn what_is_no_signature_of_an_image_is_refused() {
    let of = |place: &str, value: Value| simple(&with(payload(), place, Some(value)), "AAAA");
    refused(
        &of("/critical/type", json!("atomic container signature")),
        "not cosign's",
    );
    refused(
        &of("/critical/image/docker-manifest-digest", json!("latest")),
        "no SHA-256 digest",
    );
    refused(
        &of(
            "/critical/image",
            json!({"Docker-manifest-digest": digest(MANIFEST)}),
        ),
        "missing field",
    );
    refused(
        &with(
            simple(&payload(), "AAAA"),
            "/Base64Signature",
            Some(json!("%")),
        ),
        "no base64",
    );
    refused(
        &with(simple(&payload(), "AAAA"), "/Payload", Some(json!("%"))),
        "no base64",
    );
    refused(
        &with(simple(&payload(), "AAAA"), "/Payload", None),
        "no signature of an image",
    );
    let of = |place: &str, value: Value| bundle(&with(statement(), place, Some(value)), "AAAA");
    refused(
        &of("/predicateType", json!("https://slsa.dev/provenance/v1")),
        "slsa.dev",
    );
    refused(
        &of("/_type", json!("https://in-toto.io/Statement/v0.1")),
        "no signature of an image",
    );
    refused(&of("/subject", json!([])), "about none");
    refused(
        &of(
            "/subject",
            json!([statement()["subject"][0], statement()["subject"][0]]),
        ),
        "several images",
    );
    refused(
        &of("/subject/0/digest/sha256", json!("EE".repeat(32))),
        "no SHA-256 digest",
    );
    let kind = "/dsseEnvelope/payloadType";
    refused(
        &with(
            bundle(&statement(), "AAAA"),
            kind,
            Some(json!("text/plain")),
        ),
        "in-toto",
    );
    let message = with(bundle(&statement(), "AAAA"), "/dsseEnvelope", None);
    refused(
        &with(message, "/messageSignature", Some(json!({}))),
        "no signature of an image",
    );
    // A signature of no bytes and one of nonsense are somebody's, and nobody's that is known.
    let keys = Keys::new();
    let key = Key::read(&keys.make("ec", &EC)).unwrap();
    for signature in ["", "AAAA", "MAYCAQACAQA="] {
        assert!(
            !key.has_made(&one(&simple(&payload(), signature))),
            "{signature}"
        );
    }
}

#[test]
fn only_keys_that_cosign_signs_images_with_are_read() {
    let keys = Keys::new();
    let p384 = keys.make(
        "p384",
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
    );
    let rsa = keys.make(
        "rsa",
        &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    );
    for key in [p384, rsa] {
        let why = Key::read(&key).unwrap_err().to_string();
        assert!(why.contains("cosign generate-key-pair"), "{why}");
    }
    let private = std::fs::read(keys.at("p384")).unwrap();
    let public = String::from_utf8(keys.make("ec", &EC)).unwrap();
    let cut = public.replacen("MFkw", "MFkx", 1);
    for text in [
        private.as_slice(),
        cut.as_bytes(),
        b"",
        b"-----BEGIN PUBLIC KEY-----\n",
    ] {
        let why = Key::read(text).unwrap_err().to_string();
        assert!(why.contains("no public key in PEM"), "{why}");
    }
    assert!(Path::new(&keys.at("ec.pub")).exists());
}
