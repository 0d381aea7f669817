//! `who-can`: which identities may do it.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use postern_policies::{
    PolicySet,
    classes::{self, Asked, Caller, Callers, Example},
    normalize,
};
use serde_json::{Value, json};

use super::{
    Policies,
    query::{self, Answer},
};

/// Tells which identities may do something, and by which line
#[derive(Debug, Args)]
pub(super) struct WhoCan {
    #[command(flatten)]
    policies: Policies,

    /// The destination's Workload
    #[arg(long, value_name = "NS/NAME")]
    to: String,

    /// The port at the destination
    #[arg(long)]
    port: u16,

    /// TCP, UDP or SCTP
    #[arg(long, default_value = "TCP")]
    protocol: String,

    /// The method, for HTTP
    #[arg(long, default_value = "GET", requires = "path")]
    method: String,

    /// The path, for HTTP
    #[arg(long)]
    path: Option<String>,

    /// The host, for HTTP
    #[arg(long, requires = "path")]
    host: Option<String>,

    /// Tell those who may not, too
    #[arg(long)]
    all: bool,

    /// For programs: a line of JSON for each caller
    #[arg(long)]
    json: bool,
}

impl WhoCan {
    pub(super) fn run(&self) -> ExitCode {
        let loaded = match self.policies.load() {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        match self.tell(&loaded.set) {
            Ok(0) => ExitCode::FAILURE,
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                anstream::eprintln!("postern-policy: {error}");
                ExitCode::from(2)
            }
        }
    }

    /// Tells how many may.
    fn tell(&self, set: &PolicySet) -> Result<usize, String> {
        let name = query::workload_name(&self.to, set)?;
        let protocol = query::protocol(Some(&self.protocol))?;
        let path = match &self.path {
            Some(path) => Some(
                normalize::path(path, set.paths())
                    .map_err(|refused| format!("`{path}`: {refused}"))?
                    .into_owned(),
            ),
            None => None,
        };
        let host = match &self.host {
            Some(host) => Some(
                normalize::host(host)
                    .map_err(|refused| format!("`{host}`: {refused}"))?
                    .into_owned(),
            ),
            None => None,
        };
        let asked = Asked {
            http: path.is_some(),
            port: Some((self.port, protocol)),
            method: Some(self.method.clone()),
            path,
            host,
        };
        let groups = classes::of(&[set], &name, &asked).map_err(|error| error.to_string())?;
        let mut allowed = 0;
        let mut found: Vec<Found> = Vec::new();
        for group in &groups {
            let of = |caller| Found::of(caller, group, set);
            found.extend(group.all.iter().filter_map(of));
        }
        found.sort_by(|a, b| a.order().cmp(&b.order()));
        for one in &found {
            let may = one.answer.verdict == "allow";
            allowed += usize::from(may);
            if !may && !self.all {
                continue;
            }
            match self.json {
                true => anstream::println!("{}", one.for_programs()),
                false => one.print(),
            }
        }
        if allowed == 0 && !self.json {
            anstream::println!("nobody");
        }
        Ok(allowed)
    }
}

/// What a caller is told, at best.
struct Found {
    caller: Caller,
    example: Example,
    answer: Answer,
    /// An access of the same caller that is denied.
    except: Option<(Example, Answer)>,
}

impl Found {
    fn of(caller: &Caller, group: &Callers, set: &PolicySet) -> Option<Self> {
        let mut answers: Vec<(Example, Answer)> = group
            .examples
            .iter()
            .map(|example| {
                let mut example = example.clone();
                example.identity.clone_from(&caller.identity);
                let answer = Answer::to(&example, set);
                (example, answer)
            })
            .collect();
        // The plainest that is allowed, else the plainest of all.
        answers.sort_by_key(|(example, answer)| {
            (answer.verdict != "allow", query::conditions(example).len())
        });
        let mut answers = answers.into_iter();
        let (example, answer) = answers.next()?;
        let is_allowed = answer.verdict == "allow";
        let except = answers.find(|(_, other)| is_allowed && other.verdict != "allow");
        Some(Self {
            caller: caller.clone(),
            example,
            answer,
            except,
        })
    }

    /// Workloads by their names, strangers, and nobody last.
    fn order(&self) -> (bool, bool, &Caller) {
        let caller = &self.caller;
        (
            caller.identity.is_none(),
            caller.workloads.is_empty(),
            caller,
        )
    }

    fn for_programs(&self) -> Value {
        let names: Vec<String> = self
            .caller
            .workloads
            .iter()
            .map(ToString::to_string)
            .collect();
        json!({
            "identity": self.caller.identity.as_ref().map(ToString::to_string),
            "ip": self.example.ip,
            "workloads": names,
            "answer": self.answer,
            "example": query::line_of(&self.example),
            "always": self.except.is_none(),
            "except": self.except.as_ref().map(|(example, answer)| {
                json!({"example": query::line_of(example), "answer": answer})
            }),
        })
    }

    fn print(&self) {
        let style = match self.answer.verdict {
            "allow" => AnsiColor::Green.on_default(),
            _ => AnsiColor::Red.on_default(),
        };
        let who = match &self.caller.identity {
            Some(id) => id.to_string(),
            None => "plaintext, without an identity".into(),
        };
        let how = query::conditions(&self.example);
        let space = if how.is_empty() { "" } else { " " };
        let names: Vec<String> = self
            .caller
            .workloads
            .iter()
            .map(ToString::to_string)
            .collect();
        let names = match (names.is_empty(), &self.caller.identity) {
            (false, _) => names.join(", "),
            (true, Some(_)) => "no Workload".into(),
            (true, None) => "anybody".into(),
        };
        let place = self.answer.place().unwrap_or_default();
        anstream::println!(
            "{style}{}{style:#} {who}{space}{how} ({names})\n      {} {DIM}{place}{DIM:#}",
            self.answer.verdict,
            self.answer.reason
        );
        if let Some((example, answer)) = &self.except {
            let how = query::conditions(example);
            let how = if how.is_empty() { "without that" } else { &how };
            anstream::println!("      not {how}: {}", answer.reason);
        }
    }
}

const DIM: Style = Style::new().dimmed();
