//! The proxy's road out, towards upstreams that fail in every way: written in Python, behind mutual
//! TLS, so that nothing of Postern vouches for them.

mod bounds;
mod declared;
mod destinations;
mod detection;
mod failures;
mod upgrades;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use anyhow::Context as _;
use postern_tests::{
    binaries,
    certificates::Authority,
    eventually, root,
    world::{World, free_address},
};

const WEB: &str = "spiffe://example.org/ns/default/sa/web";
const LIMIT_PROXY: &str = "postern_proxy_upstream_bounds_reached_total";

/// A proxy whose app reaches one Workload, `web`, at `out`.
pub(super) struct Site {
    pub(super) world: World,
    pub(super) authority: Authority,
    pub(super) out: SocketAddr,
    metrics: SocketAddr,
    pub(super) port: u16,
    /// The process whose network is used, if it is not ours.
    space: Option<u32>,
}

/// A program, in a network of its own if there is one.
fn program(space: Option<u32>, name: impl AsRef<std::ffi::OsStr>) -> Command {
    match space {
        None => Command::new(name),
        Some(process) => {
            let mut command = Command::new("nsenter");
            command.args(["-n", "-m", "-t", &process.to_string(), "--"]);
            command.arg(name);
            command
        }
    }
}

impl Site {
    /// `addresses` are those of the Workload; `outbound` is more of that section.
    pub(super) fn start(addresses: &str, outbound: &str) -> Self {
        Self::start_with(addresses, "", outbound)
    }

    fn start_with(addresses: &str, workload: &str, outbound: &str) -> Self {
        Self::start_in(World::new().unwrap(), None, addresses, workload, outbound)
    }

    /// The port has this name, which may say what is spoken.
    fn start_named(name: &str) -> Self {
        let world = World::new().unwrap();
        Self::start_as(&format!("name: {name}"), world, None, "[127.0.0.2]", "", "")
    }

    /// This is said of the port.
    fn start_declared(port: &str) -> Self {
        Self::start_as(port, World::new().unwrap(), None, "[127.0.0.2]", "", "")
    }

    /// With a name of the port that says nothing: what is spoken is found out.
    fn start_in(
        world: World,
        space: Option<u32>,
        addresses: &str,
        workload: &str,
        outbound: &str,
    ) -> Self {
        Self::start_as("name: main", world, space, addresses, workload, outbound)
    }

    fn start_as(
        declared: &str,
        mut world: World,
        space: Option<u32>,
        addresses: &str,
        workload: &str,
        outbound: &str,
    ) -> Self {
        let authority = Authority::new("example.org").unwrap();
        let frontend = "spiffe://example.org/ns/default/sa/frontend";
        authority
            .write_leaf(world.path(), "frontend", frontend, |_| {})
            .unwrap();
        authority
            .write_leaf(world.path(), "web", WEB, |_| {})
            .unwrap();
        world.write("bundle.crt", &authority.pem).unwrap();
        let port = free_address().unwrap().port();
        let of_frontend = "apiVersion: postern.dev/v1\nkind: Workload\n\
             metadata: {name: frontend, labels: {app: frontend}}\nspec: {serviceAccount: frontend}\n";
        // By its name, where it has one: its number may change.
        let name = declared.strip_prefix("name: ");
        let name = name.and_then(|rest| rest.split(',').next());
        let to_port = name.map_or(port.to_string(), str::to_owned);
        let workloads = format!(
            "{of_frontend}---\napiVersion: postern.dev/v1\nkind: Workload\n\
             metadata: {{name: web, labels: {{app: web}}}}\nspec:\n  serviceAccount: web\n  \
             addresses: {addresses}\n  ports: [{{{declared}, port: {port}}}]\n{workload}"
        );
        world.write("workloads/all.yaml", &workloads).unwrap();
        world.write("policies/all.yaml", POLICIES).unwrap();
        let [out, metrics, admin, inbound] = [(); 4].map(|()| free_address().unwrap());
        let config = format!(
            "identity: {{files: {{certificate: frontend.crt, key: frontend.key, bundle: bundle.crt}}}}\n\
             policies: {{directory: policies}}\nworkloads: {{directory: workloads}}\n\
             inbound: {{listen: '{inbound}', forward: '127.0.0.1:9'}}\n\
             outbound:\n  listeners: [{{listen: '{out}', to: default/web, port: {to_port}}}]\n{outbound}\
             admin: {{listen: '{admin}'}}\nmetrics: {{listen: '{metrics}'}}\n\
             accessLog: {{path: access.log}}\ndrain: 1s\n"
        );
        let config = world.write("proxy.yaml", &config).unwrap();
        let mut command = program(space, binaries().unwrap().join("postern-proxy"));
        command.args(["run", "--config"]).arg(config);
        world.spawn("proxy", &mut command).unwrap();
        world.said("proxy", "ready").unwrap();
        Self {
            world,
            authority,
            out,
            metrics,
            port,
            space,
        }
    }

