//! Signatures that cosign makes with a key. Pure.
//!
//! Two forms: a signed payload ("simple signing") with its signature beside it, as `cosign download
//! signature` writes it, a line each; and the bundle in a DSSE envelope that cosign 3 makes by default.
//! Both name the digest of a manifest. Who signed is told by the keys that are configured, and by nothing
//! in the file: certificates, hints and logs in it are passed over.
//!
//! Spec: cosign, SIGNATURE_SPEC; containers/image, containers-signature(5); DSSE 1.0; in-toto Statement v1.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde::Deserialize;
use x509_parser::{prelude::FromDer as _, x509::SubjectPublicKeyInfo};

use super::{
    digest::Digest,
    document::{Refused, cut},
};

/// A key that somebody is believed by.
#[derive(Debug)]
pub(super) struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    point: Vec<u8>,
}

impl Key {
    /// Reads a public key in PEM, ECDSA on P-256 or Ed25519, as `cosign generate-key-pair` and OpenSSL
    /// write them.
    ///
    /// # Errors
    /// [`Refused`]: it is none.
    pub(super) fn read(text: &[u8]) -> Result<Self, Refused> {
        let none = || Refused::new("it is no public key in PEM (`-----BEGIN PUBLIC KEY-----`)");
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text).map_err(|_| none())?;
        let (rest, key) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| none())?;
        if !rest.is_empty() {
            return Err(none());
        }
        let curve = key.algorithm.parameters.as_ref();
        let curve = curve.and_then(|one| one.as_oid().ok());
        let algorithm: &'static dyn VerificationAlgorithm =
            match (key.algorithm.algorithm.to_id_string().as_str(), curve) {
                (EC, Some(curve)) if curve.to_id_string() == P256 => &ECDSA_P256_SHA256_ASN1,
                (EDWARDS_25519, _) => &ED25519,
                _ => {
                    return Err(Refused::new(
                        "only ECDSA on P-256 and Ed25519 are read; make a key with `cosign \
                         generate-key-pair`",
                    ));
                }
            };
        Ok(Self {
            algorithm,
            point: key.subject_public_key.data.to_vec(),
        })
    }

    /// Did the holder of this key make it?
    pub(super) fn has_made(&self, signed: &Signed) -> bool {
        let key = UnparsedPublicKey::new(self.algorithm, &self.point);
        let mut signatures = signed.signatures.iter();
        signatures.any(|signature| key.verify(&signed.message, signature).is_ok())
    }
}

/// Something signed about an image. Who made it is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signed {
    /// The manifest that it is about.
    pub(super) manifest: Digest,
    /// The bytes that were signed.
    message: Vec<u8>,
    signatures: Vec<Vec<u8>>,
}

#[derive(Debug, Deserialize)]
struct Written {
    #[serde(rename = "Base64Signature")]
    signature: Option<String>,
    #[serde(rename = "Payload")]
    payload: Option<String>,
    #[serde(rename = "dsseEnvelope")]
    envelope: Option<Envelope>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Debug, Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Debug, Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Image,
}

#[derive(Debug, Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<SubjectOf>,
    predicate_type: String,
}

#[derive(Debug, Deserialize)]
struct SubjectOf {
    digest: SubjectDigest,
}

#[derive(Debug, Deserialize)]
struct SubjectDigest {
    sha256: String,
}

/// Reads the signatures of a file, one JSON object after the other.
///
/// # Errors
/// [`Refused`]: one of them is none.
pub(super) fn read(text: &[u8]) -> Result<Vec<Signed>, Refused> {
    let mut all = Vec::new();
    for written in serde_json::Deserializer::from_slice(text).into_iter::<Written>() {
        if all.len() == MAX_SIGNATURES {
            return Err(Refused::new(format!(
                "it has more than {MAX_SIGNATURES} signatures; split it"
            )));
        }
        all.push(match written? {
            Written {
                signature: Some(signature),
                payload: Some(payload),
                envelope: None,
            } => simple(&signature, &payload)?,
            Written {
                signature: None,
                payload: None,
                envelope: Some(envelope),
            } => enveloped(&envelope)?,
            _ => {
                return Err(Refused::new(
                    "it holds no signature of an image: neither `Base64Signature` with `Payload` nor a \
                     `dsseEnvelope`",
                ));
            }
        });
    }
    Ok(all)
}

/// Spec: SIGNATURE_SPEC, "Simple Signing": the reference in it is not looked at.
fn simple(signature: &str, payload: &str) -> Result<Signed, Refused> {
    let message = decoded("Payload", payload)?;
    let critical = serde_json::from_slice::<Payload>(&message)?.critical;
    if critical.kind != COSIGN {
        return Err(Refused::new(format!(
            "`critical.type` is `{}`, which is not cosign's",
            cut(&critical.kind)
        )));
    }
    let manifest = Digest::parse(&critical.image.digest).ok_or_else(|| {
        Refused::new("`critical.image.docker-manifest-digest` is no SHA-256 digest")
    })?;
    Ok(Signed {
        manifest,
        message,
        signatures: vec![decoded("Base64Signature", signature)?],
    })
}

fn enveloped(envelope: &Envelope) -> Result<Signed, Refused> {
    if envelope.payload_type != IN_TOTO {
        return Err(Refused::new("`payloadType` is not in-toto's"));
    }
    let payload = decoded("payload", &envelope.payload)?;
    let statement: Statement = serde_json::from_slice(&payload)?;
    if statement.kind != STATEMENT || statement.predicate_type != SIGN {
        return Err(Refused::new(format!(
            "it is a statement of the type `{}`, and no signature of an image",
            cut(&statement.predicate_type)
        )));
    }
    let [subject] = statement.subject.as_slice() else {
        return Err(Refused::new("it is about several images, or about none"));
    };
    let manifest = Digest::parse(&format!("sha256:{}", subject.digest.sha256))
        .ok_or_else(|| Refused::new("the digest of its subject is no SHA-256 digest"))?;
    let signatures = envelope.signatures.iter().take(MAX_SIGNATURES);
    let signatures: Result<Vec<_>, Refused> =
        signatures.map(|one| decoded("sig", &one.sig)).collect();
    Ok(Signed {
        manifest,
        message: pre_authentication(&envelope.payload_type, &payload),
        signatures: signatures?,
    })
}

/// What is signed of an envelope. Spec: DSSE 1.0, "PAE".
fn pre_authentication(kind: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

fn decoded(what: &str, text: &str) -> Result<Vec<u8>, Refused> {
    let decoded = BASE64_STANDARD.decode(text);
    decoded.map_err(|_| Refused::new(format!("`{what}` is no base64")))
}

const COSIGN: &str = "cosign container image signature";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

/// `id-ecPublicKey`, `secp256r1` and `id-Ed25519`. Spec: RFC 5480, RFC 8410.
const EC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const EDWARDS_25519: &str = "1.3.101.112";

/// Of a file.
const MAX_SIGNATURES: usize = 64;

#[cfg(test)]
mod tests;
