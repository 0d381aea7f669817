//! Pods and policies from the API server alone: a server that speaks its protocol, an agent, a proxy, and
//! callers.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use postern_tests::{
    binaries,
    certificates::Authority,
    eventually, root, run,
    world::{App, World, free_address},
};
use rcgen::{CertificateParams, SanType};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A cluster with two pods that may talk to each other, and one that may not.
struct Site {
    world: World,
    app: App,
    api: SocketAddr,
    control: SocketAddr,
    health: SocketAddr,
    address: SocketAddr,
    proxy_health: SocketAddr,
}

fn pod(name: &str, account: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "production", "labels": {"app": account}},
        "spec": {
            "serviceAccountName": account, "nodeName": "node-1",
            "containers": [{"name": "app", "image": "app:1", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]},
    })
}

fn account(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": "production"},
    })
}

fn namespace(team: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "production", "labels": {
            "kubernetes.io/metadata.name": "production", "team": team,
        }},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    })
}

/// Pods of `app` in namespaces of the team `shop` may connect to web.
fn network(app: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "production"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{
                "namespaceSelector": {"matchLabels": {"team": "shop"}},
                "podSelector": {"matchLabels": {"app": app}},
            }]}],
        },
    })
}

fn authorization(spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {
            "name": "web", "namespace": "production",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        },
        "spec": spec,
    })
}

fn allow(method: &str) -> Value {
    authorization(json!({
        "selector": {"matchLabels": {"app": "web"}},
        "rules": [{"to": [{"operation": {"methods": [method]}}]}],
    }))
}

impl Site {
    /// A server with all of that, and nobody who asks it yet.
    fn new() -> Self {
        let mut site = Self {
            world: World::new().unwrap(),
            app: App::start().unwrap(),
            api: free_address().unwrap(),
            control: free_address().unwrap(),
            health: free_address().unwrap(),
            address: free_address().unwrap(),
            proxy_health: free_address().unwrap(),
        };
        let authority = Authority::new("cluster.test").unwrap();
        site.world.write("ca.pem", &authority.pem).unwrap();
        site.world.write("token", "good-token\n").unwrap();
        for (name, ip) in [("apiserver", "127.0.0.1"), ("other", "127.0.0.2")] {
            let named = |params: &mut CertificateParams| {
                let address = SanType::IpAddress(ip.parse().unwrap());
                params.subject_alt_names = vec![address];
            };
            let folder = site.world.path();
            let id = "spiffe://cluster.test/";
            authority.write_leaf(folder, name, id, named).unwrap();
        }
        site.serve("apiserver");
        site.put(&namespace("shop"));
        for name in ["web", "frontend", "stranger"] {
            site.put(&account(name));
            site.put(&pod(&format!("{name}-1"), name));
        }
        site.put(&network("frontend"));
        site.put(&allow("GET"));
        site
    }

    fn serve(&mut self, certificate: &str) {
        let mut server = Command::new("python3");
        server.arg(root().join("tests/python/apiserver.py"));
        server.args(["127.0.0.1", &self.api.port().to_string()]);
        server.arg(format!("{certificate}.crt"));
        server.arg(format!("{certificate}.key"));
        server.args(["cluster.json", &self.control.port().to_string()]);
        self.world.spawn("apiserver", &mut server).unwrap();
        for address in [self.api, self.control] {
            eventually("the API server", || {
                std::net::TcpStream::connect(address).ok()
            })
            .unwrap();
        }
    }

    fn agent(&mut self, more: &str) {
        let here = self.world.path().display();
        let config = format!(
            "health: {{listen: '{}'}}\nkubernetes: {{server: 'https://{}', caFile: ca.pem, \
             tokenFile: token, nodeName: node-1, selectors: ['unix:path:{here}/{{namespace}}-{{pod}}']{more}}}\n",
            self.health, self.api
        );
        self.world.agent_with("", &config).unwrap();
    }

    /// What runs in a pod.
    fn program(&self, pod: &str) -> PathBuf {
        self.world.path().join(format!("production-{pod}"))
    }

