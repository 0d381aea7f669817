//! The SPIFFE Workload API on the Unix socket.
//!
//! Every method wants the security header; who calls is the kernel's word alone. Spec: SPIFFE
//! Workload API sections 4 to 6, Workload Endpoint section 6.

mod framed;
mod jwt;
pub(crate) mod stream;

use std::sync::Arc;

use futures_util::stream::BoxStream;
use postern_proto::workload_api::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest,
    X509svidResponse, spiffe_workload_api_server::SpiffeWorkloadApi,
};
use tonic::{Request, Response, Status};

pub use framed::Framed;

use crate::{admission::Admission, caller::PinnedProcess};

/// The service.
#[derive(Debug)]
pub struct WorkloadApi {
    admission: Arc<Admission>,
}

type Stream<M> = BoxStream<'static, Result<M, Status>>;

impl WorkloadApi {
    /// Serves those who are let in.
    pub fn new(admission: Arc<Admission>) -> Self {
        Self { admission }
    }

    fn stream<T, M: stream::Message>(
        &self,
        request: &Request<T>,
    ) -> Result<Response<Stream<M>>, Status> {
        let process = self.admission.with_header(request)?;
        let follower = self.admission.stream(process, M::METHOD);
        Ok(Response::new(stream::of(follower)))
    }

    fn call<T>(&self, request: &Request<T>) -> Result<Arc<PinnedProcess>, Status> {
        let process = self.admission.with_header(request)?;
        self.admission.call(&process)?;
        Ok(process)
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Stream<X509svidResponse>;
    type FetchX509BundlesStream = Stream<X509BundlesResponse>;
    type FetchJWTBundlesStream = Stream<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.stream(&request)
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.stream(&request)
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let process = self.call(&request)?;
        let answer = jwt::fetch(&self.admission.agent, &process, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.stream(&request)
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let process = self.call(&request)?;
        let answer = jwt::validate(&self.admission.agent, &process, request.into_inner()).await?;
        Ok(Response::new(answer))
    }
}
