//! What reads a peer's bytes in this crate, for the fuzzer: no other program needs it.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    detect,
    http::{
        framing::{Follower, Step},
        headers,
        trace::TraceContext,
    },
};

/// What a connection that begins like this is taken for, in words.
pub fn spoken(first: &[u8]) -> Option<String> {
    detect::classify(first).map(|spoken| format!("{spoken:?}"))
}

/// What passes of requests that come in pieces of this size, and why the rest is refused.
pub fn requests(bytes: &[u8], piece: usize) -> (Vec<u8>, Option<String>) {
    let (mut follower, mut held, mut passed) = (Follower::default(), Vec::new(), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        held.extend_from_slice(piece);
        loop {
            match follower.step(&held) {
                Ok(Step::More) => break,
                Ok(Step::Pass(length) | Step::Head(length)) => passed.extend(held.drain(..length)),
                Ok(Step::Replace(length, with)) => {
                    held.drain(..length);
                    passed.extend(with);
                }
                Err(refused) => return (passed, Some(refused.to_string())),
            }
        }
    }
    (passed, None)
}

/// The fields of a request as an app gets them: lines of names and values in, lines out.
pub fn fields(lines: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut fields = map_of(lines);
    headers::strip_identity(&mut fields);
    let _ = headers::request_id(&mut fields);
    let _ = TraceContext::take(&mut fields);
    headers::strip_hop_by_hop(&mut fields);
    headers::join_cookies(&mut fields);
    told(&fields)
}

/// The fields of a request after it took its place in a trace, and that trace.
pub fn traced(lines: &[u8]) -> (Vec<(String, Vec<u8>)>, String) {
    let mut fields = map_of(lines);
    let context = TraceContext::take(&mut fields);
    (told(&fields), context.trace().to_string())
}

fn told(fields: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let told = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.as_str().to_owned(), value.as_bytes().to_vec())
    };
    fields.iter().map(told).collect()
}

fn map_of(lines: &[u8]) -> HeaderMap {
    lines
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at_checked(colon)?;
            let name = HeaderName::from_bytes(name).ok()?;
            let value = HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?;
            Some((name, value))
        })
        .take(128)
        .collect()
}
