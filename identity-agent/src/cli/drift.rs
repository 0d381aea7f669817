//! `drift`: deviations, over the admin socket, and the rules that may look for them.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use postern_agent::drift::Learnt;
use postern_agent::rules::{Checked, MAX_FILE_BYTES, Reason, RuleSet, Runs};
use postern_policies::{Diagnostic, SourceFile};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{BAD_CONFIGURATION, admin::Asking, client::block_on, duration, finish};

/// Deviations from baselines
#[derive(Debug, Subcommand)]
pub(super) enum Drift {
    /// Lists the deviations, over the admin socket
    #[command(
        after_help = "Examples:\n  postern-agent drift list\n  postern-agent drift list --json -socketPath /run/postern/admin/admin.sock"
    )]
    List(Asking),
    /// Prints as a baseline what the pods of a Workload do, over the admin socket
    #[command(after_help = LEARN_EXAMPLES)]
    Learn {
        /// `namespace/name`
        name: String,
        /// How long to look, such as `10m`
        #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
        time: Duration,
        #[command(flatten)]
        asking: Asking,
    },
    /// Rules in Falco's language
    #[command(subcommand, after_help = CHECK_EXAMPLES)]
    Rules(Rules),
}

#[derive(Debug, Subcommand)]
pub(super) enum Rules {
    /// Says of each rule whether it runs whole, in part, or not, and why
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// Files of rules; later ones change earlier ones
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

impl Drift {
    pub(super) fn run(self) -> ExitCode {
        match self {
            Self::List(asking) => finish(block_on(list(asking))),
            Self::Learn { name, time, asking } => finish(block_on(learn(&name, time, asking))),
            Self::Rules(Rules::Check { files, json }) => check(&files, json),
        }
    }
}

async fn list(asking: Asking) -> anyhow::Result<()> {
    let all = asking.ask("/drift").await?;
    asking.show(
        &all,
        &["time", "workload", "kind", "what", "pid", "answer", "count"],
    );
    Ok(())
}

/// Looks again and again, and prints all that was seen.
async fn learn(name: &str, time: Duration, asking: Asking) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    let mut learnt = Learnt::default();
    loop {
        let seen = asking.ask(&format!("/learn/{name}")).await?;
        let seen = serde_json::from_value(seen).context("the agent's answer cannot be read")?;
        learnt.merge(seen);
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        sleep(left.min(LOOK_EVERY)).await;
    }
    if learnt.is_empty() {
        bail!(
            "no process of `{name}` was seen: its pods must have their identity while this looks"
        );
    }
    match asking.is_json() {
        true => anstream::println!("{}", json!(learnt)),
        false => anstream::print!("{}", learnt.to_yaml()),
    }
    Ok(())
}

/// 0 when all rules run, 1 when one does not, 64 for what cannot be read as rules.
fn check(files: &[PathBuf], as_json: bool) -> ExitCode {
    let mut sources = Vec::new();
    for file in files {
        match read(file) {
            Ok(source) => sources.push(source),
            Err(error) => {
                anstream::eprintln!("cannot read `{}`: {error}", file.display());
                return ExitCode::from(BAD_CONFIGURATION);
            }
        }
    }
    let set = match RuleSet::load(&sources) {
        Ok(set) => set,
        Err(found) => {
            if as_json {
                let errors: Vec<Value> = found.iter().map(diagnostic).collect();
                anstream::println!("{}", json!({ "errors": errors }));
            }
            for one in found {
                anstream::eprintln!("{one}");
            }
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if as_json {
        anstream::println!("{}", report(&set));
    } else {
        for one in &set.warnings {
            anstream::eprintln!("{one}");
        }
        set.checked.iter().for_each(show);
        anstream::println!("{}", totals(&set));
    }
    match count(&set, Runs::Not) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// What is too long is read one byte too far, and refused for that.
fn read(path: &Path) -> io::Result<SourceFile> {
    let most = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX);
    let mut text = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut text)?;
    let path = path.to_owned();
    Ok(SourceFile { path, text })
}

fn count(set: &RuleSet, runs: Runs) -> usize {
    let of_kind = set.checked.iter().filter(|one| one.runs == runs);
    of_kind.count()
}

fn totals(set: &RuleSet) -> String {
    let all = [Runs::Whole, Runs::Partly, Runs::Not, Runs::Skipped];
    let counted = all.map(|runs| format!("{} {}", count(set, runs), runs.as_str()));
    format!("{} rules: {}", set.checked.len(), counted.join(", "))
}

fn show(checked: &Checked) {
    let file = checked.file.display();
    let off = if checked.is_enabled {
        ""
    } else {
        ", switched off"
    };
    anstream::println!(
        "{:<8}{} ({file}:{}{off})",
        checked.runs.as_str(),
        checked.rule,
        checked.place.line
    );
    for reason in &checked.reasons {
        let place = reason.place;
        let hint = reason.hint.iter().map(|hint| format!(" ({hint})"));
        anstream::println!(
            "        {}:{}:{}: {}{}",
            reason.file.display(),
            place.line,
            place.column,
            reason.why,
            hint.collect::<String>()
        );
    }
}

fn report(set: &RuleSet) -> Value {
    let rules: Vec<Value> = set.checked.iter().map(rule).collect();
    let warnings: Vec<Value> = set.warnings.iter().map(diagnostic).collect();
    json!({
        "rules": rules,
        "totals": {
            "whole": count(set, Runs::Whole),
            "partly": count(set, Runs::Partly),
            "not": count(set, Runs::Not),
            "skipped": count(set, Runs::Skipped),
        },
        "warnings": warnings,
    })
}

fn rule(checked: &Checked) -> Value {
    let reasons = || checked.reasons.iter();
    let fields: Vec<&String> = reasons().filter_map(|one| one.field.as_ref()).collect();
    let events: Vec<&String> = reasons().flat_map(|one| &one.events).collect();
    json!({
        "rule": checked.rule,
        "file": checked.file,
        "line": checked.place.line,
        "enabled": checked.is_enabled,
        "status": checked.runs.as_str(),
        "fields": fields,
        "events": events,
        "reasons": reasons().map(reason).collect::<Vec<_>>(),
        "emptyOutputFields": checked.empty_outputs,
    })
}

fn reason(reason: &Reason) -> Value {
    json!({
        "file": reason.file,
        "line": reason.place.line,
        "column": reason.place.column,
        "field": reason.field,
        "events": reason.events,
        "why": reason.why,
        "hint": reason.hint,
    })
}

fn diagnostic(one: &Diagnostic) -> Value {
    json!({
        "file": one.file,
        "line": one.line,
        "column": one.column,
        "message": one.message,
        "hint": one.hint,
    })
}

/// How often `learn` looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

const LEARN_EXAMPLES: &str = "\
Examples:
  postern-agent drift learn --for 10m production/web > baseline.yaml

Read it before it is used: what was an attack while this looked is in it too.";

const CHECK_EXAMPLES: &str = "\
Examples:
  postern-agent drift rules check rules/falco.yaml
  postern-agent drift rules check falco_rules.yaml local_rules.yaml --json

Exit codes: 0 all rules run, 1 some do not, 64 a file that cannot be read as rules";
