//! What is known of a cluster, and what is made of it.

use std::sync::Arc;

use postern_policies::{Options, PolicySet, SourceFile};
use postern_spiffe::TrustDomain;
use serde_json::{Value, json};

use super::{
    Kind, Limits, Server, Snapshot, Template,
    cache::{Cache, Change, Full},
    object::Object,
};

fn server() -> Server {
    Server {
        url: None,
        token: "token".into(),
        authorities: "ca.crt".into(),
        node_name: Some("node-1".into()),
        root_namespace: "istio-system".into(),
        selectors: vec![Template::parse("k8s:pod-uid:{uid}").unwrap()],
        limits: Limits::default(),
    }
}

fn options() -> Options {
    Options::new(TrustDomain::parse("example.org").unwrap())
}

fn cache(limits: Limits) -> Cache {
    let server = Server { limits, ..server() };
    Cache::new(Arc::new(server), options())
}

fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

fn named(name: &str, spec: Value) -> Object {
    object(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "managedFields": [{}]},
        "spec": spec, "status": {"conditions": []},
    }))
}

fn pod(name: &str, node: &str, status: Value) -> Object {
    object(json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": {"app": "web"}},
        "spec": {"serviceAccountName": "web", "nodeName": node, "containers": [
            {"name": "app", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]},
        ]},
        "status": status,
    }))
}

fn running(ip: &str) -> Value {
    json!({"phase": "Running", "podIPs": [{"ip": ip}]})
}

/// All of it, as a proxy would read it.
fn load(snapshot: &Snapshot) -> PolicySet {
    let all = snapshot.directory.iter().chain(&snapshot.policies);
    let files: Vec<SourceFile> = all.map(|one| one.file.clone()).collect();
    PolicySet::load(&files, &options()).unwrap().set
}

fn texts(snapshot: &Snapshot) -> Vec<String> {
    let all = snapshot.policies.iter();
    all.map(|one| String::from_utf8(one.file.text.clone()).unwrap())
        .collect()
}

#[test]
fn a_pod_is_a_workload_of_its_account_on_its_own_node() {
    let mut cache = cache(Limits::default());
    cache
        .put(Kind::Pod, &pod("here", "node-1", running("10.0.0.1")))
        .unwrap();
    cache
        .put(Kind::Pod, &pod("there", "node-2", running("10.0.0.2")))
        .unwrap();
    cache
        .put(Kind::ServiceAccount, &named("web", Value::Null))
        .unwrap();
    // Labels of its namespace that are not known are none that are absent.
    assert_eq!(load(&cache.snapshot()).workloads().count(), 0);
    let namespace = object(json!({"metadata": {"name": "shop", "uid": "uid-shop"}}));
    cache.put(Kind::Namespace, &namespace).unwrap();
    let set = load(&cache.snapshot());
    let all: Vec<_> = set.workloads().collect();
    let [here, there] = all.as_slice() else {
        panic!("{all:?}")
    };
    assert_eq!(
        here.spiffe_id.as_str(),
        "spiffe://example.org/ns/shop/sa/web"
    );
    assert_eq!(here.addresses, ["10.0.0.1"]);
    assert_eq!(here.selectors.len(), 1);
    assert_eq!(
        here.selectors.first().unwrap().to_string(),
        "k8s:pod-uid:uid-here"
    );
    assert_eq!(there.addresses, ["10.0.0.2"]);
    assert!(there.selectors.is_empty(), "it is no process of this node");
    // The account goes: nobody is given its identity.
    cache.remove(Kind::ServiceAccount, &named("web", Value::Null));
    let set = load(&cache.snapshot());
    assert!(set.workloads().all(|one| one.selectors.is_empty()));
}

#[test]
fn pods_that_have_ended_and_pods_of_the_nodes_network_are_nobody() {
    let mut cache = cache(Limits::default());
    for (name, status) in [
        (
            "done",
            json!({"phase": "Succeeded", "podIPs": [{"ip": "10.0.0.1"}]}),
        ),
        (
            "failed",
            json!({"phase": "Failed", "podIPs": [{"ip": "10.0.0.1"}]}),
        ),
    ] {
        cache
            .put(Kind::Pod, &pod(name, "node-1", running("10.0.0.1")))
            .unwrap();
        assert_eq!(cache.count(Kind::Pod), 1);
        cache.put(Kind::Pod, &pod(name, "node-1", status)).unwrap();
        assert_eq!(cache.count(Kind::Pod), 0, "{name}");
    }
    let mut node = pod("proxy", "node-1", running("192.168.0.1"));
    node.spec
        .as_object_mut()
        .unwrap()
        .insert("hostNetwork".into(), json!(true));
    cache.put(Kind::Pod, &node).unwrap();
    assert_eq!(cache.count(Kind::Pod), 0);
}

