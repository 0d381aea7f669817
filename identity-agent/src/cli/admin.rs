//! Commands over the admin socket.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::{Args, Subcommand};
use http::Method;
use postern_agent::pem::pem;
use postern_spiffe::{TrustDomain, X509Bundle};
use serde_json::Value;

use super::{client::ask_admin, socket_path};

/// Workloads, over the admin socket
#[derive(Debug, Subcommand)]
pub(super) enum Workload {
    /// Lists the Workloads
    #[command(
        after_help = "Examples:\n  postern-agent workload list\n  postern-agent workload list --json | jq -r .[].spiffeID"
    )]
    List(Asking),
    /// Shows one Workload
    #[command(after_help = "Examples:\n  postern-agent workload show production/web")]
    Show {
        /// `namespace/name`
        name: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Registers the Workloads of a file: documents, or entries as SPIRE writes them
    #[command(
        after_help = "Examples:\n  postern-agent workload create -f web.yaml\n  postern-agent workload create -data entries.json --replace"
    )]
    Create {
        /// The file; `-` is standard input
        #[arg(long, short = 'f', visible_alias = "data", value_name = "FILE")]
        file: PathBuf,
        /// Replace Workloads of the same names
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        asking: Asking,
    },
    /// Takes a Workload that was registered so away again; its identity is withdrawn at once
    #[command(after_help = "Examples:\n  postern-agent workload delete production/web")]
    Delete {
        /// `namespace/name`
        name: String,
        #[command(flatten)]
        asking: Asking,
    },
}

/// The trust bundle, over the admin socket
#[derive(Debug, Subcommand)]
pub(super) enum Bundle {
    /// Shows the own bundle
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  postern-agent bundle show > ca.pem\n  postern-agent bundle show --format spiffe > bundle.json"
    )]
    Show {
        /// How to write it
        #[arg(long, value_enum, default_value = "pem")]
        format: BundleFormat,
        #[command(flatten)]
        asking: Asking,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum BundleFormat {
    /// Certificates, one after the other
    Pem,
    /// The bundle document of SPIFFE: a JWK Set, to publish for other trust domains
    Spiffe,
}

/// The roots and the keys of tokens, over the admin socket
#[derive(Debug, Subcommand)]
pub(super) enum Authority {
    /// Lists them
    #[command(
        after_help = "Examples:\n  postern-agent authority show\n  postern-agent authority show --json"
    )]
    Show(Asking),
    /// Makes the next ones before their time, and tells them in every bundle
    #[command(after_help = "Examples:\n  postern-agent authority prepare")]
    Prepare(Asking),
    /// Has those that are prepared sign from now on
    #[command(after_help = "Examples:\n  postern-agent authority activate")]
    Activate(Asking),
    /// Has all that one signed be replaced; it stays in the bundles until it is revoked
    #[command(after_help = "Examples:\n  postern-agent authority taint 9f86d081884c7d65")]
    Taint(OfOne),
    /// Takes a tainted one out of the bundles, and back what it signed
    #[command(after_help = "Examples:\n  postern-agent authority revoke 9f86d081884c7d65")]
    Revoke(OfOne),
}

#[derive(Debug, Args)]
pub(super) struct OfOne {
    /// Its ID, as `show` lists it
    id: String,
    #[command(flatten)]
    asking: Asking,
}

/// How to ask, and how to show.
#[derive(Debug, Args)]
pub(super) struct Asking {
    /// The admin socket: a path or a `unix://` address
    #[arg(
        long,
        visible_alias = "socketPath",
        value_name = "PATH",
        default_value = "/run/postern/admin/admin.sock"
    )]
    socket_path: String,

    /// For programs
    #[arg(long)]
    json: bool,
}

impl Asking {
    pub(super) async fn ask(&self, what: &str) -> anyhow::Result<Value> {
        self.send(Method::GET, what, Vec::new()).await
    }

    async fn tell(&self, what: &str) -> anyhow::Result<Value> {
        self.send(Method::POST, what, Vec::new()).await
    }

    async fn send(&self, method: Method, what: &str, body: Vec<u8>) -> anyhow::Result<Value> {
        ask_admin(&socket_path(&self.socket_path)?, method, what, body).await
    }

