//! `api fetch`, `api watch` and `healthcheck`, with SPIRE's formats.

use std::{
    ffi::{OsStr, OsString},
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::{Args, ValueEnum};
use postern_proto::workload_api::{
    X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use postern_spiffe::{
    BundleSet, PeerRole, RevocationLists, SpiffeId, X509Bundle, X509Svid, verify_peer,
    x509_svid::split_der,
};
use serde_json::json;
use time::{OffsetDateTime, macros::format_description};
use tokio::process::Command;
use tonic::{Code, Status, transport::Channel};

use super::{
    Endpoint, Output,
    client::{connect, refused, request, within},
    duration, files, jwt,
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

    /// Write the identities as files into this folder, anew with every update
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,

    /// Print nothing
    #[arg(long)]
    silent: bool,

    /// Run this after every update, such as what makes a server read its files again
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
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
            Some(folder) => files::write(&response, folder, self.silent),
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
                    if let Err(error) = self.updated(&response, began.elapsed()).await {
                        return Status::internal(format!("{error:#}"));
                    }
                    began = Instant::now();
                }
                Ok(None) => return Status::unavailable("the agent ended the stream"),
                Err(status) => return status,
            }
        }
    }
}

impl Watch {
    /// Says, writes and runs what was asked for.
    async fn updated(&self, response: &X509svidResponse, after: Duration) -> anyhow::Result<()> {
        if !self.silent {
            show(response, self.output, after)?;
        }
        if let Some(folder) = &self.write {
            // Standard output belongs to the updates.
            files::write(response, folder, true)?;
        }
        if let Some((program, arguments)) = self.command.split_first() {
            run(program, arguments).await;
        }
        Ok(())
    }
}

/// Runs the user's command to its end, or to the end of its time. How it fares is told and changes
/// nothing: the next update must not be missed because a server could not be reached.
async fn run(program: &OsStr, arguments: &[OsString]) {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let name = program.display();
    match tokio::time::timeout(COMMAND_PATIENCE, command.status()).await {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => anstream::eprintln!("`{name}` failed: {status}"),
        Ok(Err(error)) => anstream::eprintln!("cannot run `{name}`: {error}"),
        Err(_) => {
            anstream::eprintln!("`{name}` took longer than {COMMAND_PATIENCE:?} and was ended")
        }
    }
}

const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
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
    let encode = |der: &[u8]| BASE64_STANDARD.encode(der);
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
        "crl": response.crl.iter().map(|list| encode(list)).collect::<Vec<_>>(),
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
pub(super) fn federated(response: &X509svidResponse) -> Vec<(&String, &Vec<u8>)> {
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
