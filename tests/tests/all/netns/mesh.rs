//! Two pods with real proxies and identities from a real agent.

use std::{fs, os::unix::fs::PermissionsExt as _};

use postern_tests::{binaries, world::World};

use super::pods::{FRONTEND, Net, PROXY, Server, WEB, addresses, ask};

/// Two pods with their proxies and one app, and a place outside.
pub(super) struct Mesh {
    pub(super) world: World,
    pub(super) net: Net,
    pub(super) app: Server,
}

pub(super) const APP: u16 = 8080;

impl Mesh {
    /// Namespaces and an agent, and nothing else yet.
    pub(super) fn bare() -> Self {
        let mut world = World::new().unwrap();
        let net = Net::new();
        let open = |mode| fs::Permissions::from_mode(mode);
        fs::set_permissions(world.path(), open(0o755)).unwrap();
        fs::create_dir(world.path().join("logs")).unwrap();
        fs::set_permissions(world.path().join("logs"), open(0o777)).unwrap();
        let program = binaries().unwrap().join("postern-proxy");
        for pod in [FRONTEND, WEB] {
            let place = world.path().join(pod);
            // A link, so that no copy is made; across file systems there is no other way than a copy.
            if fs::hard_link(&program, &place).is_err() {
                postern_tests::copy_program(&program, &place).unwrap();
            }
        }
        let workloads = [FRONTEND, WEB].map(|name| {
            let [v4, v6] = addresses(name);
            format!(
                "apiVersion: postern.dev/v1\nkind: Workload\n\
                 metadata: {{name: {name}, labels: {{app: {name}}}}}\n\
                 spec:\n  serviceAccount: {name}\n  selectors: ['unix:path:{}']\n  \
                 addresses: ['{v4}', '{v6}']\n  \
                 ports: [{{name: http, port: {APP}}}, {{name: admin, port: 15000}}]\n",
                world.path().join(name).display(),
            )
        });
        let workloads = workloads.join("---\n");
        world.write("directory/workloads.yaml", &workloads).unwrap();
        world.write("policies/rules.yaml", RULES).unwrap();
        world.agent(&workloads).unwrap();
        let app = Server::start(&net, WEB, APP);
        Self { world, net, app }
    }

    /// Everything, with rules made from the proxies' own configurations.
    pub(super) fn new(forward: &str, options: &[&str]) -> Self {
        let mut mesh = Self::bare();
        for pod in [FRONTEND, WEB] {
            let config = mesh.configure(pod, forward, "");
            let mut all = vec!["--config", &config];
            all.extend(options);
            mesh.net.set_up(pod, &all);
        }
        for pod in [FRONTEND, WEB] {
            mesh.start(pod);
            mesh.world.said(pod, "ready").unwrap();
        }
        mesh
    }

    pub(super) fn configure(&self, pod: &str, forward: &str, more: &str) -> String {
        let config = format!(
            "identity: {{workloadApi: 'unix://{}/public/agent.sock'}}\n\
             policies: {{directory: policies}}\nworkloads: {{directory: directory}}\n\
             inbound: {{listen: '[::]:15006', forward: {forward}}}\n\
             outbound: {{listen: '127.0.0.1:15001'}}\nmetrics: {{listen: '[::]:15020'}}\n\
             accessLog: {{path: logs/{pod}.log}}\ndrain: 1s\n{more}",
            self.world.path().display(),
        );
        let path = self.world.write(&format!("{pod}.yaml"), &config).unwrap();
        path.display().to_string()
    }

    /// Starts a configured proxy with the one right that TPROXY needs.
    pub(super) fn start(&mut self, pod: &str) {
        let rights = ["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"];
        self.start_with(pod, &rights);
    }

    pub(super) fn start_with(&mut self, pod: &str, rights: &[&str]) {
        let program = self.world.path().join(pod).display().to_string();
        let mut command = self.net.command(pod, PROXY, rights, &program);
        command.args(["run", "--config", &format!("{pod}.yaml")]);
        self.world.spawn(pod, &mut command).unwrap();
    }

    /// What `path` of a pod's metrics listener says, asked in the pod itself.
    pub(super) fn told(&self, pod: &'static str, path: &str) -> String {
        ask(
            &self.net,
            pod,
            ("127.0.0.1".parse().unwrap(), 15020),
            "GET",
            path,
        )
    }
}

/// The frontend may ask web for what lies under `/api`, and reach any of its ports.
const RULES: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
    - {from: [{podSelector: {matchLabels: {app: frontend}}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: frontend}
spec:
  podSelector: {matchLabels: {app: frontend}}
  policyTypes: [Egress]
  egress:
    - {to: [{podSelector: {matchLabels: {app: web}}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  rules:
    - from: [{source: {principals: ['example.org/ns/default/sa/frontend']}}]
      to: [{operation: {methods: [GET], paths: ['/api/*', '/connections']}}]
";
