//! Live decisions for those who watch: the lines of the access log as they are made.
//!
//! Nobody waits for a watcher. Each has a queue, bounded in lines and in bytes; what does not fit is
//! lost and counted, and the watcher is told how much. While nobody watches, a line costs one look at a number.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// What a line says of itself, for those who want some of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Line<'l> {
    pub(crate) direction: &'l str,
    pub(crate) verdict: Option<&'l str>,
    pub(crate) source: Option<&'l str>,
    pub(crate) path: Option<&'l str>,
}

/// Which lines somebody wants: those that fit all that is said.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) direction: Option<String>,
    pub(crate) verdict: Option<String>,
    /// A whole SPIFFE ID.
    pub(crate) source: Option<String>,
    /// How the path begins.
    pub(crate) path: Option<String>,
}

impl Wanted {
    fn fits(&self, line: Line<'_>) -> bool {
        let is = |wanted: &Option<String>, said: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| said == Some(wanted))
        };
        let begins = |wanted: &String| line.path.is_some_and(|path| path.starts_with(&**wanted));
        is(&self.direction, Some(line.direction))
            && is(&self.verdict, line.verdict)
            && is(&self.source, line.source)
            && self.path.as_ref().is_none_or(begins)
    }
}

/// All who watch.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    open: AtomicUsize,
    next: AtomicU64,
    all: Mutex<Vec<Tap>>,
    /// Counts what was lost, by all of them.
    lost: Counter,
}

#[derive(Debug)]
struct Tap {
    id: u64,
    wanted: Wanted,
    lines: mpsc::Sender<Queued>,
    shared: Arc<Shared>,
}

/// A line that waits, and its share of the bytes.
#[derive(Debug)]
struct Queued {
    text: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

/// What both ends of a tap know.
#[derive(Debug)]
struct Shared {
    /// Lines that did not fit, and of which the watcher was not told yet.
    lost: AtomicU64,
    /// Since when nothing fits any more.
    full_since: Mutex<Option<Instant>>,
    /// How many bytes may still wait.
    room: Arc<Semaphore>,
    ends: CancellationToken,
}

impl Taps {
    /// None yet; `lost` counts the lines that do not fit.
    pub(crate) fn counting(lost: Counter) -> Self {
        Self {
            lost,
            ..Self::default()
        }
    }

    /// Begins to watch, unless too many do.
    pub(crate) fn open(self: &Arc<Self>, wanted: Wanted) -> Option<(Lines, CancellationToken)> {
        let mut all = self.lock();
        if all.len() >= MAX_TAPS {
            return None;
        }
        let (sender, lines) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            lost: AtomicU64::new(0),
            full_since: Mutex::new(None),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            ends: CancellationToken::new(),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        all.push(Tap {
            id,
            wanted,
            lines: sender,
            shared: shared.clone(),
        });
        self.open.store(all.len(), Ordering::Relaxed);
        let (taps, ends) = (self.clone(), shared.ends.clone());
        let lines = Lines {
            taps,
            id,
            lines,
            shared,
        };
        Some((lines, ends))
    }

    /// Does anybody watch?
    pub(crate) fn are_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Shows a line to those who want it. Never waits.
    pub(crate) fn show(&self, line: Line<'_>, text: &[u8]) {
        for tap in self.lock().iter().filter(|tap| tap.wanted.fits(line)) {
            if !tap.show(text) {
                self.lost.inc();
            }
        }
    }

