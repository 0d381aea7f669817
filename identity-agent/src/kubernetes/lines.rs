//! Lines of a stream that comes in pieces, none longer than a bound. Pure.

use bytes::{Bytes, BytesMut};

/// What has come and is no whole line yet.
#[derive(Debug)]
pub(super) struct Lines {
    rest: BytesMut,
    /// So much of it has no end of a line.
    searched: usize,
    max_bytes: usize,
}

/// A line has more bytes than are taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    pub(super) fn up_to(max_bytes: usize) -> Self {
        Self {
            rest: BytesMut::new(),
            searched: 0,
            max_bytes,
        }
    }

    /// More has come.
    pub(super) fn push(&mut self, piece: &Bytes) {
        self.rest.extend_from_slice(piece);
    }

    /// The next line, without its end; none where more must come first. Empty ones are passed over.
    ///
    /// # Errors
    /// [`TooLong`]; nothing that comes later can be read.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        loop {
            let new = self.rest.get(self.searched..).unwrap_or_default();
            let Some(end) = new.iter().position(|&byte| byte == b'\n') else {
                self.searched = self.rest.len();
                return match self.searched > self.max_bytes {
                    true => Err(TooLong),
                    false => Ok(None),
                };
            };
            let length = self.searched + end;
            if length > self.max_bytes {
                return Err(TooLong);
            }
            let line = self.rest.split_to(length + 1).freeze();
            self.searched = 0;
            let line = line.slice(..length);
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Lines, TooLong};

    #[test]
    fn lines_come_whole_however_they_were_cut() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\n{\"c\"";
        for size in 1..=text.len() {
            let mut lines = Lines::up_to(8);
            let mut read = Vec::new();
            for piece in text.chunks(size) {
                lines.push(&Bytes::copy_from_slice(piece));
                while let Some(line) = lines.next().unwrap() {
                    read.push(line);
                }
            }
            assert_eq!(read, ["{\"a\":1}", "{\"b\":2}"], "pieces of {size}");
        }
    }

    #[test]
    fn a_line_may_have_so_many_bytes_and_no_more() {
        for (length, is_taken) in [(8, true), (9, false)] {
            let mut lines = Lines::up_to(8);
            lines.push(&Bytes::from(vec![b'x'; length]));
            // It may still end here.
            assert_eq!(lines.next(), if is_taken { Ok(None) } else { Err(TooLong) });
            let mut lines = Lines::up_to(8);
            lines.push(&Bytes::from([vec![b'x'; length], vec![b'\n']].concat()));
            assert_eq!(lines.next().is_ok(), is_taken, "{length}");
        }
    }
}
