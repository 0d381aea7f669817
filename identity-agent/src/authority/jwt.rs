//! The keys that sign JWT-SVIDs, and the tokens themselves.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use postern_spiffe::SpiffeId;
use rcgen::PublicKeyData as _;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    issue::{hex, random_serial, whole_seconds},
    keys::SigningKey,
    signers::Lived,
    state::StateError,
};

/// A key that signs JWT-SVIDs for a while.
pub(super) struct JwtKey {
    /// Its `kid`.
    pub(super) id: String,
    pub(super) pkcs8: Zeroizing<Vec<u8>>,
    /// The public half: an uncompressed point.
    pub(super) point: Vec<u8>,
    signs: EncodingKey,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl std::fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtKey")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .field("key", &"<secret>")
            .finish_non_exhaustive()
    }
}

impl Lived for JwtKey {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn not_before(&self) -> SystemTime {
        self.not_before
    }

    fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl JwtKey {
    /// Makes a new one.
    pub(super) fn make(lifetime: Duration, now: SystemTime) -> Result<Self, StateError> {
        let pkcs8 = SigningKey::generate()?.pkcs8();
        let id = hex(&random_serial()?);
        Self::of(id, pkcs8, [now, now + lifetime].map(whole_seconds))
    }

    /// As it was written down.
    pub(super) fn of(
        id: String,
        pkcs8: Zeroizing<Vec<u8>>,
        [not_before, not_after]: [SystemTime; 2],
    ) -> Result<Self, StateError> {
        let key = SigningKey::from_pkcs8(&pkcs8)?;
        Ok(Self {
            id,
            point: key.der_bytes().to_vec(),
            signs: EncodingKey::from_ec_der(&pkcs8),
            pkcs8,
            not_before,
            not_after,
        })
    }

    /// Signs a token for `id`. It never outlives the key. Spec: JWT-SVID sections 2 and 3.
    pub(super) fn sign(
        &self,
        id: &SpiffeId,
        audience: &[String],
        issuer: Option<&str>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, StateError> {
        let seconds = |time: SystemTime| {
            time.duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs()
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.clone());
        let mut claims = json!({
            "sub": id.as_str(),
            "aud": audience,
            "iat": seconds(now),
            "exp": seconds((now + lifetime).min(self.not_after)),
        });
        if let (Some(issuer), Some(claims)) = (issuer, claims.as_object_mut()) {
            claims.insert("iss".into(), json!(issuer));
        }
        jsonwebtoken::encode(&header, &claims, &self.signs).map_err(|_| StateError::Token)
    }
}
