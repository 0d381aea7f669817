//! Where the pods are in the documents of Kubernetes.

use postern_policies::diagnostic::Problems;

use super::{annotations, pod::Pod, spot::Spot};

/// The pods of a document. Documents of kinds that make none have none.
pub(super) fn pods<'t>(root: &Spot<'t>, problems: &mut Problems<'_>) -> Vec<Pod<'t>> {
    let mut found = Vec::new();
    collect(root, &mut found, problems);
    found
}

fn collect<'t>(object: &Spot<'t>, found: &mut Vec<Pod<'t>>, problems: &mut Problems<'_>) {
    let (Some(kind), Some(version)) = (object.text_of("kind"), object.text_of("apiVersion")) else {
        let told = match object.path.as_str() {
            "" => "the document has no `kind` and `apiVersion`, and no `services`".to_owned(),
            path => format!("`{path}` has no `kind` and `apiVersion`"),
        };
        let hint = "give manifests of Kubernetes, or a Compose file";
        return problems.error_with(object.at, told, hint);
    };
    let group = version.split_once('/').map_or("", |(group, _)| group);
    if (kind, group) == ("List", "") {
        for item in object.list("items") {
            collect(&item, found, problems);
        }
        return;
    }
    let known = KINDS
        .iter()
        .find(|(name, groups, _)| *name == kind && groups.contains(&group));
    let Some((_, _, path)) = known else {
        return unknown(object, kind, problems);
    };
    if !path.is_empty() {
        without_effect(object, kind, path, problems);
    }
    let pod = object.at(path);
    match pod.as_ref().and_then(|pod| Some((pod, pod.get("spec")?))) {
        Some((pod, spec)) => found.push(Pod {
            metadata: pod.get("metadata"),
            spec,
        }),
        None => {
            let missing = [object.path.as_str()]
                .into_iter()
                .filter(|path| !path.is_empty());
            let missing: Vec<&str> = missing
                .chain(path.iter().copied())
                .chain(["spec"])
                .collect();
            let told = format!("the {kind} has no `{}`", missing.join("."));
            problems.error(object.at, told);
        }
    }
}

/// A kind that makes pods and is not known is passed over, but not in silence.
fn unknown(object: &Spot<'_>, kind: &str, problems: &mut Problems<'_>) {
    if let Some(containers) = object.at(&["spec", "template", "spec", "containers"]) {
        problems.warn(
            containers.at,
            format!("`{}` of a {kind} is left as it is", containers.path),
            "pods of kinds that are not known get their sidecar from the webhook",
        );
    }
}

/// Annotations of the object that makes the pods are nobody's, in all meshes.
fn without_effect(object: &Spot<'_>, kind: &str, path: &[&str], problems: &mut Problems<'_>) {
    let Some(metadata) = object.get("metadata") else {
        return;
    };
    for said in annotations::said(&metadata) {
        if said.path.contains("annotations") {
            problems.warn(
                said.at,
                format!("`{}` has no effect on a {kind} itself", said.path),
                format!("write it in `{}.metadata.annotations`", path.join(".")),
            );
        }
    }
}

/// Kinds, the groups that have them, and where the pod is in them.
const KINDS: [(&str, &[&str], &[&str]); 8] = [
    ("Pod", &[""], &[]),
    ("ReplicationController", &[""], TEMPLATE),
    ("Deployment", APPS, TEMPLATE),
    ("StatefulSet", APPS, TEMPLATE),
    ("DaemonSet", APPS, TEMPLATE),
    ("ReplicaSet", APPS, TEMPLATE),
    ("Job", &["batch"], TEMPLATE),
    (
        "CronJob",
        &["batch"],
        &["spec", "jobTemplate", "spec", "template"],
    ),
];

const APPS: &[&str] = &["apps", "extensions"];

const TEMPLATE: &[&str] = &["spec", "template"];
