//! A real Envoy that has its certificates from our agent by SDS: it calls our proxy, and is called
//! by it, over HTTP/1.1, HTTP/2 and gRPC.

use std::net::SocketAddr;

use postern_tests::{
    eventually,
    world::{App, free_address},
};
use tokio::runtime::Runtime;
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    agent::{Mixed, PEER, WEB},
    get,
};
use crate::envoy::{envoy, spawn};

const FRONTEND: &str = "spiffe://example.org/ns/default/sa/frontend";
const TYPE: &str = "type.googleapis.com/envoy.extensions";

/// The certificate that Envoy shows, whom it trusts, and who must be at the other end.
fn tls(direction: &str, other: &str, protocols: &str) -> String {
    let source = "{resource_api_version: V3, initial_fetch_timeout: 0s, api_config_source: \
                  {api_type: GRPC, transport_api_version: V3, grpc_services: \
                  [{envoy_grpc: {cluster_name: agent}}]}}";
    let asks = match direction {
        "Downstream" => "require_client_certificate: true, ",
        _ => "",
    };
    format!(
        "{{name: envoy.transport_sockets.tls, typed_config: \
         {{\"@type\": {TYPE}.transport_sockets.tls.v3.{direction}TlsContext, {asks}\
         common_tls_context: {{alpn_protocols: [{protocols}], tls_params: \
         {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, \
         tls_certificate_sds_secret_configs: [{{name: '{PEER}', sds_config: {source}}}], \
         combined_validation_context: {{default_validation_context: {{match_typed_subject_alt_names: \
         [{{san_type: URI, matcher: {{exact: '{other}'}}}}]}}, \
         validation_context_sds_secret_config: {{name: ROOTCA, sds_config: {source}}}}}}}}}}}"
    )
}

/// A listener that takes HTTP and sends all of it to one cluster, or answers itself.
fn listener(name: &str, at: SocketAddr, tls: Option<String>, route: &str) -> String {
    let socket = tls.map_or_else(String::new, |tls| format!("transport_socket: {tls}, "));
    format!(
        "  - {{name: {name}, address: {{socket_address: {{address: {}, port_value: {}}}}}, \
         filter_chains: [{{{socket}filters: [{{name: envoy.filters.network.http_connection_manager, \
         typed_config: {{\"@type\": {TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: {name}, codec_type: AUTO, http_filters: [{{name: envoy.filters.http.router, \
         typed_config: {{\"@type\": {TYPE}.filters.http.router.v3.Router}}}}], \
         route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: \
         [{{match: {{prefix: /}}, {route}}}]}}]}}}}}}]}}]}}\n",
        at.ip(),
        at.port()
    )
}

