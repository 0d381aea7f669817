//! Somebody on an open stream: his right is asked for again whenever it may be another.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tonic::Status;

use super::{at_once, look};
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
    /// Has he been told something?
    is_known: bool,
}

impl Follower {
    pub(super) fn new(
        agent: Arc<Agent>,
        process: Arc<PinnedProcess>,
        method: &'static str,
    ) -> Self {
        agent.followed.follow(&process);
        Self {
            changes: agent.changes(),
            events: process.changes(),
            agent,
            process,
            method,
            is_known: false,
        }
    }

    /// Does something with what he is entitled to now, if that is known without waiting for anything.
    pub(crate) fn at_once<T>(
        &mut self,
        work: impl FnOnce(&Agent, &Entitled) -> Option<T>,
    ) -> Option<(Entitled, T)> {
        // Whatever happens from here on is a reason to look again.
        self.changes.mark_unchanged();
        self.events.mark_unchanged();
        let entitled = at_once::entitled(&self.agent, &self.process)?;
        let done = work(&self.agent, &entitled)?;
        Some((entitled, done))
    }

    /// Does something with what he is entitled to now.
    ///
    /// He keeps what he was told while the agent lacks something to look at him: that is no word on him,
    /// and whoever opens a stream anew would make it worse. It is tried again soon, and for
    /// [`LACKING`] at most.
    ///
    /// # Errors
    /// What ends the stream.
    pub(crate) async fn now<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Agent, &Entitled) -> Result<T, Status> + Clone + Send + 'static,
    ) -> Result<(Entitled, T), Status> {
        let begun = Instant::now();
        loop {
            // Whatever happens from here on is a reason to look again.
            self.changes.mark_unchanged();
            self.events.mark_unchanged();
            match look(&self.agent, &self.process, work.clone()).await {
                Ok(done) => {
                    self.is_known = true;
                    return Ok(done);
                }
                Err(failed)
                    if failed.is_nobodys_fault() && self.is_known && begun.elapsed() < LACKING =>
                {
                    self.wait(Some(Instant::now() + TRIED_AGAIN_AFTER)).await;
                }
                Err(failed) => return Err(failed.tell(&self.agent, &self.process, self.method)),
            }
        }
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
            // Where that cannot be waited for, the timer remains.
            Ok(()) = self.process.ended() => {}
        }
    }
}

/// How long a stream is kept while nobody can look at who reads it.
const LACKING: Duration = Duration::from_secs(300);

const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(1);
