//! Makes requests readable whose `:authority` is the path of the socket.
//!
//! Over a Unix socket there is no host to name. gRPC's C core (Python, C++, Ruby), Java and Swift
//! name the percent-encoded path of the socket instead, which is no authority by RFC 3986 section
//! 3.2; the HTTP/2 library answers with `PROTOCOL_ERROR`, and offers no way to do otherwise.
//! Nothing here depends on the name, so it is replaced by a valid one before the library reads it.
//!
//! The replacement has the length of the original, so the sizes of the peer's dynamic table stay as
//! the peer counts them (RFC 7541 section 4.1) and no table is needed here. What is not understood
//! passes unchanged: the library behind is the judge of it.

use bytes::{Buf as _, BufMut as _, BytesMut};
use httlib_huffman::{DecoderSpeed, decode};
use http::uri::Authority;

/// Rewrites the bytes that a client sends.
#[derive(Debug, Default)]
pub(super) struct AuthorityMend {
    state: State,
    /// Read, and not yet a whole frame.
    pending: BytesMut,
    /// Whole frames of a header block that has not ended.
    held: Held,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Preface,
    Frames,
    /// The rest of a frame that is none of our business.
    Payload(usize),
    /// No HTTP/2, or not as we know it.
    Unchanged,
}

/// The frames of one header block, and the block they carry.
#[derive(Debug, Default)]
struct Held {
    frames: Vec<u8>,
    block: Vec<u8>,
    flags: u8,
    stream: u32,
    priority: Option<[u8; PRIORITY_BYTES]>,
}

impl AuthorityMend {
    /// Takes what was read, and appends to `output` what the library is to read.
    pub(super) fn feed(&mut self, read: &[u8], output: &mut BytesMut) {
        self.pending.extend_from_slice(read);
        while self.step(output) {}
    }

    /// One piece; false when more has to be read first.
    fn step(&mut self, output: &mut BytesMut) -> bool {
        match self.state {
            State::Unchanged => {
                output.put(self.pending.split());
                false
            }
            State::Preface => {
                let known = self.pending.len().min(PREFACE.len());
                if self.pending.get(..known) != PREFACE.get(..known) {
                    self.state = State::Unchanged;
                } else if known == PREFACE.len() {
                    output.put(self.pending.split_to(known));
                    self.state = State::Frames;
                } else {
                    return false;
                }
                true
            }
            State::Payload(left) => {
                let piece = left.min(self.pending.len());
                output.put(self.pending.split_to(piece));
                self.state = match left - piece {
                    0 => State::Frames,
                    left => State::Payload(left),
                };
                matches!(self.state, State::Frames)
            }
            State::Frames => self.frame(output),
        }
    }

    fn frame(&mut self, output: &mut BytesMut) -> bool {
        let Some(head) = FrameHead::read(&self.pending) else {
            return false;
        };
        let begins = head.kind == HEADERS && self.held.frames.is_empty();
        let continues = head.kind == CONTINUATION
            && !self.held.frames.is_empty()
            && head.stream == self.held.stream;
        let whole = FRAME_HEAD_BYTES + head.length;
        if !begins && !continues {
            if !self.held.frames.is_empty() || head.kind == CONTINUATION {
                return self.give_up(output);
            }
            output.put(self.pending.split_to(FRAME_HEAD_BYTES));
            self.state = State::Payload(head.length);
            return true;
        }
        if head.length > MAX_FRAME_BYTES || self.held.frames.len() + whole > MAX_HELD_BYTES {
            return self.give_up(output);
        }
        if self.pending.len() < whole {
            return false;
        }
        let frame = self.pending.split_to(whole);
        self.held.frames.extend_from_slice(&frame);
        let payload = frame.get(FRAME_HEAD_BYTES..).unwrap_or_default();
        if begins {
            self.held.stream = head.stream;
            self.held.flags = head.flags;
            let Some((priority, fragment)) = header_fragment(payload, head.flags) else {
                return self.give_up(output);
            };
            self.held.priority = priority;
            self.held.block.extend_from_slice(fragment);
        } else {
            self.held.block.extend_from_slice(payload);
        }
        if head.flags & END_HEADERS != 0 {
            std::mem::take(&mut self.held).write(output);
        }
        true
    }

