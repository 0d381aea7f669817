//! Reads AuthorizationPolicy.
//!
//! What cannot be enforced is refused: a DENY that is passed over opens a door.

use ipnet::IpNet;

use super::{istio_selector, metadata};
use crate::{
    diagnostic::Problems,
    model::{
        authorization_policy::{Action, AuthorizationPolicy, Field, FieldMatch, Rule},
        pattern::{PathTemplate, Pattern},
    },
    set::Options,
    yaml::{Fields, Node, Value, fields},
};

pub(crate) fn read(
    node: &Node,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<AuthorizationPolicy> {
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let document = Fields::of(node, "AuthorizationPolicy", &known, problems)?;
    let (meta, head) = metadata(node.at, &document, options, problems)?;
    let mut policy = AuthorizationPolicy {
        meta,
        selector: Default::default(),
        action: Action::Allow,
        dry_run: false,
        rules: Vec::new(),
    };
    // No spec is `spec: {}`: an ALLOW without rules, which allows nothing.
    if let Some(spec) = document.get("spec") {
        let spec = Fields::of(spec, "spec", &SPEC, problems)?;
        refuse_unsupported(&spec, problems)?;
        policy.selector = istio_selector(&spec, problems)?;
        policy.action = action(&spec, problems)?;
        policy.rules = rules(&spec, &policy, problems)?;
    }
    policy.dry_run = dry_run(&head, policy.action, problems)?;
    Some(policy)
}

fn refuse_unsupported(spec: &Fields<'_>, problems: &mut Problems<'_>) -> Option<()> {
    for (name, why) in [
        (
            "targetRef",
            "it names a gateway or waypoint, and there is none here; use `selector`",
        ),
        (
            "targetRefs",
            "it names a gateway or waypoint, and there is none here; use `selector`",
        ),
        ("provider", "action CUSTOM is not supported yet"),
    ] {
        if let Some(node) = spec.get(name) {
            problems.error_with(node.at, format!("`{name}` is not supported"), why);
            return None;
        }
    }
    Some(())
}

fn action(spec: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Action> {
    let Some(node) = spec.get("action") else {
        return Some(Action::Allow);
    };
    match fields::text(node, "action", problems)? {
        "ALLOW" => Some(Action::Allow),
        "DENY" => Some(Action::Deny),
        "AUDIT" => Some(Action::Audit),
        "CUSTOM" => {
            problems.error(node.at, "action `CUSTOM` is not supported yet");
            None
        }
        other => {
            let hint = "`ALLOW`, `DENY` or `AUDIT`";
            problems.error_with(node.at, format!("`{other}` is no action"), hint);
            None
        }
    }
}

/// The annotation `istio.io/dry-run`, a boolean in Go's spelling.
fn dry_run(head: &Fields<'_>, action: Action, problems: &mut Problems<'_>) -> Option<bool> {
    let Some(node) = head.get("annotations") else {
        return Some(false);
    };
    let Value::Map(entries) = &node.value else {
        problems.error(node.at, "`annotations` must be a map");
        return None;
    };
    let Some(entry) = entries.iter().find(|entry| entry.key == DRY_RUN) else {
        return Some(false);
    };
    if !matches!(action, Action::Allow | Action::Deny) {
        problems.error(
            entry.at,
            format!("`{DRY_RUN}` is for the actions ALLOW and DENY alone"),
        );
        return None;
    }
    match fields::text(&entry.node, DRY_RUN, problems)? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        other => {
            let hint = "write `\"true\"` or `\"false\"`";
            problems.error_with(entry.node.at, format!("`{other}` is no boolean"), hint);
            None
        }
    }
}

fn rules(
    spec: &Fields<'_>,
    policy: &AuthorizationPolicy,
    problems: &mut Problems<'_>,
) -> Option<Vec<Rule>> {
    let nodes = spec.list("rules", problems);
    if nodes.is_empty() && policy.action == Action::Deny {
        problems.error_with(
            spec.at,
            "a DENY policy needs rules",
            "`rules: [{}]` denies everything",
        );
        return None;
    }
    if nodes.len() > MAX_RULES {
        problems.error(
            spec.at,
            format!(
                "a policy has at most {MAX_RULES} rules, and this has {}",
                nodes.len()
            ),
        );
        return None;
    }
    let read: Vec<Option<Rule>> = nodes
        .iter()
        .map(|node| rule(node, &policy.meta.namespace, problems))
        .collect();
    read.into_iter().collect()
}

fn rule(node: &Node, namespace: &str, problems: &mut Problems<'_>) -> Option<Rule> {
    let fields = Fields::of(node, "a rule", &["from", "to", "when"], problems)?;
    let from: Vec<_> = fields
        .list("from", problems)
        .iter()
        .map(|node| matches(node, "from", "source", SOURCE, namespace, problems))
        .collect();
    let to: Vec<_> = fields
        .list("to", problems)
        .iter()
        .map(|node| matches(node, "to", "operation", OPERATION, namespace, problems))
        .collect();
    let when: Vec<_> = fields
        .list("when", problems)
        .iter()
        .map(|node| condition(node, namespace, problems))
        .collect();
    Some(Rule {
        at: node.at,
        from: from.into_iter().collect::<Option<_>>()?,
        to: to.into_iter().collect::<Option<_>>()?,
        when: when
            .into_iter()
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect(),
    })
}

/// One `source` or `operation`: all of its fields must hold.
fn matches(
    node: &Node,
    list: &str,
    inner: &str,
    table: &[(&str, &str, Option<Field>)],
    namespace: &str,
    problems: &mut Problems<'_>,
) -> Option<Vec<FieldMatch>> {
    let outer = Fields::of(node, &format!("an item of `{list}`"), &[inner], problems)?;
    let node = outer.required(inner, &format!("an item of `{list}`"), problems)?;
    let known: Vec<&str> = table.iter().flat_map(|(yes, no, _)| [*yes, *no]).collect();
    let fields = Fields::of(node, inner, &known, problems)?;
    let mut read = Vec::new();
    for (yes, no, field) in table {
        for (name, negated) in [(*yes, false), (*no, true)] {
            let Some(node) = fields.get(name) else {
                continue;
            };
            let Some(field) = field else {
                problems.error(node.at, format!("`{name}` is not supported yet"));
                return None;
            };
            let patterns = patterns(node, name, field, namespace, problems)?;
            if !patterns.is_empty() {
                read.push(FieldMatch {
                    field: field.clone(),
                    patterns,
                    negated,
                });
            }
        }
    }
    if read.is_empty() {
        problems.error(node.at, format!("`{inner}` must not be empty"));
        return None;
    }
    let has = |field| read.iter().any(|one| one.field == field);
    if has(Field::ServiceAccount) && (has(Field::Principal) || has(Field::Namespace)) {
        problems.error(
            node.at,
            "`serviceAccounts` cannot stand beside `principals` or `namespaces`",
        );
        return None;
    }
    Some(read)
}

fn condition(node: &Node, namespace: &str, problems: &mut Problems<'_>) -> Option<Vec<FieldMatch>> {
    let fields = Fields::of(
        node,
        "a condition",
        &["key", "values", "notValues"],
        problems,
    )?;
    let key_node = fields.required("key", "a condition", problems)?;
    let key = fields::filled(key_node, "key", problems)?;
    let field = condition_field(key, key_node, problems)?;
    let mut read = Vec::new();
    for (name, negated) in [("values", false), ("notValues", true)] {
        let Some(node) = fields.get(name) else {
            continue;
        };
        let patterns = patterns(node, name, &field, namespace, problems)?;
        if !patterns.is_empty() {
            read.push(FieldMatch {
                field: field.clone(),
                patterns,
                negated,
            });
        }
    }
    if read.is_empty() {
        problems.error(node.at, "a condition needs `values` or `notValues`");
        return None;
    }
    Some(read)
}

fn condition_field(key: &str, node: &Node, problems: &mut Problems<'_>) -> Option<Field> {
    if let Some(name) = key
        .strip_prefix("request.headers[")
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let good = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(good) {
            problems.error(node.at, format!("`{name}` is no header name"));
            return None;
        }
        return Some(Field::Header(name.to_ascii_lowercase()));
    }
    let field = match key {
        "source.ip" => Field::SourceIp,
        "remote.ip" => Field::RemoteIp,
        "source.namespace" => Field::Namespace,
        "source.principal" => Field::Principal,
        "source.serviceAccount" => Field::ServiceAccount,
        "source.trustDomain" => Field::TrustDomain,
        "destination.ip" => Field::DestinationIp,
        "destination.port" => Field::DestinationPort,
        "connection.sni" => Field::ServerName,
        _ if key.starts_with("request.auth.") || key.starts_with("experimental.") => {
            problems.error(node.at, format!("condition `{key}` is not supported yet"));
            return None;
        }
        _ => {
            match fields::nearest(key, CONDITIONS) {
                Some(near) => problems.error_with(
                    node.at,
                    format!("`{key}` is no condition"),
                    format!("did you mean `{near}`?"),
                ),
                None => problems.error_with(
                    node.at,
                    format!("`{key}` is no condition"),
                    format!("known are {}", CONDITIONS.join(", ")),
                ),
            }
            return None;
        }
    };
    Some(field)
}

