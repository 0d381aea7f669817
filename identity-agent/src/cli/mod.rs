//! The command line, as users of `spire-agent` know it.

mod admin;
mod client;
mod explain;
mod fetch;
mod jwt;

use std::{
    ffi::OsString,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use postern_agent::{app, config::Config, telemetry};
use postern_policies::yaml::fields::parse_duration;
use postern_proto::ENDPOINT_VARIABLE;

/// Finds out which workload a process is, and gives it a short-lived identity.
#[derive(Debug, Parser)]
#[command(name = "postern-agent", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Asks the Workload API, as a workload does
    #[command(subcommand)]
    Api(Api),
    /// Tells whether the agent answers
    Healthcheck {
        #[command(flatten)]
        endpoint: Endpoint,
        /// Look no deeper than the socket
        #[arg(long)]
        shallow: bool,
        /// Tell more
        #[arg(long)]
        verbose: bool,
    },
    /// Shows what is true of a process, which Workloads it is, and which it nearly is
    Explain(explain::Explain),
    /// Shows the isolation that a process really has
    Posture(explain::Posture),
    /// Workloads, over the admin socket
    #[command(subcommand)]
    Workload(admin::Workload),
    /// The trust bundle, over the admin socket
    #[command(subcommand)]
    Bundle(admin::Bundle),
    /// The roots and the keys of tokens, over the admin socket
    #[command(subcommand)]
    Authority(admin::Authority),
    /// Deviations from baselines, over the admin socket
    #[command(subcommand)]
    Drift(admin::Drift),
    /// Prints completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum Api {
    /// Fetches the caller's identities
    Fetch(fetch::Fetch),
    /// Shows every update of the caller's identities
    Watch(fetch::Watch),
    /// Has the agent verify a token
    Validate(jwt::Validate),
}

/// Where the Workload API is.
#[derive(Debug, Args)]
struct Endpoint {
    /// The socket: a path or a `unix://` address
    #[arg(long, visible_alias = "socketPath", value_name = "PATH", env = ENDPOINT_VARIABLE)]
    socket_path: Option<String>,
}

impl Endpoint {
    fn path(&self) -> anyhow::Result<PathBuf> {
        match &self.socket_path {
            Some(text) => socket_path(text),
            None if called_spire_agent() => Ok(PathBuf::from(SPIRE_SOCKET)),
            None => Ok(PathBuf::from(DEFAULT_SOCKET)),
        }
    }
}

/// How an answer is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Pretty,
    /// For programs
    Json,
}

impl Output {
    /// JSON, unless somebody looks.
    fn or_default(given: Option<Self>) -> Self {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
        given.unwrap_or(if is_terminal {
            Self::Pretty
        } else {
            Self::Json
        })
    }
}

/// Runs a command and tells its exit code: 0 yes, 1 failed, 2 wrong use, 64 bad configuration.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = Arguments::parse_from(arguments.map(with_two_dashes));
    let outcome = match arguments.command {
        Command::Run { config } => return serve(&config),
        Command::Api(Api::Fetch(fetch)) => client::block_on(fetch.run()),
        Command::Api(Api::Watch(watch)) => client::block_on(watch.run()),
        Command::Api(Api::Validate(validate)) => client::block_on(validate.run()),
        Command::Healthcheck {
            endpoint,
            shallow,
            verbose,
        } => client::block_on(fetch::healthcheck(endpoint, shallow, verbose)),
        Command::Explain(explain) => explain.run(),
        Command::Posture(posture) => posture.run(),
        Command::Workload(command) => client::block_on(command.run()),
        Command::Bundle(command) => client::block_on(command.run()),
        Command::Authority(command) => client::block_on(command.run()),
        Command::Drift(command) => client::block_on(command.run()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(
                shell,
                &mut Arguments::command(),
                "postern-agent",
                &mut script,
            );
            std::io::stdout().write_all(&script).map_err(Into::into)
        }
    };
    finish(outcome)
}

fn finish(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(path: &Path) -> ExitCode {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) => {
            anstream::eprintln!("postern-agent: cannot read `{}`: {error}", path.display());
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let config = match Config::read(path, &text) {
        Ok(config) => config,
        Err(found) => {
            for one in found {
                anstream::eprintln!("{one}");
            }
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    telemetry::start_log();
    // One thread serves; files are read on others.
    let outcome = app::harden().and_then(|()| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_THREADS)
            .build()
            .context("cannot start the runtime")?
            .block_on(app::run(config))
    });
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "the agent ends");
    }
    finish(outcome)
}

/// Go's flags take one dash or two; `-socketPath` becomes `--socketPath`. A single letter is left
/// alone, and so is what follows no dash.
fn with_two_dashes(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text)
            if text.len() > 2
                && text.starts_with('-')
                && !text.starts_with("--")
                && text.chars().nth(1).is_some_and(char::is_alphabetic) =>
        {
            format!("-{text}").into()
        }
        _ => argument,
    }
}

/// A path, or `unix://` and a path. Spec: SPIFFE Workload Endpoint section 4.
fn socket_path(text: &str) -> anyhow::Result<PathBuf> {
    let path = match text.split_once(':') {
        Some(("unix", rest)) => rest.strip_prefix("//").unwrap_or(rest),
        Some((scheme, _)) if !scheme.contains('/') => {
            anyhow::bail!("`{text}` is no Unix socket; write a path or `unix:///path`")
        }
        _ => text,
    };
    Ok(PathBuf::from(path))
}

fn called_spire_agent() -> bool {
    std::env::args_os().next().is_some_and(|name| {
        Path::new(&name)
            .file_name()
            .is_some_and(|name| name == "spire-agent")
    })
}

/// A duration as Go writes it, `5s` or `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a whole number and a unit, such as `5s`".to_owned())
}

/// More callers at once wait for their turn. A service that hangs holds one for three seconds.
const MAX_THREADS: usize = 64;

const DEFAULT_SOCKET: &str = "/run/postern/agent.sock";
const SPIRE_SOCKET: &str = "/tmp/spire-agent/public/api.sock";

/// The exit code of a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 64;

const EXAMPLES: &str = "\
Examples:
  postern-agent run --config agent.yaml
  postern-agent api fetch x509 -socketPath /run/postern/agent.sock -output json
  postern-agent api fetch -write ./svids
  postern-agent api fetch jwt -audience https://api.example
  postern-agent explain --pid 4711 --config agent.yaml
  postern-agent drift list --json -socketPath /run/postern/admin/admin.sock

Options may be written with one dash or two. Exit codes: 0 yes, 1 no or failed, 2 wrong use,
64 bad configuration";
