//! A text goes in, a text or a refusal comes out.

use std::{fs, path::Path, sync::Arc};

use clap::Parser as _;
use proptest::prelude::*;

use super::{Inject, Options, process};

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    inject: Inject,
}

fn options(more: &[&str]) -> Options {
    let line = Line::try_parse_from([&["inject", "-f", "-"], more].concat()).unwrap();
    line.inject.settings.options()
}

fn run(text: &str, more: &[&str]) -> (Option<String>, String) {
    let path: Arc<Path> = Arc::from(Path::new("pod.yaml"));
    let (text, told) = process(&path, text.as_bytes(), &options(more));
    let told: Vec<String> = told.iter().map(ToString::to_string).collect();
    (text, told.join("\n"))
}

/// Each line of a table: what stands in the pod's spec, its twin, and the field that refuses it.
#[test]
fn what_leads_round_the_proxy_is_refused_and_its_twin_is_not() {
    for (bad, good, field) in [
        (
            "hostNetwork: true",
            "hostNetwork: false",
            "`spec.hostNetwork`",
        ),
        ("hostPID: true", "hostPID: false", "`spec.hostPID`"),
        (
            "securityContext: {runAsUser: 1337}",
            "securityContext: {runAsUser: 1336}",
            "`spec.securityContext.runAsUser`",
        ),
        (
            "initContainers: [{name: b, securityContext: {privileged: true}}]",
            "initContainers: [{name: b, securityContext: {privileged: false}}]",
            "`spec.initContainers[0].securityContext.privileged`",
        ),
        (
            "initContainers: [{name: b, securityContext: {capabilities: {add: [NET_ADMIN]}}}]",
            "initContainers: [{name: b, securityContext: {capabilities: {add: [CHOWN]}}}]",
            "`spec.initContainers[0].securityContext.capabilities.add[0]`",
        ),
        (
            "initContainers: [{name: postern-netns, securityContext: {capabilities: {add: [SYS_ADMIN]}}}, {name: postern-proxy, restartPolicy: Always}]",
            "initContainers: [{name: postern-netns, securityContext: {capabilities: {add: [NET_ADMIN]}}}, {name: postern-proxy, restartPolicy: Always}]",
            "`spec.initContainers[0].securityContext.capabilities.add[0]`",
        ),
        (
            "ephemeralContainers: [{name: b, ports: [{containerPort: 15001}]}]",
            "ephemeralContainers: [{name: b, ports: [{containerPort: 15002}]}]",
            "`spec.ephemeralContainers[0].ports[0].containerPort`",
        ),
        (
            "volumes: [{name: v, hostPath: {path: /}}]",
            "volumes: [{name: v, hostPath: {path: /srv}}]",
            "`spec.volumes[0].hostPath.path`",
        ),
        (
            "volumes: [{name: v, hostPath: {path: /var/lib/x/../postern/keys}}]",
            "volumes: [{name: v, hostPath: {path: /var/lib/x/postern/keys}}]",
            "`spec.volumes[0].hostPath.path`",
        ),
        (
            "volumes: [{name: v, hostPath: {path: /run/postern}}]",
            "volumes: [{name: v, hostPath: {path: /run/postern/public}}]",
            "`spec.volumes[0].hostPath.path`",
        ),
    ] {
        let pod = |spec: &str| {
            format!("apiVersion: v1\nkind: Pod\nspec:\n  {spec}\n  containers: [{{name: a}}]\n")
        };
        let (text, told) = run(&pod(bad), &[]);
        assert!(text.is_none(), "{bad}");
        let place = told
            .lines()
            .find(|line| line.contains(": error: "))
            .unwrap();
        assert!(
            place.starts_with("pod.yaml:4:") && place.contains(field),
            "{told}"
        );
        assert!(run(&pod(good), &[]).0.is_some(), "{good}");
    }
}

