//! The admission webhook, asked by curl as an API server asks.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use postern_tests::{
    binaries,
    certificates::Authority,
    eventually, root, run,
    world::{World, free_address},
};
use rcgen::ExtendedKeyUsagePurpose;
use rustix::process::Signal;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{inject, judged, told};

const NAME: &str = "postern-webhook.postern-webhook.svc";

/// A webhook with what `deploy/kubernetes/secrets` makes.
struct Webhook {
    world: World,
    address: SocketAddr,
}

/// Writes what stands under a name in a Secret.
fn extract(yaml: &str, name: &str, to: &Path) {
    let line = yaml.lines().find_map(|line| line.trim().strip_prefix(name));
    let text = STANDARD.decode(line.unwrap().trim()).unwrap();
    fs::write(to, text).unwrap();
}

/// Runs the script, and lays out what its Secrets would be in pods.
pub(super) fn secrets(folder: &Path) {
    let script = root().join("deploy/kubernetes/secrets");
    let made = folder.join("secrets");
    let output = run(script.to_str().unwrap(), &[made.to_str().unwrap()]).unwrap();
    assert!(output.status.success(), "{}", told(&output));
    let secrets = fs::read_to_string(made.join("secrets.yaml")).unwrap();
    let patch = fs::read_to_string(made.join("ca-bundle.yaml")).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt", "ca.key", "root.crt"] {
        extract(&secrets, &format!("{name}:"), &folder.join(name));
    }
    extract(&secrets, "client-ca.crt:", &folder.join("client-ca.crt"));
    extract(&patch, "caBundle:", &folder.join("bundle.crt"));
    // What the API server shows, by its kubeConfigFile.
    let shown = fs::read_to_string(made.join("apiserver/kubeconfig.yaml")).unwrap();
    assert!(shown.contains(&format!("name: {NAME}\n")), "{shown}");
    for name in ["certificate", "key"] {
        let file = folder.join(format!("apiserver.{name}"));
        extract(&shown, &format!("client-{name}-data:"), &file);
    }
}

impl Webhook {
    fn start() -> Self {
        Self::with(&[])
    }

    /// With more options, each with a file.
    fn with(more: &[(&str, &str)]) -> Self {
        let mut world = World::new().unwrap();
        secrets(world.path());
        let address = free_address().unwrap();
        let mut command = Command::new(binaries().unwrap().join("postern-proxy"));
        command.args(["inject", "--webhook", "--listen", &address.to_string()]);
        let usual = [("--tls-cert", "tls.crt"), ("--tls-key", "tls.key")];
        for (option, name) in usual.iter().chain(more) {
            command.arg(option).arg(world.path().join(name));
        }
        world.spawn("webhook", &mut command).unwrap();
        world.said("webhook", "ready").unwrap();
        Self { world, address }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.world.path().join(name)
    }

    /// Asks by curl, and tells the status, or 0 and why there is none.
    fn curl(&self, bundle: &str, path: &str, options: &[&str]) -> (u16, String) {
        let port = self.address.port();
        let url = format!("https://{NAME}:{port}{path}");
        let resolve = format!("{NAME}:{port}:127.0.0.1");
        let bundle = self.file(bundle).display().to_string();
        let usual = [
            "-sS",
            "-m",
            "20",
            "--cacert",
            &bundle,
            "--resolve",
            &resolve,
        ];
        let show = ["-w", "\n%{http_code}", &url];
        let output = run("curl", &[&usual, options, &show].concat()).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or_default();
        match status.parse() {
            Ok(status @ 1..) => (status, body.to_owned()),
            _ => (0, told(&output)),
        }
    }

    fn post(&self, body: &[u8], content_type: &str) -> (u16, String) {
        self.post_as(None, body, content_type)
    }

    /// With a certificate and its key.
    fn post_as(&self, who: Option<[&str; 2]>, body: &[u8], content_type: &str) -> (u16, String) {
        let path = self.file("question");
        fs::write(&path, body).unwrap();
        let data = format!("@{}", path.display());
        let kind = format!("content-type: {content_type}");
        let files = who.map(|who| who.map(|name| self.file(name).display().to_string()));
        let mut options = vec!["-X", "POST", "-H", &kind, "--data-binary", &data];
        if let Some([certificate, key]) = &files {
            options.extend(["--cert", certificate, "--key", key]);
        }
        self.curl("bundle.crt", "/inject", &options)
    }

