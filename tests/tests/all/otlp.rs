//! Spans of requests, as collectors of traces get them: one in Python from OpenTelemetry's own contract,
//! and one of ours that may be away.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::{Arc, Mutex},
};

use postern_proto::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, Span,
    trace_service_server::{TraceService, TraceServiceServer},
};
use postern_tests::{eventually, root, run, world::free_address};
use rustix::process::Signal;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::{Request, Response, Status, transport::Server};

use super::ending::{Site, ask, curl};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// Two proxies that send spans there.
fn site(collector: SocketAddr, sample: &str) -> Site {
    let drain = format!(
        "{{delay: 0s, deadline: 10s}}\n\
         telemetry: {{otlp: {{endpoint: 'http://{collector}', sample: {sample}}}}}"
    );
    Site::start(&drain)
}

/// A request that belongs to a trace, recorded or not.
fn traced(to: SocketAddr, path: &str, flags: &str) -> String {
    let field = format!("traceparent: 00-{TRACE}-{SPAN}-{flags}");
    let url = format!("http://{to}{path}");
    let output = run("curl", &["-si", "-m", "10", "-H", &field, &url]).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_request_is_a_span_on_each_road_to_a_collector_that_others_specified() {
    let address = free_address().unwrap();
    let mut site = site(address, "0");
    let mut python = Command::new(root().join("target/python/bin/python"));
    python.arg(root().join("tests/python/collector.py"));
    python.arg(address.port().to_string());
    site.world.spawn("collector", &mut python).unwrap();
    site.world.write("policies/deny.yaml", DENY).unwrap();
    eventually("the refusal", || {
        curl(site.out, "/denied")
            .starts_with("http/1.1 403")
            .then_some(())
    })
    .unwrap();

    // Who is not recorded is not told of; the twin is.
    assert!(traced(site.out, "/not-recorded", "00").contains("200 OK"));
    assert!(traced(site.out, "/recorded?secret=1", "01").contains("200 OK"));
    assert!(traced(site.out, "/denied", "01").contains("403"));
    let spans = || -> Vec<Value> {
        let log = fs::read_to_string(site.world.log("collector")).unwrap();
        let spans = log.lines().filter(|line| line.starts_with('{'));
        spans
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let spans = eventually("four spans", || Some(spans()).filter(|all| all.len() >= 4)).unwrap();
    assert_eq!(spans.len(), 4, "{spans:?}");
    let one = |service: &str, path: &str| {
        let of = |span: &&Value| {
            span["resource"]["service.name"] == service && span["attributes"]["url.path"] == path
        };
        spans.iter().find(of).unwrap().clone()
    };
    let (client, server) = (one("frontend", "/recorded"), one("web", "/recorded"));
    for span in [&client, &server] {
        assert_eq!(
            (&span["trace"], &span["name"]),
            (&TRACE.into(), &"GET".into())
        );
        assert_eq!(span["scope"], "postern-proxy");
        assert_eq!(span["resource"]["service.namespace"], "default");
        assert_eq!(
            (&span["status"], &span["flags"]),
            (&"STATUS_CODE_UNSET".into(), &1.into())
        );
        assert!(span["nanoseconds"].as_u64().is_some_and(|took| took > 0));
        let said = &span["attributes"];
        for (key, value) in [
            ("http.request.method", "GET"),
            ("postern.verdict", "allow"),
            (
                "postern.source.spiffe_id",
                "spiffe://example.org/ns/default/sa/frontend",
            ),
            ("client.address", "127.0.0.1"),
        ] {
            assert_eq!(said[key], value, "{key} in {span}");
        }
        assert_eq!(said["http.response.status_code"], 200);
        assert!(!span.to_string().contains("secret"), "{span}");
    }
    assert_eq!(
        (&client["kind"], &client["parent"]),
        (&"SPAN_KIND_CLIENT".into(), &SPAN.into())
    );
    assert_eq!(client["attributes"]["server.address"], "127.0.0.2");
    assert_eq!(client["attributes"]["server.port"], site.web.port());
    let web = "spiffe://example.org/ns/default/sa/web";
    assert_eq!(client["attributes"]["postern.destination.spiffe_id"], web);
    assert_eq!(server["kind"], "SPAN_KIND_SERVER");
    assert_eq!(server["parent"], client["span"], "the one called the other");
    assert_eq!(server["attributes"]["url.scheme"], "https");

    let (client, server) = (one("frontend", "/denied"), one("web", "/denied"));
    let said = &server["attributes"];
    assert_eq!(said["postern.verdict"], "deny");
    assert_eq!(said["postern.policy"], "default/denied");
    assert_eq!(said["postern.policy.kind"], "AuthorizationPolicy");
    assert_eq!(said["http.response.status_code"], 403);
    // To a server a refusal is no error; to its client it is.
    assert_eq!(server["status"], "STATUS_CODE_UNSET");
    assert_eq!(client["status"], "STATUS_CODE_ERROR");
    assert_eq!(client["attributes"]["error.type"], "403");
}

/// A collector in this process.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        let spans = scopes.flat_map(|scope| scope.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn serve(&self, runtime: &Runtime, address: SocketAddr) {
        let service = TraceServiceServer::new(self.clone());
        runtime.spawn(Server::builder().add_service(service).serve(address));
    }

    /// How many spans of a kind it got: 2 server, 3 client.
    fn count(&self, kind: i32) -> usize {
        let spans = self.0.lock().unwrap();
        spans.iter().filter(|span| span.kind == kind).count()
    }
}

