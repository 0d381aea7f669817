//! Bodies as they pass: a request's, cleaned of trailers that tell lies; an answer's, counted, and
//! watched for callers that do not take it.

use std::{
    any::Any,
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::Notify;

use super::headers::strip_trailers;
use crate::access_log::{AccessLog, Record};

/// The body of a request that may be forwarded.
#[derive(Debug)]
pub(crate) struct Asked(Incoming);

impl From<Incoming> for Asked {
    fn from(body: Incoming) -> Self {
        Self(body)
    }
}

impl Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut frame = Pin::new(&mut self.0).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            strip_trailers(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// An answer's body. When it is dropped, however it ended, its line is written.
#[derive(Debug)]
pub(crate) struct Answered {
    kind: Kind,
    line: Option<(AccessLog, Record, Instant)>,
    untaken: Option<Place>,
    held: Option<Box<dyn Any + Send>>,
}

#[derive(Debug)]
enum Kind {
    Own(Full<Bytes>),
    Upstream(Incoming),
}

impl Answered {
    /// A body of our own.
    pub(crate) fn own(text: impl Into<Bytes>) -> Self {
        Self {
            kind: Kind::Own(Full::new(text.into())),
            line: None,
            untaken: None,
            held: None,
        }
    }

    /// The upstream's body.
    pub(crate) fn upstream(body: Incoming) -> Self {
        Self {
            kind: Kind::Upstream(body),
            line: None,
            untaken: None,
            held: None,
        }
    }

    /// Holds something until the body has ended, such as a place on a connection.
    pub(crate) fn holding(mut self, held: impl Any + Send) -> Self {
        self.held = Some(Box::new(held));
        self
    }

    /// Writes this line when the body ends.
    pub(crate) fn then_log(mut self, log: AccessLog, record: Record, began: Instant) -> Self {
        self.line = Some((log, record, began));
        self
    }

    /// Is watched for a caller that does not take it.
    pub(crate) fn watched(mut self, untaken: &Untaken) -> Self {
        self.untaken = Some(untaken.place());
        self
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let me = &mut *self;
        let frame = match &mut me.kind {
            Kind::Own(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
            Kind::Upstream(body) => Pin::new(body).poll_frame(context),
        };
        if let Some(place) = &me.untaken {
            place.polled(frame.is_ready());
        }
        if let (Poll::Ready(Some(Ok(frame))), Some((_, record, _))) = (&frame, &mut me.line)
            && let Some(data) = frame.data_ref()
        {
            record.bytes_sent += u64::try_from(data.len()).unwrap_or_default();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(body) => body.is_end_stream(),
            Kind::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(body) => body.size_hint(),
            Kind::Upstream(body) => body.size_hint(),
        }
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        if let Some((log, record, began)) = self.line.take() {
            log.write(&record.since(began));
        }
    }
}

/// The answers of a connection that have something to send which the caller does not take.
#[derive(Debug, Clone, Default)]
pub(crate) struct Untaken(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    since: Mutex<Since>,
    some: Notify,
}

#[derive(Debug, Default)]
struct Since {
    next: u64,
    answers: HashMap<u64, Instant>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Since> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Untaken {
    fn place(&self) -> Place {
        let mut since = self.0.lock();
        since.next += 1;
        let number = since.next;
        drop(since);
        let place = Place {
            all: self.0.clone(),
            number,
        };
        // A library asks for the first frame only where the caller has room for it.
        place.polled(true);
        place
    }

    /// Waits until an answer was not taken for so long.
    pub(crate) async fn for_longer_than(&self, patience: Duration) {
        loop {
            let oldest = self.0.lock().answers.values().min().copied();
            match oldest.map(|oldest| patience.saturating_sub(oldest.elapsed())) {
                None => self.0.some.notified().await,
                Some(Duration::ZERO) => return,
                Some(left) => tokio::time::sleep(left).await,
            }
        }
    }
}

/// An answer's place among them.
#[derive(Debug)]
struct Place {
    all: Arc<Shared>,
    number: u64,
}

impl Place {
    /// The library asked for more. If it got some, what comes next depends on the caller.
    fn polled(&self, got_some: bool) {
        let mut since = self.all.lock();
        if got_some {
            since.answers.insert(self.number, Instant::now());
            self.all.some.notify_one();
        } else {
            since.answers.remove(&self.number);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().answers.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Untaken;

    #[tokio::test]
    async fn only_an_answer_that_nobody_takes_is_told() {
        // FAULTS 100
        let untaken = Untaken::default();
        let (waiting, gone, stuck) = (untaken.place(), untaken.place(), untaken.place());
        waiting.polled(false);
        drop(gone);
        untaken.for_longer_than(Duration::from_millis(20)).await;
        drop(stuck);
        let nobody = untaken.for_longer_than(Duration::ZERO);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut nobody = std::pin::pin!(nobody);
        assert!(nobody.as_mut().poll(&mut context).is_pending());
        waiting.polled(true);
        nobody.await;
    }
}
