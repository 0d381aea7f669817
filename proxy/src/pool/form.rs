//! The form that a request has in each version of HTTP.

use http::{HeaderValue, Request, Uri, Version, header::HOST, uri::Authority, uri::PathAndQuery};

/// HTTP/1.1 has the path in its first line, and the authority in `Host`. Spec: RFC 9112 section 3.2.
pub(super) fn for_http1<B>(mut request: Request<B>) -> Result<Request<B>, http::Error> {
    if !request.headers().contains_key(HOST)
        && let Some(authority) = request.uri().authority()
    {
        let host = HeaderValue::try_from(authority.as_str())?;
        request.headers_mut().insert(HOST, host);
    }
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = Uri::builder().path_and_query(path(&request)).build()?;
    Ok(request)
}

/// HTTP/2 has both in its pseudo-headers. Spec: RFC 9113 section 8.3.1.
pub(super) fn for_http2<B>(mut request: Request<B>) -> Result<Request<B>, http::Error> {
    let host = request.headers_mut().remove(HOST);
    let authority = match (request.uri().authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes())?,
        (None, None) => Authority::from_static("localhost"),
    };
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(path(&request))
        .build()?;
    Ok(request)
}

fn path<B>(request: &Request<B>) -> PathAndQuery {
    let path = request.uri().path_and_query().cloned();
    path.unwrap_or_else(|| PathAndQuery::from_static("/"))
}

#[cfg(test)]
mod tests {
    use http::{Request, Version};

    use super::{for_http1, for_http2};

    #[test]
    fn a_request_keeps_its_host_and_path_through_every_form() {
        for (uri, host) in [
            ("/a?b=c", Some("web:8080")),
            ("http://web:8080/a?b=c", None),
            ("http://web:8080/a?b=c", Some("web:8080")),
        ] {
            let mut request = Request::builder().uri(uri);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            let first = for_http1(request.body(()).unwrap()).unwrap();
            assert_eq!(first.uri(), "/a?b=c");
            assert_eq!(first.headers()["host"], "web:8080");
            let second = for_http2(first).unwrap();
            assert_eq!(second.uri(), "http://web:8080/a?b=c");
            assert_eq!(second.version(), Version::HTTP_2);
            assert!(second.headers().get("host").is_none());
            assert_eq!(for_http1(second).unwrap().headers()["host"], "web:8080");
        }
    }
}
