//! The command line.

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    Failed, complain, notice, plan,
    plan::{Caller, Plan},
    start,
    wishes::Wishes,
};

/// Starts a program inside walls: namespaces and limits of its own, a read-only view of the files, no
/// capabilities, no new privileges, a seccomp filter and a Landlock fence.
#[derive(Debug, Parser)]
#[command(name = "postern-run", version, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(
    override_usage = "postern-run [OPTIONS] -- COMMAND…\n       postern-run learn [OPTIONS] -- COMMAND…"
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    wishes: Wishes,

    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    program: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a program inside the same walls but for seccomp, and writes the least profile that it needs
    #[command(
        after_help = "Examples:\n  postern-run learn -o server.json -- ./server --selftest\n  postern-run learn --writable ./data -- ./server > server.json"
    )]
    Learn {
        /// Where the profile goes; otherwise to standard output, and the program's own to standard error
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,

        #[command(flatten)]
        wishes: Box<Wishes>,

        /// The program and its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        program: Vec<OsString>,
    },
    /// Prints completions for a shell
    #[command(
        after_help = "Examples:\n  postern-run completions bash > /usr/share/bash-completion/completions/postern-run\n  postern-run completions zsh > /usr/share/zsh/vendor-completions/_postern-run\n  postern-run completions fish > ~/.config/fish/completions/postern-run.fish"
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

/// Runs a command and tells the code to end with.
pub(crate) fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // With the output gone there is nobody to tell.
            let _ = error.print();
            return match error.use_stderr() {
                true => Failed::Here.into(),
                false => ExitCode::SUCCESS,
            };
        }
    };
    match arguments.command {
        None => walled(arguments.wishes, arguments.program, None),
        Some(Command::Learn {
            output,
            wishes,
            program,
        }) => walled(*wishes, program, Some(output)),
        Some(Command::Completions { shell }) => completions(shell),
        Some(Command::Manual { directory }) => manual(&directory),
    }
}

/// `learn` is where a learnt profile goes, if one is wanted.
fn walled(wishes: Wishes, program: Vec<OsString>, learn: Option<Option<PathBuf>>) -> ExitCode {
    let wishes = match wishes.with_profile() {
        Ok(wishes) => wishes,
        Err(lines) => {
            for line in lines {
                notice(&line);
            }
            return Failed::Here.into();
        }
    };
    start_it(&wishes, program, learn).unwrap_or_else(|error| complain(&error))
}

fn start_it(
    wishes: &Wishes,
    program: Vec<OsString>,
    learn: Option<Option<PathBuf>>,
) -> anyhow::Result<ExitCode> {
    start::close_all_but(&wishes.keep_fd)?;
    let caller = Caller::present()?;
    let plan = Plan::of(wishes, program, caller, learn.is_some())?;
    let limits = match wishes.no_limits {
        true => cgroup_free(wishes),
        false => plan::limits(wishes),
    };
    let to_standard_output = learn == Some(None);
    let ended = start::run(&plan, &limits, caller, to_standard_output)?;
    match (learn, ended.learnt) {
        (Some(Some(path)), Some(profile)) => {
            fs::write(&path, profile)
                .with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        (Some(None), Some(profile)) => std::io::stdout().write_all(profile.as_bytes())?,
        _ => {}
    }
    Ok(ended.code)
}

fn cgroup_free(wishes: &Wishes) -> crate::cgroup::Limits {
    if !plan::limits(wishes).is_empty() {
        notice("--no-limits: memory, processors and processes are not bounded");
    }
    crate::cgroup::Limits::default()
}

fn manual(directory: &Path) -> ExitCode {
    let written = clap_mangen::generate_to(Arguments::command(), directory);
    let written = written.with_context(|| format!("cannot write to `{}`", directory.display()));
    written.map_or_else(|error| complain(&error), |()| ExitCode::SUCCESS)
}

fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "postern-run", &mut script);
    match std::io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error.into()),
    }
}

const EXAMPLES: &str = "\
Examples:
  postern-run -- sh -c 'id; touch /etc/x'
  postern-run --profile restricted --writable ./data -- ./server
  postern-run --memory 64m --cpus 0.5 --pids 64 --net none -- python3 untrusted.py
  postern-run learn -o server.json -- ./server --selftest
  postern-run --seccomp server.json -- ./server

Exit codes: the program's own, 128 and the signal's number if one ended it; 125 if postern-run failed,
126 if the program cannot be executed, 127 if there is none.";

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
