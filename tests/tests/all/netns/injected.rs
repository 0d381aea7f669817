//! What `inject` puts into a pod, run as a kubelet would: the same commands, users and environment, in
//! a network namespace.

use std::fs;

use postern_tests::root;
use serde_json::{Value, json};

use super::{
    mesh::{APP, Mesh},
    pods::{ANSWER, FRONTEND, OUTSIDE, Server, WEB, addresses, ask},
};
use crate::inject::inject;

fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap()
}

/// The containers that a pod with this annotation gets, the rules' and the proxy's.
fn containers(annotations: &Value) -> (Value, Value) {
    let security = json!({"capabilities": {"drop": ["ALL"]}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "annotations": annotations},
        "spec": {"containers": [{"name": "a", "image": "a", "securityContext": security}]}
    });
    let output = inject(pod.to_string().as_bytes(), &[]);
    let pod: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |index| at(&pod, &format!("/spec/initContainers/{index}")).clone();
    (of(0), of(1))
}

/// A container's command behind the program, with the configuration where this test has it.
fn arguments(container: &Value, config: &str) -> Vec<String> {
    let command = at(container, "/command").as_array().unwrap();
    let words = command.iter().skip(1).map(|word| word.as_str().unwrap());
    let words = words.map(|word| word.replace("/etc/postern/proxy.yaml", config));
    words.collect()
}

fn start(mesh: &mut Mesh, pod: &'static str, (rules, proxy): &(Value, Value)) {
    let folder = mesh.world.path().display().to_string();
    let example = root().join("deploy/kubernetes/overlays/example/proxy.yaml");
    let example = fs::read_to_string(example).unwrap();
    let log = format!("{folder}/logs/{pod}.log");
    let config = format!(
        "{}policies: {{directory: policies}}\nworkloads: {{directory: directory}}\n",
        example.replace("/dev/stdout", &log)
    );
    let config = mesh.world.write(&format!("{pod}.yaml"), &config).unwrap();
    let config = config.display().to_string();

    let setup = arguments(rules, &config);
    let setup: Vec<&str> = setup.iter().skip(2).map(String::as_str).collect();
    mesh.net.set_up(pod, &setup);

    let uid = at(proxy, "/securityContext/runAsUser").as_u64().unwrap();
    let program = mesh.world.path().join(pod).display().to_string();
    let uid = u32::try_from(uid).unwrap();
    let mut command = mesh.net.command(pod, uid, &[], &program);
    command.args(arguments(proxy, &config));
    let endpoint = at(proxy, "/env/0/value").as_str().unwrap();
    let endpoint = endpoint.replace("/run/postern", &format!("{folder}/public"));
    command.env(at(proxy, "/env/0/name").as_str().unwrap(), endpoint);
    mesh.world.spawn(pod, &mut command).unwrap();
    mesh.world.said(pod, "ready").unwrap();

    // As the kubelet asks, from outside the pod.
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let get = at(proxy, &format!("/{probe}/httpGet"));
        let port = at(get, "/port").as_u64().unwrap();
        let to = (addresses(pod)[0], u16::try_from(port).unwrap());
        let path = at(get, "/path").as_str().unwrap();
        let answer = ask(&mesh.net, OUTSIDE, to, "GET", path);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{probe}: {answer}");
    }
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_what_inject_puts_into_a_pod_serves_it() {
    let mut mesh = Mesh::bare();
    let excluded = Server::start(&mesh.net, WEB, 9100);
    let open = json!({"traffic.sidecar.istio.io/excludeInboundPorts": "9100"});
    start(&mut mesh, WEB, &containers(&open));
    start(&mut mesh, FRONTEND, &containers(&json!({})));
    let web = addresses(WEB)[0];
    let from = |place, port, method| ask(&mesh.net, place, (web, port), method, "/api/orders");
    assert!(from(FRONTEND, APP, "GET").ends_with(ANSWER));
    assert!(from(FRONTEND, APP, "PUT").starts_with("HTTP/1.1 403 "));
    // Without an identity only the port that the annotation names is reached.
    assert!(!from(OUTSIDE, APP, "GET").contains("HTTP"));
    assert!(from(OUTSIDE, 9100, "GET").ends_with(ANSWER));
    assert_eq!((mesh.app.reached(), excluded.reached()), (1, 1));
}
