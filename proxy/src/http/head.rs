//! The head of an HTTP/1 request, byte for byte.
//!
//! Pure. HTTP libraries forgive: a line that ends in a bare line feed, a length with a sign, an
//! encoding spelled oddly. Each of these is read in one way here and in another by some app, and
//! between two readings a second request hides. So only the plain form passes; everything else is
//! refused before any library sees it. Spec: RFC 9112 sections 2.2 to 6.3, read strictly.

use http::StatusCode;

/// Why bytes are refused: not the HTTP/1 of the specification, or more of it than is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// A line feed without a carriage return before it, or the other way round.
    #[error("a line ends in something else than carriage return and line feed")]
    LineEnd,
    /// Not `METHOD SP TARGET SP VERSION`.
    #[error("the request line is not `METHOD TARGET VERSION` with one space between")]
    RequestLine,
    /// Neither 1.0 nor 1.1.
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
    /// A line that begins with a space or a tab.
    #[error("a header field is folded over two lines")]
    Folded,
    /// Not a token that is followed at once by a colon.
    #[error("a header field's name is no token, or is not followed by a colon")]
    FieldName,
    /// Control characters in a value.
    #[error("a header field's value holds a control character")]
    FieldValue,
    /// A second spelling of a field that frames messages.
    #[error("a header field is a second spelling of one that frames the message")]
    Lookalike,
    /// Neither one, nor a plain decimal number.
    #[error("the content length is not one plain decimal number")]
    Length,
    /// Not exactly `chunked`, once.
    #[error("the transfer encoding is not exactly `chunked`")]
    Encoding,
    /// Length and encoding at once.
    #[error("the request has both a content length and a transfer encoding")]
    LengthAndEncoding,
    /// HTTP/1.0 knows no encoding.
    #[error("HTTP/1.0 has no transfer encoding")]
    OldEncoding,
    /// None or several.
    #[error("the request has no host, or more than one")]
    Host,
    /// Another expectation than `100-continue`.
    #[error("the expectation is not `100-continue`")]
    Expectation,
    /// Bytes behind an offer to switch protocols, before it was answered.
    #[error("bytes follow an offer to switch protocols that is not answered yet")]
    EarlyBytes,
    /// A longer target than is taken.
    #[error("the target is longer than {MAX_TARGET_BYTES} bytes")]
    TargetTooLong,
    /// A longer head than is taken.
    #[error("the head is longer than {MAX_HEAD_BYTES} bytes")]
    HeadTooLong,
    /// More fields than are taken.
    #[error("the head has more than {MAX_FIELDS} header fields")]
    TooManyFields,
    /// A chunk's size is not hexadecimal digits, or too large.
    #[error("a chunk's size is not plain hexadecimal digits, or too large")]
    ChunkSize,
    /// A chunk's extension is too long or holds what it must not.
    #[error("a chunk's extension is longer than {MAX_CHUNK_LINE_BYTES} bytes or not printable")]
    ChunkExtension,
    /// The bytes behind a chunk are no line end: it is longer or shorter than it says.
    #[error("a chunk is not as long as it says")]
    ChunkEnd,
    /// More trailers than are taken.
    #[error("the trailers are longer than {MAX_TRAILER_BYTES} bytes")]
    TrailersTooLong,
}

impl Refused {
    /// What the caller is told.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLong | Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Where the message ends, as its head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After this many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
}

/// What a head says about the bytes that follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) framing: Framing,
    /// It offers to switch protocols. Whether that is taken up is told by the answer.
    pub(crate) offers_upgrade: bool,
}

/// Reads a whole head, from the method's first byte to the empty line's last.
///
/// # Errors
/// [`Refused`]: callers answer with its status, close, and forward nothing.
///
/// Spec: RFC 9112 sections 3 (request line), 5 (fields), 6 (body).
pub(crate) fn check(head: &[u8]) -> Result<Head, Refused> {
    let mut lines = Lines(head);
    let is_old = request_line(lines.next().ok_or(Refused::RequestLine)??)?;
    let mut seen = Seen::default();
    let mut fields = 0;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(Refused::TooManyFields);
        }
        let (name, value) = field(line)?;
        seen.field(name, value)?;
    }
    seen.judge(is_old)
}

