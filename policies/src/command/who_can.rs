//! `who-can`: which identities may do it.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use postern_policies::{Caller, PolicySet};
use serde_json::{Value, json};

use super::{
    Policies,
    query::{self, Answer, Query, QueryDestination, QueryHttp, QuerySource},
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
        let mut allowed = 0;
        for caller in set.callers(&name) {
            let parsed = self.query(&caller).parse(set)?;
            let answer = parsed.answer(Value::Null, set);
            let may = answer.verdict == "allow";
            allowed += usize::from(may);
            if !may && !self.all {
                continue;
            }
            match self.json {
                true => anstream::println!("{}", for_programs(&caller, &answer)),
                false => print(&caller, &answer),
            }
        }
        if allowed == 0 && !self.json {
            anstream::println!("nobody");
        }
        Ok(allowed)
    }

    fn query(&self, caller: &Caller) -> Query {
        Query {
            mtls: Some(caller.identity.is_some()),
            source: Some(QuerySource {
                identity: caller.identity.as_ref().map(ToString::to_string),
                ip: caller.ip,
                ..QuerySource::default()
            }),
            destination: Some(QueryDestination {
                workload: Some(self.to.clone()),
                ip: None,
                port: Some(self.port),
                protocol: Some(self.protocol.clone()),
            }),
            http: self.path.as_ref().map(|path| QueryHttp {
                method: Some(self.method.clone()),
                path: Some(path.clone()),
                host: self.host.clone(),
                headers: None,
            }),
            ..Query::default()
        }
    }
}

fn for_programs(caller: &Caller, answer: &Answer) -> Value {
    let names: Vec<String> = caller.workloads.iter().map(ToString::to_string).collect();
    json!({
        "identity": caller.identity.as_ref().map(ToString::to_string),
        "ip": caller.ip,
        "workloads": names,
        "answer": answer,
    })
}

fn print(caller: &Caller, answer: &Answer) {
    let style = match answer.verdict {
        "allow" => AnsiColor::Green.on_default(),
        _ => AnsiColor::Red.on_default(),
    };
    let who = match &caller.identity {
        Some(id) => id.to_string(),
        None => "plaintext, without an identity".into(),
    };
    let ip = caller
        .ip
        .map(|ip| format!(" from {ip}"))
        .unwrap_or_default();
    let names: Vec<String> = caller.workloads.iter().map(ToString::to_string).collect();
    let names = match (names.is_empty(), &caller.identity) {
        (false, _) => names.join(", "),
        (true, Some(_)) => "no Workload".into(),
        (true, None) => "anybody".into(),
    };
    let found = query::Found::of(answer);
    let place = answer.place().unwrap_or_default();
    anstream::println!(
        "{style}{}{style:#} {who}{ip} ({names})\n      {} {DIM}{place}{DIM:#}",
        found.verdict,
        found.reason
    );
}

const DIM: Style = Style::new().dimmed();
