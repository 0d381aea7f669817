//! Where one HTTP/1 request ends and the next begins.
//!
//! Pure: bytes go in, and what may pass comes out. A head passes whole or not at all; of a chunked
//! body the sizes are checked and the trailers cleaned. What follows an error never passes.
//! Spec: RFC 9112 sections 6 and 7, read strictly.

use super::{
    head::{
        self, Framing, Lines, MAX_CHUNK_LINE_BYTES, MAX_HEAD_BYTES, MAX_TRAILER_BYTES, Refused,
        field,
    },
    headers::is_trailer,
};

/// Follows the requests of one connection.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    state: State,
    /// How far an unfinished head or trailer section was looked at.
    scanned: usize,
    /// The request line of an unfinished head is good.
    line_is_good: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Head,
    /// A body of known length has so much left.
    Length(u64),
    /// The line before a chunk.
    ChunkSize,
    /// So much of a chunk is left.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    Trailers,
    /// An offer to switch protocols was made: what follows depends on the answer.
    Offered,
    /// Other protocols: anything passes.
    Opaque,
}

/// What becomes of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing yet: more are needed.
    More,
    /// So many pass as they are.
    Pass(usize),
    /// So many pass, and they are the head of a request.
    Head(usize),
    /// So many are replaced by these.
    Replace(usize, Vec<u8>),
}

