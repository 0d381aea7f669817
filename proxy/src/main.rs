//! `postern-proxy`: the sidecar and its command line.

#![forbid(unsafe_code)]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use postern_proto::ENDPOINT_VARIABLE;
use postern_proxy::{
    app,
    config::Config,
    netns::{self, Failure},
    telemetry,
};

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
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Programs the present network namespace: redirection to the proxy, default deny
    #[command(subcommand)]
    Netns(netns::Command),
    /// Tells whether a proxy is ready
    Healthcheck {
        /// Where its metrics listener is
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15020")]
        address: SocketAddr,
    },
    /// Shows how a proxy is: what it waits for, who it is, what is open
    Status {
        /// Where its admin listener is
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
        address: SocketAddr,

        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Prints completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run { config } => return serve(&config),
        Command::Netns(command) => return program(&command),
        Command::Healthcheck { address } => healthcheck(address),
        Command::Status { address, json } => status(address, json),
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

fn serve(path: &Path) -> ExitCode {
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
    telemetry::start_log();
    // One thread carries the traffic; files are read on another.
    let outcome = app::harden(&config).and_then(|()| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .context("cannot start the runtime")?
            .block_on(app::run(config))
    });
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "the proxy ends");
    }
    finish(&outcome)
}

/// Asks `/healthz/ready`, without any other program: an image may hold none.
fn healthcheck(address: SocketAddr) -> anyhow::Result<()> {
    match ask(address, "/healthz/ready")? {
        (true, _) => Ok(()),
        (false, body) => bail!("{}", body.trim()),
    }
}

fn status(address: SocketAddr, as_json: bool) -> anyhow::Result<()> {
    let (is_answered, body) = ask(address, "/status")?;
    anyhow::ensure!(is_answered, "{}", body.trim());
    let told: serde_json::Value =
        serde_json::from_str(&body).context("the proxy's answer cannot be read")?;
    let mut output = std::io::stdout();
    if as_json {
        writeln!(output, "{told}")?;
    } else {
        for (name, value) in told.as_object().into_iter().flatten() {
            writeln!(output, "{name}\t{value}")?;
        }
    }
    let is_ready = told.get("ready").and_then(serde_json::Value::as_bool);
    anyhow::ensure!(is_ready == Some(true), "the proxy is not ready");
    Ok(())
}

/// Tells whether the answer is 200, and its body.
fn ask(address: SocketAddr, path: &str) -> anyhow::Result<(bool, String)> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, limit)
        .with_context(|| format!("cannot reach the proxy at {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream
        .take(1 << 20)
        .read_to_string(&mut answer)
        .context("no answer in time")?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .context("the proxy's answer is no HTTP")?;
    Ok((answer.starts_with("HTTP/1.1 200 "), body.to_owned()))
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
  postern-proxy netns setup --config proxy.yaml
  postern-proxy healthcheck --address 127.0.0.1:15020
  postern-proxy status

Exit codes: 0 yes, 1 no or failed, 2 wrong use, 64 bad configuration";
