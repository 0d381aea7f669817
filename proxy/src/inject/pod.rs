//! One pod: does it get a sidecar, and may it?

use postern_policies::diagnostic::Problems;

use super::{
    annotations::{self, Wanted},
    isolation,
    options::Options,
    sidecar::{PROXY, RULES, VOLUMES},
    spot::Spot,
};

/// A pod, or the template of one.
#[derive(Debug, Clone)]
pub(super) struct Pod<'t> {
    pub(super) metadata: Option<Spot<'t>>,
    pub(super) spec: Spot<'t>,
}

/// Judges a pod; tells what is wrong with it, and what it is to get if there is anything to add.
pub(super) fn judge(
    pod: &Pod<'_>,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<Wanted> {
    let spec = &pod.spec;
    let said = pod.metadata.as_ref().map(annotations::said);
    let at = pod
        .metadata
        .as_ref()
        .map_or(spec.at, |metadata| metadata.at);
    let wanted = annotations::read(&said.unwrap_or_default(), at, options, problems)?;
    if spec.list("containers").is_empty() {
        let told = format!(
            "`{}` must be a list with a container",
            spec.path_of("containers")
        );
        problems.error(spec.at, told);
        return None;
    }
    isolation::check(spec, &wanted, options, problems);
    match standing(spec) {
        Standing::Whole => {
            let first = spec.list("initContainers").into_iter().next();
            let early = first.filter(|first| first.text_of("name") != Some(RULES));
            if let Some(early) = early {
                let told = format!("`{}` runs before there are rules", early.path);
                let hint = format!("put it behind `{PROXY}`");
                problems.warn(early.at, told, hint);
            }
            None
        }
        Standing::Foreign(container, why) => {
            let told = format!("`{}` {why}", container.path);
            problems.error_with(container.at, told, "take it out, or give it another name");
            None
        }
        Standing::Absent => {
            let clash = spec.list("volumes").into_iter().find(|volume| {
                let name = volume.text_of("name").unwrap_or_default();
                VOLUMES.contains(&name)
            });
            if let Some(volume) = clash {
                let told = format!("`{}.name` is that of a volume of the sidecar", volume.path);
                problems.error_with(volume.at, told, "give it another name");
                return None;
            }
            Some(wanted)
        }
    }
}

/// What of the sidecar is there.
enum Standing<'t> {
    Absent,
    Whole,
    /// Something that is not it, or that does not go together with it.
    Foreign(Spot<'t>, String),
}

fn standing<'t>(spec: &Spot<'t>) -> Standing<'t> {
    let init = spec.list("initContainers");
    let name = |container: &Spot<'t>| container.text_of("name").unwrap_or_default();
    let mut others = spec.list("containers");
    others.extend(spec.list("ephemeralContainers"));
    for container in others.iter().chain(&init) {
        let mesh = OTHERS.iter().find(|(other, _)| *other == name(container));
        if let Some((other, mesh)) = mesh {
            let why = format!("is `{other}`: the pod has the sidecar of {mesh} already");
            return Standing::Foreign(container.clone(), why);
        }
    }
    let ours = |container: &&Spot<'t>| [RULES, PROXY].contains(&name(container));
    if let Some(container) = others.iter().find(ours) {
        let why = "has the name of an init container of the sidecar".to_owned();
        return Standing::Foreign(container.clone(), why);
    }
    let found: Vec<&Spot<'t>> = init.iter().filter(ours).collect();
    match found.as_slice() {
        [] => Standing::Absent,
        [rules, proxy] if name(rules) == RULES && name(proxy) == PROXY => {
            match proxy.text_of("restartPolicy") {
                Some("Always") => Standing::Whole,
                _ => {
                    let why = "has the name of the sidecar and not its `restartPolicy: Always`";
                    Standing::Foreign((*proxy).clone(), why.to_owned())
                }
            }
        }
        [one, ..] => {
            let why = format!(
                "is part of a sidecar that is not whole: first `{RULES}`, then `{PROXY}`, once each"
            );
            Standing::Foreign((*one).clone(), why)
        }
    }
}

/// Containers of other meshes.
const OTHERS: [(&str, &str); 6] = [
    ("istio-proxy", "Istio"),
    ("istio-init", "Istio"),
    ("istio-validation", "Istio"),
    ("linkerd-proxy", "Linkerd"),
    ("linkerd-init", "Linkerd"),
    ("linkerd-network-validator", "Linkerd"),
];
