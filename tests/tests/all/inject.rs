//! `postern-proxy inject` on manifests in the shapes that people have, judged by the schemas of
//! Kubernetes; what is refused, and by which field.

mod annotations;
mod deploy;
mod webhook;

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use postern_tests::{binaries, root, run, world::World};

/// Each manifest, how many sidecars it gets, and how many warnings.
const MANIFESTS: [(&str, usize, usize); 20] = [
    ("anchors.yaml", 1, 0),
    ("comments.yaml", 1, 0),
    ("compose-v2.yaml", 1, 0),
    ("compose-v3.yaml", 2, 0),
    ("crlf.yaml", 1, 0),
    ("cronjob.yaml", 1, 0),
    ("daemonset.yaml", 1, 0),
    ("flow-deployment.yaml", 1, 0),
    ("flow-pod.yaml", 1, 0),
    ("flow-pretty.json", 1, 0),
    ("helm.yaml", 2, 0),
    ("istio-sample.yaml", 1, 4),
    ("job.yaml", 1, 0),
    ("list.yaml", 2, 0),
    ("native.yaml", 1, 0),
    ("no-newline.yaml", 1, 0),
    ("opted-out.yaml", 0, 0),
    ("others.yaml", 0, 0),
    ("replicaset.yaml", 1, 0),
    ("statefulset.yaml", 1, 0),
];

fn manifests() -> PathBuf {
    root().join("tests/manifests")
}

