//! The proxy's road in, called by openssl and curl, with good and wrong certificates from files.

use std::{net::SocketAddr, path::Path, process::Command};

use postern_tests::{
    binaries,
    certificates::Authority,
    eventually, root, run,
    world::{App, World, free_address},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, SanType};

const WORKLOADS: &str = "\
apiVersion: postern.dev/v1
kind: Workload
metadata: {name: frontend, namespace: production, labels: {app: frontend}}
spec: {spiffeID: 'spiffe://example.org/workload/frontend'}
---
apiVersion: postern.dev/v1
kind: Workload
metadata: {name: web, namespace: production, labels: {app: web}}
spec: {serviceAccount: web, ports: [{name: http, port: 8080}]}
";

const FRONTEND: &str = "spiffe://example.org/workload/frontend";

/// A proxy in front of an app, with an identity from files and the policies of the demo.
pub(super) struct Site {
    pub(super) world: World,
    pub(super) app: App,
    pub(super) address: SocketAddr,
    pub(super) authority: Authority,
    metrics: SocketAddr,
    admin: SocketAddr,
}

impl Site {
    pub(super) fn start() -> Self {
        Self::start_under(":")
    }

    /// With a proxy that a shell has done this for before.
    pub(super) fn start_under(line: &str) -> Self {
        let mut world = World::new().unwrap();
        let app = App::start().unwrap();
        let authority = Authority::new("example.org").unwrap();
        authority
            .write_leaf(
                world.path(),
                "web",
                "spiffe://example.org/ns/production/sa/web",
                |_| {},
            )
            .unwrap();
        world.write("bundle.crt", &authority.pem).unwrap();
        world.write("workloads/workloads.yaml", WORKLOADS).unwrap();
        let port = app.address.port().to_string();
        for folder in ["seed", "demo"] {
            let examples = root().join("policies/examples").join(folder);
            for entry in std::fs::read_dir(examples).unwrap() {
                let path = entry.unwrap().path();
                // The app of this test has another port than that of the examples.
                let text = std::fs::read_to_string(&path)
                    .unwrap()
                    .replace("8080", &port);
                let name = path.file_name().unwrap().to_str().unwrap();
                world.write(&format!("policies/{name}"), &text).unwrap();
            }
        }
        let (address, admin, metrics) = (
            free_address().unwrap(),
            free_address().unwrap(),
            free_address().unwrap(),
        );
        let config = format!(
            "identity: {{files: {{certificate: web.crt, key: web.key, bundle: bundle.crt}}}}\n\
             workload: production/web\n\
             policies: {{directory: policies, namespace: production}}\n\
             workloads: {{directory: workloads}}\n\
             inbound: {{listen: '{address}', forward: '{}'}}\n\
             admin: {{listen: '{admin}'}}\nmetrics: {{listen: '{metrics}'}}\n\
             accessLog: {{path: access.log}}\ndrain: 1s\n",
            app.address
        );
        let config = world.write("proxy.yaml", &config).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{line}; exec \"$0\" run --config \"$1\"")]);
        shell.arg(binaries().unwrap().join("postern-proxy"));
        world.spawn("proxy", shell.arg(config)).unwrap();
        world.said("proxy", "ready").unwrap();
        Self {
            metrics,
            admin,
            world,
            app,
            address,
            authority,
        }
    }

    /// What its metrics say.
    pub(super) fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.metrics);
        let output = run("curl", &["-s", &url]).unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// One of them; none is 0.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(name));
        value.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    pub(super) fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) {
        self.authority
            .write_leaf(self.world.path(), "caller", FRONTEND, change)
            .unwrap();
    }

    /// What curl gets with the caller's certificate: the status, or 0 where there was no answer.
    pub(super) fn curl(&self, arguments: &[&str], path: &str) -> u16 {
        let file = |name: &str| self.world.path().join(name).display().to_string();
        let (certificate, key) = (file("caller.crt"), file("caller.key"));
        let url = format!("https://{}{path}", self.address);
        let mut all = vec![
            "-sk",
            "--path-as-is",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--cert",
        ];
        all.extend([certificate.as_str(), "--key", key.as_str()]);
        all.extend(arguments);
        all.push(&url);
        let output = run("curl", &all).unwrap();
        String::from_utf8_lossy(&output.stdout)
            .parse()
            .unwrap_or_default()
    }

    /// Does the handshake of openssl fail with an alert, before the app sees anything?
    #[track_caller]
    fn is_refused_in_the_handshake(&self, certificate: Option<&Path>) {
        let before = self.app.reached();
        let address = self.address.to_string();
        let mut all = vec![
            "s_client",
            "-connect",
            address.as_str(),
            "-tls1_3",
            "-ign_eof",
        ];
        let path = certificate.map(|path| path.display().to_string());
        let key = certificate.map(|path| path.with_extension("key").display().to_string());
        if let (Some(path), Some(key)) = (&path, &key) {
            all.extend(["-cert", path.as_str(), "-key", key.as_str()]);
        }
        let output = run("openssl", &all).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("alert"), "{said}");
        assert_eq!(self.app.reached(), before, "the app saw something");
    }
}