    /// Is this for programs?
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// JSON as it came, or a line for each item with these members.
    pub(super) fn show(&self, value: &Value, members: &[&str]) {
        if self.json {
            anstream::println!("{value}");
            return;
        }
        let items = match value {
            Value::Array(items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        for item in items {
            let columns: Vec<String> = members
                .iter()
                .map(|name| text(item.get(name).unwrap_or(&Value::Null)))
                .collect();
            anstream::println!("{}", columns.join("\t"));
        }
    }
}

impl Workload {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List(asking) => {
                asking.show(
                    &asking.ask("/workloads").await?,
                    &["name", "spiffeID", "selectors"],
                );
                Ok(())
            }
            Self::Show { name, asking } => {
                let all = asking.ask("/workloads").await?;
                let items = all.as_array().map(Vec::as_slice).unwrap_or_default();
                let Some(one) = items.iter().find(|item| item["name"] == name.as_str()) else {
                    bail!(
                        "there is no Workload `{name}`; `workload list` has them as `namespace/name`"
                    );
                };
                if asking.json {
                    anstream::println!("{one}");
                } else {
                    anstream::println!("{}\t{}", text(&one["name"]), text(&one["source"]));
                    anstream::println!("{:#}", one["document"]);
                }
                Ok(())
            }
            Self::Create {
                file,
                replace,
                asking,
            } => {
                let text = read(&file)?;
                let what = match replace {
                    true => "/workloads?replace=true",
                    false => "/workloads",
                };
                let created = asking.send(Method::POST, what, text).await?;
                asking.show(&created, &["name"]);
                Ok(())
            }
            Self::Delete { name, asking } => {
                let what = format!("/workloads/{name}");
                let deleted = asking.send(Method::DELETE, &what, Vec::new()).await;
                asking.show(&deleted?, &["name"]);
                Ok(())
            }
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut text)?;
        return Ok(text);
    }
    std::fs::read(file).with_context(|| format!("cannot read `{}`", file.display()))
}

impl Bundle {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self::Show { format, asking } = self;
        let answer = asking.ask("/bundle").await?;
        if asking.json {
            asking.show(&answer, &[]);
            return Ok(());
        }
        let x509 = bundle(&answer).context("the agent's answer holds no bundle")?;
        match format {
            BundleFormat::Pem => {
                for authority in x509.authorities() {
                    anstream::print!("{}", pem("CERTIFICATE", authority));
                }
            }
            BundleFormat::Spiffe => {
                let document = answer.get("document").and_then(Value::as_str);
                anstream::println!("{}", document.context("the agent tells no document")?);
            }
        }
        Ok(())
    }
}

impl Authority {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (asking, answer) = match self {
            Self::Show(asking) => {
                let answer = asking.ask("/authority").await?;
                (asking, answer)
            }
            Self::Prepare(asking) => {
                let answer = asking.tell("/authority/prepare").await?;
                (asking, answer)
            }
            Self::Activate(asking) => {
                let answer = asking.tell("/authority/activate").await?;
                (asking, answer)
            }
            Self::Taint(OfOne { id, asking }) => {
                let answer = asking.tell(&one("taint", &id)?).await?;
                (asking, answer)
            }
            Self::Revoke(OfOne { id, asking }) => {
                let answer = asking.tell(&one("revoke", &id)?).await?;
                (asking, answer)
            }
        };
        asking.show(&answer, &["kind", "id", "status", "signsFrom", "ends"]);
        Ok(())
    }
}

/// The path of something that is done to one root or key.
fn one(what: &str, id: &str) -> anyhow::Result<String> {
    let is_hex = id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if id.is_empty() || !is_hex {
        bail!("`{id}` is no ID; `postern-agent authority show` lists them");
    }
    Ok(format!("/authority/{what}/{id}"))
}

fn bundle(answer: &Value) -> Option<X509Bundle> {
    let trust_domain = TrustDomain::parse(answer["trustDomain"].as_str()?).ok()?;
    let run = BASE64_STANDARD.decode(answer["x509"].as_str()?).ok()?;
    X509Bundle::from_der_run(trust_domain, &run).ok()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}