/// Splits a field line. Spec: RFC 9112 section 5; no folding, no space before the colon.
pub(crate) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refused> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Refused::Folded);
    }
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, rest) = colon
        .and_then(|colon| line.split_at_checked(colon))
        .ok_or(Refused::FieldName)?;
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Refused::FieldName);
    }
    let value = rest.get(1..).unwrap_or_default();
    if !value.iter().all(|byte| is_value(*byte)) {
        return Err(Refused::FieldValue);
    }
    Ok((name, value))
}

/// Is it HTTP/1.0? Any method is taken here: which of them may pass is asked later.
pub(crate) fn request_line(line: &[u8]) -> Result<bool, Refused> {
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method), Some(target), Some(version), None) => (method, target, version),
        _ => return Err(Refused::RequestLine),
    };
    if method.is_empty() || method.len() > MAX_METHOD_BYTES || !method.iter().all(|b| is_token(*b))
    {
        return Err(Refused::RequestLine);
    }
    if target.len() > MAX_TARGET_BYTES {
        return Err(Refused::TargetTooLong);
    }
    // Visible characters alone; a fragment never travels.
    let is_target = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
    if target.is_empty() || !target.iter().all(is_target) {
        return Err(Refused::RequestLine);
    }
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ if version.starts_with(b"HTTP/") => Err(Refused::Version),
        _ => Err(Refused::RequestLine),
    }
}

/// What the fields have said so far.
#[derive(Default)]
struct Seen {
    length: Option<u64>,
    chunked: bool,
    hosts: usize,
    upgrade: bool,
}

impl Seen {
    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refused> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("content-length") {
            if self.length.is_some() {
                return Err(Refused::Length);
            }
            self.length = Some(length(trim(value))?);
        } else if is("transfer-encoding") {
            if self.chunked || value.strip_prefix(b" ").unwrap_or(value) != b"chunked" {
                return Err(Refused::Encoding);
            }
            self.chunked = true;
        } else if is("host") {
            self.hosts += 1;
        } else if is("upgrade") {
            self.upgrade = true;
        } else if is("expect") {
            if !trim(value).eq_ignore_ascii_case(b"100-continue") {
                return Err(Refused::Expectation);
            }
        } else if is("content_length") || is("transfer_encoding") {
            // Where header fields become variables, `_` and `-` are one.
            return Err(Refused::Lookalike);
        }
        Ok(())
    }

    fn judge(self, is_old: bool) -> Result<Head, Refused> {
        match (self.chunked, self.length) {
            (true, Some(_)) => return Err(Refused::LengthAndEncoding),
            (true, None) if is_old => return Err(Refused::OldEncoding),
            _ => {}
        }
        if self.hosts > 1 || (self.hosts == 0 && !is_old) {
            return Err(Refused::Host);
        }
        Ok(Head {
            framing: match self.length {
                None if self.chunked => Framing::Chunked,
                length => Framing::Length(length.unwrap_or_default()),
            },
            offers_upgrade: self.upgrade && !is_old,
        })
    }
}

/// Plain decimal digits without a leading zero, which some read as octal.
pub(crate) fn length(value: &[u8]) -> Result<u64, Refused> {
    let plain = match value {
        b"0" => true,
        [b'1'..=b'9', ..] => value.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    std::str::from_utf8(value)
        .ok()
        .filter(|_| plain)
        .and_then(|text| text.parse().ok())
        .filter(|length| *length <= MAX_BODY_BYTES)
        .ok_or(Refused::Length)
}

fn trim(value: &[u8]) -> &[u8] {
    value.trim_ascii()
}

/// A character of a token. Spec: RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    matches!(byte,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'!' | b'#' | b'$' | b'%'
        | b'&' | b'\'' | b'*' | b'+' | b'^' | b'`' | b'|' | b'~')
}

/// A character of a field's value: visible, space, tab, or above ASCII.
fn is_value(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Lines that end in carriage return and line feed; either of them alone is an error.
pub(crate) struct Lines<'b>(pub(crate) &'b [u8]);

impl<'b> Iterator for Lines<'b> {
    type Item = Result<&'b [u8], Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self
            .0
            .iter()
            .position(|byte| matches!(byte, b'\r' | b'\n'))?;
        let (line, rest) = self.0.split_at_checked(end)?;
        match rest {
            [b'\r', b'\n', rest @ ..] => {
                self.0 = rest;
                Some(Ok(line))
            }
            _ => {
                self.0 = &[];
                Some(Err(Refused::LineEnd))
            }
        }
    }
}

