//! YAML to documents, with file, line and column of every mistake.
//!
//! Nothing is ignored: an unknown field, kind or value is a mistake, and one mistake refuses the
//! whole set. All mistakes of all files are told in one run.

mod authorization_policy;
mod baseline;
mod entry;
mod network_policy;
mod peer_authentication;
mod request_authentication;
mod workload;

use std::{path::Path, sync::Arc};

use crate::{
    diagnostic::{Diagnostic, Place, Problems},
    model::{Documents, Meta, Namespace},
    set::{Options, SourceFile},
    yaml::{Fields, Node, Value, fields, node},
};

/// Reads every document of every file.
pub(crate) fn read(files: &[SourceFile], options: &Options) -> (Documents, Vec<Diagnostic>) {
    let mut documents = Documents::default();
    let mut found = Vec::new();
    for file in files {
        let path: Arc<Path> = Arc::from(file.path.as_path());
        let mut problems = Problems::new(&path, &mut found);
        match read_text(&file.text) {
            Ok(nodes) => {
                for node in &nodes {
                    read_document(node, options, &mut documents, &mut problems);
                }
            }
            Err((at, message)) => problems.error(at, message),
        }
    }
    (documents, found)
}

fn read_text(text: &[u8]) -> Result<Vec<Node>, (Place, String)> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let good = text.get(..error.valid_up_to()).unwrap_or_default();
        let line = good.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let at = Place {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: 1,
        };
        (at, "this is not UTF-8".to_owned())
    })?;
    node::read(text)
}

/// Reads one document, or each of a `kind: List`.
fn read_document(
    node: &Node,
    options: &Options,
    documents: &mut Documents,
    problems: &mut Problems<'_>,
) {
    if entry::is_list(node) {
        let read = entry::read(node, options, problems);
        documents.workloads.extend(read);
        return;
    }
    let Some((version, kind)) = version_and_kind(node, problems) else {
        return;
    };
    if options.workloads_only && !matches!(kind, "Workload" | "List") {
        let hint = "only Workloads can be registered; put it into a folder";
        problems.error_with(node.at, format!("this is a `{kind}`"), hint);
        return;
    }
    match (version, kind) {
        ("v1", "List") => {
            let known = ["apiVersion", "kind", "metadata", "items"];
            let Some(fields) = Fields::of(node, "List", &known, problems) else {
                return;
            };
            for item in fields.list("items", problems) {
                read_document(item, options, documents, problems);
            }
        }
        ("v1", "Namespace") => {
            documents
                .namespaces
                .extend(namespace(node, options, problems));
        }
        ("networking.k8s.io/v1", "NetworkPolicy") => {
            documents
                .network_policies
                .extend(network_policy::read(node, options, problems));
        }
        ("security.istio.io/v1" | "security.istio.io/v1beta1", "PeerAuthentication") => {
            let read = peer_authentication::read(node, options, problems);
            documents.peer_authentications.extend(read);
        }
        ("security.istio.io/v1" | "security.istio.io/v1beta1", "AuthorizationPolicy") => {
            let read = authorization_policy::read(node, options, problems);
            documents.authorization_policies.extend(read);
        }
        ("security.istio.io/v1" | "security.istio.io/v1beta1", "RequestAuthentication") => {
            let read = request_authentication::read(node, options, problems);
            documents.request_authentications.extend(read);
        }
        ("postern.dev/v1", "Workload") => {
            documents
                .workloads
                .extend(workload::read(node, options, problems));
        }
        _ if options.ignore_other_kinds => {}
        _ => unknown_kind(node, version, kind, problems),
    }
}

fn version_and_kind<'n>(node: &'n Node, problems: &mut Problems<'_>) -> Option<(&'n str, &'n str)> {
    let Value::Map(entries) = &node.value else {
        problems.error(
            node.at,
            format!(
                "a document must be a map, and this is {}",
                fields::kind_of(node)
            ),
        );
        return None;
    };
    let mut text = |name: &str| {
        let entry = entries.iter().find(|entry| entry.key == name);
        match entry {
            Some(entry) => fields::text(&entry.node, name, problems),
            None => {
                problems.error(node.at, format!("a document needs `{name}`"));
                None
            }
        }
    };
    let (version, kind) = (text("apiVersion"), text("kind"));
    Some((version?, kind?))
}