    /// Lets this connection be as it is, from the block at hand on.
    fn give_up(&mut self, output: &mut BytesMut) -> bool {
        output.put_slice(&std::mem::take(&mut self.held).frames);
        self.state = State::Unchanged;
        true
    }
}

impl Held {
    fn write(self, output: &mut BytesMut) {
        let Some(block) = mended(&self.block) else {
            return output.put_slice(&self.frames);
        };
        let priority: &[u8] = self.priority.as_ref().map_or(&[], |bytes| bytes);
        let first = block.len().min(MAX_FRAME_BYTES - priority.len());
        let (fragment, mut rest) = block.split_at(first);
        let kept = self.flags & !(PADDED | END_HEADERS);
        let end = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
        let head = |kind, flags, length| FrameHead {
            length,
            kind,
            flags,
            stream: self.stream,
        };
        let length = priority.len() + fragment.len();
        head(HEADERS, kept | end(rest), length).write(output);
        output.put_slice(priority);
        output.put_slice(fragment);
        while !rest.is_empty() {
            let (fragment, after) = rest.split_at(rest.len().min(MAX_FRAME_BYTES));
            head(CONTINUATION, end(after), fragment.len()).write(output);
            output.put_slice(fragment);
            rest = after;
        }
    }
}

/// RFC 9113 section 4.1.
#[derive(Debug, Clone, Copy)]
struct FrameHead {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl FrameHead {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut bytes = bytes.get(..FRAME_HEAD_BYTES)?;
        Some(Self {
            length: usize::try_from(bytes.get_uint(3)).ok()?,
            kind: bytes.get_u8(),
            flags: bytes.get_u8(),
            stream: bytes.get_u32() & 0x7fff_ffff,
        })
    }

    fn write(self, output: &mut BytesMut) {
        output.put_uint(self.length as u64, 3);
        output.put_u8(self.kind);
        output.put_u8(self.flags);
        output.put_u32(self.stream);
    }
}

type Priority = Option<[u8; PRIORITY_BYTES]>;

/// The block in a HEADERS frame (RFC 9113 section 6.2), without padding; nothing if it is malformed.
fn header_fragment(payload: &[u8], flags: u8) -> Option<(Priority, &[u8])> {
    let mut rest = payload;
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (length, after) = rest.split_first()?;
        (padding, rest) = (usize::from(*length), after);
    }
    let mut priority = None;
    if flags & PRIORITY != 0 {
        let (bytes, after) = rest.split_first_chunk::<PRIORITY_BYTES>()?;
        (priority, rest) = (Some(*bytes), after);
    }
    let length = rest.len().checked_sub(padding)?;
    Some((priority, rest.get(..length)?))
}

/// The block with a valid authority; nothing if it has one, or is not understood.
fn mended(block: &[u8]) -> Option<Vec<u8>> {
    let mut rest = block;
    let mut replaced: Option<Vec<u8>> = None;
    while let Some(&first) = rest.first() {
        let before = rest;
        let field = match first {
            0x80.. => {
                integer(&mut rest, 7)?;
                None
            }
            0x40.. => Some(literal(&mut rest, 6)?),
            0x20.. => {
                integer(&mut rest, 5)?;
                None
            }
            _ => Some(literal(&mut rest, 4)?),
        };
        let used = before.len() - rest.len();
        let invalid = field
            .filter(|field| field.is_authority)
            .and_then(|field| field.value.invalid_length());
        match (invalid, &mut replaced) {
            (Some(length), replaced) => {
                let start = block.len() - before.len();
                let output =
                    replaced.get_or_insert_with(|| block.get(..start).unwrap_or_default().to_vec());
                // `:authority` by its place in the static table, encoded as it was.
                output.push((first & !indexed_bits(first)) | 1);
                put_integer(output, length, 7, 0);
                output.resize(output.len() + length, b'x');
            }
            (None, Some(output)) => output.extend_from_slice(before.get(..used)?),
            (None, None) => {}
        }
    }
    replaced
}

/// The bits of the first octet that are index and not kind (RFC 7541 section 6.2).
fn indexed_bits(first: u8) -> u8 {
    if first & 0x40 != 0 { 0x3f } else { 0x0f }
}

struct Field<'a> {
    is_authority: bool,
    value: Text<'a>,
}

/// RFC 7541 section 5.2.
struct Text<'a> {
    huffman: bool,
    bytes: &'a [u8],
}

