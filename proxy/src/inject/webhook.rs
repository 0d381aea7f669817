//! The same as a mutating admission webhook, over TLS.
//!
//! It holds no state and asks nobody: a question comes in, bounded in bytes and time, and its answer
//! goes out.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_policies::files::Fingerprint;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    time::{interval, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::TaskTracker;

use super::{
    options::Options,
    review::{self, Verdict},
};
use crate::telemetry;

/// By what the webhook is known to the API server, and the API server to it.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// Who signs the certificates of those that may ask; without it everybody may.
    pub(super) client_authority: Option<PathBuf>,
}

impl Files {
    fn look(&self) -> Vec<Fingerprint> {
        let all = [
            Some(&self.certificate),
            Some(&self.key),
            self.client_authority.as_ref(),
        ];
        all.into_iter()
            .flatten()
            .map(|path| Fingerprint::of(path))
            .collect()
    }
}

/// How the next connection is made.
#[derive(Debug)]
struct Shown(RwLock<Arc<ServerConfig>>);

impl Shown {
    fn now(&self) -> TlsAcceptor {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(shown.clone())
    }
}

/// Whether a connection may ask for reviews; health is told to all, since no kubelet has a certificate for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Of the client authority, or there is none to be of.
    Admitted,
    /// One is demanded, and no certificate was shown.
    Unproven,
}

/// Serves until it is told to end, and finishes what it has begun.
///
/// # Errors
/// What keeps it from starting.
pub(super) fn serve(listen: SocketAddr, files: Files, options: Options) -> anyhow::Result<()> {
    let (_log, _) = telemetry::start_log()?;
    postern_harden::no_new_privileges()?;
    postern_harden::no_core_files()?;
    postern_harden::not_dumpable()?;
    telemetry::write_log()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_REVIEWS)
        .build()
        .context("cannot start the runtime")?
        .block_on(listen_at(listen, files, options))
}

async fn listen_at(listen: SocketAddr, files: Files, options: Options) -> anyhow::Result<()> {
    // Before they are read: a change while they are is seen at the next look.
    let seen = files.look();
    let shown = Shown(RwLock::new(load(&files)?));
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    postern_harden::keep_capabilities(&[])?;
    let listen = listener.local_addr()?;
    tracing::info!(%listen, "ready");
    let open = TaskTracker::new();
    let options = Arc::new(options);
    tokio::select! {
        () = follow(&files, seen, &shown) => {}
        () = accept(&listener, &shown, &files, &options, &open) => {}
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    drop(listener);
    open.close();
    // Each ends by itself, within its own time.
    open.wait().await;
    Ok(())
}

fn load(files: &Files) -> anyhow::Result<Arc<ServerConfig>> {
    let unread = |path: &Path| format!("cannot read `{}`", path.display());
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).with_context(|| unread(&files.key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match &files.client_authority {
        Some(path) => builder.with_client_cert_verifier(client_verifier(path, provider)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .context("the certificate and the key cannot be used together")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session that is resumed runs no verifier.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read `{}`", path.display()))
}

/// Takes certificates for clients (`extKeyUsage` of TLS client authentication) that an authority of
/// the file signed. None at all gets as far as to `/healthz`; one of anybody else ends the handshake.
///
/// Spec: RFC 5280 section 6.1; RFC 8446 section 4.4.2.4.
fn client_verifier(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .with_context(|| format!("`{}` holds what is no authority", path.display()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .with_context(|| format!("`{}` holds no certificate in PEM", path.display()))
}

/// Replaces certificates when their files change, as a Secret's do.
async fn follow(files: &Files, mut seen: Vec<Fingerprint>, shown: &Shown) {
    let mut every = interval(LOOK_EVERY);
    loop {
        every.tick().await;
        let looks = files.look();
        if looks == seen {
            continue;
        }
        match load(files) {
            Ok(next) => {
                *shown.0.write().unwrap_or_else(PoisonError::into_inner) = next;
                tracing::info!("the webhook's certificate was replaced");
            }
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "the webhook's certificate cannot be replaced"
            ),
        }
        seen = looks;
    }
}

async fn accept(
    listener: &TcpListener,
    shown: &Shown,
    files: &Files,
    options: &Arc<Options>,
    open: &TaskTracker,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let demands = files.client_authority.is_some();
    loop {
        let Ok(handshake) = handshakes.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, from)) = listener.accept().await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (acceptor, options, places) = (shown.now(), options.clone(), places.clone());
        open.spawn(async move {
            // Who says nothing gets none of the places of those who speak TLS.
            let stream = match timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(src.addr = %from, %error, "a handshake failed");
                    return;
                }
                Err(_) => return,
            };
            let caller = match demands && stream.get_ref().1.peer_certificates().is_none() {
                true => Caller::Unproven,
                false => Caller::Admitted,
            };
            // Nor does one who does not read the answer keep it.
            let _ = timeout(CONNECTION_TIME, async move {
                let _place = places.acquire_owned().await;
                drop(handshake);
                connection(stream, caller, &options).await;
            })
            .await;
        });
    }
}

async fn connection(stream: TlsStream<TcpStream>, caller: Caller, options: &Arc<Options>) {
    let service = service_fn(|request| {
        let options = options.clone();
        async move { respond(request, caller, options).await }
    });
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(
    request: Request<Incoming>,
    caller: Caller,
    options: Arc<Options>,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let (status, content_type, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz/live" | "/healthz/ready") => {
            (StatusCode::OK, TEXT, "ok\n".to_owned())
        }
        (_, "/inject") if caller == Caller::Unproven => {
            tracing::info!("a review without a certificate was refused");
            (StatusCode::UNAUTHORIZED, TEXT, UNPROVEN.to_owned())
        }
        (&Method::POST, "/inject") => match question(request).await {
            Ok(body) => judged(body, options).await,
            Err((status, why)) => (status, TEXT, format!("{why}\n")),
        },
        (_, "/inject") => (
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only POST\n".to_owned(),
        ),
        _ => (StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned()),
    };
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .body(Full::new(body.into()))
}

async fn question(request: Request<Incoming>) -> Result<Bytes, (StatusCode, String)> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let is_json = content_type.is_some_and(|value| {
        let (kind, _) = value.split_once(';').unwrap_or((value, ""));
        kind.trim().eq_ignore_ascii_case(JSON)
    });
    if !is_json {
        let why = format!("send {JSON}");
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES);
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let why = format!("a review has at most {} MiB", MAX_BODY_BYTES >> 20);
            Err((StatusCode::PAYLOAD_TOO_LARGE, why))
        }
        Err(error) => Err((
            StatusCode::BAD_REQUEST,
            format!("the body broke off: {error}"),
        )),
    }
}

