//! The callers of the demo: an app that speaks plain HTTP, and strangers.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::HOST};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// One connection that speaks plain HTTP/1.1, as an unmodified app does.
pub(crate) struct Plain {
    sender: http1::SendRequest<Empty<Bytes>>,
}

impl Plain {
    pub(crate) async fn over(stream: TcpStream) -> anyhow::Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// May it be used for another request?
    pub(crate) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and waits for the head of the answer.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "web.production.svc")
            .body(Empty::new())?;
        self.sender.ready().await?;
        timeout(PATIENCE, self.sender.send_request(request))
            .await
            .context("no answer in time")?
            .context("the connection broke before an answer")
    }

    /// Sends a request, reads the whole answer, and tells its status and request id.
    pub(crate) async fn ask(&mut self, method: Method, path: &str) -> anyhow::Result<Answer> {
        let response = self.send(method, path).await?;
        let (head, body) = response.into_parts();
        timeout(PATIENCE, body.collect())
            .await
            .context("the answer did not end in time")??;
        let request_id = head
            .headers
            .get("x-request-id")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        Ok(Answer {
            status: head.status,
            request_id,
        })
    }
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) request_id: String,
}

/// Speaks plain HTTP where mutual TLS is demanded; tells how many bytes came back before the end.
pub(crate) async fn plaintext_bytes_back(mut stream: TcpStream) -> anyhow::Result<usize> {
    stream
        .write_all(b"GET /api/v1/orders HTTP/1.1\r\nhost: web\r\n\r\n")
        .await?;
    let mut back = Vec::new();
    match timeout(PATIENCE, stream.read_to_end(&mut back))
        .await
        .context("it was not closed")?
    {
        // A reset is as good an end as a close.
        Ok(_) | Err(_) => Ok(back.len()),
    }
}

/// How a handshake without a certificate went.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// The server's refusal, or nothing where it let us in.
    pub(crate) refused: Option<String>,
    /// The certificate that the server showed.
    pub(crate) shown: Option<CertificateDer<'static>>,
}

/// Makes a TLS handshake without a certificate and tells how it ended.
///
/// In TLS 1.3 a client is done before the server has judged it, so the refusal shows at the first
/// read.
pub(crate) async fn handshake_without_certificate(stream: TcpStream) -> anyhow::Result<Handshake> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let stranger = Arc::new(Stranger {
        provider: provider.clone(),
        shown: OnceLock::new(),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(stranger.clone())
        .with_no_client_auth();
    let name = ServerName::try_from("web.production.svc")?;
    let first_byte = async {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await?.read_u8().await
    };
    let outcome = timeout(PATIENCE, first_byte)
        .await
        .context("the server did not decide in time")?;
    Ok(Handshake {
        refused: outcome.err().map(|error| error.to_string()),
        shown: stranger.shown.get().cloned(),
    })
}

/// A stranger does not care whom it talks to; it only wants to see whether it is let in.
#[derive(Debug)]
struct Stranger {
    provider: Arc<CryptoProvider>,
    shown: OnceLock<CertificateDer<'static>>,
}

impl ServerCertVerifier for Stranger {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.shown.get_or_init(|| certificate.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// How long anything may take that should take milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