fn patterns(
    node: &Node,
    name: &str,
    field: &Field,
    namespace: &str,
    problems: &mut Problems<'_>,
) -> Option<Vec<Pattern>> {
    let items = fields::list(node, name, problems)?;
    if items.is_empty() {
        problems.error_with(
            node.at,
            format!("`{name}` must not be empty"),
            "leave it out to mean any",
        );
        return None;
    }
    let read: Vec<Option<Pattern>> = items
        .iter()
        .map(|item| {
            let text = fields::filled(item, name, problems)?;
            match pattern(text, field, namespace) {
                Ok(pattern) => Some(pattern),
                Err(problem) => {
                    problems.error(item.at, format!("`{text}` in `{name}`: {problem}"));
                    None
                }
            }
        })
        .collect();
    read.into_iter().collect()
}

fn pattern(text: &str, field: &Field, namespace: &str) -> Result<Pattern, &'static str> {
    match field {
        Field::SourceIp | Field::RemoteIp | Field::DestinationIp => net(text)
            .map(Pattern::Net)
            .ok_or("this is no address and no address range"),
        // 0 is what Istio accepts too; it matches nothing.
        Field::DestinationPort => text
            .parse()
            .map(Pattern::Port)
            .map_err(|_| "this is no port from 0 to 65535"),
        Field::ServiceAccount => service_account(text, namespace),
        Field::Path if PathTemplate::is_template(text) => {
            PathTemplate::parse(text).map(Pattern::Template)
        }
        Field::Path if text.contains(['{', '}']) => {
            Err("braces are only for the templates `{*}` and `{**}`")
        }
        Field::TrustDomain if text.contains('/') => Err("a trust domain has no `/`"),
        Field::Host => Ok(Pattern::text(&text.to_ascii_lowercase())),
        _ => Ok(Pattern::text(text)),
    }
}

