//! Who may ask the admin listener. It hears this machine alone, and has no passwords: what is left to
//! keep out are the pages that a browser on this machine shows. Pure.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName,
    header::{HOST, ORIGIN},
};

/// Why these fields are not those of a caller who is welcome.
///
/// A page reaches this machine under a name of its own (DNS rebinding), or sends requests whose
/// answers it cannot read, which is enough to change something. Browsers say so in fields that no
/// page can write; programs send none of them.
pub(super) fn refused(headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Some(NAME);
    };
    let Some(host) = host.to_str().ok().filter(|host| is_here(host)) else {
        return Some(NAME);
    };
    let is_own = |origin: &str| origin.strip_prefix("http://") == Some(host);
    let all = |name: HeaderName, is_good: &dyn Fn(&str) -> bool| {
        let mut values = headers.get_all(name).iter();
        values.all(|value| value.to_str().is_ok_and(is_good))
    };
    let is_of_us = all(ORIGIN, &is_own)
        && all(SEC_FETCH_SITE, &|site| {
            matches!(site, "same-origin" | "none")
        });
    (!is_of_us).then_some(PAGE)
}

/// An address, or `localhost`, with or without a port.
fn is_here(host: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<IpAddr>().is_ok()
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

const NAME: &str = "ask by an address or as `localhost`";
const PAGE: &str = "pages of other sites have no business here";

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::{NAME, PAGE, refused};

    #[track_caller]
    fn check(fields: &[(&'static str, &'static str)], why: Option<&str>) {
        let headers: HeaderMap = fields
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::from_static(value);
                (HeaderName::from_static(name), value)
            })
            .collect();
        assert_eq!(refused(&headers), why, "{fields:?}");
    }

    #[test]
    fn the_admin_listener_answers_to_no_other_name() {
        // FAULTS 121
        for host in [
            "127.0.0.1:15000",
            "127.0.0.1",
            "localhost:15000",
            "localhost",
            "[::1]:15000",
            "[::1]",
        ] {
            check(&[("host", host)], None);
        }
        for host in [
            "evil.test",
            "evil.test:15000",
            "127.0.0.1.evil.test:15000",
            "localhost.evil.test",
            "",
        ] {
            check(&[("host", host)], Some(NAME));
        }
        check(&[], Some(NAME));
        check(&[("host", "localhost"), ("host", "localhost")], Some(NAME));
    }

    #[test]
    fn pages_of_other_sites_are_refused_whatever_they_ask() {
        let host = ("host", "127.0.0.1:15000");
        for good in [
            ("origin", "http://127.0.0.1:15000"),
            ("sec-fetch-site", "same-origin"),
            // Typed into the address bar.
            ("sec-fetch-site", "none"),
        ] {
            check(&[host, good], None);
        }
        for bad in [
            ("origin", "https://127.0.0.1:15000"),
            ("origin", "http://127.0.0.1:8080"),
            ("origin", "http://127.0.0.1"),
            ("origin", "http://localhost:15000"),
            ("origin", "http://evil.test"),
            ("origin", "null"),
            ("origin", ""),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", "anything"),
        ] {
            check(&[host, bad], Some(PAGE));
        }
        let own = ("origin", "http://127.0.0.1:15000");
        check(&[host, own, ("sec-fetch-site", "cross-site")], Some(PAGE));
        check(&[host, own, ("origin", "http://evil.test")], Some(PAGE));
    }
}
