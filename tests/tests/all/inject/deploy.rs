//! `deploy/kubernetes`: manifests by the schemas of Kubernetes, configurations and documents by the
//! programs that will read them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use postern_tests::{
    binaries, root, run,
    world::{World, free_address},
};

use super::{inject, judged, judged_wrong, told, webhook::secrets};

fn folder(path: &str) -> PathBuf {
    root().join("deploy/kubernetes").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(folder(path)).unwrap()
}

fn program(name: &str, arguments: &[&str]) -> std::process::Output {
    let path = binaries().unwrap().join(name);
    run(path.to_str().unwrap(), arguments).unwrap()
}

/// The files of a folder and of those below it, but what is made by scripts.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true if path.ends_with("secrets") => {}
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// Those that are for the API server.
const MANIFESTS: [&str; 8] = [
    "base/namespaces.yaml",
    "base/agent.yaml",
    "base/webhook.yaml",
    "components/api-server/role.yaml",
    "overlays/example/production.yaml",
    "overlays/example/policies/network.yaml",
    "overlays/restricted/production.yaml",
    "overlays/restricted/network.yaml",
];

/// Folders with a `kustomization.yaml`.
const LAYERS: [&str; 3] = ["base", "overlays/example", "overlays/restricted"];

#[test]
fn every_manifest_is_valid_and_every_file_is_used() {
    let world = World::new().unwrap();
    secrets(world.path());
    let secrets = world
        .path()
        .join("secrets/secrets.yaml")
        .display()
        .to_string();
    let manifests = MANIFESTS.map(|path| folder(path).display().to_string());
    let all: Vec<&str> = manifests
        .iter()
        .chain([&secrets])
        .map(String::as_str)
        .collect();
    let told = judged(&[&["validate", "1.33"], all.as_slice()].concat());
    assert!(!told.contains(": 0 objects"), "{told}");

    let mut found = Vec::new();
    for layer in LAYERS {
        files(&folder(layer), &mut found);
    }
    let used = LAYERS.map(|path| read(&format!("{path}/kustomization.yaml")));
    for file in found {
        let name = file.strip_prefix(folder("")).unwrap().to_str().unwrap();
        let name = name
            .trim_start_matches("base/")
            .trim_start_matches("overlays/example/")
            .trim_start_matches("overlays/restricted/");
        if !["kustomization.yaml", ".gitignore"].contains(&name) {
            assert!(
                used.iter().any(|text| text.contains(name)),
                "{name} is not used"
            );
        }
    }
    // And what is used is there.
    for (path, text) in LAYERS.iter().zip(&used) {
        let words = text.split(|c: char| c.is_whitespace() || "[],=".contains(c));
        for word in words.filter(|word| word.ends_with(".yaml") && !word.starts_with("secrets/")) {
            let is_key = text.contains(&format!("[{word}="));
            assert!(is_key || folder(path).join(word).exists(), "{path}: {word}");
        }
    }
}

#[test]
fn the_sidecars_of_the_example_fit_without_a_warning() {
    let production = read("overlays/example/production.yaml");
    let output = inject(production.as_bytes(), &[]);
    assert!(
        output.status.success() && told(&output).is_empty(),
        "{}",
        told(&output)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("/postern-proxy, run").count(), 2);
    // What the sidecar looks for is what the base lays out.
    let agent = read("base/agent-config.yaml");
    assert!(agent.contains("unix:///run/postern/public/agent.sock"));
    assert!(text.contains("path: /run/postern/public\n"));
    assert!(
        read("overlays/example/kustomization.yaml")
            .contains("name: postern-proxy\n    namespace: production")
    );
    let world = World::new().unwrap();
    let path = world.write("injected.yaml", &text).unwrap();
    judged(&["validate", "1.33", path.to_str().unwrap()]);
}