/// Gives a text by standard input.
pub(crate) fn inject(text: &[u8], options: &[&str]) -> Output {
    let mut command = Command::new(binaries().unwrap().join("postern-proxy"));
    command.args(["inject", "-f", "-"]).args(options);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = text.to_owned();
    let writing = std::thread::spawn(move || input.write_all(&text));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    output
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A program of ours in Python, with the libraries that `tests/run` installs.
fn judge(arguments: &[&str]) -> Output {
    let python = root().join("target/python/bin/python");
    let script = root().join("tests/python/manifests.py");
    let arguments = [&[script.to_str().unwrap()], arguments].concat();
    run(python.to_str().unwrap(), &arguments).unwrap()
}

/// What it says where it finds something wrong.
#[track_caller]
fn judged_wrong(arguments: &[&str]) -> String {
    let output = judge(arguments);
    assert!(!output.status.success(), "{arguments:?} is well");
    told(&output)
}

fn judged(arguments: &[&str]) -> String {
    let output = judge(arguments);
    assert!(output.status.success(), "{}", told(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Is the first a part of the second, in its order?
fn is_left<T: PartialEq>(
    mut before: impl Iterator<Item = T>,
    mut after: impl Iterator<Item = T>,
) -> bool {
    before.all(|one| after.any(|other| one == other))
}

#[track_caller]
fn check(world: &World, name: &str, sidecars: usize, warnings: usize) -> String {
    let path = manifests().join(name);
    let before = fs::read_to_string(&path).unwrap();
    let output = inject(before.as_bytes(), &[]);
    let error = told(&output);
    assert!(output.status.success(), "{name}: {error}");
    assert_eq!(
        error.matches(": warning: ").count(),
        warnings,
        "{name}: {error}"
    );
    let after = String::from_utf8(output.stdout).unwrap();
    let runs = after.matches("/postern-proxy, run").count()
        + after.matches("\"/postern-proxy\", \"run\"").count();
    assert_eq!(runs, sidecars, "{name}: {after}");

    // Nothing is taken out. Lines are added, and where there are none to add to, letters.
    assert!(is_left(before.chars(), after.chars()), "{name}: {after}");
    let in_a_line = name.starts_with("flow") || !before.ends_with('\n');
    let (old, new) = (before.split_inclusive('\n'), after.split_inclusive('\n'));
    assert!(in_a_line || is_left(old, new), "{name}: {after}");
    if before.contains("\r\n") {
        assert_eq!(after.matches('\n').count(), after.matches("\r\n").count());
    }
    if sidecars == 0 {
        assert_eq!(before, after, "{name}");
    }
    let again = inject(after.as_bytes(), &[]);
    assert!(again.status.success(), "{name}: {}", told(&again));
    assert_eq!(String::from_utf8(again.stdout).unwrap(), after, "{name}");

    let written = world.write(name, &after).unwrap();
    let (before, after) = (path.to_str().unwrap(), written.to_str().unwrap());
    judged(&["same", before, after]);
    judged(&["validate", "1.29", after])
}

#[test]
fn every_shape_of_manifest_gets_its_sidecar_and_nothing_else_changes() {
    let world = World::new().unwrap();
    let mut names: Vec<String> = fs::read_dir(manifests())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, MANIFESTS.map(|(name, _, _)| name));
    for (name, sidecars, warnings) in MANIFESTS {
        check(&world, name, sidecars, warnings);
    }
}

#[test]
fn several_files_become_one_stream() {
    let file = |name: &str| manifests().join(name).display().to_string();
    let program = binaries().unwrap().join("postern-proxy");
    let (one, other) = (file("no-newline.yaml"), file("list.yaml"));
    let output = run(
        program.to_str().unwrap(),
        &["inject", "-f", &one, "--filename", &other],
    )
    .unwrap();
    assert!(output.status.success(), "{}", told(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("/postern-proxy, run").count(), 3);
    assert!(text.contains("\n---\napiVersion: v1\nkind: List"), "{text}");
    let again = inject(text.as_bytes(), &[]);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), text);
}

/// A pod with something in its annotations, its spec and its container.
fn pod(annotations: &str, spec: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations: {{{annotations}}}\n\
         spec:\n  {spec}\n  containers:\n  - name: a\n    image: a\n    {container}\n"
    )
}

const HARMLESS: &str = "securityContext: {capabilities: {drop: [ALL]}}";

#[track_caller]
fn refused(text: &str, options: &[&str], line: usize, part: &str) {
    let output = inject(text.as_bytes(), options);
    let error = told(&output);
    assert_eq!(output.status.code(), Some(1), "{text}{error}");
    assert!(output.stdout.is_empty(), "nothing is printed");
    let at = format!("standard input:{line}:");
    let is_told = |told: &str| told.starts_with(&at) && told.contains(part);
    assert!(error.lines().any(is_told), "`{at} {part}` in {error}");
}

#[track_caller]
fn taken(text: &str, options: &[&str], parts: &[&str]) {
    let output = inject(text.as_bytes(), options);
    let error = told(&output);
    assert!(output.status.success(), "{text}{error}");
    let out = String::from_utf8(output.stdout).unwrap();
    for part in parts {
        assert!(out.contains(part), "`{part}` in {out}{error}");
    }
}

#[test]
fn what_leads_round_the_proxy_is_refused_by_its_field() {
    // Each beside its twin, which differs in one thing and is taken.
    for (spec, twin, line, field) in [
        (
            "hostNetwork: true",
            "hostNetwork: false",
            7,
            "`spec.hostNetwork` is on",
        ),
        (
            "hostNetwork: yes",
            "hostNetwork: ~",
            7,
            "`spec.hostNetwork` is on",
        ),
        ("hostPID: true", "hostPID: false", 7, "`spec.hostPID` is on"),
        (
            "securityContext: {runAsUser: 1337}",
            "securityContext: {runAsUser: 1336}",
            7,
            "`spec.securityContext.runAsUser` is 1337, the proxy's user",
        ),
        (
            "os: {name: windows}",
            "os: {name: linux}",
            7,
            "`spec.os.name` is `windows`",
        ),
        (
            "initContainers: [{name: istio-proxy}]",
            "initContainers: [{name: istio}]",
            7,
            "the pod has the sidecar of Istio already",
        ),
        (
            "initContainers: [{name: postern-proxy}]",
            "initContainers: [{name: postern}]",
            7,
            "`spec.initContainers[0]` is part of a sidecar that is not whole",
        ),
        (
            "initContainers: [{name: postern-netns}, {name: postern-proxy}]",
            "initContainers: [{name: postern-netns}, {name: postern-proxy, restartPolicy: Always}]",
            7,
            "not its `restartPolicy: Always`",
        ),
        (
            "volumes: [{name: postern-config}]",
            "volumes: [{name: config}]",
            7,
            "`spec.volumes[0].name` is that of a volume of the sidecar",
        ),
    ] {
        refused(&pod("", spec, HARMLESS), &[], line, field);
        taken(&pod("", twin, HARMLESS), &[], &["postern-proxy"]);
    }
    for (container, twin, field) in [
        (
            "securityContext: {runAsUser: 0x539}",
            "securityContext: {runAsUser: 0x53a}",
            "`spec.containers[0].securityContext.runAsUser` is 0x539",
        ),
        (
            "securityContext: {runAsUser: app}",
            "securityContext: {runAsUser: 7}",
            "is `app`, which is no user",
        ),
        (
            "securityContext: {privileged: true}",
            "securityContext: {privileged: false}",
            "`spec.containers[0].securityContext.privileged` is on",
        ),
        (
            "securityContext: {capabilities: {add: [NET_ADMIN]}}",
            "securityContext: {capabilities: {add: [NET_BIND_SERVICE]}}",
            "`spec.containers[0].securityContext.capabilities.add[0]` adds NET_ADMIN",
        ),
        (
            "securityContext: {capabilities: {add: [CHOWN, cap_net_raw]}}",
            "securityContext: {capabilities: {add: [CHOWN]}}",
            "capabilities.add[1]` adds NET_RAW",
        ),
        (
            "ports: [{containerPort: 15006}]",
            "ports: [{containerPort: 15005}]",
            "`spec.containers[0].ports[0].containerPort` is 15006, a port of the proxy",
        ),
        (
            "ports: [{containerPort: 15020}]",
            "ports: [{containerPort: 15021}]",
            "is 15020, a port of the proxy",
        ),
    ] {
        refused(&pod("", "", container), &[], 11, field);
        taken(&pod("", "", twin), &[], &["postern-proxy"]);
    }
    // The proxy's user is what it was told to be.
    let clash = pod("", "securityContext: {runAsUser: 4000}", HARMLESS);
    taken(&clash, &[], &["runAsUser: 1337", "--proxy-uid, \"1337\""]);
    refused(&clash, &["--proxy-uid", "4000"], 7, "the proxy's user");
    // Who says so gets a warning.
    let privileged = pod("", "", "securityContext: {privileged: true}");
    taken(&privileged, &["--insecure-allow-undo"], &["postern-proxy"]);
}

#[test]
fn what_cannot_be_read_or_edited_is_refused_whole() {
    for (text, line, part) in [
        ("a: [\n", 1, "unclosed bracket"),
        ("kind: {{ .Values.kind }}\n", 1, "helm template"),
        ("a: 1\n", 1, "has no `kind`"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nspec: {}\n",
            1,
            "the Deployment has no `spec.template.spec`",
        ),
        (
            "apiVersion: v1\nkind: Pod\nspec: {containers: []}\n",
            3,
            "`spec.containers` must be a list with a container",
        ),
        (
            "apiVersion: v1\nkind: Pod\nkind: Pod\n",
            3,
            "duplicate key `kind`",
        ),
        (
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, spec: &s {containers: [{name: a}]}}\n\
             - {apiVersion: v1, kind: Pod, spec: *s}\n",
            5,
            "write it out",
        ),
    ] {
        refused(text, &[], line, part);
    }
    let output = inject(b"\xff\xfe", &[]);
    assert!(told(&output).contains("this is not UTF-8"));
    // One bad document among good ones: nothing is printed.
    let good = pod("", "", HARMLESS);
    refused(
        &format!("{good}---\n{}", pod("", "hostNetwork: true", HARMLESS)),
        &[],
        19,
        "hostNetwork",
    );
    let program = binaries().unwrap().join("postern-proxy");
    let program = program.to_str().unwrap();
    for (arguments, code) in [
        (&["inject"] as &[&str], 2),
        (&["inject", "-f", "/nowhere.yaml"], 1),
        (&["inject", "-f", "-", "--proxy-uid", "0"], 2),
        (&["inject", "-f", "-", "--agent-socket", "agent.sock"], 2),
        (&["inject", "-f", "-", "--proxy-image", "a b"], 2),
        (
            &["inject", "-f", "-", "--exclude-inbound-ports", "22,15006"],
            2,
        ),
        (
            &["inject", "-f", "-", "--exclude-outbound-cidrs", "::/0"],
            2,
        ),
        (&["inject", "--webhook"], 2),
        (&["inject", "-f", "-", "--tls-cert", "a"], 2),
    ] {
        let output = run(program, arguments).unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            told(&output)
        );
    }
}

