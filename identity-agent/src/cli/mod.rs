//! The command line, as users of `spire-agent` know it.

mod admin;
mod client;
mod drift;
mod explain;
mod fetch;
mod files;
mod jwt;
mod posture;

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
use postern_supervisor::Supervisor;

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
    #[command(
        after_help = "Examples:\n  postern-agent run --config /etc/postern/agent.yaml\n  postern-agent run --check --config agent.yaml"
    )]
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,

        /// Reads the configuration and the documents that it names, and says whether they are good
        #[arg(long)]
        check: bool,
    },
    /// Asks the Workload API, as a workload does
    #[command(
        subcommand,
        after_help = "Examples:\n  postern-agent api fetch x509 -output json\n  postern-agent api watch"
    )]
    Api(Api),
    /// Tells whether the agent answers
    #[command(
        after_help = "Examples:\n  postern-agent healthcheck\n  postern-agent healthcheck --shallow -socketPath /run/postern/agent.sock"
    )]
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
    #[command(
        after_help = "Examples:\n  postern-agent explain --pid 4711\n  postern-agent explain --pid 4711 --config agent.yaml --json"
    )]
    Explain(explain::Explain),
    /// Shows the isolation that a process really has, and what would mend it
    Posture(posture::Posture),
    /// Workloads, over the admin socket
    #[command(
        subcommand,
        after_help = "Examples:\n  postern-agent workload list\n  postern-agent workload show production/web"
    )]
    Workload(admin::Workload),
    /// The trust bundle, over the admin socket
    #[command(
        subcommand,
        after_help = "Examples:\n  postern-agent bundle show > ca.pem"
    )]
    Bundle(admin::Bundle),
    /// The roots and the keys of tokens, over the admin socket
    #[command(subcommand, after_help = AUTHORITY_EXAMPLES)]
    Authority(admin::Authority),
    /// Deviations from baselines, and rules that look for them
    #[command(
        subcommand,
        after_help = "Examples:\n  postern-agent drift list\n  postern-agent drift learn --for 10m production/web > baseline.yaml\n  postern-agent drift rules check rules/falco.yaml"
    )]
    Drift(drift::Drift),
    /// Prints completions for a shell
    #[command(
        after_help = "Examples:\n  postern-agent completions bash > /usr/share/bash-completion/completions/postern-agent\n  postern-agent completions zsh > /usr/share/zsh/vendor-completions/_postern-agent\n  postern-agent completions fish > ~/.config/fish/completions/postern-agent.fish"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Writes the manual pages into a folder, for packages
    #[command(hide = true)]
    Manual {
        /// The folder
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Api {
    /// Fetches the caller's identities
    #[command(
        after_help = "Examples:\n  postern-agent api fetch\n  postern-agent api fetch x509 -output json | jq -r .svids[0].spiffe_id\n  postern-agent api fetch jwt -audience https://api.example\n  postern-agent api fetch -write ./svids"
    )]
    Fetch(fetch::Fetch),
    /// Shows every update of the caller's identities
    #[command(
        after_help = "Examples:\n  postern-agent api watch\n  postern-agent api watch -write /run/app/svids -- nginx -s reload"
    )]
    Watch(fetch::Watch),
    /// Has the agent verify a token
    #[command(
        after_help = "Examples:\n  postern-agent api validate jwt -audience https://api.example -svid \"$TOKEN\""
    )]
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
        Command::Run { config, check } => return run_or_check(&config, check),
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
        Command::Drift(command) => return command.run(),
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
        Command::Manual { directory } => {
            clap_mangen::generate_to(Arguments::command(), directory).map_err(Into::into)
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

fn run_or_check(path: &Path, is_check: bool) -> ExitCode {
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
    if let Err(error) = app::check_walls(&config) {
        anstream::eprintln!("postern-agent: {error:#}");
        return ExitCode::from(BAD_CONFIGURATION);
    }
    match is_check {
        true => check(path, &config),
        false => serve(config),
    }
}

fn check(path: &Path, config: &Config) -> ExitCode {
    match app::check(config) {
        Ok(workloads) => {
            anstream::println!("{}: good, {workloads} Workloads", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            anstream::eprintln!("{error:#}");
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}

fn serve(config: Config) -> ExitCode {
    // Before any thread is started.
    let supervisor = match Supervisor::take() {
        Ok(supervisor) => supervisor,
        Err(error) => return finish(Err(error.into())),
    };
    let log = match telemetry::start_log() {
        Ok(log) => log,
        Err(error) => {
            anstream::eprintln!("postern-agent: {error:#}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let outcome = app::harden(&config)
        .and_then(|()| telemetry::write_log())
        .and_then(|()| serve_with(config, supervisor));
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "the agent ends");
    }
    drop(log);
    finish(outcome)
}

/// One thread serves; files are read on others.
fn serve_with(config: Config, supervisor: Supervisor) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_THREADS)
        .build()
        .context("cannot start the runtime")?
        .block_on(app::run(config, supervisor))
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
        Some(("unix", rest)) => {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            // Behind two slashes a URL has an authority, and behind `?` and `#` more that a socket has not.
            let is_it = path.starts_with('/') && !path.contains(['?', '#']);
            anyhow::ensure!(
                is_it,
                "`{text}` is no Unix socket; write a path or `unix:///path`"
            );
            path
        }
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
    let time = parse_duration(text).filter(|time| !time.is_zero());
    time.ok_or_else(|| "write a whole number above 0 and a unit, such as `5s`".to_owned())
}

/// The number of a process.
fn process_number(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("write the number of a process, 1 to {}", i32::MAX))
}

/// More callers at once wait for their turn. A service that hangs holds one for three seconds.
const MAX_THREADS: usize = 64;

const DEFAULT_SOCKET: &str = "/run/postern/agent.sock";
const SPIRE_SOCKET: &str = "/tmp/spire-agent/public/api.sock";

/// The exit code of a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 64;

const AUTHORITY_EXAMPLES: &str = "\
Examples:
  postern-agent authority show
  postern-agent authority prepare
  postern-agent authority activate
  postern-agent authority taint 9f86d081884c7d65
  postern-agent authority revoke 9f86d081884c7d65

This is the order in which keys are replaced.";

const EXAMPLES: &str = "\
Examples:
  postern-agent run --config agent.yaml
  postern-agent api fetch x509 -socketPath /run/postern/agent.sock -output json
  postern-agent run --check --config agent.yaml
  postern-agent api fetch -write ./svids
  postern-agent api fetch jwt -audience https://api.example
  postern-agent explain --pid 4711 --config agent.yaml
  postern-agent posture --pid 4711 --json
  postern-agent drift rules check rules/falco.yaml
  postern-agent drift list --json -socketPath /run/postern/admin/admin.sock

Options may be written with one dash or two. Exit codes: 0 yes, 1 no or failed, 2 wrong use,
64 bad configuration";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{Arguments, socket_path, with_two_dashes};

    #[test]
    fn a_socket_is_a_path_or_a_url_of_one() {
        for (text, path) in [
            ("/run/a.sock", "/run/a.sock"),
            ("a.sock", "a.sock"),
            ("./a:b", "./a:b"),
            ("unix:///run/a.sock", "/run/a.sock"),
            ("unix:/run/a.sock", "/run/a.sock"),
        ] {
            assert_eq!(socket_path(text).unwrap().to_str(), Some(path), "{text}");
        }
        for text in [
            "unix://run/a.sock",
            "unix:a.sock",
            "unix:///run/a.sock?x",
            "unix:///run/a.sock#x",
            "tcp://127.0.0.1:80",
        ] {
            assert!(socket_path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        let parse = |words: &[String]| {
            let words = words.iter().map(|word| with_two_dashes(word.into()));
            Arguments::command().try_get_matches_from(words)
        };
        let found = postern_examples::mistakes(&Arguments::command(), &[], parse);
        assert!(found.is_empty(), "{found:#?}");
    }
}
