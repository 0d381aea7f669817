//! The end of the proxy, in steps: each gives those who are connected the time to notice the one
//! before.
//!
//! 1. `/healthz/ready` says no. All is served as before, so that whoever sends traffic here can stop.
//! 2. Callers are asked to leave: GOAWAY over HTTP/2, `Connection: close` in answers of HTTP/1.
//! 3. Nobody new is let in, and connections of HTTP/1 without a request end. The app's own
//!    connections are still taken: it may have to tidy up.
//! 4. When nothing is open, or at the deadline, or at a second signal, what is left is cut.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{app::Proxy, config::Drain, until::until};

/// How far the end has come. Each is cancelled when its step begins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Steps {
    /// Callers are asked to leave.
    pub(crate) leaving: CancellationToken,
    /// Nobody new is let in.
    pub(crate) closing: CancellationToken,
    /// What is open is cut.
    pub(crate) cut: CancellationToken,
}

/// The connections that are followed, by direction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Open {
    pub(crate) inbound: Followed,
    pub(crate) outbound: Followed,
}

/// Those of one direction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Followed {
    tasks: TaskTracker,
    begun: Arc<AtomicU64>,
}

impl Followed {
    /// Follows a connection until it ends or is cut.
    pub(crate) fn follow(
        &self,
        cut: CancellationToken,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.tasks.spawn(async move {
            let _ = until(work, cut.cancelled()).await;
        });
    }

    /// Waits until none is open and none came for so long.
    async fn quiet(&self, long: Duration) {
        self.tasks.close();
        loop {
            self.tasks.wait().await;
            let before = self.begun.load(Ordering::Relaxed);
            tokio::time::sleep(long).await;
            if self.tasks.is_empty() && before == self.begun.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

impl Open {
    /// Waits until nothing is open. The app may still begin something for a while after its callers
    /// have gone.
    async fn none(&self, quiet: Duration) {
        self.inbound.quiet(Duration::ZERO).await;
        self.outbound.quiet(quiet).await;
    }

    /// Waits until what was cut has written its lines.
    async fn ended(&self) {
        self.inbound.tasks.close();
        self.outbound.tasks.close();
        let both = async { tokio::join!(self.inbound.tasks.wait(), self.outbound.tasks.wait()) };
        let _ = tokio::time::timeout(LAST_LINES, both).await;
    }
}

/// Ends the proxy. `again` is the second signal.
pub(crate) async fn drain(proxy: &Proxy, open: &Open, again: impl Future<Output = ()>) {
    let Drain { delay, deadline } = proxy.config.drain;
    let (inbound, outbound) = (&open.inbound.tasks, &open.outbound.tasks);
    let count = || (inbound.len(), outbound.len());
    let (coming, going) = count();
    tracing::info!(
        inbound = coming,
        outbound = going,
        ?delay,
        ?deadline,
        "draining"
    );
    proxy.draining.cancel();
    let steps = async {
        tokio::time::sleep(delay).await;
        let (inbound, outbound) = count();
        tracing::info!(inbound, outbound, "callers are asked to leave");
        proxy.steps.leaving.cancel();
        tokio::time::sleep(delay).await;
        let (inbound, outbound) = count();
        tracing::info!(inbound, outbound, "nobody new is let in");
        proxy.steps.closing.cancel();
        open.none(delay).await;
    };
    tokio::select! {
        () = steps => tracing::info!("drained"),
        () = tokio::time::sleep(deadline) => {
            let (inbound, outbound) = count();
            tracing::warn!(inbound, outbound, "the deadline is over, what is open is cut");
        }
        () = again => {
            let (inbound, outbound) = count();
            tracing::warn!(inbound, outbound, "told twice, what is open is cut");
        }
    }
    proxy.steps.cut.cancel();
    open.ended().await;
}

/// What is cut ends at once; this is for a machine that is very busy.
const LAST_LINES: Duration = Duration::from_secs(1);