#[test]
fn services_of_compose_are_judged_like_pods() {
    let file = |service: &str| {
        format!("services:\n  web:\n    image: a\n    cap_drop: [ALL]\n    {service}\n")
    };
    for (service, twin, part) in [
        (
            "network_mode: host",
            "network_mode: bridge",
            "`services.web.network_mode` is `host`",
        ),
        (
            "privileged: true",
            "privileged: false",
            "`services.web.privileged` is on",
        ),
        (
            "cap_add: [NET_ADMIN]",
            "cap_add: [CHOWN]",
            "`services.web.cap_add[0]` adds NET_ADMIN",
        ),
        (
            "user: '1337'",
            "user: '1336'",
            "`services.web.user` is 1337, the proxy's user",
        ),
        (
            "user: 1337:1",
            "user: 1336:1337",
            "`services.web.user` is 1337, the proxy's user",
        ),
        (
            "pid: host",
            "pid: 'service:db'",
            "`services.web.pid` is `host`",
        ),
        ("scale: 2", "scale: 1", "`services.web.scale` is not 1"),
        (
            "deploy: {replicas: 3}",
            "deploy: {replicas: 1}",
            "`services.web.deploy.replicas` is not 1",
        ),
    ] {
        refused(&file(service), &[], 5, part);
        taken(
            &file(twin),
            &[],
            &[
                "  web-postern:\n",
                "  web-postern-netns:\n",
                "network_mode: service:web\n",
            ],
        );
    }
    // Who shares the network of a sidecar could undo it as well; without a sidecar there is nothing to undo.
    let beside = |label: &str, more: &str| {
        format!(
            "services:\n  web:\n    image: a\n    cap_drop: [ALL]\n    labels: {{{label}}}\n  other:\n    image: b\n    \
             network_mode: service:web\n    cap_drop: [ALL]\n    {more}\n"
        )
    };
    for (more, twin, part) in [
        (
            "cap_add: [NET_ADMIN]",
            "cap_add: [CHOWN]",
            "`services.other.cap_add[0]` adds NET_ADMIN",
        ),
        (
            "cap_add: [DAC_READ_SEARCH]",
            "cap_add: [DAC_OVERRIDE]",
            "`services.other.cap_add[0]` adds DAC_READ_SEARCH",
        ),
        (
            "privileged: true",
            "privileged: false",
            "`services.other.privileged` is on",
        ),
        (
            "user: '1337'",
            "user: '1336'",
            "`services.other.user` is 1337, the proxy's user",
        ),
    ] {
        refused(&beside("a: b", more), &[], 10, part);
        taken(&beside("a: b", twin), &[], &["  web-postern:\n"]);
        taken(&beside("postern.dev/inject: disabled", more), &[], &[]);
    }
    for port in ["8080:15001", "127.0.0.1:80:15006/tcp", "15020"] {
        let ports = file(&format!("ports: ['{port}']"));
        refused(
            &ports,
            &[],
            5,
            "`services.web.ports[0]` is a port of the proxy",
        );
    }
    taken(
        &file("ports: ['15001:8080', {target: 80}]"),
        &[],
        &["  web-postern:\n"],
    );
    refused(
        &file("ports: [{target: 15000}]"),
        &[],
        5,
        "is a port of the proxy",
    );
    let half = format!("{}  web-postern:\n    image: a\n", file(""));
    refused(&half, &[], 6, "part of a sidecar that is not whole");
    refused(
        &file(""),
        &["--csi-driver", "csi.spiffe.io"],
        1,
        "--csi-driver",
    );
}

