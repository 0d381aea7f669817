//! `explain`: one access, for people.

use std::{net::IpAddr, process::ExitCode};

use anstyle::{AnsiColor, Style};
use clap::Args;
use postern_policies::{Explanation, decide::Verdict};

use super::{
    Policies,
    query::{self, Query, QueryDestination, QueryHttp, QuerySource},
};

/// Decides one access and tells which policies were looked at, and why
#[derive(Debug, Args)]
pub(super) struct Explain {
    #[command(flatten)]
    policies: Policies,

    /// The caller's SPIFFE ID; without it the caller has none
    #[arg(long, value_name = "SPIFFE_ID")]
    from: Option<String>,

    /// The caller's address
    #[arg(long, value_name = "IP")]
    from_ip: Option<IpAddr>,

    /// The destination's Workload
    #[arg(long, value_name = "NS/NAME")]
    to: Option<String>,

    /// The destination's address
    #[arg(long, value_name = "IP")]
    to_ip: Option<IpAddr>,

    /// The port at the destination
    #[arg(long)]
    port: u16,

    /// TCP, UDP or SCTP
    #[arg(long, default_value = "TCP")]
    protocol: String,

    /// The method, for HTTP
    #[arg(long, requires = "path")]
    method: Option<String>,

    /// The path, for HTTP
    #[arg(long, requires = "method")]
    path: Option<String>,

    /// The host, for HTTP
    #[arg(long, requires = "method")]
    host: Option<String>,

    /// The caller uses no mutual TLS
    #[arg(long)]
    plaintext: bool,

    /// Decide at the source, by its egress rules
    #[arg(long)]
    outbound: bool,
}

impl Explain {
    pub(super) fn run(&self) -> ExitCode {
        let loaded = match self.policies.load() {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        match self.query().parse(&loaded.set) {
            Ok(parsed) => {
                let explanation = loaded.set.explain(&parsed.access());
                print(&explanation);
                match explanation.decision.verdict {
                    Verdict::Allow => ExitCode::SUCCESS,
                    Verdict::Deny => ExitCode::FAILURE,
                }
            }
            Err(error) => {
                anstream::eprintln!("postern-policy: {error}");
                ExitCode::from(2)
            }
        }
    }

    fn query(&self) -> Query {
        Query {
            direction: self.outbound.then(|| "outbound".to_owned()),
            mtls: Some(!self.plaintext && self.from.is_some()),
            source: Some(QuerySource {
                identity: self.from.clone(),
                ip: self.from_ip,
                ..QuerySource::default()
            }),
            destination: Some(QueryDestination {
                workload: self.to.clone(),
                ip: self.to_ip,
                port: Some(self.port),
                protocol: Some(self.protocol.clone()),
            }),
            http: self.method.as_ref().map(|method| QueryHttp {
                method: Some(method.clone()),
                path: self.path.clone(),
                host: self.host.clone(),
                headers: None,
            }),
            ..Query::default()
        }
    }
}

fn print(explanation: &Explanation) {
    let verdict = explanation.decision.verdict;
    let style = match verdict {
        Verdict::Allow => AnsiColor::Green.on_default().bold(),
        Verdict::Deny => AnsiColor::Red.on_default().bold(),
    };
    anstream::println!(
        "{style}{}{style:#}: {}",
        query::verdict(verdict),
        explanation.reason
    );
    for one in &explanation.considered {
        let mark = if one.matched { "✔" } else { "·" };
        let rule = one
            .origin
            .rule
            .map(|rule| format!(" rule {rule}"))
            .unwrap_or_default();
        anstream::println!(
            "  {mark} {} {}{rule} ({}) {DIM}{}:{}{DIM:#}\n      {}",
            query::kind(one.origin.kind),
            one.origin.policy,
            one.action,
            one.origin.file.display(),
            one.origin.line,
            one.why
        );
    }
}

const DIM: Style = Style::new().dimmed();
