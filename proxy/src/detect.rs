//! What is spoken, by the first bytes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::timeout,
};

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Something else.
    Other,
}

/// Tells what is spoken; `None` as long as it could still be several things. Pure.
///
/// What any server could take for HTTP is HTTP, also where it is not well formed: a method in lower
/// case, empty lines and spaces before it. It is refused as such, and never carried as opaque bytes
/// past the checks of requests.
pub(crate) fn classify(first: &[u8]) -> Option<Spoken> {
    let preface = PREFACE
        .get(..first.len().min(PREFACE.len()))
        .unwrap_or_default();
    let could_be_http2 = !first.is_empty() && first.starts_with(preface);
    if could_be_http2 && first.len() >= PREFACE.len() {
        return Some(Spoken::Http2);
    }
    let spaces = first.iter().take_while(|byte| byte.is_ascii_whitespace());
    let spaces = spaces.count();
    if spaces > MOST_SPACES {
        return Some(Spoken::Other);
    }
    let line = first.get(spaces..).unwrap_or_default();
    // A method: letters, then a space.
    let letters = line
        .iter()
        .take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'-')
        .count();
    let (method, rest) = line.split_at_checked(letters).unwrap_or_default();
    let is_capital = !method.iter().any(u8::is_ascii_lowercase);
    match rest {
        [] if letters <= LONGEST_METHOD => None,
        [b' '] if letters > 0 && !is_capital => None,
        [b' ', ..] if letters > 0 && is_capital && !could_be_http2 => Some(Spoken::Http1),
        [b' ', b'/' | b'*' | b'h' | b'H', ..] if letters > 0 && !is_capital => of_line(rest),
        [_, ..] if could_be_http2 => None,
        _ => Some(Spoken::Other),
    }
}

/// Words in lower case are no method, and many protocols begin with some. Only a line that names
/// HTTP itself is taken for a request.
fn of_line(line: &[u8]) -> Option<Spoken> {
    let end = line.iter().position(|byte| *byte == b'\n');
    let names_http = |line: &[u8]| {
        line.windows(6)
            .any(|part| part.eq_ignore_ascii_case(b" HTTP/"))
    };
    match end.and_then(|end| line.get(..end)) {
        Some(line) if names_http(line) => Some(Spoken::Http1),
        None if line.len() < LONGEST_LINE => None,
        _ => Some(Spoken::Other),
    }
}

/// Could these bytes, which are not enough to tell, be the beginning of a request?
fn may_become_http(first: &[u8]) -> bool {
    !first.is_empty() && !first.iter().any(u8::is_ascii_lowercase)
}

/// A stream that is looked at until it is clear what is spoken.
#[derive(Debug)]
pub(crate) struct Detecting<S> {
    first: Vec<u8>,
    stream: S,
}

impl<S: AsyncRead + Unpin> Detecting<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            first: Vec::with_capacity(64),
            stream,
        }
    }

    /// Reads until it is clear. Nothing is lost when this is dropped.
    ///
    /// # Errors
    /// The stream's own.
    pub(crate) async fn spoken(&mut self) -> io::Result<Spoken> {
        loop {
            if let Some(spoken) = classify(&self.first) {
                return Ok(spoken);
            }
            if self.stream.read_buf(&mut self.first).await? == 0 {
                return Ok(Spoken::Other);
            }
        }
    }

    /// Like [`Self::spoken`] for a caller that nobody trusts; `None` if it says nothing within
    /// `silence`. What could become a request is never taken for anything else, however slowly it
    /// comes.
    ///
    /// # Errors
    /// The stream's own, and [`io::ErrorKind::TimedOut`] where a request was begun, and within
    /// `patience` nobody could tell that it is one.
    pub(crate) async fn spoken_within(
        &mut self,
        silence: Duration,
        patience: Duration,
    ) -> io::Result<Option<Spoken>> {
        if let Ok(spoken) = timeout(silence, self.spoken()).await {
            return spoken.map(Some);
        }
        if may_become_http(&self.first) {
            return match timeout(patience, self.spoken()).await {
                Ok(spoken) => spoken.map(Some),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
        }
        Ok((!self.first.is_empty()).then_some(Spoken::Other))
    }

    /// The stream, from its first byte on.
    pub(crate) fn rewound(self) -> Rewound<S> {
        Rewound {
            first: self.first,
            read: 0,
            stream: self.stream,
        }
    }
}

