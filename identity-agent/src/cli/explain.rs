//! `explain` and `posture`: what the kernel shows of a process, to a person.

use std::{os::unix::net::UnixStream, path::PathBuf, sync::Arc};

use anyhow::{Context as _, anyhow};
use clap::Args;
use http::Method;
use postern_agent::{
    agent::explanation,
    attest::{Attested, Attestors},
    caller::PinnedProcess,
    config::{self, Config},
    registry::Registry,
};
use postern_policies::Options;
use serde_json::{Value, json};

use super::client::{ask_admin, block_on};

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
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            anyhow!("{}", found.join("\n"))
        })?;
        let explained = match self.asked(&config) {
            Some(answer) => answer?,
            None => self.seen_from_here(config)?,
        };
        if self.json {
            anstream::println!("{explained}");
        } else {
            self.show(&explained);
        }
        Ok(())
    }

    /// What the agent says, if one runs that we may ask: it knows what was registered.
    fn asked(&self, config: &Config) -> Option<anyhow::Result<Value>> {
        UnixStream::connect(&config.admin).ok()?;
        let what = format!("/explain/{}", self.pid);
        let mut answer = None;
        let asked = block_on(async {
            answer = Some(ask_admin(&config.admin, Method::GET, &what, Vec::new()).await?);
            Ok(())
        });
        Some(asked.and_then(|()| answer.context("the agent says nothing")))
    }

    fn seen_from_here(&self, config: Config) -> anyhow::Result<Value> {
        let options = Options::new(config.trust_domain);
        let registry = Registry::open(config.workloads, options, None)?;
        let attested = attest(self.pid, &config.attestors)?;
        Ok(explanation(self.pid, &attested, &registry.current()))
    }

    fn show(&self, explained: &Value) {
        let list = |value: &Value, name: &str| {
            let items = value.get(name).and_then(Value::as_array);
            items.cloned().unwrap_or_default()
        };
        let text = |value: &Value, name: &str| {
            let text = value.get(name).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        anstream::println!("Process {} has", self.pid);
        for selector in list(explained, "selectors") {
            anstream::println!("  {}", selector.as_str().unwrap_or_default());
        }
        let workloads = list(explained, "workloads");
        for workload in &workloads {
            anstream::println!(
                "It is {}: {}",
                text(workload, "name"),
                text(workload, "spiffeID")
            );
        }
        for name in list(explained, "expired") {
            let name = name.as_str().unwrap_or_default();
            anstream::println!("It was {name}, whose entry has expired.");
        }
        if workloads.is_empty() {
            anstream::println!("It is no Workload, and gets no identity.");
        }
        for miss in list(explained, "nearestMisses") {
            let missing = list(&miss, "missing");
            let missing: Vec<&str> = missing.iter().filter_map(Value::as_str).collect();
            anstream::println!(
                "It is not {}: it lacks {}",
                text(&miss, "name"),
                missing.join(", ")
            );
        }
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

fn attest(pid: i32, attestors: &config::Attestors) -> anyhow::Result<Arc<Attested>> {
    let process =
        PinnedProcess::by_number(pid).with_context(|| format!("there is no process {pid}"))?;
    Attestors::configured(attestors)
        .attest(&process)
        .with_context(|| format!("process {pid} cannot be looked at"))
}
