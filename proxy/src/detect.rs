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
pub(crate) fn classify(first: &[u8]) -> Option<Spoken> {
    let preface = PREFACE
        .get(..first.len().min(PREFACE.len()))
        .unwrap_or_default();
    let could_be_http2 = !first.is_empty() && first.starts_with(preface);
    if could_be_http2 && first.len() >= PREFACE.len() {
        return Some(Spoken::Http2);
    }
    // A method: capital letters, then a space.
    let letters = first
        .iter()
        .take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-')
        .count();
    match first.get(letters) {
        None if letters <= LONGEST_METHOD => None,
        Some(b' ') if letters > 0 && !could_be_http2 => Some(Spoken::Http1),
        Some(_) if could_be_http2 => None,
        _ => Some(Spoken::Other),
    }
}

/// Reads until it is clear what is spoken. A peer that says nothing within `patience` waits for
/// the other side to speak first, which HTTP never does.
///
/// # Errors
/// The stream's own.
pub(crate) async fn detect<S: AsyncRead + Unpin>(
    mut stream: S,
    patience: Duration,
) -> io::Result<(Spoken, Rewound<S>)> {
    let mut first = Vec::with_capacity(64);
    let reading = async {
        loop {
            if let Some(spoken) = classify(&first) {
                return io::Result::Ok(spoken);
            }
            if stream.read_buf(&mut first).await? == 0 {
                return Ok(Spoken::Other);
            }
        }
    };
    let spoken = match timeout(patience, reading).await {
        Ok(spoken) => spoken?,
        Err(_) => Spoken::Other,
    };
    Ok((
        spoken,
        Rewound {
            first,
            read: 0,
            stream,
        },
    ))
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
            (b" GET", Some(Spoken::Other)),
            (b"get /", Some(Spoken::Other)),
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
