//! `explain`: one access, for people.

use std::{collections::BTreeMap, net::IpAddr, process::ExitCode};

use anstyle::{AnsiColor, Style};
use clap::Args;
use postern_policies::Explanation;
use serde_json::{Value, json};

use super::{
    Policies,
    query::{self, Answer, Query, QueryDestination, QueryHttp, QuerySource, QueryToken},
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

    /// A header of the request; may be given more than once
    #[arg(long, value_name = "NAME: VALUE", requires = "method", value_parser = parse_header)]
    header: Vec<(String, String)>,

    /// A token whose signature was checked, as JSON: `{"issuer": "…", "claims": {…}}`
    #[arg(long, value_name = "JSON", requires = "method", value_parser = parse_token)]
    jwt: Option<QueryToken>,

    /// The server name of the TLS handshake
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,

    /// The caller uses no mutual TLS
    #[arg(long)]
    plaintext: bool,

    /// Decide at the source, by its egress rules
    #[arg(long)]
    outbound: bool,

    /// For programs
    #[arg(long)]
    json: bool,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn parse_token(text: &str) -> Result<QueryToken, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
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
                let answer = parsed.answer(Value::Null, &loaded.set);
                match self.json {
                    true => anstream::println!("{}", for_programs(&answer, &explanation)),
                    false => print(&answer, &explanation),
                }
                match answer.verdict {
                    "allow" => ExitCode::SUCCESS,
                    _ => ExitCode::FAILURE,
                }
            }
            Err(error) => {
                anstream::eprintln!("postern-policy: {error}");
                ExitCode::from(2)
            }
        }
    }

    fn headers(&self) -> BTreeMap<String, Vec<String>> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in &self.header {
            all.entry(name.clone()).or_default().push(value.clone());
        }
        all
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
                headers: Some(self.headers()),
            }),
            jwt: self.jwt.clone(),
            sni: self.sni.clone(),
            ..Query::default()
        }
    }
}

fn for_programs(answer: &Answer, explanation: &Explanation) -> Value {
    let considered: Vec<Value> = explanation
        .considered
        .iter()
        .map(|one| {
            json!({
                "kind": query::kind(one.origin.kind),
                "policy": &*one.origin.policy,
                "rule": one.origin.rule,
                "action": one.action,
                "matched": one.matched,
                "why": one.why,
                "file": one.origin.file.display().to_string(),
                "line": one.origin.line,
            })
        })
        .collect();
    json!({"answer": answer, "considered": considered})
}

fn print(answer: &Answer, explanation: &Explanation) {
    let style = match answer.verdict {
        "allow" => AnsiColor::Green.on_default().bold(),
        _ => AnsiColor::Red.on_default().bold(),
    };
    anstream::println!("{style}{}{style:#}: {}", answer.verdict, answer.reason);
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
