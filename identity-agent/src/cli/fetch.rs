//! `api fetch`, `api watch` and `healthcheck`, with SPIRE's formats.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::{Args, ValueEnum};
use postern_agent::pem::pem;
use postern_proto::workload_api::{
    X509svid, X509svidRequest, X509svidResponse,
    spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use postern_spiffe::{
    BundleSet, PeerRole, RevocationLists, SpiffeId, X509Bundle, X509Svid, verify_peer,
    x509_svid::split_der,
};
use serde_json::json;
use time::{OffsetDateTime, macros::format_description};
use tonic::{Code, Status, transport::Channel};

use super::{
    Endpoint, Output,
    client::{connect, refused, request, within},
    duration, jwt,
};

/// Fetches the caller's identities
#[derive(Debug, Args)]
pub(super) struct Fetch {
    /// Which kind
    #[arg(value_enum, default_value = "x509")]
    kind: Kind,

    #[command(flatten)]
    endpoint: Endpoint,

    #[command(flatten)]
    wanted: jwt::Wanted,

    /// `pretty` on a terminal and `json` elsewhere, unless given
    #[arg(long, value_enum)]
    output: Option<Output>,

    /// Write the identities as files into this folder
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,

    /// How long to wait
    #[arg(long, default_value = "5s", value_parser = duration)]
    timeout: Duration,

    /// Print nothing
    #[arg(long)]
    silent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// X.509-SVIDs
    X509,
    /// JWT-SVIDs
    Jwt,
}

/// Shows every update of the caller's identities
#[derive(Debug, Args)]
pub(super) struct Watch {
    #[command(flatten)]
    endpoint: Endpoint,

    /// `pretty` blocks or `json` lines
    #[arg(long, value_enum, default_value = "pretty")]
    output: Output,
}

impl Fetch {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        if self.kind == Kind::Jwt {
            ensure!(self.write.is_none(), "-write is for X.509-SVIDs");
            let path = self.endpoint.path()?;
            return jwt::fetch(&path, self.wanted, self.output, self.timeout, self.silent).await;
        }
        ensure!(
            self.wanted.is_empty(),
            "-audience and -spiffeID are for JWT-SVIDs: `api fetch jwt`"
        );
        let began = Instant::now();
        let response = within(self.timeout, fetch(&self.endpoint.path()?)).await?;
        // Who writes files wants to read where they are, unless told otherwise.
        let output = match self.write {
            Some(_) => self.output.unwrap_or(Output::Pretty),
            None => Output::or_default(self.output),
        };
        if !self.silent {
            show(&response, output, began.elapsed())?;
        }
        match &self.write {
            Some(folder) => write(&response, folder, self.silent),
            None => Ok(()),
        }
    }
}

impl Watch {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let path = self.endpoint.path()?;
        let mut client = connect(&path).await?;
        let mut wait = FIRST_WAIT;
        loop {
            let ended = self.follow(&mut client, &mut wait).await;
            // The agent's own word is final; that it is away is not.
            if !matches!(
                ended.code(),
                Code::Unavailable | Code::Unknown | Code::Cancelled
            ) {
                return Err(refused(&ended));
            }
            anstream::eprintln!("{:#}; asking again", refused(&ended));
            client = loop {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
                if let Ok(client) = connect(&path).await {
                    break client;
                }
            };
        }
    }

    /// Shows every update until the stream ends, and tells why it did.
    async fn follow(
        &self,
        client: &mut SpiffeWorkloadApiClient<Channel>,
        wait: &mut Duration,
    ) -> Status {
        let mut began = Instant::now();
        let mut stream = match client.fetch_x509svid(request(X509svidRequest {})).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return status,
        };
        loop {
            match stream.message().await {
                Ok(Some(response)) => {
                    *wait = FIRST_WAIT;
                    if let Err(error) = show(&response, self.output, began.elapsed()) {
                        return Status::internal(error.to_string());
                    }
                    began = Instant::now();
                }
                Ok(None) => return Status::unavailable("the agent ended the stream"),
                Err(status) => return status,
            }
        }
    }
}

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The agent is healthy when it answers; that it has no identity for us says nothing against it.
pub(super) async fn healthcheck(
    endpoint: Endpoint,
    shallow: bool,
    verbose: bool,
) -> anyhow::Result<()> {
    let path = endpoint.path()?;
    let asked = async {
        let mut client = connect(&path).await?;
        if shallow {
            return Ok(());
        }
        match client.fetch_x509svid(request(X509svidRequest {})).await {
            Ok(mut stream) => match stream.get_mut().message().await {
                Err(status) if status.code() != Code::PermissionDenied => Err(refused(&status)),
                _ => Ok(()),
            },
            Err(status) if status.code() == Code::PermissionDenied => Ok(()),
            Err(status) => Err(refused(&status)),
        }
    };
    match within(Duration::from_secs(5), asked).await {
        Ok(()) => {
            anstream::println!("Agent is healthy.");
            Ok(())
        }
        Err(error) => {
            if verbose {
                anstream::eprintln!("asked at `{}`", path.display());
            }
            bail!("Agent is unhealthy: {error:#}")
        }
    }
}

