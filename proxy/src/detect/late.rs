//! Detections that took all of their time: counted each, and told once in a while with the setting
//! that spares the wait.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    access_log,
    connections::Facts,
    telemetry::{DetectionLabels, Metrics},
};

/// How a detection ended that took all of its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The caller said nothing: whoever speaks first decides.
    Silent,
    /// A request was begun and not finished: refused.
    Unfinished,
}

/// What was told of them, by direction and port.
#[derive(Debug)]
pub(crate) struct Late {
    /// At most one entry for each port and direction.
    told: Mutex<HashMap<(&'static str, u16), Instant>>,
    metrics: Arc<Metrics>,
}

impl Late {
    /// Nothing told yet.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            told: Mutex::default(),
            metrics,
        }
    }

    /// Counts one of this connection.
    pub(crate) fn count(&self, facts: &Facts, outcome: Outcome) {
        let direction = access_log::direction(facts.direction);
        let labels = DetectionLabels {
            direction,
            outcome: match outcome {
                Outcome::Silent => "silent",
                Outcome::Unfinished => "unfinished",
            },
        };
        self.metrics.detections.get_or_create(&labels).inc();
        let port = facts.destination.port();
        if !self.is_due((direction, port)) {
            return;
        }
        let workload = facts.workload.as_ref().map(tracing::field::display);
        tracing::warn!(
            direction,
            dst.workload = workload,
            dst.port = port,
            outcome = labels.outcome,
            mend = MEND,
            "the first bytes did not tell in time what is spoken"
        );
    }

    fn is_due(&self, key: (&'static str, u16)) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_due = told.get(&key).is_none_or(|at| now - *at > TELL_EVERY);
        if is_due {
            told.insert(key, now);
        }
        is_due
    }
}

/// What spares the wait.
const MEND: &str =
    "name the port in the Workload's `ports` for what it speaks, such as `tcp-app` or `http-app`";

const TELL_EVERY: Duration = Duration::from_secs(60);
