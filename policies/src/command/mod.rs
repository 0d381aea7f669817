//! The command line: a file for each command.

mod cases;
mod check;
mod decide;
mod diff;
mod explain;
mod learn;
mod query;
mod test;
mod who_can;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use postern_policies::{
    Defaults, Diagnostic, Loaded, Options, PolicySet, SourceFile, decide::Verdict, files,
    normalize::PathNormalization,
};
use postern_spiffe::TrustDomain;

/// Decides access as Kubernetes and Istio policies say, and tells why.
#[derive(Debug, Parser)]
#[command(name = "postern-policy", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tells every mistake and every doubtful line of policies
    #[command(
        after_help = "Examples:\n  postern-policy check policies/ workloads/\n  postern-policy check policies/ --namespace production --ignore-other-kinds"
    )]
    Check(check::Check),
    /// Decides accesses: JSON lines in, JSON lines out
    #[command(
        after_help = "Examples:\n  postern-policy decide --policies policies/ --workloads workloads/ < accesses.jsonl"
    )]
    Decide(decide::Decide),
    /// Decides one access and tells which policies were looked at, and why
    #[command(
        after_help = "Examples:\n  postern-policy explain --policies policies/ --workloads workloads/ --from spiffe://example.org/ns/production/sa/frontend --to production/web --port 8080 --method GET --path /api"
    )]
    Explain(Box<explain::Explain>),
    /// Runs the cases in `*.test.yaml` files
    #[command(
        after_help = "Examples:\n  postern-policy test policies/\n  postern-policy test policies/ --verbose --require-coverage"
    )]
    Test(test::Test),
    /// Tells which accesses are decided differently by two sets of policies
    #[command(
        after_help = "Examples:\n  postern-policy diff old/ new/ --workloads workloads/\n  postern-policy diff old/ new/ --workloads workloads/ --json"
    )]
    Diff(Box<diff::Diff>),
    /// Turns an access log into the least policies that allow what it shows
    #[command(
        after_help = "Examples:\n  postern-policy learn access.log --workloads workloads/ > learnt.yaml"
    )]
    Learn(Box<learn::Learn>),
    /// Tells which identities may do something, and by which line
    #[command(
        after_help = "Examples:\n  postern-policy who-can --policies policies/ --to production/web --port 8080 --path /admin"
    )]
    WhoCan(Box<who_can::WhoCan>),
    /// Prints completions for a shell
    #[command(
        after_help = "Examples:\n  postern-policy completions bash > /usr/share/bash-completion/completions/postern-policy\n  postern-policy completions zsh > /usr/share/zsh/vendor-completions/_postern-policy\n  postern-policy completions fish > ~/.config/fish/completions/postern-policy.fish"
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

/// Runs a command and tells its exit code.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    match arguments.command {
        Command::Check(check) => check.run(),
        Command::Decide(decide) => decide.run(),
        Command::Explain(explain) => explain.run(),
        Command::Test(test) => test.run(),
        Command::Diff(diff) => diff.run(),
        Command::Learn(learn) => learn.run(),
        Command::WhoCan(who_can) => who_can.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "postern-policy", &mut script);
            match std::io::stdout().write_all(&script) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Command::Manual { directory } => {
            match clap_mangen::generate_to(Arguments::command(), directory) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    anstream::eprintln!("postern-policy: {error}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// How documents are read.
#[derive(Debug, Args)]
struct Reading {
    /// The namespace of documents that name none
    #[arg(long, short, value_name = "NS", default_value = "default")]
    namespace: String,

    /// The trust domain of the Workloads
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = TrustDomain::parse)]
    trust_domain: TrustDomain,

    /// Another name of the trust domain; may be given more than once
    #[arg(long, value_name = "NAME", value_parser = TrustDomain::parse)]
    trust_domain_alias: Vec<TrustDomain>,

    /// How paths are brought into one spelling: BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES
    #[arg(long, value_name = "HOW", default_value = "BASE", value_parser = parse_paths)]
    path_normalization: PathNormalization,

    /// The namespace whose Istio policies hold everywhere
    #[arg(long, value_name = "NS", default_value = "istio-system")]
    root_namespace: String,

    /// Pass over documents of other kinds instead of refusing them
    #[arg(long)]
    ignore_other_kinds: bool,
}

