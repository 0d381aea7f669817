//! Reads NetworkPolicy, with the checks and defaults of Kubernetes' own validation.

use ipnet::IpNet;

use super::metadata;
use crate::{
    decide::Protocol,
    diagnostic::Problems,
    model::{
        labels::{Expression, LabelSelector, Operator},
        network_policy::{NetworkPolicy, Peer, Port, PortNumber, Rule},
    },
    set::Options,
    yaml::{Fields, Node, Value, fields},
};

pub(crate) fn read(
    node: &Node,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<NetworkPolicy> {
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let document = Fields::of(node, "NetworkPolicy", &known, problems)?;
    let meta = metadata(node.at, &document, options, problems).map(|(meta, _)| meta);
    let spec = document.required("spec", "NetworkPolicy", problems)?;
    let known = ["podSelector", "policyTypes", "ingress", "egress"];
    let spec = Fields::of(spec, "spec", &known, problems)?;

    let pods = match spec.required("podSelector", "spec", problems) {
        Some(node) => label_selector(node, "podSelector", problems),
        None => None,
    };
    let ingress = rules(&spec, "ingress", "from", problems);
    let egress = rules(&spec, "egress", "to", problems);
    let (isolates_ingress, isolates_egress) = types(&spec, !egress.is_empty(), problems)?;
    Some(NetworkPolicy {
        meta: meta?,
        pods: pods?,
        ingress: isolates_ingress.then_some(ingress),
        egress: isolates_egress.then_some(egress),
        types_implied: spec.get("policyTypes").is_none(),
    })
}

/// Which directions are isolated. Where it is not said: ingress always, egress if it has a rule.
fn types(
    spec: &Fields<'_>,
    has_egress_rules: bool,
    problems: &mut Problems<'_>,
) -> Option<(bool, bool)> {
    let listed = spec.list("policyTypes", problems);
    if listed.is_empty() {
        return Some((true, has_egress_rules));
    }
    if let Some(third) = listed.get(2) {
        problems.error(third.at, "`policyTypes` has at most two items");
        return None;
    }
    let mut isolated = (false, false);
    for node in listed {
        match fields::text(node, "policyTypes", problems)? {
            "Ingress" => isolated.0 = true,
            "Egress" => isolated.1 = true,
            other => {
                problems.error_with(
                    node.at,
                    format!("`{other}` is no policy type"),
                    "`Ingress` or `Egress`",
                );
                return None;
            }
        }
    }
    Some(isolated)
}

fn rules(spec: &Fields<'_>, name: &str, peers: &str, problems: &mut Problems<'_>) -> Vec<Rule> {
    let nodes = spec.list(name, problems);
    nodes
        .iter()
        .filter_map(|node| rule(node, name, peers, problems))
        .collect()
}

fn rule(node: &Node, what: &str, peers: &str, problems: &mut Problems<'_>) -> Option<Rule> {
    let what = format!("a rule of `{what}`");
    let fields = Fields::of(node, &what, &[peers, "ports"], problems)?;
    let read: Vec<Option<Peer>> = fields
        .list(peers, problems)
        .iter()
        .map(|node| peer(node, problems))
        .collect();
    let ports: Vec<Option<Port>> = fields
        .list("ports", problems)
        .iter()
        .map(|node| port(node, problems))
        .collect();
    Some(Rule {
        at: node.at,
        peers: read.into_iter().collect::<Option<_>>()?,
        ports: ports.into_iter().collect::<Option<_>>()?,
    })
}

fn peer(node: &Node, problems: &mut Problems<'_>) -> Option<Peer> {
    let known = ["podSelector", "namespaceSelector", "ipBlock"];
    let fields = Fields::of(node, "a peer", &known, problems)?;
    let mut selector = |name| {
        fields
            .get(name)
            .map(|node| label_selector(node, name, problems))
            .map_or(Some(None), |read| read.map(Some))
    };
    let (pods, namespaces) = (selector("podSelector")?, selector("namespaceSelector")?);
    match (
        fields.get("ipBlock"),
        pods.is_some() || namespaces.is_some(),
    ) {
        (Some(node), true) => {
            problems.error(
                node.at,
                "`ipBlock` stands alone, without selectors beside it",
            );
            None
        }
        (Some(node), false) => block(node, problems),
        (None, true) => Some(Peer::Pods { namespaces, pods }),
        (None, false) => {
            problems.error_with(
                node.at,
                "a peer must not be empty",
                "`podSelector: {}` means every pod of the namespace",
            );
            None
        }
    }
}

fn block(node: &Node, problems: &mut Problems<'_>) -> Option<Peer> {
    let fields = Fields::of(node, "ipBlock", &["cidr", "except"], problems)?;
    let node = fields.required("cidr", "ipBlock", problems)?;
    let net = cidr(node, "cidr", problems)?;
    let mut except = Vec::new();
    for node in fields.list("except", problems) {
        let inner = cidr(node, "except", problems)?;
        if !net.contains(&inner) || inner.prefix_len() <= net.prefix_len() {
            problems.error(
                node.at,
                format!("`{inner}` must lie strictly inside `{net}`"),
            );
            return None;
        }
        except.push(inner);
    }
    Some(Peer::Block { net, except })
}

fn cidr(node: &Node, what: &str, problems: &mut Problems<'_>) -> Option<IpNet> {
    let text = fields::filled(node, what, problems)?;
    match text.parse::<IpNet>() {
        Ok(net) => Some(net.trunc()),
        Err(_) => {
            problems.error_with(
                node.at,
                format!("`{text}` is no address range"),
                "write it as `10.0.0.0/8` or `2001:db8::/32`",
            );
            None
        }
    }
}

fn port(node: &Node, problems: &mut Problems<'_>) -> Option<Port> {
    let port = Fields::of(node, "a port", &["protocol", "port", "endPort"], problems)?;
    let protocol = match port.get("protocol") {
        Some(node) => fields::text(node, "protocol", problems)
            .and_then(|text| protocol(text, node, problems))?,
        None => Protocol::Tcp,
    };
    let number = match port.get("port") {
        None => PortNumber::Any,
        Some(node) => match &node.value {
            Value::Text(name) => named_port(name, node, problems)?,
            _ => {
                let first = fields::port(node, "port", problems)?;
                PortNumber::Range(first, first)
            }
        },
    };
    let Some(end) = port.get("endPort") else {
        return Some(Port { protocol, number });
    };
    let last = fields::port(end, "endPort", problems)?;
    match number {
        PortNumber::Range(first, _) if first <= last => Some(Port {
            protocol,
            number: PortNumber::Range(first, last),
        }),
        PortNumber::Range(first, _) => {
            problems.error(end.at, format!("`endPort` {last} is below `port` {first}"));
            None
        }
        PortNumber::Any | PortNumber::Named(_) => {
            problems.error(end.at, "`endPort` needs a `port` that is a number");
            None
        }
    }
}

/// An IANA service name: at most 15 lower-case letters, digits and single `-`, with a letter.
fn named_port(name: &str, node: &Node, problems: &mut Problems<'_>) -> Option<PortNumber> {
    let good = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-');
    let is_name = !name.is_empty()
        && name.len() <= 15
        && name.chars().all(good)
        && name.chars().any(|c| c.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-');
    if is_name {
        return Some(PortNumber::Named(name.to_owned()));
    }
    let hint = if name.parse::<u16>().is_ok() {
        "a number stands without quotes"
    } else {
        "at most 15 lower-case letters, digits and single `-`"
    };
    problems.error_with(node.at, format!("`{name}` is no port name"), hint);
    None
}

pub(super) fn protocol(text: &str, node: &Node, problems: &mut Problems<'_>) -> Option<Protocol> {
    match text {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            problems.error_with(
                node.at,
                format!("`{other}` is no protocol"),
                "`TCP`, `UDP` or `SCTP`, in capitals",
            );
            None
        }
    }
}

fn label_selector(node: &Node, what: &str, problems: &mut Problems<'_>) -> Option<LabelSelector> {
    let fields = Fields::of(node, what, &["matchLabels", "matchExpressions"], problems)?;
    let equal = match fields.get("matchLabels") {
        Some(node) => fields::labels(node, "matchLabels", problems)?,
        None => Default::default(),
    };
    let expressions: Vec<Option<Expression>> = fields
        .list("matchExpressions", problems)
        .iter()
        .map(|node| expression(node, problems))
        .collect();
    Some(LabelSelector {
        equal,
        expressions: expressions.into_iter().collect::<Option<_>>()?,
    })
}

fn expression(node: &Node, problems: &mut Problems<'_>) -> Option<Expression> {
    let fields = Fields::of(
        node,
        "an expression",
        &["key", "operator", "values"],
        problems,
    )?;
    let key = fields.required("key", "an expression", problems)?;
    let operator = fields.required("operator", "an expression", problems)?;
    let text = fields::filled(key, "key", problems)?;
    fields::check_label_key(text, key.at, problems);
    let mut values = Vec::new();
    for node in fields.list("values", problems) {
        let value = fields::text(node, "values", problems)?;
        fields::check_label_value(value, node.at, problems);
        values.push(value.to_owned());
    }
    let name = fields::text(operator, "operator", problems)?;
    let read = match (name, values.is_empty()) {
        ("In", false) => Operator::In(values),
        ("NotIn", false) => Operator::NotIn(values),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        ("In" | "NotIn", true) => {
            problems.error(operator.at, format!("`{name}` needs `values`"));
            return None;
        }
        ("Exists" | "DoesNotExist", false) => {
            problems.error(operator.at, format!("`{name}` takes no `values`"));
            return None;
        }
        (other, _) => {
            problems.error_with(
                operator.at,
                format!("`{other}` is no operator"),
                "`In`, `NotIn`, `Exists` or `DoesNotExist`",
            );
            return None;
        }
    };
    Some(Expression {
        key: text.to_owned(),
        operator: read,
    })
}
