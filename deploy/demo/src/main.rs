//! `cargo demo`: the whole road on one machine, and a check that everything it shows came true.
//!
//! One agent, two pods (`frontend` and `web`), each an app with its sidecar. As root each pod has
//! a network namespace of its own, with redirection and default deny; without root, loopback
//! addresses. Nothing here is simulated: the daemons are the real binaries, started as real
//! processes from the same configuration files that a user would write.

#![forbid(unsafe_code)]

mod app;
mod binaries;
mod client;
mod container;
mod evidence;
mod network;
mod pod;
mod report;
mod scenes;
mod world;

use std::{io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use rustix::fs::Mode;

/// Runs the whole road once: identity, authorization, encryption, rotation, drift, revocation.
#[derive(Debug, Parser)]
#[command(name = "postern-demo", version, after_help = EXAMPLES)]
struct Arguments {
    /// Leave everything running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,

    /// Use the binaries in this folder instead of building them
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,

    /// Use loopback addresses even as root
    #[arg(long)]
    loopback: bool,

    #[command(subcommand)]
    part: Option<Part>,
}

/// What the demo starts itself as, inside its pods, and what tells of it.
#[derive(Debug, Subcommand)]
enum Part {
    /// Prints completions for a shell
    #[command(
        after_help = "Examples:\n  postern-demo completions bash > /usr/share/bash-completion/completions/postern-demo\n  postern-demo completions zsh > /usr/share/zsh/vendor-completions/_postern-demo\n  postern-demo completions fish > ~/.config/fish/completions/postern-demo.fish"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// The app of a pod: a small HTTP service
    #[command(hide = true)]
    App {
        /// Where it listens
        #[arg(long)]
        listen: SocketAddr,
    },
    /// A pod: a session whose processes are started by lines on standard input
    #[command(hide = true)]
    Pod {
        /// Leave out the walls that every pod has
        #[arg(long)]
        without_walls: bool,
    },
    /// A program that nobody expected: it waits until it is ended
    #[command(hide = true)]
    Intruder,
    /// Holds the namespaces of a pod: it waits until it is told to end
    #[command(hide = true)]
    Pause,
    /// One request, and what came back
    #[command(hide = true)]
    Ask(container::Ask),
    /// Requests without a pause over kept connections; fails if any of them does
    #[command(hide = true)]
    AskSteadily(container::AskSteadily),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The agent reads no document that others may write to.
    let kept = Mode::WGRP | Mode::WOTH;
    let before = rustix::process::umask(kept);
    rustix::process::umask(before | kept);
    let outcome = match arguments.part {
        Some(Part::App { listen }) => run(container::until_told(app::serve(listen))),
        Some(Part::Pod { without_walls }) => pod::supervise(without_walls),
        Some(Part::Intruder) => pod::wait_to_be_ended(),
        Some(Part::Pause) => run(container::until_told(std::future::pending())),
        Some(Part::Ask(ask)) => run(ask.run()),
        Some(Part::AskSteadily(ask)) => run(ask.run()),
        Some(Part::Completions { shell }) => completions(shell),
        None => run(demo(&arguments)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("postern-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        shell,
        &mut Arguments::command(),
        "postern-demo",
        &mut script,
    );
    Ok(std::io::stdout().write_all(&script)?)
}

/// One thread is enough for all that the demo does itself.
fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(work)
}

async fn demo(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = binaries::ready(arguments.binaries.as_deref())?;
    let network = network::Network::choose(arguments.loopback, &folder.join(binaries::PROXY))?;
    let mut report = report::Report::begin(&network);
    let mut world = world::World::start(&folder, network, &mut report).await?;

    let shown = tokio::select! {
        shown = scenes::play(&mut world, &mut report) => shown,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(error) = shown {
        world.print_logs();
        return Err(error);
    }
    if arguments.keep {
        report.kept(&world);
        tokio::signal::ctrl_c()
            .await
            .context("cannot wait for Ctrl-C")?;
    }
    world.stop().await?;
    report.end()
}

const EXAMPLES: &str = "\
Examples:
  cargo demo              build what is needed, show the road, clean up
  cargo demo --keep       the same, and leave it running to be looked at
  cargo demo --loopback   without network namespaces, even as root";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn every_command_has_examples_that_parse() {
        let parse = |words: &[String]| Arguments::command().try_get_matches_from(words);
        let found = postern_examples::mistakes(&Arguments::command(), &["cargo demo"], parse);
        assert!(found.is_empty(), "{found:#?}");
    }
}