/// The longest head that is taken.
pub(crate) const MAX_HEAD_BYTES: usize = 64 << 10;

/// The longest target that is taken.
pub(crate) const MAX_TARGET_BYTES: usize = 16 << 10;

/// The most header fields that are taken.
pub(crate) const MAX_FIELDS: usize = 128;

/// The longest line before a chunk: its size and its extension.
pub(crate) const MAX_CHUNK_LINE_BYTES: usize = 256;

/// The longest trailer section that is taken.
pub(crate) const MAX_TRAILER_BYTES: usize = 8 << 10;

/// More is no body but an overflow.
const MAX_BODY_BYTES: u64 = u64::MAX >> 1;

/// No method that anybody uses is longer.
const MAX_METHOD_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::{Framing, Head, Refused, check};

    #[track_caller]
    fn is(fields: &str, expected: Result<Framing, Refused>) {
        let head = format!("POST /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(
            check(head.as_bytes()).map(|head| head.framing),
            expected,
            "{head:?}"
        );
    }

    #[test]
    fn the_framing_of_a_plain_head_is_read() {
        is("", Ok(Framing::Length(0)));
        is("Content-Length: 0\r\n", Ok(Framing::Length(0)));
        is("content-length:5\r\n", Ok(Framing::Length(5)));
        is("Content-Length:\t5 \r\n", Ok(Framing::Length(5)));
        is("Transfer-Encoding: chunked\r\n", Ok(Framing::Chunked));
        is("transfer-encoding:chunked\r\n", Ok(Framing::Chunked));
        is(
            "Expect: 100-Continue\r\nX: \x7f\r\n",
            Err(Refused::FieldValue),
        );
        is("Expect: 100-Continue\r\nX:\r\n", Ok(Framing::Length(0)));
        is("X: \u{e9}\r\n", Ok(Framing::Length(0)));
    }

    #[test]
    fn lengths_that_are_not_plain_numbers_are_refused() {
        // FAULTS 83
        for value in [
            "",
            "+5",
            "-5",
            "0x5",
            "5,5",
            "5, 6",
            "5;",
            "5 5",
            "5.0",
            "05",
            "00",
            "1e1",
            "\"5\"",
            "five",
            "５",
            "18446744073709551616",
            "9223372036854775808",
            "99999999999999999999999",
        ] {
            is(
                &format!("Content-Length: {value}\r\n"),
                Err(Refused::Length),
            );
        }
        is(
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            Err(Refused::Length),
        );
        is(
            "Content-Length: 5\r\ncontent-length: 6\r\n",
            Err(Refused::Length),
        );
        is("Content-Length : 5\r\n", Err(Refused::FieldName));
        is("Content-Length\t: 5\r\n", Err(Refused::FieldName));
        is("Content-Length\r\n", Err(Refused::FieldName));
        is("Content_Length: 5\r\n", Err(Refused::Lookalike));
        is("Content-Length: \u{0}5\r\n", Err(Refused::FieldValue));
    }

    #[test]
    fn encodings_that_are_not_plainly_chunked_are_refused() {
        // FAULTS 81, 82
        for value in [
            "",
            " ",
            "xchunked",
            "chunkedx",
            "\"chunked\"",
            "'chunked'",
            "chunked, identity",
            "identity, chunked",
            "gzip, chunked",
            "chunked, chunked",
            "chunked,",
            ",chunked",
            "identity",
            "Chunked",
            "CHUNKED",
            "chunked;q=1",
            "\tchunked",
            " chunked",
            "chunked ",
            "chunked\u{a0}",
            "gzip",
            "x",
            "chunked\t",
            "ch\u{fc}nked",
        ] {
            is(
                &format!("Transfer-Encoding: {value}\r\n"),
                Err(Refused::Encoding),
            );
        }
        let twice = "Transfer-Encoding: chunked\r\nTransfer-Encoding: ";
        is(&format!("{twice}chunked\r\n"), Err(Refused::Encoding));
        is(&format!("{twice}identity\r\n"), Err(Refused::Encoding));
        is(
            "Transfer-Encoding: \u{b}chunked\r\n",
            Err(Refused::FieldValue),
        );
        is("Transfer-Encoding : chunked\r\n", Err(Refused::FieldName));
        is("Transfer_Encoding: chunked\r\n", Err(Refused::Lookalike));
        is(" Transfer-Encoding: chunked\r\n", Err(Refused::Folded));
        is(
            "X: a\r\n\tTransfer-Encoding: chunked\r\n",
            Err(Refused::Folded),
        );
        is(
            "X: a\nTransfer-Encoding: chunked\r\n",
            Err(Refused::LineEnd),
        );
        is(
            "X: a\rTransfer-Encoding: chunked\r\n",
            Err(Refused::LineEnd),
        );
        let both = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n";
        is(both, Err(Refused::LengthAndEncoding));
        is(
            "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
            Err(Refused::LengthAndEncoding),
        );
        let old = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(check(old), Err(Refused::OldEncoding));
    }

    #[test]
    fn request_lines_that_are_not_plain_are_refused() {
        for (line, expected) in [
            ("GET / HTTP/1.1", Ok(())),
            ("GET http://a/b HTTP/1.1", Ok(())),
            ("GET  / HTTP/1.1", Err(Refused::RequestLine)),
            ("GET /  HTTP/1.1", Err(Refused::RequestLine)),
            ("GET /\tHTTP/1.1", Err(Refused::RequestLine)),
            ("GET /a b HTTP/1.1", Err(Refused::RequestLine)),
            ("GET /a#b HTTP/1.1", Err(Refused::RequestLine)),
            ("GET /\u{e9} HTTP/1.1", Err(Refused::RequestLine)),
            ("GET /\u{0} HTTP/1.1", Err(Refused::RequestLine)),
            (" GET / HTTP/1.1", Err(Refused::RequestLine)),
            ("GET / HTTP/1.1 ", Err(Refused::RequestLine)),
            ("GET /", Err(Refused::RequestLine)),
            ("GET / http/1.1", Err(Refused::RequestLine)),
            ("GET / HTTP/1.2", Err(Refused::Version)),
            ("GET / HTTP/2.0", Err(Refused::Version)),
            ("GET / HTTP/0.9", Err(Refused::Version)),
            ("GET / HTTP/1.1x", Err(Refused::Version)),
            ("GET / HTTP/11", Err(Refused::Version)),
            ("G(T / HTTP/1.1", Err(Refused::RequestLine)),
            ("", Err(Refused::RequestLine)),
        ] {
            let head = format!("{line}\r\nHost: a\r\n\r\n");
            assert_eq!(check(head.as_bytes()).map(|_| ()), expected, "{line:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(17_000));
        assert_eq!(check(long.as_bytes()), Err(Refused::TargetTooLong));
    }

    #[test]
    fn hosts_fields_and_offers_are_counted() {
        let head = |text: &str| check(text.as_bytes());
        assert_eq!(head("GET / HTTP/1.1\r\n\r\n"), Err(Refused::Host));
        assert_eq!(
            head("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
            Err(Refused::Host)
        );
        let many = format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "X: y\r\n".repeat(128)
        );
        assert_eq!(head(&many), Err(Refused::TooManyFields));
        let offer = "Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let plain = Head {
            framing: Framing::Length(0),
            offers_upgrade: true,
        };
        assert_eq!(head(&format!("GET / HTTP/1.1\r\n{offer}")), Ok(plain));
        let old = head(&format!("GET / HTTP/1.0\r\n{offer}"));
        assert!(old.is_ok_and(|head| !head.offers_upgrade));
    }

    #[test]
    fn no_control_character_passes_anywhere() {
        // FAULTS 84
        for byte in (0..b' ').chain([0x7f]) {
            let parts: [(&[u8], &[u8]); 5] = [
                (b"GE", b"T / HTTP/1.1\r\nHost: a\r\n\r\n"),
                (b"GET /", b" HTTP/1.1\r\nHost: a\r\n\r\n"),
                (b"GET / HTTP/1.1", b"\r\nHost: a\r\n\r\n"),
                (b"GET / HTTP/1.1\r\nX", b"Y: a\r\nHost: a\r\n\r\n"),
                (b"GET / HTTP/1.1\r\nX: a", b"b\r\nHost: a\r\n\r\n"),
            ];
            for (number, (before, after)) in parts.into_iter().enumerate() {
                let head = [before, &[byte], after].concat();
                let is_tab_in_value = byte == b'\t' && number == 4;
                assert_eq!(check(&head).is_ok(), is_tab_in_value, "{byte} in {number}");
            }
        }
    }
}
