//! What the containers of the compose demo run beside the app: they have no shell and no curl.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use http::{Method, StatusCode, Uri};
use tokio::{
    net::{TcpStream, lookup_host},
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::client::{PATIENCE, Plain, handshake_without_certificate, plaintext_bytes_back};

/// Works until SIGTERM or SIGINT comes. The first process of a container ends by no other way:
/// the kernel keeps signals from it that it does not ask for.
pub(crate) async fn until_told(
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::select! {
        done = work => done,
        _ = term.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// What is asked.
#[derive(Debug, Args)]
pub(crate) struct Ask {
    /// `http://HOST:PORT/PATH`
    url: Uri,

    /// The method
    #[arg(long, default_value = "GET")]
    method: Method,

    /// Speak HTTP to a port that wants mutual TLS: succeeds when not a byte comes back
    #[arg(long)]
    expect_silence: bool,

    /// Make a TLS handshake without a certificate: succeeds when it is refused
    #[arg(long, conflicts_with = "expect_silence")]
    expect_alert: bool,
}

impl Ask {
    /// Prints the status and the id of the request.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let address = resolve(&self.url).await?;
        let stream = connect(address).await?;
        if self.expect_silence {
            let back = plaintext_bytes_back(stream).await?;
            ensure!(back == 0, "{back} bytes came back");
            anstream::println!("closed without a byte");
            return Ok(());
        }
        if self.expect_alert {
            let handshake = handshake_without_certificate(stream).await?;
            let refused = handshake.refused.context("it let us in")?;
            anstream::println!("{refused}");
            return Ok(());
        }
        let answer = Plain::over(stream)
            .await?
            .ask(self.method, self.url.path())
            .await?;
        anstream::println!("{} {}", answer.status.as_u16(), answer.request_id);
        Ok(())
    }
}

/// What is asked, and for how long.
#[derive(Debug, Args)]
pub(crate) struct AskSteadily {
    /// `http://HOST:PORT/PATH`
    url: Uri,

    /// For how many seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

impl AskSteadily {
    /// Prints how many requests were answered with 200.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let address = resolve(&self.url).await?;
        let end = Instant::now() + Duration::from_secs(self.seconds);
        let (mut good, mut failed) = (0_u64, Vec::new());
        let mut kept = None;
        while Instant::now() < end {
            match ask_on(&mut kept, address, self.url.path()).await {
                Ok(()) => good += 1,
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
        anstream::println!("{good} answered with 200, {} not", failed.len());
        match failed.first() {
            Some(first) => bail!("the first: {first}"),
            None => Ok(()),
        }
    }
}

/// One request on the kept connection, or on a new one that is kept from then on.
async fn ask_on(kept: &mut Option<Plain>, to: SocketAddr, path: &str) -> anyhow::Result<()> {
    let mut plain = match kept.take().filter(Plain::is_open) {
        Some(plain) => plain,
        None => Plain::over(connect(to).await?).await?,
    };
    let answer = plain.ask(Method::GET, path).await?;
    ensure!(answer.status == StatusCode::OK, "status {}", answer.status);
    *kept = Some(plain);
    Ok(())
}

async fn resolve(url: &Uri) -> anyhow::Result<SocketAddr> {
    let host = url.host().context("the address has no host")?;
    let port = url.port_u16().unwrap_or(80);
    let mut found = lookup_host((host, port))
        .await
        .with_context(|| format!("cannot resolve `{host}`"))?;
    found
        .next()
        .with_context(|| format!("`{host}` has no address"))
}

async fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    timeout(PATIENCE, TcpStream::connect(to))
        .await
        .with_context(|| format!("no connection to {to} in time"))?
        .with_context(|| format!("cannot connect to {to}"))
}
