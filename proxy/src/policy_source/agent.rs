//! What the agent tells: a stream that is kept open. While the agent is away its last word holds.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use postern_proto::{
    SECURITY_HEADER,
    control::{WatchRequest, control_client::ControlClient},
};
use tokio::{net::UnixStream, sync::watch, time::sleep};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Endpoint};

use super::Told;

/// Listens for ever.
pub(super) async fn follow(socket: PathBuf, told: watch::Sender<Told>) {
    let mut wait = FIRST_WAIT;
    loop {
        let mut answered = false;
        if let Err(error) = listen(&socket, &told, &mut answered).await {
            let is_other = error
                .downcast_ref::<Status>()
                .is_some_and(|status| status.code() == Code::Unimplemented);
            let hint = match is_other {
                true => "this is no Postern agent: name the folders of policies and Workloads",
                false => "is the agent running?",
            };
            tracing::warn!(
                error = format!("{error:#}"),
                socket = %socket.display(),
                hint,
                "the agent tells no policies; those before stay"
            );
        }
        wait = if answered {
            FIRST_WAIT
        } else {
            (wait * 2).min(LONGEST_WAIT)
        };
        sleep(wait).await;
    }
}

async fn listen(
    socket: &Path,
    told: &watch::Sender<Told>,
    answered: &mut bool,
) -> anyhow::Result<()> {
    let path = socket.to_owned();
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .context("cannot connect")?;
    let mut request = Request::new(WatchRequest {});
    request
        .metadata_mut()
        .insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    let mut client = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut stream = client.watch(request).await?.into_inner();
    while let Some(state) = stream.message().await? {
        *answered = true;
        told.send_replace(Some(Arc::new(state)));
    }
    Ok(())
}

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The agent tells less.
const MAX_MESSAGE_BYTES: usize = 128 << 20;
