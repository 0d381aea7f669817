//! The admin socket: what the agent knows, as JSON over HTTP. For its owner alone.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    net::UnixListener,
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::{
    agent::Agent,
    authority::{Standing, StateError},
    caller::PinnedProcess,
    drift::Deviation,
    registry::RegistryError,
};

/// Answers until the task is dropped.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let own = rustix::process::geteuid().as_raw();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(50)).await;
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
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Who does not send all, or does not read the answer, does not keep the place.
            let _ = timeout(CONNECTION_TIME, served).await;
            drop(permit);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    agent: Arc<Agent>,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let answered = answer_of(request, &agent).await;
    let (status, body) = answered.unwrap_or_else(|| {
        let error = "it failed, and the log says where; nothing more is known";
        (StatusCode::INTERNAL_SERVER_ERROR, json!({"error": error}))
    });
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.to_string().into()))
}

type Answer = (StatusCode, Value);

/// None when the thread that looked or changed something panicked.
async fn answer_of(request: Request<Incoming>, agent: &Arc<Agent>) -> Option<Answer> {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let path = uri.path();
    let shown: fn(&Agent) -> Value = match (&method, path) {
        (&Method::GET, "/workloads") => workloads,
        (&Method::GET, "/bundle") => bundle,
        (&Method::GET, "/drift") => drift,
        (&Method::GET, "/authority") => authority,
        (&Method::POST, "/workloads") => {
            let replace = uri.query() == Some("replace=true");
            return create(agent, request.into_body(), replace).await;
        }
        (&Method::GET, _) if path.starts_with("/learn/") => {
            let name = path.trim_start_matches("/learn/").to_owned();
            return agent.look(move |agent| learn(agent, &name)).await;
        }
        (&Method::GET, _) => match path.strip_prefix("/explain/").map(str::parse) {
            Some(Ok(pid)) => return agent.look(move |agent| explain(agent, pid)).await,
            _ => return Some(nothing()),
        },
        (&Method::DELETE, _) => match path.strip_prefix("/workloads/").map(str::to_owned) {
            Some(name) => return agent.change(move |agent| delete(agent, &name)).await,
            None => return Some(nothing()),
        },
        (&Method::POST, _) => match path.strip_prefix("/authority/").map(str::to_owned) {
            Some(what) => {
                return agent
                    .change(move |agent| change_authority(agent, &what))
                    .await;
            }
            None => return Some(nothing()),
        },
        _ => return Some(nothing()),
    };
    let value = agent.look(shown).await?;
    Some((StatusCode::OK, value))
}

fn nothing() -> Answer {
    (
        StatusCode::NOT_FOUND,
        json!({"error": "there is no such thing"}),
    )
}

/// Registers the Workloads of a text, all or none.
async fn create(agent: &Arc<Agent>, body: Incoming, replace: bool) -> Option<Answer> {
    let text = match Limited::new(body, MAX_TEXT_BYTES).collect().await {
        Ok(body) => body.to_bytes().to_vec(),
        Err(_) => {
            let error = format!("at most {MAX_TEXT_BYTES} bytes are read; send fewer at once");
            return Some((StatusCode::PAYLOAD_TOO_LARGE, json!({"error": error})));
        }
    };
    let create = move |agent: &Agent| {
        let names = agent.registry.create(text, replace);
        changed(agent, "workloads were registered", names)
    };
    agent.change(create).await
}

fn delete(agent: &Agent, name: &str) -> Answer {
    let deleted = agent.registry.delete(name).map(|()| vec![name]);
    changed(agent, "a workload was taken out of the registry", deleted)
}

fn changed<T: ToString>(agent: &Agent, what: &str, done: Result<Vec<T>, RegistryError>) -> Answer {
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
                RegistryError::Mistakes(_)
                | RegistryError::Unfit(..)
                | RegistryError::Rules(..)
                | RegistryError::TooLarge { .. }
                | RegistryError::Nothing => StatusCode::BAD_REQUEST,
                RegistryError::Read(_) | RegistryError::Store(_) => {
                    agent.metrics.state_writes_failed.inc();
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            };
            (status, json!({"error": error.to_string()}))
        }
    }
}

fn explain(agent: &Agent, pid: i32) -> Answer {
    let explained = PinnedProcess::by_number(pid)
        .map_err(|error| error.to_string())
        .and_then(|process| agent.explain(&process).map_err(|error| error.to_string()));
    match explained {
        Ok(value) => (StatusCode::OK, value),
        Err(error) => (
            StatusCode::NOT_FOUND,
            json!({"error": format!("process {pid} cannot be looked at: {error}")}),
        ),
    }
}

/// What the pods of a Workload do at this moment.
fn learn(agent: &Agent, name: &str) -> Answer {
    match agent.learn(name) {
        Some(learnt) => (StatusCode::OK, json!(learnt)),
        None => {
            let error = format!(
                "there is no Workload `{name}`; `workload list` has them as `namespace/name`"
            );
            (StatusCode::NOT_FOUND, json!({ "error": error }))
        }
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
fn change_authority(agent: &Agent, what: &str) -> Answer {
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
                "onDrift": workload.on_drift.as_str(),
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
    agent.drift.list().iter().map(deviation).collect()
}

fn deviation(deviation: &Deviation) -> Value {
    let mut shown = json!({
        "time": rfc3339(deviation.time),
        "workload": deviation.workload.to_string(),
        "spiffeID": deviation.spiffe_id,
        "kind": deviation.kind.as_str(),
        "what": deviation.what,
        "pid": deviation.pid,
        "container": deviation.container,
        "answer": deviation.answer.as_str(),
        "count": deviation.count,
    });
    if let (Value::Object(members), Some(rule)) = (&mut shown, &deviation.rule) {
        members.insert("rule".to_owned(), json!(rule));
    }
    shown
}

const MAX_CONNECTIONS: usize = 64;

/// Until when a request must have been said, and until when its answer read.
const HEAD_TIME: Duration = Duration::from_secs(5);
const CONNECTION_TIME: Duration = Duration::from_secs(60);

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
