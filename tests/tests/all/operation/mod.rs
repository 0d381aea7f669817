//! What a proxy tells those who run it, and what they can tell it.

mod changes;
mod connections;
mod dump;
mod panics;
mod taps;
mod traces;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use postern_tests::{
    binaries,
    certificates::Authority,
    eventually, run,
    world::{World, free_address},
};
use serde_json::Value;

const FRONTEND: &str = "spiffe://example.org/ns/default/sa/frontend";
const WEB: &str = "spiffe://example.org/ns/default/sa/web";

/// Two proxies with identities from files: the app of one asks the app of the other.
struct Pair {
    world: World,
    /// Where the frontend's app reaches web.
    out: SocketAddr,
    /// Where web's proxy takes callers.
    web: SocketAddr,
    /// Of web and of the frontend: where the proxy is asked, and where it tells metrics.
    listeners: [[SocketAddr; 2]; 2],
}

impl Pair {
    fn start() -> Self {
        Self::start_speaking("auto")
    }

    /// Where web's app speaks this, as `inbound.protocol` has it.
    fn start_speaking(protocol: &str) -> Self {
        let mut world = World::new().unwrap();
        let authority = Authority::new("example.org").unwrap();
        let app = echo();
        let port = app.port();
        world.write("bundle.crt", &authority.pem).unwrap();
        world.write("policies/rules.yaml", &rules(port)).unwrap();
        let [out, inbound] = [(); 2].map(|()| free_address().unwrap());
        let web = SocketAddr::from(([127, 0, 0, 2], port));
        let workloads = [("frontend", FRONTEND), ("web", WEB)].map(|(name, id)| {
            authority
                .write_leaf(world.path(), name, id, |_| {})
                .unwrap();
            format!(
                "apiVersion: postern.dev/v1\nkind: Workload\n\
                 metadata: {{name: {name}, labels: {{app: {name}}}}}\n\
                 spec:\n  serviceAccount: {name}\n  addresses: [127.0.0.2]\n  \
                 ports: [{{name: main, port: {port}}}]\n"
            )
        });
        let workloads = workloads.join("---\n");
        world.write("workloads/all.yaml", &workloads).unwrap();
        let of_web =
            format!("inbound: {{listen: '{web}', forward: '{app}', protocol: {protocol}}}\n");
        let of_frontend = format!(
            "inbound: {{listen: '{inbound}', forward: '127.0.0.1:9'}}\n\
             outbound:\n  listeners: [{{listen: '{out}', to: default/web, port: main}}]\n"
        );
        let listeners = [(); 2].map(|()| [(); 2].map(|()| free_address().unwrap()));
        let pods = [("web", of_web), ("frontend", of_frontend)];
        for ((name, roads), [admin, metrics]) in pods.into_iter().zip(listeners) {
            let config = format!(
                "identity: {{files: {{certificate: {name}.crt, key: {name}.key, bundle: bundle.crt}}}}\n\
                 policies: {{directory: policies}}\nworkloads: {{directory: workloads}}\n\
                 admin: {{listen: '{admin}'}}\nmetrics: {{listen: '{metrics}'}}\n\
                 accessLog: {{path: {name}-access.log}}\ndrain: 10s\n{roads}"
            );
            world.proxy(name, &config).unwrap();
            world.said(name, "ready").unwrap();
        }
        Self {
            world,
            out,
            web,
            listeners,
        }
    }

    fn listeners_of(&self, name: &str) -> [SocketAddr; 2] {
        let [web, frontend] = self.listeners;
        if name == "web" { web } else { frontend }
    }

    fn admin_of(&self, name: &str) -> SocketAddr {
        let [admin, _] = self.listeners_of(name);
        admin
    }

    fn metrics_of(&self, name: &str) -> SocketAddr {
        let [_, metrics] = self.listeners_of(name);
        metrics
    }

    /// What a proxy tells at its admin listener.
    fn get(&self, name: &str, path: &str) -> String {
        told(&["-sS", &format!("http://{}{path}", self.admin_of(name))])
    }

    /// The same as JSON.
    fn told(&self, name: &str, path: &str) -> Value {
        let text = self.get(name, path);
        serde_json::from_str(&text).expect(&text)
    }

    /// Runs a command of the proxy that asks this one: its exit code and what it said.
    fn command(&self, name: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let program = binaries().unwrap().join("postern-proxy");
        let address = self.admin_of(name).to_string();
        let mut all = arguments.to_vec();
        all.extend(["--address", &address]);
        let output = run(program.to_str().unwrap(), &all).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    /// Changes the policies of both.
    fn rewrite(&self, change: impl Fn(&str) -> String) {
        let text = fs::read_to_string(self.world.path().join("policies/rules.yaml")).unwrap();
        let changed = change(&text);
        assert_ne!(changed, text);
        self.world.write("policies/rules.yaml", &changed).unwrap();
    }

    /// What curl is told when the frontend's app asks this.
    fn ask(&self, arguments: &[&str], path: &str) -> String {
        let url = format!("http://{}{path}", self.out);
        let mut all = vec!["-s"];
        all.extend(arguments);
        all.push(&url);
        told(&all)
    }

    /// The same without the frontend's proxy, with its certificate.
    fn ask_web(&self, arguments: &[&str], path: &str) -> String {
        let file = |name: &str| self.world.path().join(name).display().to_string();
        let (certificate, key) = (file("frontend.crt"), file("frontend.key"));
        let url = format!("https://{}{path}", self.web);
        let mut all = vec!["-sk", "--cert", &certificate, "--key", &key];
        all.extend(arguments);
        all.push(&url);
        told(&all)
    }

    /// The line of an access log for this path.
    fn logged(&self, name: &str, path: &str) -> Value {
        let log = self.world.path().join(format!("{name}-access.log"));
        let find = || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
            lines.into_iter().find(|line: &Value| line["path"] == path)
        };
        eventually(path, find).unwrap()
    }
}

fn told(arguments: &[&str]) -> String {
    let output = run("curl", arguments).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An app that answers each request with its head.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind(free_address().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || repeat(stream));
        }
    });
    address
}

fn repeat(mut stream: TcpStream) {
    let (mut held, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        held.extend_from_slice(piece.get(..read).unwrap());
        while let Some(end) = held.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = held.drain(..end + 4).collect();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", head.len());
            let answer = [answer.as_bytes(), &head].concat();
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    }
}

fn rules(port: u16) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: web}}}}\n  policyTypes: [Ingress]\n  ingress:\n    \
         - {{from: [{{podSelector: {{matchLabels: {{app: frontend}}}}}}], ports: [{{port: {port}}}]}}\n\
         ---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: frontend}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: frontend}}}}\n  policyTypes: [Egress]\n  egress:\n    \
         - {{to: [{{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{{port: {port}}}]}}\n\
         ---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: web}}\n\
         spec:\n  selector: {{matchLabels: {{app: web}}}}\n  rules:\n    \
         - from: [{{source: {{principals: ['example.org/ns/default/sa/frontend']}}}}]\n      \
         to: [{{operation: {{methods: [GET], paths: ['/api/*']}}}}]\n"
    )
}