/// Reads until it is clear what is spoken. A peer that says nothing within `patience` waits for
/// the other side to speak first, which HTTP never does.
///
/// # Errors
/// The stream's own.
pub(crate) async fn detect<S: AsyncRead + Unpin>(
    stream: S,
    patience: Duration,
) -> io::Result<(Spoken, Rewound<S>)> {
    let mut detecting = Detecting::new(stream);
    let spoken = match timeout(patience, detecting.spoken()).await {
        Ok(spoken) => spoken?,
        Err(_) => Spoken::Other,
    };
    Ok((spoken, detecting.rewound()))
}

/// A stream whose first bytes were looked at and are read again.
#[derive(Debug)]
pub(crate) struct Rewound<S> {
    first: Vec<u8>,
    read: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        match me.first.get(me.read..) {
            Some(left) if !left.is_empty() => {
                let now = left
                    .get(..buffer.remaining().min(left.len()))
                    .unwrap_or_default();
                buffer.put_slice(now);
                me.read += now.len();
                if me.read == me.first.len() {
                    me.first = Vec::new();
                    me.read = 0;
                }
                Poll::Ready(Ok(()))
            }
            _ => Pin::new(&mut me.stream).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
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

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// No method that anybody uses is longer.
const LONGEST_METHOD: usize = 24;

/// A longer first line in lower case is not waited for.
const LONGEST_LINE: usize = 16 << 10;

/// Empty lines and spaces that a server could skip.
const MOST_SPACES: usize = 16;

#[cfg(test)]
mod tests {
    use super::{PREFACE, Spoken, classify};

    #[test]
    fn the_first_bytes_tell_what_is_spoken() {
        for (first, expected) in [
            (&b""[..], None),
            (b"G", None),
            (b"GET", None),
            (b"GET ", Some(Spoken::Http1)),
            (b"M-SEARCH ", Some(Spoken::Http1)),
            (b"P", None),
            (b"POST /", Some(Spoken::Http1)),
            (b"PRI", None),
            (b"PRI * HTTP/2.0\r\n", None),
            (b"PRI * HTTP/1.1\r\n", Some(Spoken::Http1)),
            (PREFACE, Some(Spoken::Http2)),
            (b" GET", None),
            (b" GET /", Some(Spoken::Http1)),
            (b"\r\n\r\nGET /", Some(Spoken::Http1)),
            (b"get", None),
            (b"get ", None),
            (b"get /", None),
            (b"get / HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"Get http://a/ http/1.1\r\n", Some(Spoken::Http1)),
            (b"get /key\r\n", Some(Spoken::Other)),
            (b"get hello\r\n", Some(Spoken::Other)),
            (b"get key\r\n", Some(Spoken::Other)),
            (b"stats items\r\n", Some(Spoken::Other)),
            (b"ruok\n", Some(Spoken::Other)),
            (b"PING\r\n", Some(Spoken::Other)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Spoken::Other)),
            (b"<?xml version", Some(Spoken::Other)),
            (b"{\"a\": 1}", Some(Spoken::Other)),
            (b"\x16\x03\x01", Some(Spoken::Other)),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(Spoken::Other)),
            (b"GET\r\n", Some(Spoken::Other)),
        ] {
            assert_eq!(classify(first), expected, "{first:?}");
        }
    }

    #[test]
    fn any_first_byte_has_an_answer_soon() {
        for byte in 0..=u8::MAX {
            assert!(classify(&[byte; 64]).is_some(), "{byte}");
        }
    }
}