#[test]
fn mounts_of_a_service_that_give_it_too_much_are_refused_by_their_field() {
    let file = |service: &str, more: &str| {
        format!("services:\n  web:\n    image: a\n    cap_drop: [ALL]\n    {service}\n{more}")
    };
    // Each beside its twin, which differs in one thing and is taken.
    for (service, twin, part) in [
        (
            "volumes: ['/:/host:ro']",
            "volumes: ['/srv:/host:ro']",
            "`services.web.volumes[0]` is `/`, with which the container reaches the agent's",
        ),
        (
            "volumes: ['a:/a', {type: bind, source: /var/run/docker.sock, target: /d, read_only: true}]",
            "volumes: ['a:/a', {type: bind, source: /var/run/app.sock, target: /d, read_only: true}]",
            "`services.web.volumes[1].source` is `/run/docker.sock`, with which the container asks the engine",
        ),
        (
            "volumes: ['/srv/../run/containerd:/c']",
            "volumes: ['/srv/run/containerd:/c']",
            "`services.web.volumes[0]` is `/run/containerd`",
        ),
        (
            "volumes: ['/proc:/p']",
            "volumes: ['/proc:/p:ro']",
            "`services.web.volumes[0]` is `/proc`, with which root in the container changes",
        ),
        (
            "volumes: [{type: bind, source: /sys, target: /s}]",
            "volumes: [{type: bind, source: /sys, target: /s, read_only: true}]",
            "`services.web.volumes[0].source` is `/sys`",
        ),
        (
            "volumes: ['${DATA:-/}:/data']",
            "volumes: ['${DATA:-/data}:/data']",
            "`services.web.volumes[0]` is `/`",
        ),
        (
            "use_api_socket: true",
            "use_api_socket: false",
            "`services.web.use_api_socket` is on",
        ),
    ] {
        refused(&file(service, ""), &[], 5, part);
        taken(
            &file(service, ""),
            &["--insecure-allow-undo"],
            &["  web-postern:\n"],
        );
        taken(&file(twin, ""), &[], &["  web-postern:\n"]);
    }
    // By way of a volume, a secret and another service, which has no sidecar of its own.
    for (service, more, twin, line, part) in [
        (
            "volumes: ['all:/all']",
            "volumes: {all: {driver_opts: {type: none, o: bind, device: /}}}\n",
            "volumes: {all: {driver_opts: {type: none, o: bind, device: /srv}}}\n",
            6,
            "`volumes.all.driver_opts.device` is `/`",
        ),
        (
            "secrets: [ca]",
            "secrets: {ca: {file: /var/lib/postern/authority.json}}\n",
            "secrets: {ca: {file: ./authority.json}}\n",
            6,
            "`secrets.ca.file` is `/var/lib/postern/authority.json`",
        ),
        (
            "volumes_from: ['tool:ro']",
            "  tool: {image: a, volumes: ['/run:/run'], labels: {postern.dev/inject: disabled}}\n",
            "  tool: {image: a, volumes: ['/runs:/run'], labels: {postern.dev/inject: disabled}}\n",
            6,
            "`services.tool.volumes[0]` is `/run`",
        ),
    ] {
        refused(&file(service, more), &[], line, part);
        taken(&file(service, twin), &[], &["  web-postern:\n"]);
    }
    // What is not known is told.
    for (service, more, part) in [
        (
            "volumes: ['/proc:/p:ro']",
            "",
            "`services.web.volumes[0]` is `/proc`: the container sees",
        ),
        (
            "volumes: ['$DATA:/d']",
            "",
            "`services.web.volumes[0]` is a path with a variable",
        ),
        (
            "volumes_from: ['container:db']",
            "",
            "`services.web.volumes_from[0]` takes volumes",
        ),
        (
            "extends: {file: b.yaml, service: b}",
            "",
            "`services.web.extends` takes from elsewhere",
        ),
        ("ipc: host", "", "`services.web.ipc` is `host`"),
        ("", "include: [b.yaml]\n", "`include` names files"),
    ] {
        let output = inject(file(service, more).as_bytes(), &[]);
        let error = told(&output);
        assert!(output.status.success(), "{error}");
        let told = format!("warning: {part}");
        assert!(error.contains(&told), "`{told}` in {error}");
    }
}

