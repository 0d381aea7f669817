//! The identity from a SPIFFE Workload API: a stream that is kept open.
//!
//! While the agent is away the last identity serves on until it expires; when the agent says that
//! there is none, it is gone at once.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use postern_proto::{
    SECURITY_HEADER,
    workload_api::{
        X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
    },
};
use postern_spiffe::{
    BundleSet, RevocationLists, SpiffeId, TrustDomain, X509Bundle, x509_svid::split_der,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{net::UnixStream, sync::watch, time::sleep};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Endpoint};

use super::{Identity, Trust, install};
use crate::telemetry::Metrics;

/// Keeps the identity up to date, for ever.
pub(super) async fn follow(
    socket: &Path,
    current: &watch::Sender<Option<Arc<Identity>>>,
    metrics: &Metrics,
) {
    let mut wait = FIRST_WAIT;
    loop {
        let mut answered = false;
        let ended = tokio::select! {
            ended = stream(socket, current, metrics, &mut answered) => ended,
            never = expire(current) => match never {},
        };
        match ended {
            Ok(()) => tracing::info!("the agent ended the stream"),
            Err(Ended::Withdrawn(status)) => {
                tracing::warn!(
                    reason = status.message(),
                    "the agent gives this process no identity; `postern-agent explain --pid` tells why"
                );
                current.send_replace(None);
            }
            Err(Ended::Trouble(error)) => {
                metrics.identity_errors.inc();
                tracing::warn!(
                    error = format!("{error:#}"),
                    socket = %socket.display(),
                    "no answer from the Workload API; is the agent running?"
                );
            }
        }
        wait = if answered {
            FIRST_WAIT
        } else {
            (wait * 2).min(LONGEST_WAIT)
        };
        tokio::select! {
            () = sleep(wait) => {}
            never = expire(current) => match never {},
        }
    }
}

/// Why a stream ended.
enum Ended {
    /// The agent says that there is no identity for us.
    Withdrawn(Status),
    /// Anything else: it may pass.
    Trouble(anyhow::Error),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::PermissionDenied => Self::Withdrawn(status),
            _ => Self::Trouble(status.into()),
        }
    }
}

async fn stream(
    socket: &Path,
    current: &watch::Sender<Option<Arc<Identity>>>,
    metrics: &Metrics,
    answered: &mut bool,
) -> Result<(), Ended> {
    let path = socket.to_owned();
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .context("cannot connect")
        .map_err(Ended::Trouble)?;
    let mut request = Request::new(X509svidRequest {});
    request
        .metadata_mut()
        .insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    let mut client =
        SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut stream = client.fetch_x509svid(request).await?.into_inner();
    while let Some(response) = stream.message().await? {
        *answered = true;
        match identity(&response) {
            Ok(identity) => install(current, identity, metrics),
            Err(error) => {
                metrics.identity_errors.inc();
                tracing::error!(
                    error = format!("{error:#}"),
                    "the agent's answer was refused, the identity before stays"
                );
            }
        }
    }
    Ok(())
}

/// Takes the identity away at the moment it expires. Never returns.
async fn expire(current: &watch::Sender<Option<Arc<Identity>>>) -> std::convert::Infallible {
    let mut changes = current.subscribe();
    loop {
        let end = changes
            .borrow_and_update()
            .as_ref()
            .map(|identity| identity.svid().not_after());
        let left = end.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        tokio::select! {
            _ = changes.changed() => {}
            () = async {
                match left {
                    Some(left) => sleep(left).await,
                    None => std::future::pending().await,
                }
            } => {
                tracing::error!("the identity has expired and there is no new one; nothing is served");
                current.send_replace(None);
            }
        }
    }
}

/// Reads an answer. The first SVID is ours. Spec: SPIFFE Workload API section 5.2.
fn identity(response: &X509svidResponse) -> anyhow::Result<Identity> {
    let svid = response.svids.first().context("there is no SVID")?;
    let chain = split_der(&svid.x509_svid).context("the chain cannot be read")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.x509_svid_key.clone()));
    let own = SpiffeId::parse(&svid.spiffe_id)?.trust_domain().clone();
    let mut bundles = BundleSet::default();
    for (name, der) in &response.federated_bundles {
        let name = TrustDomain::parse(name.strip_prefix("spiffe://").unwrap_or(name))?;
        bundles.insert(X509Bundle::from_der_run(name, der)?);
    }
    // Last: nobody else's word replaces that of our own trust domain.
    bundles.insert(X509Bundle::from_der_run(own, &svid.bundle)?);
    let revocations = RevocationLists::from_der(response.crl.iter().map(AsRef::as_ref))?;
    Identity::new(
        chain,
        key,
        Trust {
            bundles,
            revocations,
        },
    )
}

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// No answer of the Workload API is larger.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
