//! Objects as the API tells them. Only what is used is read.
//! Spec: Kubernetes API, meta/v1 ObjectMeta, List, WatchEvent and Status; core/v1 Pod.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::Kind;

/// An object of any kind.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Object {
    pub(super) metadata: Metadata,
    pub(super) spec: Value,
    pub(super) status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) creation_timestamp: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// Of a pod; other kinds have others, of which nothing is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Status {
    pub(super) phase: Value,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Value,
}

impl Object {
    /// `namespace/name`, or the name alone of what has no namespace.
    pub(super) fn key(&self) -> String {
        match self.metadata.namespace.as_str() {
            "" => self.metadata.name.clone(),
            namespace => format!("{namespace}/{}", self.metadata.name),
        }
    }

    /// Leaves out what nothing is made of. Tells how many bytes of text the rest is, about.
    pub(super) fn cut(&mut self, kind: Kind) -> usize {
        self.metadata
            .annotations
            .retain(|name, _| name.starts_with("istio.io/"));
        match kind {
            Kind::Namespace | Kind::ServiceAccount => self.spec = Value::Null,
            Kind::Pod => {
                if let Value::Object(spec) = &mut self.spec {
                    spec.retain(|name, _| OF_PODS.contains(&name.as_str()));
                    let lists = spec.values_mut().filter_map(Value::as_array_mut).flatten();
                    for container in lists.filter_map(Value::as_object_mut) {
                        container.retain(|name, _| name == "ports");
                    }
                }
            }
            _ => {}
        }
        let texts = self
            .metadata
            .labels
            .iter()
            .chain(&self.metadata.annotations);
        let texts: usize = texts.map(|(name, value)| name.len() + value.len()).sum();
        texts
            + self.metadata.name.len()
            + self.metadata.namespace.len()
            + self.spec.to_string().len()
    }

    /// A text of the spec.
    pub(super) fn text(&self, name: &str) -> &str {
        let value = self.spec.get(name).and_then(Value::as_str);
        value.unwrap_or_default()
    }
}

/// What of a pod's spec is looked at; of its containers, the ports.
const OF_PODS: [&str; 5] = [
    "hostNetwork",
    "serviceAccountName",
    "nodeName",
    "containers",
    "initContainers",
];

/// One page of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct List {
    pub(super) metadata: ListMetadata,
    pub(super) items: Option<Vec<Object>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ListMetadata {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) next: String,
}

/// What a line of a watch says.
#[derive(Debug, Deserialize)]
pub(super) struct WatchEvent {
    #[serde(rename = "type")]
    pub(super) what: What,
    pub(super) object: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum What {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

/// What the server says when something went wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    pub(super) code: u16,
    pub(super) message: String,
}