#[test]
fn places_of_the_node_that_give_a_pod_too_much_are_refused_by_their_field() {
    let with = |path: &str, read_only: bool| {
        let volumes = format!("volumes: [{{name: v, hostPath: {{path: {path}}}}}]");
        let mounts = format!(
            "{HARMLESS}\n    volumeMounts: [{{name: v, mountPath: /v, readOnly: {read_only}}}]"
        );
        pod("", &volumes, &mounts)
    };
    let field = "`spec.volumes[0].hostPath.path` is";
    for path in [
        "/",
        "/var/run/docker.sock",
        "/run/k3s/containerd/containerd.sock",
    ] {
        refused(&with(path, true), &[], 7, field);
        taken(
            &with(path, true),
            &["--insecure-allow-undo"],
            &["postern-proxy"],
        );
    }
    for path in ["/proc", "/sys/fs/cgroup"] {
        refused(&with(path, false), &[], 7, field);
        let output = inject(with(path, true).as_bytes(), &[]);
        assert!(output.status.success(), "{}", told(&output));
        assert!(told(&output).contains(&format!("warning: {field}")));
    }
    let output = inject(with("/srv", false).as_bytes(), &[]);
    assert!(output.status.success() && told(&output).is_empty());
}

#[test]
fn the_socket_comes_from_the_node_or_from_a_csi_driver() {
    let text = pod("", "", HARMLESS);
    taken(
        &text,
        &[
            "--agent-socket",
            "/run/spire/sockets/agent.sock",
            "--config-map",
            "mesh",
        ],
        &[
            "hostPath:\n      path: /run/spire/sockets\n      type: Directory",
            "value: unix:///run/postern/agent.sock",
            "configMap:\n      name: mesh",
        ],
    );
    taken(
        &text,
        &["--csi-driver", "csi.spiffe.io"],
        &["csi:\n      driver: csi.spiffe.io\n      readOnly: true"],
    );
}

/// Compose itself, which needs no engine to read a file.
#[test]
#[ignore = "needs docker-compose"]
fn docker_compose_takes_what_inject_prints() {
    let world = World::new().unwrap();
    for name in ["compose-v2.yaml", "compose-v3.yaml"] {
        let before = fs::read(manifests().join(name)).unwrap();
        let output = inject(&before, &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        let path = world.write(name, &text).unwrap();
        let read = run("docker-compose", &["-f", path.to_str().unwrap(), "config"]).unwrap();
        assert!(read.status.success(), "{name}: {}", told(&read));
        let shown = String::from_utf8(read.stdout).unwrap();
        assert!(shown.contains("-postern-netns:"), "{shown}");
    }
}
