//! `explain`: what is true of a process, and which Workloads it is, to a person.

use std::{os::unix::net::UnixStream, path::PathBuf, sync::Arc};

use anyhow::{Context as _, anyhow};
use clap::Args;
use http::Method;
use postern_agent::{
    agent::explanation,
    attest::{Asked, Attested, Attestors},
    caller::PinnedProcess,
    config::Config,
    registry::Registry,
};
use postern_policies::Options;
use serde_json::Value;

use super::client::{ask_admin, block_on};

/// Shows what is true of a process, which Workloads it is, and which it nearly is
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The process
    #[arg(long, value_parser = super::process_number)]
    pid: i32,

    /// The agent's configuration, which names the Workloads
    #[arg(long, value_name = "FILE", default_value = "/etc/postern/agent.yaml")]
    config: PathBuf,

    /// For programs
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text = std::fs::read(&self.config).with_context(|| {
            let path = self.config.display();
            format!("cannot read `{path}`; name the agent's configuration with --config")
        })?;
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
        let options = Options::new(config.trust_domain.clone());
        let registry = Registry::open(config.workloads.clone(), options, None, None)?;
        let set = registry.current();
        let asked = Asked::by(set.workloads().flat_map(|one| &one.selectors));
        let attested = attest(self.pid, &config, &asked)?;
        Ok(explanation(self.pid, &attested, &set))
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
            for why in list(&miss, "why") {
                anstream::println!("  {}", why.as_str().unwrap_or_default());
            }
        }
    }
}

fn attest(pid: i32, config: &Config, asked: &Asked) -> anyhow::Result<Arc<Attested>> {
    let process =
        PinnedProcess::by_number(pid).with_context(|| format!("there is no process {pid}"))?;
    let attestors = Attestors::configured(&config.attestors, &config.workload_api);
    // A person sees all that is cheap to tell, and of what has no end that which is asked for.
    attestors.asked(&Asked {
        digests: true,
        pods: true,
        all_limits: true,
        ..*asked
    });
    attestors
        .attest(&process)
        .with_context(|| format!("process {pid} cannot be looked at"))
}
