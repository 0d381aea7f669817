//! The admin socket: what the agent knows, as JSON over HTTP. For its owner alone.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_policies::model::workload::OnDrift;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::net::UnixListener;

use crate::agent::Agent;

/// Answers until the task is dropped.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
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
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    agent: Arc<Agent>,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let value = match (request.method(), request.uri().path()) {
        (&Method::GET, "/workloads") => Some(workloads(&agent)),
        (&Method::GET, "/bundle") => Some(bundle(&agent)),
        (&Method::GET, "/drift") => Some(drift(&agent)),
        _ => None,
    };
    let status = if value.is_some() {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    };
    let body = value.unwrap_or_else(|| json!({"error": "there is no such thing"}));
    Response::builder()
        .status(status)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.to_string().into()))
}

fn workloads(agent: &Agent) -> Value {
    let set = agent.registry.current();
    set.workloads()
        .map(|workload| {
            json!({
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
