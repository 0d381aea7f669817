//! A stream on which HTTP/1 requests arrive, watched below the HTTP library.
//!
//! Bytes that pass the [`Follower`] are handed on as they are, mostly without a copy. A request
//! that is refused is taken out, and a marker stands in its place: the library hands it to the
//! service in its turn, behind what was asked before, and the service answers with the refusal.
//! The stream also keeps time: a body that stops coming and a caller that stops reading end it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    framing::{Follower, Step},
    head::Refused,
};
use crate::config::Patience;

/// What the stream and the service tell each other. Requests are numbered as they come.
#[derive(Debug, Default)]
pub(crate) struct Wire(Mutex<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many heads were handed on.
    heads: u64,
    /// How many requests the service took up.
    taken: u64,
    /// The number of the marker, and what it stands for.
    refused: Option<(u64, Refused)>,
    /// What broke off the body of a request that was handed on.
    broken: Option<Refused>,
    /// The number of the request that offers to switch protocols, and whether it was taken up.
    offer: Option<(u64, Option<bool>)>,
    waiting: Option<Waker>,
}

impl Wire {
    /// The service takes up the next request: its number, and the refusal that it stands for.
    pub(crate) fn take_up(&self) -> (u64, Option<Refused>) {
        let mut shared = self.lock();
        let number = shared.taken;
        shared.taken += 1;
        let refused = shared.refused.filter(|(at, _)| *at == number);
        (number, refused.map(|(_, refused)| refused))
    }

    /// The service answered; did it switch protocols?
    pub(crate) fn answered(&self, number: u64, switched: bool) {
        let mut shared = self.lock();
        if let Some((offered, answer)) = &mut shared.offer
            && *offered == number
        {
            *answer = Some(switched);
            if let Some(waiting) = shared.waiting.take() {
                waiting.wake();
            }
        }
    }

    /// Does this request offer to switch protocols, with nothing behind it?
    pub(crate) fn is_offer(&self, number: u64) -> bool {
        matches!(self.lock().offer, Some((offered, None)) if offered == number)
    }

    /// Did the body of a request break off because its bytes were refused?
    pub(crate) fn broken(&self) -> Option<Refused> {
        self.lock().broken
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watched stream.
pub(crate) struct Guarded<S> {
    stream: S,
    wire: Arc<Wire>,
    follower: Follower,
    /// Read, and not known yet whether it may pass.
    held: Vec<u8>,
    /// May pass, and was not handed on yet.
    ready: Vec<u8>,
    ending: Ending,
    patience: Patience,
    reading: Deadline,
    writing: Deadline,
    lingering: Option<Linger>,
}

/// What comes after `ready` is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// What the caller sends.
    None,
    /// Nothing: the marker was the last request.
    Marked,
    /// An error: the body of a request that was handed on is not what it must be.
    Broken(Refused),
}

impl<S> Guarded<S> {
    pub(crate) fn new(stream: S, wire: Arc<Wire>, patience: Patience) -> Self {
        Self {
            stream,
            wire,
            follower: Follower::default(),
            held: Vec::new(),
            ready: Vec::new(),
            ending: Ending::None,
            patience,
            reading: Deadline::default(),
            writing: Deadline::default(),
            lingering: None,
        }
    }

    /// Looks at new bytes; `Some(n)` where the first `n` pass as they are and all else is held,
    /// `None` where what passes was put into `ready`.
    fn look(&mut self, fresh: &[u8]) -> Option<usize> {
        if self.held.is_empty() {
            let looked = self.walk(fresh);
            self.held = fresh.get(looked.seen..).unwrap_or_default().to_vec();
            return match looked.replaced {
                None => Some(looked.seen),
                Some(bytes) => {
                    self.ready = bytes;
                    None
                }
            };
        }
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(fresh);
        let looked = self.walk(&all);
        let seen = looked.seen.min(all.len());
        self.ready = match looked.replaced {
            Some(bytes) => {
                all.drain(..seen);
                bytes
            }
            None => all.drain(..seen).collect(),
        };
        // Nothing is kept for a connection that waits for its next request.
        if !all.is_empty() {
            self.held = all;
        }
        None
    }

    fn walk(&mut self, all: &[u8]) -> Looked {
        let mut looked = Looked::default();
        loop {
            let rest = all.get(looked.seen..).unwrap_or_default();
            match self.follower.step(rest) {
                Ok(Step::More) => return looked,
                Ok(Step::Pass(length)) => looked.pass(all, length),
                Ok(Step::Head(length)) => {
                    looked.begins(self.handed_on());
                    looked.pass(all, length);
                }
                Ok(Step::Replace(length, with)) => looked.replace(all, length, &with),
                Err(refused) => {
                    self.refuse(&mut looked, all, refused);
                    return looked;
                }
            }
        }
    }

    /// Another head passes; its number.
    fn handed_on(&self) -> u64 {
        let mut shared = self.wire.lock();
        let number = shared.heads;
        shared.heads += 1;
        if self.follower.is_offered() {
            shared.offer = Some((number, None));
        }
        number
    }