impl Text<'_> {
    /// The decoded length of a value that is no authority; nothing if it is one, or is empty.
    fn invalid_length(&self) -> Option<usize> {
        let mut decoded = Vec::new();
        let value = if self.huffman {
            decode(self.bytes, &mut decoded, DecoderSpeed::FourBits).ok()?;
            &decoded
        } else {
            self.bytes
        };
        let invalid = !value.is_empty() && Authority::try_from(value).is_err();
        invalid.then_some(value.len())
    }
}

fn literal<'a>(rest: &mut &'a [u8], prefix: u8) -> Option<Field<'a>> {
    let is_authority = match integer(rest, prefix)? {
        0 => {
            let name = text(rest)?;
            !name.huffman && name.bytes == b":authority"
        }
        index => index == AUTHORITY_INDEX,
    };
    let value = text(rest)?;
    Some(Field {
        is_authority,
        value,
    })
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<Text<'a>> {
    let huffman = rest.first()? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(Text { huffman, bytes })
}

/// RFC 7541 section 5.1; nothing when it is longer than any length here can be.
fn integer(rest: &mut &[u8], prefix: u8) -> Option<usize> {
    let mask = (1_usize << prefix) - 1;
    let (first, mut after) = rest.split_first()?;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        for shift in [0, 7, 14] {
            let (octet, next) = after.split_first()?;
            after = next;
            value += usize::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                *rest = after;
                return Some(value);
            }
        }
        return None;
    }
    *rest = after;
    Some(value)
}

fn put_integer(output: &mut Vec<u8>, value: usize, prefix: u8, kind: u8) {
    let mask = (1_usize << prefix) - 1;
    let octet = |value: usize| u8::try_from(value & 0xff).unwrap_or_default();
    if value < mask {
        return output.push(kind | octet(value));
    }
    output.push(kind | octet(mask));
    let mut left = value - mask;
    while left >= 0x80 {
        output.push(octet(left & 0x7f) | 0x80);
        left >>= 7;
    }
    output.push(octet(left));
}

/// RFC 9113 section 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEAD_BYTES: usize = 9;
const PRIORITY_BYTES: usize = 5;
/// What an endpoint has to accept, and the library's limit.
const MAX_FRAME_BYTES: usize = 16_384;
/// No header block is held that is larger.
const MAX_HELD_BYTES: usize = 64 << 10;

