//! The SPIFFE Workload API on the Unix socket.
//!
//! Every method wants the security header; who calls is the kernel's word alone. Spec: SPIFFE
//! Workload API sections 4 to 6, Workload Endpoint section 6.

mod calls;
mod jwt;
mod stream;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use dashmap::DashMap;
use futures_util::stream::BoxStream;
use postern_proto::{
    SECURITY_HEADER,
    workload_api::{
        JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse,
        ValidateJwtsvidRequest, ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse,
        X509svidRequest, X509svidResponse, spiffe_workload_api_server::SpiffeWorkloadApi,
    },
};
use tonic::{Request, Response, Status};

use self::calls::Calls;
use crate::{
    agent::{Agent, Entitled},
    caller::{Caller, PinError, PinnedProcess},
    telemetry::ReasonLabel,
};

/// The service.
#[derive(Debug)]
pub struct WorkloadApi {
    agent: Arc<Agent>,
    streams: Arc<Streams>,
    calls: Calls,
}

impl WorkloadApi {
    /// Serves what this agent decides.
    pub fn new(agent: Arc<Agent>) -> Self {
        Self {
            agent,
            streams: Arc::default(),
            calls: Calls::default(),
        }
    }

    /// The checks before every method: the header, then the caller.
    fn admit<T>(&self, request: &Request<T>) -> Result<Arc<PinnedProcess>, Status> {
        let refuse = |reason, status: Status| {
            self.agent
                .metrics
                .refused
                .get_or_create(&ReasonLabel { reason })
                .inc();
            Err(status)
        };
        let mut headers = request.metadata().get_all(SECURITY_HEADER).iter();
        if !matches!((headers.next(), headers.next()), (Some(value), None) if value == "true") {
            let text = "security header missing from request";
            return refuse("security_header", Status::invalid_argument(text));
        }
        let Some(Caller(caller)) = request.extensions().get::<Caller>() else {
            return refuse("caller", Status::internal("the caller is not known"));
        };
        match &**caller {
            Ok(process) if process.is_alive() => Ok(process.clone()),
            Ok(_) => refuse(
                "caller",
                Status::permission_denied(PinError::Gone.to_string()),
            ),
            Err(error) => refuse("caller", Status::permission_denied(error.to_string())),
        }
    }

    /// The checks before every method that answers once: also, not too often.
    fn admit_call<T>(&self, request: &Request<T>) -> Result<Arc<PinnedProcess>, Status> {
        let process = self.admit(request)?;
        if self.calls.take(process.pid(), Instant::now()) {
            return Ok(process);
        }
        let reason = ReasonLabel {
            reason: "too_many_calls",
        };
        self.agent.metrics.refused.get_or_create(&reason).inc();
        Err(Status::resource_exhausted(
            "too many calls; keep a token while it lasts",
        ))
    }

    fn open_stream(&self, process: &PinnedProcess) -> Result<OpenStream, Status> {
        self.streams.clone().open(process.pid()).ok_or_else(|| {
            let reason = ReasonLabel {
                reason: "too_many_streams",
            };
            self.agent.metrics.refused.get_or_create(&reason).inc();
            Status::resource_exhausted("too many streams are open; close some")
        })
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = BoxStream<'static, Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = BoxStream<'static, Result<X509BundlesResponse, Status>>;
    type FetchJWTBundlesStream = BoxStream<'static, Result<JwtBundlesResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let process = self.admit(&request)?;
        let open = self.open_stream(&process)?;
        Ok(Response::new(stream::svids(
            self.agent.clone(),
            process,
            open,
        )))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let process = self.admit(&request)?;
        let open = self.open_stream(&process)?;
        Ok(Response::new(stream::bundles(
            self.agent.clone(),
            process,
            open,
        )))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let process = self.admit_call(&request)?;
        let answer = jwt::fetch(&self.agent, &process, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let process = self.admit(&request)?;
        let open = self.open_stream(&process)?;
        Ok(Response::new(stream::jwt_bundles(
            self.agent.clone(),
            process,
            open,
        )))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        self.admit_call(&request)?;
        let answer = jwt::validate(&self.agent, request.get_ref())?;
        Ok(Response::new(answer))
    }
}

/// What the process is entitled to. A refused one learns no more than that it is.
async fn entitled(agent: &Arc<Agent>, process: &Arc<PinnedProcess>) -> Result<Entitled, Status> {
    let (agent, process) = (agent.clone(), process.clone());
    tokio::task::spawn_blocking(move || {
        agent
            .entitled(&process)
            .inspect_err(|refusal| agent.log_refusal(&process, refusal))
    })
    .await
    .map_err(|_| Status::internal("attestation failed"))?
    // Clients know this text.
    .map_err(|_| Status::permission_denied("no identity issued"))
}

/// How many streams are open, in all and for each process.
#[derive(Debug, Default)]
struct Streams {
    all: AtomicUsize,
    by_process: DashMap<i32, usize>,
}

impl Streams {
    fn open(self: Arc<Self>, pid: i32) -> Option<OpenStream> {
        {
            let mut own = self.by_process.entry(pid).or_default();
            if *own >= MAX_STREAMS_OF_PROCESS || self.all.load(Ordering::Relaxed) >= MAX_STREAMS {
                return None;
            }
            *own += 1;
        }
        self.all.fetch_add(1, Ordering::Relaxed);
        Some(OpenStream { streams: self, pid })
    }
}

/// One open stream; counted off when it is dropped, however it ended.
#[derive(Debug)]
pub struct OpenStream {
    streams: Arc<Streams>,
    pid: i32,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.streams.all.fetch_sub(1, Ordering::Relaxed);
        if let dashmap::Entry::Occupied(mut own) = self.streams.by_process.entry(self.pid) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

const MAX_STREAMS: usize = 10_000;
const MAX_STREAMS_OF_PROCESS: usize = 256;