    /// Takes the request out, if the library has not seen its head; else it can only break off.
    fn refuse(&mut self, looked: &mut Looked, all: &[u8], refused: Refused) {
        let is_in_body = self.follower.is_mid_message() || self.follower.is_offered();
        let begun = looked.begun.filter(|_| is_in_body);
        if is_in_body && begun.is_none() {
            self.ending = Ending::Broken(refused);
            self.wire.lock().broken = Some(refused);
            looked.replace(all, all.len() - looked.seen, &[]);
            return;
        }
        let mut shared = self.wire.lock();
        let number = begun.map_or(shared.heads, |(number, _)| number);
        shared.heads = number + 1;
        shared.refused = Some((number, refused));
        drop(shared);
        self.ending = Ending::Marked;
        looked.replace(all, all.len() - looked.seen, &[]);
        if let (Some((_, at)), Some(bytes)) = (begun, &mut looked.replaced) {
            bytes.truncate(at);
        }
        looked
            .replaced
            .get_or_insert_default()
            .extend_from_slice(MARKER);
    }
}

/// What became of the bytes so far.
#[derive(Default)]
struct Looked {
    seen: usize,
    /// All that passes, where that is not simply what was seen.
    replaced: Option<Vec<u8>>,
    /// The last request whose head is among what passes: its number, and where it begins there.
    begun: Option<(u64, usize)>,
}

impl Looked {
    fn begins(&mut self, number: u64) {
        let at = self.replaced.as_ref().map_or(self.seen, Vec::len);
        self.begun = Some((number, at));
    }

    fn pass(&mut self, all: &[u8], length: usize) {
        if let Some(replaced) = &mut self.replaced {
            let passes = all.get(self.seen..self.seen + length);
            replaced.extend_from_slice(passes.unwrap_or_default());
        }
        self.seen += length;
    }

