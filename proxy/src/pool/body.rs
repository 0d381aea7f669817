//! The body of a request on its way to an upstream: lent, not given, so that a request whose body
//! nobody has begun to read can be taken back and sent elsewhere.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use crate::http::body::Asked;

/// What is sent as the body of a request.
pub(crate) struct Outgoing(Kind);

enum Kind {
    Empty,
    /// The proxy's own.
    Own(Full<Bytes>),
    Lent {
        loan: Arc<Loan<Asked>>,
        turn: u32,
    },
}

/// A body that is lent to one reader after the other, until the first byte was read.
#[derive(Debug)]
pub(super) struct Loan<B> {
    state: Mutex<State<B>>,
}

#[derive(Debug)]
struct State<B> {
    body: B,
    /// Counts the readers; only the last one may read.
    turn: u32,
    is_read: bool,
    moved: Instant,
}

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken<E> {
    /// Who sent it broke off.
    #[error(transparent)]
    Sender(E),
    /// It was lent to somebody else.
    #[error("the request is sent elsewhere")]
    TakenBack,
}

impl From<Asked> for Outgoing {
    fn from(body: Asked) -> Self {
        if body.is_end_stream() {
            return Self(Kind::Empty);
        }
        let loan = Arc::new(Loan::new(body));
        Self(Kind::Lent { loan, turn: 0 })
    }
}

impl Outgoing {
    /// A body that the proxy itself sends.
    pub(crate) fn own(body: Bytes) -> Self {
        Self(Kind::Own(Full::new(body)))
    }

    /// A handle by which the body can be had again.
    pub(super) fn spare(&self) -> Spare {
        match &self.0 {
            Kind::Empty | Kind::Own(_) => Spare(None),
            Kind::Lent { loan, .. } => Spare(Some(loan.clone())),
        }
    }
}

/// A handle on a body that was sent away.
pub(super) struct Spare(Option<Arc<Loan<Asked>>>);

impl Spare {
    /// The body once more, if nothing of it was read.
    pub(super) fn again(&self) -> Option<Outgoing> {
        match &self.0 {
            None => Some(Outgoing(Kind::Empty)),
            Some(loan) => {
                let turn = loan.take_back()?;
                let loan = loan.clone();
                Some(Outgoing(Kind::Lent { loan, turn }))
            }
        }
    }

    /// Was nothing of it read yet?
    pub(super) fn is_unread(&self) -> bool {
        self.0.as_ref().is_none_or(|loan| !loan.lock().is_read)
    }

    /// Waits until nothing has moved for `limit`.
    pub(super) async fn stalled(&self, limit: Duration) {
        let mut due = Instant::now() + limit;
        loop {
            tokio::time::sleep_until(due.into()).await;
            let moved = self.0.as_ref().map(|loan| loan.lock().moved);
            match moved.map(|moved| moved + limit) {
                Some(later) if later > due => due = later,
                _ => return,
            }
        }
    }
}

impl<B> Loan<B> {
    fn new(body: B) -> Self {
        let state = State {
            body,
            turn: 0,
            is_read: false,
            moved: Instant::now(),
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// The number of the next reader; none once anything was read.
    fn take_back(&self) -> Option<u32> {
        let mut state = self.lock();
        if state.is_read {
            return None;
        }
        state.turn += 1;
        Some(state.turn)
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Polled<B> = Poll<Option<Result<Frame<<B as Body>::Data>, Broken<<B as Body>::Error>>>>;

impl<B: Body + Unpin> Loan<B> {
    fn poll_frame(&self, turn: u32, context: &mut Context<'_>) -> Polled<B> {
        let mut state = self.lock();
        if state.turn != turn {
            return Poll::Ready(Some(Err(Broken::TakenBack)));
        }
        let frame = Pin::new(&mut state.body).poll_frame(context);
        if frame.is_ready() {
            state.is_read = true;
            state.moved = Instant::now();
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(Broken::Sender)))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Broken<hyper::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Own(body) => {
                let frame = Pin::new(body).poll_frame(context);
                frame.map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
            Kind::Lent { loan, turn } => loan.poll_frame(*turn, context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Own(body) => body.is_end_stream(),
            Kind::Lent { loan, .. } => loan.lock().body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Own(body) => body.size_hint(),
            Kind::Lent { loan, .. } => loan.lock().body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;
    use http_body_util::Full;

    use super::{Broken, Loan};

    fn loan() -> Loan<Full<Bytes>> {
        Loan::new(Full::new(Bytes::from_static(b"body")))
    }

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn a_body_that_nobody_read_is_lent_again_and_the_first_reader_gets_nothing() {
        let loan = loan();
        let second = loan.take_back().unwrap();
        let early = loan.poll_frame(0, &mut context());
        assert!(matches!(early, Poll::Ready(Some(Err(Broken::TakenBack)))));
        let read = loan.poll_frame(second, &mut context());
        assert!(matches!(read, Poll::Ready(Some(Ok(_)))));
    }

    #[test]
    fn a_body_of_which_anything_was_read_is_not_lent_again() {
        let loan = loan();
        let _ = loan.poll_frame(0, &mut context());
        assert_eq!(loan.take_back(), None);
    }
}