    fn proxy(&mut self) {
        for (program, name) in [
            ("postern-proxy", "web-1"),
            ("postern-agent", "frontend-1"),
            ("postern-agent", "stranger-1"),
        ] {
            let to = self.program(name);
            postern_tests::copy_program(binaries().unwrap().join(program), to).unwrap();
        }
        let admin = free_address().unwrap();
        let config = format!(
            "identity: {{workloadApi: 'unix://{}/public/agent.sock'}}\n\
             inbound: {{listen: '{}', forward: '{}'}}\nadmin: {{listen: '{admin}'}}\n\
             metrics: {{listen: '{}'}}\naccessLog: {{path: access.log}}\n",
            self.world.path().display(),
            self.address,
            self.app.address,
            self.proxy_health,
        );
        let program = self.program("web-1");
        self.world.proxy_at("proxy", &program, &config).unwrap();
    }

    /// All of it, ready.
    fn start() -> Self {
        let mut site = Self::new();
        site.agent("");
        site.proxy();
        site.world.said("proxy", "ready").unwrap();
        site.fetch("frontend-1").unwrap();
        site.fetch("stranger-1").unwrap();
        site
    }

    fn steer(&self, path: &str, body: &Value) -> Value {
        let url = format!("http://{}{path}", self.control);
        let body = self.world.write("body.json", &body.to_string()).unwrap();
        let body = format!("@{}", body.display());
        let told = run("curl", &["-sf", "--data-binary", &body, &url]).unwrap();
        serde_json::from_slice(&told.stdout).unwrap()
    }

    fn put(&self, object: &Value) {
        self.steer("/put", object);
    }

    fn delete(&self, resource: &str, name: &str) {
        self.steer("/delete", &json!([resource, name]));
    }

    /// Has a pod ask for its identity.
    fn fetch(&self, pod: &str) -> Result<(), String> {
        let path = |name: &str| self.world.path().join(name).display().to_string();
        let program = self.program(pod).display().to_string();
        let folder = path(&format!("{pod}-svids"));
        let socket = path("public/agent.sock");
        let arguments = ["api", "fetch", "-socketPath", &socket, "-write", &folder];
        let output = run(&program, &arguments).unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn svid(&self, pod: &str) -> [String; 2] {
        ["pem", "key"].map(|ending| {
            let path = format!("{pod}-svids/svid.0.{ending}");
            self.world.path().join(path).display().to_string()
        })
    }

    /// What a pod gets for a method: the status, or 0 where there was no answer.
    fn call(&self, pod: &str, method: &str) -> u16 {
        let url = format!("https://{}/", self.address);
        let [certificate, key] = self.svid(pod);
        let arguments = ["-sk", "-X", method, "-o", "/dev/null", "-w", "%{http_code}"];
        let who = ["--cert", &certificate, "--key", &key, &url];
        let output = run("curl", &[arguments.as_slice(), &who].concat()).unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .parse()
            .unwrap_or_default()
    }

    #[track_caller]
    fn becomes(&self, pod: &str, method: &str, status: u16) {
        let mut last = 0;
        let found = eventually("another answer", || {
            last = self.call(pod, method);
            (last == status).then_some(())
        });
        let log = fs::read_to_string(self.world.log("agent")).unwrap();
        assert!(
            found.is_ok(),
            "{pod} {method} gets {last}, not {status}\n{log}"
        );
    }

    fn ask(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.health);
        let told = run("curl", &["-s", &url]).unwrap();
        String::from_utf8(told.stdout).unwrap()
    }

    /// Waits until the agent's metrics have a line.
    #[track_caller]
    fn counts(&self, line: &str) {
        let mut last = String::new();
        let found = eventually(line, || {
            last = self.ask("/metrics");
            last.lines().any(|one| one == line).then_some(())
        });
        assert!(found.is_ok(), "`{line}` is not in {last}");
    }