/// An address alone stands for itself; host bits of a range are masked.
fn net(text: &str) -> Option<IpNet> {
    let bare = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>()
        .ok()
        .map(|net| net.trunc())
        .or_else(bare)
}

/// `namespace/name`, or `name` in the namespace of the policy.
fn service_account(text: &str, namespace: &str) -> Result<Pattern, &'static str> {
    if text.contains('*') {
        return Err("a service account takes no star");
    }
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err("write it as `name` or `namespace/name`");
    }
    Ok(Pattern::ServiceAccount(
        namespace.to_owned(),
        name.to_owned(),
    ))
}

const SPEC: [&str; 6] = [
    "selector",
    "targetRef",
    "targetRefs",
    "rules",
    "action",
    "provider",
];

/// Name, `not…` twin, and the field; without a field: known to Istio, not supported here.
const SOURCE: &[(&str, &str, Option<Field>)] = &[
    ("principals", "notPrincipals", Some(Field::Principal)),
    ("requestPrincipals", "notRequestPrincipals", None),
    ("namespaces", "notNamespaces", Some(Field::Namespace)),
    (
        "serviceAccounts",
        "notServiceAccounts",
        Some(Field::ServiceAccount),
    ),
    ("trustDomains", "notTrustDomains", Some(Field::TrustDomain)),
    ("ipBlocks", "notIpBlocks", Some(Field::SourceIp)),
    ("remoteIpBlocks", "notRemoteIpBlocks", Some(Field::RemoteIp)),
];

const OPERATION: &[(&str, &str, Option<Field>)] = &[
    ("hosts", "notHosts", Some(Field::Host)),
    ("ports", "notPorts", Some(Field::DestinationPort)),
    ("methods", "notMethods", Some(Field::Method)),
    ("paths", "notPaths", Some(Field::Path)),
];

const CONDITIONS: &[&str] = &[
    "request.headers[…]",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

const DRY_RUN: &str = "istio.io/dry-run";
const MAX_RULES: usize = 512;
