//! `posture`: the isolation of a process, layer by layer, to a person or a program.

use std::{fs, io, path::Path};

use anyhow::{Context as _, bail};
use clap::Args;
use postern_agent::{
    attest::{
        Attested, Attestors, Finding as AnyFinding,
        posture::{Finding, Outcome},
    },
    caller::{PinError, PinnedProcess},
    config,
};
use serde_json::{Value, json};

use super::Endpoint;

/// Shows the isolation that a process really has, and what would mend it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Posture {
    /// The process
    #[arg(long, value_parser = super::process_number)]
    pid: i32,

    /// The Workload API, which a workload may have mounted
    #[command(flatten)]
    endpoint: Endpoint,

    /// For programs
    #[arg(long)]
    json: bool,
}

impl Posture {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let process = pinned(self.pid)?;
        let attestors = config::Attestors {
            posture: true,
            ..config::Attestors::default()
        };
        let workload_api = self.endpoint.path()?;
        let mut attested = attest(&process, &attestors, &workload_api)?;
        let image = image(self.pid, &workload_api);
        let all = std::sync::Arc::make_mut(&mut attested);
        all.findings.push(AnyFinding::Posture(image));
        match self.json {
            true => anstream::println!("{}", shown_to_programs(all)),
            false => self.show(all),
        }
        Ok(())
    }

    fn show(&self, attested: &Attested) {
        let bundle = |name| match has(attested, name) {
            true => "yes",
            false => "no",
        };
        anstream::println!(
            "Process {}: baseline {}, restricted {}",
            self.pid,
            bundle("baseline"),
            bundle("restricted")
        );
        let width = layers(attested).map(|one| one.layer().len()).max();
        let width = width.unwrap_or_default();
        for finding in layers(attested) {
            let (layer, status) = (finding.layer(), finding.outcome.name());
            anstream::println!("  {status:<14} {layer:<width$}  {}", finding.why);
            if matches!(finding.outcome, Outcome::Fail | Outcome::Unknown) {
                anstream::println!("  {:<14} {:<width$}  mend: {}", "", "", finding.mend());
            }
        }
        anstream::println!("Selectors:");
        for selector in &attested.selectors {
            anstream::println!("  {selector}");
        }
    }
}

fn shown_to_programs(attested: &Attested) -> Value {
    let selectors: Vec<String> = attested.selectors.iter().map(ToString::to_string).collect();
    let findings: Vec<Value> = layers(attested).map(Finding::to_json).collect();
    json!({
        "selectors": selectors,
        "restricted": has(attested, "restricted"),
        "baseline": has(attested, "baseline"),
        "findings": findings,
    })
}

fn layers(attested: &Attested) -> impl Iterator<Item = &Finding> {
    attested.findings.iter().filter_map(|one| match one {
        AnyFinding::Posture(layer) => Some(layer),
        AnyFinding::Image(_) => None,
    })
}

fn has(attested: &Attested, bundle: &str) -> bool {
    let mut selectors = attested.selectors.iter();
    selectors.any(|one| one.kind() == "posture" && one.value() == bundle)
}

fn attest(
    process: &PinnedProcess,
    attestors: &config::Attestors,
    workload_api: &Path,
) -> anyhow::Result<std::sync::Arc<Attested>> {
    let pid = process.pid();
    let attested = Attestors::configured(attestors, workload_api).attest(process);
    attested.with_context(|| format!("process {pid} cannot be looked at"))
}

/// Pins a process that may be looked at, or tells why it may not.
fn pinned(pid: i32) -> anyhow::Result<PinnedProcess> {
    let status = match fs::read_to_string(format!("/proc/{pid}/status")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("there is no process {pid}"),
        status => status.with_context(|| format!("process {pid} cannot be looked at"))?,
    };
    let line = |key: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.map(str::trim).unwrap_or_default().to_owned()
    };
    let leader = line("Tgid");
    if leader != pid.to_string() {
        bail!("{pid} is a thread of process {leader}; ask for `--pid {leader}`");
    }
    let process = match PinnedProcess::by_number(pid) {
        Err(PinError::Gone) => bail!("process {pid} has ended"),
        process => process.with_context(|| format!("process {pid} cannot be looked at"))?,
    };
    let namespace = fs::metadata(format!("/proc/{pid}/ns/mnt"));
    if namespace.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        let uid = process.uid();
        bail!(
            "process {pid} of user {uid} may not be looked at; run this as root, or with CAP_SYS_PTRACE"
        );
    }
    Ok(process)
}

/// The image of the container, where there is one and its engine tells.
fn image(pid: i32, workload_api: &Path) -> Finding {
    if !Path::new(DOCKER_SOCKET).exists() {
        let why = "there is no Docker Engine to ask".to_owned();
        return Finding::of_image(Outcome::Unknown, why);
    }
    let engine = config::Attestors {
        docker: Some(DOCKER_SOCKET.into()),
        ..config::Attestors::default()
    };
    // Pinned anew: what was found out about a process is kept with it for a moment.
    let told = pinned(pid).and_then(|process| attest(&process, &engine, workload_api));
    let told = match told {
        Ok(told) => told,
        Err(error) => return Finding::of_image(Outcome::Unknown, format!("{error:#}")),
    };
    let mut selectors = told.selectors.iter();
    match selectors.find_map(|one| one.value().strip_prefix("image_config_digest:")) {
        Some(digest) => Finding::of_image(Outcome::Pass, digest.to_owned()),
        None => Finding::of_image(
            Outcome::NotApplicable,
            "it is in no container of the Docker Engine".to_owned(),
        ),
    }
}

const DOCKER_SOCKET: &str = "/var/run/docker.sock";

const EXAMPLES: &str = "\
Examples:
  postern-agent posture --pid 4711
  postern-agent posture --pid \"$(docker inspect -f '{{.State.Pid}}' web)\" --json | jq .restricted
  postern-agent posture --pid 4711 --json | jq -r '.findings[] | select(.status != \"pass\") | .mend'";