#[test]
fn what_has_not_changed_for_us_is_no_change() {
    let mut cache = cache(Limits::default());
    let first = pod("web", "node-1", running("10.0.0.1"));
    assert_eq!(cache.put(Kind::Pod, &first).unwrap(), Change::Some);
    let mut status = running("10.0.0.1");
    status
        .as_object_mut()
        .unwrap()
        .insert("conditions".into(), json!([{"type": "Ready"}]));
    assert_eq!(
        cache.put(Kind::Pod, &pod("web", "node-1", status)).unwrap(),
        Change::None
    );
    assert_eq!(cache.replace(Kind::Pod, &[first]).unwrap(), []);
    assert_eq!(cache.replace(Kind::Pod, &[]).unwrap(), [Change::Some]);
}

fn allow(method: &str) -> Value {
    json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [{"to": [{"operation": {"methods": [method]}}]}]})
}

#[test]
fn a_policy_that_cannot_be_read_leaves_its_last_good_version() {
    let mut cache = cache(Limits::default());
    let kind = Kind::AuthorizationPolicy;
    cache.put(kind, &named("web", allow("GET"))).unwrap();
    let bad = named("web", json!({"action": "PERHAPS"}));
    let change = cache.put(kind, &bad).unwrap();
    assert!(
        matches!(&change, Change::Unreadable(key, _) if key == "shop/web"),
        "{change:?}"
    );
    assert_eq!(cache.unreadable(), 1);
    let texts = texts(&cache.snapshot());
    assert!(texts.concat().contains("GET"), "{texts:?}");
    // A new list says the same.
    assert_eq!(cache.replace(kind, &[bad]).unwrap(), []);
    // Another object of the same name has no good version.
    let mut other = named("web", json!({"action": "PERHAPS"}));
    other.metadata.uid = "other".into();
    cache.put(kind, &other).unwrap();
    let texts = self::texts(&cache.snapshot());
    assert!(texts.concat().contains("DENY"), "{texts:?}");
    cache.put(kind, &named("web", allow("POST"))).unwrap();
    assert_eq!(cache.unreadable(), 0);
    assert!(self::texts(&cache.snapshot()).concat().contains("POST"));
}

#[test]
fn what_a_policy_selects_that_was_never_read_is_denied() {
    let selector = json!({"matchLabels": {"app": "web"}});
    for (kind, spec, expected) in [
        (
            Kind::AuthorizationPolicy,
            json!({"selector": selector, "action": "PERHAPS"}),
            json!({"selector": selector, "action": "DENY", "rules": [{}]}),
        ),
        // Whom it selects cannot be read either: all of its namespace.
        (
            Kind::AuthorizationPolicy,
            json!({"selector": 7}),
            json!({"action": "DENY", "rules": [{}]}),
        ),
        (
            Kind::PeerAuthentication,
            json!({"selector": selector, "mtls": {"mode": "NEVER"}}),
            json!({"selector": selector, "action": "DENY", "rules": [{}]}),
        ),
        (
            Kind::RequestAuthentication,
            json!({"selector": selector, "jwtRules": [{}]}),
            json!({"selector": selector, "action": "DENY", "rules": [{}]}),
        ),
        (
            Kind::NetworkPolicy,
            json!({"podSelector": selector, "ingress": [{"from": [{}]}]}),
            json!({"podSelector": selector, "policyTypes": ["Ingress", "Egress"]}),
        ),
        (
            Kind::NetworkPolicy,
            json!({"podSelector": 7}),
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        ),
    ] {
        let mut cache = cache(Limits::default());
        cache.put(kind, &named("bad", spec)).unwrap();
        // One of the stand-in's own name.
        let name = format!("unreadable-{}.bad", kind.name().to_ascii_lowercase());
        cache
            .put(Kind::AuthorizationPolicy, &named(&name, allow("GET")))
            .unwrap();
        let snapshot = cache.snapshot();
        drop(load(&snapshot));
        let specs: Vec<Value> = snapshot
            .policies
            .iter()
            .map(|one| {
                let read: Value = serde_json::from_slice(&one.file.text).unwrap();
                read.get("spec").unwrap().clone()
            })
            .collect();
        assert!(specs.contains(&expected), "{kind:?}: {specs:?}");
        assert!(specs.contains(&allow("GET")), "{kind:?}: {specs:?}");
    }
}

