//! Reads AuthorizationPolicy.
//!
//! What cannot be enforced is refused: a DENY that is passed over opens a door.

use ipnet::IpNet;

use super::{istio_selector, metadata, refuse_target_refs};
use crate::{
    diagnostic::Problems,
    model::{
        authorization_policy::{Action, AuthorizationPolicy, Field, FieldMatch, Rule},
        pattern::{PathTemplate, Pattern, RequestPrincipal},
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
        provider: None,
        dry_run: false,
        rules: Vec::new(),
    };
    // No spec is `spec: {}`: an ALLOW without rules, which allows nothing.
    if let Some(spec) = document.get("spec") {
        let spec = Fields::of(spec, "spec", &SPEC, problems)?;
        refuse_target_refs(&spec, problems)?;
        policy.selector = istio_selector(&spec, problems)?;
        policy.action = action(&spec, problems)?;
        policy.provider = provider(&spec, policy.action, problems)?;
        policy.rules = rules(&spec, &policy, options, problems)?;
        if policy.action == Action::Custom {
            refuse_identities(&policy, problems)?;
        }
    }
    policy.dry_run = dry_run(&head, policy.action, problems)?;
    Some(policy)
}

/// Who is asked for a CUSTOM decision.
fn provider(
    spec: &Fields<'_>,
    action: Action,
    problems: &mut Problems<'_>,
) -> Option<Option<String>> {
    let node = match (spec.get("provider"), action) {
        (None, Action::Custom) => {
            problems.error(spec.at, "a CUSTOM policy needs `provider.name`");
            return None;
        }
        (None, _) => return Some(None),
        (Some(node), Action::Custom) => node,
        (Some(node), _) => {
            problems.error(node.at, "`provider` is for the action CUSTOM alone");
            return None;
        }
    };
    let fields = Fields::of(node, "provider", &["name"], problems)?;
    let name = fields.required("name", "provider", problems)?;
    fields::filled(name, "name", problems).map(|name| Some(name.to_owned()))
}