    /// What is answered to a review.
    fn review(&self, review: &Value) -> Value {
        let (status, body) = self.post(review.to_string().as_bytes(), "application/json");
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(at(&answer, "/apiVersion"), "admission.k8s.io/v1");
        assert_eq!(at(&answer, "/kind"), "AdmissionReview");
        assert_eq!(at(&answer, "/response/uid"), at(review, "/request/uid"));
        at(&answer, "/response").clone()
    }
}

fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap()
}

/// As an API server of version 1.33 sends it.
fn review(object: &Value) -> Value {
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "production",
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "uid": "16fc5a5e-2d4a-4e4c-8d4a-0d7bb6f7c9a1",
                "groups": ["system:serviceaccounts", "system:authenticated"]
            },
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}
        }
    })
}

/// A pod as a ReplicaSet makes it, after the API server has put its defaults in.
fn pod() -> Value {
    let mounts = json!([{
        "name": "kube-api-access-x7gq2",
        "readOnly": true,
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"
    }]);
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "generateName": "web-7d4b9c6f5-",
            "labels": {"app": "web", "pod-template-hash": "7d4b9c6f5"},
            "annotations": {},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d4b9c6f5",
                "uid": "5c4f9b7a-1d2e-4f60-9c1b-3a8d7e6f5b4c",
                "controller": true, "blockOwnerDeletion": true
            }]
        },
        "spec": {
            "volumes": [{
                "name": "kube-api-access-x7gq2",
                "projected": {
                    "sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}],
                    "defaultMode": 420
                }
            }],
            "containers": [{
                "name": "web", "image": "example.org/web:1",
                "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                "resources": {},
                "volumeMounts": mounts,
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
                "securityContext": {"capabilities": {"drop": ["ALL"]}}
            }],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "web",
            "securityContext": {},
            "schedulerName": "default-scheduler",
            "enableServiceLinks": true
        },
        "status": {}
    })
}

/// RFC 6902, the one operation that is used.
fn patched(object: &Value, response: &Value) -> Value {
    assert_eq!(at(response, "/patchType"), "JSONPatch");
    let patch = at(response, "/patch").as_str().unwrap();
    let patch: Vec<Value> = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
    let mut object = object.clone();
    for operation in patch {
        assert_eq!(at(&operation, "/op"), "add");
        let value = at(&operation, "/value").clone();
        let path = at(&operation, "/path").as_str().unwrap();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = object.pointer_mut(parent).unwrap();
        match parent.as_array_mut() {
            Some(items) => items.insert(key.parse().unwrap(), value),
            None => {
                let replaced = parent
                    .as_object_mut()
                    .unwrap()
                    .insert(key.to_owned(), value);
                assert!(replaced.is_none(), "{path}");
            }
        }
    }
    object
}

#[test]
fn a_pod_is_given_what_the_command_gives_it() {
    let webhook = Webhook::start();
    let mut with_more = pod();
    with_more["spec"]["initContainers"] = json!([{
        "name": "wait", "image": "busybox", "securityContext": {"capabilities": {"drop": ["ALL"]}}
    }]);
    with_more["spec"].as_object_mut().unwrap().remove("volumes");
    with_more["spec"]["containers"][0]
        .as_object_mut()
        .unwrap()
        .remove("volumeMounts");
    with_more["metadata"]["annotations"] =
        json!({"traffic.sidecar.istio.io/excludeInboundPorts": "9100"});
    for object in [pod(), with_more] {
        let response = webhook.review(&review(&object));
        assert_eq!(response["allowed"], true, "{response}");
        let injected = patched(&object, &response);
        let first = injected["spec"]["initContainers"].as_array().unwrap();
        assert_eq!(first[0]["name"], "postern-netns");
        assert_eq!(first[1]["restartPolicy"], "Always");

        let by_command = inject(object.to_string().as_bytes(), &[]).stdout;
        let by_command: Value = serde_json::from_slice(&by_command).unwrap();
        assert_eq!(injected, by_command);
        let path = webhook
            .world
            .write("pod.json", &injected.to_string())
            .unwrap();
        judged(&["validate", "1.29", path.to_str().unwrap()]);

        // Asked again, as `reinvocationPolicy` has it, there is nothing to add.
        let again = webhook.review(&review(&injected));
        assert_eq!(
            (&again["allowed"], &again["patch"]),
            (&json!(true), &Value::Null)
        );
    }
}