fn metric(site: &Site, name: &str) -> u64 {
    let metrics = curl(site.web_health, "/metrics");
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_default()
}

#[test]
fn while_the_collector_is_away_all_is_served_and_what_does_not_fit_is_counted() {
    let (runtime, collector) = (Runtime::new().unwrap(), Collector::default());
    let address = free_address().unwrap();
    let site = site(address, "1");
    let mut stream = TcpStream::connect(site.web).unwrap();
    let (lost, exported) = (
        "postern_proxy_spans_lost_total",
        "postern_proxy_spans_exported_total",
    );
    let mut asked = 0_u64;
    while metric(&site, lost) == 0 {
        for _ in 0..100 {
            let answer = ask(&mut stream, "/api").unwrap();
            assert!(answer.starts_with("http/1.1 200"), "{answer}");
            asked += 1;
        }
        assert!(asked < 20_000, "nothing was lost of so much");
    }
    site.world
        .said(
            "web",
            "spans cannot be sent; those that find no place in the queue are lost",
        )
        .unwrap();
    // It comes, and gets all that waited.
    collector.serve(&runtime, address);
    let all = || metric(&site, lost) + metric(&site, exported);
    eventually("each span, or its loss", || (all() == asked).then_some(())).unwrap();
    let got = u64::try_from(collector.count(2)).unwrap();
    assert_eq!(got, metric(&site, exported));
    assert!(got > 2_000, "{got}");
    site.world
        .said("web", "the collector of traces takes spans again")
        .unwrap();
}

#[test]
fn traces_that_begin_here_are_recorded_as_told_and_the_last_spans_are_sent_at_the_end() {
    let (runtime, collector) = (Runtime::new().unwrap(), Collector::default());
    let address = free_address().unwrap();
    collector.serve(&runtime, address);
    let mut site = site(address, "1");
    assert!(curl(site.out, "/api").starts_with("http/1.1 200"));
    for name in ["frontend", "web"] {
        site.world.signal(name, Signal::TERM).unwrap();
        assert_eq!(site.world.ended(name).unwrap(), Some(0));
    }
    let spans = collector.0.lock().unwrap().clone();
    let by_kind: BTreeMap<i32, &Span> = spans.iter().map(|span| (span.kind, span)).collect();
    let (server, client) = (by_kind[&2], by_kind[&3]);
    assert_eq!(spans.len(), 2);
    assert!(client.parent_span_id.is_empty(), "the trace begins here");
    assert_eq!(server.parent_span_id, client.span_id);
    assert_eq!(server.trace_id, client.trace_id);
    assert_eq!((client.trace_id.len(), client.span_id.len()), (16, 8));
}

const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: denied}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/denied]}}]}]
";