    /// How often something failed for this reason.
    fn failures(&self, reason: &str) -> u64 {
        let begin =
            format!("postern_agent_kubernetes_requests_failed_total{{reason=\"{reason}\"}} ");
        let metrics = self.ask("/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&begin));
        line.unwrap().parse().unwrap()
    }

    #[track_caller]
    fn fails(&self, reason: &str, before: u64) {
        eventually(reason, || (self.failures(reason) > before).then_some(())).unwrap();
    }

    /// A connection of a pod that has had an answer, and stays open.
    fn open(&self, pod: &str) -> Child {
        let [certificate, key] = self.svid(pod);
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &self.address.to_string()])
            .args([
                "-cert",
                &certificate,
                "-cert_chain",
                &certificate,
                "-key",
                &key,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
        child.stdin.as_mut().unwrap().write_all(request).unwrap();
        let mut answer = BufReader::new(child.stdout.as_mut().unwrap());
        let mut line = String::new();
        while line != "hello\n" {
            line.clear();
            assert!(answer.read_line(&mut line).unwrap() > 0, "no answer");
        }
        child
    }
}

/// Waits for the end of a connection that somebody else ends.
fn is_cut(mut connection: Child) {
    let input = connection.stdin.take();
    eventually("the end of a connection", || {
        connection.try_wait().ok().flatten()
    })
    .unwrap();
    drop(input);
    let mut rest = String::new();
    connection
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut rest)
        .unwrap();
    assert_eq!(rest, "");
}

#[test]
fn policies_and_pods_come_from_the_api_server_and_every_change_of_them_counts() {
    let site = Site::start();
    assert_eq!(site.call("frontend-1", "GET"), 200);
    // The twins: another method, another pod.
    assert_eq!(site.call("frontend-1", "POST"), 403);
    assert_ne!(site.call("stranger-1", "GET"), 200);
    let log = site.world.path().join("access.log");
    let named = "kubernetes:authorizationpolicies/production/web";
    site.put(&allow("POST"));
    site.becomes("frontend-1", "GET", 403);
    assert_eq!(site.call("frontend-1", "POST"), 200);
    eventually("the line that names the policy", || {
        fs::read_to_string(&log)
            .unwrap()
            .contains(named)
            .then_some(())
    })
    .unwrap();
    site.put(&allow("GET"));
    site.becomes("frontend-1", "GET", 200);

    // A change of a NetworkPolicy ends what is open.
    let open = site.open("frontend-1");
    site.put(&network("stranger"));
    is_cut(open);
    assert_ne!(site.call("frontend-1", "GET"), 200);
    site.becomes("stranger-1", "GET", 200);
    site.put(&network("frontend"));
    site.becomes("frontend-1", "GET", 200);
    assert_ne!(site.call("stranger-1", "GET"), 200);

    // The labels of the namespace are those of today.
    site.put(&namespace("warehouse"));
    eventually("no answer", || {
        (site.call("frontend-1", "GET") != 200).then_some(())
    })
    .unwrap();
    site.put(&namespace("shop"));
    site.becomes("frontend-1", "GET", 200);

    // What is deleted is gone, and nothing is allowed by default.
    site.delete("authorizationpolicies", "production/web");
    site.becomes("frontend-1", "GET", 403);
    site.put(&allow("GET"));
    site.becomes("frontend-1", "GET", 200);

    // Another pod of the same name and account: what the first one holds is nobody's.
    let mut another = pod("frontend-1", "frontend");
    another["metadata"]["uid"] = json!("another");
    site.put(&another);
    eventually("a revocation", || {
        (site.call("frontend-1", "GET") != 200).then_some(())
    })
    .unwrap();
    site.fetch("frontend-1").unwrap();
    site.becomes("frontend-1", "GET", 200);
    site.counts("postern_agent_kubernetes_in_force 1");

    // A pod that is gone is nobody: neither by its identity nor by its address.
    let listed = || {
        let told = site.world.admin(&["workload", "list", "--json"]).unwrap();
        String::from_utf8(told.stdout).unwrap()
    };
    assert!(listed().contains("frontend-1"), "{}", listed());
    site.delete("pods", "production/frontend-1");
    eventually("no answer", || {
        (site.call("frontend-1", "GET") != 200).then_some(())
    })
    .unwrap();
    assert!(!listed().contains("frontend-1"), "{}", listed());
    let refused = site.fetch("frontend-1").unwrap_err();
    assert!(refused.contains("no identity issued"), "{refused}");
    // The account is gone: nobody is given its identity, though the pod is there.
    site.fetch("stranger-1").unwrap();
    site.delete("serviceaccounts", "production/stranger");
    eventually("a refusal", || site.fetch("stranger-1").err()).unwrap();
    let log = fs::read_to_string(site.world.log("agent")).unwrap();
    assert!(!log.contains("good-token"), "the token is in the log");
}

