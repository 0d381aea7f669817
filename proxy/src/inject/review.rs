//! One question of the API server: may this pod be made, and with what? Pure.
//!
//! Spec: Kubernetes API, admission.k8s.io/v1 AdmissionReview; RFC 6902 (JSON Patch).

use std::{path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use postern_policies::diagnostic::{Diagnostic, Problems, Severity};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    options::Options,
    pod::{self, Pod},
    sidecar,
    spot::Spot,
    tree::Node,
};

/// What is asked; only what is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Request,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: Kind,
    operation: String,
    #[serde(default)]
    sub_resource: Option<String>,
    #[serde(default)]
    object: Value,
}

#[derive(Debug, Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    kind: String,
}

/// What was answered, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Injected,
    Unchanged,
    Refused,
}

/// Answers a review.
///
/// # Errors
/// What is no review that this webhook understands; the caller answers 400.
pub(super) fn answer(body: &[u8], options: &Options) -> Result<(Verdict, Value), String> {
    let review: Review =
        serde_json::from_slice(body).map_err(|error| format!("no AdmissionReview: {error}"))?;
    if (review.kind.as_str(), review.api_version.as_str())
        != ("AdmissionReview", "admission.k8s.io/v1")
    {
        return Err(format!(
            "only an AdmissionReview of admission.k8s.io/v1 is answered, and this is a `{}` of `{}`",
            review.kind, review.api_version
        ));
    }
    let request = review.request;
    let is_new_pod = request.kind.group.is_empty()
        && request.kind.kind == "Pod"
        && request.operation == "CREATE"
        && request
            .sub_resource
            .as_deref()
            .unwrap_or_default()
            .is_empty();
    let (verdict, mut response) = match is_new_pod {
        true => of_pod(&request.object, options),
        false => (Verdict::Unchanged, json!({"allowed": true})),
    };
    if let Some(response) = response.as_object_mut() {
        response.insert("uid".to_owned(), request.uid.into());
    }
    let review = json!({
        "apiVersion": review.api_version,
        "kind": review.kind,
        "response": response,
    });
    Ok((verdict, review))
}

fn of_pod(object: &Value, options: &Options) -> (Verdict, Value) {
    let tree = match Node::of_json(object) {
        Ok(tree) => tree,
        Err(why) => return refused(&why),
    };
    let root = Spot::root(&tree);
    let file: Arc<Path> = Arc::from(Path::new("pod"));
    let mut told = Vec::new();
    let mut problems = Problems::new(&file, &mut told);
    let wanted = match root.get("spec") {
        Some(spec) => {
            let metadata = root.get("metadata");
            pod::judge(&Pod { metadata, spec }, options, &mut problems)
        }
        None => {
            problems.error(root.at, "the pod has no `spec`");
            None
        }
    };
    let errors = words(&told, Severity::Error);
    if !errors.is_empty() {
        return refused(&errors.join("; "));
    }
    let warnings = words(&told, Severity::Warning);
    let Some(wanted) = wanted else {
        let unchanged = json!({"allowed": true, "warnings": warnings});
        return (Verdict::Unchanged, unchanged);
    };
    let mut patch = additions(
        object,
        "initContainers",
        &sidecar::containers(options, &wanted),
    );
    patch.extend(additions(object, "volumes", &sidecar::volumes(options)));
    let patch = STANDARD.encode(Value::Array(patch).to_string());
    let injected = json!({
        "allowed": true,
        "patchType": "JSONPatch",
        "patch": patch,
        "warnings": warnings,
    });
    (Verdict::Injected, injected)
}

fn refused(why: &str) -> (Verdict, Value) {
    let message = format!("postern: {why}");
    let status = json!({"code": 403, "reason": "Forbidden", "message": message});
    let refused = json!({"allowed": false, "status": status});
    (Verdict::Refused, refused)
}

/// Puts items before those of a list of the pod's spec.
fn additions(object: &Value, list: &str, items: &[super::item::Item]) -> Vec<Value> {
    let path = format!("/spec/{list}");
    let is_there = object.pointer(&path).is_some_and(Value::is_array);
    let items = items.iter().map(super::item::Item::json);
    if !is_there {
        let items: Vec<Value> = items.collect();
        return vec![json!({"op": "add", "path": path, "value": items})];
    }
    let add =
        |(index, item)| json!({"op": "add", "path": format!("{path}/{index}"), "value": item});
    items.enumerate().map(add).collect()
}

/// People see at most a few lines of them in a terminal.
fn words(told: &[Diagnostic], severity: Severity) -> Vec<String> {
    let some = told.iter().filter(|one| one.severity == severity);
    let some = some.map(|one| match &one.hint {
        Some(hint) => format!("{} ({hint})", one.message),
        None => one.message.clone(),
    });
    some.take(MAX_TOLD).collect()
}

const MAX_TOLD: usize = 8;
