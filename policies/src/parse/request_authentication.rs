//! Reads RequestAuthentication.

use std::time::Duration;

use super::{istio_selector, metadata, refuse_target_refs};
use crate::{
    diagnostic::Problems,
    model::request_authentication::{
        ClaimHeader, JwtRule, Keys, RequestAuthentication, TokenPlace,
    },
    set::Options,
    yaml::{Fields, Node, fields},
};

pub(crate) fn read(
    node: &Node,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<RequestAuthentication> {
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let document = Fields::of(node, "RequestAuthentication", &known, problems)?;
    let (meta, _) = metadata(node.at, &document, options, problems)?;
    let mut policy = RequestAuthentication {
        meta,
        selector: Default::default(),
        rules: Vec::new(),
    };
    let Some(spec) = document.get("spec") else {
        return Some(policy);
    };
    let spec = Fields::of(
        spec,
        "spec",
        &["selector", "targetRef", "targetRefs", "jwtRules"],
        problems,
    )?;
    refuse_target_refs(&spec, problems)?;
    policy.selector = istio_selector(&spec, problems)?;
    let rules: Vec<_> = spec
        .list("jwtRules", problems)
        .iter()
        .map(|node| rule(node, problems))
        .collect();
    policy.rules = rules.into_iter().collect::<Option<_>>()?;
    Some(policy)
}

fn rule(node: &Node, problems: &mut Problems<'_>) -> Option<JwtRule> {
    let fields = Fields::of(node, "a rule of `jwtRules`", &RULE, problems)?;
    if let Some(node) = fields.get("presence") {
        problems.error_with(
            node.at,
            "`presence` is not enforced by anybody yet",
            "demand a token with an AuthorizationPolicy: `requestPrincipals: [\"*\"]`",
        );
        return None;
    }
    let issuer = match fields.get("issuer") {
        Some(node) => Some(fields::filled(node, "issuer", problems)?.to_owned()),
        None => None,
    };
    let keys = keys(node, &fields, problems)?;
    if issuer.is_none() && !matches!(keys, Keys::Uri(_)) {
        problems.error(node.at, "a rule of `jwtRules` needs `issuer` or `jwksUri`");
        return None;
    }
    let forward = match fields.get("forwardOriginalToken") {
        Some(node) => fields::boolean(node, "forwardOriginalToken", problems)?,
        None => false,
    };
    let payload_header = match fields.get("outputPayloadToHeader") {
        Some(node) => Some(header_name(node, "outputPayloadToHeader", problems)?),
        None => None,
    };
    let timeout = match fields.get("timeout") {
        Some(node) => fields::duration(node, "timeout", problems)?,
        None => KEYS_TIMEOUT,
    };
    Some(JwtRule {
        at: node.at,
        places: places(&fields, problems)?,
        claim_headers: claim_headers(&fields, problems)?,
        forward,
        payload_header,
        timeout,
        issuer,
        audiences: texts(&fields, "audiences", problems)?,
        keys,
        space_delimited: texts(&fields, "spaceDelimitedClaims", problems)?,
    })
}

fn keys(node: &Node, fields: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Keys> {
    match (fields.get("jwks"), fields.get("jwksUri")) {
        (Some(_), Some(_)) => {
            problems.error(node.at, "`jwks` and `jwksUri` exclude each other");
            None
        }
        (Some(node), None) => {
            let text = fields::filled(node, "jwks", problems)?;
            let set: Option<serde_json::Value> = serde_json::from_str(text).ok();
            if !set.is_some_and(|set| set.get("keys").is_some_and(serde_json::Value::is_array)) {
                problems.error_with(
                    node.at,
                    "`jwks` is no JWK Set",
                    "it is JSON with a list `keys` (RFC 7517 section 5)",
                );
                return None;
            }
            Some(Keys::Inline(text.to_owned()))
        }
        (None, Some(node)) => {
            let text = fields::filled(node, "jwksUri", problems)?;
            if !text.starts_with("https://") && !text.starts_with("http://") {
                problems.error(
                    node.at,
                    format!("`{text}` in `jwksUri` is no http or https URL"),
                );
                return None;
            }
            Some(Keys::Uri(text.to_owned()))
        }
        (None, None) => Some(Keys::Discovered),
    }
}

/// Where tokens are looked for.
fn places(fields: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Vec<TokenPlace>> {
    let mut places = Vec::new();
    for node in fields.list("fromHeaders", problems) {
        let what = "an item of `fromHeaders`";
        let header = Fields::of(node, what, &["name", "prefix"], problems)?;
        let name = header_name(header.required("name", what, problems)?, "name", problems)?;
        let prefix = header.text("prefix", problems).unwrap_or_default();
        places.push(TokenPlace::Header {
            name,
            prefix: prefix.to_owned(),
        });
    }
    let parameters = texts(fields, "fromParams", problems)?;
    let cookies = texts(fields, "fromCookies", problems)?;
    places.extend(parameters.into_iter().map(TokenPlace::Parameter));
    places.extend(cookies.into_iter().map(TokenPlace::Cookie));
    match places.is_empty() {
        true => Some(TokenPlace::defaults()),
        false => Some(places),
    }
}

/// Fields in which the app gets single claims.
fn claim_headers(fields: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Vec<ClaimHeader>> {
    let mut all = Vec::new();
    for node in fields.list("outputClaimToHeaders", problems) {
        let what = "an item of `outputClaimToHeaders`";
        let item = Fields::of(node, what, &["header", "claim"], problems)?;
        let header = item.required("header", what, problems)?;
        let claim = item.required("claim", what, problems)?;
        all.push(ClaimHeader {
            header: header_name(header, "header", problems)?,
            claim: fields::filled(claim, "claim", problems)?
                .split('.')
                .map(str::to_owned)
                .collect(),
        });
    }
    Some(all)
}

/// The name of a header field, in lower case. Spec: RFC 9110 section 5.1.
fn header_name(node: &Node, what: &str, problems: &mut Problems<'_>) -> Option<String> {
    let name = fields::filled(node, what, problems)?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !name.bytes().all(is_token) {
        problems.error(node.at, format!("`{name}` in `{what}` is no header's name"));
        return None;
    }
    Some(name.to_ascii_lowercase())
}

fn texts(fields: &Fields<'_>, name: &str, problems: &mut Problems<'_>) -> Option<Vec<String>> {
    let read: Vec<Option<String>> = fields
        .list(name, problems)
        .iter()
        .map(|node| fields::filled(node, name, problems).map(str::to_owned))
        .collect();
    read.into_iter().collect()
}

/// As long as Istio waits for keys.
const KEYS_TIMEOUT: Duration = Duration::from_secs(5);

const RULE: [&str; 13] = [
    "issuer",
    "audiences",
    "jwksUri",
    "jwks",
    "fromHeaders",
    "fromParams",
    "fromCookies",
    "outputPayloadToHeader",
    "outputClaimToHeaders",
    "forwardOriginalToken",
    "timeout",
    "spaceDelimitedClaims",
    "presence",
];
