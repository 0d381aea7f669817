//! Is a token what it says? Its form, its signature, its times, its issuer.
//! Spec: RFC 7519 section 7.2, RFC 8725 section 3.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, Header, Validation};
use postern_policies::model::request_authentication::JwtRule;
use serde_json::{Map, Value};

use super::{
    Verified,
    find::Found,
    keys::{KeySet, KeyStore},
};

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the token is no signed JSON Web Token")]
    Form,
    #[error("the token's algorithm is not one of public keys")]
    Algorithm,
    #[error("the token has extensions that must be understood, and are not")]
    Critical,
    #[error("no rule that reads the token's place accepts its issuer")]
    Issuer,
    #[error("the issuer's keys are not there")]
    NoKeys,
    #[error("no key of the issuer fits the token")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has no end (`exp`)")]
    NoEnd,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the request has more than one token")]
    Several,
}

/// Verifies a token by the rules that read its place.
pub(super) async fn by_any(
    found: &Found,
    rules: &[&JwtRule],
    keys: &KeyStore,
    now: SystemTime,
) -> Result<Verified, Refused> {
    if found.text.len() > MAX_BYTES {
        return Err(Refused::Form);
    }
    let header = jsonwebtoken::decode_header(&found.text).map_err(|_| Refused::Form)?;
    check_header(&header)?;
    // Only to know whose keys to ask; what is believed comes after the signature.
    let claims: Map<String, Value> =
        jsonwebtoken::dangerous::insecure_decode_claims(&found.text).map_err(|_| Refused::Form)?;
    let issuer = claims
        .get("iss")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let mut refused = Refused::Issuer;
    let mut verified: Option<Verified> = None;
    for &number in &found.readers {
        let Some(rule) = rules.get(number) else {
            continue;
        };
        if rule
            .issuer
            .as_deref()
            .is_some_and(|wanted| wanted != issuer)
        {
            continue;
        }
        match signed(&found.text, &header, rule, keys).await {
            Ok(claims) => match &mut verified {
                Some(verified) => verified.rules.push(number),
                None => {
                    times(&claims, now)?;
                    verified = Some(Verified {
                        issuer: issuer.to_owned(),
                        claims,
                        rules: vec![number],
                    });
                }
            },
            Err(error) => refused = error,
        }
    }
    verified.ok_or(refused)
}

fn check_header(header: &Header) -> Result<(), Refused> {
    // A shared secret in a public key set would let its readers sign.
    if matches!(
        header.alg,
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512
    ) {
        return Err(Refused::Algorithm);
    }
    match header.crit {
        Some(_) => Err(Refused::Critical),
        None => Ok(()),
    }
}

/// The claims, if a key of the rule made the signature.
async fn signed(
    text: &str,
    header: &Header,
    rule: &JwtRule,
    keys: &KeyStore,
) -> Result<Arc<Map<String, Value>>, Refused> {
    let set = keys.of(rule).await.ok_or(Refused::NoKeys)?;
    match by_key(text, header, &set) {
        // A new key, perhaps: the next request may find it.
        Err(Refused::UnknownKey) => {
            keys.look_again(rule);
            Err(Refused::UnknownKey)
        }
        answer => answer,
    }
}

fn by_key(text: &str, header: &Header, set: &KeySet) -> Result<Arc<Map<String, Value>>, Refused> {
    if let Some(claims) = set.seen(text) {
        return Ok(claims);
    }
    let mut validation = Validation::new(header.alg);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let mut refused = Refused::UnknownKey;
    for key in set.fitting(header) {
        match jsonwebtoken::decode::<Map<String, Value>>(text, key, &validation) {
            Ok(data) => return Ok(set.keep(text, data.claims)),
            Err(_) => refused = Refused::Signature,
        }
    }
    Err(refused)
}

/// Spec: RFC 7519 sections 4.1.4 and 4.1.5. A token without an end is refused: nobody could take
/// it back.
fn times(claims: &Map<String, Value>, now: SystemTime) -> Result<(), Refused> {
    let now = now
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let leeway = LEEWAY.as_secs_f64();
    let end = claims.get("exp").ok_or(Refused::NoEnd)?;
    let end = end.as_f64().ok_or(Refused::Form)?;
    if now > end + leeway {
        return Err(Refused::Expired);
    }
    if let Some(begin) = claims.get("nbf") {
        let begin = begin.as_f64().ok_or(Refused::Form)?;
        if now + leeway < begin {
            return Err(Refused::NotYet);
        }
    }
    Ok(())
}

/// How far clocks may differ; as Istio has it.
const LEEWAY: Duration = Duration::from_secs(60);

/// No token that fits into a header field is larger.
const MAX_BYTES: usize = 16 << 10;
