//! The tokens of requests: found where RequestAuthentication says, verified with the keys that it
//! names, and told to the policies.
//!
//! No token is nobody's business here. A token in a place that a rule reads, and that no rule of
//! the place accepts, is refused: it claims something that is not so.

mod fetch;
mod find;
mod keys;
mod verify;

use std::{sync::Arc, time::SystemTime};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use postern_policies::{decide::Token, model::request_authentication::JwtRule};
use serde_json::{Map, Value};

pub(crate) use self::keys::{KeyStore, follow};
use self::verify::Refused;

/// A token that at least one rule accepts.
#[derive(Debug)]
pub(crate) struct Verified {
    issuer: String,
    claims: Arc<Map<String, Value>>,
    /// The rules, by their places among those of the workload.
    rules: Vec<usize>,
}

impl Verified {
    /// As the policies ask for it.
    pub(crate) fn token(&self) -> Token<'_> {
        Token {
            issuer: &self.issuer,
            claims: &self.claims,
            verified_by: Some(&self.rules),
        }
    }
}

/// Finds and verifies the token of a request.
///
/// # Errors
/// [`Refused`]: there is one, and it is not good. The caller answers 401.
pub(crate) async fn of_request<B>(
    request: &Request<B>,
    rules: &[&JwtRule],
    keys: &KeyStore,
    now: SystemTime,
) -> Result<Option<Verified>, Refused> {
    if rules.is_empty() || is_preflight(request) {
        return Ok(None);
    }
    let mut good: Option<(String, Verified)> = None;
    for found in find::tokens(request, rules)? {
        let verified = verify::by_any(&found, rules, keys, now).await?;
        match &mut good {
            // Which of two would the policies speak of?
            Some((text, _)) if *text != found.text => return Err(Refused::Several),
            Some((_, already)) => already.rules.extend(verified.rules),
            None => good = Some((found.text, verified)),
        }
    }
    Ok(good.map(|(_, verified)| verified))
}

/// A browser's question before the request proper; it never has a token.
/// Spec: Fetch section 4.8 (CORS-preflight fetch).
fn is_preflight<B>(request: &Request<B>) -> bool {
    let has = |name: &str| request.headers().contains_key(name);
    request.method() == Method::OPTIONS && has("origin") && has("access-control-request-method")
}

/// What the app sees: the fields of the rules are told by us alone, and the token itself only where
/// a rule forwards it.
pub(crate) fn tell_app<B>(
    request: &mut Request<B>,
    rules: &[&JwtRule],
    accepted: Option<(&Verified, &JwtRule)>,
) {
    for rule in rules {
        let claims = rule.claim_headers.iter().map(|one| &one.header);
        for name in rule.payload_header.iter().chain(claims) {
            strip(request.headers_mut(), name);
        }
    }
    let Some((verified, rule)) = accepted else {
        return;
    };
    if !rule.forward {
        find::remove(request, rules);
    }
    let headers = request.headers_mut();
    if let Some(name) = &rule.payload_header
        && let Ok(payload) = serde_json::to_vec(&*verified.claims)
    {
        tell(headers, name, &BASE64_URL_SAFE_NO_PAD.encode(payload));
    }
    for one in &rule.claim_headers {
        if let Some(text) = claim_text(&verified.claims, &one.claim) {
            tell(headers, &one.header, &text);
        }
    }
}

/// Strips a field in every spelling: some apps take `_` for `-`.
fn strip(headers: &mut HeaderMap, name: &str) {
    let plain = |name: &str| name.replace('_', "-");
    let name = plain(name);
    let all = headers.keys();
    let like: Vec<HeaderName> = all
        .filter(|one| plain(one.as_str()) == name)
        .cloned()
        .collect();
    for one in like {
        headers.remove(one);
    }
}

fn tell(headers: &mut HeaderMap, name: &str, text: &str) {
    if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::try_from(text)) {
        headers.insert(name, value);
    }
}

/// Texts, numbers and booleans as they are; of objects and lists nothing is told.
fn claim_text(claims: &Map<String, Value>, path: &[String]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let value = rest
        .iter()
        .try_fold(claims.get(first)?, |value, key| value.get(key))?;
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
