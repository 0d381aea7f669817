//! What gRPC makes of HTTP, as far as a proxy must know: whose requests are its own, and the form
//! in which its clients understand a refusal.
//!
//! Spec: gRPC over HTTP/2, `Requests` and `Responses`; HTTP to gRPC status code mapping.

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};

use super::body::Answered;

/// Is this a call of gRPC? `application/grpc-web` is ordinary HTTP.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// Says of an answer that it is the proxy's own, and in which words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words(pub(crate) &'static str);

/// Gives an answer of our own the form that gRPC's clients understand: no body, which they would
/// take for a message, and the status where they look for it. The status of HTTP stays what it is
/// for everybody else. An app's answer is not touched.
pub(crate) fn in_form(mut answer: Response<Answered>) -> Response<Answered> {
    let Some(Words(words)) = answer.extensions().get().copied() else {
        return answer;
    };
    let status = HeaderValue::from(code(answer.status()));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.remove(CONTENT_LENGTH);
    headers.insert(STATUS, status);
    // Our words have no character that would have to be escaped.
    headers.insert(MESSAGE, HeaderValue::from_static(words));
    answer.map(Answered::without_bytes)
}

fn code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
    use http_body::Body as _;

    use super::{Answered, in_form, is_grpc};
    use crate::http::serve::own_answer;

    #[test]
    fn only_calls_of_grpc_are_calls_of_grpc() {
        let of = |kind: &'static str| {
            is_grpc(&HeaderMap::from_iter([(
                CONTENT_TYPE,
                HeaderValue::from_static(kind),
            )]))
        };
        for kind in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;charset=utf-8",
        ] {
            assert!(of(kind), "{kind}");
        }
        for kind in [
            "application/grpc-web",
            "application/grpc-web-text",
            "application/json",
            "",
        ] {
            assert!(!of(kind), "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn a_refusal_of_ours_has_a_status_of_grpc_and_an_apps_stays_what_it_is() {
        let id = HeaderValue::from_static("id");
        for (status, code) in [
            (403, "7"),
            (401, "16"),
            (400, "13"),
            (503, "14"),
            (500, "2"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let answer = in_form(own_answer(status, "no", &id));
            assert_eq!(answer.status(), status);
            assert_eq!(answer.headers()["grpc-status"], code);
            assert_eq!(answer.headers()["grpc-message"], "no");
            assert!(answer.body().is_end_stream());
        }
        let mut app = Response::new(Answered::own("no"));
        *app.status_mut() = StatusCode::FORBIDDEN;
        let app = in_form(app);
        assert_eq!(app.status(), StatusCode::FORBIDDEN);
        assert!(!app.body().is_end_stream());
    }
}