#[test]
fn pods_that_say_so_pass_the_pod_security_standard_restricted() {
    let restricted = read("overlays/restricted/production.yaml");
    for path in ["overlays/restricted/production.yaml", "base/webhook.yaml"] {
        let label = match path.starts_with("base") {
            true => read("base/namespaces.yaml"),
            false => restricted.clone(),
        };
        assert!(label.contains("pod-security.kubernetes.io/enforce: restricted"));
        judged(&["restricted", folder(path).to_str().unwrap()]);
    }
    let world = World::new().unwrap();
    let refused = |text: &str, field: &str| {
        let path = world.write("twin.yaml", text).unwrap();
        let told = judged_wrong(&["restricted", path.to_str().unwrap()]);
        assert!(told.contains(field), "`{field}` in {told}");
    };
    // Each twin differs in one thing.
    for (from, to, field) in [
        (
            "allowPrivilegeEscalation: false",
            "allowPrivilegeEscalation: true",
            "[postern-proxy].allowPrivilegeEscalation",
        ),
        (
            "drop: [ALL]",
            "drop: [NET_RAW]",
            "[postern-proxy].capabilities.drop",
        ),
        (
            "drop: [ALL]",
            "drop: [ALL], add: [NET_ADMIN]",
            "[postern-proxy].capabilities.add",
        ),
        (
            "runAsNonRoot: true",
            "runAsNonRoot: false",
            "[frontend].runAsNonRoot",
        ),
        (
            "runAsUser: 1337",
            "runAsUser: 0",
            "[postern-proxy].runAsUser",
        ),
        (
            "type: RuntimeDefault",
            "type: Unconfined",
            "[frontend].seccompProfile",
        ),
        (
            "csi: {driver: csi.spiffe.io, readOnly: true}",
            "hostPath: {path: /run/postern/public}",
            "volumes[postern-agent-socket].hostPath",
        ),
        (
            "      initContainers:",
            "      hostPID: true\n      initContainers:",
            "hostPID",
        ),
    ] {
        assert!(restricted.contains(from), "{from}");
        refused(&restricted.replacen(from, to, 1), field);
    }
    // What the webhook makes of the other example, which is why its namespace is `privileged`.
    let injected = inject(read("overlays/example/production.yaml").as_bytes(), &[]).stdout;
    let injected = String::from_utf8(injected).unwrap();
    refused(&injected, "initContainers[postern-netns].capabilities.add");
    refused(&injected, "volumes[postern-agent-socket].hostPath");
}

#[test]
fn sidecars_without_interception_are_good_and_decide_as_those_of_the_example() {
    for name in ["frontend", "web"] {
        let config = folder(&format!("overlays/restricted/proxy-{name}.yaml"));
        let arguments = ["run", "--check", "--config", config.to_str().unwrap()];
        let checked = program("postern-proxy", &arguments);
        assert!(checked.status.success(), "{}", told(&checked));
    }
    let told_of = folder("overlays/restricted/policies.yaml");
    let workloads = folder("overlays/restricted/workloads.yaml");
    decides_as_the_example_says(told_of.to_str().unwrap(), workloads.to_str().unwrap());
}

#[test]
fn the_agent_of_the_base_starts_with_its_configuration() {
    let mut world = World::new().unwrap();
    let here = world.path().display().to_string();
    secrets(world.path());
    for (from, to) in [
        (
            "overlays/example/workloads/workloads.yaml",
            "workloads/workloads.yaml",
        ),
        (
            "overlays/example/policies/network.yaml",
            "policies/network.yaml",
        ),
        (
            "overlays/example/policies/peer-authentication.yaml",
            "policies/peer.yaml",
        ),
        (
            "overlays/example/policies/authorization.yaml",
            "policies/authorization.yaml",
        ),
    ] {
        world.write(to, &read(from)).unwrap();
    }
    for name in ["ca.crt", "ca.key", "root.crt"] {
        let text = fs::read_to_string(world.path().join(name)).unwrap();
        world.write(&format!("authority/{name}"), &text).unwrap();
    }
    // Only what would meet the agents of other tests is moved.
    let config = read("base/agent-config.yaml")
        .replace("/var/lib/postern", &format!("{here}/state"))
        .replace("/run/postern", &format!("{here}/run"))
        .replace("127.0.0.1:15021", &free_address().unwrap().to_string());
    let start = |world: &mut World, name: &str, config: &str| {
        let path = world.write(&format!("{name}.yaml"), config).unwrap();
        let mut command = Command::new(binaries().unwrap().join("postern-agent"));
        command.args(["run", "--config"]).arg(path);
        world.spawn(name, &mut command).unwrap();
    };
    // The twin with a slip of the pen is refused.
    start(&mut world, "bad", &config.replace("kubelet:", "kublet:"));
    assert_eq!(world.ended("bad").unwrap(), Some(64));
    start(&mut world, "agent", &config);
    world.said("agent", "ready").unwrap();
}

