//! The Unix socket: where it may lie, and the connections it yields.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep},
};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::{
    PinError, PinnedProcess,
    http2_authority::AuthorityMend,
    places::{Held, Idle, Limits, Place, Places},
};
use crate::{
    attest::reading::Lack,
    telemetry::{CONNECTIONS, CONNECTIONS_OF_USER, Metrics},
};

/// Binds a socket.
///
/// A socket that is left over is removed only when nobody serves it. Anything else in its place is
/// somebody's, and is not touched.
///
/// # Errors
/// What is in the way, and what to do about it.
pub fn bind(path: &Path, mode: u32) -> anyhow::Result<StdUnixListener> {
    let folder = path.parent().context("a socket needs a folder")?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    check_folder(folder)?;
    clear(path)?;
    let listener =
        StdUnixListener::bind(path).with_context(|| format!("cannot bind `{}`", path.display()))?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of `{}`", path.display()))?;
    Ok(listener)
}

/// Checks a socket that the service manager has made: it may lie where ours may, and nobody may reach
/// it whom `mode` keeps out.
///
/// # Errors
/// Who could replace it, or reach it, and what to do about it.
pub fn check_inherited(path: &Path, mode: u32) -> anyhow::Result<()> {
    check_folder(path.parent().context("a socket needs a folder")?)?;
    let found = fs::symlink_metadata(path)
        .with_context(|| format!("cannot look at the inherited socket `{}`", path.display()))?;
    let is = found.permissions().mode() & 0o777;
    if is & !mode != 0 {
        bail!(
            "the inherited socket `{}` has mode {is:04o} and is open to others; `SocketMode={mode:04o}`",
            path.display()
        );
    }
    Ok(())
}

/// Closes what has waited at an inherited socket since before we served, and tells how much it was.
/// It may have waited for long, and who opened it may be another program by now: the moment between a
/// connection and its acceptance is to be an instant. Clients connect again.
///
/// # Errors
/// The kernel's own.
pub fn turn_away_early(listener: &StdUnixListener) -> io::Result<usize> {
    for closed in 0..MAX_EARLY {
        match listener.accept() {
            Ok((stream, _)) => drop(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(closed),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(MAX_EARLY)
}

fn check_folder(folder: &Path) -> anyhow::Result<()> {
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
    Ok(())
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

/// The connections of a socket, within limits: further ones of a user are closed unless one of his
/// gives way, further ones in all wait in the kernel's queue.
pub fn incoming(
    listener: UnixListener,
    limits: Limits,
    metrics: Arc<Metrics>,
) -> impl Stream<Item = io::Result<Connection>> {
    let state = (listener, Places::new(limits), metrics);
    futures_util::stream::unfold(state, |(listener, places, metrics)| async move {
        let connection = loop {
            let permit = places.free(|| metrics.reached(CONNECTIONS)).await?;
            match listener.accept().await {
                Ok((stream, _)) => match held(&stream, &places, permit, &metrics) {
                    Some(held) => match pin(&stream, &held) {
                        Ok(caller) => break Connection::new(stream, held, caller),
                        // Closed, so that the client comes again: who it was would never be known
                        // on this one.
                        Err(lack) => {
                            metrics.looks_failed.inc();
                            tracing::warn!(error = %lack, "cannot accept a connection");
                            drop((stream, held));
                            sleep(Duration::from_millis(50)).await;
                        }
                    },
                    // Closed at once; whoever has so many of them open knows why.
                    None => tracing::debug!("a user has too many connections"),
                },
                // One connection's trouble, or a lack of descriptors: never the end of the loop.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        };
        Some((Ok(connection), (listener, places, metrics)))
    })
}

fn held(
    stream: &UnixStream,
    places: &Arc<Places>,
    permit: OwnedSemaphorePermit,
    metrics: &Metrics,
) -> Option<Held> {
    let user = stream.peer_cred().ok()?.uid();
    let short = || metrics.reached(CONNECTIONS_OF_USER);
    places.take(permit, user, Instant::now(), short)
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
    /// Until when it must have begun to speak HTTP/2, or when to look whether anything is open.
    look: Pin<Box<Sleep>>,
    held: Held,
}

/// Who opened a connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The process, or why it could not be pinned.
    pub process: Arc<Result<Arc<PinnedProcess>, PinError>>,
    /// The place that the connection has.
    pub place: Arc<Place>,
}

/// Who opened a connection. Asked at once: the longer we waited, the more could have happened.
fn pin(stream: &UnixStream, held: &Held) -> Result<Caller, Lack> {
    match PinnedProcess::at(stream) {
        Err(PinError::Lack(lack)) => Err(lack),
        pinned => Ok(Caller {
            process: Arc::new(pinned.map(Arc::new)),
            place: held.place.clone(),
        }),
    }
}

impl Connection {
    fn new(stream: UnixStream, held: Held, caller: Caller) -> Self {
        Self {
            stream,
            mend: AuthorityMend::default(),
            ready: BytesMut::new(),
            caller,
            read: 0,
            look: Box::pin(sleep(PATIENCE)),
            held,
        }
    }

    /// Nothing is to be read now: is the connection to end?
    fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.held.is_closed(context.waker()) {
            return Poll::Ready(io::ErrorKind::ConnectionAborted.into());
        }
        loop {
            ready!(self.look.as_mut().poll(context));
            if self.read < FIRST_BYTES {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            match self.held.look(Instant::now(), context.waker()) {
                Idle::Ended => return Poll::Ready(io::ErrorKind::TimedOut.into()),
                Idle::Until(next) => self.look.as_mut().reset(next),
            }
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
            if polled.is_pending() {
                return this.poll_ended(context).map(Err);
            }
            this.read = this.read.saturating_add(read.filled().len());
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

/// Longer than the kernel's queue is on any usual machine (`net.core.somaxconn`).
const MAX_EARLY: usize = 1 << 16;

/// Who opens a connection has something to say.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request of the Workload API is smaller.
const READ_BYTES: usize = 4096;