async fn fetch(path: &Path) -> anyhow::Result<X509svidResponse> {
    let mut client = connect(path).await?;
    let mut stream = client
        .fetch_x509svid(request(X509svidRequest {}))
        .await
        .map_err(|status| refused(&status))?
        .into_inner();
    let first = stream.message().await.map_err(|status| refused(&status))?;
    first.context("the agent ended the stream without an answer")
}

fn show(response: &X509svidResponse, output: Output, after: Duration) -> anyhow::Result<()> {
    let text = match output {
        Output::Json => format!("{}\n", json_of(response)),
        Output::Pretty => pretty_of(response, after)?,
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write the answer")
}

/// One object on one line: the names of the contract, sorted, nothing left out.
fn json_of(response: &X509svidResponse) -> serde_json::Value {
    let encode = |der: &Vec<u8>| BASE64_STANDARD.encode(der);
    let svids: Vec<_> = response
        .svids
        .iter()
        .map(|svid| {
            json!({
                "bundle": encode(&svid.bundle),
                "hint": svid.hint,
                "spiffe_id": svid.spiffe_id,
                "x509_svid": encode(&svid.x509_svid),
                "x509_svid_key": encode(&svid.x509_svid_key),
            })
        })
        .collect();
    let federated: serde_json::Map<_, _> = response
        .federated_bundles
        .iter()
        .map(|(name, bundle)| (name.clone(), encode(bundle).into()))
        .collect();
    json!({
        "crl": response.crl.iter().map(encode).collect::<Vec<_>>(),
        "federated_bundles": federated,
        "svids": svids,
    })
}

/// A block for people; every chain is verified before it is shown.
fn pretty_of(response: &X509svidResponse, after: Duration) -> anyhow::Result<String> {
    let count = response.svids.len();
    let mut lines = vec![
        format!(
            "Received {count} svid{} after {}",
            plural(count),
            short(after)
        ),
        String::new(),
    ];
    for svid in &response.svids {
        let id = SpiffeId::parse(&svid.spiffe_id).context("the agent sent no SPIFFE ID")?;
        let chain = split_der(&svid.x509_svid).context("the agent's chain cannot be read")?;
        let bundle = X509Bundle::from_der_run(id.trust_domain().clone(), &svid.bundle)?;
        let authorities = bundle.authorities().to_vec();
        let bundles = BundleSet::from_iter([bundle]);
        let lists = RevocationLists::default();
        verify_peer(
            &chain,
            &bundles,
            &lists,
            PeerRole::Client,
            SystemTime::now(),
        )
        .with_context(|| format!("the SVID of `{id}` does not verify"))?;
        let leaf = X509Svid::parse(chain.first().context("the chain is empty")?)?;
        lines.push(format!("SPIFFE ID:\t\t{id}"));
        if !svid.hint.is_empty() {
            lines.push(format!("Hint:\t\t\t{}", svid.hint));
        }
        lines.push(format!("SVID Valid After:\t{}", date(leaf.not_before())));
        lines.push(format!("SVID Valid Until:\t{}", date(leaf.not_after())));
        for (number, certificate) in (1..).zip(chain.iter().skip(1)) {
            lines.extend(validity(&format!("Intermediate #{number}"), certificate)?);
        }
        for (number, certificate) in (1..).zip(&authorities) {
            lines.extend(validity(&format!("CA #{number}"), certificate)?);
        }
        for (name, bundle) in federated(response) {
            let name = name.trim_start_matches("spiffe://");
            let all = split_der(bundle).context("a federated bundle cannot be read")?;
            for (number, certificate) in (1..).zip(&all) {
                lines.extend(validity(&format!("[{name}] CA #{number}"), certificate)?);
            }
        }
        lines.push(String::new());
    }
    Ok(lines.join("\n") + "\n")
}

/// The bundles of other trust domains, in the order of their names.
fn federated(response: &X509svidResponse) -> Vec<(&String, &Vec<u8>)> {
    let mut all: Vec<_> = response.federated_bundles.iter().collect();
    all.sort();
    all
}

fn validity(what: &str, certificate: &[u8]) -> anyhow::Result<[String; 2]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .with_context(|| format!("{what} cannot be read"))?;
    let date = |seconds: i64| {
        let seconds = u64::try_from(seconds).unwrap_or_default();
        date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    };
    let validity = parsed.validity();
    Ok([
        format!(
            "{what} Valid After:\t{}",
            date(validity.not_before.timestamp())
        ),
        format!(
            "{what} Valid Until:\t{}",
            date(validity.not_after.timestamp())
        ),
    ])
}

