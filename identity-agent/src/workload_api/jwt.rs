//! The methods of JWT-SVIDs. Spec: SPIFFE Workload API section 6.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use postern_policies::model::workload::Workload;
use postern_proto::workload_api::{
    Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};
use postern_spiffe::{JwtSvid, SpiffeId, TrustDomain};
use prost_types::{ListValue, Struct, Value, value::Kind};
use tonic::Status;

use super::stream::unavailable;
use crate::{
    admission::on_a_thread,
    agent::{Agent, Entitled},
    audit,
    caller::PinnedProcess,
};

/// Tokens for the audiences that were asked for: one of each identity, or of the one named.
pub(super) async fn fetch(
    agent: &Arc<Agent>,
    process: &Arc<PinnedProcess>,
    request: JwtsvidRequest,
) -> Result<JwtsvidResponse, Status> {
    let audience = audiences(request.audience)?;
    let wanted = match request.spiffe_id.as_str() {
        "" => None,
        text => Some(SpiffeId::parse(text).map_err(|error| {
            Status::invalid_argument(format!("spiffe_id is no SPIFFE ID: {error}"))
        })?),
    };
    let only = wanted.clone();
    audit::room(agent).await?;
    let issued = on_a_thread(agent, process, FETCH, move |agent, entitled| {
        issue(agent, entitled, &audience, wanted.as_ref())
    });
    let (mut entitled, answer) = issued.await?;
    let is_told = |workload: &Workload| only.as_ref().is_none_or(|id| *id == workload.spiffe_id);
    entitled.workloads.retain(is_told);
    audit::tells(agent, FETCH, process, &entitled, &[])?;
    Ok(answer)
}

fn issue(
    agent: &Agent,
    entitled: &Entitled,
    audience: &[String],
    wanted: Option<&SpiffeId>,
) -> Result<JwtsvidResponse, Status> {
    let is_wanted = |workload: &&Workload| wanted.is_none_or(|id| *id == workload.spiffe_id);
    let now = SystemTime::now();
    let mut svids = Vec::new();
    for workload in entitled.workloads.iter().filter(is_wanted) {
        let token = agent
            .authority
            .issue_jwt(&workload.spiffe_id, audience, workload.jwt_ttl, now)
            .map_err(|error| unavailable(&error))?;
        agent.metrics.jwt_svids_issued.inc();
        tracing::info!(
            workload = %workload.name,
            spiffe_id = %workload.spiffe_id,
            ?audience,
            "a token was issued"
        );
        svids.push(Jwtsvid {
            spiffe_id: workload.spiffe_id.to_string(),
            svid: token,
            hint: workload.hint.clone().unwrap_or_default(),
        });
    }
    if svids.is_empty() {
        // It has identities, and the one that it names is not among them.
        return Err(Status::permission_denied("no identity issued"));
    }
    Ok(JwtsvidResponse { svids })
}

/// At least one, none of them empty, and no more than anybody needs.
fn audiences(all: Vec<String>) -> Result<Vec<String>, Status> {
    if all.is_empty() || all.iter().any(String::is_empty) {
        let text = "audience must be specified: at least one, none of them empty";
        return Err(Status::invalid_argument(text));
    }
    if all.len() > MAX_AUDIENCES || all.iter().any(|one| one.len() > MAX_AUDIENCE_BYTES) {
        let text =
            format!("audience: at most {MAX_AUDIENCES} of at most {MAX_AUDIENCE_BYTES} bytes each");
        return Err(Status::invalid_argument(text));
    }
    Ok(all)
}

/// Verifies a token for somebody who does not want to do it himself: one of the own trust domain,
/// or of one that the caller federates with.
pub(super) async fn validate(
    agent: &Arc<Agent>,
    process: &Arc<PinnedProcess>,
    request: ValidateJwtsvidRequest,
) -> Result<ValidateJwtsvidResponse, Status> {
    if request.audience.is_empty() || request.svid.is_empty() {
        return Err(Status::invalid_argument(
            "audience and svid must be specified",
        ));
    }
    let turn = agent.turns.of(process.uid()).await;
    let process = process.clone();
    let verified = agent.look(move |agent| {
        let _turn = turn;
        let bundles = agent.jwt_bundles(&federates_with(agent, &process)?);
        let now = SystemTime::now();
        Ok::<_, Status>(JwtSvid::verify(
            &request.svid,
            &request.audience,
            &bundles,
            now,
        ))
    });
    let verified = verified
        .await
        .ok_or_else(|| Status::internal("the token could not be looked at"))?;
    let svid = verified?.map_err(|refused| Status::invalid_argument(refused.to_string()))?;
    let mut claims = svid.claims().clone();
    // Told as a list, however it was written.
    if let Some(audience) = claims.get_mut("aud")
        && audience.is_string()
    {
        *audience = vec![audience.take()].into();
    }
    Ok(ValidateJwtsvidResponse {
        spiffe_id: svid.id().to_string(),
        claims: Some(message(claims)),
    })
}

/// The trust domains that a caller federates with. One without an identity has none, and is no less
/// answered.
///
/// # Errors
/// `Unavailable` where nobody can look which identities it has.
fn federates_with(agent: &Agent, process: &PinnedProcess) -> Result<BTreeSet<TrustDomain>, Status> {
    if agent.federation.peers().is_empty() {
        return Ok(BTreeSet::new());
    }
    match agent.entitled(process) {
        Ok(entitled) => Ok(entitled.federates_with()),
        Err(refusal) if refusal.is_nobodys_fault() => Err(Status::unavailable(
            "the agent cannot look for now; try again",
        )),
        Err(_) => Ok(BTreeSet::new()),
    }
}

fn message(object: serde_json::Map<String, serde_json::Value>) -> Struct {
    let fields = object.into_iter();
    let fields: BTreeMap<String, Value> =
        fields.map(|(name, value)| (name, of_json(value))).collect();
    Struct { fields }
}

fn of_json(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(flag) => Kind::BoolValue(flag),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(items) => Kind::ListValue(ListValue {
            values: items.into_iter().map(of_json).collect(),
        }),
        serde_json::Value::Object(object) => Kind::StructValue(message(object)),
    };
    Value { kind: Some(kind) }
}

const FETCH: &str = "FetchJWTSVID";

const MAX_AUDIENCES: usize = 32;
const MAX_AUDIENCE_BYTES: usize = 1024;