#[test]
fn a_stand_in_has_a_name_that_is_one_however_long_the_objects_is() {
    let mut cache = cache(Limits::default());
    let spec = json!({"action": "PERHAPS"});
    for end in ["a", "b"] {
        let name = format!("{}.{}{end}", "n".repeat(199), "m".repeat(52));
        assert_eq!(name.len(), 253);
        cache
            .put(Kind::AuthorizationPolicy, &named(&name, spec.clone()))
            .unwrap();
    }
    let snapshot = cache.snapshot();
    drop(load(&snapshot));
    assert_eq!(snapshot.policies.len(), 2);
    let denying = |text: &String| text.contains("DENY");
    assert!(texts(&snapshot).iter().all(denying));
}

#[test]
fn an_object_is_cut_to_what_counts() {
    let mut cut = pod("a", "node-1", running("10.0.0.1"));
    let mut whole = pod("a", "node-1", running("10.0.0.1"));
    let fields = whole.spec.as_object_mut().unwrap();
    fields.insert("volumes".into(), json!(["v".repeat(100_000)]));
    whole
        .metadata
        .annotations
        .insert("a".into(), "b".repeat(100_000));
    assert!(whole.cut(Kind::Pod) < 500);
    cut.cut(Kind::Pod);
    assert_eq!(whole.spec, cut.spec);
    assert!(whole.metadata.annotations.is_empty());
    let ports = whole.spec.pointer("/containers/0/ports/0/containerPort");
    assert_eq!(ports, Some(&json!(8080)));
}

#[test]
fn more_than_is_kept_changes_nothing() {
    let limits = Limits {
        objects: 2,
        bytes: 64 << 20,
    };
    let mut cache = cache(limits);
    let pods = ["a", "b", "c"].map(|name| pod(name, "node-1", running("10.0.0.1")));
    let refused = cache.replace(Kind::Pod, &pods).unwrap_err();
    assert!(
        refused.to_string().contains("more than 2 objects"),
        "{refused}"
    );
    assert_eq!(cache.count(Kind::Pod), 0);
    cache.replace(Kind::Pod, &pods[..2]).unwrap();
    let [_, _, third] = &pods;
    assert!(matches!(cache.put(Kind::Pod, third), Err(Full::Objects(2))));
    assert_eq!(cache.count(Kind::Pod), 2);
    // One goes, and there is a place.
    cache.remove(Kind::Pod, &pods[0]);
    cache.put(Kind::Pod, third).unwrap();
    let mut small = self::cache(Limits {
        objects: 9,
        bytes: 500,
    });
    small
        .put(Kind::Namespace, &named("a", Value::Null))
        .unwrap();
    let refused = small
        .put(Kind::Namespace, &named("b", Value::Null))
        .unwrap_err();
    assert!(matches!(refused, Full::Bytes(500)), "{refused}");
}

#[test]
fn a_template_names_what_it_may() {
    for (text, is_good) in [
        ("k8s:pod-uid:{uid}", true),
        ("unix:path:/run/{namespace}/{pod}/{serviceAccount}", true),
        ("k8s:pod-uid:{uuid}", false),
        ("k8s:pod-uid:{uid", false),
        ("no selector", false),
    ] {
        assert_eq!(Template::parse(text).is_ok(), is_good, "{text}");
    }
}

#[test]
fn the_environment_says_where_the_server_is() {
    let found = |host: &str| {
        let host = host.to_owned();
        let variable = move |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some(host.clone()),
            "KUBERNETES_SERVICE_PORT" => Some("6443".to_owned()),
            _ => None,
        };
        server().within(variable).map(|server| server.url.unwrap())
    };
    assert_eq!(found("10.96.0.1").unwrap(), "https://10.96.0.1:6443");
    assert_eq!(found("fd00::1").unwrap(), "https://[fd00::1]:6443");
    assert!(
        found("")
            .unwrap_err()
            .to_string()
            .contains("`kubernetes.server`")
    );
}
