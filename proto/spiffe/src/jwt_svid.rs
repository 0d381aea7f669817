//! JWT-SVIDs: tokens that carry a SPIFFE ID, and the keys of a trust domain that sign them.
//!
//! A token is worth less than a certificate: whoever sees it can use it until it ends. So it is
//! verified for one audience, its header may say nothing that is not needed, and only what follows a
//! good signature is believed.
//!
//! Spec: JWT-SVID sections 2 to 4; RFC 8725.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{
        AlgorithmParameters, CommonParameters, EllipticCurve, EllipticCurveKeyParameters,
        EllipticCurveKeyType, Jwk, PublicKeyUse,
    },
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use crate::{spiffe_id::SpiffeId, trust_domain::TrustDomain};

/// The keys with which a trust domain signs its JWT-SVIDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtBundle {
    trust_domain: TrustDomain,
    keys: Vec<Jwk>,
}

impl JwtBundle {
    /// Of P-256 keys: an ID and the uncompressed point of each.
    pub fn of_p256<'k>(
        trust_domain: TrustDomain,
        keys: impl IntoIterator<Item = (&'k str, &'k [u8])>,
    ) -> Self {
        let keys = keys.into_iter().filter_map(|(id, point)| {
            let (4, both) = point.split_first()? else {
                return None;
            };
            let (x, y) = both.split_at_checked(P256_BYTES)?;
            let number = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
            Some(Jwk {
                common: CommonParameters {
                    public_key_use: Some(PublicKeyUse::Other(JWT_USE.into())),
                    key_id: Some(id.to_owned()),
                    ..CommonParameters::default()
                },
                algorithm: AlgorithmParameters::EllipticCurve(EllipticCurveKeyParameters {
                    key_type: EllipticCurveKeyType::EC,
                    curve: EllipticCurve::P256,
                    x: number(x),
                    y: number(y),
                }),
            })
        });
        Self {
            trust_domain,
            keys: keys.collect(),
        }
    }

    /// Does it trust nobody?
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Reads a JWK Set. Keys of another use, without an ID or of an unknown kind are left out.
    /// Spec: JWT-SVID section 5, Trust Domain and Bundle section 4.2.
    ///
    /// # Errors
    /// It is no JWK Set.
    pub fn parse(trust_domain: TrustDomain, json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json)?;
        let keys = set.keys.into_iter().filter_map(|value| {
            let key: Jwk = serde_json::from_value(value).ok()?;
            let usage = PublicKeyUse::Other(JWT_USE.into());
            let is_usable = key.common.public_key_use == Some(usage) && key.common.key_id.is_some();
            is_usable.then_some(key)
        });
        Ok(Self {
            trust_domain,
            keys: keys.collect(),
        })
    }

    /// Whose keys they are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// As a JWK Set, as the Workload API hands it out.
    pub fn to_json(&self) -> String {
        json!({"keys": self.keys}).to_string()
    }

    /// The keys.
    pub(crate) fn keys(&self) -> &[Jwk] {
        &self.keys
    }

    fn find(&self, id: &str) -> Option<&Jwk> {
        let mut keys = self.keys.iter();
        keys.find(|key| key.common.key_id.as_deref() == Some(id))
    }
}

/// A token that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtSvid {
    id: SpiffeId,
    claims: Map<String, Value>,
}

