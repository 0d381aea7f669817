//! Sends spans in batches. While the collector is away they wait up to a bound, and beyond it they are
//! lost and counted; no request notices.

use std::{sync::Arc, time::Duration};

use postern_proto::otlp::{
    ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans,
    Span, trace_service_client::TraceServiceClient,
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{Queued, Spans, text};
use crate::{app::Proxy, config::Otlp, telemetry::Metrics};

/// The queue's other end, before there is a task.
#[derive(Debug)]
pub(crate) struct Exporter {
    otlp: Otlp,
    queue: mpsc::Receiver<Queued>,
    ending: CancellationToken,
}

/// The task that sends.
#[derive(Debug)]
pub(crate) struct Exporting {
    task: JoinHandle<()>,
    ending: CancellationToken,
}

impl Exporter {
    pub(crate) fn new(otlp: &Otlp, metrics: &Metrics) -> (Spans, Self) {
        let (sender, queue) = mpsc::channel(MAX_WAITING);
        let exporter = Self {
            otlp: otlp.clone(),
            queue,
            ending: CancellationToken::new(),
        };
        let spans = Spans {
            queue: sender,
            room: Arc::new(Semaphore::new(MAX_WAITING_BYTES)),
            lost: metrics.spans_lost.clone(),
        };
        (spans, exporter)
    }

    pub(crate) fn begin(self, proxy: Arc<Proxy>) -> Exporting {
        let ending = self.ending.clone();
        let task = tokio::spawn(self.run(proxy));
        Exporting { task, ending }
    }

    async fn run(mut self, proxy: Arc<Proxy>) {
        let endpoint = Endpoint::from(self.otlp.endpoint.clone())
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE);
        let mut collector = Collector {
            client: TraceServiceClient::new(endpoint.connect_lazy()),
            is_away: false,
        };
        let mut batch = Vec::with_capacity(BATCH);
        while self.gather(&mut batch).await {
            // Their room is theirs until they are sent.
            let (spans, _room): (Vec<Span>, Vec<_>) = std::mem::take(&mut batch)
                .into_iter()
                .map(|Queued { span, room }| (span, room))
                .unzip();
            let (count, request) = (spans.len(), self.request(&proxy, spans));
            let (lost, ending) = (&proxy.metrics.spans_lost, &self.ending);
            let taken = collector.send(request, count, ending).await;
            lost.inc_by(u64::try_from(count - taken).unwrap_or_default());
            let taken = u64::try_from(taken).unwrap_or_default();
            proxy.metrics.spans_exported.inc_by(taken);
        }
    }

    /// Waits for spans, and then a moment for more. `false` when there will be none.
    async fn gather(&mut self, batch: &mut Vec<Queued>) -> bool {
        tokio::select! {
            biased;
            got = self.queue.recv_many(batch, BATCH) => if got == 0 { return false },
            () = self.ending.cancelled() => return false,
        }
        let until = Instant::now() + GATHER;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            tokio::select! {
                biased;
                more = timeout_at(until, self.queue.recv_many(batch, room)) => match more {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                },
                () = self.ending.cancelled() => break,
            }
        }
        true
    }

    fn request(&self, proxy: &Proxy, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope {
            name: "postern-proxy".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: self.who(proxy),
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans,
                }],
            }],
        }
    }

    /// The workload that we stand for.
    fn who(&self, proxy: &Proxy) -> Vec<KeyValue> {
        let workload = proxy.own_workload();
        let own = workload.as_ref().map(|own| own.name.to_string());
        let name = self.otlp.service_name.clone().or(own);
        let name = name.unwrap_or_else(|| "postern-proxy".to_owned());
        let mut who = vec![text("service.name", name)];
        who.extend(workload.map(|own| text("service.namespace", own.namespace.to_string())));
        who
    }
}

impl Exporting {
    /// Sends what is there, within a limit.
    pub(crate) async fn end(self) {
        self.ending.cancel();
        let _ = timeout(LAST, self.task).await;
    }
}

struct Collector {
    client: TraceServiceClient<Channel>,
    is_away: bool,
}

impl Collector {
    /// Sends a batch, again and again while the collector is away. Tells how many were taken.
    async fn send(
        &mut self,
        request: ExportTraceServiceRequest,
        count: usize,
        ending: &CancellationToken,
    ) -> usize {
        let mut pause = FIRST_PAUSE;
        loop {
            let status = match self.client.export(request.clone()).await {
                Ok(answer) => {
                    if std::mem::take(&mut self.is_away) {
                        tracing::info!("the collector of traces takes spans again");
                    }
                    let partly = answer.into_inner().partial_success.unwrap_or_default();
                    if partly.rejected_spans > 0 {
                        let (rejected, why) = (partly.rejected_spans, partly.error_message);
                        tracing::warn!(rejected, why, "the collector did not take all spans");
                    }
                    let rejected = usize::try_from(partly.rejected_spans).unwrap_or_default();
                    return count.saturating_sub(rejected);
                }
                Err(status) => status,
            };
            if !std::mem::replace(&mut self.is_away, true) {
                let error = status.message();
                tracing::warn!(
                    error,
                    "spans cannot be sent; those that find no place in the queue are lost"
                );
            }
            if ending.is_cancelled() || !is_worth_another_try(&status) {
                return 0;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = ending.cancelled() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Spec: OTLP, "Failures".
fn is_worth_another_try(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
    )
}

/// How many spans may wait, and how many bytes of them, with those that are being sent. Ordinary ones
/// have half a kilobyte. Documented: docs/operation.md.
const MAX_WAITING: usize = 2048;
const MAX_WAITING_BYTES: usize = 4 << 20;
const BATCH: usize = 512;
/// How long a span waits for others to travel with.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the proxy's end waits for the last batch.
const LAST: Duration = Duration::from_secs(1);