#[test]
fn the_proxy_of_the_example_reads_its_configuration() {
    let config = folder("overlays/example/proxy.yaml").display().to_string();
    let with = |config: &str| {
        let options = [
            "--proxy-uid",
            "1337",
            "--no-resolver",
            "--dry-run",
            "--backend",
            "nft",
        ];
        program(
            "postern-proxy",
            &[&["netns", "setup", "--config", config], &options[..]].concat(),
        )
    };
    let shown = with(&config);
    assert!(shown.status.success(), "{}", told(&shown));
    let rules = String::from_utf8(shown.stdout).unwrap();
    for port in ["15006", "15001", "15020"] {
        assert!(rules.contains(port), "{rules}");
    }
    let world = World::new().unwrap();
    let bad = read("overlays/example/proxy.yaml").replace("inbound:", "inbuond:");
    let bad = world.write("proxy.yaml", &bad).unwrap();
    let refused = with(bad.to_str().unwrap());
    assert_eq!(refused.status.code(), Some(64), "{}", told(&refused));
    assert!(told(&refused).contains("did you mean `inbound`"));
}

#[test]
fn the_policies_of_the_example_load_and_decide_as_they_say() {
    let policies = folder("overlays/example/policies").display().to_string();
    let workloads = folder("overlays/example/workloads").display().to_string();
    decides_as_the_example_says(&policies, &workloads);
}

#[track_caller]
fn decides_as_the_example_says(policies: &str, workloads: &str) {
    let checked = program("postern-policy", &["check", policies, workloads]);
    assert!(checked.status.success(), "{}", told(&checked));
    assert!(told(&checked).contains(" 0 warnings"), "{}", told(&checked));
    let world = World::new().unwrap();
    for (identity, method, path, verdict) in [
        ("frontend", "GET", "/api/orders", "allow"),
        ("frontend", "POST", "/api/orders", "deny"),
        ("frontend", "GET", "/admin", "deny"),
        ("web", "GET", "/api/orders", "deny"),
    ] {
        let question = format!(
            "{{\"direction\":\"inbound\",\"mtls\":true,\"source\":{{\"identity\":\"spiffe://example.org/ns/production/sa/{identity}\",\"ip\":\"10.0.0.5\"}},\
             \"destination\":{{\"workload\":\"production/web\",\"ip\":\"10.0.0.9\",\"port\":8080,\"protocol\":\"TCP\"}},\
             \"http\":{{\"method\":\"{method}\",\"path\":\"{path}\",\"host\":\"web\",\"headers\":{{}}}}}}\n"
        );
        let question = world.write("question", &question).unwrap();
        let decide = format!(
            "{} decide --policies {policies} --workloads {workloads} --trust-domain example.org < {}",
            binaries().unwrap().join("postern-policy").display(),
            question.display()
        );
        let output = run("sh", &["-c", &decide]).unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected = format!("\"verdict\":\"{verdict}\"");
        assert!(
            answer.contains(&expected),
            "{identity} {method} {path}: {answer}{}",
            told(&output)
        );
    }
}