#[test]
fn a_pod_that_can_undo_its_rules_is_refused_and_its_twin_is_not() {
    let webhook = Webhook::start();
    for (pointer, bad, good, field) in [
        (
            "/spec/hostNetwork",
            json!(true),
            json!(false),
            "`spec.hostNetwork` is on",
        ),
        (
            "/spec/securityContext",
            json!({"runAsUser": 1337}),
            json!({"runAsUser": 1336}),
            "`spec.securityContext.runAsUser` is 1337",
        ),
        (
            "/spec/containers/0/securityContext",
            json!({"privileged": true}),
            json!({"privileged": false, "capabilities": {"drop": ["ALL"]}}),
            "`spec.containers[0].securityContext.privileged` is on",
        ),
        (
            "/spec/containers/0/securityContext/capabilities",
            json!({"add": ["NET_ADMIN"]}),
            json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
            "`spec.containers[0].securityContext.capabilities.add[0]` adds NET_ADMIN",
        ),
        (
            "/metadata/annotations",
            json!({"traffic.sidecar.istio.io/excludeInboundPorts": "15006"}),
            json!({"traffic.sidecar.istio.io/excludeInboundPorts": "15007"}),
            "15006 is the proxy's own",
        ),
        (
            "/spec/containers/0/name",
            json!("postern-proxy"),
            json!("proxy"),
            "`spec.containers[0]` has the name of an init container of the sidecar",
        ),
    ] {
        let with = |value: &Value| {
            let mut object = pod();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[key] = value.clone();
            webhook.review(&review(&object))
        };
        let refused = with(&bad);
        assert_eq!(refused["allowed"], false, "{pointer}");
        assert_eq!(refused["status"]["code"], 403);
        assert_eq!(refused["patch"], Value::Null);
        let message = refused["status"]["message"].as_str().unwrap();
        assert!(message.contains(field), "`{field}` in {message}");
        let taken = with(&good);
        assert_eq!(taken["allowed"], true, "{pointer}: {taken}");
        assert!(taken["patch"].is_string(), "{pointer}: {taken}");
    }
    // What is no reason to refuse is told.
    let mut object = pod();
    object["metadata"]["annotations"] = json!({"proxy.istio.io/config": "{}"});
    let response = webhook.review(&review(&object));
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.contains("`metadata.annotations[\"proxy.istio.io/config\"]`"));
}

#[test]
fn one_who_floods_does_not_keep_others_from_their_answer() {
    let webhook = Webhook::start();
    let silent: Vec<TcpStream> = (0..64)
        .map(|_| TcpStream::connect(webhook.address).unwrap())
        .collect();
    assert_eq!(webhook.curl("bundle.crt", "/healthz/live", &[]).0, 200);
    let mut many = pod();
    let keys = (0..20_000).map(|index| (format!("istio.io/k{index}"), json!("x")));
    many["metadata"]["annotations"] = Value::Object(keys.collect());
    assert_eq!(webhook.review(&review(&many))["allowed"], true);
    let mut more = pod();
    more["spec"]["containers"] = json!(vec![0; 1_900_000]);
    let refused = webhook.review(&review(&more));
    assert_eq!(refused["allowed"], false, "{refused}");
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(message.contains("more than 50000 values"), "{message}");
    drop(silent);
}

#[test]
fn what_is_no_new_pod_or_wants_no_sidecar_is_left_alone() {
    let webhook = Webhook::start();
    let mut out = pod();
    out["metadata"]["annotations"] = json!({"sidecar.istio.io/inject": "false"});
    out["spec"]["hostNetwork"] = json!(true);
    let mut update = review(&pod());
    update["request"]["operation"] = json!("UPDATE");
    let mut part = review(&pod());
    part["request"]["subResource"] = json!("ephemeralcontainers");
    let mut other = review(&pod());
    other["request"]["kind"] = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    for review in [review(&out), update, part, other] {
        let response = webhook.review(&review);
        assert_eq!(response["allowed"], true, "{response}");
        assert_eq!(response["patch"], Value::Null, "{response}");
    }
}

