//! Reads RequestAuthentication.

use super::{istio_selector, metadata, refuse_target_refs};
use crate::{
    diagnostic::Problems,
    model::request_authentication::{JwtRule, Keys, RequestAuthentication},
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
    places(&fields, problems)?;
    outputs(&fields, problems)?;
    Some(JwtRule {
        at: node.at,
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
fn places(fields: &Fields<'_>, problems: &mut Problems<'_>) -> Option<()> {
    for node in fields.list("fromHeaders", problems) {
        let header = Fields::of(
            node,
            "an item of `fromHeaders`",
            &["name", "prefix"],
            problems,
        )?;
        let name = header.required("name", "an item of `fromHeaders`", problems)?;
        fields::filled(name, "name", problems)?;
        header.text("prefix", problems);
    }
    texts(fields, "fromParams", problems)?;
    texts(fields, "fromCookies", problems)?;
    Some(())
}

/// What is told to the app.
fn outputs(fields: &Fields<'_>, problems: &mut Problems<'_>) -> Option<()> {
    if let Some(node) = fields.get("outputPayloadToHeader") {
        fields::filled(node, "outputPayloadToHeader", problems)?;
    }
    for node in fields.list("outputClaimToHeaders", problems) {
        let what = "an item of `outputClaimToHeaders`";
        let item = Fields::of(node, what, &["header", "claim"], problems)?;
        for name in ["header", "claim"] {
            fields::filled(item.required(name, what, problems)?, name, problems)?;
        }
    }
    if let Some(node) = fields.get("forwardOriginalToken") {
        fields::boolean(node, "forwardOriginalToken", problems)?;
    }
    if let Some(node) = fields.get("timeout") {
        fields::duration(node, "timeout", problems)?;
    }
    Some(())
}

fn texts(fields: &Fields<'_>, name: &str, problems: &mut Problems<'_>) -> Option<Vec<String>> {
    let read: Vec<Option<String>> = fields
        .list(name, problems)
        .iter()
        .map(|node| fields::filled(node, name, problems).map(str::to_owned))
        .collect();
    read.into_iter().collect()
}

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
