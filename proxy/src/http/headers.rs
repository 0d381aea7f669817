//! Header fields: what is taken away, and what is set.
//!
//! Nothing of a request tells who sent it. Fields in which an app would look for that are stripped
//! in every spelling, and set from the handshake alone.

use aws_lc_rs::digest;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE},
};
use postern_policies::decide::Headers;
use postern_spiffe::{SpiffeId, VerifiedPeer};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::trace::{TRACEPARENT, digits};
use crate::random::random;

/// Strips what belongs to one connection alone, and what its `Connection` field names.
/// Spec: RFC 9110 section 7.6.1.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // What a message cannot do without, nobody names away.
        .filter(|name| ![HOST, CONTENT_LENGTH, REQUEST_ID, TRACEPARENT].contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
    // gRPC says with it that it can take trailers; nothing else may pass.
    let wants_trailers = headers.get_all(TE).iter().any(|value| value == "trailers");
    headers.remove(TE);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Strips every field in which an app could look for an identity.
pub(crate) fn strip_identity(headers: &mut HeaderMap) {
    let spoofable: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_identity(name.as_str()))
        .cloned()
        .collect();
    for name in spoofable {
        headers.remove(name);
    }
}

/// Names come in lower case; some apps take `_` for `-`.
fn is_identity(name: &str) -> bool {
    let reads_as = |name: &str, known: &str| {
        let same = |(byte, of): (u8, u8)| byte == of || (byte == b'_' && of == b'-');
        name.len() == known.len() && name.bytes().zip(known.bytes()).all(same)
    };
    let known = [
        "x-forwarded-client-cert",
        "x-spiffe-id",
        "x-client-identity",
    ];
    let prefix = name.get(..OWN_PREFIX.len());
    known.iter().any(|known| reads_as(name, known))
        || prefix.is_some_and(|prefix| reads_as(prefix, OWN_PREFIX))
}

/// How the names of our own fields begin.
const OWN_PREFIX: &str = "x-postern-";

/// May a trailer of this name pass? Not what frames or routes a message, and not what tells who
/// sent it. Spec: RFC 9110 section 6.5.1.
pub(crate) fn is_trailer(name: &[u8]) -> bool {
    let Ok(name) = std::str::from_utf8(name) else {
        return false;
    };
    let name = name.to_ascii_lowercase().replace('_', "-");
    !is_identity(&name)
        && !matches!(
            name.as_str(),
            "authorization"
                | "connection"
                | "content-encoding"
                | "content-length"
                | "content-range"
                | "content-type"
                | "cookie"
                | "expect"
                | "host"
                | "keep-alive"
                | "max-forwards"
                | "proxy-authorization"
                | "proxy-connection"
                | "te"
                | "traceparent"
                | "tracestate"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "x-request-id"
        )
}

/// Takes trailers out that may not pass.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    let gone: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| !is_trailer(name.as_str().as_bytes()))
        .cloned()
        .collect();
    for name in gone {
        trailers.remove(name);
    }
}

/// HTTP/2 may send a cookie in pieces; an app of HTTP/1, and a policy, expect one field.
/// Spec: RFC 9113 section 8.2.3.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let pieces: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if pieces.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// What an app is told about a verified caller, in Envoy's format.
pub(crate) fn forwarded_client_cert(
    own: &SpiffeId,
    peer: &VerifiedPeer,
    leaf: &CertificateDer<'_>,
) -> Option<HeaderValue> {
    let hash = digest::digest(&digest::SHA256, leaf);
    let hash: String = hash
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let subject = parsed
        .subject()
        .to_string()
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    let mut text = format!(
        "By={own};Hash={hash};Subject=\"{subject}\";URI={}",
        peer.id()
    );
    let names = parsed.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        // Only what cannot break the format: these come from a certificate that we trust, and yet.
        if let GeneralName::DNSName(name) = name
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '*'))
        {
            text.push_str(&format!(";DNS={name}"));
        }
    }
    HeaderValue::try_from(text).ok()
}

/// The id of a request: the one that it has, if it is sane, else a new one.
pub(crate) fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        !bytes.is_empty()
            && bytes.len() <= 64
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    };
    let mut given = headers.get_all(REQUEST_ID).iter();
    let id = match (given.next().filter(sane), given.next()) {
        (Some(id), None) => id.clone(),
        _ => new_id(),
    };
    headers.insert(REQUEST_ID, id.clone());
    id
}

/// A random UUID (RFC 9562, version 4).
fn new_id() -> HeaderValue {
    let mut bytes = random::<16>();
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    let mut letters = *b"00000000-0000-0000-0000-000000000000";
    let mut rest = bytes.as_slice();
    for part in letters.split_mut(|letter| *letter == b'-') {
        let (now, later) = rest.split_at_checked(part.len() / 2).unwrap_or_default();
        digits(now, part);
        rest = later;
    }
    HeaderValue::from_bytes(&letters).unwrap_or(HeaderValue::from_static("0"))
}

/// Header fields, as policies look at them.
#[derive(Debug)]
pub(crate) struct Fields<'h>(pub(crate) &'h HeaderMap);

impl Headers for Fields<'_> {
    fn values(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.0
            .get_all(name)
            .iter()
            .for_each(|value| each(value.as_bytes()));
    }
}

pub(crate) const FORWARDED_CLIENT_CERT: HeaderName =
    HeaderName::from_static("x-forwarded-client-cert");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-postern-reason");

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::{request_id, strip_hop_by_hop, strip_identity};

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (
                    name.parse::<HeaderName>().unwrap(),
                    HeaderValue::try_from(*value).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn identity_fields_are_stripped_in_every_spelling() {
        // FAULTS 114
        let mut headers = map(&[
            ("X-Forwarded-Client-Cert", "a"),
            ("x_forwarded_client_cert", "b"),
            ("X-SPIFFE-ID", "c"),
            ("x-client_identity", "d"),
            ("x-postern-reason", "e"),
            ("X_Postern_Anything", "f"),
            ("x-poster", "stays"),
            ("x-forwarded-for", "stays"),
        ]);
        strip_identity(&mut headers);
        assert_eq!(headers.len(), 2, "{headers:?}");
        assert!(headers.values().all(|value| value == "stays"));
    }

    #[test]
    fn hop_by_hop_fields_and_those_they_name_are_stripped_but_never_the_host() {
        let mut headers = map(&[
            ("connection", "close, X-Gone, host"),
            ("x-gone", "a"),
            ("keep-alive", "b"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "trailers, deflate"),
            ("te", "trailers"),
            ("host", "stays"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "stays"), ("te", "trailers")]));
    }

    #[test]
    fn a_request_keeps_a_sane_id_and_no_other() {
        assert_eq!(request_id(&mut map(&[("x-request-id", "abc-1")])), "abc-1");
        for bad in [
            map(&[]),
            map(&[("x-request-id", "")]),
            map(&[("x-request-id", "a b")]),
            map(&[("x-request-id", &"a".repeat(65))]),
            map(&[("x-request-id", "a"), ("x-request-id", "b")]),
        ] {
            let mut headers = bad.clone();
            let id = request_id(&mut headers);
            assert_eq!(id.len(), 36, "{bad:?}");
            assert_eq!(
                headers.get_all("x-request-id").iter().collect::<Vec<_>>(),
                [&id]
            );
        }
    }
}