    /// Starts an upstream at an address of loopback, with a certificate of this name.
    fn upstream(&mut self, name: &str, address: &str, certificate: &str, kind: &str) {
        let script = match kind {
            "http2" => "tests/python/upstream2.py",
            _ => "tests/python/upstream.py",
        };
        let mut command = program(self.space, root().join("target/python/bin/python"));
        command.arg(root().join(script));
        command.args([address, &self.port.to_string()]);
        for file in [format!("{certificate}.crt"), format!("{certificate}.key")] {
            command.arg(self.world.path().join(file));
        }
        command.arg(self.world.path().join("bundle.crt")).arg(kind);
        self.world.spawn(name, &mut command).unwrap();
        self.told(name, "listening", 1);
    }

    /// Starts the proxy of `web`, and behind it an app that does what paths say.
    fn pod(&mut self) {
        self.pod_of("plain");
    }

    /// The same with an app of this kind.
    fn pod_of(&mut self, kind: &str) {
        let app = free_address().unwrap();
        let port = std::mem::replace(&mut self.port, app.port());
        self.upstream("app", "127.0.0.1", "web", kind);
        self.port = port;
        let [metrics, admin] = [(); 2].map(|()| free_address().unwrap());
        let config = format!(
            "identity: {{files: {{certificate: web.crt, key: web.key, bundle: bundle.crt}}}}\n\
             policies: {{directory: policies}}\nworkloads: {{directory: workloads}}\n\
             inbound: {{listen: '127.0.0.2:{port}', forward: '{app}'}}\n\
             admin: {{listen: '{admin}'}}\nmetrics: {{listen: '{metrics}'}}\n\
             accessLog: {{path: web.access.log}}\ndrain: 1s\n"
        );
        self.world.proxy("web", &config).unwrap();
        self.world.said("web", "ready").unwrap();
    }

    /// The events of a kind that an upstream told.
    fn events(&self, upstream: &str, event: &str) -> Vec<String> {
        let log = fs::read_to_string(self.world.log(upstream)).unwrap_or_default();
        let wanted = format!("\"event\": \"{event}\"");
        let lines = log.lines().filter(|line| line.contains(&wanted));
        lines.map(str::to_owned).collect()
    }

    /// Waits until it told as many.
    #[track_caller]
    fn told(&self, upstream: &str, event: &str, count: usize) -> Vec<String> {
        let enough = || Some(self.events(upstream, event)).filter(|told| told.len() >= count);
        let log = || fs::read_to_string(self.world.log(upstream)).unwrap_or_default();
        let told = eventually(event, enough);
        told.with_context(|| format!("{upstream} said:\n{}", log()))
            .unwrap()
    }

    /// How often a path was asked for.
    fn asked(&self, upstream: &str, path: &str) -> usize {
        let wanted = format!("\"path\": \"{path}\"");
        let requests = self.events(upstream, "request");
        requests
            .iter()
            .filter(|line| line.contains(&wanted))
            .count()
    }

    /// The sum of a metric over its labels that contain `label`.
    fn metric(&self, name: &str, label: &str) -> u64 {
        let url = format!("http://{}/metrics", self.metrics);
        let output = program(self.space, "curl")
            .args(["-s", &url])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|line| line.starts_with(name));
        let values = lines.filter(|line| line.contains(label));
        values
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum()
    }

    fn access_log(&self) -> String {
        fs::read_to_string(self.world.path().join("access.log")).unwrap_or_default()
    }

    /// Waits until the access log says something.
    #[track_caller]
    fn logged(&self, text: &str) {
        let said = || self.access_log().contains(text).then_some(());
        eventually(text, said)
            .with_context(|| self.access_log())
            .unwrap();
    }

    /// The status that curl gets.
    pub(super) fn curl(&self, version: &str, path: &str) -> u16 {
        let url = format!("http://{}{path}", self.out);
        let mut command = program(self.space, "curl");
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", version, &url]);
        let status = command.output().unwrap().stdout;
        String::from_utf8_lossy(&status).parse().unwrap_or_default()
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"
        ))
    }

    /// Sends a request and reads to the end of the connection.
    fn ask(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.out).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = Vec::new();
        let ended = stream.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Answer {
            status: head
                .get(9..12)
                .and_then(|code| code.parse().ok())
                .unwrap_or_default(),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
            reset: ended.is_err(),
        }
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
    reset: bool,
}

impl Answer {
    /// Did the body arrive as its head said it would?
    fn is_whole(&self) -> bool {
        let length = self
            .head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        match length.and_then(|length| length.parse::<usize>().ok()) {
            Some(length) => self.body.len() == length,
            None => self.body.ends_with("0\r\n\r\n") && !self.reset,
        }
    }
}

const POLICIES: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: frontend}
spec:
  podSelector: {matchLabels: {app: frontend}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: frontend}}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{from: [{source: {principals: [example.org/ns/default/sa/frontend]}}]}]
";
