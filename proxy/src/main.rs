//! `postern-proxy`: the sidecar and its command line.

#![forbid(unsafe_code)]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use postern_proto::ENDPOINT_VARIABLE;
use postern_proxy::{
    app, ask,
    config::Config,
    inject::{self, Inject},
    netns::{self, Failure},
    telemetry,
};
use postern_supervisor::Supervisor;

/// Gives memory back after a burst, which the C library's allocator does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Stands in front of a workload: strict mutual TLS, default deny, method and path authorization.
#[derive(Debug, Parser)]
#[command(name = "postern-proxy", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the proxy
    #[command(
        after_help = "Examples:\n  postern-proxy run --config proxy.yaml\n  postern-proxy run --check --config proxy.yaml"
    )]
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,

        /// Reads the configuration and the folders that it names, and says whether they are good
        #[arg(long)]
        check: bool,
    },
    /// Programs the present network namespace: redirection to the proxy, default deny
    #[command(
        subcommand,
        after_help = "Examples:\n  postern-proxy netns setup --config proxy.yaml\n  postern-proxy netns cleanup"
    )]
    Netns(netns::Command),
    /// Puts the sidecar into manifests of Kubernetes and Compose files
    #[command(after_help = inject::EXAMPLES)]
    Inject(Box<Inject>),
    #[command(flatten)]
    Ask(ask::Command),
    /// Prints completions for a shell
    #[command(
        after_help = "Examples:\n  postern-proxy completions bash > /usr/share/bash-completion/completions/postern-proxy\n  postern-proxy completions zsh > /usr/share/zsh/vendor-completions/_postern-proxy\n  postern-proxy completions fish > ~/.config/fish/completions/postern-proxy.fish"
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

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run { config, check } => return run(&config, check),
        Command::Netns(command) => return program(&command),
        Command::Inject(inject) => inject::run(&inject),
        Command::Ask(command) => ask::run(&command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(
                shell,
                &mut Arguments::command(),
                "postern-proxy",
                &mut script,
            );
            std::io::stdout().write_all(&script).map_err(Into::into)
        }
        Command::Manual { directory } => {
            clap_mangen::generate_to(Arguments::command(), directory).map_err(Into::into)
        }
    };
    finish(&outcome)
}

fn finish(outcome: &anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("postern-proxy: {error:#}"), 1),
    }
}

fn program(command: &netns::Command) -> ExitCode {
    let Err(failure) = netns::run(command) else {
        return ExitCode::SUCCESS;
    };
    let code = match &failure {
        Failure::Failed(_) => 1,
        Failure::Usage(_) => 2,
        Failure::Configuration(_) => BAD_CONFIGURATION,
    };
    complain(&format!("postern-proxy: {failure}"), code)
}

fn run(path: &Path, is_check: bool) -> ExitCode {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) => {
            let problem = format!("postern-proxy: cannot read `{}`: {error}", path.display());
            return complain(&problem, BAD_CONFIGURATION);
        }
    };
    let endpoint = std::env::var(ENDPOINT_VARIABLE).ok();
    let config = match Config::read(path, &text, endpoint.as_deref()) {
        Ok(config) => config,
        Err(found) => {
            let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
            return complain(&lines.join("\n"), BAD_CONFIGURATION);
        }
    };
    if let Err(error) = app::check_walls(&config) {
        return complain(&format!("postern-proxy: {error:#}"), BAD_CONFIGURATION);
    }
    match is_check {
        true => check(path, &config),
        false => serve(config),
    }
}

fn check(path: &Path, config: &Config) -> ExitCode {
    match app::check(config) {
        Ok(()) => {
            let good = writeln!(std::io::stdout(), "{}: good", path.display());
            finish(&good.map_err(Into::into))
        }
        Err(error) => complain(&format!("{error:#}"), BAD_CONFIGURATION),
    }
}

fn serve(config: Config) -> ExitCode {
    // Before any thread is started.
    let supervisor = match Supervisor::take() {
        Ok(supervisor) => supervisor,
        Err(error) => return finish(&Err(error.into())),
    };
    let (log, log_filter) = match telemetry::start_log() {
        Ok(started) => started,
        Err(error) => return complain(&format!("postern-proxy: {error:#}"), BAD_CONFIGURATION),
    };
    let outcome = app::harden(&config)
        .and_then(|()| telemetry::write_log())
        .and_then(|()| app::run(config, supervisor, log_filter));
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "the proxy ends");
    }
    drop(log);
    finish(&outcome)
}

fn complain(text: &str, code: u8) -> ExitCode {
    // With standard error gone there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(code)
}

/// The exit code of a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 64;

const EXAMPLES: &str = "\
Examples:
  postern-proxy run --config proxy.yaml
  postern-proxy run --check --config proxy.yaml
  postern-proxy netns setup --config proxy.yaml
  postern-proxy inject -f deployment.yaml | kubectl apply -f -
  postern-proxy healthcheck --address 127.0.0.1:15020
  postern-proxy status
  postern-proxy connections
  postern-proxy tap --verdict deny
  postern-proxy log-level debug

Exit codes: 0 yes, 1 no or failed, 2 wrong use, 64 bad configuration";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn every_command_has_examples_that_parse() {
        let parse = |words: &[String]| Arguments::command().try_get_matches_from(words);
        let found = postern_examples::mistakes(&Arguments::command(), &[], parse);
        assert!(found.is_empty(), "{found:#?}");
    }
}
