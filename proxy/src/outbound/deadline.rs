//! How long an answer is waited for. Pure.

use std::time::Duration;

use http::HeaderMap;

use crate::http::grpc::is_grpc;

/// How long the head of an answer may take: the configured time, or what a gRPC call says. One that
/// says nothing may be a stream whose first message comes much later.
pub(crate) fn patience(headers: &HeaderMap, configured: Duration) -> Duration {
    if !is_grpc(headers) {
        return configured;
    }
    let told = headers
        .get("grpc-timeout")
        .and_then(|text| text.to_str().ok());
    told.and_then(grpc_timeout)
        .map_or(STREAM_PATIENCE, |told| told.min(STREAM_PATIENCE))
}

/// Spec: gRPC over HTTP/2, `Timeout`: at most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

const STREAM_PATIENCE: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;

    use super::{STREAM_PATIENCE, grpc_timeout, patience};

    #[test]
    fn grpc_timeouts_are_read_as_their_specification_writes_them() {
        for (text, expected) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3_000)),
            ("99999999m", Some(99_999_999)),
            ("5000u", Some(5)),
            ("1000000n", Some(1)),
            ("", None),
            ("m", None),
            ("5", None),
            ("5s", None),
            ("-5m", None),
            ("+5m", None),
            ("999999999m", None),
            ("5\u{b5}", None),
        ] {
            assert_eq!(
                grpc_timeout(text),
                expected.map(Duration::from_millis),
                "{text}"
            );
        }
    }

    #[test]
    fn only_grpc_says_how_long_it_waits() {
        let configured = Duration::from_secs(60);
        for (kind, timeout, expected) in [
            (None, None, configured),
            (None, Some("5S"), configured),
            (Some("text/plain"), Some("5S"), configured),
            (Some("application/grpc"), Some("5S"), Duration::from_secs(5)),
            (
                Some("application/grpc+proto"),
                Some("99999999H"),
                STREAM_PATIENCE,
            ),
            (Some("application/grpc"), None, STREAM_PATIENCE),
            (Some("application/grpc"), Some("soon"), STREAM_PATIENCE),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert("content-type", kind.parse().unwrap());
            }
            if let Some(timeout) = timeout {
                headers.insert("grpc-timeout", timeout.parse().unwrap());
            }
            assert_eq!(
                patience(&headers, configured),
                expected,
                "{kind:?} {timeout:?}"
            );
        }
    }
}
