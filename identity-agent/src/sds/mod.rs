//! Envoy's Secret Discovery Service on the Workload API's socket: an unmodified Envoy takes its
//! certificate and whom to trust from here.
//!
//! The names are those of SPIRE's agent. A stream is judged like one of the Workload API: again on
//! every change and on a timer, and it ends with `PermissionDenied` when the right is lost. Envoy
//! cannot send the security header, and none is asked for. Spec: Envoy xDS protocol, "State of the
//! World" and "Incremental".

mod delta;
mod secrets;
mod state_of_world;

use std::sync::Arc;

use futures_util::stream::BoxStream;
use postern_proto::sds::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Status as Nack, secret_discovery_service_server::SecretDiscoveryService,
};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    admission::{Admission, Follower, on_a_thread},
    agent::{Agent, Entitled},
    audit,
    caller::PinnedProcess,
    workload_api::stream::Held,
};

/// The service.
#[derive(Debug)]
pub struct Sds {
    admission: Arc<Admission>,
}

impl Sds {
    /// Serves those who are let in.
    pub fn new(admission: Arc<Admission>) -> Self {
        Self { admission }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type DeltaSecretsStream = BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;
    type StreamSecretsStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let caller = Subscriber::of(&self.admission, &request, "DeltaSecrets").await?;
        Ok(Response::new(delta::stream(caller, request.into_inner())))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let caller = Subscriber::of(&self.admission, &request, "StreamSecrets").await?;
        Ok(Response::new(state_of_world::stream(
            caller,
            request.into_inner(),
        )))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let process = self.admission.caller(&request)?;
        self.admission.call(&process)?;
        let request = request.into_inner();
        is_of_secrets(&request.type_url)?;
        let agent = &self.admission.agent;
        audit::room(agent).await?;
        let (entitled, held) = on_a_thread(agent, &process, FETCH, held).await?;
        audit::tells(agent, FETCH, &process, &entitled, &held.serials())?;
        let own = self.admission.agent.authority.trust_domain().id_string();
        state_of_world::answer(&request.resource_names, &held, &own, "1".into()).map(Response::new)
    }
}

/// Who reads a stream.
struct Subscriber {
    follower: Follower,
    own: String,
}

impl Subscriber {
    /// Nobody holds a stream who is nobody.
    async fn of<T>(
        admission: &Admission,
        request: &Request<T>,
        method: &'static str,
    ) -> Result<Self, Status> {
        let process = admission.caller(request)?;
        let mut follower = admission.stream(process, method);
        follower.now(|_, _| Ok(())).await?;
        Ok(Self {
            follower,
            own: admission.agent.authority.trust_domain().id_string(),
        })
    }

    /// What it holds now, and by what right.
    async fn held(&mut self) -> Result<(Entitled, Held), Status> {
        audit::room(&self.follower.agent).await?;
        self.follower.now(held).await
    }

    /// Waits until that is to be looked at again.
    async fn wait(&mut self, held: Option<&Held>) {
        self.follower.wait(held.and_then(Held::renew_at)).await;
    }

    /// Writes down what is about to be told.
    fn tells(&self, entitled: &Entitled, held: &Held) -> Result<(), Status> {
        let Follower {
            agent,
            process,
            method,
            ..
        } = &self.follower;
        audit::tells(agent, method, process, entitled, &held.serials())
    }
}

fn held(agent: &Agent, entitled: &Entitled) -> Result<Held, Status> {
    Held::now(agent, entitled).map_err(|error| Status::unavailable(error.told()))
}

fn is_of_secrets(type_url: &str) -> Result<(), Status> {
    match type_url {
        "" | secrets::SECRET => Ok(()),
        other => Err(Status::invalid_argument(format!(
            "`{other}` is not served here, only `{}`",
            secrets::SECRET
        ))),
    }
}

const FETCH: &str = "FetchSecrets";

/// How much of a reader's own words the log has.
const MAX_WHY: usize = 256;

/// Says that a reader did not take what it was sent. It will get the next change.
fn log_refusal(process: &PinnedProcess, why: &Nack) {
    let why: String = why.message.chars().take(MAX_WHY).collect();
    tracing::warn!(
        pid = process.pid(),
        why,
        "the reader of a secret did not take it"
    );
}
