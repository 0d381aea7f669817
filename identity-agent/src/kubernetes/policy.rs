//! Policies of the API, each read by itself: one that cannot be read refuses itself alone, and to the
//! safe side. Pure.

use std::path::PathBuf;

use postern_policies::{Options, PolicySet, SourceFile};
use serde_json::{Map, Value, json};

use super::{Kind, api::cut, object::Object};

/// What holds of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Read {
    /// The kind of the document that holds: another one where it stands in.
    pub(super) kind: Kind,
    /// Its name there.
    pub(super) name: String,
    /// The document.
    pub(super) text: Vec<u8>,
    pub(super) standing: Standing,
}

/// Which version of an object holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// The one that the API has.
    Current,
    /// The last one that could be read, because of this mistake in the newest.
    LastGood(String),
    /// None was ever read, so what it selects is denied.
    Denied(String),
}

impl Standing {
    /// What is told of it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Current => 0,
            Self::LastGood(mistake) | Self::Denied(mistake) => mistake.len(),
        }
    }
}

/// Reads a policy. `before` is what held of the same object.
pub(super) fn read(kind: Kind, object: &Object, before: Option<&Read>, options: &Options) -> Read {
    let text = document(kind, object);
    let mistake = match load(kind, object, &text, options) {
        Ok(()) => {
            return Read {
                kind,
                name: object.metadata.name.clone(),
                text,
                standing: Standing::Current,
            };
        }
        Err(mistake) => mistake,
    };
    match before {
        Some(before) if !matches!(before.standing, Standing::Denied(_)) => Read {
            standing: Standing::LastGood(mistake),
            ..before.clone()
        },
        _ => stand_in(kind, object, mistake, options),
    }
}

/// The document that denies what an object selects, or all of its namespace where that cannot be read
/// either.
fn stand_in(kind: Kind, object: &Object, mistake: String, options: &Options) -> Read {
    // Cut, so that what is put around it still is a name.
    let head: String = object.metadata.name.chars().take(MAX_HEAD).collect();
    let head = head.trim_end_matches(['-', '.']);
    let (of, name) = match kind {
        // A NetworkPolicy only ever opens what others have not: without rules it closes.
        Kind::NetworkPolicy => (kind, object.metadata.name.clone()),
        // Two of one name are refused, so it has one that no object has.
        _ => (
            Kind::AuthorizationPolicy,
            format!("unreadable-{}.{}", kind.name().to_ascii_lowercase(), head),
        ),
    };
    let selector = match kind {
        Kind::NetworkPolicy => object.spec.get("podSelector"),
        _ => object.spec.get("selector"),
    };
    let denying = |selector: Option<&Value>| Object {
        spec: match (of, selector) {
            (Kind::NetworkPolicy, selector) => json!({
                "podSelector": selector.cloned().unwrap_or_else(|| json!({})),
                "policyTypes": ["Ingress", "Egress"],
            }),
            (_, Some(selector)) => json!({"selector": selector, "action": "DENY", "rules": [{}]}),
            (_, None) => json!({"action": "DENY", "rules": [{}]}),
        },
        metadata: super::object::Metadata {
            name: name.clone(),
            namespace: object.metadata.namespace.clone(),
            ..Default::default()
        },
        ..Default::default()
    };
    let mut text = document(of, &denying(selector));
    if load(of, &denying(selector), &text, options).is_err() {
        text = document(of, &denying(None));
    }
    Read {
        kind: of,
        name,
        text,
        standing: Standing::Denied(mistake),
    }
}

/// The part of an object that means something, as a document. Labels, owners and what others have
/// noted on it do not.
fn document(kind: Kind, object: &Object) -> Vec<u8> {
    let head = &object.metadata;
    let mut metadata = Map::new();
    metadata.insert("name".into(), json!(head.name));
    metadata.insert("namespace".into(), json!(head.namespace));
    // Of several PeerAuthentications the oldest counts.
    if let Some(created) = &head.creation_timestamp {
        metadata.insert("creationTimestamp".into(), json!(created));
    }
    let said = head.annotations.iter();
    let said = said.filter(|(name, _)| name.starts_with("istio.io/"));
    let annotations: Map<String, Value> = said
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    if !annotations.is_empty() {
        metadata.insert("annotations".into(), Value::Object(annotations));
    }
    let mut document = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.name(),
        "metadata": metadata,
    });
    // An Istio policy without a spec is one: it has an empty one.
    let spec = match &object.spec {
        Value::Null => json!({}),
        spec => spec.clone(),
    };
    if let Value::Object(fields) = &mut document {
        fields.insert("spec".into(), spec);
    }
    document.to_string().into_bytes()
}

/// By which decisions and errors name an object: there is no file.
pub(super) fn path(kind: Kind, namespace: &str, name: &str) -> PathBuf {
    let resource = kind.resource();
    match namespace {
        "" => PathBuf::from(format!("kubernetes:{resource}/{name}")),
        namespace => PathBuf::from(format!("kubernetes:{resource}/{namespace}/{name}")),
    }
}

fn load(kind: Kind, object: &Object, text: &[u8], options: &Options) -> Result<(), String> {
    let file = SourceFile {
        path: path(kind, &object.metadata.namespace, &object.metadata.name),
        text: text.to_vec(),
    };
    let loaded = PolicySet::load(&[file], options);
    loaded.map(drop).map_err(|mistakes| {
        let first = mistakes.iter().take(MAX_MISTAKES);
        let mut told: Vec<String> = first.map(|one| cut(one.to_string())).collect();
        if mistakes.len() > MAX_MISTAKES {
            told.push(format!("and {} more", mistakes.len() - MAX_MISTAKES));
        }
        told.join("; ")
    })
}

/// How much of the name of an object is in that of what stands in for it. A name has 253 characters at most.
const MAX_HEAD: usize = 200;

/// How many mistakes of an object are told, and kept.
const MAX_MISTAKES: usize = 3;
