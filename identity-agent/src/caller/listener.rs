//! The Unix socket: where it may lie, and the connections it yields.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixStream as StdUnixStream,
    },
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use dashmap::DashMap;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::{PinError, PinnedProcess, http2_authority::AuthorityMend};
use crate::telemetry::{CONNECTIONS_OF_USER, Metrics};

/// Binds a socket.
///
/// A socket that is left over is removed only when nobody serves it. Anything else in its place is
/// somebody's, and is not touched.
///
/// # Errors
/// What is in the way, and what to do about it.
pub fn bind(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
    let folder = path.parent().context("a socket needs a folder")?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    let found = fs::metadata(folder)?;
    let own = rustix::process::geteuid().as_raw();
    if ![0, own].contains(&found.uid()) {
        bail!(
            "the folder `{}` belongs to user {}, who could replace the socket; `chown` it",
            folder.display(),
            found.uid()
        );
    }
    let folder_mode = found.permissions().mode();
    // In a sticky folder nobody else may rename or remove what is ours.
    if folder_mode & 0o022 != 0 && folder_mode & 0o1000 == 0 {
        bail!(
            "the folder `{}` can be written by others, who could replace the socket; \
             `chmod go-w` it",
            folder.display()
        );
    }
    clear(path)?;
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot bind `{}`", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of `{}`", path.display()))?;
    Ok(listener)
}

fn clear(path: &Path) -> anyhow::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.with_context(|| format!("cannot look at `{}`", path.display()))?,
    };
    if !found.file_type().is_socket() {
        bail!("`{}` exists and is no socket; move it away", path.display());
    }
    match StdUnixStream::connect(path) {
        Ok(_) => bail!(
            "somebody serves `{}` already; is another agent running?",
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| format!("cannot remove the old socket `{}`", path.display())),
        Err(error) => {
            Err(error).with_context(|| format!("cannot ask who serves `{}`", path.display()))
        }
    }
}

/// The connections of a socket, at most `limit` at once: further ones wait in the kernel's queue.
pub fn incoming(
    listener: UnixListener,
    limit: usize,
    metrics: Arc<Metrics>,
) -> impl Stream<Item = io::Result<Connection>> {
    let free = Arc::new(Semaphore::new(limit));
    let counts = Arc::new(Counts {
        limit: limit / 2,
        by_user: DashMap::new(),
    });
    let state = (listener, free, counts, metrics);
    futures_util::stream::unfold(state, |(listener, free, counts, metrics)| async move {
        let permit = free.clone().acquire_owned().await.ok()?;
        let connection = loop {
            match listener.accept().await {
                Ok((stream, _)) => match counts.clone().count(&stream) {
                    Some(counted) => break Connection::new(stream, permit, counted),
                    // Closed at once; whoever has so many of them open knows why.
                    None => {
                        metrics.reached(CONNECTIONS_OF_USER);
                        tracing::debug!("a user has too many connections");
                    }
                },
                // One connection's trouble, or a lack of descriptors: never the end of the loop.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        };
        Some((Ok(connection), (listener, free, counts, metrics)))
    })
}

/// How many connections each user has: nobody has all of them.
#[derive(Debug)]
struct Counts {
    limit: usize,
    by_user: DashMap<u32, usize>,
}

/// One of them; counted off when it is dropped.
#[derive(Debug)]
struct Counted {
    counts: Arc<Counts>,
    user: u32,
}

impl Counts {
    fn count(self: Arc<Self>, stream: &UnixStream) -> Option<Counted> {
        let user = stream.peer_cred().ok()?.uid();
        {
            let mut own = self.by_user.entry(user).or_default();
            if *own >= self.limit {
                return None;
            }
            *own += 1;
        }
        Some(Counted { counts: self, user })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let dashmap::Entry::Occupied(mut own) = self.counts.by_user.entry(self.user) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

/// A connection, and the process that opened it.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    mend: AuthorityMend,
    /// Read and mended, not yet asked for.
    ready: BytesMut,
    caller: Caller,
    /// How much it has said.
    read: usize,
    /// Until when it must have begun to speak HTTP/2; none once it has.
    silent_until: Option<Pin<Box<Sleep>>>,
    _counted: Counted,
    _permit: OwnedSemaphorePermit,
}

/// The process that opened a connection, or why it could not be pinned.
#[derive(Debug, Clone)]
pub struct Caller(pub Arc<Result<Arc<PinnedProcess>, PinError>>);

impl Connection {
    fn new(stream: UnixStream, permit: OwnedSemaphorePermit, counted: Counted) -> Self {
        // Pinned at once: the longer we waited, the more could have happened.
        let caller = Caller(Arc::new(PinnedProcess::at(&stream).map(Arc::new)));
        Self {
            stream,
            mend: AuthorityMend::default(),
            ready: BytesMut::new(),
            caller,
            read: 0,
            silent_until: Some(Box::pin(sleep(PATIENCE))),
            _counted: counted,
            _permit: permit,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.ready.is_empty() {
            let mut space = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut space);
            let polled = Pin::new(&mut this.stream).poll_read(context, &mut read)?;
            if polled.is_pending()
                && let Some(silent) = &mut this.silent_until
            {
                ready!(silent.as_mut().poll(context));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            ready!(polled);
            this.read += read.filled().len();
            // From here on the library asks whether the other side still lives.
            if this.read >= FIRST_BYTES {
                this.silent_until = None;
            }
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.mend.feed(read.filled(), &mut this.ready);
        }
        let piece = this.ready.len().min(buffer.remaining());
        buffer.put_slice(&this.ready.split_to(piece));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
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

/// The preface of HTTP/2 and the head of its first frame.
const FIRST_BYTES: usize = 24 + 9;

/// Who opens a connection has something to say.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request of the Workload API is smaller.
const READ_BYTES: usize = 4096;