#[test]
fn a_server_that_is_away_forgets_or_refuses_the_token_takes_nothing_away() {
    let mut site = Site::start();
    // It does not remember as far back: all is listed again, in pages that are forgotten once.
    site.steer("/set", &json!({"page": 1}));
    let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    for last in [Value::Null, gone] {
        let before = site.failures("gone");
        site.steer("/compact", &Value::Null);
        site.steer("/end-watches", &last);
        site.fails("gone", before);
        site.put(&allow("POST"));
        site.becomes("frontend-1", "POST", 200);
        site.put(&allow("GET"));
        site.becomes("frontend-1", "GET", 200);
    }
    // A bookmark moves the place on, so that this is remembered.
    site.steer("/bookmark", &Value::Null);

    // The token is expired, and replaced.
    let before = site.failures("unauthorized");
    site.steer("/set", &json!({"tokens": ["next-token"]}));
    site.steer("/end-watches", &Value::Null);
    site.fails("unauthorized", before);
    assert_eq!(site.call("frontend-1", "GET"), 200);
    site.world.write("token", "next-token").unwrap();
    for kind in ["Pod", "AuthorizationPolicy"] {
        site.counts(&format!(
            "postern_agent_kubernetes_current{{kind=\"{kind}\"}} 1"
        ));
    }
    site.put(&allow("POST"));
    site.becomes("frontend-1", "POST", 200);
    site.put(&allow("GET"));
    site.becomes("frontend-1", "GET", 200);

    // It is killed, and what was known stays.
    let before = site.failures("unreachable");
    site.world.signal("apiserver", Signal::KILL).unwrap();
    site.world.ended("apiserver").unwrap();
    site.fails("unreachable", before);
    assert_eq!(site.call("frontend-1", "GET"), 200);
    assert_eq!(site.call("frontend-1", "POST"), 403);
    assert_eq!(site.ask("/healthz/ready"), "ok\n");
    // The agent too, while nobody can tell it anything: pods keep what they have.
    site.world.signal("agent", Signal::KILL).unwrap();
    site.world.ended("agent").unwrap();
    site.agent("");
    let waits = site.ask("/healthz/ready");
    assert!(waits.contains("kubernetes: pods: "), "{waits}");
    let refused = site.fetch("frontend-1").unwrap_err();
    assert!(refused.contains("code = Unavailable"), "{refused}");
    site.world.told("agent", "not_synced").unwrap();
    assert_eq!(site.call("frontend-1", "GET"), 200);
    site.serve("apiserver");
    site.steer("/set", &json!({"tokens": ["next-token"]}));
    site.put(&allow("POST"));
    site.becomes("frontend-1", "POST", 200);
    let log = fs::read_to_string(site.world.log("agent")).unwrap();
    assert!(!log.contains("next-token"), "a token is in the log");
}

