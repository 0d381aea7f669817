//! An answer that is read as it comes. Its connection lives as long as it does.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// Does the work of a connection when it is polled.
pub(crate) type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// What a server answers: its status, and a body that may never end.
pub struct Answer {
    response: Response<Incoming>,
    /// Until it has ended.
    connection: Option<Connection>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.response.status();
        f.debug_struct("Answer").field("status", &status).finish()
    }
}

impl Answer {
    pub(crate) fn of(response: Response<Incoming>, connection: Option<Connection>) -> Self {
        Self {
            response,
            connection,
        }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// How long the server wants to be left alone, if it says so in whole seconds.
    pub fn retry_after(&self) -> Option<Duration> {
        let value = self.response.headers().get(header::RETRY_AFTER)?;
        let seconds = value.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// The next piece of the body; none when it has ended as it should. May be dropped while it waits.
    ///
    /// # Errors
    /// The body broke off.
    pub async fn piece(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            let frame = std::future::poll_fn(|context| self.poll_frame(context)).await;
            let frame = frame.transpose();
            let frame = frame.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?;
            match frame.map(http_body::Frame::into_data) {
                None => return Ok(None),
                Some(Ok(data)) if !data.is_empty() => return Ok(Some(data)),
                // Trailers say nothing here.
                Some(_) => {}
            }
        }
    }

    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<http_body::Frame<Bytes>>>> {
        // An error of the connection is told by the body as well.
        if let Some(connection) = &mut self.connection
            && connection.as_mut().poll(context).is_ready()
        {
            self.connection = None;
        }
        let mut frame = self.response.body_mut().frame();
        Pin::new(&mut frame).poll(context)
    }

    /// All of the body, if it has no more than so many bytes.
    ///
    /// # Errors
    /// It has more, or broke off.
    pub async fn whole(mut self, max_bytes: usize) -> anyhow::Result<Bytes> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            anyhow::ensure!(
                all.len().saturating_add(piece.len()) <= max_bytes,
                "the answer broke off: it has more than {max_bytes} bytes"
            );
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}
