//! The admin socket: what the agent knows, as JSON over HTTP. For its owner alone.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_policies::model::workload::OnDrift;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{net::UnixListener, sync::Semaphore};

use crate::{
    agent::Agent,
    authority::{Standing, StateError},
    caller::PinnedProcess,
    registry::RegistryError,
};

/// Answers until the task is dropped.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let own = rustix::process::geteuid().as_raw();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let uid = stream.peer_cred().map(|peer| peer.uid());
        if !uid.is_ok_and(|uid| uid == 0 || uid == own) {
            tracing::warn!("somebody else has reached the admin socket, and is not heard");
            continue;
        }
        let Ok(permit) = free.clone().try_acquire_owned() else {
            continue;
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, agent.clone()));
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(5))
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(permit);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    agent: Arc<Agent>,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let path = uri.path();
    let (status, body) = match (&method, path) {
        (&Method::GET, "/workloads") => (StatusCode::OK, workloads(&agent)),
        (&Method::GET, "/bundle") => (StatusCode::OK, bundle(&agent)),
        (&Method::GET, "/drift") => (StatusCode::OK, drift(&agent)),
        (&Method::GET, "/authority") => (StatusCode::OK, authority(&agent)),
        (&Method::POST, "/workloads") => {
            let replace = uri.query() == Some("replace=true");
            create(&agent, request.into_body(), replace).await
        }
        (&Method::DELETE, _) => match path.strip_prefix("/workloads/") {
            Some(name) => delete(&agent, name),
            None => nothing(),
        },
        (&Method::GET, _) => match path.strip_prefix("/explain/").map(str::parse) {
            Some(Ok(pid)) => explain(agent.clone(), pid).await,
            _ => nothing(),
        },
        (&Method::POST, _) => match path.strip_prefix("/authority/") {
            Some(what) => change_authority(&agent, what),
            None => nothing(),
        },
        _ => nothing(),
    };
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.to_string().into()))
}

fn nothing() -> (StatusCode, Value) {
    (
        StatusCode::NOT_FOUND,
        json!({"error": "there is no such thing"}),
    )
}

/// Registers the Workloads of a text, all or none.
async fn create(agent: &Agent, body: Incoming, replace: bool) -> (StatusCode, Value) {
    let text = match Limited::new(body, MAX_TEXT_BYTES).collect().await {
        Ok(body) => body.to_bytes().to_vec(),
        Err(_) => {
            let error = format!("at most {MAX_TEXT_BYTES} bytes are read; send fewer at once");
            return (StatusCode::PAYLOAD_TOO_LARGE, json!({"error": error}));
        }
    };
    let names = agent.registry.create(text, replace);
    changed(agent, "workloads were registered", names)
}

fn delete(agent: &Agent, name: &str) -> (StatusCode, Value) {
    let deleted = agent.registry.delete(name).map(|()| vec![name]);
    changed(agent, "a workload was taken out of the registry", deleted)
}

fn changed<T: ToString>(
    agent: &Agent,
    what: &str,
    done: Result<Vec<T>, RegistryError>,
) -> (StatusCode, Value) {
    match done {
        Ok(names) => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            tracing::warn!(?names, "{what}");
            agent.announce_documents();
            let names = names.iter().map(|name| json!({"name": name}));
            (StatusCode::OK, names.collect())
        }
        Err(error) => {
            let status = match error {
                RegistryError::Exists(_) => StatusCode::CONFLICT,
                RegistryError::Unknown(_) => StatusCode::NOT_FOUND,
                RegistryError::Mistakes(_) | RegistryError::Nothing => StatusCode::BAD_REQUEST,
                RegistryError::Read(_) | RegistryError::Store(_) => {
                    agent.metrics.state_writes_failed.inc();
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            };
            (status, json!({"error": error.to_string()}))
        }
    }
}

