//! Opaque connections: bytes both ways, each end closed for itself, and no memory while nothing
//! moves.
//!
//! A buffer begins small and grows with what passed, so that a short exchange costs little and a
//! long one few system calls. It is let go whenever there is nothing to read.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};

/// Copies until both ends are done, or nothing moved for `idle`. What passed is counted as it
/// passes, so that it is known however this ends.
///
/// # Errors
/// Those of the two ends, and [`io::ErrorKind::TimedOut`].
pub(crate) async fn relay(
    a: &mut (impl AsyncRead + AsyncWrite + Unpin),
    b: &mut (impl AsyncRead + AsyncWrite + Unpin),
    idle: Duration,
    passed: &Passed,
) -> io::Result<()> {
    let (mut from_a, mut to_a) = split(a);
    let (mut from_b, mut to_b) = split(b);
    let both = async {
        tokio::try_join!(
            half(&mut from_a, &mut to_b, &passed.there, passed),
            half(&mut from_b, &mut to_a, &passed.back, passed),
        )
    };
    tokio::select! {
        done = both => done.map(|_| ()),
        () = passed.nothing_for(idle) => {
            Err(too_silent(idle))
        }
    }
}

/// The error of a connection on which nothing moved for so long.
pub(crate) fn too_silent(idle: Duration) -> io::Error {
    let text = format!("nothing moved for {}s", idle.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// Did a connection end because nothing moved on it? That an end has not answered the kernel for too long has
/// the same kind, and a number of the kernel's.
pub(crate) fn is_too_silent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

/// What passed, each way.
#[derive(Debug)]
pub(crate) struct Passed {
    there: AtomicU64,
    back: AtomicU64,
    last: Mutex<Instant>,
}

impl Default for Passed {
    fn default() -> Self {
        Self {
            there: AtomicU64::new(0),
            back: AtomicU64::new(0),
            last: Mutex::new(Instant::now()),
        }
    }
}

impl Passed {
    /// From `a` to `b`, and back.
    pub(crate) fn both(&self) -> (u64, u64) {
        (
            self.there.load(Ordering::Relaxed),
            self.back.load(Ordering::Relaxed),
        )
    }

    fn moved(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// One timer for the whole time, not one for every byte.
    async fn nothing_for(&self, idle: Duration) {
        loop {
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= idle {
                return;
            }
            tokio::time::sleep_until((last + idle).into()).await;
        }
    }
}

/// One way, until its sender is done: then its receiver is told so, and the other way goes on.
async fn half(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    count: &AtomicU64,
    passed: &Passed,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        let size = buffer_size(count.load(Ordering::Relaxed));
        if read_some(from, &mut buffer, size).await? == 0 {
            return to.shutdown().await;
        }
        passed.moved();
        while !buffer.is_empty() {
            let written = to.write_buf(&mut buffer).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            count.fetch_add(
                u64::try_from(written).unwrap_or_default(),
                Ordering::Relaxed,
            );
            passed.moved();
        }
        to.flush().await?;
    }
}

/// Reads what there is. While there is nothing, there is no buffer either.
async fn read_some(
    from: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    size: usize,
) -> io::Result<usize> {
    poll_fn(|context| {
        buffer.clear();
        if buffer.capacity() < size {
            *buffer = BytesMut::with_capacity(size);
        }
        // A read that is dropped has read nothing.
        let read = pin!(from.read_buf(buffer)).poll(context);
        if read.is_pending() {
            *buffer = BytesMut::new();
        }
        read
    })
    .await
}

/// How much is read at once, after so many bytes. Pure.
fn buffer_size(passed: u64) -> usize {
    match passed {
        0..LITTLE => 4 << 10,
        LITTLE..MUCH => 16 << 10,
        MUCH.. => 128 << 10,
    }
}

const LITTLE: u64 = 64 << 10;
const MUCH: u64 = 8 << 20;

/// How long both ends may be silent, unless something else is configured. Documented: docs/proxy.md.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::{IDLE_TIMEOUT, Passed, buffer_size, relay};

    #[test]
    fn buffers_begin_small_and_grow_with_what_passed() {
        for (passed, size) in [
            (0, 4 << 10),
            ((64 << 10) - 1, 4 << 10),
            (64 << 10, 16 << 10),
            ((8 << 20) - 1, 16 << 10),
            (8 << 20, 128 << 10),
            (u64::MAX, 128 << 10),
        ] {
            assert_eq!(buffer_size(passed), size, "{passed}");
        }
    }

    #[tokio::test]
    async fn each_way_ends_for_itself() {
        let (mut app, mut a) = duplex(64);
        let (mut b, mut server) = duplex(64);
        let copying = tokio::spawn(async move {
            let passed = Passed::default();
            let ended = relay(&mut a, &mut b, IDLE_TIMEOUT, &passed).await;
            ended.map(|()| passed.both())
        });
        app.write_all(b"question").await.unwrap();
        app.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        // The other way is open still.
        server.write_all(b"an answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = String::new();
        app.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "an answer");
        assert_eq!(copying.await.unwrap().unwrap(), (8, 9));
    }

    #[tokio::test]
    async fn everything_arrives_in_order_through_every_size_of_buffer() {
        let (mut app, mut a) = duplex(1 << 16);
        let (mut b, mut server) = duplex(1000);
        tokio::spawn(async move { relay(&mut a, &mut b, IDLE_TIMEOUT, &Passed::default()).await });
        let sent: Vec<u8> = (0..20_u32 << 18).flat_map(u32::to_le_bytes).collect();
        let expected = sent.clone();
        tokio::spawn(async move { app.write_all(&sent).await });
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
    }

    #[tokio::test]
    async fn a_silent_connection_ends() {
        let (_app, mut a) = duplex(64);
        let (mut b, _server) = duplex(64);
        let passed = Passed::default();
        let ended = relay(&mut a, &mut b, Duration::from_millis(1), &passed).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