    fn replace(&mut self, all: &[u8], length: usize, with: &[u8]) {
        let seen = all.get(..self.seen).unwrap_or_default();
        let replaced = self.replaced.get_or_insert_with(|| seen.to_vec());
        replaced.extend_from_slice(with);
        self.seen += length;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        loop {
            if !me.ready.is_empty() {
                let now = me.ready.len().min(buffer.remaining());
                buffer.put_slice(me.ready.get(..now).unwrap_or_default());
                me.ready.drain(..now);
                return Poll::Ready(Ok(()));
            }
            match me.ending {
                Ending::None => {}
                Ending::Marked => return Poll::Ready(Ok(())),
                Ending::Broken(refused) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refused)));
                }
            }
            ready!(me.poll_answer(context));
            let before = buffer.filled().len();
            let read = Pin::new(&mut me.stream).poll_read(context, buffer)?;
            if read.is_pending() {
                if me.follower.is_mid_message() {
                    ready!(me.reading.poll(context, me.patience.body));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                return Poll::Pending;
            }
            me.reading.clear();
            let fresh = buffer.filled().get(before..).unwrap_or_default();
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let passes = me.look(fresh).unwrap_or_default();
            buffer.set_filled(before + passes);
            if passes > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S> Guarded<S> {
    /// Behind an offer to switch protocols nothing is read until it is answered.
    fn poll_answer(&mut self, context: &Context<'_>) -> Poll<()> {
        if !self.follower.is_offered() {
            return Poll::Ready(());
        }
        let mut shared = self.wire.lock();
        match shared.offer {
            Some((_, None)) => {
                shared.waiting = Some(context.waker().clone());
                Poll::Pending
            }
            Some((_, Some(switched))) => {
                self.follower.answered(switched);
                Poll::Ready(())
            }
            None => Poll::Ready(()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = &mut *self;
        let written = Pin::new(&mut me.stream).poll_write(context, bytes);
        me.writing.bound(context, me.patience.write, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = &mut *self;
        let written = Pin::new(&mut me.stream).poll_write_vectored(context, buffers);
        me.writing.bound(context, me.patience.write, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        let flushed = Pin::new(&mut me.stream).poll_flush(context);
        me.writing.bound(context, me.patience.write, flushed)
    }

    /// Where not all was read that the caller sent, the rest is read for a moment: a socket that
    /// is closed over unread bytes takes the answer back that was just written.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        if me.lingering.is_none() {
            let shut = Pin::new(&mut me.stream).poll_shutdown(context);
            ready!(me.writing.bound(context, me.patience.write, shut))?;
            if me.ending == Ending::None && !me.follower.is_mid_message() {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = me.lingering.get_or_insert_default();
        linger.poll(context, &mut me.stream).map(Ok)
    }
}

/// Reading on after the last answer, within bounds.
#[derive(Default)]
struct Linger {
    deadline: Deadline,
    read: usize,
}

impl Linger {
    fn poll<S: AsyncRead + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<()> {
        let mut scrap = [0; 4096];
        while self.read < LINGER_BYTES {
            let mut buffer = ReadBuf::new(&mut scrap);
            match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.read += buffer.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.deadline.poll(context, LINGER),
            }
        }
        Poll::Ready(())
    }
}

/// A wait that is begun when it is first looked at.
#[derive(Default)]
struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    fn clear(&mut self) {
        self.0 = None;
    }

    fn poll(&mut self, context: &mut Context<'_>, patience: Duration) -> Poll<()> {
        let sleep = self
            .0
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + patience)));
        sleep.as_mut().poll(context)
    }

    /// An error instead of waiting longer than this.
    fn bound<T>(
        &mut self,
        context: &mut Context<'_>,
        patience: Duration,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.clear();
            return outcome;
        }
        self.poll(context, patience)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// What stands in the place of a refused request. Its method is a token, and no method.
const MARKER: &[u8] = b"- / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// How long, and how much, is read on after the last answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::Arc,
        task::{Context, Poll, Waker},
        time::Duration,
    };

    use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf, duplex};

    use super::{Guarded, MARKER, Patience, Refused, Wire};

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(30),
        body: Duration::from_millis(50),
        write: Duration::from_secs(30),
    };
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// What the library sees of these pieces, each read by itself, and the refused request.
    async fn seen(pieces: &[&str]) -> (String, bool, Option<(u64, Refused)>) {
        let (mut caller, stream) = duplex(1 << 16);
        let wire = Arc::new(Wire::default());
        let mut guarded = Guarded::new(stream, wire.clone(), PATIENCE);
        let mut all = Vec::new();
        let mut ended_well = true;
        for piece in pieces {
            caller.write_all(piece.as_bytes()).await.unwrap();
            // A piece of which nothing passes leaves the reader waiting.
            let mut space = [0; 8192];
            let mut buffer = ReadBuf::new(&mut space);
            let mut context = Context::from_waker(Waker::noop());
            let read = Pin::new(&mut guarded).poll_read(&mut context, &mut buffer);
            if let Poll::Ready(Ok(())) = read {
                all.extend_from_slice(buffer.filled());
            }
        }
        drop(caller);
        let mut rest = Vec::new();
        ended_well &= guarded.read_to_end(&mut rest).await.is_ok();
        all.extend(rest);
        let refused = wire.lock().refused;
        (String::from_utf8(all).unwrap(), ended_well, refused)
    }

    #[tokio::test]
    async fn a_refused_request_is_taken_out_and_marked_in_its_turn() {
        let marker = String::from_utf8(MARKER.to_vec()).unwrap();
        let bad = "GET / HTTP/1.1\nHost: a\n\n";
        let chunked = format!("{CHUNKED}5x\r\nhello\r\n0\r\n\r\n");
        let line_end = Some(Refused::LineEnd);
        let size = Some(Refused::ChunkSize);
        let chunk_end = Some(Refused::ChunkEnd);
        let late = format!("{CHUNKED}5\r\nhello!\r\n0\r\n\r\n");
        for (pieces, expected, number, refused) in [
            (vec![bad], marker.clone(), 0, line_end),
            (vec![GET, bad], format!("{GET}{marker}"), 1, line_end),
            (
                vec![&format!("{GET}{bad}{GET}")],
                format!("{GET}{marker}"),
                1,
                line_end,
            ),
            (vec!["GET / HT", "TP/1.1\n"], marker.clone(), 0, line_end),
            (
                vec![&format!("{GET}{chunked}")],
                format!("{GET}{marker}"),
                1,
                size,
            ),
            (vec![&late], marker.clone(), 0, chunk_end),
            (vec![&format!("\r\n{late}")], marker.clone(), 0, chunk_end),
        ] {
            let (all, ended_well, found) = seen(&pieces).await;
            assert_eq!(all, expected, "{pieces:?}");
            assert!(ended_well, "{pieces:?}");
            assert_eq!(
                found,
                refused.map(|refused| (number, refused)),
                "{pieces:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_body_that_goes_wrong_after_its_head_was_seen_breaks_off() {
        let (all, ended_well, refused) = seen(&[CHUNKED, "5\r\nhello!\r\n0\r\n\r\n"]).await;
        assert_eq!(all, format!("{CHUNKED}5\r\nhello"));
        assert!(!ended_well);
        assert_eq!(refused, None);
    }

    #[tokio::test]
    async fn what_is_good_passes_in_whatever_pieces_it_comes() {
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        let all = format!("{GET}{post}{CHUNKED}5\r\nhello\r\n0\r\nX: y\r\n\r\n{GET}");
        for size in [1, 5, 17, 100, 1000] {
            let pieces: Vec<&str> = all
                .as_bytes()
                .chunks(size)
                .map(|piece| std::str::from_utf8(piece).unwrap())
                .collect();
            assert_eq!(
                seen(&pieces).await,
                (all.clone(), true, None),
                "pieces of {size}"
            );
        }
    }

    #[tokio::test]
    async fn a_body_that_stops_coming_ends_the_stream() {
        // FAULTS 94
        let (mut caller, stream) = duplex(1 << 16);
        let mut guarded = Guarded::new(stream, Arc::default(), PATIENCE);
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n";
        caller.write_all(head.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let error = guarded.read_to_end(&mut all).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(all, head.as_bytes());
    }
}
