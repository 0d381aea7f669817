//! Calls over a Unix socket: gRPC to the Workload API, HTTP to the admin socket.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use postern_proto::{
    SECURITY_HEADER, workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use serde_json::Value;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

/// Runs a command's work on this thread.
pub(super) fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(work)
}

/// Connects to the Workload API.
pub(super) async fn connect(path: &Path) -> anyhow::Result<SpiffeWorkloadApiClient<Channel>> {
    let owned = path.to_owned();
    // The address is for form's sake: every connection goes to the socket.
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = owned.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            anyhow!(
                "cannot reach the agent at `{}`: {cause}; is it running? Name its socket with \
                 -socketPath or SPIFFE_ENDPOINT_SOCKET",
                path.display()
            )
        })?;
    Ok(SpiffeWorkloadApiClient::new(channel))
}

/// A request with the security header that every one must carry.
pub(super) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    request
}

/// A refusal in the words that users of gRPC know.
pub(super) fn refused(status: &Status) -> anyhow::Error {
    // The library's own words, where no gRPC is spoken, or nothing more is.
    let is_broken = matches!(
        (status.code(), status.message()),
        (Code::Unknown, "transport error") | (Code::Cancelled, "operation was canceled")
    );
    let hint = match is_broken {
        true => "; is this the Workload API, `workloadApi.socket` in the agent's configuration?",
        false => "",
    };
    anyhow!(
        "rpc error: code = {:?} desc = {}{hint}",
        status.code(),
        status.message()
    )
}

/// Bounds how long a command waits.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => bail!("rpc error: code = DeadlineExceeded desc = no answer within {limit:?}"),
    }
}

/// Asks the admin socket, or tells it to do something.
///
/// # Errors
/// It cannot be reached, or refuses; its word is in the error.
pub(super) async fn ask_admin(
    path: &Path,
    method: Method,
    what: &str,
    body: Vec<u8>,
) -> anyhow::Result<Value> {
    let stream = UnixStream::connect(path).await.with_context(|| {
        format!(
            "cannot reach the admin socket `{}`; is the agent running, and are you its user? Name \
             the socket with -socketPath",
            path.display()
        )
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(what)
        .header(http::header::HOST, "admin")
        .body(Full::<Bytes>::from(body))?;
    let answer = sender.send_request(request).await.with_context(|| {
        format!(
            "no admin socket of an agent answers at `{}`; it is `admin.socket` in the agent's \
             configuration",
            path.display()
        )
    })?;
    let is_done = answer.status().is_success();
    let body = answer.into_body().collect().await?.to_bytes();
    let value: Value =
        serde_json::from_slice(&body).context("the admin socket's answer cannot be read")?;
    match value.get("error").and_then(Value::as_str) {
        Some(error) if !is_done => bail!("{error}"),
        _ => Ok(value),
    }
}
