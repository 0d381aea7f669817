//! Requests of HTTP/1 as no library would send them, and answers as no app should give them.
//!
//! The cases are tables in `tests/python/http1.py`, which is the caller and the app; here stands the
//! proxy between them, and each group of cases has a name.

use std::{fs, net::SocketAddr};

use postern_tests::{
    certificates::Authority,
    eventually, root, run,
    world::{World, free_address},
};

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

/// All is allowed to one caller, opaque bytes too.
const ALLOW: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: in, namespace: production}
spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: production}
spec:
  action: ALLOW
  rules: [{from: [{source: {principals: ['example.org/workload/frontend']}}]}]
";

/// But for a path, a host, a method and a field; and so no opaque bytes, of which nobody knows.
const DENY: &str = "\
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: none, namespace: production}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: ['/denied*']}}]
  - to: [{operation: {hosts: ['denied.example']}}]
  - to: [{operation: {methods: [DELETE]}}]
  - when: [{key: 'request.headers[x-deny]', values: ['yes']}]
";

/// Limits that a test can wait for.
pub(crate) const SHORT_LIMITS: &str =
    ", limits: {headTimeout: 1s, bodyTimeout: 1s, writeTimeout: 1s}";

/// A proxy between a script that is the caller and the same script that is the app.
pub(crate) struct Between {
    pub(crate) world: World,
    pub(crate) authority: Authority,
    address: SocketAddr,
    app: SocketAddr,
    script: &'static str,
}

impl Between {
    /// Starts the proxy; `more` is added to its section `inbound`.
    pub(crate) fn start(script: &'static str, more: &str) -> Self {
        Self::with(script, more, &format!("{ALLOW}{DENY}"))
    }

    fn with(script: &'static str, more: &str, policies: &str) -> Self {
        Self::named(None, script, more, policies)
    }

    /// The app's port has a name that may say what is spoken.
    fn named(name: Option<&str>, script: &'static str, more: &str, policies: &str) -> Self {
        let mut world = World::new().unwrap();
        let authority = Authority::new("example.org").unwrap();
        for (name, id) in [
            ("web", "spiffe://example.org/ns/production/sa/web"),
            ("caller", "spiffe://example.org/workload/frontend"),
        ] {
            authority
                .write_leaf(world.path(), name, id, |_| {})
                .unwrap();
        }
        world.write("bundle.crt", &authority.pem).unwrap();
        let [address, app, admin, metrics] = [(); 4].map(|()| free_address().unwrap());
        let port = format!("name: {}, port: {}", name.unwrap_or_default(), app.port());
        let workloads = match name {
            Some(_) => WORKLOADS.replace("name: http, port: 8080", &port),
            None => WORKLOADS.to_owned(),
        };
        world.write("workloads/workloads.yaml", &workloads).unwrap();
        world.write("policies/policies.yaml", policies).unwrap();
        let config = format!(
            "identity: {{files: {{certificate: web.crt, key: web.key, bundle: bundle.crt}}}}\n\
             workload: production/web\n\
             policies: {{directory: policies, namespace: production}}\n\
             workloads: {{directory: workloads}}\n\
             inbound: {{listen: '{address}', forward: '{app}'{more}}}\n\
             admin: {{listen: '{admin}'}}\nmetrics: {{listen: '{metrics}'}}\n\
             accessLog: {{path: access.log}}\ndrain: 1s\n"
        );
        world.proxy("proxy", &config).unwrap();
        world.said("proxy", "ready").unwrap();
        Self {
            world,
            authority,
            address,
            app,
            script,
        }
    }

    /// Runs groups of the script's cases; what went wrong is what it printed.
    #[track_caller]
    pub(crate) fn holds(&self, groups: &[&str]) {
        let python = root().join("target/python/bin/python");
        let script = root().join("tests/python").join(self.script);
        let file = |name: &str| self.world.path().join(name).display().to_string();
        let (host, port) = (
            self.address.ip().to_string(),
            self.address.port().to_string(),
        );
        let app = self.app.port().to_string();
        let pid = self.world.pid("proxy").unwrap().to_string();
        let (certificate, key) = (file("caller.crt"), file("caller.key"));
        let mut arguments = vec![
            script.to_str().unwrap(),
            &host,
            &port,
            &certificate,
            &key,
            &app,
            &pid,
        ];
        arguments.extend(groups);
        let output = run(python.to_str().unwrap(), &arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}{wrong}");
    }
}