#[test]
fn what_is_no_review_is_refused_and_bounded() {
    let webhook = Webhook::start();
    let good = review(&pod()).to_string();
    let json = "application/json";
    assert_eq!(
        webhook
            .post(good.as_bytes(), "application/json; charset=utf-8")
            .0,
        200
    );
    let old = good.replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1");
    let without = good.replace("\"uid\"", "\"no\"");
    let limit = 4 << 20;
    let mut large = good.clone().into_bytes();
    large.resize(limit, b' ');
    assert_eq!(webhook.post(&large, json).0, 200);
    large.push(b' ');
    for (body, kind, status, part) in [
        (good.as_bytes(), "text/plain", 415, "send application/json"),
        (b"{", json, 400, "no AdmissionReview"),
        (b"", json, 400, "no AdmissionReview"),
        (old.as_bytes(), json, 400, "admission.k8s.io/v1beta1"),
        (without.as_bytes(), json, 400, "uid"),
        (&large, json, 413, "at most 4 MiB"),
    ] {
        let (got, said) = webhook.post(body, kind);
        assert_eq!(got, status, "{said}");
        assert!(said.contains(part), "`{part}` in {said}");
    }
    let get = |bundle: &str, path: &str, options: &[&str]| webhook.curl(bundle, path, options).0;
    assert_eq!(get("bundle.crt", "/healthz/ready", &[]), 200);
    assert_eq!(get("bundle.crt", "/healthz/live", &[]), 200);
    assert_eq!(get("bundle.crt", "/inject", &[]), 405);
    assert_eq!(get("bundle.crt", "/other", &[]), 404);
    // Another authority, an older TLS, no TLS.
    let (status, why) = webhook.curl("root.crt", "/healthz/ready", &[]);
    assert!(status == 0 && why.contains("certificate"), "{why}");
    let (status, why) = webhook.curl("bundle.crt", "/healthz/ready", &["--tls-max", "1.2"]);
    assert!(
        status == 0 && why.contains("alert protocol version"),
        "{why}"
    );
    let plain = format!("http://{}/healthz/ready", webhook.address);
    assert!(
        !run("curl", &["-sS", "-m", "20", &plain])
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn callers_that_say_nothing_make_room_for_others() {
    let webhook = Webhook::start();
    let silent: Vec<TcpStream> = (0..64)
        .map(|_| TcpStream::connect(webhook.address).unwrap())
        .collect();
    assert_eq!(webhook.curl("bundle.crt", "/healthz/ready", &[]).0, 200);
    drop(silent);
}

#[test]
fn a_renewed_certificate_is_taken_up_and_a_bad_one_is_not() {
    let webhook = Webhook::start();
    let answers = |bundle: &str| webhook.curl(bundle, "/healthz/ready", &[]).0 == 200;
    assert!(answers("bundle.crt"));
    fs::copy(webhook.file("bundle.crt"), webhook.file("old.crt")).unwrap();
    fs::write(webhook.file("tls.crt"), "no certificate\n").unwrap();
    webhook
        .world
        .said("webhook", "the webhook's certificate cannot be replaced")
        .unwrap();
    assert!(answers("old.crt"), "the last good one stays");
    let root = fs::read(webhook.file("root.crt")).unwrap();
    secrets(webhook.world.path());
    assert_eq!(fs::read(webhook.file("root.crt")).unwrap(), root);
    eventually("the new certificate", || {
        answers("bundle.crt").then_some(())
    })
    .unwrap();
    assert!(!answers("old.crt"));
}

#[test]
fn it_ends_when_it_is_told_to_and_does_not_start_without_its_files() {
    let mut webhook = Webhook::start();
    webhook.world.signal("webhook", Signal::TERM).unwrap();
    assert_eq!(webhook.world.ended("webhook").unwrap(), Some(0));
    let program = binaries().unwrap().join("postern-proxy");
    let (key, missing) = (webhook.file("tls.key"), webhook.file("missing.crt"));
    let arguments = [
        "inject",
        "--webhook",
        "--listen",
        "127.0.0.1:0",
        "--tls-key",
    ];
    let arguments = [
        &arguments as &[&str],
        &[key.to_str().unwrap(), "--tls-cert"],
    ]
    .concat();
    let other = webhook.file("ca.crt");
    for (certificate, part) in [
        (missing, "missing.crt`"),
        (other, "cannot be used together"),
    ] {
        let arguments = [&arguments as &[&str], &[certificate.to_str().unwrap()]].concat();
        let output = run(program.to_str().unwrap(), &arguments).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(told(&output).contains(part), "{}", told(&output));
    }
}

#[test]
fn where_an_authority_of_clients_is_named_only_its_own_are_answered() {
    let webhook = Webhook::with(&[("--client-ca", "client-ca.crt")]);
    let folder = webhook.world.path();
    let (own, other) = (
        Authority::new("own.test").unwrap(),
        Authority::new("other.test").unwrap(),
    );
    let id = "spiffe://own.test/apiserver";
    other.write_leaf(folder, "other", id, |_| {}).unwrap();
    let body = review(&pod()).to_string();
    let ask = |who: Option<[&str; 2]>| webhook.post_as(who, body.as_bytes(), "application/json");
    let api_server = Some(["apiserver.certificate", "apiserver.key"]);
    let (status, answer) = ask(api_server);
    assert!(
        status == 200 && answer.contains("\"allowed\":true"),
        "{answer}"
    );
    let (status, why) = ask(None);
    assert!(status == 401 && why.contains("--client-ca"), "{why}");
    let is_cut = |who: [&str; 2]| {
        let (status, why) = ask(Some(who));
        assert!(status == 0 && why.contains("alert"), "{who:?}: {why}");
    };
    is_cut(["other.crt", "other.key"]);
    // The webhook's own certificate is one for servers, of another authority.
    is_cut(["tls.crt", "tls.key"]);
    // The kubelet asks without one.
    for path in ["/healthz/ready", "/healthz/live"] {
        assert_eq!(webhook.curl("bundle.crt", path, &[]).0, 200);
    }

    // Another authority in the file: a twin of each leaf, and who was taken before is not.
    own.write_leaf(folder, "own", id, |_| {}).unwrap();
    let servers = vec![ExtendedKeyUsagePurpose::ServerAuth];
    own.write_leaf(folder, "server", id, |leaf| {
        leaf.extended_key_usages = servers
    })
    .unwrap();
    let past = OffsetDateTime::from(SystemTime::now()) - time::Duration::minutes(1);
    own.write_leaf(folder, "expired", id, |leaf| leaf.not_after = past)
        .unwrap();
    is_cut(["own.crt", "own.key"]);
    webhook.world.write("client-ca.crt", &own.pem).unwrap();
    webhook
        .world
        .said("webhook", "the webhook's certificate was replaced")
        .unwrap();
    assert_eq!(ask(Some(["own.crt", "own.key"])).0, 200);
    is_cut(["server.crt", "server.key"]);
    is_cut(["expired.crt", "expired.key"]);
    is_cut(["apiserver.certificate", "apiserver.key"]);

    // A file without an authority is no authority of everybody.
    webhook.world.write("client-ca.crt", "").unwrap();
    webhook
        .world
        .told("webhook", "client-ca.crt` holds no certificate")
        .unwrap();
    assert_eq!(ask(None).0, 401);
    let (status, _) = ask(Some(["own.crt", "own.key"]));
    assert_eq!(status, 200, "the last good one stays");
}

#[test]
fn no_session_is_resumed_where_clients_are_proven() {
    let webhook = Webhook::with(&[("--client-ca", "client-ca.crt")]);
    let address = webhook.address.to_string();
    let file = |name: &str| webhook.file(name).display().to_string();
    let (certificate, key) = (file("apiserver.certificate"), file("apiserver.key"));
    let line = format!(
        "printf 'GET /healthz/live HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n' | \
         timeout 20 openssl s_client -connect {address} -cert {certificate} -key {key} -ign_eof"
    );
    let output = run("sh", &["-c", &line]).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("200 OK"), "{said}");
    assert!(!said.contains("New Session Ticket arrived"), "{said}");
}
