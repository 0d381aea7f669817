//! `api fetch jwt` and `api validate jwt`, with SPIRE's formats.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::{Args, ValueEnum};
use postern_proto::workload_api::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
};
use prost_types::value::Kind;
use serde_json::{Value, json};
use tonic::Code;

use super::{
    Endpoint, Output,
    client::{connect, refused, request, within},
    duration,
};

/// What is asked for.
#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// For whom the tokens are meant; separated by commas, or given more than once
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    audience: Vec<String>,

    /// The one identity that is wanted
    #[arg(long = "spiffe-id", visible_alias = "spiffeID", value_name = "ID")]
    spiffe_id: Option<String>,
}

impl Wanted {
    /// Is nothing of it given? It means nothing for X.509.
    pub(super) fn is_empty(&self) -> bool {
        self.audience.is_empty() && self.spiffe_id.is_none()
    }
}

/// Fetches tokens, and the keys that verify them.
pub(super) async fn fetch(
    endpoint: &Path,
    wanted: Wanted,
    output: Option<Output>,
    limit: Duration,
    silent: bool,
) -> anyhow::Result<()> {
    ensure!(
        !wanted.audience.is_empty(),
        "audience must be specified: -audience NAME"
    );
    let asked = async {
        let mut client = connect(endpoint).await?;
        let wanted = JwtsvidRequest {
            audience: wanted.audience,
            spiffe_id: wanted.spiffe_id.unwrap_or_default(),
        };
        let svids = client
            .fetch_jwtsvid(request(wanted))
            .await
            .map_err(|status| refused(&status))?
            .into_inner();
        let mut bundles = client
            .fetch_jwt_bundles(request(JwtBundlesRequest {}))
            .await
            .map_err(|status| refused(&status))?
            .into_inner();
        let bundles = bundles.message().await.map_err(|status| refused(&status))?;
        Ok((
            svids,
            bundles.context("the agent ended the stream without an answer")?,
        ))
    };
    let (svids, bundles) = within(limit, asked).await?;
    if silent {
        return Ok(());
    }
    match Output::or_default(output) {
        Output::Json => anstream::println!("{}", json_of(&svids, &bundles)),
        Output::Pretty => pretty(&svids, &bundles),
    }
    Ok(())
}

/// A list of two: the tokens and the keys, with the names of the contract.
fn json_of(svids: &JwtsvidResponse, bundles: &JwtBundlesResponse) -> Value {
    let svids: Vec<Value> = svids
        .svids
        .iter()
        .map(|svid| json!({"hint": svid.hint, "spiffe_id": svid.spiffe_id, "svid": svid.svid}))
        .collect();
    let bundles: BTreeMap<&String, String> = bundles
        .bundles
        .iter()
        .map(|(name, bundle)| (name, BASE64_STANDARD.encode(bundle)))
        .collect();
    json!([{"svids": svids}, {"bundles": bundles}])
}

fn pretty(svids: &JwtsvidResponse, bundles: &JwtBundlesResponse) {
    for svid in &svids.svids {
        anstream::println!("token({}):\n\t{}", svid.spiffe_id, svid.svid);
        if !svid.hint.is_empty() {
            anstream::println!("hint({}):\n\t{}", svid.spiffe_id, svid.hint);
        }
    }
    let bundles: BTreeMap<_, _> = bundles.bundles.iter().collect();
    for (name, bundle) in bundles {
        anstream::println!("bundle({name}):\n\t{}", String::from_utf8_lossy(bundle));
    }
}

/// Has the agent verify a token
#[derive(Debug, Args)]
pub(super) struct Validate {
    /// Which kind
    #[arg(value_enum)]
    kind: Kinds,

    #[command(flatten)]
    endpoint: Endpoint,

    /// Whom the token must be meant for
    #[arg(long, value_name = "NAME")]
    audience: String,

    /// The token
    #[arg(long, value_name = "TOKEN")]
    svid: String,

    /// `pretty` on a terminal and `json` elsewhere, unless given
    #[arg(long, value_enum)]
    output: Option<Output>,

    /// How long to wait
    #[arg(long, default_value = "5s", value_parser = duration)]
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kinds {
    /// JWT-SVIDs
    Jwt,
}

impl Validate {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Kinds::Jwt = self.kind;
        let path = self.endpoint.path()?;
        let asked = async {
            let mut client = connect(&path).await?;
            let question = ValidateJwtsvidRequest {
                audience: self.audience,
                svid: self.svid,
            };
            match client.validate_jwtsvid(request(question)).await {
                Ok(answer) => Ok(answer.into_inner()),
                Err(status) if status.code() == Code::InvalidArgument => {
                    bail!("SVID is not valid: {}", status.message())
                }
                Err(status) => Err(refused(&status)),
            }
        };
        let answer = within(self.timeout, asked).await?;
        let claims = answer.claims.unwrap_or_default();
        let claims = Value::Object(object(claims));
        match Output::or_default(self.output) {
            Output::Json => {
                anstream::println!(
                    "{}",
                    json!({"claims": claims, "spiffe_id": answer.spiffe_id})
                );
            }
            Output::Pretty => {
                anstream::println!("SVID is valid.\nSPIFFE ID : {}", answer.spiffe_id);
                anstream::println!("Claims    : {claims}");
            }
        }
        Ok(())
    }
}

fn object(message: prost_types::Struct) -> serde_json::Map<String, Value> {
    let fields = message.fields.into_iter();
    fields.map(|(name, value)| (name, to_json(value))).collect()
}

fn to_json(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => flag.into(),
        // The contract has no whole numbers; times are.
        Some(Kind::NumberValue(number)) => match format!("{number}").parse::<i64>() {
            Ok(whole) => whole.into(),
            Err(_) => number.into(),
        },
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(to_json).collect(),
        Some(Kind::StructValue(inner)) => Value::Object(object(inner)),
    }
}
