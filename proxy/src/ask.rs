//! The commands that ask a running proxy, or tell it something, at its admin listener.

mod admin;
mod connections;
mod tap;

use std::{io::Write as _, net::SocketAddr};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use postern_spiffe::SpiffeId;
use serde_json::Value;

use crate::telemetry::log_filter::Change;
use admin::{Admin, query};

/// What a running proxy can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tells whether a proxy is ready
    #[command(after_help = HEALTH_EXAMPLES)]
    Healthcheck {
        /// Where its metrics listener is
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15020")]
        address: SocketAddr,
    },
    /// Shows how a proxy is: what it waits for, who it is, what is open
    #[command(after_help = STATUS_EXAMPLES)]
    Status {
        /// Which proxy
        #[command(flatten)]
        at: At,

        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Shows the open connections: who is there, what passed, which policy let it in
    #[command(after_help = connections::EXAMPLES)]
    Connections {
        /// Which proxy
        #[command(flatten)]
        at: At,

        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Shows all that is in force: configuration, identity, trust bundles, policies; never a key
    #[command(after_help = DUMP_EXAMPLES)]
    ConfigDump {
        /// Which proxy
        #[command(flatten)]
        at: At,
    },
    /// Shows which lines of the log are written, or changes that until the proxy ends
    #[command(after_help = LOG_EXAMPLES)]
    LogLevel {
        /// `debug` and the like for all, `TARGET=LEVEL,…` for parts, `reset` for that of the start
        #[arg(value_parser = log_level)]
        level: Option<String>,

        /// Which proxy
        #[command(flatten)]
        at: At,
    },
    /// Begins to drain a proxy, as SIGTERM does
    #[command(after_help = SHUTDOWN_EXAMPLES)]
    Shutdown {
        /// Which proxy
        #[command(flatten)]
        at: At,
    },
    /// Shows decisions as they are made, until it is ended
    #[command(after_help = tap::EXAMPLES)]
    Tap(tap::Options),
}

/// Which proxy is asked.
#[derive(Debug, Args)]
pub struct At {
    /// Where its admin listener is
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    address: SocketAddr,
}

impl At {
    fn admin(&self) -> Admin {
        Admin(self.address)
    }
}

/// Runs one of the commands.
///
/// # Errors
/// What the proxy said, or that it cannot be reached.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Healthcheck { address } => Admin(*address).get("/healthz/ready").map(|_| ()),
        Command::Status { at, json } => status(&at.admin(), *json),
        Command::Connections { at, json } => {
            let told = at.admin().get("/connections")?;
            match json {
                true => say(&told),
                false => say(&connections::table(&told)?),
            }
        }
        Command::ConfigDump { at } => {
            let told: Value = read(&at.admin().get("/config_dump")?)?;
            say(&serde_json::to_string_pretty(&told)?)
        }
        Command::LogLevel { level, at } => log_filter(&at.admin(), level.as_deref()),
        Command::Shutdown { at } => {
            at.admin().post("/shutdown")?;
            say("the proxy drains")
        }
        Command::Tap(options) => tap::run(options),
    }
}

fn status(admin: &Admin, as_json: bool) -> anyhow::Result<()> {
    let told: Value = read(&admin.get("/status")?)?;
    let mut output = std::io::stdout();
    if as_json {
        writeln!(output, "{told}")?;
    } else {
        for (name, value) in told.as_object().into_iter().flatten() {
            writeln!(output, "{name}\t{value}")?;
        }
    }
    let is_ready = told.get("ready").and_then(Value::as_bool);
    ensure!(is_ready == Some(true), "the proxy is not ready");
    Ok(())
}

fn log_filter(admin: &Admin, level: Option<&str>) -> anyhow::Result<()> {
    let told = match level {
        None => admin.get("/log_level")?,
        Some(level) => {
            let name = match level.contains(['=', ',']) {
                true => "filter",
                false => "level",
            };
            admin.post(&query("/log_level", &[(name, Some(level))]))?
        }
    };
    let told: Value = read(&told)?;
    match told.get("filter").and_then(Value::as_str) {
        Some(filter) => say(filter),
        None => bail!("the proxy's answer has no `filter`"),
    }
}

/// A level or a filter, checked before anybody is asked.
fn log_level(text: &str) -> Result<String, String> {
    let change = match text.contains(['=', ',']) {
        true => Change::filter(text),
        false => Change::level(text),
    };
    match change {
        Ok(_) => Ok(text.to_owned()),
        Err(refused) => Err(refused.to_string()),
    }
}

fn identity(text: &str) -> Result<String, String> {
    let parsed = SpiffeId::parse(text);
    parsed.map_or_else(|error| Err(error.to_string()), |id| Ok(id.to_string()))
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).context("the proxy's answer cannot be read")
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

const HEALTH_EXAMPLES: &str = "\
Examples:
  postern-proxy healthcheck
  livenessProbe: {exec: {command: [/postern-proxy, healthcheck]}}   in a pod";

const STATUS_EXAMPLES: &str = "\
Examples:
  postern-proxy status
  postern-proxy status --json | jq -r '.missing[]'";

const DUMP_EXAMPLES: &str = "\
Examples:
  postern-proxy config-dump
  postern-proxy config-dump | jq .policies.documents";

const LOG_EXAMPLES: &str = "\
Examples:
  postern-proxy log-level                            which filter is in force
  postern-proxy log-level debug                      all of it
  postern-proxy log-level postern_proxy::tls=debug   one part, the rest as at the start
  postern-proxy log-level reset                      as at the start";

const SHUTDOWN_EXAMPLES: &str = "\
Examples:
  postern-proxy shutdown
  lifecycle: {preStop: {exec: {command: [/postern-proxy, shutdown]}}}   in a pod";
