//! Legal, but probably not what was meant.

mod traps;

use crate::{
    diagnostic::{Diagnostic, Place, Severity},
    model::{
        Documents, Meta,
        authorization_policy::{Action, AuthorizationPolicy, Field, Rule},
        labels,
        pattern::Pattern,
        request_authentication::{JwtRule, Keys},
    },
    set::Options,
};

/// Looks through everything that was read.
pub(crate) fn lint(documents: &Documents, options: &Options) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for policy in &documents.authorization_policies {
        for rule in &policy.rules {
            ored_operations(policy, rule, &mut warnings);
            patterns(policy, rule, &mut warnings);
            http_on_tcp(policy, rule, &mut warnings);
        }
        allow_everything(policy, &mut warnings);
    }
    for policy in &documents.request_authentications {
        for rule in &policy.rules {
            keys_over_http(&policy.meta, rule, &mut warnings);
        }
    }
    traps::look(documents, options, &mut warnings);
    traps::shared_identities(documents, &mut warnings);
    if !documents.workloads.is_empty() {
        selects_nobody(documents, options, &mut warnings);
    }
    warnings
}

/// Two operations of which one names only methods and the other only paths: each opens what the
/// other was meant to close.
fn ored_operations(policy: &AuthorizationPolicy, rule: &Rule, warnings: &mut Vec<Diagnostic>) {
    let fields = |wanted: Field| -> Vec<&Vec<_>> {
        rule.to
            .iter()
            .filter(|fields| fields.iter().all(|one| one.field == wanted))
            .collect()
    };
    let (methods, paths) = (fields(Field::Method), fields(Field::Path));
    let (Some(methods), Some(paths)) = (methods.first(), paths.first()) else {
        return;
    };
    let list = |fields: &[crate::model::authorization_policy::FieldMatch]| {
        let texts: Vec<String> = fields
            .iter()
            .flat_map(|one| &one.patterns)
            .map(|pattern| format!("\"{pattern}\""))
            .collect();
        texts.join(", ")
    };
    warn(
        &policy.meta,
        rule.at,
        format!(
            "rule of `{}`: two items of `to` are alternatives, so this allows the methods on every \
             path and every method on the paths",
            policy.meta.full_name
        ),
        Some(format!(
            "probably meant, as one item:\n  - to:\n    - operation:\n        methods: [{}]\n        paths: [{}]",
            list(methods),
            list(paths)
        )),
        warnings,
    );
}

/// Patterns that can match nothing, or not what they look like.
fn patterns(policy: &AuthorizationPolicy, rule: &Rule, warnings: &mut Vec<Diagnostic>) {
    for field in rule.fields() {
        for pattern in &field.patterns {
            let text = pattern.to_string();
            let found = match (&field.field, pattern) {
                (Field::Principal, _) if text.starts_with("spiffe://") => Some((
                    format!("principal `{text}` never matches: a principal has no scheme"),
                    format!("write `{}`", text.trim_start_matches("spiffe://")),
                )),
                (Field::Method, Pattern::Exact(_))
                    if text.chars().any(|c| c.is_ascii_lowercase()) =>
                {
                    Some((
                        format!(
                            "method `{text}` never matches: methods are compared with their case"
                        ),
                        format!("write `{}`", text.to_ascii_uppercase()),
                    ))
                }
                (Field::Path, Pattern::Exact(_) | Pattern::Prefix(_))
                    if !text.starts_with('/') && text != "*" =>
                {
                    Some((
                        format!("path `{text}` never matches: a path begins with `/`"),
                        format!("write `/{text}`"),
                    ))
                }
                (_, Pattern::Exact(inner) | Pattern::Suffix(inner) | Pattern::Prefix(inner))
                    if inner.contains('*') =>
                {
                    Some((
                        format!(
                            "`{text}`: only one star, at the beginning or at the end, stands for anything"
                        ),
                        "every other star is an ordinary character".into(),
                    ))
                }
                _ => None,
            };
            if let Some((message, hint)) = found {
                warn(&policy.meta, rule.at, message, Some(hint), warnings);
            }
        }
    }
}

/// A DENY by HTTP alone denies all that is not HTTP.
fn http_on_tcp(policy: &AuthorizationPolicy, rule: &Rule, warnings: &mut Vec<Diagnostic>) {
    let names_port = rule.fields().any(|one| one.field == Field::DestinationPort);
    let only_http =
        rule.fields().next().is_some() && rule.fields().all(|one| one.field.is_http_only());
    if policy.action == Action::Deny && only_http && !names_port {
        warn(
            &policy.meta,
            rule.at,
            format!(
                "DENY `{}` names HTTP alone, so it denies every TCP connection",
                policy.meta.full_name
            ),
            Some("add `ports` with the HTTP ports that are meant".into()),
            warnings,
        );
    }
}

/// Who can change the keys on the way can sign any token.
fn keys_over_http(meta: &Meta, rule: &JwtRule, warnings: &mut Vec<Diagnostic>) {
    if let Keys::Uri(uri) = &rule.keys
        && uri.starts_with("http://")
    {
        let message =
            format!("`jwksUri` `{uri}` has no TLS: whoever is on the way can sign tokens");
        warn(
            meta,
            rule.at,
            message,
            Some("write `https://`".into()),
            warnings,
        );
    }
}

fn allow_everything(policy: &AuthorizationPolicy, warnings: &mut Vec<Diagnostic>) {
    let open = policy
        .rules
        .iter()
        .find(|rule| rule.fields().next().is_none());
    if let (Action::Allow, Some(rule)) = (policy.action, open) {
        warn(
            &policy.meta,
            rule.at,
            format!(
                "ALLOW `{}` allows everything, plaintext too where it is accepted",
                policy.meta.full_name
            ),
            None,
            warnings,
        );
    }
}

/// Selectors that none of the known Workloads satisfies.
fn selects_nobody(documents: &Documents, options: &Options, warnings: &mut Vec<Diagnostic>) {
    let mut look = |kind: &str, meta: &Meta, matches: &dyn Fn(&labels::Labels) -> bool| {
        let root = kind != "NetworkPolicy" && meta.namespace == options.root_namespace;
        let found = documents.workloads.iter().any(|(_, workload)| {
            (root || *workload.name.namespace == *meta.namespace) && matches(&workload.labels)
        });
        if !found {
            let message = format!("{kind} `{}` selects no known Workload", meta.full_name);
            warn(meta, meta.at, message, None, warnings);
        }
    };
    for policy in &documents.network_policies {
        look("NetworkPolicy", &policy.meta, &|labels| {
            policy.pods.matches(labels)
        });
    }
    for policy in &documents.authorization_policies {
        look("AuthorizationPolicy", &policy.meta, &|labels| {
            labels::contains(labels, &policy.selector)
        });
    }
    for policy in &documents.peer_authentications {
        look("PeerAuthentication", &policy.meta, &|labels| {
            labels::contains(labels, &policy.selector)
        });
    }
}

fn warn(
    meta: &Meta,
    at: Place,
    message: String,
    hint: Option<String>,
    warnings: &mut Vec<Diagnostic>,
) {
    warnings.push(Diagnostic {
        severity: Severity::Warning,
        file: meta.file.to_path_buf(),
        line: at.line,
        column: at.column,
        message,
        hint,
    });
}
