//! Fetches small documents over HTTPS: keys of issuers, bundles of other trust domains, the pods of
//! a kubelet; and follows answers that do not end, as those of an API server.
//!
//! Bounded in bytes, without redirects, and from no address at which a machine tells its own
//! secrets. Time is the caller's to bound.

#![forbid(unsafe_code)]

mod answer;
mod verifier;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header, uri::Authority};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use postern_spiffe::{SpiffeId, X509Bundle};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use answer::Connection;

pub use answer::Answer;

/// Whom a client believes to be the server.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Whoever the authorities of this system vouch for, by name.
    System,
    /// Whoever the authorities of this file vouch for, by name. Certificates in PEM.
    File(PathBuf),
    /// Whoever holds exactly this identity. Spec: SPIFFE Federation section 5.2.2.
    Spiffe(SpiffeId, Arc<X509Bundle>),
    /// Whoever answers: for a server on the same machine alone.
    Anybody,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Fetches documents from servers that it trusts for one reason.
#[derive(Debug, Clone)]
pub struct Client {
    tls: Arc<ClientConfig>,
    plain: bool,
    max_bytes: usize,
}

impl Client {
    /// Reads the files that it needs.
    ///
    /// # Errors
    /// A file that cannot be read, or no authority at all.
    pub fn new(trust: &Trust, identity: Option<&Identity>) -> anyhow::Result<Self> {
        Ok(Self {
            tls: Arc::new(client_config(trust, identity)?),
            plain: false,
            max_bytes: 1 << 20,
        })
    }

    /// Also takes `http://`.
    #[must_use]
    pub fn or_plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Takes answers of up to so many bytes, instead of one MiB.
    #[must_use]
    pub fn up_to(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Fetches a document, with a token if there is one.
    ///
    /// # Errors
    /// Whatever went wrong; a redirect and every other answer than 200 are errors too.
    pub async fn get(&self, uri: &str, token: Option<&str>) -> anyhow::Result<Bytes> {
        let answer = self.open(uri, token).await?;
        let status = answer.status();
        ensure!(status == StatusCode::OK, "the answer is {status}");
        answer.whole(self.max_bytes).await
    }

    /// Asks, and leaves it to the caller to read the answer, whatever its status is.
    ///
    /// # Errors
    /// Whatever kept an answer from coming.
    pub async fn open(&self, uri: &str, token: Option<&str>) -> anyhow::Result<Answer> {
        let uri: Uri = uri.parse().context("it is no URL")?;
        let authority = uri.authority().context("it has no host")?;
        ensure!(
            !authority.as_str().contains('@'),
            "a URL with a user name is not fetched"
        );
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if self.plain => false,
            Some("http") => bail!("only https is fetched"),
            _ => bail!("it is no https URL"),
        };
        let request = request(&uri, authority, token)?;
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let host = unbracketed(authority.host());
        let stream = connect(host, port).await?;
        if !tls {
            return ask(stream, request).await;
        }
        let name = ServerName::try_from(host.to_owned())?;
        let connector = TlsConnector::from(self.tls.clone());
        let stream = connector.connect(name, stream).await?;
        ask(stream, request).await
    }
}

fn request(
    uri: &Uri,
    authority: &Authority,
    token: Option<&str>,
) -> anyhow::Result<Request<Empty<Bytes>>> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path)
        .header(header::HOST, authority.as_str())
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    if let Some(token) = token {
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| anyhow::anyhow!("the token cannot be sent in a header"))?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    Ok(request)
}

async fn ask<S>(stream: S, request: Request<Empty<Bytes>>) -> anyhow::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut connection: Connection = Box::pin(connection);
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // The connection does its work beside the question. It may end with the answer, and before it by
    // its fault alone.
    let response = tokio::select! {
        response = &mut answer => response?,
        ended = &mut connection => {
            ended?;
            return Ok(Answer::of(answer.await?, None));
        }
    };
    Ok(Answer::of(response, Some(connection)))
}

async fn connect(host: &str, port: u16) -> anyhow::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
        .await
        .with_context(|| format!("`{host}` is not found"))?
        .collect();
    let mut failed = anyhow::anyhow!("`{host}` has no address");
    for address in addresses {
        if is_forbidden(address.ip()) {
            failed = anyhow::anyhow!("nothing is fetched from {}", address.ip());
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // A server that vanishes without a word is found out, also while nobody waits for it.
                let _ = SockRef::from(&stream).set_tcp_keepalive(&alive());
                return Ok(stream);
            }
            Err(error) => failed = anyhow::Error::new(error).context(address),
        }
    }
    Err(failed)
}

fn alive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_TRIES)
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

fn client_config(trust: &Trust, identity: Option<&Identity>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::System => builder.with_root_certificates(system_roots()?),
        Trust::File(path) => builder.with_root_certificates(roots_of(path)?),
        Trust::Spiffe(id, bundle) => {
            let verifier = verifier::Exactly::new(id.clone(), bundle, provider);
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
        Trust::Anybody => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier::Anybody::new(provider))),
    };
    let Some(identity) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(&identity.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&identity.key)
        .with_context(|| format!("cannot read the key `{}`", identity.key.display()))?;
    Ok(builder.with_client_auth_cert(chain, key)?)
}

fn system_roots() -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    ensure!(
        !roots.is_empty(),
        "this system has no authorities for https; name a file of them in `caFile`"
    );
    Ok(roots)
}

fn roots_of(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for one in certificates(path)? {
        roots.add(one)?;
    }
    ensure!(
        !roots.is_empty(),
        "`{}` holds no certificate",
        path.display()
    );
    Ok(roots)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read the certificates `{}`", path.display()))
}

/// A dead connection is known after half a minute.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_TRIES: u32 = 3;

/// `fd00:ec2::254`
const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

#[cfg(test)]
mod tests {
    use super::is_forbidden;

    #[test]
    fn no_machine_is_asked_for_its_own_secrets() {
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(is_forbidden(address.parse().unwrap()), "{address}");
        }
        for address in ["127.0.0.1", "10.0.0.1", "192.0.2.1", "::1", "fd00::1"] {
            assert!(!is_forbidden(address.parse().unwrap()), "{address}");
        }
    }
}
