//! The body of an answer: one of ours, or the upstream's, counted as it passes.

use std::{
    any::Any,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::access_log::{AccessLog, Record};

/// An answer's body. When it is dropped, however it ended, its line is written.
#[derive(Debug)]
pub(crate) struct Answered {
    kind: Kind,
    line: Option<(AccessLog, Record, Instant)>,
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
            held: None,
        }
    }

    /// The upstream's body.
    pub(crate) fn upstream(body: Incoming) -> Self {
        Self {
            kind: Kind::Upstream(body),
            line: None,
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
