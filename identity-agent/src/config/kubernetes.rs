//! `kubernetes`: the API server that tells pods and policies.

use std::path::{Path, PathBuf};

use postern_policies::{
    diagnostic::Problems,
    yaml::{Fields, Node, Value, fields},
};

use crate::kubernetes::{Limits, Server, Template};

/// `{server, tokenFile, caFile, nodeName, rootNamespace, selectors, maxObjects}`; what a pod of the
/// cluster has by default.
pub(super) fn read(
    node: &Node,
    states_pods: bool,
    folder: &Path,
    problems: &mut Problems<'_>,
) -> Option<Server> {
    let all = Fields::of(node, "kubernetes", &KNOWN, problems)?;
    let file = |name: &str, default: &str, problems: &mut Problems<'_>| match all.get(name) {
        Some(node) => fields::filled(node, name, problems).map(|text| folder.join(text)),
        None => Some(PathBuf::from(default)),
    };
    let token = file("tokenFile", TOKEN, problems);
    let authorities = file("caFile", AUTHORITIES, problems);
    let root_namespace = match all.get("rootNamespace") {
        Some(node) => fields::filled(node, "rootNamespace", problems)?,
        None => "istio-system",
    };
    let node_name = match all.get("nodeName") {
        Some(node) => Some(fields::filled(node, "nodeName", problems)?.to_owned()),
        None => None,
    };
    let url = match all.get("server") {
        Some(node) => Some(server(node, problems)?),
        None => None,
    };
    Some(Server {
        url,
        token: token?,
        authorities: authorities?,
        node_name,
        root_namespace: root_namespace.to_owned(),
        selectors: selectors(&all, states_pods, problems)?,
        limits: limits(&all, problems)?,
    })
}

/// Its address, without a path. Nothing here is asked without TLS.
fn server(node: &Node, problems: &mut Problems<'_>) -> Option<String> {
    let text = fields::filled(node, "server", problems)?;
    let host = text.strip_prefix("https://");
    let host = host.map(|rest| rest.trim_end_matches('/'));
    let is_host = |host: &&str| !host.is_empty() && !host.contains(['/', '@', '?', '#']);
    let Some(host) = host.filter(is_host) else {
        let said = format!("`{text}` in `kubernetes.server` is no address of an API server");
        problems.error_with(node.at, said, "write it as `https://10.96.0.1:443`");
        return None;
    };
    Some(format!("https://{host}"))
}

/// The selectors of a pod's Workload. Without one that names the pod every process that has the
/// others would be every pod.
fn selectors(
    all: &Fields<'_>,
    states_pods: bool,
    problems: &mut Problems<'_>,
) -> Option<Vec<Template>> {
    let written: Vec<&str> = match all.get("selectors") {
        Some(node) => {
            let items = fields::list(node, "selectors", problems)?;
            let texts = items
                .iter()
                .map(|item| fields::filled(item, "selectors", problems));
            texts.collect::<Option<_>>()?
        }
        None => SELECTORS.to_vec(),
    };
    let at = all.get("selectors").map_or(all.at, |node| node.at);
    let mut read = Vec::new();
    for text in &written {
        match Template::parse(text) {
            Ok(template) => read.push(template),
            Err(error) => {
                problems.error(at, format!("`{text}` in `kubernetes.selectors`: {error}"))
            }
        }
    }
    let has = |word: &str| written.iter().any(|text| text.contains(word));
    if !(has("{uid}") || has("{pod}") && has("{namespace}")) {
        let hint = "such as `k8s:pod-uid:{uid}`";
        problems.error_with(
            at,
            "no selector of `kubernetes.selectors` has `{uid}`, nor is there `{pod}` with `{namespace}`: a process would be several pods",
            hint,
        );
        return None;
    }
    if !states_pods && written.iter().any(|text| text.starts_with("k8s:")) {
        problems.error_with(
            at,
            "`kubernetes.selectors` need the attestor `k8s`: nobody else states what they ask for",
            "`attestors: {unix: {}, posture: {}, k8s: {}}`",
        );
        return None;
    }
    Some(read)
}

fn limits(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Limits> {
    let Some(node) = all.get("maxObjects") else {
        return Some(Limits::default());
    };
    match &node.value {
        Value::Integer(number) => match usize::try_from(*number) {
            Ok(objects @ 1..=MAX_OBJECTS) => Some(Limits {
                objects,
                ..Limits::default()
            }),
            _ => {
                let text = format!("`kubernetes.maxObjects` is not between 1 and {MAX_OBJECTS}");
                problems.error(node.at, text);
                None
            }
        },
        _ => {
            problems.error(node.at, "`kubernetes.maxObjects` must be a whole number");
            None
        }
    }
}

const KNOWN: [&str; 7] = [
    "server",
    "tokenFile",
    "caFile",
    "nodeName",
    "rootNamespace",
    "selectors",
    "maxObjects",
];

const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const AUTHORITIES: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// The pod that the kubelet knows by this UID and no other.
const SELECTORS: [&str; 3] = [
    "k8s:ns:{namespace}",
    "k8s:sa:{serviceAccount}",
    "k8s:pod-uid:{uid}",
];

const MAX_OBJECTS: usize = 1_000_000;
