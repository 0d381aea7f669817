//! One agent, two proxies of ours, and a program of others that has an identity from the same agent.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use postern_tests::{
    binaries,
    world::{World, free_address},
};

use crate::road::link;

/// The identity of the others' program.
pub(super) const PEER: &str = "spiffe://example.org/ns/default/sa/peer";
/// The identity of our proxy that is called.
pub(super) const WEB: &str = "spiffe://example.org/ns/default/sa/web";

/// What runs.
pub(super) struct Mixed {
    pub(super) world: World,
    /// The Workload API.
    pub(super) socket: PathBuf,
    /// The road in of our proxy `web`: mutual TLS.
    pub(super) web: SocketAddr,
    /// Where the app of our proxy `frontend` reaches the peer.
    pub(super) out: SocketAddr,
    /// Where the peer is to listen.
    pub(super) peer: SocketAddr,
}

impl Mixed {
    /// `program` is the peer's, and `app` what lies behind `web`. `caller` is the service account
    /// that may call `web`.
    pub(super) fn new(program: &Path, app: SocketAddr, caller: &str) -> Self {
        let mut world = World::new().unwrap();
        let peer = SocketAddr::from(([127, 0, 0, 3], free_address().unwrap().port()));
        for pod in ["frontend", "web"] {
            link(&binaries().unwrap().join("postern-proxy"), &world, pod);
        }
        let own = |pod: &str| world.path().join(pod);
        let workloads = [
            workload("frontend", &own("frontend"), 1),
            workload("web", &own("web"), app.port()),
            workload("peer", program, peer.port()),
        ];
        let workloads = workloads.concat();
        let socket = world.agent(&workloads).unwrap();
        world.write("directory/workloads.yaml", &workloads).unwrap();
        world.write("policies/rules.yaml", &rules(caller)).unwrap();
        let [web, out, inbound] = [(); 3].map(|()| free_address().unwrap());
        let harden = match rustix::process::geteuid().is_root() {
            true => "",
            false => "harden: {insecureAllowDumpable: true}\n",
        };
        let common = |name: &str| {
            let [admin, metrics] = [(); 2].map(|()| free_address().unwrap());
            format!(
                "identity: {{workloadApi: 'unix://{}'}}\n\
                 policies: {{directory: policies}}\nworkloads: {{directory: directory}}\n\
                 admin: {{listen: '{admin}'}}\nmetrics: {{listen: '{metrics}'}}\n\
                 accessLog: {{path: {name}-access.log}}\ndrain: 1s\n{harden}",
                socket.display()
            )
        };
        let of_web = format!("inbound: {{listen: '{web}', forward: '{app}'}}\n");
        let of_frontend = format!(
            "inbound: {{listen: '{inbound}', forward: '127.0.0.1:9'}}\n\
             outbound: {{listeners: [{{listen: '{out}', to: default/peer, port: http}}]}}\n"
        );
        for (name, more) in [("web", of_web), ("frontend", of_frontend)] {
            let (program, config) = (world.path().join(name), common(name) + &more);
            world.proxy_at(name, &program, &config).unwrap();
            world.said(name, "ready").unwrap();
        }
        Self {
            world,
            socket,
            web,
            out,
            peer,
        }
    }
}

fn workload(name: &str, program: &Path, port: u16) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\n\
         metadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec:\n  serviceAccount: {name}\n  selectors: ['unix:path:{}']\n  svidTTL: 6s\n  \
         addresses: [127.0.0.3]\n  ports: [{{name: http, port: {port}}}]\n---\n",
        fs::canonicalize(program).unwrap().display()
    )
}

/// Everybody may connect to everybody; only `caller` may ask anything of web, and not about admin.
fn rules(caller: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: all}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: [{{}}], egress: [{{}}]}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: web}}\n\
         spec:\n  selector: {{matchLabels: {{app: web}}}}\n  rules:\n    \
         - from: [{{source: {{principals: ['example.org/ns/default/sa/{caller}']}}}}]\n      \
         to: [{{operation: {{paths: ['/api/*', '/grpc.*']}}}}]\n"
    )
}
