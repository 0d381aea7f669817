//! Every request on the socket counts as long as it lasts, whichever service it asks: those of gRPC
//! itself, health and reflection, hold memory like any other.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::{BoxFuture, FutureExt as _};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::Admission;

/// Puts [`Counted`] around all services.
#[derive(Debug, Clone)]
pub struct CountRequests(pub Arc<Admission>);

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            admission: self.0.clone(),
        }
    }
}

/// Services whose requests are counted, and refused with `ResourceExhausted` when there are too many.
#[derive(Debug, Clone)]
pub struct Counted<S> {
    inner: S,
    admission: Arc<Admission>,
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let open = match self.admission.open(request.extensions()) {
            Ok(open) => open,
            Err(status) => return std::future::ready(Ok(Status::into_http(status))).boxed(),
        };
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await?;
            // Dropped with the body: when all of it is sent, or when its reader is gone.
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _open = &open;
                    frame
                }))
            }))
        }
        .boxed()
    }
}