    fn close(&self, id: u64) {
        let mut all = self.lock();
        all.retain(|tap| tap.id != id);
        self.open.store(all.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Tap>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tap {
    /// `false` where the line is lost.
    fn show(&self, text: &[u8]) -> bool {
        let lost = &self.shared.lost;
        // Where lines are missing the watcher is told so, in their place.
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            if self.shared.room(text.len()).is_none()
                || self.lines.try_send(missed(missing)).is_err()
            {
                lost.fetch_add(missing + 1, Ordering::Relaxed);
                self.shared.is_full(Instant::now());
                return false;
            }
            *self.shared.full_since() = None;
        }
        let queued = self.shared.room(text.len()).is_some_and(|room| {
            let text = Bytes::copy_from_slice(text);
            let _room = Some(room);
            self.lines.try_send(Queued { text, _room }).is_ok()
        });
        if !queued {
            lost.fetch_add(1, Ordering::Relaxed);
            self.shared.is_full(Instant::now());
        }
        queued
    }
}

impl Shared {
    /// Room for a line of so many bytes.
    fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        self.room.clone().try_acquire_many_owned(bytes).ok()
    }

    /// A watcher that takes nothing at all makes room for another.
    fn is_full(&self, now: Instant) {
        let since = *self.full_since().get_or_insert(now);
        if now.saturating_duration_since(since) > PATIENCE {
            self.ends.cancel();
        }
    }

    fn full_since(&self) -> MutexGuard<'_, Option<Instant>> {
        let since = self.full_since.lock();
        since.unwrap_or_else(PoisonError::into_inner)
    }
}

fn missed(lines: u64) -> Queued {
    let text = format!("{{\"target\":\"tap\",\"lost\":{lines}}}\n").into();
    Queued { text, _room: None }
}

/// The lines of one watcher: the body of an answer.
#[derive(Debug)]
pub(crate) struct Lines {
    taps: Arc<Taps>,
    id: u64,
    lines: mpsc::Receiver<Queued>,
    shared: Arc<Shared>,
}

impl Lines {
    /// The next line; what was lost is told at the latest when nothing else waits.
    fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let next = self.lines.poll_recv(context);
        let next = next.map(|line| line.map(|line| line.text));
        if next.is_pending() {
            let missing = self.shared.lost.swap(0, Ordering::Relaxed);
            if missing > 0 {
                // It reads.
                *self.shared.full_since() = None;
                return Poll::Ready(Some(missed(missing).text));
            }
        }
        next
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let line = ready!(self.poll_line(context));
        Poll::Ready(line.map(|line| Ok(Frame::data(line))))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.taps.close(self.id);
    }
}

/// How many may watch at once.
pub(crate) const MAX_TAPS: usize = 4;

/// How many lines may wait for a watcher, and how many bytes of them. Documented: docs/operation.md.
const QUEUE: usize = 1024;
const QUEUE_BYTES: usize = 1 << 20;

