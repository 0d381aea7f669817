//! `postern-proxy netns`: the redirection and the default deny of a pod's network namespace.
//!
//! `plan` says what is wanted, `nft`, `iptables` and `routing` turn it into steps and know nothing
//! of the machine, `apply` takes the steps. What the rules are is drawn in `docs/netns.md`.

mod apply;
mod iptables;
mod nft;
mod options;
mod plan;
mod routing;

use std::io::Write as _;

use clap::{Args, Subcommand};

pub use options::Setup;
pub(crate) use plan::{PortRange, Ranges, network};

/// What can be done to the present network namespace.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sends all TCP through the proxy and drops everything else
    #[command(after_help = EXAMPLES)]
    Setup(Box<Setup>),
    /// Takes away what `setup` made
    #[command(
        after_help = "Examples:\n  postern-proxy netns cleanup --dry-run\n  postern-proxy netns cleanup"
    )]
    Cleanup(Cleanup),
}

/// How to clean up.
#[derive(Debug, Args)]
pub struct Cleanup {
    /// Prints what would be done, and does nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Why a command did not do what it was asked; each has its own exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The options contradict each other.
    #[error("{0}")]
    Usage(String),
    /// The configuration file cannot be used.
    #[error("{0}")]
    Configuration(String),
    /// The namespace could not be programmed.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Programs the present network namespace, or prints how it would.
///
/// # Errors
/// [`Failure`]; nothing is half done but routes that no rule leads to.
pub fn run(command: &Command) -> Result<(), Failure> {
    let (steps, dry_run) = match command {
        Command::Setup(setup) => {
            let plan = setup.plan()?;
            (apply::to_set_up(&plan, setup.backend)?, setup.dry_run)
        }
        Command::Cleanup(cleanup) => (apply::to_clean_up()?, cleanup.dry_run),
    };
    if !dry_run {
        return Ok(apply::apply(&steps)?);
    }
    let mut out = std::io::stdout().lock();
    for step in &steps {
        writeln!(out, "{step}").map_err(anyhow::Error::from)?;
    }
    Ok(())
}

/// The port, on loopback, from which the rules redirect to the outbound port, whoever asks.
pub(crate) const PROBE_OUTBOUND: u16 = 15099;

/// The port, on loopback, from which the rules redirect to the inbound port, whoever asks.
pub(crate) const PROBE_INBOUND: u16 = 15098;

/// The port, on loopback, that the rules redirect like any destination: for all but the proxy.
pub(crate) const PROBE_EXEMPTION: u16 = 15097;

/// The ports of a proxy's pod that nobody else may have: those of the proxy, as they are by default and
/// in all of our examples, and those of the probe. That of metrics and health is open anyway.
pub(crate) const OWN_PORTS: [u16; 6] = [
    15000,
    15001,
    15006,
    PROBE_OUTBOUND,
    PROBE_INBOUND,
    PROBE_EXEMPTION,
];

const EXAMPLES: &str = "\
Examples:
  postern-proxy netns setup --dry-run
  postern-proxy netns setup --config proxy.yaml --proxy-uid 1337
  postern-proxy netns setup --exclude-outbound-cidrs 10.96.0.1/32 --resolver 10.96.0.10

Exit codes: 0 done, 1 failed, 2 wrong use, 64 bad configuration";
