//! The bundle document: a JWK Set in JSON, the form in which bundles are published and exchanged.
//!
//! An entry that is not understood is left out, as the standard demands: a newer publisher must not
//! break an older reader. Leaving one out can only make the bundle trust less. An entry that claims
//! to be an X.509 authority and is none refuses the document.
//!
//! Spec: SPIFFE Trust Domain and Bundle section 4; RFC 7517.

use std::time::Duration;

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::{
    prelude::{FromDer as _, X509Certificate},
    public_key::PublicKey,
};

use super::{BundleError, X509Bundle};
use crate::{jwt_svid::JwtBundle, trust_domain::TrustDomain};

/// The longest document that is read, in bytes.
pub const MAX_DOCUMENT: usize = 4 << 20;

/// A bundle as it is published.
#[derive(Debug, Clone)]
pub struct BundleDocument {
    /// The X.509 authorities.
    pub x509: X509Bundle,
    /// The keys that sign JWT-SVIDs.
    pub jwt: JwtBundle,
    /// `spiffe_sequence`: grows with every change of the contents.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`: how often a reader should look again.
    pub refresh_hint: Option<Duration>,
}

impl BundleDocument {
    /// Reads the document that `trust_domain` publishes.
    ///
    /// The document does not say whose it is; the caller knows from where it came.
    ///
    /// # Errors
    /// [`DocumentError`]; callers keep the bundle that they have.
    pub fn parse(trust_domain: TrustDomain, json: &[u8]) -> Result<Self, DocumentError> {
        if json.len() > MAX_DOCUMENT {
            return Err(DocumentError::TooLong { bytes: json.len() });
        }
        let read: KeySet = serde_json::from_slice(json)
            .map_err(|error| DocumentError::Malformed(error.to_string()))?;
        let jwt = JwtBundle::parse(trust_domain.clone(), json)
            .map_err(|error| DocumentError::Malformed(error.to_string()))?;
        let mut authorities = Vec::new();
        for (index, key) in read.keys.into_iter().enumerate() {
            // Members of other types are somebody else's kind of key.
            let Ok(key) = serde_json::from_value::<Key>(key) else {
                continue;
            };
            authorities.extend(authority(&key).map_err(|what| DocumentError::Key { index, what })?);
        }
        Ok(Self {
            x509: X509Bundle::new(trust_domain, authorities)?,
            jwt,
            sequence: read.spiffe_sequence,
            refresh_hint: read.spiffe_refresh_hint.map(Duration::from_secs),
        })
    }

    /// The document in JSON.
    ///
    /// # Errors
    /// [`DocumentError::Key`] for an authority whose kind of key has no JSON form.
    pub fn to_json(&self) -> Result<String, DocumentError> {
        let of_json = |error: serde_json::Error| DocumentError::Malformed(error.to_string());
        let keys: Vec<Key> = self
            .x509
            .authorities()
            .iter()
            .enumerate()
            .map(|(index, certificate)| {
                entry(certificate).ok_or(DocumentError::Key {
                    index,
                    what: "its kind of key has no JSON form",
                })
            })
            .collect::<Result<_, _>>()?;
        let x509 = keys.iter().map(serde_json::to_value);
        let jwt = self.jwt.keys().iter().map(serde_json::to_value);
        let document = Written {
            keys: x509.chain(jwt).collect::<Result<_, _>>().map_err(of_json)?,
            spiffe_sequence: self.sequence,
            spiffe_refresh_hint: self.refresh_hint.map(|hint| hint.as_secs()),
        };
        serde_json::to_string_pretty(&document).map_err(of_json)
    }
}

/// A document that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Longer than [`MAX_DOCUMENT`].
    #[error("the bundle document has {bytes} bytes, more than {MAX_DOCUMENT}")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// No JSON, or without the members that a document must have.
    #[error("this is no bundle document: {0}")]
    Malformed(String),
    /// An entry for an X.509 authority that holds none.
    #[error("key {index} of the bundle document: {what}")]
    Key {
        /// The place of the entry, from 0.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A certificate that is no authority.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// Trust Domain and Bundle section 4.1; RFC 7517 section 5.
#[derive(Debug, Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
    #[serde(default)]
    spiffe_sequence: Option<u64>,
    #[serde(default)]
    spiffe_refresh_hint: Option<u64>,
}

/// The same, to write: keys of both uses.
#[derive(Debug, Serialize)]
struct Written {
    keys: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

/// RFC 7517 section 4, and RFC 7518 section 6 for the numbers. Members that are not here are not
/// needed: the key is read from the certificate.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Key {
    #[serde(default)]
    kty: String,
    #[serde(default, rename = "use")]
    usage: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    x5c: Vec<String>,
}

/// The certificate of an entry; nothing when the entry is of another use or an unknown kind.
fn authority(key: &Key) -> Result<Option<CertificateDer<'static>>, &'static str> {
    if key.usage != X509_USE || !KINDS.contains(&key.kty.as_str()) {
        return Ok(None);
    }
    // Section 4.2.2: without one there is no authority, and those behind the first one are not its own.
    let Some(certificate) = key.x5c.first() else {
        return Ok(None);
    };
    let der = BASE64_STANDARD
        .decode(certificate)
        .map_err(|_| "`x5c` holds no base64")?;
    Ok(Some(CertificateDer::from(der)))
}

fn entry(certificate: &CertificateDer<'_>) -> Option<Key> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let number = |bytes: &[u8]| Some(BASE64_URL_SAFE_NO_PAD.encode(bytes));
    let mut key = match parsed.public_key().parsed().ok()? {
        PublicKey::EC(point) => {
            // Uncompressed: 4, x, y.
            let (4, both) = point.data().split_first()? else {
                return None;
            };
            let (x, y) = both.split_at(both.len() / 2);
            let curve = CURVES
                .iter()
                .find(|(_, bytes)| *bytes == x.len() && x.len() == y.len())?;
            Key {
                kty: "EC".into(),
                crv: Some(curve.0.into()),
                x: number(x),
                y: number(y),
                ..Key::default()
            }
        }
        PublicKey::RSA(rsa) => Key {
            kty: "RSA".into(),
            n: number(without_leading_zeros(rsa.modulus)),
            e: number(without_leading_zeros(rsa.exponent)),
            ..Key::default()
        },
        _ => return None,
    };
    key.usage = X509_USE.into();
    key.x5c = vec![BASE64_STANDARD.encode(certificate)];
    Some(key)
}

/// RFC 7518 section 6.3.1.1 wants the fewest octets; DER puts a zero before a set top bit.
fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|octet| **octet == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// The `use` of an entry that is an X.509 authority (section 4.2.2).
const X509_USE: &str = "x509-svid";

/// Kinds of keys that an X.509 authority may have.
const KINDS: [&str; 3] = ["EC", "RSA", "OKP"];

/// Curves by the length of a coordinate, in bytes.
const CURVES: [(&str, usize); 3] = [("P-256", 32), ("P-384", 48), ("P-521", 66)];

#[cfg(test)]
mod tests;
