//! Work that goes on until something else comes, which is asked only when it has news.
//!
//! A connection is watched for its whole life: for the end of the proxy, of a certificate, of a caller's
//! patience. `select!` asks each of them again whenever a byte moves, and there are many bytes for one end.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Works until that is done or `end` comes, which is then the error. Where both happen at once it is the
/// end: who must stop, stops.
pub(crate) async fn until<W: Future, E: Future>(work: W, end: E) -> Result<W::Output, E::Output> {
    let bell = Arc::new(Bell {
        rang: AtomicBool::new(true),
        task: Mutex::new(None),
    });
    let rings = Waker::from(bell.clone());
    let (mut work, mut end) = (pin!(work), pin!(end));
    let mut known: Option<Waker> = None;
    poll_fn(move |context| {
        let task = context.waker();
        if !known.as_ref().is_some_and(|known| known.will_wake(task)) {
            bell.belongs_to(task);
            known = Some(task.clone());
        }
        if bell.rang.load(Ordering::Acquire) {
            // What rings from here on is heard again.
            bell.rang.store(false, Ordering::SeqCst);
            if let Poll::Ready(ended) = end.as_mut().poll(&mut Context::from_waker(&rings)) {
                return Poll::Ready(Err(ended));
            }
        }
        work.as_mut().poll(context).map(Ok)
    })
    .await
}

/// What the end is woken by.
struct Bell {
    /// It has news that nobody has asked for yet.
    rang: AtomicBool,
    /// Who is to ask.
    task: Mutex<Option<Waker>>,
}

impl Bell {
    fn belongs_to(&self, task: &Waker) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.clone());
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rang.store(true, Ordering::SeqCst);
        let task = self.task.lock();
        let task = task.unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn, ready},
        sync::atomic::{AtomicUsize, Ordering},
        task::Poll,
    };

    use tokio::{sync::Notify, task::yield_now};

    use super::until;

    #[tokio::test]
    async fn the_end_is_asked_when_it_has_news_and_not_whenever_something_moves() {
        let (asked, news) = (AtomicUsize::new(0), Notify::new());
        let end = async {
            let mut heard = std::pin::pin!(news.notified());
            poll_fn(|context| {
                asked.fetch_add(1, Ordering::Relaxed);
                heard.as_mut().poll(context)
            })
            .await;
        };
        let work = async {
            for _ in 0..100 {
                yield_now().await;
            }
            assert_eq!(asked.load(Ordering::Relaxed), 1);
            news.notify_one();
            pending::<()>().await;
        };
        assert_eq!(until(work, end).await, Err(()));
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn who_must_stop_stops_and_who_is_done_is_done() {
        assert_eq!(until(ready(1), pending::<()>()).await, Ok(1));
        assert_eq!(until(pending::<()>(), ready(2)).await, Err(2));
        assert_eq!(until(ready(1), ready(2)).await, Err(2));
        // An end that comes again and again before it is there, and from another task.
        let (first, second) = (Notify::new(), Notify::new());
        let end = async {
            first.notified().await;
            second.notified().await;
        };
        let mut turns = 0;
        let work = poll_fn(|context| {
            turns += 1;
            match turns {
                10 => first.notify_one(),
                20 => second.notify_one(),
                _ => {}
            }
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert_eq!(until(work, end).await, Err(()));
        assert!((20..=21).contains(&turns), "{turns}");
    }
}
