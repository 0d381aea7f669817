//! What is spoken, by the first bytes.

mod late;

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

use crate::relay;
pub(crate) use late::{Late, Outcome};

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
/// case or of other characters, empty lines and spaces before it, tabs behind it. It is refused as
/// such, and never carried as opaque bytes past the checks of requests. Two beginnings are none, since other
/// protocols have them: a word of more letters than any method has, and one that is no word in capitals and
/// ends the bytes for a while.
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
    // Some servers skip as many as there are.
    if spaces > MOST_SPACES {
        return Some(Spoken::Http1);
    }
    let (method, rest) = first_word(first);
    match rest {
        [] if method.len() <= LONGEST_METHOD => None,
        [b' ', ..] if is_capital(method) && !could_be_http2 => Some(Spoken::Http1),
        [_, ..] if could_be_http2 => None,
        [gap, ..] if !method.is_empty() && is_gap(*gap) => of_target(rest),
        _ => Some(Spoken::Other),
    }
}

/// What could be a method, and what is behind it. Spec: RFC 9110 section 5.6.2 (token).
fn first_word(first: &[u8]) -> (&[u8], &[u8]) {
    let line = first.trim_ascii_start();
    let is_token = |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let letters = line.iter().take_while(is_token).count();
    line.split_at_checked(letters).unwrap_or_default()
}

/// Is it a word as methods are: letters in upper case?
fn is_capital(word: &[u8]) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_uppercase() || *byte == b'-';
    !word.is_empty() && word.iter().all(is_letter)
}

/// What some servers take for a space.
fn is_gap(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c)
}

/// Words in lower case are no method, and many protocols begin with some; so do they with digits. Only
/// where a path, `*` or `http` follows, and the line names HTTP itself, they are taken for a request.
fn of_target(rest: &[u8]) -> Option<Spoken> {
    let gap = rest.iter().take_while(|byte| is_gap(**byte)).count();
    let target = rest.get(gap..).unwrap_or_default();
    let scheme = target.get(..target.len().min(SCHEME.len()));
    let scheme = scheme.unwrap_or_default();
    let is_scheme = SCHEME
        .get(..scheme.len())
        .is_some_and(|part| part.eq_ignore_ascii_case(scheme));
    match target {
        // `OPTIONS *` asks about the server as a whole.
        [b'/' | b'*', ..] => of_line(rest),
        _ if is_scheme => of_line(rest),
        _ => Some(Spoken::Other),
    }
}

fn of_line(line: &[u8]) -> Option<Spoken> {
    let end = line.iter().position(|byte| *byte == b'\n');
    let names_http = |line: &[u8]| {
        let is_it = |part: &[u8]| match part {
            [gap, name @ ..] => is_gap(*gap) && name.eq_ignore_ascii_case(b"HTTP/"),
            [] => false,
        };
        line.windows(6).any(is_it)
    };
    match end.and_then(|end| line.get(..end)) {
        Some(line) if names_http(line) => Some(Spoken::Http1),
        None if line.len() < LONGEST_LINE => None,
        None => Some(Spoken::Http1),
        Some(_) => Some(Spoken::Other),
    }
}

/// Could these bytes, which are not enough to tell, be the beginning of a request?
fn may_become_http(first: &[u8]) -> bool {
    let (method, rest) = first_word(first);
    match rest {
        [] => !first.is_empty() && (method.is_empty() || is_capital(method)),
        [..] => classify(first).is_none(),
    }
}

/// Why nobody can tell what is spoken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undetected {
    /// The stream's own error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A request was begun, and within so long nobody could tell that it is one.
    #[error("what begins like a request of HTTP does not go on within {0:?}")]
    Unfinished(Duration),
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
    /// [`SILENCE`]. What [`may_become_http`] is never taken for anything else, however slowly it
    /// comes.
    ///
    /// # Errors
    /// [`Undetected`], where a request was begun and is not one within `patience`; callers refuse.
    pub(crate) async fn spoken_within(
        &mut self,
        patience: Duration,
    ) -> Result<Option<Spoken>, Undetected> {
        if let Ok(spoken) = timeout(SILENCE, self.spoken()).await {
            return Ok(Some(spoken?));
        }
        if may_become_http(&self.first) {
            let spoken = timeout(patience, self.spoken()).await;
            let spoken = spoken.map_err(|_| Undetected::Unfinished(patience))?;
            return Ok(Some(spoken?));
        }
        Ok((!self.first.is_empty()).then_some(Spoken::Other))
    }

    /// For a caller that has said nothing yet: whoever speaks first decides. If that is `other`, the
    /// connection is opaque; if it is the caller, it is what the caller speaks, whatever the other
    /// side says meanwhile.
    ///
    /// # Errors
    /// As [`Self::spoken_within`], and the error of [`relay::too_silent`] when nobody speaks for
    /// `idle`.
    pub(crate) async fn whoever_begins(
        &mut self,
        other: impl Future,
        idle: Duration,
        patience: Duration,
    ) -> Result<Spoken, Undetected> {
        tokio::select! {
            biased;
            begun = timeout(idle, self.begun()) => begun.map_err(|_| relay::too_silent(idle))??,
            _ = other => return Ok(Spoken::Other),
        }
        let spoken = self.spoken_within(patience).await?;
        Ok(spoken.unwrap_or(Spoken::Other))
    }

    /// Waits for the first byte, or the end. Nothing is lost when this is dropped.
    ///
    /// # Errors
    /// The stream's own.
    pub(crate) async fn begun(&mut self) -> io::Result<()> {
        if self.first.is_empty() {
            self.stream.read_buf(&mut self.first).await?;
        }
        Ok(())
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

/// A caller that says nothing for so long may wait for the server to speak first.
pub(crate) const SILENCE: Duration = Duration::from_millis(200);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a target begins that is no path.
const SCHEME: &[u8] = b"http";

/// No method that anybody uses is longer.
const LONGEST_METHOD: usize = 24;

/// The end of a longer first line is not waited for: it is refused as a request.
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
            (b"GET\t/ HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"GET\t/", None),
            (b"GET\x0b/ HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"GET\t/\tHTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"GET\thello", Some(Spoken::Other)),
            (b"A_B / HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"GET1 / HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"12345", None),
            (b"83 <34>1 2003", Some(Spoken::Other)),
            (b"get  / HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"get http", None),
            (b"options * HTTP/1.1\r\n", Some(Spoken::Http1)),
            (b"options *", None),
            (b"copy * here\r\n", Some(Spoken::Other)),
            (b"get hello", Some(Spoken::Other)),
            (&[b'\n'; 17], Some(Spoken::Http1)),
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
    fn what_could_be_a_request_is_waited_for_and_a_word_is_not() {
        for (first, expected) in [
            (&b"G"[..], true),
            (b"GET", true),
            (b"\r\n", true),
            (b"GET\t/", true),
            (b"get /x", true),
            (b"A_B /x", true),
            (b"PRI * HTTP", true),
            (b"", false),
            (b"hello", false),
            (b"12345", false),
            (b"say hello", false),
            (b"\0", false),
        ] {
            assert_eq!(super::may_become_http(first), expected, "{first:?}");
        }
    }

    #[test]
    fn any_first_byte_has_an_answer_soon() {
        for byte in 0..=u8::MAX {
            assert!(classify(&[byte; 64]).is_some(), "{byte}");
        }
    }
}