impl Follower {
    /// Looks at what is there; must be called again with what did not pass and more behind it.
    ///
    /// # Errors
    /// [`Refused`]: nothing of this connection may pass any more.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, Refused> {
        if bytes.is_empty() {
            return Ok(Step::More);
        }
        match self.state {
            State::Head => self.head(bytes),
            State::Length(left) => Ok(self.data(bytes, left, State::Head, State::Length)),
            State::ChunkSize => self.chunk_size(bytes),
            State::Chunk(left) => Ok(self.data(bytes, left, State::ChunkEnd, State::Chunk)),
            State::ChunkEnd => self.chunk_end(bytes),
            State::Trailers => self.trailers(bytes),
            State::Offered => Err(Refused::EarlyBytes),
            State::Opaque => Ok(Step::Pass(bytes.len())),
        }
    }

    /// Is a request begun and not read to its end?
    pub(crate) fn is_mid_message(&self) -> bool {
        !matches!(self.state, State::Head | State::Offered | State::Opaque)
    }

    /// Does what follows depend on the answer to an offer?
    pub(crate) fn is_offered(&self) -> bool {
        self.state == State::Offered
    }

    /// The offer was answered.
    pub(crate) fn answered(&mut self, switched: bool) {
        self.state = if switched { State::Opaque } else { State::Head };
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Step, Refused> {
        // One empty line is taken before a request: old clients send it behind a body.
        if self.scanned == 0 {
            match bytes {
                [b'\r', b'\n', ..] => return Ok(Step::Replace(2, Vec::new())),
                [b'\r'] => return Ok(Step::More),
                _ => {}
            }
        }
        let before = self.scanned;
        let Some(end) = self.end_of_section(bytes)? else {
            if bytes.len() > MAX_HEAD_BYTES {
                return Err(too_long(bytes));
            }
            let fresh = bytes.get(before..).unwrap_or_default();
            // A line that is none is told at once: who sent it may never send more.
            let whole = bytes.strip_suffix(b"\r").unwrap_or(bytes);
            if !self.line_is_good
                && fresh.contains(&b'\n')
                && let Some(line) = Lines(whole).next()
            {
                head::request_line(line?)?;
                self.line_is_good = true;
            }
            return Ok(Step::More);
        };
        self.line_is_good = false;
        if end > MAX_HEAD_BYTES {
            return Err(too_long(bytes));
        }
        let head = head::check(bytes.get(..end).unwrap_or_default())?;
        self.state = match head.framing {
            Framing::Chunked => State::ChunkSize,
            Framing::Length(0) if head.offers_upgrade => State::Offered,
            Framing::Length(0) => State::Head,
            Framing::Length(length) => State::Length(length),
        };
        Ok(Step::Head(end))
    }

    /// The end of the empty line. An error in a line end is told at once.
    fn end_of_section(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refused> {
        while let Some(rest) = bytes.get(self.scanned..) {
            let Some(found) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
                self.scanned = bytes.len();
                return Ok(None);
            };
            let at = self.scanned + found;
            match rest.get(found..).unwrap_or_default() {
                [b'\r', b'\n', b'\r', b'\n', ..] => {
                    self.scanned = 0;
                    return Ok(Some(at + 4));
                }
                [b'\r'] | [b'\r', b'\n'] | [b'\r', b'\n', b'\r'] => {
                    self.scanned = at;
                    return Ok(None);
                }
                [b'\r', b'\n', b'\r', ..] => return Err(Refused::LineEnd),
                [b'\r', b'\n', ..] => self.scanned = at + 2,
                _ => return Err(Refused::LineEnd),
            }
        }
        Ok(None)
    }

    fn data(
        &mut self,
        bytes: &[u8],
        left: u64,
        then: State,
        still: impl FnOnce(u64) -> State,
    ) -> Step {
        let there = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if there < left {
            self.state = still(left - there);
            return Step::Pass(bytes.len());
        }
        self.state = then;
        Step::Pass(usize::try_from(left).unwrap_or(bytes.len()))
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Result<Step, Refused> {
        let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
            if bytes.len() > MAX_CHUNK_LINE_BYTES {
                return Err(Refused::ChunkExtension);
            }
            check_chunk_line(bytes)?;
            return Ok(Step::More);
        };
        if end > MAX_CHUNK_LINE_BYTES {
            return Err(Refused::ChunkExtension);
        }
        let (line, rest) = bytes.split_at_checked(end).unwrap_or_default();
        let size = check_chunk_line(line)?;
        match rest {
            [b'\r', b'\n', ..] => {}
            [b'\r'] => return Ok(Step::More),
            _ => return Err(Refused::LineEnd),
        }
        self.state = match size {
            0 => State::Trailers,
            size => State::Chunk(size),
        };
        Ok(Step::Pass(end + 2))
    }

    fn chunk_end(&mut self, bytes: &[u8]) -> Result<Step, Refused> {
        match bytes {
            [b'\r', b'\n', ..] => {
                self.state = State::ChunkSize;
                Ok(Step::Pass(2))
            }
            [b'\r'] => Ok(Step::More),
            _ => Err(Refused::ChunkEnd),
        }
    }

    /// Trailers pass whole, without those that belong into the head alone.
    fn trailers(&mut self, bytes: &[u8]) -> Result<Step, Refused> {
        if self.scanned == 0 {
            match bytes {
                [b'\r', b'\n', ..] => {
                    self.state = State::Head;
                    return Ok(Step::Pass(2));
                }
                [b'\r'] => return Ok(Step::More),
                _ => {}
            }
        }
        let Some(end) = self.end_of_section(bytes)? else {
            if bytes.len() > MAX_TRAILER_BYTES {
                return Err(Refused::TrailersTooLong);
            }
            return Ok(Step::More);
        };
        if end > MAX_TRAILER_BYTES {
            return Err(Refused::TrailersTooLong);
        }
        let clean = clean_trailers(bytes.get(..end).unwrap_or_default())?;
        self.state = State::Head;
        Ok(Step::Replace(end, clean))
    }
}

/// A head that is too long: is it its target?
fn too_long(bytes: &[u8]) -> Refused {
    let first = bytes.get(..head::MAX_TARGET_BYTES).unwrap_or_default();
    if first.contains(&b'\n') {
        Refused::HeadTooLong
    } else {
        Refused::TargetTooLong
    }
}

/// The size before a chunk: hexadecimal digits, and an extension that is ignored.
fn check_chunk_line(line: &[u8]) -> Result<u64, Refused> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let extension = line.get(digits.len()..).unwrap_or_default();
    if digits.is_empty() || digits.len() > MAX_CHUNK_DIGITS {
        return Err(Refused::ChunkSize);
    }
    let mut size = 0;
    for byte in digits {
        let digit = char::from(*byte).to_digit(16).ok_or(Refused::ChunkSize)?;
        size = size << 4 | u64::from(digit);
    }
    let printable = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t');
    if !extension.iter().all(printable) {
        return Err(Refused::ChunkExtension);
    }
    Ok(size)
}

