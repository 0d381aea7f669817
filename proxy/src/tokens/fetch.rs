//! Fetches keys over HTTP: bounded in bytes, without redirects, and from no address at which a
//! machine tells its own secrets.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OnceCell,
};
use tokio_rustls::TlsConnector;

use super::keys::{KeySet, Source};

/// Fetches keys.
#[derive(Debug)]
pub(super) struct Fetcher {
    /// Whom to trust, if not whom the system does.
    authorities: Option<PathBuf>,
    tls: OnceCell<Arc<ClientConfig>>,
}

impl Fetcher {
    pub(super) fn new(authorities: Option<PathBuf>) -> Self {
        Self {
            authorities,
            tls: OnceCell::new(),
        }
    }

    /// # Errors
    /// Whatever went wrong, with the URL; callers try again later.
    pub(super) async fn keys(&self, source: &Source) -> anyhow::Result<KeySet> {
        let uri = match source {
            Source::Uri(uri) => uri.clone(),
            Source::Issuer(issuer) => self.discover(issuer).await?,
        };
        let text = self.get(&uri).await.with_context(|| uri.clone())?;
        KeySet::parse(&text).context(uri)
    }

    /// Where an issuer has its keys. Spec: OpenID Connect Discovery 1.0 section 4.
    async fn discover(&self, issuer: &str) -> anyhow::Result<String> {
        #[derive(Deserialize)]
        struct Found {
            issuer: String,
            jwks_uri: String,
        }
        let base = issuer.trim_end_matches('/');
        let uri = format!("{base}/.well-known/openid-configuration");
        let text = self.get(&uri).await.with_context(|| uri.clone())?;
        let found: Found = serde_json::from_slice(&text)
            .with_context(|| format!("{uri} is no discovery document"))?;
        ensure!(
            found.issuer == issuer,
            "{uri} speaks of another issuer, `{}`",
            found.issuer
        );
        let keeps_tls = !uri.starts_with("https://") || found.jwks_uri.starts_with("https://");
        ensure!(
            keeps_tls,
            "{uri} names keys without TLS, `{}`",
            found.jwks_uri
        );
        Ok(found.jwks_uri)
    }

    async fn get(&self, uri: &str) -> anyhow::Result<Bytes> {
        let uri: Uri = uri.parse().context("it is no URL")?;
        let host = uri.host().context("it has no host")?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => bail!("it is no http or https URL"),
        };
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let stream = connect(host, port).await?;
        if !tls {
            return ask(stream, &uri).await;
        }
        let config = self
            .tls
            .get_or_try_init(|| async { client_config(self.authorities.clone()) })
            .await?;
        let name = ServerName::try_from(unbracketed(host).to_owned())?;
        let connector = TlsConnector::from(config.clone());
        ask(connector.connect(name, stream).await?, &uri).await
    }
}

async fn connect(host: &str, port: u16) -> anyhow::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((unbracketed(host), port))
        .await
        .with_context(|| format!("`{host}` is not found"))?
        .collect();
    let mut failed = anyhow::anyhow!("`{host}` has no address");
    for address in addresses {
        if is_forbidden(address.ip()) {
            failed = anyhow::anyhow!("keys are not fetched from {}", address.ip());
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = anyhow::Error::new(error).context(address),
        }
    }
    Err(failed)
}

fn unbracketed(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Link-local addresses, where clouds tell a machine its secrets, and those that are no host's.
fn is_forbidden(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip == AWS_METADATA
        }
    }
}

async fn ask<S>(stream: S, uri: &Uri) -> anyhow::Result<Bytes>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().context("it has no host")?;
    let request = Request::get(path)
        .header(header::HOST, host.as_str())
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        ensure!(status == StatusCode::OK, "the answer is {status}");
        let body = Limited::new(response.into_body(), MAX_BYTES)
            .collect()
            .await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?;
        Ok(body.to_bytes())
    };
    // The connection does its work beside the question, and ends with it.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.into()),
        },
    }
}

fn client_config(authorities: Option<PathBuf>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            let all = CertificateDer::pem_file_iter(&path)
                .with_context(|| format!("cannot read `{}`", path.display()))?;
            for one in all {
                roots.add(one?)?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    ensure!(
        !roots.is_empty(),
        "this system has no authorities for https; name a file of them in `tokenKeys.caFile`"
    );
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// As large as no key set is.
const MAX_BYTES: usize = 1 << 20;

/// `fd00:ec2::254`
const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