#[test]
fn what_weakens_a_pod_is_told_by_name_and_its_twin_is_not() {
    for (bad, good, field) in [
        ("hostIPC: true", "hostIPC: false", "`spec.hostIPC` is on"),
        (
            "initContainers: [{name: b, securityContext: {procMount: Unmasked}}]",
            "initContainers: [{name: b, securityContext: {procMount: Default}}]",
            "`spec.initContainers[0].securityContext.procMount`",
        ),
        (
            "initContainers: [{name: b, volumeMounts: [{name: postern-agent-socket}]}]",
            "initContainers: [{name: b, volumeMounts: [{name: agent-socket}]}]",
            "`spec.initContainers[0].volumeMounts[0].name`",
        ),
    ] {
        let pod = |spec: &str| {
            format!("apiVersion: v1\nkind: Pod\nspec:\n  {spec}\n  containers: [{{name: a}}]\n")
        };
        let (text, told) = run(&pod(bad), &[]);
        assert!(text.is_some() && told.contains(field), "{told}");
        let (text, told) = run(&pod(good), &[]);
        assert!(text.is_some() && !told.contains(field), "{told}");
    }
}

/// Two pods with a text in common, and the same with none.
#[test]
fn what_an_alias_names_is_not_edited() {
    let pods = |first: &str, second: &str| {
        let head = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n";
        let next = "- apiVersion: v1\n  kind: Pod\n  metadata:\n    annotations: {postern.dev/inject: disabled}\n";
        format!("{head}  spec: {first}\n{next}  spec: {second}\n")
    };
    let spec = "{initContainers: [{name: w}], containers: [{name: a}]}";
    let init = |link: &str| format!("{{initContainers: {link}, containers: [{{name: a}}]}}");
    for (first, second, field) in [
        (format!("&s {spec}"), "*s".to_owned(), "`items[0].spec"),
        (
            init("&i [{name: w}]"),
            init("*i"),
            "`items[0].spec.initContainers`",
        ),
    ] {
        let (text, told) = run(&pods(&first, &second), &[]);
        assert!(text.is_none(), "{told}");
        assert!(told.contains("pod.yaml:6:"), "{told}");
        assert!(
            told.contains(field) && told.contains("write it out"),
            "{told}"
        );
        assert!(run(&pods(&first, spec), &[]).0.is_some(), "{first}");
    }
}

fn corpus() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/manifests");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let read = |path| fs::read_to_string(path).unwrap();
    paths.into_iter().map(read).collect()
}

/// Pieces of which manifests are made, and some that do not belong there.
const PIECES: [&str; 24] = [
    "\n",
    "\r\n",
    " ",
    "  ",
    "- ",
    "# c",
    "#",
    "---\n",
    "...\n",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "&a ",
    "*a",
    "<<: *a\n",
    "|\n",
    "\"",
    "'",
    "null",
    "initContainers:",
    "volumes: []",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is done to a manifest: it is refused, or all of it is there afterwards and a second
    /// run changes nothing.
    #[test]
    fn nothing_is_lost_and_a_second_run_changes_nothing(
        which in 0_usize..20,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..PIECES.len(), 0_usize..12), 0..4),
    ) {
        let mut text = corpus()[which].clone();
        for (at, piece, taken) in changes {
            let chars: Vec<char> = text.chars().collect();
            let at = at.index(chars.len() + 1);
            let rest = chars.len().min(at + taken);
            text = chars[..at].iter().chain(PIECES[piece].chars().collect::<Vec<_>>().iter()).chain(&chars[rest..]).collect();
        }
        let (Some(after), _) = run(&text, &[]) else {
            return Ok(());
        };
        let mut left = after.chars();
        // A null gives way to a list, and is the only thing that does.
        let is_left = text.chars().all(|one| left.any(|other| one == other));
        prop_assert!(is_left || text.contains("null"), "{text}\n=====\n{after}");
        let (again, told) = run(&after, &[]);
        prop_assert_eq!(again, Some(after), "{}", told);
    }
}