/// Away from the thread that answers everybody else. A question that nobody waits for any more keeps
/// its place until it is through.
async fn judged(body: Bytes, options: Arc<Options>) -> (StatusCode, &'static str, String) {
    let place = REVIEWS.acquire().await;
    let judged = tokio::task::spawn_blocking(move || {
        let reviewed = reviewed(&body, &options);
        drop(place);
        reviewed
    });
    judged.await.unwrap_or_else(|error| {
        let why = format!("the review failed: {error}\n");
        (StatusCode::INTERNAL_SERVER_ERROR, TEXT, why)
    })
}

fn reviewed(body: &[u8], options: &Options) -> (StatusCode, &'static str, String) {
    match review::answer(body, options) {
        Ok((verdict, answer)) => {
            let uid = answer.pointer("/response/uid").and_then(|uid| uid.as_str());
            let why = answer.pointer("/response/status/message");
            let why = why.and_then(|why| why.as_str()).unwrap_or_default();
            match verdict {
                Verdict::Injected => tracing::info!(uid, "injected"),
                Verdict::Unchanged => tracing::debug!(uid, "unchanged"),
                Verdict::Refused => tracing::info!(uid, reason = why, "refused"),
            }
            (StatusCode::OK, JSON, answer.to_string())
        }
        Err(why) => (StatusCode::BAD_REQUEST, TEXT, format!("{why}\n")),
    }
}

const JSON: &str = "application/json";
const UNPROVEN: &str = "a certificate of the authority in --client-ca is needed\n";
const TEXT: &str = "text/plain; charset=utf-8";

/// The API server takes no object of more than a megabyte and a half, and sends two at most.
const MAX_BODY_BYTES: usize = 4 << 20;

/// More pods at once than an API server makes, in little memory.
const MAX_CONNECTIONS: usize = 64;

/// The API server waits for ten seconds by default, and thirty at most.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Connections that have not shown yet that they speak TLS.
const MAX_HANDSHAKES: usize = 512;
const HANDSHAKE_TIME: Duration = Duration::from_secs(2);

/// Reviews at once; the runtime has as many threads for them.
const MAX_REVIEWS: usize = 2;
static REVIEWS: Semaphore = Semaphore::const_new(MAX_REVIEWS);
const HEAD_TIME: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(500);