#[test]
fn before_everything_was_told_nothing_is_allowed_and_readiness_says_why() {
    let mut site = Site::new();
    site.steer(
        "/set",
        &json!({"forbidden": ["authorizationpolicies"], "istio": ["v1beta1"]}),
    );
    site.agent("");
    site.proxy();
    let rule = "{apiGroups: [\"security.istio.io\"], resources: [authorizationpolicies], verbs: [list, watch]}";
    let mut last = String::new();
    let told = eventually("the reason", || {
        last = site.ask("/healthz/ready");
        last.contains(rule).then_some(())
    });
    told.unwrap_or_else(|error| panic!("{error:#}: {last}"));
    assert_eq!(last.lines().count(), 1, "{last}");
    let refused = site.fetch("frontend-1").unwrap_err();
    assert!(refused.contains("code = Unavailable"), "{refused}");
    assert_eq!(site.app.reached(), 0);
    // The right is given.
    site.steer("/set", &json!({"forbidden": []}));
    site.world.said("proxy", "ready").unwrap();
    assert_eq!(site.ask("/healthz/ready"), "ok\n");
    site.fetch("frontend-1").unwrap();
    site.becomes("frontend-1", "GET", 200);
}

#[test]
fn kinds_that_nobody_has_installed_are_none_until_they_are_there() {
    let mut site = Site::new();
    site.steer("/set", &json!({"istio": []}));
    site.agent("");
    site.proxy();
    site.world.said("proxy", "ready").unwrap();
    site.fetch("frontend-1").unwrap();
    assert_eq!(site.call("frontend-1", "GET"), 403);
    assert_eq!(site.ask("/healthz/ready"), "ok\n");
    site.steer("/set", &json!({"istio": ["v1"]}));
    site.becomes("frontend-1", "GET", 200);
}

#[test]
fn an_object_that_cannot_be_read_refuses_itself_alone_to_the_safe_side() {
    let site = Site::start();
    assert_eq!(site.call("frontend-1", "GET"), 200);
    // A version that cannot be read leaves the one before.
    site.put(&authorization(
        json!({"selector": {"matchLabels": {"app": "web"}}, "action": "PERHAPS"}),
    ));
    site.counts("postern_agent_kubernetes_objects_unreadable 1");
    site.world.told("agent", "`PERHAPS`").unwrap();
    assert_eq!(site.call("frontend-1", "GET"), 200);
    assert_eq!(site.call("frontend-1", "POST"), 403);
    // Everything else is followed on.
    site.put(&network("stranger"));
    site.becomes("stranger-1", "GET", 200);
    site.put(&network("frontend"));
    site.put(&allow("GET"));
    site.counts("postern_agent_kubernetes_objects_unreadable 0");
    site.becomes("frontend-1", "GET", 200);
    // One that was never read denies what it selects.
    let mut never = authorization(json!({"selector": {"matchLabels": {"app": "web"}}, "rules": 7}));
    never["metadata"]["name"] = json!("never");
    site.put(&never);
    site.becomes("frontend-1", "GET", 403);
    never["spec"]["selector"]["matchLabels"]["app"] = json!("another");
    site.put(&never);
    site.becomes("frontend-1", "GET", 200);
    site.delete("authorizationpolicies", "production/never");

    // One that is larger than anything is read as the part of a list.
    let before = site.failures("too_large");
    let mut huge = authorization(json!({"selector": {"matchLabels": {"app": "another"}}}));
    huge["metadata"]["name"] = json!("huge");
    huge["metadata"]["annotations"] = json!({"notes": "x".repeat(5_000_000)});
    site.put(&huge);
    site.fails("too_large", before);
    site.world
        .told("agent", "an event of a watch has more than 4194304 bytes")
        .unwrap();
    assert_eq!(site.call("frontend-1", "GET"), 200);
    site.put(&allow("POST"));
    site.becomes("frontend-1", "POST", 200);
}

#[test]
fn more_than_is_kept_is_refused_whole_and_its_limit_named() {
    let mut site = Site::new();
    site.agent(", maxObjects: 8");
    let mut last = String::new();
    let told = eventually("the limit", || {
        last = site.ask("/healthz/ready");
        last.contains("more than 8 objects").then_some(())
    });
    told.unwrap_or_else(|error| panic!("{error:#}: {last}"));
    assert!(last.contains("`kubernetes.maxObjects`"), "{last}");
    // The twin: as many as there are.
    site.world.signal("agent", Signal::TERM).unwrap();
    site.world.ended("agent").unwrap();
    site.agent(", maxObjects: 9");
    eventually("readiness", || {
        (site.ask("/healthz/ready") == "ok\n").then_some(())
    })
    .unwrap();
}

