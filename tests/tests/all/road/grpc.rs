//! gRPC over the whole road, with tonic at both ends: streams that live longer than certificates,
//! trailers, time limits, calls that are given up.

use std::{
    fs,
    time::{Duration, Instant},
};

use postern_tests::{
    eventually,
    world::{App, free_address},
};
use rustix::process::Signal;
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::{
    pb::v1::{
        FILE_DESCRIPTOR_SET, ServerReflectionRequest, ServerReflectionResponse,
        server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    },
    server::Builder,
};

use super::{Road, Start, rules};

const RENEWED: &str = "postern_proxy_renewals_total{direction=\"inbound\",result=\"renewed\"}";
const CUT: &str = "postern_proxy_connections_cut_total{direction=\"inbound\",reason=\"expired\"}";

/// A road with a gRPC app at its end, and what runs the app.
struct Called {
    road: Road,
    port: u16,
    runtime: Runtime,
}

impl Called {
    fn new(svid_ttl: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let (app, address) = (App::start().unwrap(), free_address().unwrap());
        let (_, health) = tonic_health::server::health_reporter();
        let reflection = Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .build_v1()
            .unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(health)
            .add_service(reflection);
        runtime.spawn(server.serve(address));
        let road = Road::to(app, address, &Start::AgentFirst, svid_ttl);
        let called = Self {
            road,
            port: address.port(),
            runtime,
        };
        called.allow("/grpc.*", "frontend");
        let mut client = HealthClient::new(called.channel());
        eventually("the app", || {
            let asked = client.check(HealthCheckRequest::default());
            called.runtime.block_on(asked).ok()
        })
        .unwrap();
        called
    }

    /// Which paths are allowed, and to whom the network is.
    fn allow(&self, paths: &str, app: &str) {
        let rules = rules(self.port, "[\"POST\"]").replace("/api/*", paths);
        let from = "from: [{podSelector: {matchLabels: {app: frontend}}}]";
        assert!(rules.contains(from));
        let rules = rules.replace(from, &from.replace("frontend", app));
        self.road
            .world
            .write("policies/rules.yaml", &rules)
            .unwrap();
    }

    fn channel(&self) -> Channel {
        let uri = format!("http://{}", self.road.web);
        let endpoint = Channel::from_shared(uri).unwrap();
        self.runtime.block_on(async { endpoint.connect_lazy() })
    }

    /// A stream in both directions.
    fn stream(&self) -> Conversation<'_> {
        let (asks, asked) = mpsc::channel(1);
        let mut client = ServerReflectionClient::new(self.channel());
        asks.try_send(question()).unwrap();
        let open = client.server_reflection_info(ReceiverStream::new(asked));
        let answers = self.runtime.block_on(open).unwrap().into_inner();
        let mut conversation = Conversation {
            runtime: &self.runtime,
            asks,
            answers,
        };
        conversation.answer().unwrap();
        conversation
    }

    fn metric(&self, name: &str) -> f64 {
        let value = self.road.metric(name);
        value.map_or(0.0, |value| value.parse().unwrap())
    }
}

fn question() -> ServerReflectionRequest {
    ServerReflectionRequest {
        host: "web".into(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    }
}

struct Conversation<'r> {
    runtime: &'r Runtime,
    asks: mpsc::Sender<ServerReflectionRequest>,
    answers: Streaming<ServerReflectionResponse>,
}

impl Conversation<'_> {
    fn ask(&mut self) -> Result<(), String> {
        let sent = self.runtime.block_on(self.asks.send(question()));
        sent.map_err(|_| "the stream is closed".to_owned())?;
        self.answer()
    }

    fn answer(&mut self) -> Result<(), String> {
        let next = async { timeout(Duration::from_secs(10), self.answers.message()).await };
        match self.runtime.block_on(next) {
            Ok(Ok(Some(_))) => Ok(()),
            Ok(Ok(None)) => Err("the stream ended".into()),
            Ok(Err(status)) => Err(status.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }
}

#[test]
fn a_stream_both_ways_outlives_several_certificates_of_both_ends() {
    // FAULTS 132
    let called = Called::new("4s");
    let mut stream = called.stream();
    // More than three times as long as the certificates of its handshake live.
    let end = Instant::now() + Duration::from_secs(14);
    while Instant::now() < end {
        stream.ask().unwrap();
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert!(called.metric(RENEWED) >= 3.0, "{}", called.metric(RENEWED));
    assert!(called.metric(CUT) < 1.0);
}

#[test]
fn a_stream_that_was_renewed_ends_when_the_policy_changes() {
    let called = Called::new("4s");
    let mut stream = called.stream();
    eventually("a renewal", || {
        stream.ask().unwrap();
        (called.metric(RENEWED) >= 1.0).then_some(())
    })
    .unwrap();
    called.allow("/grpc.*", "other");
    eventually("the end", || stream.ask().err()).unwrap();
}

#[test]
fn a_stream_ends_with_its_certificates_when_there_are_no_new_ones() {
    let mut called = Called::new("4s");
    let world = &mut called.road.world;
    world.signal("agent", Signal::KILL).unwrap();
    world.ended("agent").unwrap();
    let mut stream = called.stream();
    eventually("the end", || stream.ask().err()).unwrap();
    // Not because it was withdrawn: there was nobody to do that.
    let logs = ["web", "frontend"].map(|pod| called.road.world.log(pod));
    let reasons = ["expired", "no_identity"].map(|reason| format!("\"reason\":\"{reason}\""));
    let is_told = |log: &std::path::PathBuf| {
        let log = fs::read_to_string(log).unwrap();
        reasons.iter().any(|reason| log.contains(reason))
    };
    eventually("the reason", || logs.iter().any(is_told).then_some(())).unwrap();
}

#[test]
fn statuses_come_through_and_a_refusal_is_one_that_grpc_understands() {
    let called = Called::new("1h");
    let mut client = HealthClient::new(called.channel());
    let service = "nobody".to_owned();
    let asked = client.check(HealthCheckRequest { service });
    let status = called.runtime.block_on(asked).unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    called.allow("/other.*", "frontend");
    let refused = eventually("the refusal", || {
        let asked = client.check(HealthCheckRequest::default());
        called.runtime.block_on(asked).err()
    })
    .unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

#[test]
fn a_call_that_is_given_up_ends_at_the_far_end_and_its_neighbour_goes_on() {
    let called = Called::new("1h");
    let mut stream = called.stream();
    let mut client = HealthClient::new(called.channel());
    let log = called.road.world.path().join("web-access.log");
    let ended = || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        log.matches("/grpc.health.v1.Health/Watch").count()
    };
    let watch = client.watch(HealthCheckRequest::default());
    let mut given_up = called.runtime.block_on(watch).unwrap().into_inner();
    called
        .runtime
        .block_on(given_up.message())
        .unwrap()
        .unwrap();
    assert_eq!(ended(), 0);
    drop(given_up);
    eventually("its end", || (ended() == 1).then_some(())).unwrap();
    stream.ask().unwrap();
}
