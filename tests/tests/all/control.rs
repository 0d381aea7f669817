//! Proxies without any file of policies: the agent tells them.

use std::{fs, net::SocketAddr, path::PathBuf};

use postern_tests::{
    binaries, eventually, run,
    world::{App, World, free_address},
};
use rustix::process::Signal;

struct Site {
    world: World,
    app: App,
    address: SocketAddr,
}

fn workloads(world: &World) -> String {
    let one = |name: &str, program: &str| {
        format!(
            "apiVersion: postern.dev/v1\nkind: Workload\n\
             metadata: {{name: {name}, namespace: production, labels: {{app: {name}}}}}\n\
             spec: {{serviceAccount: {name}, selectors: ['unix:path:{}'], \
             ports: [{{name: http, port: 8080}}]}}\n---\n",
            world.path().join(program).display()
        )
    };
    one("web", "web-proxy") + &one("frontend", "frontend")
}

/// What the agent tells: frontend may call web with this method.
fn policies(method: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web}}\n\
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Ingress], \
         ingress: [{{from: [{{podSelector: {{matchLabels: {{app: frontend}}}}}}]}}]}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: web}}\n\
         spec: {{selector: {{matchLabels: {{app: web}}}}, \
         rules: [{{to: [{{operation: {{methods: [{method}]}}}}]}}]}}\n"
    )
}

impl Site {
    fn start() -> Self {
        let mut world = World::new().unwrap();
        let app = App::start().unwrap();
        for (program, name) in [
            ("postern-proxy", "web-proxy"),
            ("postern-agent", "frontend"),
        ] {
            postern_tests::copy_program(binaries().unwrap().join(program), world.path().join(name))
                .unwrap();
        }
        let mut site = Self {
            address: free_address().unwrap(),
            app,
            world: World::new().unwrap(),
        };
        std::mem::swap(&mut site.world, &mut world);
        site.world
            .write("policies/web.yaml", &policies("GET"))
            .unwrap();
        site.agent();
        let (admin, metrics) = (free_address().unwrap(), free_address().unwrap());
        let config = format!(
            "identity: {{workloadApi: 'unix://{}/public/agent.sock'}}\n\
             inbound: {{listen: '{}', forward: '{}'}}\nadmin: {{listen: '{admin}'}}\n\
             metrics: {{listen: '{metrics}'}}\naccessLog: {{path: access.log}}\n",
            site.world.path().display(),
            site.address,
            site.app.address
        );
        let program = site.world.path().join("web-proxy");
        site.world.proxy_at("proxy", &program, &config).unwrap();
        site.world.said("proxy", "ready").unwrap();
        site
    }

    fn agent(&mut self) {
        let told = "policies: {directory: policies, namespace: production}\n";
        let documents = workloads(&self.world);
        self.world.agent_with(&documents, told).unwrap();
    }

    /// What frontend gets: the status, or 0 where there was no answer.
    fn call(&self) -> u16 {
        let file = |name: &str| self.world.path().join(name).display().to_string();
        let url = format!("https://{}/", self.address);
        let (certificate, key) = (file("svids/svid.0.pem"), file("svids/svid.0.key"));
        let arguments = [
            "-sk",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--cert",
            &certificate,
            "--key",
            &key,
            &url,
        ];
        let output = run("curl", &arguments).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.parse().unwrap_or_default()
    }

    fn fetch(&self) {
        let frontend: PathBuf = self.world.path().join("frontend");
        let socket = self.world.path().join("public/agent.sock");
        let folder = self.world.path().join("svids");
        let arguments = [
            "api",
            "fetch",
            "-socketPath",
            socket.to_str().unwrap(),
            "-write",
            folder.to_str().unwrap(),
        ];
        let output = run(frontend.to_str().unwrap(), &arguments).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn policies_and_workloads_come_from_the_agent_and_outlive_it() {
    let mut site = Site::start();
    site.fetch();
    assert_eq!(site.call(), 200);
    // The agent's file changes: the proxy hears of it.
    site.world
        .write("policies/web.yaml", &policies("POST"))
        .unwrap();
    eventually("the new policy", || (site.call() == 403).then_some(())).unwrap();
    let log = site.world.path().join("access.log");
    eventually("the line that names the policy", || {
        let log = fs::read_to_string(&log).unwrap();
        log.contains("policies/web.yaml").then_some(())
    })
    .unwrap();
    // One with a mistake is not told.
    site.world
        .write("policies/web.yaml", "kind: Nothing\n")
        .unwrap();
    let refused = "the documents were refused, the last good ones stay";
    site.world.said("agent", refused).unwrap();
    assert_eq!(site.call(), 403);
    site.world
        .write("policies/web.yaml", &policies("GET"))
        .unwrap();
    eventually("the old policy", || (site.call() == 200).then_some(())).unwrap();
    // Without the agent everything goes on.
    site.world.signal("agent", Signal::KILL).unwrap();
    site.world.ended("agent").unwrap();
    assert_eq!(site.call(), 200);
    site.world
        .write("policies/web.yaml", &policies("POST"))
        .unwrap();
    site.agent();
    eventually("the word of the new agent", || {
        (site.call() == 403).then_some(())
    })
    .unwrap();
    let reached = site.app.reached();
    assert_eq!(site.call(), 403);
    assert_eq!(site.app.reached(), reached);
}