/// `svid.N.pem`, `svid.N.key`, `bundle.N.pem` and `federated_bundle.N.M.pem`, the key for its owner alone.
fn write(response: &X509svidResponse, folder: &Path, silent: bool) -> anyhow::Result<()> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    for (number, svid) in response.svids.iter().enumerate() {
        let mut all = files(number, svid)?.to_vec();
        for (place, (_, bundle)) in federated(response).into_iter().enumerate() {
            let name = format!("federated_bundle.{number}.{place}.pem");
            all.push((name, 0o644, certificates(bundle)?));
        }
        for (name, mode, text) in all {
            let path = folder.join(name);
            if !silent {
                anstream::println!("Writing {} to file {}.", what(&path), path.display());
            }
            write_whole(&path, mode, &text)?;
        }
    }
    Ok(())
}

fn files(number: usize, svid: &X509svid) -> anyhow::Result<[(String, u32, String); 3]> {
    Ok([
        (
            format!("svid.{number}.pem"),
            0o644,
            certificates(&svid.x509_svid)?,
        ),
        (
            format!("svid.{number}.key"),
            0o600,
            pem("PRIVATE KEY", &svid.x509_svid_key),
        ),
        (
            format!("bundle.{number}.pem"),
            0o644,
            certificates(&svid.bundle)?,
        ),
    ])
}

fn certificates(der: &[u8]) -> anyhow::Result<String> {
    let all = split_der(der).context("the agent's certificates cannot be read")?;
    Ok(all.iter().map(|one| pem("CERTIFICATE", one)).collect())
}

/// A reader sees the old file or the new one, never half of one.
fn write_whole(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    let failed = || format!("cannot write `{}`", path.display());
    let mut options = OpenOptions::new();
    let _ = fs::remove_file(&fresh);
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)
        .with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    fs::rename(&fresh, path).with_context(failed)
}

fn what(path: &Path) -> &'static str {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    match name {
        _ if name.starts_with("bundle") => "bundle",
        _ if name.starts_with("federated_bundle") => "federated bundle",
        _ if name.ends_with(".key") => "key",
        _ => "SVID",
    }
}

/// As Go prints a time: `2026-11-24 03:31:42 +0000 UTC`.
fn date(time: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000 UTC");
    OffsetDateTime::from(time)
        .format(format)
        .unwrap_or_default()
}

fn short(duration: Duration) -> String {
    match duration.as_millis() {
        0 => format!("{}µs", duration.as_micros()),
        ms => format!("{ms}ms"),
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