#[test]
fn curl_is_allowed_and_refused_as_the_policies_say() {
    let site = Site::start();
    site.leaf(|_| {});
    for version in ["--http1.1", "--http2"] {
        assert_eq!(site.curl(&[version], "/api/v1/orders"), 200);
        assert_eq!(site.curl(&[version, "-X", "DELETE"], "/api/v1/orders"), 403);
        assert_eq!(site.curl(&[version], "/admin"), 403);
        assert_eq!(site.curl(&[version], "/api/v1/../../admin"), 403);
        assert_eq!(site.curl(&[version], "/api/v1/%2e%2e/admin"), 403);
        assert_eq!(site.curl(&[version], "/api/v1/a%2fb"), 400);
    }
    assert_eq!(
        site.app.reached(),
        2,
        "only what was allowed reached the app"
    );
}

#[test]
fn who_speaks_both_versions_speaks_the_one_that_is_taken_and_who_speaks_another_alone_is_refused() {
    let only_1 = "sed -i 's/^inbound: {/inbound: {protocol: http1, /' \"$1\"";
    let site = Site::start_under(only_1);
    site.leaf(|_| {});
    assert_eq!(site.curl(&["--http2"], "/api/v1/orders"), 200);
    assert_eq!(site.curl(&["--http1.1"], "/api/v1/orders"), 200);
    assert_eq!(site.app.reached(), 2);
    let file = |name: &str| site.world.path().join(name).display().to_string();
    let (address, certificate) = (site.address.to_string(), file("caller.crt"));
    let key = file("caller.key");
    let mut all = vec!["s_client", "-connect", &address, "-cert", &certificate];
    all.extend(["-key", &key, "-alpn", "h2"]);
    let refused = run("openssl", &all).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("no application protocol"), "{said}");
}

#[test]
fn a_caller_whom_no_policy_names_is_refused() {
    let site = Site::start();
    let other = "spiffe://example.org/workload/other";
    site.authority
        .write_leaf(site.world.path(), "caller", other, |_| {})
        .unwrap();
    assert_eq!(site.curl(&[], "/api/v1/orders"), 0);
    assert_eq!(site.app.reached(), 0);
}

