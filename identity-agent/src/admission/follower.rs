//! Somebody on an open stream: his right is asked for again whenever it may be another.

use std::{sync::Arc, time::Instant};

use tokio::sync::watch;
use tonic::Status;

use super::{Admitted, on_a_thread};
use crate::{
    agent::{Agent, Entitled},
    caller::PinnedProcess,
};

/// Who reads a stream.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) agent: Arc<Agent>,
    pub(crate) process: Arc<PinnedProcess>,
    pub(crate) method: &'static str,
    /// Workloads, bundles, revocations.
    changes: watch::Receiver<u64>,
    /// The process itself: another program, user or group.
    events: watch::Receiver<u64>,
    _open: Admitted,
}

impl Follower {
    pub(super) fn new(
        agent: Arc<Agent>,
        process: Arc<PinnedProcess>,
        method: &'static str,
        open: Admitted,
    ) -> Self {
        agent.followed.follow(&process);
        Self {
            changes: agent.changes(),
            events: process.changes(),
            agent,
            process,
            method,
            _open: open,
        }
    }

    /// Does something with what he is entitled to now.
    pub(crate) async fn now<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Agent, &Entitled) -> Result<T, Status> + Send + 'static,
    ) -> Result<(Entitled, T), Status> {
        // Whatever happens from here on is a reason to look again.
        self.changes.mark_unchanged();
        self.events.mark_unchanged();
        on_a_thread(&self.agent, &self.process, self.method, work).await
    }

    /// Waits until his right, or what he holds, is to be looked at again.
    pub(crate) async fn wait(&mut self, renew_at: Option<Instant>) {
        let timer = self.agent.reattest;
        let until_renewal = renew_at.map_or(timer, |at| {
            at.saturating_duration_since(Instant::now()).min(timer)
        });
        tokio::select! {
            _ = self.changes.changed() => {}
            _ = self.events.changed() => {}
            () = tokio::time::sleep(until_renewal) => {}
            _ = self.process.clone().ended() => {}
        }
    }
}
