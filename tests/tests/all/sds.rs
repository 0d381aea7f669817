//! Envoy's Secret Discovery Service, question by question: which names there are, and what is refused.

use std::path::Path;

use hyper_util::rt::TokioIo;
use postern_proto::sds::{
    DeltaDiscoveryRequest, DiscoveryRequest, Secret,
    secret_discovery_service_client::SecretDiscoveryServiceClient,
};
use postern_tests::world::World;
use rustix::process::geteuid;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{
    Code,
    transport::{Channel, Endpoint, Uri},
};

const WEB: &str = "spiffe://example.org/web";
const OWN: &str = "spiffe://example.org";
const OTHER: &str = "spiffe://other.test";

/// An agent with one identity that federates with one other trust domain.
fn world() -> World {
    let mut other = World::new().unwrap();
    other.agent_of("other.test", "", "").unwrap();
    let shown = other
        .admin(&["bundle", "show", "--format", "spiffe"])
        .unwrap();
    let mut world = World::new().unwrap();
    let bundle = String::from_utf8(shown.stdout).unwrap();
    world.write("other.json", &bundle).unwrap();
    let document = format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web}}\n\
         spec: {{spiffeID: '{WEB}', selectors: ['unix:uid:{}'], federatesWith: [other.test]}}\n",
        geteuid().as_raw()
    );
    let more = "federation: {trustDomains: [{name: other.test, bundleFile: other.json}]}\n";
    world.agent_with(&document, more).unwrap();
    world
}

async fn client(folder: &Path) -> SecretDiscoveryServiceClient<Channel> {
    let socket = folder.join("public/agent.sock");
    let connect = move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    // The address is never used.
    let endpoint = Endpoint::from_static("http://agent");
    let channel = endpoint.connect_with_connector(tower::service_fn(connect));
    SecretDiscoveryServiceClient::new(channel.await.unwrap())
}

fn question(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(ToString::to_string).collect(),
        ..DiscoveryRequest::default()
    }
}

fn subscription(names: &[&str], without: &[&str]) -> DeltaDiscoveryRequest {
    let all = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    DeltaDiscoveryRequest {
        resource_names_subscribe: all(names),
        resource_names_unsubscribe: all(without),
        ..DeltaDiscoveryRequest::default()
    }
}

#[test]
fn secrets_have_the_names_of_spires_agent_and_no_others() {
    let world = world();
    Runtime::new().unwrap().block_on(async {
        let mut client = client(world.path()).await;
        for (names, expected) in [
            (&[][..], &[WEB, OTHER, OWN][..]),
            (&["*"], &[WEB, OTHER, OWN]),
            (&["*", "default"], &[WEB, OTHER, OWN, "default"]),
            (&[WEB], &[WEB]),
            (&["default", "ROOTCA", "ALL"], &["default", "ROOTCA", "ALL"]),
            (&[OTHER], &[OTHER]),
        ] {
            let answer = client
                .fetch_secrets(question(names))
                .await
                .unwrap()
                .into_inner();
            let secrets = answer.resources.iter().map(|one| {
                let secret: Secret = prost::Message::decode(one.value.as_slice()).unwrap();
                assert!(secret.r#type.is_some());
                secret.name
            });
            assert_eq!(secrets.collect::<Vec<_>>(), expected, "{names:?}");
        }
        for names in [
            &["spiffe://example.org/db"][..],
            &[WEB, "unknown"],
            &["spiffe://third.test"],
            &[""],
        ] {
            let refused = client.fetch_secrets(question(names)).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{names:?}");
        }
        let other_kind = DiscoveryRequest {
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
            ..question(&[WEB])
        };
        let refused = client.fetch_secrets(other_kind).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    });
}

#[test]
fn a_subscription_to_everything_is_begun_and_ended_by_its_name() {
    let world = world();
    Runtime::new().unwrap().block_on(async {
        let mut client = client(world.path()).await;
        let (ask, questions) = tokio::sync::mpsc::channel(4);
        let questions = tokio_stream::wrappers::ReceiverStream::new(questions);
        ask.send(subscription(&["*", "default"], &[]))
            .await
            .unwrap();
        let mut answers = client.delta_secrets(questions).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        let mut names: Vec<&str> = answer
            .resources
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["default", OWN, WEB, OTHER]);
        assert_eq!(answer.removed_resources, [""; 0]);
        // What is named stays.
        ask.send(subscription(&["nobodys"], &["*"])).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        let mut gone = answer.removed_resources;
        gone.sort_unstable();
        assert_eq!(gone, ["nobodys", OWN, WEB, OTHER]);
        assert!(answer.resources.is_empty());
        // It has taken none of it, says so, and is told what is new all the same.
        let refusal = DeltaDiscoveryRequest {
            response_nonce: answer.nonce,
            error_detail: Some(postern_proto::sds::Status {
                message: "no".into(),
                ..Default::default()
            }),
            ..subscription(&[WEB], &[])
        };
        ask.send(refusal).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.resources.first().unwrap().name, WEB);
        // A stream does not grow without end.
        let many: Vec<String> = (0..1_000).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        ask.send(subscription(&many, &[])).await.unwrap();
        let refused = answers.message().await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        world
            .said("agent", "the reader of a secret did not take it")
            .unwrap();
    });
}
