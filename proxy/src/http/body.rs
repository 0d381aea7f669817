//! Bodies as they pass: a request's, cleaned of trailers that tell lies; an answer's, counted, and
//! watched for callers that do not take it.

use std::{
    any::Any,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{sync::Notify, time::timeout};

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

    /// The same without a byte; what it holds and what is written when it ends stay.
    pub(crate) fn without_bytes(mut self) -> Self {
        self.kind = Kind::Own(Full::default());
        self
    }

    /// Holds something until the body has ended, such as a place on a connection.
    pub(crate) fn holding(mut self, held: impl Any + Send) -> Self {
        self.held = Some(Box::new(held));
        self
    }

    /// Writes this line when the body ends; where the protocol is switched, that is done at the end of
    /// what follows.
    pub(crate) fn then_log(mut self, log: AccessLog, record: Record, began: Instant) -> Self {
        if record.status != Some(StatusCode::SWITCHING_PROTOCOLS.as_u16()) {
            self.line = Some((log, record, began));
        }
        self
    }

    /// Is watched for a caller that does not take it.
    pub(crate) fn watched(mut self, untaken: &Untaken, is_stream: bool) -> Self {
        self.untaken = Some(untaken.place(is_stream));
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
///
/// A connection is shared: one answer that waits is no reason to end the others. Only where none of
/// them moved either is the caller gone.
#[derive(Debug, Clone)]
pub(crate) struct Untaken {
    all: Arc<Shared>,
    patience: Duration,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    some: Notify,
}

#[derive(Debug)]
struct Waiting {
    /// Until when each answer may wait, at its place; none for one that waits for the upstream.
    answers: Vec<Option<Instant>>,
    /// Places that answers have left.
    free: Vec<usize>,
    /// When something of any answer was taken.
    moved: Instant,
}

impl Waiting {
    fn set(&mut self, place: usize, until: Option<Instant>) {
        if let Some(answer) = self.answers.get_mut(place) {
            *answer = until;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Untaken {
    pub(crate) fn new(patience: Duration) -> Self {
        let waiting = Waiting {
            answers: Vec::new(),
            free: Vec::new(),
            moved: Instant::now(),
        };
        Self {
            all: Arc::new(Shared {
                waiting: Mutex::new(waiting),
                some: Notify::new(),
            }),
            patience,
        }
    }

    /// A place for an answer. Streams of messages may wait longer: who takes them may be at work on
    /// the last one.
    fn place(&self, is_stream: bool) -> Place {
        let patience = self.patience * if is_stream { STREAM_PATIENCE } else { 1 };
        let mut waiting = self.all.lock();
        // A library asks for the first frame only where the caller has room for it.
        let until = Some(Instant::now() + patience);
        let number = match waiting.free.pop() {
            Some(number) => number,
            None => waiting.answers.len(),
        };
        match waiting.answers.get_mut(number) {
            Some(answer) => *answer = until,
            None => waiting.answers.push(until),
        }
        drop(waiting);
        self.all.some.notify_one();
        Place {
            all: self.all.clone(),
            number,
            patience,
        }
    }

    /// Waits until an answer waited too long, and nothing else moved.
    pub(crate) async fn for_too_long(&self) {
        loop {
            let due = {
                let waiting = self.all.lock();
                let due = waiting.answers.iter().flatten().min().copied();
                due.map(|due| due.max(waiting.moved + self.patience))
            };
            match due.map(|due| due.saturating_duration_since(Instant::now())) {
                None => self.all.some.notified().await,
                Some(Duration::ZERO) => return,
                // One that comes later may wait less long.
                Some(left) => drop(timeout(left, self.all.some.notified()).await),
            }
        }
    }
}

/// An answer's place among them.
#[derive(Debug)]
struct Place {
    all: Arc<Shared>,
    number: usize,
    patience: Duration,
}

impl Place {
    /// The library asked for more. If it got some, what comes next depends on the caller.
    fn polled(&self, got_some: bool) {
        let now = Instant::now();
        let mut waiting = self.all.lock();
        if got_some {
            waiting.moved = now;
            waiting.set(self.number, Some(now + self.patience));
            self.all.some.notify_one();
        } else {
            waiting.set(self.number, None);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.all.lock();
        waiting.set(self.number, None);
        waiting.free.push(self.number);
    }
}

/// How many times longer a stream of messages may wait.
const STREAM_PATIENCE: u32 = 10;

#[cfg(test)]
mod tests {
    use std::{
        task::{Context, Waker},
        time::Duration,
    };

    use super::Untaken;

    fn is_over(untaken: &Untaken) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let over = std::pin::pin!(untaken.for_too_long());
        over.poll(&mut context).is_ready()
    }

    #[tokio::test]
    async fn only_an_answer_that_nobody_takes_is_told() {
        // FAULTS 100
        let untaken = Untaken::new(Duration::from_millis(20));
        let (waiting, gone) = (untaken.place(false), untaken.place(false));
        waiting.polled(false);
        drop(gone);
        assert!(!is_over(&untaken));
        let stuck = untaken.place(false);
        untaken.for_too_long().await;
        // Another answer moves: the caller is there.
        waiting.polled(true);
        waiting.polled(false);
        assert!(!is_over(&untaken));
        untaken.for_too_long().await;
        drop(stuck);
        assert!(!is_over(&untaken));
        // A stream of messages may wait longer than that.
        let _stream = untaken.place(true);
        waiting.polled(true);
        drop(waiting);
        assert!(!is_over(&untaken));
        untaken.for_too_long().await;
    }
}
