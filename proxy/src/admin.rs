//! What those who run the proxy can ask it and tell it, at the admin listener. Each path is described
//! in docs/operation.md.
//!
//! Who may ask at all is decided before (`telemetry/caller.rs`). What changes something is asked for
//! by POST; GET only tells.

mod config_dump;
mod query;

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
    request::Parts,
};
use http_body_util::{Either, Full};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    app::Proxy,
    telemetry::{
        listener::{Administration, Special, Told, only, told},
        log_filter::Change,
        tap::{MAX_TAPS, Wanted},
    },
};
use query::Query;

/// What the admin listener answers.
pub(crate) fn of(proxy: &Arc<Proxy>) -> Administration {
    let proxy = proxy.clone();
    Arc::new(move |asked| {
        let proxy = proxy.clone();
        Box::pin(async move { answer(&proxy, asked).await })
    })
}

async fn answer(proxy: &Arc<Proxy>, asked: Parts) -> Told {
    let query = asked.uri.query().unwrap_or_default();
    match (asked.uri.path(), &asked.method) {
        ("/status", &Method::GET) => json_of(status(proxy)).await,
        ("/connections", &Method::GET) => json_of(proxy.connections.shown()).await,
        ("/config_dump", &Method::GET) => json_of(config_dump::of(proxy)).await,
        ("/tap", &Method::GET) => tap(proxy, query),
        ("/status" | "/connections" | "/config_dump" | "/tap", _) => only(&["GET"]),
        ("/log_level", &Method::GET) => {
            json_of(json!({"filter": proxy.log_filter.current()})).await
        }
        ("/log_level", &Method::POST | &Method::PUT) => match change(proxy, query) {
            Ok(filter) => json_of(json!({"filter": filter})).await,
            Err(why) => told(StatusCode::BAD_REQUEST, format!("{why}\n")),
        },
        ("/log_level", _) => only(&["GET", "POST", "PUT"]),
        ("/shutdown", &Method::POST) => {
            tracing::info!("told to drain at the admin listener");
            let mut answer = json_of(json!({"draining": true})).await;
            *answer.status_mut() = StatusCode::ACCEPTED;
            // Nobody is left without this answer by the end that it speaks of.
            let then = Special::Then(proxy.told_to_end.clone());
            answer.extensions_mut().insert(then);
            answer
        }
        ("/shutdown", _) => only(&["POST"]),
        _ => told(StatusCode::NOT_FOUND, PATHS),
    }
}

/// JSON, written by a thread that carries no traffic: of many connections it is long.
async fn json_of(value: impl Serialize + Send + 'static) -> Told {
    let written = tokio::task::spawn_blocking(move || serde_json::to_vec(&value)).await;
    let Ok(Ok(text)) = written else {
        return told(StatusCode::INTERNAL_SERVER_ERROR, "cannot be told\n");
    };
    let mut answer = Response::new(Either::Left(Full::new(Bytes::from(text))));
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

/// How the proxy is, in short.
fn status(proxy: &Proxy) -> Value {
    let missing = proxy.missing();
    let identity = proxy.identity().borrow().clone();
    let policies = proxy.policies().borrow().clone();
    let ends = identity.as_ref().and_then(|identity| {
        let left = identity
            .svid()
            .not_after()
            .duration_since(SystemTime::now());
        Some(left.ok()?.as_secs())
    });
    json!({
        "ready": missing.is_empty(),
        "missing": missing,
        "identity": identity.as_ref().map(|identity| identity.id().as_str()),
        "identityEndsInSeconds": ends,
        "workload": proxy.own_workload().map(|name| name.to_string()),
        "workloads": policies.map(|set| set.workloads().count()),
        "connections": proxy.connections.count(),
        "draining": proxy.draining.is_cancelled(),
    })
}

/// Another filter for the log: `level` or `filter`, one of them.
fn change(proxy: &Proxy, query: &str) -> Result<String, String> {
    let query = Query::read(query, &["level", "filter"])?;
    let change = match (query.get("level"), query.get("filter")) {
        (Some(level), None) => Change::level(level),
        (None, Some(filter)) => Change::filter(filter),
        _ => return Err("say `?level=debug` or `?filter=postern_proxy::tls=debug`".to_owned()),
    };
    let changed = change.and_then(|change| proxy.log_filter.change(&change));
    changed.map_err(|refused| refused.to_string())
}

/// Live decisions, for as long as they are read.
fn tap(proxy: &Proxy, query: &str) -> Told {
    let wanted = match wanted(query) {
        Ok(wanted) => wanted,
        Err(why) => return told(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let Some((lines, ends)) = proxy.access_log.taps().open(wanted) else {
        let text = format!("{MAX_TAPS} taps are open, which is the most; end one of them\n");
        return told(StatusCode::TOO_MANY_REQUESTS, text);
    };
    tracing::info!(query, "a tap is opened");
    let mut answer = Response::new(Either::Right(lines));
    answer.extensions_mut().insert(Special::Until(ends));
    let headers = answer.headers_mut();
    let lines = HeaderValue::from_static("application/x-ndjson");
    headers.insert(CONTENT_TYPE, lines);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn wanted(query: &str) -> Result<Wanted, String> {
    let query = Query::read(query, &["verdict", "source", "path", "direction"])?;
    Ok(Wanted {
        verdict: query.one_of("verdict", &["allow", "deny"])?,
        direction: query.one_of("direction", &["inbound", "outbound"])?,
        source: query.identity("source")?,
        path: query.path("path")?,
    })
}

const PATHS: &str = "not found; there are /status, /connections, /config_dump, /log_level, /tap, \
                     /shutdown, /metrics, /healthz/ready and /healthz/live\n";