const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Of `:authority` in the static table (RFC 7541 appendix A).
const AUTHORITY_INDEX: usize = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut output = BytesMut::new();
        let head = FrameHead {
            length: payload.len(),
            kind,
            flags,
            stream: 1,
        };
        head.write(&mut output);
        output.extend_from_slice(payload);
        output.to_vec()
    }

    fn conversation(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE.to_vec(), frames.concat()].concat()
    }

    fn fed(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut mend, mut output) = (AuthorityMend::default(), BytesMut::new());
        for piece in bytes.chunks(piece) {
            mend.feed(piece, &mut output);
        }
        output.to_vec()
    }

    /// `:authority` in a literal of this kind.
    fn authority(kind: u8, value: &[u8]) -> Vec<u8> {
        let mut block = vec![kind | 1];
        put_integer(&mut block, value.len(), 7, 0);
        block.extend_from_slice(value);
        block
    }

    fn huffman(value: &[u8]) -> Vec<u8> {
        let mut coded = Vec::new();
        httlib_huffman::encode(value, &mut coded).unwrap();
        let mut block = vec![0x41];
        put_integer(&mut block, coded.len(), 7, 0x80);
        block.extend_from_slice(&coded);
        block
    }

    const PATH: &[u8] = b"%2Frun%2Fagent.sock";

    #[test]
    fn an_authority_that_is_none_is_replaced_by_one_of_its_length() {
        let name = [vec![0, 10], b":authority".to_vec(), vec![2], b"%2".to_vec()].concat();
        let cases = [
            (authority(0x40, PATH), authority(0x40, &[b'x'; 19])),
            (authority(0x00, PATH), authority(0x00, &[b'x'; 19])),
            (authority(0x10, PATH), authority(0x10, &[b'x'; 19])),
            (huffman(PATH), authority(0x40, &[b'x'; 19])),
            (authority(0x40, &[b'%'; 300]), authority(0x40, &[b'x'; 300])),
            (name, authority(0x00, b"xx")),
        ];
        for (given, expected) in cases {
            // What stands before and after stays.
            let around = |block: &[u8]| [&[0x82, 0x3f, 0xe1, 0x1f], block, &[0x86, 0x84]].concat();
            assert_eq!(
                mended(&around(&given)),
                Some(around(&expected)),
                "{given:x?}"
            );
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        let cases: [&[u8]; 9] = [
            b"",
            &[0x82, 0x86, 0x84],
            &authority(0x40, b"localhost"),
            &huffman(b"localhost:80"),
            &authority(0x40, b""),
            // `:method`, a name of the table, a truncated value, a number without end.
            &[0x42, 1, b'%'],
            &[0x40 | 62, 1, b'%'],
            &[0x41, 5, b'%'],
            &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff],
        ];
        for block in cases {
            assert_eq!(mended(block), None, "{block:x?}");
        }
    }

    #[test]
    fn frames_are_mended_however_they_arrive() {
        let block = [vec![0x83], authority(0x40, PATH), vec![0x84]].concat();
        let good = [vec![0x83], authority(0x40, &[b'x'; 19]), vec![0x84]].concat();
        let padded = [&[2, 9, 9, 9, 9, 9][..], &block, &[0, 0]].concat();
        let prioritized = [&[9, 9, 9, 9, 9][..], &good].concat();
        let other = frame(0x4, 0, &[0, 3, 0, 0, 0, 100]);
        let cases = [
            (
                vec![other.clone(), frame(HEADERS, 0x5, &block), other.clone()],
                vec![other.clone(), frame(HEADERS, 0x5, &good), other.clone()],
            ),
            (
                vec![frame(HEADERS, 0x2d, &padded), frame(0, 1, b"body")],
                vec![frame(HEADERS, 0x25, &prioritized), frame(0, 1, b"body")],
            ),
            (
                vec![
                    frame(HEADERS, 0x1, &block[..4]),
                    frame(CONTINUATION, 0, &block[4..9]),
                    frame(CONTINUATION, END_HEADERS, &block[9..]),
                ],
                vec![frame(HEADERS, 0x5, &good)],
            ),
        ];
        for (given, expected) in cases {
            let (given, expected) = (conversation(&given), conversation(&expected));
            for piece in 1..given.len() {
                assert_eq!(fed(&given, piece), expected, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_block_longer_than_a_frame_is_continued() {
        let filler = [vec![0, 1, b'a'], {
            let mut value = Vec::new();
            put_integer(&mut value, 20_000, 7, 0);
            value.extend_from_slice(&[b'b'; 20_000]);
            value
        }]
        .concat();
        let bad = [authority(0x40, PATH), filler.clone()].concat();
        let good = [authority(0x40, &[b'x'; 19]), filler].concat();
        let given = conversation(&[
            frame(HEADERS, 0, &bad[..10]),
            frame(CONTINUATION, 0, &bad[10..16_000]),
            frame(CONTINUATION, END_HEADERS, &bad[16_000..]),
        ]);
        let expected = conversation(&[
            frame(HEADERS, 0, &good[..MAX_FRAME_BYTES]),
            frame(CONTINUATION, END_HEADERS, &good[MAX_FRAME_BYTES..]),
        ]);
        assert_eq!(fed(&given, 4096), expected);
    }

    #[test]
    fn what_is_no_http2_or_broken_passes_unchanged() {
        let block = authority(0x40, PATH);
        let cases = [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
            // A block that another frame interrupts, one of another stream, one without a start.
            conversation(&[frame(HEADERS, 0, &block), frame(0, 0, b"x")]),
            conversation(&[frame(CONTINUATION, 4, &block)]),
            // Padding longer than the frame, a frame longer than is allowed, a block without end.
            conversation(&[frame(HEADERS, PADDED | 4, &[200, 0x82])]),
            conversation(&[frame(HEADERS, 4, &[0x82; 16_385])]),
            conversation(
                &[
                    vec![frame(HEADERS, 0, &block)],
                    vec![frame(CONTINUATION, 0, &[0x82; 16_000]); 5],
                ]
                .concat(),
            ),
        ];
        for given in cases {
            assert_eq!(fed(&given, 1000), given);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_lost_or_break_it(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let given = [&PREFACE[..], &frame(HEADERS, END_HEADERS, &bytes), &bytes].concat();
            prop_assert_eq!(fed(&given, 7), fed(&given, given.len()));
        }
    }
}