#[test]
fn a_server_of_another_name_or_authority_is_told_no_token() {
    let mut site = Site::new();
    site.world.signal("apiserver", Signal::KILL).unwrap();
    site.world.ended("apiserver").unwrap();
    site.serve("other");
    let waits = |site: &Site, text: &str| {
        let mut last = String::new();
        let told = eventually(text, || {
            last = site.ask("/healthz/ready");
            last.contains(text).then_some(())
        });
        told.unwrap_or_else(|error| panic!("{error:#}: {last}"));
    };
    site.agent("");
    waits(&site, "not valid for name");
    let stranger = Authority::new("cluster.test").unwrap();
    site.world.write("ca.pem", &stranger.pem).unwrap();
    site.world.signal("apiserver", Signal::KILL).unwrap();
    site.world.ended("apiserver").unwrap();
    site.serve("apiserver");
    waits(&site, "invalid peer certificate");
    assert_eq!(site.steer("/requests", &Value::Null), json!([]));
}

/// `resources` of a group, with the verbs, as a role gives them.
fn rights() -> Vec<(String, String, String)> {
    let text = fs::read_to_string(root().join("deploy/kubernetes/components/api-server/role.yaml"))
        .unwrap();
    let mut documents = text.split("---\n");
    let role = documents.find(|one| one.contains("kind: ClusterRole\n"));
    let role = role.unwrap();
    let mut found = Vec::new();
    let list = |line: &str| -> Vec<String> {
        let (_, items) = line.split_once('[').unwrap();
        let items = items.split_once(']').unwrap().0.split(',');
        items
            .map(|one| one.trim().trim_matches('"').to_owned())
            .collect()
    };
    let (_, rules) = role.split_once("rules:\n").unwrap();
    for rule in rules.split("  - apiGroups").skip(1) {
        let mut lines = rule.lines();
        let groups = list(lines.next().unwrap());
        let resources = list(lines.next().unwrap());
        let verbs = list(lines.next().unwrap());
        for group in &groups {
            for resource in &resources {
                for verb in &verbs {
                    found.push((group.clone(), resource.clone(), verb.clone()));
                }
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_role_that_is_shipped_gives_what_is_asked_for_and_nothing_else() {
    let mut site = Site::new();
    site.agent("");
    eventually("readiness", || {
        (site.ask("/healthz/ready") == "ok\n").then_some(())
    })
    .unwrap();
    let asked = || {
        let told = site.steer("/requests", &Value::Null);
        let requests = told.as_array().unwrap().iter();
        let mut asked: Vec<_> = requests
            .map(|one| {
                let path = one[1].as_str().unwrap();
                let (path, query) = path.split_once('?').unwrap();
                let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
                let group = if parts[0] == "api" { "" } else { parts[1] };
                let verb = if query.contains("watch=1") {
                    "watch"
                } else {
                    "list"
                };
                let resource = parts.last().unwrap().to_string();
                (group.to_owned(), resource, verb.to_owned())
            })
            .collect();
        asked.sort();
        asked.dedup();
        asked
    };
    let rights = rights();
    let mut last = Vec::new();
    let same = eventually("all to be asked for", || {
        last = asked();
        (last == rights).then_some(())
    });
    same.unwrap_or_else(|error| panic!("{error:#}: asked {last:?}, given {rights:?}"));
}

#[test]
fn the_configuration_that_is_shipped_is_one() {
    let world = World::new().unwrap();
    let shipped = root().join("deploy/kubernetes/components/api-server/agent-config.yaml");
    let text = fs::read_to_string(shipped).unwrap();
    let config = world.write("agent.yaml", &text).unwrap();
    world.write("workloads/w.yaml", "").unwrap();
    world.write("policies/p.yaml", "").unwrap();
    let agent = binaries().unwrap().join("postern-agent");
    let arguments = ["run", "--check", "--config", config.to_str().unwrap()];
    let output = run(agent.to_str().unwrap(), &arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
