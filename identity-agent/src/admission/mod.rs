//! The checks before every method on the socket: the header, who calls, and how often.

mod at_once;
mod calls;
mod counted;
mod follower;
mod streams;
mod turns;

use std::{sync::Arc, time::Instant};

use http::Extensions;
use postern_proto::SECURITY_HEADER;
use tonic::{Request, Status};

use self::streams::{OpenStream, Streams};
use crate::{
    agent::{Agent, Entitled, Refusal},
    caller::{Busy, Caller, PinError, PinnedProcess},
    telemetry::ReasonLabel,
};

pub(crate) use calls::Calls;
pub use counted::CountRequests;
pub(crate) use follower::Follower;
pub(crate) use turns::Turns;

/// Lets callers in, or not.
#[derive(Debug)]
pub struct Admission {
    /// What decides about those who are in.
    pub(crate) agent: Arc<Agent>,
    streams: Arc<Streams>,
    calls: Calls<i32>,
    calls_of_users: Calls<u32>,
}

impl Admission {
    /// Of this agent. All processes of a user may call so often in a second, and five times as often at once.
    pub fn new(agent: Arc<Agent>, calls_of_user: u32) -> Self {
        let of_user = f64::from(calls_of_user);
        Self {
            agent,
            streams: Arc::default(),
            calls: Calls::new(CALLS_PER_SECOND, BURST),
            calls_of_users: Calls::new(of_user, of_user * BURST / CALLS_PER_SECOND),
        }
    }

    fn refuse<T>(&self, reason: &'static str, status: Status) -> Result<T, Status> {
        let label = ReasonLabel { reason };
        self.agent.metrics.refused.get_or_create(&label).inc();
        Err(status)
    }

    /// The process that calls, and that still lives.
    pub(crate) fn caller<T>(&self, request: &Request<T>) -> Result<Arc<PinnedProcess>, Status> {
        let Some(caller) = request.extensions().get::<Caller>() else {
            return self.refuse("caller", unknown_caller());
        };
        let text = match &*caller.process {
            Ok(process) => match process.lives() {
                Ok(()) => return Ok(process.clone()),
                Err(PinError::Lack(lack)) => {
                    return self.refuse("lack", Status::unavailable(lack.to_string()));
                }
                Err(error) => error.to_string(),
            },
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
        let now = Instant::now();
        if !self.calls.take(process.pid(), now) {
            let text = "too many calls; keep a token while it lasts";
            return self.refuse("too_many_calls", Status::resource_exhausted(text));
        }
        // Many processes, or ever new ones, are no way around.
        if !self.calls_of_users.take(process.uid(), now) {
            let text = "too many calls of this user; keep a token while it lasts";
            return self.refuse("too_many_calls_of_user", Status::resource_exhausted(text));
        }
        Ok(())
    }

    /// May whoever asks have one more request open? It counts until what is told here is dropped.
    fn open(&self, extensions: &Extensions) -> Result<(OpenStream, Busy), Status> {
        let Some(Caller { process, place }) = extensions.get::<Caller>() else {
            return self.refuse("caller", unknown_caller());
        };
        // The connection was chosen to give way at the same moment.
        let Some(busy) = place.begin() else {
            let text = "the connection was idle and ends; connect again";
            return self.refuse("idle_connection", Status::unavailable(text));
        };
        // Whoever cannot be pinned is asked for health at most, and counted as one process.
        let pid = process.as_ref().as_ref().map_or(0, |one| one.pid());
        let streams = self.streams.clone();
        match streams.open((pid, place.uid()), &self.agent.metrics.streams) {
            Some(open) => Ok((open, busy)),
            None => {
                let text = "too many streams are open; close some";
                self.refuse("too_many_streams", Status::resource_exhausted(text))
            }
        }
    }

    /// Has this process followed on a stream.
    pub(crate) fn stream(&self, process: Arc<PinnedProcess>, method: &'static str) -> Follower {
        Follower::new(self.agent.clone(), process, method)
    }
}

fn unknown_caller() -> Status {
    Status::internal("the caller is not known")
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
    let done = look(agent, process, work).await;
    done.map_err(|failed| failed.tell(agent, process, method))
}

/// Why nothing was done for a process.
#[derive(Debug)]
enum Failed {
    /// It has no right to it, or nobody knows.
    Refused(Refusal),
    /// Something else went wrong.
    Other(Status),
}

impl Failed {
    /// Does it say nothing about the process?
    fn is_nobodys_fault(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is_nobodys_fault())
    }

    /// Counts and notes a refusal, and tells what the process hears.
    fn tell(self, agent: &Agent, process: &PinnedProcess, method: &str) -> Status {
        let refusal = match self {
            Self::Other(status) => return status,
            Self::Refused(refusal) => refusal,
        };
        agent.refused(method, process, &refusal);
        match refusal.is_nobodys_fault() {
            // Clients try again after this, and not after the other.
            true => Status::unavailable("the agent cannot look for now; try again"),
            // Clients know this text.
            false => Status::permission_denied("no identity issued"),
        }
    }
}

/// Finds out what the process is entitled to, and does something with that.
async fn look<T: Send + 'static>(
    agent: &Arc<Agent>,
    process: &Arc<PinnedProcess>,
    work: impl FnOnce(&Agent, &Entitled) -> Result<T, Status> + Send + 'static,
) -> Result<(Entitled, T), Failed> {
    // Whatever one user asks for, there are threads left for the others.
    let turn = agent.turns.of(process.uid()).await;
    let (agent, process) = (agent.clone(), process.clone());
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let entitled = agent.entitled(&process).map_err(Failed::Refused)?;
        let done = work(&agent, &entitled).map_err(Failed::Other)?;
        Ok((entitled, done))
    })
    .await
    .map_err(|_| Failed::Other(Status::internal("attestation failed")))?
}

/// More tokens a second than any app needs that keeps them while they last.
const CALLS_PER_SECOND: f64 = 100.0;
const BURST: f64 = 500.0;
