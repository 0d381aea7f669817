//! One spelling for each host.

use std::{borrow::Cow, net::Ipv6Addr};

/// Why a host is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostRefused {
    /// There is none, or one of its labels is empty.
    #[error("the host is empty, or has an empty label")]
    Empty,
    /// More than a name has.
    #[error("the host is longer than 253 characters")]
    Long,
    /// What no name and no address has.
    #[error("the host holds a character that no name or address has")]
    Character,
    /// In brackets, and no address.
    #[error("the host is no IPv6 address in brackets")]
    Address,
    /// Not a number from 1 to 65535.
    #[error("the host's port is no number from 1 to 65535")]
    Port,
}

/// Brings a host, with its port or without, into its one spelling: small letters, no dot at the end,
/// a port without zeros before it. A host that has it already is not copied.
///
/// Spec: RFC 9110 section 4.2.3, RFC 3986 section 3.2.2.
///
/// # Errors
/// [`HostRefused`]; callers answer 400.
pub fn host(raw: &str) -> Result<Cow<'_, str>, HostRefused> {
    let (name, port) = match raw.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or(HostRefused::Address)?;
            address
                .parse::<Ipv6Addr>()
                .map_err(|_| HostRefused::Address)?;
            let port = match rest.strip_prefix(':') {
                None if rest.is_empty() => None,
                None => return Err(HostRefused::Character),
                port => port,
            };
            let end = raw.len() - rest.len();
            (raw.get(..end).unwrap_or_default(), port)
        }
        None => {
            let (name, port) = match raw.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (raw, None),
            };
            (checked(name.strip_suffix('.').unwrap_or(name))?, port)
        }
    };
    let port = match port {
        None | Some("") => None,
        Some(port) => Some(number(port)?),
    };
    let clean = match port {
        Some(port) => Cow::Owned(format!("{name}:{port}")),
        None => Cow::Borrowed(name),
    };
    Ok(
        if clean == raw && !raw.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Borrowed(raw)
        } else {
            Cow::Owned(clean.to_ascii_lowercase())
        },
    )
}

fn checked(name: &str) -> Result<&str, HostRefused> {
    if name.len() > MAX_NAME {
        return Err(HostRefused::Long);
    }
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.bytes().all(is_good) {
        return Err(HostRefused::Character);
    }
    if name.split('.').any(str::is_empty) {
        return Err(HostRefused::Empty);
    }
    Ok(name)
}

fn number(port: &str) -> Result<u16, HostRefused> {
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(HostRefused::Port);
    }
    match port.parse() {
        Ok(0) | Err(_) => Err(HostRefused::Port),
        Ok(port) => Ok(port),
    }
}

/// Spec: RFC 1035 section 2.3.4, without the two bytes of the wire.
const MAX_NAME: usize = 253;

#[cfg(test)]
mod tests {
    use super::{HostRefused, host};

    #[test]
    fn each_host_has_one_spelling() {
        // FAULTS 112
        for (raw, expected) in [
            ("web.example", "web.example"),
            ("WEB.Example", "web.example"),
            ("web.example.", "web.example"),
            ("web.example.:8080", "web.example:8080"),
            ("web.example:080", "web.example:80"),
            ("web.example:", "web.example"),
            ("a_b", "a_b"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("[::1]", "[::1]"),
            ("[2001:DB8::1]:443", "[2001:db8::1]:443"),
        ] {
            assert_eq!(host(raw).as_deref(), Ok(expected), "{raw}");
        }
        assert!(matches!(
            host("web.example:80"),
            Ok(std::borrow::Cow::Borrowed(_))
        ));
    }

    #[test]
    fn what_is_no_host_is_refused() {
        // FAULTS 89
        for (raw, expected) in [
            ("", HostRefused::Empty),
            (".", HostRefused::Empty),
            ("a..b", HostRefused::Empty),
            (":80", HostRefused::Empty),
            ("a b", HostRefused::Character),
            ("a/b", HostRefused::Character),
            ("user@a", HostRefused::Character),
            ("a%2eb", HostRefused::Character),
            ("é.example", HostRefused::Character),
            ("a:0", HostRefused::Port),
            ("a:65536", HostRefused::Port),
            ("a:+1", HostRefused::Port),
            ("a:80:80", HostRefused::Port),
            ("::1", HostRefused::Empty),
            ("[::1", HostRefused::Address),
            ("[a]", HostRefused::Address),
            ("[::1]x", HostRefused::Character),
        ] {
            assert_eq!(host(raw), Err(expected), "{raw}");
        }
        assert_eq!(host(&"a".repeat(254)), Err(HostRefused::Long));
        assert!(host(&"a".repeat(253)).is_ok());
    }
}