/// A CUSTOM decision is taken before anybody knows who asks.
fn refuse_identities(policy: &AuthorizationPolicy, problems: &mut Problems<'_>) -> Option<()> {
    for rule in &policy.rules {
        let identity = rule.fields().find(|one| {
            matches!(
                one.field,
                Field::Principal
                    | Field::Namespace
                    | Field::ServiceAccount
                    | Field::TrustDomain
                    | Field::RequestPrincipal
                    | Field::Claim(_)
            )
        });
        if let Some(one) = identity {
            problems.error(
                rule.at,
                format!(
                    "a CUSTOM rule cannot name a {}: Istio refuses it too",
                    one.field.noun()
                ),
            );
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
        "CUSTOM" => Some(Action::Custom),
        other => {
            let hint = "`ALLOW`, `DENY`, `AUDIT` or `CUSTOM`";
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
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<Vec<Rule>> {
    let nodes = spec.list("rules", problems);
    if nodes.is_empty() && matches!(policy.action, Action::Deny | Action::Custom) {
        problems.error_with(
            spec.at,
            "a DENY or CUSTOM policy needs rules",
            "`rules: [{}]` matches everything",
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
        .map(|node| {
            rule(
                node,
                &Reading {
                    namespace: &policy.meta.namespace,
                    options,
                },
                problems,
            )
        })
        .collect();
    read.into_iter().collect()
}

/// What the meaning of a pattern depends on.
struct Reading<'a> {
    /// That of the policy.
    namespace: &'a str,
    options: &'a Options,
}

fn rule(node: &Node, reading: &Reading<'_>, problems: &mut Problems<'_>) -> Option<Rule> {
    let fields = Fields::of(node, "a rule", &["from", "to", "when"], problems)?;
    let from: Vec<_> = fields
        .list("from", problems)
        .iter()
        .map(|node| matches(node, "from", "source", SOURCE, reading, problems))
        .collect();
    let to: Vec<_> = fields
        .list("to", problems)
        .iter()
        .map(|node| matches(node, "to", "operation", OPERATION, reading, problems))
        .collect();
    let when: Vec<_> = fields
        .list("when", problems)
        .iter()
        .map(|node| condition(node, reading, problems))
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
    table: &[(&str, &str, Field)],
    reading: &Reading<'_>,
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
            let patterns = patterns(node, name, field, reading, problems)?;
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

fn condition(
    node: &Node,
    reading: &Reading<'_>,
    problems: &mut Problems<'_>,
) -> Option<Vec<FieldMatch>> {
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
        let patterns = patterns(node, name, &field, reading, problems)?;
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
        "request.auth.principal" => Field::RequestPrincipal,
        "request.auth.audiences" => Field::Claim(vec!["aud".into()]),
        "request.auth.presenter" => Field::Claim(vec!["azp".into()]),
        _ if key.starts_with("request.auth.claims[") => return claim(key, node, problems),
        _ if key.starts_with("experimental.envoy.filters.") => {
            let hint = "there is no Envoy here; say it with another condition";
            problems.error_with(node.at, format!("condition `{key}` is not supported"), hint);
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

/// `request.auth.claims[a][b]`; a dot is part of a name.
fn claim(key: &str, node: &Node, problems: &mut Problems<'_>) -> Option<Field> {
    let keys = key
        .strip_prefix("request.auth.claims[")
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or_default();
    let path: Vec<String> = keys.split("][").map(str::to_owned).collect();
    if path
        .iter()
        .any(|key| key.is_empty() || key.contains(['[', ']']))
    {
        let hint = "write `request.auth.claims[name]`, or `[a][b]` for a claim within a claim";
        problems.error_with(node.at, format!("`{key}` names no claim"), hint);
        return None;
    }
    Some(Field::Claim(path))
}

fn patterns(
    node: &Node,
    name: &str,
    field: &Field,
    reading: &Reading<'_>,
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
    if *field == Field::ServiceAccount && items.len() > MAX_SERVICE_ACCOUNTS {
        problems.error(
            node.at,
            format!("`{name}` has at most {MAX_SERVICE_ACCOUNTS} items"),
        );
        return None;
    }
    let read: Vec<Option<Vec<Pattern>>> = items
        .iter()
        .map(|item| {
            let text = fields::filled(item, name, problems)?;
            let texts = spellings(text, field, reading.options);
            let read: Result<Vec<Pattern>, _> = texts
                .iter()
                .map(|text| pattern(text, field, reading.namespace))
                .collect();
            match read {
                Ok(patterns) => Some(patterns),
                Err(problem) => {
                    problems.error(item.at, format!("`{text}` in `{name}`: {problem}"));
                    None
                }
            }
        })
        .collect();
    let read: Option<Vec<Vec<Pattern>>> = read.into_iter().collect();
    read.map(|all| all.into_iter().flatten().collect())
}

/// What a value stands for where the trust domain has several names: a principal of a service
/// account, or a trust domain, in the own domain stands for all of them. `cluster.local` is how
/// users write the own domain, whatever its name.
fn spellings(text: &str, field: &Field, options: &Options) -> Vec<String> {
    let own = options.trust_domain.as_str();
    let names = || {
        let aliases = options.trust_domain_aliases.iter();
        std::iter::once(own).chain(aliases.map(|alias| alias.as_str()))
    };
    let is_own = |name: &str| name == CLUSTER_LOCAL || names().any(|known| known == name);
    match field {
        Field::Principal => match text.split_once('/') {
            Some((first, rest)) if rest.matches('/').count() == 3 && is_own(first) => {
                names().map(|name| format!("{name}/{rest}")).collect()
            }
            _ => vec![text.to_owned()],
        },
        Field::TrustDomain if names().any(|known| known == text) => {
            names().map(str::to_owned).collect()
        }
        _ => vec![text.to_owned()],
    }
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
        Field::RequestPrincipal => Ok(Pattern::RequestPrincipal(RequestPrincipal::parse(text))),
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

/// Name, `not…` twin, and the field.
const SOURCE: &[(&str, &str, Field)] = &[
    ("principals", "notPrincipals", Field::Principal),
    (
        "requestPrincipals",
        "notRequestPrincipals",
        Field::RequestPrincipal,
    ),
    ("namespaces", "notNamespaces", Field::Namespace),
    (
        "serviceAccounts",
        "notServiceAccounts",
        Field::ServiceAccount,
    ),
    ("trustDomains", "notTrustDomains", Field::TrustDomain),
    ("ipBlocks", "notIpBlocks", Field::SourceIp),
    ("remoteIpBlocks", "notRemoteIpBlocks", Field::RemoteIp),
];

const OPERATION: &[(&str, &str, Field)] = &[
    ("hosts", "notHosts", Field::Host),
    ("ports", "notPorts", Field::DestinationPort),
    ("methods", "notMethods", Field::Method),
    ("paths", "notPaths", Field::Path),
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
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[…]",
];

const DRY_RUN: &str = "istio.io/dry-run";
const MAX_RULES: usize = 512;
const MAX_SERVICE_ACCOUNTS: usize = 16;

/// How Istio's users write the own trust domain.
const CLUSTER_LOCAL: &str = "cluster.local";