/// A cluster at one address, over TLS and HTTP/2 if it is said so.
fn cluster(name: &str, at: SocketAddr, tls: Option<String>, http2: bool) -> String {
    let socket = tls.map_or_else(String::new, |tls| format!("transport_socket: {tls}, "));
    let version = match http2 {
        true => "http2_protocol_options",
        false => "http_protocol_options",
    };
    format!(
        "  - {{name: {name}, {socket}typed_extension_protocol_options: \
         {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
         {{\"@type\": {TYPE}.upstreams.http.v3.HttpProtocolOptions, \
         explicit_http_config: {{{version}: {{}}}}}}}}, load_assignment: {{cluster_name: {name}, \
         endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: \
         {{address: {}, port_value: {}}}}}}}}}]}}]}}}}\n",
        at.ip(),
        at.port()
    )
}

/// An Envoy beside our two proxies.
struct Site {
    mixed: Mixed,
    /// Where Envoy takes plain HTTP and calls our proxy over HTTP/1.1, and over HTTP/2.
    calls: [SocketAddr; 2],
}

impl Site {
    /// `caller` may call our proxy, and Envoy lets `allowed` call it.
    fn start(app: SocketAddr, is_grpc: bool, caller: &str, allowed: &str) -> Self {
        let mut mixed = Mixed::new(&envoy(), app, caller);
        let calls = [(); 2].map(|()| free_address().unwrap());
        let admin = free_address().unwrap();
        let upstream = |protocol| Some(tls("Upstream", WEB, protocol));
        let listeners = [
            listener("plain1", calls[0], None, "route: {cluster: web1}"),
            listener("plain2", calls[1], None, "route: {cluster: web2}"),
            listener(
                "mtls",
                mixed.peer,
                Some(tls("Downstream", allowed, "h2, http/1.1")),
                "route: {cluster: app}",
            ),
        ];
        let clusters = [
            cluster("web1", mixed.web, upstream("http/1.1"), false),
            cluster("web2", mixed.web, upstream("h2"), true),
            cluster("app", app, None, is_grpc),
        ];
        let agent = format!(
            "  - {{name: agent, typed_extension_protocol_options: \
             {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
             {{\"@type\": {TYPE}.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
             {{http2_protocol_options: {{}}}}}}}}, load_assignment: {{cluster_name: agent, endpoints: \
             [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: public/agent.sock}}}}}}}}]}}]}}}}\n"
        );
        let config = format!(
            "node: {{id: test, cluster: test}}\n\
             admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}\n\
             static_resources:\n  listeners:\n{}  clusters:\n{}{agent}",
            admin.port(),
            listeners.concat(),
            clusters.concat(),
        );
        let path = mixed.world.write("envoy.yaml", &config).unwrap();
        spawn(&mut mixed.world, &path);
        Self { mixed, calls }
    }
}

#[test]
fn envoy_calls_us_and_is_called_over_both_versions_of_http() {
    let app = App::start().unwrap();
    let site = Site::start(app.address, false, "peer", FRONTEND);
    for (number, call) in site.calls.into_iter().enumerate() {
        let allowed = || (get(call, "--http1.1", "/api/orders").0 == 200).then_some(());
        eventually("Envoy's call", allowed).unwrap();
        let denied = get(call, "--http1.1", "/admin");
        assert_eq!(
            denied,
            (403, "RBAC: access denied".into()),
            "HTTP/{}",
            number + 1
        );
    }
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let called = || (get(site.mixed.out, version, "/").0 == 200).then_some(());
        eventually("Envoy to be called", called).unwrap();
    }
    // All of it goes on with the next certificates.
    let told = std::time::Instant::now();
    while told.elapsed() < std::time::Duration::from_secs(9) {
        for call in site.calls {
            assert_eq!(get(call, "--http1.1", "/api/orders").0, 200);
        }
        assert_eq!(get(site.mixed.out, "--http1.1", "/").0, 200);
    }
}

#[test]
fn envoy_is_refused_where_another_may_call_and_refuses_us_where_we_may_not() {
    let app = App::start().unwrap();
    let site = Site::start(app.address, false, "frontend", WEB);
    for call in site.calls {
        let denied = || (get(call, "--http1.1", "/api/orders").0 == 403).then_some(());
        eventually("our refusal", denied).unwrap();
    }
    let refused = get(site.mixed.out, "--http1.1", "/").0;
    assert!((500..600).contains(&refused), "{refused}");
    assert_eq!(app.reached(), 0);
}

#[test]
fn grpc_goes_through_envoy_and_us_in_both_directions() {
    let (runtime, app) = (Runtime::new().unwrap(), free_address().unwrap());
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().add_service(health);
    runtime.spawn(server.serve(app));
    let site = Site::start(app, true, "peer", FRONTEND);
    for at in [site.calls[1], site.mixed.out] {
        let endpoint = Channel::from_shared(format!("http://{at}")).unwrap();
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        let mut client = HealthClient::new(channel);
        eventually("an answer", || {
            let asked = client.check(HealthCheckRequest::default());
            runtime.block_on(asked).ok()
        })
        .unwrap();
        let service = "nobody".to_owned();
        let asked = client.check(HealthCheckRequest { service });
        let status = runtime.block_on(asked).unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "trailers pass");
    }
}