fn clean_trailers(section: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut clean = Vec::with_capacity(section.len());
    for line in Lines(section) {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let (name, _) = field(line)?;
        if is_trailer(name) {
            clean.extend_from_slice(line);
            clean.extend_from_slice(b"\r\n");
        }
    }
    clean.extend_from_slice(b"\r\n");
    Ok(clean)
}

/// Sixty bits: the size of a chunk cannot overflow, whatever follows.
const MAX_CHUNK_DIGITS: usize = 15;

#[cfg(test)]
mod tests {
    use super::{Follower, Refused, Step};

    /// All that passes of these bytes, given in one piece or byte by byte.
    fn follow(bytes: &[u8], piece: usize) -> (Vec<u8>, Result<(), Refused>) {
        let (mut follower, mut held, mut passed) = (Follower::default(), Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            held.extend_from_slice(piece);
            loop {
                match follower.step(&held) {
                    Ok(Step::More) => break,
                    Ok(Step::Pass(length) | Step::Head(length)) => {
                        passed.extend(held.drain(..length));
                    }
                    Ok(Step::Replace(length, with)) => {
                        held.drain(..length);
                        passed.extend(with);
                    }
                    Err(refused) => return (passed, Err(refused)),
                }
            }
        }
        (passed, Ok(()))
    }

