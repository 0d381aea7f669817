//! The own bundle for other trust domains, and the keys of tokens for those who know us as an OIDC
//! issuer, over HTTPS. What is told here is public. Spec: SPIFFE Federation section 5; OpenID Connect
//! Discovery 1.0 section 4.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_policies::files::Fingerprint;
use postern_spiffe::{SpiffeId, x509_svid::split_der};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, interval, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::agent::Agent;

/// What is published, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Where to listen.
    pub listen: SocketAddr,
    /// By what the server is known.
    pub credential: Credential,
    /// The URL by which others know us as an OIDC issuer.
    pub oidc_issuer: Option<String>,
}

/// By what the server is known. Spec: SPIFFE Federation section 5.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// `https_web`: a certificate and its key, in PEM, read again when they change.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// `https_spiffe`: an SVID of this identity, renewed in time.
    Svid(SpiffeId),
}

/// The certificate that is shown now.
#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Listens, and serves until the future is dropped.
///
/// # Errors
/// The address or the certificate cannot be had.
pub async fn serve(
    publication: Publication,
    agent: Arc<Agent>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let (first, renew_in) = publication.credential.load(&agent).await?;
    let shown = Arc::new(Shown(ArcSwap::from_pointee(first)));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(publication.listen)
        .await
        .with_context(|| format!("cannot listen on {}", publication.listen))?;
    let publication = Arc::new(publication);
    Ok(async move {
        tokio::join!(
            follow(&publication.credential, &agent, &shown, renew_in),
            accept(listener, acceptor, publication.clone(), agent.clone())
        );
    })
}

impl Credential {
    /// Reads or issues it, on a thread for that, and tells when an issued one is to be renewed.
    async fn load(&self, agent: &Arc<Agent>) -> anyhow::Result<(CertifiedKey, Option<Duration>)> {
        let credential = self.clone();
        let loaded = agent.look(move |agent| credential.load_blocking(agent));
        loaded.await.context("reading it panicked")?
    }

    fn load_blocking(&self, agent: &Agent) -> anyhow::Result<(CertifiedKey, Option<Duration>)> {
        let (chain, key, renew_in) = match self {
            Self::Files { certificate, key } => {
                let chain = CertificateDer::pem_file_iter(certificate)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .with_context(|| format!("cannot read `{}`", certificate.display()))?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .with_context(|| format!("cannot read `{}`", key.display()))?;
                (chain, key, None)
            }
            Self::Svid(id) => {
                let now = SystemTime::now();
                let lifetime = agent.authority.svid_lifetime();
                let issued = agent.authority.issue(id, &[], lifetime, now)?;
                let life = issued.not_after.duration_since(now).unwrap_or_default();
                let key = PrivatePkcs8KeyDer::from(issued.key.to_vec());
                (split_der(&issued.chain)?, key.into(), Some(life / 2))
            }
        };
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let shown = CertifiedKey::from_der(chain, key, &provider)
            .context("the certificate and the key cannot be used together")?;
        Ok((shown, renew_in))
    }

    /// What the files look like from outside.
    async fn looks(&self, agent: &Arc<Agent>) -> Vec<Fingerprint> {
        let Self::Files { certificate, key } = self else {
            return Vec::new();
        };
        let files = [certificate.clone(), key.clone()];
        let looks = agent.look(move |_| files.map(|path| Fingerprint::of(&path)).into());
        looks.await.unwrap_or_default()
    }
}

/// Replaces the certificate when its files change, or when it is time.
async fn follow(
    credential: &Credential,
    agent: &Arc<Agent>,
    shown: &Shown,
    renew_in: Option<Duration>,
) {
    let mut seen = credential.looks(agent).await;
    let mut changes = agent.changes();
    let mut every = interval(LOOK_EVERY);
    // Reckoned once: a look at the files in between must not put it off.
    let mut due_at = renew_in.map(|wait| Instant::now() + wait);
    loop {
        let due = async {
            match due_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            // The root may be another.
            _ = changes.changed(), if due_at.is_some() => {}
            _ = every.tick(), if due_at.is_none() => {
                let looks = credential.looks(agent).await;
                if looks == seen {
                    continue;
                }
                seen = looks;
            }
        }
        match credential.load(agent).await {
            Ok((next, wait)) => {
                shown.0.store(Arc::new(next));
                due_at = wait.map(|wait| Instant::now() + wait);
            }
            Err(error) => {
                due_at = due_at.map(|_| Instant::now() + RETRY_AFTER);
                tracing::error!(
                    error = format!("{error:#}"),
                    "the certificate of the bundle endpoint cannot be replaced"
                );
            }
        }
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    publication: Arc<Publication>,
    agent: Arc<Agent>,
) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (acceptor, publication, agent) = (acceptor.clone(), publication.clone(), agent.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let served = async {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(move |request| {
                    let answer = answer(&request, &publication, &agent);
                    async move { answer }
                });
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            };
            let _ = timeout(PATIENCE, served).await;
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    publication: &Publication,
    agent: &Agent,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
    let issuer = publication.oidc_issuer.as_deref();
    let body = match (request.uri().path(), issuer) {
        ("/" | "/bundle", _) => agent.bundle_document().and_then(|one| one.to_json().ok()),
        ("/keys", Some(_)) => Some(agent.authority.jwt_bundle().to_json()),
        ("/.well-known/openid-configuration", Some(issuer)) => Some(discovery(issuer)),
        _ => None,
    };
    let (status, body) = match body {
        Some(body) if is_get => (StatusCode::OK, body),
        Some(_) => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        None => (StatusCode::NOT_FOUND, String::new()),
    };
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
}

/// Spec: OpenID Connect Discovery 1.0 section 3.
fn discovery(issuer: &str) -> String {
    let base = issuer.trim_end_matches('/');
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{base}/keys"),
        "authorization_endpoint": "",
        "response_types_supported": ["id_token"],
        "subject_types_supported": [],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
    .to_string()
}

const LOOK_EVERY: Duration = Duration::from_millis(500);
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Nobody needs longer for one document.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 256;
