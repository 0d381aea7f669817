//! `explain` and `posture`: what the kernel shows of a process, to a person.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use postern_agent::{
    attest::{Attested, Attestors},
    caller::PinnedProcess,
    config::{self, Config},
    registry::{Registry, matching, nearest_misses},
};
use postern_policies::Options;
use serde_json::json;

/// Shows what is true of a process, which Workloads it is, and which it nearly is
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The process
    #[arg(long)]
    pid: i32,

    /// The agent's configuration, which names the Workloads
    #[arg(long, value_name = "FILE", default_value = "/etc/postern/agent.yaml")]
    config: PathBuf,

    /// For programs
    #[arg(long)]
    json: bool,
}

/// Shows the isolation that a process really has
#[derive(Debug, Args)]
pub(super) struct Posture {
    /// The process
    #[arg(long)]
    pid: i32,

    /// For programs
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text = std::fs::read(&self.config)
            .with_context(|| format!("cannot read `{}`", self.config.display()))?;
        let config = Config::read(&self.config, &text).map_err(|found| {
            anyhow!(
                "{}",
                found
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("\n")
            )
        })?;
        let registry = Registry::open(config.workloads, Options::new(config.trust_domain))?;
        let set = registry.current();
        let attested = attest(self.pid, &config.attestors)?;
        let matched = matching(set.workloads(), &attested.selectors);
        let misses = nearest_misses(set.workloads(), &attested.selectors, SHOWN_MISSES);
        if self.json {
            anstream::println!(
                "{}",
                json!({
                    "pid": self.pid,
                    "selectors": attested.selectors.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "workloads": matched.iter().map(|workload| json!({
                        "name": workload.name.to_string(), "spiffeID": workload.spiffe_id.as_str(),
                    })).collect::<Vec<_>>(),
                    "nearestMisses": misses.iter().map(|miss| json!({
                        "name": miss.workload.name.to_string(),
                        "missing": miss.missing.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    })).collect::<Vec<_>>(),
                })
            );
            return Ok(());
        }
        anstream::println!("Process {} has", self.pid);
        for selector in &attested.selectors {
            anstream::println!("  {selector}");
        }
        for workload in &matched {
            anstream::println!("It is {}: {}", workload.name, workload.spiffe_id);
        }
        if matched.is_empty() {
            anstream::println!("It is no Workload, and gets no identity.");
        }
        for miss in &misses {
            let missing: Vec<_> = miss.missing.iter().map(ToString::to_string).collect();
            anstream::println!(
                "It is not {}: it lacks {}",
                miss.workload.name,
                missing.join(", ")
            );
        }
        Ok(())
    }
}

impl Posture {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let attestors = config::Attestors {
            posture: true,
            ..config::Attestors::default()
        };
        let attested = attest(self.pid, &attestors)?;
        let selectors: Vec<_> = attested.selectors.iter().map(ToString::to_string).collect();
        if self.json {
            anstream::println!("{}", json!({ "selectors": selectors }));
        } else {
            selectors
                .iter()
                .for_each(|selector| anstream::println!("{selector}"));
        }
        Ok(())
    }
}

fn attest(pid: i32, attestors: &config::Attestors) -> anyhow::Result<Attested> {
    let process =
        PinnedProcess::by_number(pid).with_context(|| format!("there is no process {pid}"))?;
    Attestors::configured(attestors)
        .attest(&process)
        .with_context(|| format!("process {pid} cannot be looked at"))
}

const SHOWN_MISSES: usize = 3;
