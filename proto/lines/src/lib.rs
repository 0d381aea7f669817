//! Lines of logs: put into a bounded queue by whoever has something to say, and written by a thread of
//! their own. A slow disk, or nobody who reads standard output, slows nobody down.
//!
//! What does not fit is lost, counted and told. Lines that must not be lost, those of the audit log,
//! have a share of the queue to themselves, and whoever is about to say one waits for [`Lines::room`].

#![forbid(unsafe_code)]

mod filter;
mod queue;
mod sink;

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use queue::Queue;
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

pub use crate::{
    filter::{filter, is_plain},
    sink::Sink,
};

/// Where lines are put. All clones are the same queue.
#[derive(Debug, Clone)]
pub struct Lines {
    name: &'static str,
    queue: Arc<Queue>,
    lost: Counter,
    /// Tells the end of the thread that writes, once it was begun.
    writing: Arc<Mutex<Option<Receiver<()>>>>,
}

impl Lines {
    /// A queue that nobody empties yet. `name` is for people; `lost` counts what does not fit.
    pub fn new(name: &'static str, lost: Counter) -> Self {
        Self {
            name,
            queue: Arc::new(Queue::default()),
            lost,
            writing: Arc::default(),
        }
    }

    /// One whose lines are written a moment later, many at once: what is said for each request must
    /// not wake a thread for each request.
    pub fn gathering(name: &'static str, lost: Counter) -> Self {
        Self {
            queue: Arc::new(Queue::gathering(GATHERING)),
            ..Self::new(name, lost)
        }
    }

    /// Counts the lines that were lost.
    pub fn lost(&self) -> Counter {
        self.lost.clone()
    }

    /// Puts a line, with its end, into the queue. Never waits.
    pub fn push(&self, line: &[u8]) {
        self.put(line, queue::BOUND);
    }

    /// The same for a line that must not be lost; see [`Self::room`].
    pub fn push_kept(&self, line: &[u8]) {
        self.put(line, queue::BOUND + queue::KEPT);
    }

    fn put(&self, line: &[u8], bound: usize) {
        if !self.queue.push(line, bound) {
            self.lost.inc();
        }
    }

    /// Waits until others have left the share of lines that must not be lost, which is then free for
    /// many of them.
    pub async fn room(&self) {
        self.queue.room().await;
    }

    /// Is a line that is said at once by [`Self::push_kept`] sure not to be lost?
    pub fn has_room(&self) -> bool {
        self.queue.len() <= queue::BOUND + queue::KEPT / 2
    }

    /// Opens the file anew before the next line, as after `logrotate` has moved it.
    pub fn reopen(&self) {
        self.queue.reopen();
    }

    /// Starts the thread that writes. `first` is what it does first, such as giving up rights.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn begin(&self, sink: Sink, first: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let (ending, ended) = sync_channel(1);
        let writer = Writer {
            lines: self.clone(),
            sink,
            told: Told::default(),
        };
        let thread = thread::Builder::new().name(self.name.into());
        thread.spawn(move || {
            first();
            writer.run(&ending);
        })?;
        *self.writing() = Some(ended);
        Ok(())
    }

    /// Has the thread write what is there and end, and waits for that, but not for ever: who would
    /// have to read it may be gone. Later lines are lost.
    pub fn end(&self) {
        self.queue.close();
        if let Some(ended) = self.writing().take() {
            let _ = ended.recv_timeout(LAST_LINES);
        }
    }

    /// Ends the log when this is dropped, also where nobody has begun to write it yet.
    pub fn until_dropped(&self) -> Guard {
        Guard(self.clone())
    }

    fn writing(&self) -> std::sync::MutexGuard<'_, Option<Receiver<()>>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Lines::until_dropped`].
#[derive(Debug)]
pub struct Guard(Lines);

impl Drop for Guard {
    fn drop(&mut self) {
        let is_begun = self.0.writing().is_some();
        // Without a thread there is nobody to tell.
        if is_begun || self.0.begin(Sink::stdout(), || {}).is_ok() {
            self.0.end();
        }
    }
}

/// The thread that writes.
struct Writer {
    lines: Lines,
    sink: Sink,
    told: Told,
}

/// What was said of troubles, so that it is not said all the time.
#[derive(Default)]
struct Told {
    lost: u64,
    at: Option<Instant>,
    fails: bool,
}

impl Writer {
    fn run(mut self, ending: &SyncSender<()>) {
        let name = self.lines.name;
        let mut batch = Vec::new();
        while let Some(next) = self.lines.queue.next(&mut batch) {
            if next.reopen
                && let Err(error) = self.sink.reopen()
            {
                tracing::error!(log = name, %error, "a log cannot be opened anew, the old file stays");
            }
            let written = self.sink.write(&batch);
            if let Err(error) = &written {
                self.lines.lost.inc_by(next.lines);
                if !self.told.fails {
                    tracing::error!(log = name, %error, "a log cannot be written");
                }
            }
            self.told.fails = written.is_err();
            self.tell();
            batch.clear();
            batch.shrink_to(SMALL);
        }
        let _ = ending.try_send(());
    }