#[test]
fn callers_without_a_good_certificate_are_refused_in_the_handshake() {
    let site = Site::start();
    site.leaf(|_| {});
    assert_eq!(
        site.curl(&[], "/api/v1/orders"),
        200,
        "the twin of all the others"
    );
    site.is_refused_in_the_handshake(None);

    let caller = site.world.path().join("caller.crt");
    let past = rcgen::date_time_ymd(2020, 1, 1);
    type Change = Box<dyn FnOnce(&mut CertificateParams)>;
    let wrong: Vec<Change> = vec![
        Box::new(move |params| params.not_after = past),
        Box::new(|params| {
            params
                .subject_alt_names
                .push(uri("spiffe://example.org/second"))
        }),
        Box::new(|params| {
            params.subject_alt_names = vec![uri("spiffe://example.net/workload/frontend")]
        }),
        Box::new(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        Box::new(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        Box::new(|params| params.key_usages.clear()),
        Box::new(|params| params.subject_alt_names.clear()),
    ];
    for change in wrong {
        site.leaf(change);
        site.is_refused_in_the_handshake(Some(&caller));
    }
    // Of another authority, for the same identity; and of another trust domain altogether.
    for domain in ["example.org", "example.net"] {
        let other = Authority::new(domain).unwrap();
        let id = format!("spiffe://{domain}/workload/frontend");
        other
            .write_leaf(site.world.path(), "caller", &id, |_| {})
            .unwrap();
        site.is_refused_in_the_handshake(Some(&caller));
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn plaintext_and_old_tls_are_refused() {
    let site = Site::start();
    site.leaf(|_| {});
    let plain = run(
        "curl",
        &["-s", &format!("http://{}/api/v1/orders", site.address)],
    )
    .unwrap();
    assert!(!plain.status.success() && plain.stdout.is_empty());
    assert_eq!(site.curl(&["--tls-max", "1.2"], "/api/v1/orders"), 0);
    assert_eq!(site.app.reached(), 0);
}

#[test]
fn status_tells_how_the_proxy_is() {
    let site = Site::start();
    let proxy = binaries().unwrap().join("postern-proxy");
    let status = |address: SocketAddr, more: &[&str]| {
        let address = address.to_string();
        let arguments = [&["status", "--address", &address], more].concat();
        run(proxy.to_str().unwrap(), &arguments).unwrap()
    };
    let told = status(site.admin, &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert!(told.status.success());
    assert_eq!(json["ready"], true);
    assert_eq!(
        json["identity"],
        "spiffe://example.org/ns/production/sa/web"
    );
    assert_eq!(json["workload"], "production/web");
    assert!(String::from_utf8_lossy(&status(site.admin, &[]).stdout).contains("ready\ttrue"));
    // The metrics listener is reached from everywhere, and knows nothing of it.
    assert_eq!(status(site.metrics, &[]).status.code(), Some(1));
    // Somebody else's page in a browser is told nothing.
    let url = format!("http://{}/connections", site.admin);
    let host = ["-s", "-H", "host: evil.test", &url];
    let refused = String::from_utf8(run("curl", &host).unwrap().stdout).unwrap();
    assert!(refused.contains("ask by an address"), "{refused}");
}

#[test]
fn without_a_policy_that_is_meant_for_it_an_app_is_reached_by_nobody() {
    // FAULTS 109
    let site = Site::start();
    site.leaf(|_| {});
    assert_eq!(site.curl(&[], "/api/v1/orders"), 200);
    let folder = site.world.path().join("policies");
    let other = std::fs::read_to_string(folder.join("web-authorization.yaml")).unwrap();
    for entry in std::fs::read_dir(&folder).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let refused = || [0, 403].contains(&site.curl(&[], "/api/v1/orders"));
    eventually("no policy at all", || refused().then_some(())).unwrap();
    let reached = site.app.reached();
    for text in ["", "# nothing\n", &other.replace("web", "other")] {
        site.world.write("policies/one.yaml", text).unwrap();
        site.world
            .signal("proxy", rustix::process::Signal::HUP)
            .unwrap();
        assert!((0..10).all(|_| refused()), "{text}");
    }
    assert_eq!(site.app.reached(), reached);
}

#[test]
fn a_broken_policy_leaves_the_last_good_ones_in_force() {
    // FAULTS 124
    let site = Site::start();
    site.leaf(|_| {});
    site.world
        .write("policies/broken.yaml", "kind: NetworkPolicy\nspecc: {}\n")
        .unwrap();
    site.world
        .said(
            "proxy",
            "the policies were refused, the last good ones stay",
        )
        .unwrap();
    assert_eq!(site.curl(&[], "/api/v1/orders"), 200);
    assert_eq!(site.curl(&[], "/admin"), 403);
}

#[test]
fn the_proxy_ends_well_when_it_is_told_to() {
    // FAULTS 123
    let mut site = Site::start();
    site.world
        .signal("proxy", rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(site.world.ended("proxy").unwrap(), Some(0));
}
