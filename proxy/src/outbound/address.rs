//! Addresses that are never dialled because a name led to them.
//!
//! Whoever answers for a DNS name must not be able to send us to this machine, to its cloud's
//! metadata, or to everybody. A Workload that names such an address itself is believed: its author
//! may write what they like. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is that is not dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Denied {
    /// This machine.
    Loopback,
    /// The same link: 169.254.0.0/16 and fe80::/10.
    LinkLocal,
    /// Where clouds tell a machine its secrets.
    Metadata,
    /// No address at all: 0.0.0.0/8 and ::.
    Unspecified,
    /// More than one receiver.
    Multicast,
    /// Not given to anybody: 240.0.0.0/4 and broadcast.
    Reserved,
    /// One of the proxy's own listeners.
    Own,
    /// One more than are kept of a Workload.
    Surplus,
}

impl Denied {
    /// The word for it in metrics and logs.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Metadata => "metadata",
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
            Self::Own => "own_listener",
            Self::Surplus => "surplus",
        }
    }
}

/// Why an address that a name led to is not dialled. Every way to write an IPv4 address inside an
/// IPv6 address is looked through.
pub(crate) fn denied(ip: IpAddr) -> Option<Denied> {
    match ip {
        IpAddr::V4(ip) => denied_v4(ip),
        IpAddr::V6(ip) => denied_v6(ip).or_else(|| embedded(ip).find_map(denied_v4)),
    }
}

fn denied_v4(ip: Ipv4Addr) -> Option<Denied> {
    let found = match ip.octets() {
        _ if METADATA_V4.contains(&ip) => Denied::Metadata,
        [0, ..] => Denied::Unspecified,
        [127, ..] => Denied::Loopback,
        [169, 254, ..] => Denied::LinkLocal,
        [224..=239, ..] => Denied::Multicast,
        [240..=255, ..] => Denied::Reserved,
        _ => return None,
    };
    Some(found)
}

fn denied_v6(ip: Ipv6Addr) -> Option<Denied> {
    let found = match ip.segments() {
        _ if METADATA_V6.contains(&ip) => Denied::Metadata,
        _ if ip.is_unspecified() => Denied::Unspecified,
        _ if ip.is_loopback() => Denied::Loopback,
        [0xfe80..=0xfebf, ..] => Denied::LinkLocal,
        [0xff00..=0xffff, ..] => Denied::Multicast,
        _ => return None,
    };
    Some(found)
}

/// The IPv4 addresses that an IPv6 address may stand for.
///
/// Spec: RFC 4291 section 2.5.5 (mapped, compatible), RFC 6052 and RFC 8215 (NAT64), RFC 3056
/// (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP).
fn embedded(ip: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    let found = match ip.segments() {
        // Mapped, compatible, translated (RFC 2765), and the well-known prefix of NAT64.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [Some(v4(high, low)), None],
        // The local prefix of NAT64, /48 or /96: bits 64 to 71 are skipped in the first.
        [0x64, 0xff9b, 1, high, middle, low, h, l] => {
            let ([_, b], [c, _]) = (middle.to_be_bytes(), low.to_be_bytes());
            let short = v4(high, u16::from_be_bytes([b, c]));
            // The part that the other form leaves at zero says nothing.
            let said = |ip: Ipv4Addr| (!ip.is_unspecified()).then_some(ip);
            match (said(short), said(v4(h, l))) {
                (None, None) => [Some(Ipv4Addr::UNSPECIFIED), None],
                (short, long) => [short, long],
            }
        }
        [0x2002, high, low, ..] => [Some(v4(high, low)), None],
        // Teredo: the server, and the client with its bits turned over.
        [0x2001, 0, high, low, _, _, h, l] => [Some(v4(high, low)), Some(v4(!h, !l))],
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => [Some(v4(high, low)), None],
        _ => [None, None],
    };
    found.into_iter().flatten()
}

/// A text that the system would read as an address in an unusual form: `2130706433`, `127.1`,
/// `0x7f000001`. Such texts are never looked up.
pub(crate) fn looks_like_a_number(name: &str) -> bool {
    let last = name.trim_end_matches('.').rsplit('.').next();
    last.is_some_and(|label| {
        let hex = label.strip_prefix("0x").or(label.strip_prefix("0X"));
        match hex {
            Some(digits) => digits.chars().all(|c| c.is_ascii_hexdigit()),
            None => label.chars().all(|c| c.is_ascii_digit()),
        }
    })
}