fn unknown_kind(node: &Node, version: &str, kind: &str, problems: &mut Problems<'_>) {
    let message = format!("`{version}` `{kind}` is not a document that Postern reads");
    let known: Vec<&str> = KINDS.iter().map(|(_, kind)| *kind).collect();
    let hint = match KINDS.iter().find(|(_, known)| *known == kind) {
        Some((version, _)) => format!("`{kind}` is read with apiVersion `{version}`"),
        None => match fields::nearest(kind, &known) {
            Some(name) => format!("did you mean `{name}`?"),
            None => "leave it out, or pass over such documents with --ignore-other-kinds".into(),
        },
    };
    problems.error_with(node.at, message, hint);
}

/// Namespaces are read for their labels; what else they hold is Kubernetes' business.
fn namespace(node: &Node, options: &Options, problems: &mut Problems<'_>) -> Option<Namespace> {
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let fields = Fields::of(node, "Namespace", &known, problems)?;
    let (meta, head) = metadata(node.at, &fields, options, problems)?;
    let mut labels = head
        .get("labels")
        .and_then(|node| fields::labels(node, "labels", problems))
        .unwrap_or_default();
    labels.insert(NAMESPACE_NAME.into(), meta.name.clone());
    Some(Namespace { meta, labels })
}

/// Reads `metadata`. The second part gives access to what only some kinds look at.
fn metadata<'n>(
    at: Place,
    document: &Fields<'n>,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<(Meta, Fields<'n>)> {
    let node = document.required("metadata", "a document", problems)?;
    let fields = Fields::of(node, "metadata", &METADATA, problems)?;
    let name = fields::filled(
        fields.required("name", "metadata", problems)?,
        "name",
        problems,
    )?;
    let namespace = match fields.get("namespace") {
        Some(node) => fields::filled(node, "namespace", problems)?,
        None => &options.namespace,
    };
    for (what, value) in [("name", name), ("namespace", namespace)] {
        if !fields::is_object_name(value) {
            let hint = "lower-case letters, digits, `-` and `.`, beginning and ending with a letter or digit";
            problems.error_with(node.at, format!("`{value}` is no {what}"), hint);
            return None;
        }
    }
    let meta = Meta {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        full_name: Arc::from(format!("{namespace}/{name}")),
        created: fields
            .text("creationTimestamp", problems)
            .map(str::to_owned),
        file: problems.file().clone(),
        at,
    };
    Some((meta, fields))
}

/// `selector` of Istio's documents: `matchLabels` alone, without stars.
fn istio_selector(
    spec: &Fields<'_>,
    problems: &mut Problems<'_>,
) -> Option<crate::model::labels::Labels> {
    let Some(node) = spec.get("selector") else {
        return Some(Default::default());
    };
    let fields = Fields::of(node, "selector", &["matchLabels"], problems)?;
    let labels = match fields.get("matchLabels") {
        Some(node) => fields::labels(node, "matchLabels", problems)?,
        None => Default::default(),
    };
    if labels.is_empty() {
        let hint = "leave `selector` away to say so";
        let message = "a selector without labels selects every workload of the namespace";
        problems.warn(node.at, message, hint);
    }
    Some(labels)
}

/// Istio ignores a whole policy, even a DENY, where its `targetRefs` mean nothing. Here it is
/// refused.
fn refuse_target_refs(spec: &Fields<'_>, problems: &mut Problems<'_>) -> Option<()> {
    for name in ["targetRef", "targetRefs"] {
        if let Some(node) = spec.get(name) {
            problems.error_with(
                node.at,
                format!("`{name}` is not supported"),
                "it names a gateway or waypoint, and there is none here; use `selector`",
            );
            return None;
        }
    }
    Some(())
}

/// The label that every namespace has.
pub(crate) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

const METADATA: [&str; 12] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "generation",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "resourceVersion",
    "uid",
    "generateName",
];

const KINDS: [(&str, &str); 7] = [
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("security.istio.io/v1", "PeerAuthentication"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
    ("security.istio.io/v1", "RequestAuthentication"),
    ("postern.dev/v1", "Workload"),
    ("v1", "Namespace"),
    ("v1", "List"),
];

#[cfg(test)]
mod tests;