impl JwtSvid {
    /// Whose it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// What it says.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// Verifies a token that is meant for `audience`.
    ///
    /// # Errors
    /// [`JwtRefused`]: the first rule that it breaks.
    pub fn verify(
        token: &str,
        audience: &str,
        bundles: &[JwtBundle],
        now: SystemTime,
    ) -> Result<Self, JwtRefused> {
        if token.len() > MAX_TOKEN {
            return Err(JwtRefused::Form);
        }
        let header = Header::read(token)?;
        // Only to know whose keys to ask.
        let claimed: Map<String, Value> =
            jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| JwtRefused::Form)?;
        let id = subject(&claimed)?;
        let bundle = bundles
            .iter()
            .find(|bundle| bundle.trust_domain() == id.trust_domain())
            .ok_or(JwtRefused::TrustDomain)?;
        let key = bundle.find(&header.kid).ok_or(JwtRefused::UnknownKey)?;
        let key = DecodingKey::from_jwk(key).map_err(|_| JwtRefused::UnknownKey)?;
        if key.family() != header.algorithm.family() {
            return Err(JwtRefused::Algorithm);
        }
        let mut validation = Validation::new(header.algorithm);
        // Audience and times are looked at below, where each has its own refusal.
        validation.validate_aud = false;
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation)
            .map_err(|_| JwtRefused::Signature)?
            .claims;
        is_meant_for(&claims, audience)?;
        is_now(&claims, now)?;
        Ok(Self { id, claims })
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtRefused {
    /// No JWS in compact form with a JSON object in it.
    #[error("the token is no JWS in compact form")]
    Form,
    /// `alg` is none of those that a JWT-SVID may have (section 2.1).
    #[error("the token's algorithm is not one that a JWT-SVID may have")]
    Algorithm,
    /// `kid` is missing, `typ` is another, or there is a field that does not belong there.
    #[error("the token's header must hold `alg`, `kid` and at most `typ`: JWT or JOSE")]
    Header,
    /// `sub` is no SPIFFE ID of a workload.
    #[error("the token's subject is no SPIFFE ID of a workload")]
    Subject,
    /// Nobody vouches for the trust domain.
    #[error("there are no keys of the token's trust domain")]
    TrustDomain,
    /// The trust domain has no such key.
    #[error("the trust domain has no key of the token's `kid`")]
    UnknownKey,
    /// Not signed by that key.
    #[error("the token's signature is wrong")]
    Signature,
    /// `aud` is missing or names others.
    #[error("the token is not meant for this audience")]
    Audience,
    /// `exp` is missing or no number.
    #[error("the token has no end (`exp`)")]
    NoEnd,
    /// `exp` is over.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is not yet.
    #[error("the token is not valid yet")]
    NotYet,
}

struct Header {
    algorithm: Algorithm,
    kid: String,
}

impl Header {
    fn read(token: &str) -> Result<Self, JwtRefused> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            #[serde(rename = "alg")]
            _algorithm: IgnoredAny,
            kid: String,
            typ: Option<String>,
        }
        let part = token.split('.').next().unwrap_or_default();
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(part)
            .map_err(|_| JwtRefused::Form)?;
        let all: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|_| JwtRefused::Form)?;
        let allowed = all.get("alg").and_then(Value::as_str);
        let allowed = allowed.filter(|name| ALGORITHMS.contains(name));
        let algorithm = allowed.ok_or(JwtRefused::Algorithm)?;
        let algorithm = algorithm.parse().map_err(|_| JwtRefused::Algorithm)?;
        let fields: Fields =
            serde_json::from_value(Value::Object(all)).map_err(|_| JwtRefused::Header)?;
        let is_type = |typ: &str| matches!(typ, "JWT" | "JOSE");
        if fields.kid.is_empty() || fields.typ.as_deref().is_some_and(|typ| !is_type(typ)) {
            return Err(JwtRefused::Header);
        }
        Ok(Self {
            algorithm,
            kid: fields.kid,
        })
    }
}

fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, JwtRefused> {
    let text = claims.get("sub").and_then(Value::as_str);
    let id = text.and_then(|text| SpiffeId::parse(text).ok());
    id.filter(|id| !id.path().is_empty())
        .ok_or(JwtRefused::Subject)
}

fn is_meant_for(claims: &Map<String, Value>, audience: &str) -> Result<(), JwtRefused> {
    let is_it = match claims.get("aud") {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(all)) => all.iter().any(|one| one == audience),
        _ => false,
    };
    is_it.then_some(()).ok_or(JwtRefused::Audience)
}

fn is_now(claims: &Map<String, Value>, now: SystemTime) -> Result<(), JwtRefused> {
    let now = now
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let end = claims.get("exp").and_then(Value::as_f64);
    if now > end.ok_or(JwtRefused::NoEnd)? + LEEWAY.as_secs_f64() {
        return Err(JwtRefused::Expired);
    }
    match claims.get("nbf").map(Value::as_f64) {
        None => Ok(()),
        Some(Some(begin)) if now + LEEWAY.as_secs_f64() >= begin => Ok(()),
        Some(_) => Err(JwtRefused::NotYet),
    }
}

/// JWT-SVID section 2.1.
/// ES512 is allowed there, and verified by no library here.
const ALGORITHMS: [&str; 8] = [
    "RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512",
];

/// The `use` of a key that signs JWT-SVIDs (section 5.2).
const JWT_USE: &str = "jwt-svid";

/// How far clocks may differ.
const LEEWAY: Duration = Duration::from_secs(10);

/// Longer than any header that carries a token.
const MAX_TOKEN: usize = 16 << 10;

const P256_BYTES: usize = 32;

#[cfg(test)]
mod tests;
