//! The app of a pod: a plain HTTP service that knows nothing of identities or policies.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::TcpListener;

/// Serves until the process ends.
pub(crate) async fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        tokio::spawn(async move {
            // The other end may leave at any time; that is its business.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let body = match request.uri().path() {
        STREAM => ticks().boxed(),
        path => Full::new(Bytes::from(format!("{} {path}\n", request.method()))).boxed(),
    };
    Ok(Response::new(body))
}

/// A body that never ends: a line every tenth of a second.
fn ticks() -> impl hyper::body::Body<Data = Bytes, Error = Infallible> {
    let every = tokio::time::interval(Duration::from_millis(100));
    StreamBody::new(stream::unfold(every, |mut every| async move {
        every.tick().await;
        Some((Ok(Frame::data(Bytes::from_static(b"tick\n"))), every))
    }))
}

/// The path whose answer never ends.
pub(crate) const STREAM: &str = "/api/v1/stream";