    /// Says that lines were lost, once a second at most.
    fn tell(&mut self) {
        let lost = self.lines.lost.get();
        let recently = self.told.at.is_some_and(|at| at.elapsed() < TELL_EVERY);
        // While the queue is full the word itself would be lost.
        let is_full = self.lines.queue.len() > queue::BOUND / 2;
        if lost == self.told.lost || recently || is_full {
            return;
        }
        let more = lost - self.told.lost;
        tracing::warn!(
            log = self.lines.name,
            lost = more,
            "lines of a log were lost"
        );
        (self.told.lost, self.told.at) = (lost, Some(Instant::now()));
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Entry<'a>;

    fn make_writer(&'a self) -> Entry<'a> {
        Entry {
            lines: self,
            is_kept: false,
        }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Entry<'a> {
        Entry {
            lines: self,
            is_kept: about.target() == AUDIT,
        }
    }
}

/// One line on its way into the queue.
#[derive(Debug)]
pub struct Entry<'a> {
    lines: &'a Lines,
    is_kept: bool,
}

impl io::Write for Entry<'_> {
    /// The library hands over a line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.is_kept {
            true => self.lines.push_kept(line),
            false => self.lines.push(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The target of lines that must not be lost.
pub const AUDIT: &str = "audit";

/// How long a line waits for others to be written with it.
const GATHERING: Duration = Duration::from_millis(20);

/// How long the end waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(2);

const TELL_EVERY: Duration = Duration::from_secs(1);

/// What the thread keeps of its memory after many lines at once.
const SMALL: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, time::Duration};

    use prometheus_client::metrics::counter::Counter;
    use tracing_subscriber::fmt::MakeWriter as _;

    use super::{Lines, Sink, queue};

    fn file() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        (folder, path)
    }

    #[test]
    fn every_line_is_there_at_the_end_and_the_file_is_opened_anew_when_it_was_moved() {
        let (_folder, path) = file();
        let lines = Lines::new("test", Counter::default());
        lines.push(b"before there is a thread\n");
        lines.begin(Sink::open(&path).unwrap(), || {}).unwrap();
        let moved = path.with_extension("1");
        while fs::read(&path).unwrap().is_empty() {
            std::thread::yield_now();
        }
        fs::rename(&path, &moved).unwrap();
        lines.reopen();
        for number in 0..10_000 {
            writeln!(lines.make_writer(), "{number}").unwrap();
        }
        lines.end();
        assert_eq!(
            fs::read_to_string(&moved).unwrap(),
            "before there is a thread\n"
        );
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 10_000);
        assert_eq!(lines.lost().get(), 0);
        lines.push(b"after the end\n");
        assert_eq!(lines.lost().get(), 1);
    }

    #[test]
    fn lines_that_are_gathered_wait_for_others_and_neither_for_ever_nor_at_the_end() {
        let (_folder, path) = file();
        let lines = Lines::gathering("test", Counter::default());
        lines.begin(Sink::open(&path).unwrap(), || {}).unwrap();
        let written = || fs::read(&path).unwrap().len();
        // By themselves.
        lines.push(b"one\n");
        lines.push(b"two\n");
        while written() < 8 {
            std::thread::yield_now();
        }
        // The last ones.
        lines.push(b"three\n");
        lines.end();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn what_does_not_fit_is_counted_and_what_must_be_kept_waits_for_its_place() {
        let lines = Lines::new("test", Counter::default());
        let line = [b'x'; 1024];
        let fit = u64::try_from(queue::BOUND / line.len()).unwrap();
        for _ in 0..fit + 5 {
            lines.push(&line);
        }
        assert_eq!(lines.lost().get(), 5);
        // There is a place that others do not have.
        lines.room().await;
        lines.push_kept(&line);
        assert_eq!(lines.lost().get(), 5);
        let waits = tokio::time::timeout(Duration::ZERO, lines.room()).await;
        assert!(waits.is_err(), "the next one waits");
        assert!(
            lines.has_room(),
            "and if it did not it would not be lost yet"
        );
        while lines.has_room() {
            lines.push_kept(&line);
        }
        assert_eq!(lines.lost().get(), 5);

        let (_folder, path) = file();
        lines.begin(Sink::open(&path).unwrap(), || {}).unwrap();
        lines.room().await;
        lines.end();
        let written = fs::metadata(&path).unwrap().len();
        assert!(written > (fit + 1) * 1024, "{written}");
        assert_eq!(lines.lost().get(), 5);
    }
}