async fn explain(agent: Arc<Agent>, pid: i32) -> (StatusCode, Value) {
    let explained = tokio::task::spawn_blocking(move || {
        let process = PinnedProcess::by_number(pid).map_err(|error| error.to_string())?;
        agent.explain(&process).map_err(|error| error.to_string())
    });
    match explained.await {
        Ok(Ok(value)) => (StatusCode::OK, value),
        Ok(Err(error)) => (
            StatusCode::NOT_FOUND,
            json!({"error": format!("process {pid} cannot be looked at: {error}")}),
        ),
        Err(_) => nothing(),
    }
}

fn authority(agent: &Agent) -> Value {
    let all = agent.authority.show(SystemTime::now());
    let each = all.iter().map(|one| {
        json!({
            "kind": one.kind,
            "id": one.id,
            "status": match one.standing {
                Standing::Prepared => "prepared",
                Standing::Active => "active",
                Standing::Retired => "retired",
                Standing::Tainted => "tainted",
            },
            "signsFrom": rfc3339(one.active_from),
            "ends": rfc3339(one.not_after),
        })
    });
    each.collect()
}

/// `prepare`, `activate`, `taint/ID` or `revoke/ID`.
fn change_authority(agent: &Agent, what: &str) -> (StatusCode, Value) {
    let now = SystemTime::now();
    let done = match what.split_once('/') {
        None if what == "prepare" => agent.authority.prepare(now),
        None if what == "activate" => agent.authority.activate(now),
        Some(("taint", id)) => agent.authority.taint(id, now),
        Some(("revoke", id)) => agent.revoke_signer(id, now),
        _ => return nothing(),
    };
    match done {
        Ok(()) => {
            tracing::warn!(what, "the authority was changed by hand");
            agent.renew_lists();
            agent.announce();
            (StatusCode::OK, authority(agent))
        }
        Err(error) => {
            if matches!(error, StateError::Io { .. }) {
                agent.metrics.state_writes_failed.inc();
            }
            (StatusCode::CONFLICT, json!({"error": error.to_string()}))
        }
    }
}

fn workloads(agent: &Agent) -> Value {
    let (set, registered) = (agent.registry.current(), agent.registry.registered());
    set.workloads()
        .map(|workload| {
            let name = workload.name.to_string();
            json!({
                "source": if registered.contains(&name) { "registry" } else { "folder" },
                "document": workload.to_document(),
                "name": workload.name.to_string(),
                "spiffeID": workload.spiffe_id.as_str(),
                "labels": workload.labels,
                "selectors": workload.selectors.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "hint": workload.hint,
                "addresses": workload.addresses,
                "ports": workload.ports.iter().map(|port| json!({"name": port.name, "port": port.port})).collect::<Vec<_>>(),
                "onDrift": match workload.on_drift { OnDrift::Alert => "alert", OnDrift::Revoke => "revoke" },
            })
        })
        .collect()
}

fn bundle(agent: &Agent) -> Value {
    json!({
        "trustDomain": agent.authority.trust_domain().as_str(),
        "x509": BASE64_STANDARD.encode(agent.authority.bundle()),
        "jwt": agent.authority.jwt_bundle().to_json(),
        "document": agent.bundle_document().and_then(|document| document.to_json().ok()),
    })
}

fn drift(agent: &Agent) -> Value {
    agent
        .drift
        .list()
        .iter()
        .map(|deviation| {
            json!({
                "time": rfc3339(deviation.time),
                "workload": deviation.workload.to_string(),
                "spiffeID": deviation.spiffe_id,
                "kind": "exec",
                "what": deviation.what,
                "pid": deviation.pid,
                "container": null,
                "answer": match deviation.answer { OnDrift::Alert => "alerted", OnDrift::Revoke => "revoked" },
                "count": deviation.count,
            })
        })
        .collect()
}

const MAX_CONNECTIONS: usize = 64;

/// As large as a file of documents may be.
const MAX_TEXT_BYTES: usize = 16 << 20;

fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}