#[track_caller]
fn holds(group: &str) {
    Between::start("http1.py", "").holds(&[group]);
}

#[test]
fn two_lengths_and_odd_lengths_are_refused() {
    // FAULTS 81, 83
    holds("lengths_and_encodings");
}

#[test]
fn encodings_that_are_not_plainly_chunked_are_refused() {
    // FAULTS 82
    holds("obfuscated_encodings");
}

#[test]
fn folds_bare_line_ends_and_control_characters_are_refused() {
    // FAULTS 84
    holds("fields_and_line_ends");
}

#[test]
fn bad_chunks_are_refused_and_never_end_cleanly() {
    // FAULTS 85
    holds("chunks");
}

#[test]
fn trailers_that_belong_into_the_head_are_dropped() {
    // FAULTS 86, 114
    holds("trailers");
}

#[test]
fn heads_without_measure_are_refused() {
    // FAULTS 87
    holds("too_much");
}

#[test]
fn target_and_host_are_one_and_rule_everywhere() {
    // FAULTS 88, 89, 112
    holds("targets_and_hosts");
}

#[test]
fn methods_that_nobody_knows_are_refused_and_overrides_ignored() {
    // FAULTS 90, 110
    holds("methods");
}

#[test]
fn no_spelling_of_a_denied_path_reaches_the_app() {
    // FAULTS 108
    holds("denied_paths");
}

#[test]
fn nothing_switches_protocols_but_an_allowed_websocket() {
    // FAULTS 91
    holds("upgrades");
}

#[test]
fn a_websocket_carries_bytes_both_ways() {
    // FAULTS 91
    holds("websocket");
}

#[test]
fn a_websocket_ends_when_its_caller_is_no_longer_allowed() {
    // FAULTS 91
    holds("websocket_cut");
}

#[test]
fn no_websocket_is_opened_where_the_configuration_says_so() {
    // FAULTS 91
    Between::start("http1.py", ", upgrades: []").holds(&["no_websocket"]);
}

#[test]
fn each_request_of_a_pipeline_is_judged_alone() {
    // FAULTS 92
    holds("pipelines");
}

#[test]
fn bodies_are_neither_lost_nor_invented() {
    // FAULTS 93
    holds("expectations");
}

#[test]
fn a_body_that_is_too_short_never_ends_cleanly() {
    // FAULTS 94
    holds("short_bodies");
}

#[test]
fn slow_callers_are_cut_off() {
    // FAULTS 94
    Between::start("http1.py", SHORT_LIMITS).holds(&["slow_callers"]);
}

#[test]
fn a_caller_that_does_not_read_is_cut_off() {
    // FAULTS 94
    Between::start("http1.py", SHORT_LIMITS).holds(&["no_reader"]);
}

#[test]
fn bad_answers_are_refused_and_belong_to_nobody_else() {
    // FAULTS 95
    holds("bad_answers");
}

#[test]
fn identity_fields_are_set_by_the_proxy_alone() {
    // FAULTS 111, 114, 115
    holds("fields_of_one_connection");
}

#[test]
fn a_request_is_one_however_its_first_bytes_come() {
    // FAULTS 94, 114
    holds("detection");
}

#[test]
fn a_request_stays_one_where_opaque_bytes_are_allowed() {
    // FAULTS 114
    let both = Between::with("http1.py", "", ALLOW);
    both.holds(&["detection_where_all_is_allowed", "server_first"]);
}

#[test]
fn an_opaque_connection_on_which_nothing_moves_ends_even_if_nobody_ever_began() {
    let both = Between::with("http1.py", ", idleTimeout: 1s", ALLOW);
    both.holds(&["idle"]);
    let log = both.world.path().join("access.log");
    let ended = || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        (log.matches("nothing moved for 1s").count() == 2).then_some(())
    };
    eventually("the reason of two of three", ended).unwrap();
}

#[test]
fn the_name_of_a_port_says_what_is_spoken_unless_the_configuration_does() {
    // FAULTS 114
    for (name, more, group) in [
        ("tcp-app", "", "declared_tcp"),
        ("http-app", "", "declared_http"),
        ("grpc-app", "", "declared_http2"),
        ("app", "", "declared_nothing"),
        ("tcp-app", ", protocol: auto", "declared_nothing"),
        ("http-app", ", protocol: auto", "declared_nothing"),
        ("tcp-app", ", protocol: http", "declared_http"),
    ] {
        Between::named(Some(name), "http1.py", more, ALLOW).holds(&[group]);
    }
}
