//! Spans of requests, for a collector that speaks the OpenTelemetry Protocol.
//!
//! A span is made from the line of the access log, so that both say the same. Here is what becomes a
//! span and how; `export` sends them. Spec: OTLP 1.x; semantic conventions for HTTP spans 1.2x.

mod export;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, Method};
use postern_proto::otlp::{
    AnyValue, KeyValue, Span, SpanKind, Status, StatusCode, any_value::Value,
};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

pub(crate) use self::export::Exporter;
use crate::{access_log::Record, config::Otlp, http::trace::TraceContext};

/// Decides whether a trace that begins here is recorded. For others their first service has decided.
pub(crate) fn sample(otlp: Option<&Otlp>, trace: &mut TraceContext, headers: &mut HeaderMap) {
    if let Some(otlp) = otlp
        && trace.parent().is_none()
        && is_chosen(trace, otlp.sample)
    {
        trace.record(headers);
    }
}

/// The same answer for a trace wherever it is asked: its number is random.
fn is_chosen(trace: &TraceContext, share: f64) -> bool {
    let [.., a, b, c, d] = trace.trace().bytes();
    let number = f64::from(u32::from_be_bytes([a, b, c, d]));
    number < share * (f64::from(u32::MAX) + 1.0)
}

/// The way to the task that sends spans. Never waits.
#[derive(Debug, Clone)]
pub(crate) struct Spans {
    queue: mpsc::Sender<Queued>,
    /// How many bytes may still wait.
    room: Arc<Semaphore>,
    lost: Counter,
}

/// A span that waits, and its share of the bytes until it is sent.
#[derive(Debug)]
struct Queued {
    span: Span,
    room: OwnedSemaphorePermit,
}

impl Spans {
    pub(crate) fn push(&self, record: &Record, trace: &TraceContext, took: Duration) {
        if !self.has_taken(record, trace, took) {
            self.lost.inc();
        }
    }

    fn has_taken(&self, record: &Record, trace: &TraceContext, took: Duration) -> bool {
        let Ok(place) = self.queue.try_reserve() else {
            return false;
        };
        let span = span(record, trace, took);
        let Ok(bytes) = u32::try_from(weight(&span)) else {
            return false;
        };
        let Ok(room) = self.room.clone().try_acquire_many_owned(bytes) else {
            return false;
        };
        place.send(Queued { span, room });
        true
    }
}

fn span(record: &Record, trace: &TraceContext, took: Duration) -> Span {
    let end = SystemTime::now();
    let is_inbound = record.is_inbound();
    let status = record.status.unwrap_or_default();
    let is_error = status >= 500 || (!is_inbound && status >= 400);
    let mut attributes = attributes(record);
    if is_error {
        attributes.push(text("error.type", status.to_string()));
    }
    Span {
        trace_id: trace.trace().bytes().to_vec(),
        span_id: trace.span().bytes().to_vec(),
        parent_span_id: trace
            .parent()
            .map(|parent| parent.bytes().to_vec())
            .unwrap_or_default(),
        name: name(record),
        kind: match is_inbound {
            true => SpanKind::Server,
            false => SpanKind::Client,
        }
        .into(),
        start_time_unix_nano: nanoseconds(end - took),
        end_time_unix_nano: nanoseconds(end),
        attributes,
        status: is_error.then(|| Status {
            message: String::new(),
            code: StatusCode::Error.into(),
        }),
        flags: u32::from(trace.flags()),
    }
}

/// About how many bytes of memory a span takes.
fn weight(span: &Span) -> usize {
    let text = |one: &KeyValue| match one.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.len(),
        _ => 0,
    };
    let attributes = span.attributes.iter();
    let attributes = attributes.map(|one| size_of::<KeyValue>() + one.key.len() + text(one));
    size_of::<Span>() + span.name.len() + attributes.sum::<usize>()
}

fn name(record: &Record) -> String {
    let method = record.method.as_ref();
    let mut name = method.map(ToString::to_string).unwrap_or_default();
    name.truncate(name.floor_char_boundary(MAX_TEXT));
    name
}

fn attributes(record: &Record) -> Vec<KeyValue> {
    let told = record.told();
    let mut all = Vec::with_capacity(16);
    let mut say = |key, value: Option<&str>| all.extend(value.map(|value| text(key, value.into())));
    say(
        "http.request.method",
        record.method.as_ref().map(Method::as_str),
    );
    say("url.path", record.path.as_deref());
    say("url.scheme", Some(told.scheme));
    say("postern.source.spiffe_id", told.source_identity);
    say("postern.destination.spiffe_id", told.destination_identity);
    say("postern.destination.workload", told.workload.as_deref());
    say("postern.verdict", record.verdict);
    say("postern.stage", record.stage);
    say("postern.policy.kind", told.kind);
    say("postern.policy", told.policy);
    say("postern.reason", record.reason.as_deref());
    say("postern.request_id", told.request_id);
    for (address, port, of) in [
        ("server.address", "server.port", told.destination),
        ("client.address", "client.port", told.source),
    ] {
        let (ip, number) = of;
        all.push(text(address, ip.to_string()));
        all.push(number_of(port, number.into()));
    }
    if let Some(status) = record.status {
        all.push(number_of("http.response.status_code", status.into()));
    }
    let sent = i64::try_from(record.bytes_sent).unwrap_or(i64::MAX);
    all.push(number_of("http.response.body.size", sent));
    all
}

/// What is longer is cut: whoever calls chooses paths and methods. Documented: docs/operation.md.
const MAX_TEXT: usize = 1024;

fn text(key: &str, mut value: String) -> KeyValue {
    value.truncate(value.floor_char_boundary(MAX_TEXT));
    attribute(key, Value::StringValue(value))
}

fn number_of(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

fn nanoseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::{is_chosen, sample};
    use crate::{config::Otlp, http::trace::TraceContext};

    fn otlp(share: f64) -> Otlp {
        Otlp {
            endpoint: "http://127.0.0.1:4317".parse().unwrap(),
            sample: share,
            service_name: None,
        }
    }

    #[test]
    fn a_share_of_the_traces_that_begin_here_is_recorded_and_of_others_what_was_decided() {
        for (share, least, most) in [(0.0, 0, 0), (1.0, 1_000, 1_000), (0.5, 400, 600)] {
            let chosen = (0..1_000)
                .map(|_| TraceContext::take(&mut HeaderMap::new()))
                .filter(|trace| is_chosen(trace, share))
                .count();
            assert!((least..=most).contains(&chosen), "{share}: {chosen}");
        }
        for (flags, share) in [("00", 1.0), ("01", 0.0)] {
            let mut headers = HeaderMap::new();
            let said = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
            headers.insert("traceparent", said.parse().unwrap());
            let mut trace = TraceContext::take(&mut headers);
            sample(Some(&otlp(share)), &mut trace, &mut headers);
            assert_eq!(trace.is_recorded(), flags == "01");
        }
        let mut headers = HeaderMap::new();
        let mut trace = TraceContext::take(&mut headers);
        sample(None, &mut trace, &mut headers);
        assert!(!trace.is_recorded());
        sample(Some(&otlp(1.0)), &mut trace, &mut headers);
        assert!(trace.is_recorded());
        // Whoever comes next hears it.
        assert_eq!(headers["traceparent"], trace.to_string());
    }
}