    #[track_caller]
    fn check(bytes: &str, passes: &str, expected: Result<(), Refused>) {
        for piece in [1, 2, 3, 7, bytes.len()] {
            let (passed, ended) = follow(bytes.as_bytes(), piece);
            assert_eq!(
                String::from_utf8_lossy(&passed),
                passes,
                "pieces of {piece}"
            );
            assert_eq!(ended, expected, "pieces of {piece}");
        }
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn good_requests_pass_in_whatever_pieces_they_come() {
        check(&format!("{GET}{GET}"), &format!("{GET}{GET}"), Ok(()));
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        check(&format!("{post}{GET}"), &format!("{post}{GET}"), Ok(()));
        check(&format!("{post}\r\n{GET}"), &format!("{post}{GET}"), Ok(()));
        let chunks = format!("{CHUNKED}5\r\nhello\r\nA;x=\"y z\"\r\n0123456789\r\n0\r\n\r\n{GET}");
        check(&chunks, &chunks, Ok(()));
    }

    #[test]
    fn chunks_that_are_not_what_they_say_never_end_well() {
        // FAULTS 85
        for (chunk, passes, refused) in [
            ("0x5\r\nhello\r\n0\r\n\r\n", "", Refused::ChunkSize),
            ("+5\r\nhello\r\n0\r\n\r\n", "", Refused::ChunkSize),
            ("-5\r\nhello\r\n0\r\n\r\n", "", Refused::ChunkSize),
            (" 5\r\nhello\r\n0\r\n\r\n", "", Refused::ChunkSize),
            ("5 \r\nhello\r\n0\r\n\r\n", "", Refused::ChunkSize),
            ("5 ;a\r\nhello\r\n0\r\n\r\n", "", Refused::ChunkSize),
            ("\r\nhello\r\n0\r\n\r\n", "", Refused::ChunkSize),
            ("g\r\nhello\r\n0\r\n\r\n", "", Refused::ChunkSize),
            ("5g\r\nhello\r\n0\r\n\r\n", "", Refused::ChunkSize),
            ("10000000000000005\r\nhello\r\n", "", Refused::ChunkSize),
            ("0000000000000000005\r\nhello\r\n", "", Refused::ChunkSize),
            ("fffffffffffffffff\r\nhello\r\n", "", Refused::ChunkSize),
            ("5\nhello\r\n0\r\n\r\n", "", Refused::LineEnd),
            ("5\rhello\r\n0\r\n\r\n", "", Refused::LineEnd),
            ("5;a\nb\r\nhello\r\n0\r\n\r\n", "", Refused::LineEnd),
            (
                "5;a\u{0}\r\nhello\r\n0\r\n\r\n",
                "",
                Refused::ChunkExtension,
            ),
            ("5\r\nhello!\r\n0\r\n\r\n", "5\r\nhello", Refused::ChunkEnd),
            ("5\r\nhello\n0\r\n\r\n", "5\r\nhello", Refused::ChunkEnd),
            ("5\r\nhello0\r\n\r\n", "5\r\nhello", Refused::ChunkEnd),
            ("0\r\n\n", "0\r\n", Refused::LineEnd),
            ("0\r\nX: a\n\r\n", "0\r\n", Refused::LineEnd),
            ("0\r\nX\r\n\r\n", "0\r\n", Refused::FieldName),
            ("0\r\nX : a\r\n\r\n", "0\r\n", Refused::FieldName),
            ("0\r\n X: a\r\n\r\n", "0\r\n", Refused::Folded),
        ] {
            let (bytes, passes) = (format!("{CHUNKED}{chunk}"), format!("{CHUNKED}{passes}"));
            check(&bytes, &passes, Err(refused));
        }
        let long = format!("{CHUNKED}5;{}\r\nhello\r\n", "a".repeat(400));
        check(&long, CHUNKED, Err(Refused::ChunkExtension));
    }

    #[test]
    fn trailers_keep_what_an_app_may_get_and_no_more() {
        // FAULTS 86
        let bad = "Content-Length: 5\r\nHost: b\r\nX-Forwarded-Client-Cert: me\r\n\
                   x_spiffe_id: me\r\nTransfer-Encoding: chunked\r\nX-Postern-A: b\r\n";
        let given = format!("{CHUNKED}0\r\n{bad}X-Sum: 1\r\n\r\n{GET}");
        check(
            &given,
            &format!("{CHUNKED}0\r\nX-Sum: 1\r\n\r\n{GET}"),
            Ok(()),
        );
        let given = format!("{CHUNKED}0\r\n{bad}\r\n{GET}");
        check(&given, &format!("{CHUNKED}0\r\n\r\n{GET}"), Ok(()));
        let huge = format!("{CHUNKED}0\r\nX: {}\r\n\r\n", "a".repeat(9000));
        check(
            &huge,
            &format!("{CHUNKED}0\r\n"),
            Err(Refused::TrailersTooLong),
        );
    }

    #[test]
    fn heads_that_never_end_are_refused() {
        // FAULTS 87
        let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(70_000));
        check(&long, "", Err(Refused::HeadTooLong));
        let long = format!("GET / HTTP/1.1\r\n{}", "X: a\r\n".repeat(12_000));
        check(&long, "", Err(Refused::HeadTooLong));
        let long = format!("GET /{}", "a".repeat(70_000));
        check(&long, "", Err(Refused::TargetTooLong));
    }

    #[test]
    fn line_ends_are_plain_and_the_next_request_is_looked_at_too() {
        // FAULTS 84
        for bad in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\rX",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            check(bad, "", Err(Refused::LineEnd));
            check(&format!("{GET}{bad}"), GET, Err(Refused::LineEnd));
        }
    }

    #[test]
    fn a_bad_request_line_is_refused_before_the_head_ends() {
        check("GET /\r\n", "", Err(Refused::RequestLine));
        check(&format!("{GET}hello\r\n"), GET, Err(Refused::RequestLine));
        check("GET / HTTP/3.0\r\nHost", "", Err(Refused::Version));
        check("GET / HTTP/1.1\r\nHost", "", Ok(()));
    }

    #[test]
    fn nothing_passes_behind_an_offer_until_it_is_answered() {
        let offer = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
        check(offer, offer, Ok(()));
        check(&format!("{offer}{GET}"), offer, Err(Refused::EarlyBytes));
        let mut follower = Follower::default();
        assert_eq!(follower.step(offer.as_bytes()), Ok(Step::Head(offer.len())));
        assert!(follower.is_offered());
        follower.answered(true);
        assert_eq!(follower.step(b"\n\0"), Ok(Step::Pass(2)));
    }
}
