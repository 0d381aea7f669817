//! `diff`: which accesses two sets of policies decide differently.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use anstyle::{AnsiColor, Style};
use clap::Args;
use postern_policies::{
    Defaults, PolicySet,
    classes::{self, Asked, Example, TooMany},
    decide::{Direction, Verdict},
    model::workload::WorkloadName,
};
use serde_json::json;

use super::{BAD_CONFIGURATION, Reading, parse_defaults, query, read, show};

/// Tells which accesses are decided differently by two sets of policies
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// A folder or file of the old policies
    old: PathBuf,

    /// A folder or file of the new policies
    new: PathBuf,

    /// A folder or file of Workloads and Namespaces, for both; may be given more than once
    #[arg(long, value_name = "DIR")]
    workloads: Vec<PathBuf>,

    /// What holds where no policy speaks: `strict`, `istio`, or `network=…,authorization=…`
    #[arg(long, default_value = "strict", value_parser = parse_defaults)]
    defaults: Defaults,

    /// For programs: a line of JSON for each change
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reading: Reading,
}

/// A change, with what all accesses that changed in the same way have in common.
#[derive(Debug)]
struct Change {
    example: Example,
    now: Verdict,
    reason: String,
    /// Callers and kinds of access that changed so.
    callers: usize,
    kinds: usize,
}

impl Diff {
    pub(super) fn run(&self) -> ExitCode {
        let (old, new) = match (self.load(&self.old), self.load(&self.new)) {
            (Ok(old), Ok(new)) => (old, new),
            (Err(code), _) | (_, Err(code)) => return code,
        };
        let names: BTreeSet<WorkloadName> = old
            .workloads()
            .chain(new.workloads())
            .map(|workload| workload.name.clone())
            .collect();
        let sets = [&old, &new];
        match changes(&sets, &names) {
            Ok(changes) => {
                for change in &changes {
                    match self.json {
                        true => anstream::println!("{}", change.for_programs()),
                        false => change.print(),
                    }
                }
                if !self.json {
                    let (count, names) = (changes.len(), names.len());
                    anstream::println!("{count} changes at {names} Workloads");
                }
                match changes.is_empty() {
                    true => ExitCode::SUCCESS,
                    false => ExitCode::FAILURE,
                }
            }
            Err(error) => {
                anstream::eprintln!("postern-policy: {error}");
                ExitCode::from(2)
            }
        }
    }

    fn load(&self, path: &PathBuf) -> Result<PolicySet, ExitCode> {
        let paths = std::iter::once(path).chain(&self.workloads);
        let files = read(paths.map(PathBuf::as_path)).map_err(|error| {
            anstream::eprintln!("postern-policy: {error}");
            ExitCode::from(BAD_CONFIGURATION)
        })?;
        match PolicySet::load(&files, &self.reading.options(self.defaults)) {
            Ok(loaded) => Ok(loaded.set),
            Err(found) => {
                show(&found, &files);
                Err(ExitCode::from(BAD_CONFIGURATION))
            }
        }
    }
}

/// Asks both sets everything that either can tell apart: at each Workload what comes in, opaque and
/// as HTTP, and of each Workload what goes out.
fn changes(sets: &[&PolicySet; 2], names: &BTreeSet<WorkloadName>) -> Result<Vec<Change>, TooMany> {
    let mut changes = Vec::new();
    for name in names {
        let mut here = Vec::new();
        for http in [false, true] {
            let asked = Asked {
                http,
                ..Asked::default()
            };
            for group in classes::of(sets, name, &asked)? {
                for example in &group.examples {
                    note(&mut here, sets, example, group.all.len());
                }
            }
        }
        changes.append(&mut here);
    }
    for name in names {
        let mut here = Vec::new();
        for example in classes::outbound(sets, name)? {
            note(&mut here, sets, &example, 1);
        }
        changes.append(&mut here);
    }
    Ok(changes)
}

/// One line for all accesses of a caller that changed for one reason.
fn note(changes: &mut Vec<Change>, sets: &[&PolicySet; 2], example: &Example, callers: usize) {
    let [old, new] = sets;
    let answer = example.with(|access| {
        let (before, after) = (old.decide(access), new.decide(access));
        (before.verdict != after.verdict).then(|| (after.verdict, new.reason(access, &after)))
    });
    let Some((now, reason)) = answer else {
        return;
    };
    let same = changes.iter_mut().find(|change| {
        change.now == now
            && change.reason == reason
            && change.example.identity == example.identity
            && change.example.http.is_some() == example.http.is_some()
    });
    match same {
        Some(change) => change.kinds += 1,
        None => changes.push(Change {
            example: example.clone(),
            now,
            reason,
            callers,
            kinds: 1,
        }),
    }
}

impl Change {
    /// What is asked, in one line.
    fn shown(&self) -> String {
        let example = &self.example;
        let who = match &example.identity {
            Some(id) => id.to_string(),
            None => "plaintext".into(),
        };
        let to = match (&example.destination, example.destination_ip) {
            (Some(name), _) => name.to_string(),
            (None, Some(ip)) => ip.to_string(),
            (None, None) => "outside".into(),
        };
        let what = match &example.http {
            Some(http) => format!("{} http://{}{}", http.method, http.host, http.path),
            None => format!("{:?}", example.protocol).to_uppercase(),
        };
        let direction = match example.direction {
            Direction::Inbound => "",
            Direction::Outbound => "outbound ",
        };
        let how = query::conditions(example);
        let space = if how.is_empty() { "" } else { " " };
        format!(
            "{direction}{who} → {to}:{} {what}{space}{how}",
            example.port
        )
    }

    fn print(&self) {
        let (word, style) = match self.now {
            Verdict::Allow => ("now allowed", AnsiColor::Green.on_default()),
            Verdict::Deny => ("now denied", AnsiColor::Red.on_default()),
        };
        let more = |count: usize, what: &str| match count {
            0 | 1 => String::new(),
            count => format!(" (and {} more {what})", count - 1),
        };
        anstream::println!(
            "{style}{word}{style:#} {}{}{}\n      {DIM}{}{DIM:#}",
            self.shown(),
            more(self.kinds, "kinds of access"),
            more(self.callers, "callers"),
            self.reason
        );
    }

    fn for_programs(&self) -> serde_json::Value {
        json!({
            "verdict": query::verdict(self.now),
            "reason": self.reason,
            "kinds": self.kinds,
            "callers": self.callers,
            "example": query::line_of(&self.example),
        })
    }
}

const DIM: Style = Style::new().dimmed();