/// How long a watcher may take nothing while lines wait for it.
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        task::{Context, Poll, Waker},
        time::Duration,
    };

    use super::{Line, Lines, MAX_TAPS, PATIENCE, QUEUE, QUEUE_BYTES, Taps, Wanted};

    fn next(lines: &mut Lines) -> Option<String> {
        match lines.poll_line(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(line) => line.map(|line| String::from_utf8(line.to_vec()).unwrap()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_watcher_gets_what_it_wants_and_nothing_else() {
        let some = |text: &str| Some(text.to_owned());
        let line = Line {
            direction: "inbound",
            verdict: Some("deny"),
            source: Some("spiffe://a/b"),
            path: Some("/api/x"),
        };
        let of = |change: fn(&mut Wanted, Option<String>), text| {
            let mut wanted = Wanted::default();
            change(&mut wanted, some(text));
            wanted.fits(line)
        };
        assert!(Wanted::default().fits(line));
        for (text, fits) in [("inbound", true), ("outbound", false)] {
            assert_eq!(of(|wanted, text| wanted.direction = text, text), fits);
        }
        for (text, fits) in [("deny", true), ("allow", false)] {
            assert_eq!(of(|wanted, text| wanted.verdict = text, text), fits);
        }
        for (text, fits) in [("spiffe://a/b", true), ("spiffe://a/", false)] {
            assert_eq!(of(|wanted, text| wanted.source = text, text), fits);
        }
        for (text, fits) in [("/api", true), ("/api/x/y", false), ("api", false)] {
            assert_eq!(of(|wanted, text| wanted.path = text, text), fits);
        }
        // Who wants something that a line does not say does not get it.
        let wanted = Wanted {
            path: some("/"),
            ..Wanted::default()
        };
        assert!(!wanted.fits(Line::default()));
    }

    #[test]
    fn what_does_not_fit_is_lost_and_told_in_its_place() {
        let taps = Arc::new(Taps::default());
        let (mut lines, _) = taps.open(Wanted::default()).unwrap();
        for number in 0..QUEUE + 3 {
            taps.show(Line::default(), format!("{number}\n").as_bytes());
        }
        for number in 0..2 {
            assert_eq!(next(&mut lines), Some(format!("{number}\n")));
        }
        taps.show(Line::default(), b"later\n");
        for number in 2..QUEUE {
            assert_eq!(next(&mut lines), Some(format!("{number}\n")));
        }
        let lost = "{\"target\":\"tap\",\"lost\":3}\n";
        assert_eq!(next(&mut lines).unwrap(), lost);
        assert_eq!(next(&mut lines).unwrap(), "later\n");
        assert_eq!(next(&mut lines), None);
    }

    #[test]
    fn long_lines_are_bounded_by_their_bytes_and_leave_room_when_they_are_taken() {
        let taps = Arc::new(Taps::default());
        let (mut lines, _) = taps.open(Wanted::default()).unwrap();
        let long = vec![b'x'; QUEUE_BYTES / 4];
        for _ in 0..5 {
            taps.show(Line::default(), &long);
        }
        assert_eq!(taps.lost.get(), 1);
        // Nor does a short one: all of the room is taken.
        taps.show(Line::default(), b"short\n");
        assert_eq!(taps.lost.get(), 2);
        assert_eq!(next(&mut lines).unwrap().len(), long.len());
        taps.show(Line::default(), b"later\n");
        for _ in 0..3 {
            assert_eq!(next(&mut lines).unwrap().len(), long.len());
        }
        let lost = "{\"target\":\"tap\",\"lost\":2}\n";
        assert_eq!(next(&mut lines).unwrap(), lost);
        assert_eq!(next(&mut lines).unwrap(), "later\n");
        assert_eq!(taps.lost.get(), 2);
        // All of the room is back.
        for _ in 0..4 {
            taps.show(Line::default(), &long);
        }
        assert_eq!(taps.lost.get(), 2);
    }

    #[test]
    fn what_was_lost_is_told_even_if_nothing_follows() {
        let taps = Arc::new(Taps::default());
        let (mut lines, _) = taps.open(Wanted::default()).unwrap();
        for _ in 0..QUEUE + 2 {
            taps.show(Line::default(), b"x\n");
        }
        for _ in 0..QUEUE {
            assert_eq!(next(&mut lines).unwrap(), "x\n");
        }
        assert_eq!(
            next(&mut lines).unwrap(),
            "{\"target\":\"tap\",\"lost\":2}\n"
        );
        assert_eq!(next(&mut lines), None);
        assert!(lines.shared.full_since().is_none(), "it reads");
    }

    #[test]
    fn a_watcher_that_takes_nothing_for_a_minute_is_sent_away_and_one_that_takes_little_is_not() {
        let taps = Arc::new(Taps::default());
        let (mut lines, ends) = taps.open(Wanted::default()).unwrap();
        let fill = || (0..=QUEUE).for_each(|_| taps.show(Line::default(), b"x\n"));
        let later = |lines: &Lines| {
            let since = lines.shared.full_since().unwrap();
            lines.shared.is_full(since + PATIENCE);
            lines
                .shared
                .is_full(since + PATIENCE + Duration::from_millis(1));
        };
        fill();
        next(&mut lines);
        // It took one, so that it is told what it lost; then nothing fits again.
        let first = *lines.shared.full_since();
        fill();
        assert!(*lines.shared.full_since() > first && !ends.is_cancelled());
        later(&lines);
        assert!(ends.is_cancelled());
    }

    #[test]
    fn few_may_watch_and_who_ends_makes_room() {
        let taps = Arc::new(Taps::default());
        assert!(!taps.are_open());
        let mut open: Vec<_> = (0..MAX_TAPS)
            .map(|_| taps.open(Wanted::default()).unwrap())
            .collect();
        assert!(taps.are_open() && taps.open(Wanted::default()).is_none());
        open.pop();
        open.push(taps.open(Wanted::default()).unwrap());
        drop(open);
        assert!(!taps.are_open());
    }
}
