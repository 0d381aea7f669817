//! What an app's answer may look like.
//!
//! Pure. An answer that two programs could read differently ends its connection, so that the next
//! caller never gets what was left of it.

use http::{
    HeaderMap, Response, StatusCode, Version,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};

/// Why an answer of HTTP/1 is refused: callers are told 502, and its connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ambiguous {
    /// It switches protocols, and nobody asked.
    #[error("it switches protocols unasked")]
    Switch,
    /// Several lengths, or a length and an encoding.
    #[error("it has two lengths")]
    Length,
    /// Another encoding than `chunked`.
    #[error("its transfer encoding is not `chunked`")]
    Encoding,
}

/// Has the answer one length? Spec: RFC 9112 section 6.3.
pub(crate) fn check<B>(answer: &Response<B>) -> Result<(), Ambiguous> {
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Ambiguous::Switch);
    }
    lengths(answer.version(), answer.headers())
}

/// The part that also holds for an answer that switches.
pub(crate) fn lengths(version: Version, headers: &HeaderMap) -> Result<(), Ambiguous> {
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) if lengths > 1 => Err(Ambiguous::Length),
        (None, _) => Ok(()),
        (Some(_), _) if lengths > 0 => Err(Ambiguous::Length),
        (Some(one), None)
            if version == Version::HTTP_11 && one.as_bytes().eq_ignore_ascii_case(b"chunked") =>
        {
            Ok(())
        }
        _ => Err(Ambiguous::Encoding),
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::{Ambiguous, check};

    #[test]
    fn an_answer_has_one_length() {
        // FAULTS 95
        for (status, fields, expected) in [
            (200, &[][..], Ok(())),
            (200, &[("content-length", "5")], Ok(())),
            (200, &[("transfer-encoding", "chunked")], Ok(())),
            (101, &[], Err(Ambiguous::Switch)),
            (
                200,
                &[("content-length", "5"), ("content-length", "5")],
                Err(Ambiguous::Length),
            ),
            (
                200,
                &[("content-length", "5"), ("transfer-encoding", "chunked")],
                Err(Ambiguous::Length),
            ),
            (
                200,
                &[("transfer-encoding", "gzip, chunked")],
                Err(Ambiguous::Encoding),
            ),
            (
                200,
                &[
                    ("transfer-encoding", "chunked"),
                    ("transfer-encoding", "chunked"),
                ],
                Err(Ambiguous::Encoding),
            ),
        ] {
            let mut answer = Response::builder().status(status);
            for (name, value) in fields {
                answer = answer.header(*name, *value);
            }
            assert_eq!(check(&answer.body(()).unwrap()), expected, "{fields:?}");
        }
    }
}
