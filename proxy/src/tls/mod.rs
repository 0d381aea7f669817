//! Who we are and whom we trust: one immutable snapshot, replaced whole.
//!
//! TLS 1.3 alone; no tickets, no session store, no early data: a resumed session runs no verifier.

mod files;
mod verifier;
mod workload_api;

use std::{sync::Arc, time::SystemTime};

use postern_spiffe::{
    BundleSet, PeerRefused, PeerRole, RevocationLists, SpiffeId, VerifiedPeer, X509Svid,
    verify_peer,
};
use rustls::{
    ClientConfig, CommonState, NamedGroup, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::NoServerSessionStorage,
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use crate::{config::IdentitySource, renewal};
use verifier::{Clients, Server};

/// The identity in force, or none: then nothing is served.
pub(crate) type Current = watch::Receiver<Option<Arc<Identity>>>;

/// Our identity with its key, and those whom we trust.
#[derive(Debug)]
pub(crate) struct Identity {
    svid: X509Svid,
    trust: Arc<Trust>,
    key: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    server_http: Arc<ServerConfig>,
    server_http1: Arc<ServerConfig>,
    server_http2: Arc<ServerConfig>,
    server_tcp: Arc<ServerConfig>,
}

/// Whom we trust.
#[derive(Debug)]
pub(crate) struct Trust {
    pub(crate) bundles: BundleSet,
    pub(crate) revocations: RevocationLists,
}

impl Trust {
    /// Is this peer, which showed this chain, to be trusted now?
    pub(crate) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: PeerRole,
    ) -> Result<VerifiedPeer, PeerRefused> {
        verify_peer(
            chain,
            &self.bundles,
            &self.revocations,
            role,
            SystemTime::now(),
        )
    }
}

/// What protocols are offered in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// HTTP/2 and HTTP/1.1.
    Http,
    /// HTTP/1.1, of which a request may switch.
    Http1,
    /// HTTP/2.
    Http2,
    /// None.
    Tcp,
}

impl Identity {
    /// Puts a snapshot together.
    ///
    /// # Errors
    /// What is wrong with it; the one before stays in force.
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        trust: Trust,
    ) -> anyhow::Result<Self> {
        let leaf = chain
            .first()
            .ok_or_else(|| anyhow::anyhow!("there is no certificate"))?;
        let svid = X509Svid::parse(leaf)?;
        trust.verify(&chain, PeerRole::Client)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = Arc::new(CertifiedKey::from_der(chain, key, &provider)?);
        let trust = Arc::new(trust);
        let server = |offer| server_config(&provider, &trust, &key, offer).map(Arc::new);
        Ok(Self {
            server_http: server(Offer::Http)?,
            server_http1: server(Offer::Http1)?,
            server_http2: server(Offer::Http2)?,
            server_tcp: server(Offer::Tcp)?,
            svid,
            trust,
            key,
            provider,
        })
    }

    /// Who we are.
    pub(crate) fn id(&self) -> &SpiffeId {
        self.svid.id()
    }

    /// Our certificate's facts.
    pub(crate) fn svid(&self) -> &X509Svid {
        &self.svid
    }

    /// Whom we trust.
    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Our chain, and what signs for it.
    pub(crate) fn key(&self) -> &CertifiedKey {
        &self.key
    }

    /// What cryptography is used.
    pub(crate) fn provider(&self) -> &CryptoProvider {
        &self.provider
    }

    /// How we answer callers.
    pub(crate) fn server(&self, offer: Offer) -> Arc<ServerConfig> {
        match offer {
            Offer::Http => self.server_http.clone(),
            Offer::Http1 => self.server_http1.clone(),
            Offer::Http2 => self.server_http2.clone(),
            Offer::Tcp => self.server_tcp.clone(),
        }
    }

    /// How we call a server that must be exactly `expected`.
    ///
    /// # Errors
    /// When the library refuses the combination; callers give up the call.
    pub(crate) fn client(
        &self,
        expected: SpiffeId,
        offer: Offer,
    ) -> Result<ClientConfig, rustls::Error> {
        let verifier = Server::new(self.trust.clone(), self.provider.clone(), expected);
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(verifier::Own(self.key.clone())));
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = protocols(offer);
        // The name in the handshake means nothing: the identity is checked.
        config.enable_sni = false;
        Ok(config)
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    trust: &Arc<Trust>,
    key: &Arc<CertifiedKey>,
    offer: Offer,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = Clients::new(trust.clone(), provider.clone());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(verifier::Own(key.clone())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = protocols(offer);
    Ok(config)
}

fn protocols(offer: Offer) -> Vec<Vec<u8>> {
    match offer {
        Offer::Http => vec![
            renewal::PROTOCOL.to_vec(),
            b"h2".to_vec(),
            b"http/1.1".to_vec(),
        ],
        Offer::Http1 => vec![b"http/1.1".to_vec()],
        Offer::Http2 => vec![renewal::PROTOCOL.to_vec(), b"h2".to_vec()],
        Offer::Tcp => Vec::new(),
    }
}

/// Is this, of all that the handshake may have agreed on, a kind of HTTP/2?
pub(crate) fn is_http2(protocol: &[u8]) -> bool {
    protocol == b"h2" || protocol == renewal::PROTOCOL
}

/// How the keys of a session were agreed on.
pub(crate) fn group(session: &CommonState) -> Option<NamedGroup> {
    let group = session.negotiated_key_exchange_group()?;
    Some(group.name())
}

/// Keeps the identity up to date, for ever.
pub(crate) async fn follow(
    source: IdentitySource,
    current: watch::Sender<Option<Arc<Identity>>>,
    metrics: Arc<crate::telemetry::Metrics>,
) {
    match source {
        IdentitySource::WorkloadApi(socket) => {
            workload_api::follow(&socket, &current, &metrics).await;
        }
        IdentitySource::Files {
            certificate,
            key,
            bundle,
        } => {
            files::follow(
                &files::Paths {
                    certificate,
                    key,
                    bundle,
                },
                &current,
                &metrics,
            )
            .await;
        }
    }
}

/// Puts a new identity in force, and says so.
fn install(
    current: &watch::Sender<Option<Arc<Identity>>>,
    identity: Identity,
    metrics: &crate::telemetry::Metrics,
) {
    tracing::info!(
        spiffe_id = %identity.id(),
        serial = %identity.svid().serial(),
        revocation_lists = identity.trust().revocations.len(),
        "identity in force"
    );
    metrics.identity_expires(identity.svid().not_after());
    current.send_replace(Some(Arc::new(identity)));
}
