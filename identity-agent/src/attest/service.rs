//! A service that is asked about a process: for a limited time, and not again at once when it did not
//! answer, so that one that hangs does not hold up everybody.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{AttestFailed, causes};

/// One service.
#[derive(Debug, Default)]
pub(super) struct Service {
    silent_since: Mutex<Option<Instant>>,
}

impl Service {
    /// Waits for the answer, on a thread that may block.
    ///
    /// # Errors
    /// The answer's own, or that there is none in time.
    pub(super) fn ask<T>(
        &self,
        name: &str,
        answer: impl Future<Output = Result<T, AttestFailed>>,
    ) -> Result<T, AttestFailed> {
        let silent_since = || {
            self.silent_since
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let was_silent = *silent_since();
        if was_silent.is_some_and(|since| since.elapsed() < SPARED) {
            return Err(AttestFailed::NoAnswer(format!(
                "{name} did not answer a moment ago"
            )));
        }
        // Within the runtime: a limit needs its clock.
        match wait_for(async { timeout(PATIENCE, answer).await })? {
            Ok(answer) => {
                *silent_since() = None;
                answer
            }
            Err(_) => {
                *silent_since() = Some(Instant::now());
                Err(AttestFailed::NoAnswer(format!(
                    "{name} does not answer in time"
                )))
            }
        }
    }
}

/// Waits for an answer, on a thread that may block.
pub(super) fn wait_for<T>(answer: impl Future<Output = T>) -> Result<T, AttestFailed> {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        return Ok(runtime.block_on(answer));
    }
    // A person asks, from the command line.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| AttestFailed::because("nothing can be asked", &error, causes(&error)))?;
    Ok(runtime.block_on(answer))
}

/// A service that takes longer gives no identity.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long one that did not answer is not asked.
const SPARED: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending};

    use super::Service;

    #[test]
    fn one_that_did_not_answer_is_not_asked_again_at_once() {
        let service = Service::default();
        let failed = service.ask::<()>("it", pending()).unwrap_err();
        assert_eq!(failed.to_string(), "it does not answer in time");
        let asked = Cell::new(false);
        let failed = service.ask("it", async {
            asked.set(true);
            Ok(())
        });
        assert_eq!(
            failed.unwrap_err().to_string(),
            "it did not answer a moment ago"
        );
        assert!(!asked.get());
        let other = Service::default();
        assert_eq!(other.ask("other", async { Ok(7) }).unwrap(), 7);
    }
}
