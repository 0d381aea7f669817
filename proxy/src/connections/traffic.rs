//! What passes over a connection: counted where it passes, and read by whoever asks.
//!
//! Each count costs one addition to a number that nobody else writes at that moment. The bytes are
//! those of the application: within TLS, and without its records.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The counts of one connection, seen from us.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
    requests: AtomicU64,
    /// The place in [`Carried::ALL`] plus one; 0 until it is known.
    carried: AtomicU8,
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    Tcp,
    Http1,
    Http2,
}

impl Carried {
    const ALL: [Self; 3] = [Self::Tcp, Self::Http1, Self::Http2];

    /// Its name, as ALPN and access logs have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }

    /// HTTP of either version.
    pub(crate) fn http(is_http2: bool) -> Self {
        match is_http2 {
            true => Self::Http2,
            false => Self::Http1,
        }
    }
}

impl Traffic {
    /// One that carries this from the beginning.
    pub(crate) fn of(carried: Carried) -> Arc<Self> {
        let traffic = Self::default();
        traffic.carries(carried);
        Arc::new(traffic)
    }

    /// What it carries is known now.
    pub(crate) fn carries(&self, carried: Carried) {
        let place = (1..).zip(Carried::ALL).find(|(_, one)| *one == carried);
        let place = place.map_or(0, |(place, _)| place);
        self.carried.store(place, Ordering::Relaxed);
    }

    /// One more request.
    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// What it carries, once that is known.
    pub(crate) fn carried(&self) -> Option<Carried> {
        let place = self.carried.load(Ordering::Relaxed).checked_sub(1)?;
        Carried::ALL.get(usize::from(place)).copied()
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    traffic: Arc<Traffic>,
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic }
    }

    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            add(&self.traffic.sent, *bytes);
        }
    }
}

fn add(count: &AtomicU64, bytes: usize) {
    count.fetch_add(u64::try_from(bytes).unwrap_or_default(), Ordering::Relaxed);
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        add(&self.traffic.received, buffer.filled().len() - before);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::{Carried, Counted, Traffic};

    #[tokio::test]
    async fn each_way_is_counted_for_itself() {
        let (ours, mut theirs) = duplex(64);
        let traffic = Traffic::of(Carried::Tcp);
        let mut ours = Counted::new(ours, traffic.clone());
        theirs.write_all(b"question").await.unwrap();
        ours.read_exact(&mut [0; 8]).await.unwrap();
        ours.write_all(b"an answer").await.unwrap();
        drop(theirs);
        // Neither the end nor a write that fails counts.
        assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0);
        ours.write_all(b"more").await.unwrap_err();
        assert_eq!((traffic.received(), traffic.sent()), (8, 9));
    }

    #[test]
    fn what_is_carried_is_told_once_it_is_known() {
        assert_eq!(Traffic::default().carried(), None);
        for carried in Carried::ALL {
            assert_eq!(Traffic::of(carried).carried(), Some(carried));
        }
    }
}
