//! Changes of what the agent keeps: one after the other, in the order in which they were asked for, and
//! each on a thread that may wait for a disk. Nobody who is served waits for them.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::spawn_blocking};

/// Has changes made. Whoever asks waits; how many can ask is bounded where they come from.
#[derive(Debug)]
pub(super) struct Changes(Arc<Semaphore>);

impl Default for Changes {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Changes {
    /// Makes a change when it is its turn. Once begun it is made, whether or not anybody still waits.
    /// None when it panicked.
    pub(super) async fn make<T: Send + 'static>(
        &self,
        change: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let turn = self.0.clone().acquire_owned().await.ok()?;
        let made = spawn_blocking(move || {
            let _turn = turn;
            change()
        });
        made.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::resume_unwind,
        sync::{Arc, Mutex, mpsc},
    };

    use futures_util::{FutureExt as _, future::join_all};

    use super::Changes;

    #[tokio::test]
    async fn changes_are_made_in_order_and_others_go_on_meanwhile() {
        let changes = Changes::default();
        let made = Arc::new(Mutex::new(Vec::new()));
        let (go, wait) = mpsc::sync_channel(1);
        let mut first = Box::pin(changes.make(move || wait.recv().is_ok()));
        assert!((&mut first).now_or_never().is_none());
        let rest = (0..20).map(|number| {
            let made = made.clone();
            changes.make(move || made.lock().unwrap().push(number))
        });
        let mut rest = Box::pin(join_all(rest));
        assert!((&mut rest).now_or_never().is_none());
        // The one thread that serves is free: it is the one that lets the change go on.
        assert!(made.lock().unwrap().is_empty());
        go.send(()).unwrap();
        assert_eq!(first.await, Some(true));
        rest.await;
        assert_eq!(*made.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_that_nobody_waits_for_is_made_and_one_that_panics_holds_up_nobody() {
        let changes = Changes::default();
        let (told, made) = mpsc::sync_channel(1);
        let mut gone = Box::pin(changes.make(move || told.send(())));
        assert!((&mut gone).now_or_never().is_none());
        drop(gone);
        let failed = changes.make(|| resume_unwind(Box::new(()))).await;
        assert_eq!(failed, None::<()>);
        assert_eq!(changes.make(move || made.recv()).await, Some(Ok(())));
    }
}