/// AWS and everybody, Azure, Alibaba, Oracle.
const METADATA_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// AWS (machines, pods), Google.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::{Denied, denied, looks_like_a_number};

    #[test]
    fn every_spelling_of_a_forbidden_address_is_denied() {
        // FAULTS 117, 118
        for (text, expected) in [
            ("127.0.0.1", Denied::Loopback),
            ("127.255.255.254", Denied::Loopback),
            ("::1", Denied::Loopback),
            ("169.254.0.1", Denied::LinkLocal),
            ("fe80::1", Denied::LinkLocal),
            ("febf::1", Denied::LinkLocal),
            ("169.254.169.254", Denied::Metadata),
            ("fd00:ec2::254", Denied::Metadata),
            ("fd20:ce::254", Denied::Metadata),
            ("100.100.100.200", Denied::Metadata),
            ("168.63.129.16", Denied::Metadata),
            ("0.0.0.0", Denied::Unspecified),
            ("0.1.2.3", Denied::Unspecified),
            ("::", Denied::Unspecified),
            ("224.0.0.1", Denied::Multicast),
            ("239.255.255.255", Denied::Multicast),
            ("ff02::1", Denied::Multicast),
            ("240.0.0.1", Denied::Reserved),
            ("255.255.255.255", Denied::Reserved),
            // IPv4 inside IPv6: mapped, compatible, translated, NAT64, 6to4, Teredo, ISATAP.
            ("::ffff:127.0.0.1", Denied::Loopback),
            ("::ffff:169.254.169.254", Denied::Metadata),
            ("::127.0.0.1", Denied::Loopback),
            ("::ffff:0:127.0.0.1", Denied::Loopback),
            ("64:ff9b::169.254.169.254", Denied::Metadata),
            ("64:ff9b:1::127.0.0.1", Denied::Loopback),
            ("64:ff9b:1:a9fe:a9:fe00::", Denied::Metadata),
            ("2002:a9fe:a9fe::1", Denied::Metadata),
            ("2002:7f00:1::", Denied::Loopback),
            ("2001:0:7f00:1::", Denied::Loopback),
            ("2001:0:808:808::80ff:fffe", Denied::Loopback),
            ("2001:db8::5efe:127.0.0.1", Denied::Loopback),
            ("2001:db8::200:5efe:127.0.0.1", Denied::Loopback),
        ] {
            assert_eq!(denied(text.parse().unwrap()), Some(expected), "{text}");
        }
    }

    #[test]
    fn their_neighbours_are_dialled() {
        for text in [
            "126.255.255.255",
            "128.0.0.1",
            "169.253.255.255",
            "169.255.0.1",
            "1.0.0.1",
            "223.255.255.255",
            "10.0.0.5",
            "192.168.1.1",
            "100.100.100.201",
            "fd00:ec2::255",
            "fec0::1",
            "2001:db8::1",
            "::ffff:10.0.0.5",
            "64:ff9b::10.0.0.5",
            "64:ff9b:1::10.0.0.5",
            "64:ff9b:1:a00:0:500::",
            "2002:a00:5::1",
        ] {
            assert_eq!(denied(text.parse().unwrap()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_address_is_denied_in_ipv6_as_it_is_in_ipv4(number: u32) {
            let v4 = Ipv4Addr::from(number);
            let expected = denied(v4.into()).is_some();
            let (number, [a, b, c, d]) = (u128::from(number), v4.octets().map(u128::from));
            let forms = [
                number,
                0xffff << 32 | number,
                0xffff << 48 | number,
                0x64_ff9b << 96 | number,
                0x64_ff9b_0001 << 80 | number,
                0x64_ff9b_0001 << 80 | a << 72 | b << 64 | c << 48 | d << 40,
                0x2002 << 112 | number << 80,
                0x2001_0db8 << 96 | 0x5efe << 32 | number,
            ];
            for form in forms.map(Ipv6Addr::from) {
                prop_assert_eq!(denied(form.into()).is_some(), expected, "{}", form);
            }
        }
    }

    #[test]
    fn numbers_are_no_names() {
        for name in [
            "2130706433",
            "127.1",
            "0x7f000001",
            "017700000001",
            "1.2.3.4.",
            "a.0x",
            "a.5",
        ] {
            assert!(looks_like_a_number(name), "{name}");
        }
        for name in ["web", "web.5a", "5.web", "0xg", "127.0.0.1.nip.io", "x0x7f"] {
            assert!(!looks_like_a_number(name), "{name}");
        }
    }
}
