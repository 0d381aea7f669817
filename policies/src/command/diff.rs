//! `diff`: which accesses two sets of policies decide differently.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode};

use anstyle::{AnsiColor, Style};
use clap::Args;
use postern_policies::{
    Caller, Defaults, PolicySet, Requests,
    decide::{
        Access, Destination, Direction, HttpRequest, NoHeaders, Peer, Protocol, Source, Verdict,
    },
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

/// One question, by its parts.
#[derive(Debug, Clone)]
struct Question<'a> {
    caller: &'a Caller,
    to: &'a WorkloadName,
    port: u16,
    protocol: Protocol,
    http: Option<(&'a str, &'a str, &'a str)>,
}

/// A change, with what all of its questions have in common.
#[derive(Debug)]
struct Change<'a> {
    question: Question<'a>,
    now: Verdict,
    reason: String,
    /// How many questions changed in the same way, for the same reason.
    count: usize,
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
        let mut changes = 0;
        for name in &names {
            changes += self.destination(&old, &new, name);
        }
        if !self.json {
            anstream::println!("{changes} changes at {} Workloads", names.len());
        }
        match changes {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
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

    /// Asks both sets everything that either can tell apart, and tells how many kinds of change
    /// there are.
    fn destination(&self, old: &PolicySet, new: &PolicySet, to: &WorkloadName) -> usize {
        let callers: BTreeSet<Caller> =
            old.callers(to).into_iter().chain(new.callers(to)).collect();
        let requests = old.requests(to).union(new.requests(to));
        let mut changes: Vec<Change<'_>> = Vec::new();
        let ask = |question: &Question<'_>| -> Option<(Verdict, String)> {
            question.with(|access| {
                let (before, after) = (old.decide(access), new.decide(access));
                (before.verdict != after.verdict)
                    .then(|| (after.verdict, new.reason(access, &after)))
            })
        };
        for question in questions(to, &callers, &requests) {
            if let Some((now, reason)) = ask(&question) {
                note(&mut changes, question, now, reason);
            }
        }
        for change in &changes {
            match self.json {
                true => anstream::println!("{}", change.for_programs()),
                false => change.print(),
            }
        }
        changes.len()
    }
}

/// Each caller with each kind of request: opaque first, then HTTP.
fn questions<'a>(
    to: &'a WorkloadName,
    callers: &'a BTreeSet<Caller>,
    requests: &'a Requests,
) -> impl Iterator<Item = Question<'a>> {
    // Opaque, and each kind of request.
    let mut spoken = vec![None];
    for method in &requests.methods {
        for path in &requests.paths {
            let hosts = requests.hosts.iter();
            spoken.extend(hosts.map(|host| Some((method.as_str(), path.as_str(), host.as_str()))));
        }
    }
    let mut ways = Vec::new();
    for &port in &requests.ports {
        for &protocol in &requests.protocols {
            let fits = spoken
                .iter()
                .filter(|http| http.is_none() || protocol == Protocol::Tcp);
            ways.extend(fits.map(|http| (port, protocol, *http)));
        }
    }
    callers.iter().flat_map(move |caller| {
        let asked = ways.clone().into_iter();
        asked.map(move |(port, protocol, http)| Question {
            caller,
            to,
            port,
            protocol,
            http,
        })
    })
}

/// One line for all questions of a caller and kind of traffic that changed for one reason.
fn note<'a>(changes: &mut Vec<Change<'a>>, question: Question<'a>, now: Verdict, reason: String) {
    let same = changes.iter_mut().find(|change| {
        change.now == now
            && change.reason == reason
            && change.question.caller == question.caller
            && change.question.http.is_some() == question.http.is_some()
    });
    match same {
        Some(change) => change.count += 1,
        None => changes.push(Change {
            question,
            now,
            reason,
            count: 1,
        }),
    }
}

impl Question<'_> {
    fn with<T>(&self, ask: impl FnOnce(&Access<'_>) -> T) -> T {
        ask(&Access {
            direction: Direction::Inbound,
            source: Source {
                peer: self
                    .caller
                    .identity
                    .as_ref()
                    .map_or(Peer::Plaintext, Peer::Verified),
                ip: self.caller.ip,
                namespace: None,
                labels: None,
            },
            destination: Destination {
                workload: Some(self.to),
                ip: None,
                port: self.port,
                protocol: self.protocol,
            },
            http: self.http.map(|(method, path, host)| HttpRequest {
                method,
                path,
                host: Some(host),
                headers: &NoHeaders,
            }),
            token: None,
            sni: None,
        })
    }

    /// What is asked, in one line.
    fn shown(&self) -> String {
        let who = match &self.caller.identity {
            Some(id) => id.to_string(),
            None => "plaintext".into(),
        };
        let ip = self.caller.ip.map(|ip| format!(" from {ip}"));
        let what = match self.http {
            Some((method, path, host)) => format!("{method} http://{host}{path}"),
            None => format!("{:?}", self.protocol).to_uppercase(),
        };
        format!(
            "{who}{} → {}:{} {what}",
            ip.unwrap_or_default(),
            self.to,
            self.port
        )
    }
}

impl Change<'_> {
    fn print(&self) {
        let (word, style) = match self.now {
            Verdict::Allow => ("now allowed", AnsiColor::Green.on_default()),
            Verdict::Deny => ("now denied", AnsiColor::Red.on_default()),
        };
        let more = match self.count {
            1 => String::new(),
            count => format!(" (and {} more of the kind)", count - 1),
        };
        anstream::println!(
            "{style}{word}{style:#} {}{more}\n      {DIM}{}{DIM:#}",
            self.question.shown(),
            self.reason
        );
    }

    fn for_programs(&self) -> serde_json::Value {
        let question = &self.question;
        json!({
            "verdict": query::verdict(self.now),
            "reason": self.reason,
            "count": self.count,
            "example": {
                "mtls": question.caller.identity.is_some(),
                "source": {
                    "identity": question.caller.identity.as_ref().map(ToString::to_string),
                    "ip": question.caller.ip,
                },
                "destination": {
                    "workload": question.to.to_string(),
                    "port": question.port,
                    "protocol": format!("{:?}", question.protocol).to_uppercase(),
                },
                "http": question.http.map(|(method, path, host)| {
                    json!({"method": method, "path": path, "host": host})
                }),
            },
        })
    }
}

const DIM: Style = Style::new().dimmed();
