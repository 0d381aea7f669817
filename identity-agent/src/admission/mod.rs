//! The checks before every method on the socket: the header, who calls, and how often.

mod calls;
mod follower;
mod streams;
mod turns;

use std::{sync::Arc, time::Instant};

use postern_proto::SECURITY_HEADER;
use tonic::{Request, Status};

use self::streams::Streams;
use crate::{
    agent::{Agent, Entitled},
    caller::{Caller, PinError, PinnedProcess},
    telemetry::ReasonLabel,
};

pub(crate) use calls::Calls;
pub(crate) use follower::Follower;
use streams::OpenStream as Admitted;
pub(crate) use turns::Turns;

/// Lets callers in, or not.
#[derive(Debug)]
pub struct Admission {
    /// What decides about those who are in.
    pub(crate) agent: Arc<Agent>,
    streams: Arc<Streams>,
    calls: Calls,
}

impl Admission {
    /// Of this agent.
    pub fn new(agent: Arc<Agent>) -> Self {
        Self {
            agent,
            streams: Arc::default(),
            calls: Calls::new(CALLS_PER_SECOND, BURST),
        }
    }

    fn refuse<T>(&self, reason: &'static str, status: Status) -> Result<T, Status> {
        let label = ReasonLabel { reason };
        self.agent.metrics.refused.get_or_create(&label).inc();
        Err(status)
    }

    /// The process that calls, and that still lives.
    pub(crate) fn caller<T>(&self, request: &Request<T>) -> Result<Arc<PinnedProcess>, Status> {
        let Some(Caller(caller)) = request.extensions().get::<Caller>() else {
            return self.refuse("caller", Status::internal("the caller is not known"));
        };
        let text = match &**caller {
            Ok(process) if process.is_alive() => return Ok(process.clone()),
            Ok(_) => PinError::Gone.to_string(),
            Err(error) => error.to_string(),
        };
        self.refuse("caller", Status::permission_denied(text))
    }

    /// The same, of a request that carries the header.
    pub(crate) fn with_header<T>(
        &self,
        request: &Request<T>,
    ) -> Result<Arc<PinnedProcess>, Status> {
        if let Err(status) = has_header(request) {
            return self.refuse("security_header", status);
        }
        self.caller(request)
    }

    /// May this process call once more a method that answers once?
    pub(crate) fn call(&self, process: &PinnedProcess) -> Result<(), Status> {
        if self.calls.take(process.pid(), Instant::now()) {
            return Ok(());
        }
        let text = "too many calls; keep a token while it lasts";
        self.refuse("too_many_calls", Status::resource_exhausted(text))
    }

    /// May this process open one more stream?
    pub(crate) fn stream(
        &self,
        process: Arc<PinnedProcess>,
        method: &'static str,
    ) -> Result<Follower, Status> {
        let streams = self.streams.clone();
        match streams.open((process.pid(), process.uid()), &self.agent.metrics.streams) {
            Some(open) => Ok(Follower::new(self.agent.clone(), process, method, open)),
            None => {
                let text = "too many streams are open; close some";
                self.refuse("too_many_streams", Status::resource_exhausted(text))
            }
        }
    }
}

/// Does a request carry the header that keeps web pages out, once and with this value?
/// Spec: SPIFFE Workload Endpoint section 6.1.
///
/// # Errors
/// `InvalidArgument`, which clients do not try again.
pub fn has_header<T>(request: &Request<T>) -> Result<(), Status> {
    let mut headers = request.metadata().get_all(SECURITY_HEADER).iter();
    match (headers.next(), headers.next()) {
        (Some(value), None) if value == "true" => Ok(()),
        _ => Err(Status::invalid_argument(
            "security header missing from request",
        )),
    }
}

/// Finds out what the process is entitled to and does something with that, on a thread for it. A
/// refused process learns no more than that it is.
pub(crate) async fn on_a_thread<T: Send + 'static>(
    agent: &Arc<Agent>,
    process: &Arc<PinnedProcess>,
    method: &'static str,
    work: impl FnOnce(&Agent, &Entitled) -> Result<T, Status> + Send + 'static,
) -> Result<(Entitled, T), Status> {
    // Whatever one user asks for, there are threads left for the others.
    let turn = agent.turns.of(process.uid()).await;
    let (agent, process) = (agent.clone(), process.clone());
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let entitled = agent
            .entitled(&process)
            .inspect_err(|refusal| agent.refused(method, &process, refusal))
            // Clients know this text.
            .map_err(|_| Status::permission_denied("no identity issued"))?;
        let done = work(&agent, &entitled)?;
        Ok((entitled, done))
    })
    .await
    .map_err(|_| Status::internal("attestation failed"))?
}

/// More tokens a second than any app needs that keeps them while they last.
const CALLS_PER_SECOND: f64 = 100.0;
const BURST: f64 = 500.0;