/// Which policies are asked.
#[derive(Debug, Args)]
struct Policies {
    /// A folder or file of policies; may be given more than once
    #[arg(long, value_name = "DIR", required = true)]
    policies: Vec<PathBuf>,

    /// A folder or file of Workloads and Namespaces; may be given more than once
    #[arg(long, value_name = "DIR")]
    workloads: Vec<PathBuf>,

    /// What holds where no policy speaks: `strict`, `istio`, or `network=…,authorization=…`
    #[arg(long, default_value = "strict", value_parser = parse_defaults)]
    defaults: Defaults,

    #[command(flatten)]
    reading: Reading,
}

impl Reading {
    fn options(&self, defaults: Defaults) -> Options {
        Options {
            namespace: self.namespace.clone(),
            trust_domain_aliases: self.trust_domain_alias.clone(),
            root_namespace: self.root_namespace.clone(),
            defaults,
            ignore_other_kinds: self.ignore_other_kinds,
            paths: self.path_normalization,
            ..Options::new(self.trust_domain.clone())
        }
    }
}

impl Policies {
    /// Loads and compiles; on failure everything is already told.
    fn load(&self) -> Result<Loaded, ExitCode> {
        let paths = self.policies.iter().chain(&self.workloads);
        let files = read(paths.map(PathBuf::as_path)).map_err(|error| {
            anstream::eprintln!("postern-policy: {error}");
            ExitCode::from(BAD_CONFIGURATION)
        })?;
        PolicySet::load(&files, &self.reading.options(self.defaults)).map_err(|found| {
            show(&found, &files);
            ExitCode::from(BAD_CONFIGURATION)
        })
    }
}

/// Reads all documents of all paths. A file that is named twice counts once.
fn read<'p>(paths: impl Iterator<Item = &'p Path>) -> std::io::Result<Vec<SourceFile>> {
    let mut all: Vec<SourceFile> = Vec::new();
    for path in paths {
        for file in files::read_documents(path)? {
            if !all.iter().any(|known| known.path == file.path) {
                all.push(file);
            }
        }
    }
    Ok(all)
}

fn parse_paths(text: &str) -> Result<PathNormalization, String> {
    PathNormalization::parse(text)
        .ok_or_else(|| "write BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES".to_owned())
}

fn parse_defaults(text: &str) -> Result<Defaults, String> {
    match text {
        "strict" => return Ok(Defaults::STRICT),
        "istio" => return Ok(Defaults::ISTIO),
        _ => {}
    }
    let mut defaults = Defaults::STRICT;
    for part in text.split(',') {
        let verdict = |word| match word {
            "allow" => Ok(Verdict::Allow),
            "deny" => Ok(Verdict::Deny),
            other => Err(format!("`{other}` is neither `allow` nor `deny`")),
        };
        match part.split_once('=') {
            Some(("network", word)) => defaults.network = verdict(word)?,
            Some(("authorization", word)) => defaults.authorization = verdict(word)?,
            _ => {
                return Err("write `strict`, `istio` or `network=deny,authorization=allow`".into());
            }
        }
    }
    Ok(defaults)
}

/// Shows mistakes and warnings with the line of the file and a caret under the place.
fn show(found: &[Diagnostic], files: &[SourceFile]) {
    for one in found {
        anstream::eprintln!("{}", check::render(one, files));
    }
}

/// The exit code of a configuration that cannot be used.
const BAD_CONFIGURATION: u8 = 64;

const EXAMPLES: &str = "\
Examples:
  postern-policy check policies/
  postern-policy explain --policies policies/ --workloads workloads/ \\
      --from spiffe://example.org/workload/frontend --to production/web \\
      --port 8080 --method GET --path /api/v1/orders
  postern-policy who-can --policies policies/ --to production/web --port 8080 --path /admin
  postern-policy diff old/ new/ --workloads workloads/
  postern-policy learn access.log --workloads workloads/ > learnt.yaml
  postern-policy test policies/
  postern-policy decide --policies policies/ --workloads workloads/ < accesses.jsonl

Exit codes: 0 yes, 1 no, 2 wrong use, 64 policies that do not compile";

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
