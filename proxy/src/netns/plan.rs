//! What the rules are to do, whichever program applies them. Pure.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Everything that the rules depend on.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Where the proxy listens.
    pub(crate) ports: Ports,
    /// How inbound connections reach it.
    pub(crate) mode: Mode,
    /// How it is told from the app.
    pub(crate) proxy: Exempt,
    /// Whom anyone in the pod may ask for names.
    pub(crate) resolvers: Vec<IpAddr>,
    /// Ports of the pod that are reached directly.
    pub(crate) open_ports: Ranges,
    /// Ports elsewhere that are reached directly.
    pub(crate) direct_ports: Ranges,
    /// Networks that are reached directly.
    pub(crate) direct_networks: Vec<IpNet>,
}

/// Where the proxy listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) inbound: u16,
    pub(crate) outbound: u16,
    /// Loopback only.
    pub(crate) admin: u16,
    /// None when it is told on loopback only.
    pub(crate) metrics: Option<u16>,
}

/// How inbound connections reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Their destination is rewritten; `inbound.forward: original-destination`
    Redirect,
    /// They are handed over as they are; `inbound.forward: transparent`
    Tproxy,
}

/// How the proxy is told from the app. Where both are given both must hold.
#[derive(Debug, Clone)]
pub(crate) enum Exempt {
    Uid(u32),
    Cgroup(CgroupPath),
    Both(u32, CgroupPath),
}

impl Exempt {
    pub(crate) fn uid(&self) -> Option<u32> {
        match self {
            Self::Uid(uid) | Self::Both(uid, _) => Some(*uid),
            Self::Cgroup(_) => None,
        }
    }

    pub(crate) fn cgroup(&self) -> Option<&CgroupPath> {
        match self {
            Self::Cgroup(path) | Self::Both(_, path) => Some(path),
            Self::Uid(_) => None,
        }
    }
}

/// A control group of version 2, from the root of the hierarchy, without a leading slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CgroupPath(String);

impl CgroupPath {
    /// How deep it lies.
    pub(crate) fn level(&self) -> usize {
        self.0.split('/').count()
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CgroupPath {
    type Err = String;

    /// Takes what `/proc/PID/cgroup` shows after `0::`. The characters are those that mean nothing
    /// to the programs that read the rules.
    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix('/').unwrap_or(text);
        if path.is_empty() {
            return Err(
                "the root control group holds every process: name the proxy's own".to_owned(),
            );
        }
        if path.len() > MAX_CGROUP_BYTES {
            return Err(format!(
                "a control group's path has at most {MAX_CGROUP_BYTES} bytes"
            ));
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@\\".contains(c);
        for part in path.split('/') {
            if part.is_empty() || part == "." || part == ".." || !part.chars().all(is_plain) {
                return Err(format!(
                    "`{part}` is no part of a control group's path: take what `/proc/PID/cgroup` shows after `0::`"
                ));
            }
        }
        Ok(Self(path.to_owned()))
    }
}

/// Ports, sorted and without overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<PortRange>);

impl Ranges {
    /// In whatever order and however often they were written.
    pub(crate) fn of(mut written: Vec<PortRange>) -> Self {
        written.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::new();
        for range in written {
            match merged.last_mut() {
                Some(last) if range.first <= last.last.saturating_add(1) => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// These and one more.
    pub(crate) fn with(&self, port: Option<u16>) -> Self {
        let one = port.map(|port| PortRange {
            first: port,
            last: port,
        });
        Self::of(self.0.iter().copied().chain(one).collect())
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        self.iter()
            .any(|range| range.first <= port && port <= range.last)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = PortRange> {
        self.0.iter().copied()
    }

    /// All ports but these.
    pub(crate) fn others(&self) -> Vec<PortRange> {
        let mut others = Vec::new();
        let mut first = Some(1);
        for range in self.iter() {
            if let Some(first) = first.filter(|first| *first < range.first) {
                let last = range.first - 1;
                others.push(PortRange { first, last });
            }
            first = range.last.checked_add(1);
        }
        let last = u16::MAX;
        others.extend(first.map(|first| PortRange { first, last }));
        others
    }
}

/// As the options are written.
impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, PortRange { first, last }) in self.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// One port, or all from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(format!(
                "`{text}` is no port: a number from 1 to 65535, or a range such as 8000-8010"
            )),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = Self {
            first: port(first)?,
            last: port(last)?,
        };
        if range.first > range.last {
            return Err(format!(
                "`{text}` ends before it begins: write {}-{}",
                range.last, range.first
            ));
        }
        Ok(range)
    }
}

/// A network, with no bit set beyond its prefix.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("`{text}` is no network: write 10.96.0.0/12 or fd00:96::/112"))?;
    if network.trunc() != network {
        return Err(format!(
            "`{text}` has bits beyond its prefix: write {}",
            network.trunc()
        ));
    }
    Ok(network)
}

/// The networks of each family, without overlap.
pub(crate) fn by_family(networks: &[IpNet]) -> (Vec<Ipv4Net>, Vec<Ipv6Net>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for network in IpNet::aggregate(&networks.to_vec()) {
        match network {
            IpNet::V4(network) => v4.push(network),
            IpNet::V6(network) => v6.push(network),
        }
    }
    v4.sort_unstable();
    v6.sort_unstable();
    (v4, v6)
}

/// The name servers of a `resolv.conf`. Those on loopback need no rule, and lines that are none
/// are passed over as the C library does: one resolver less is one way out less.
pub(crate) fn nameservers(text: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next())?
        })
        // The interface of a link-local address.
        .map(|word| word.split_once('%').map_or(word, |(address, _)| address))
        .filter_map(|word| word.parse::<IpAddr>().ok())
        .map(|address| address.to_canonical())
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(MAX_RESOLVERS);
    found
}

/// What the kernel takes for the path of a control group in a rule.
const MAX_CGROUP_BYTES: usize = 512;

pub(crate) const MAX_RESOLVERS: usize = 16;

#[cfg(test)]
mod tests {
    use super::{CgroupPath, PortRange, Ranges, nameservers, network};

    #[test]
    fn port_ranges_are_read_and_merged() {
        let ranges = |text: &str| {
            let read: Result<Vec<PortRange>, String> = text.split(',').map(str::parse).collect();
            read.map(|read| {
                Ranges::of(read)
                    .iter()
                    .map(|range| (range.first, range.last))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(ranges("22"), Ok(vec![(22, 22)]));
        assert_eq!(ranges("8002,22,8000-8001,22,1-65535"), Ok(vec![(1, 65535)]));
        assert_eq!(
            ranges("9,8000-8010,8005-8020,8021"),
            Ok(vec![(9, 9), (8000, 8021)])
        );
        let others = |text: &str| {
            let read = text.split(',').map(|one| one.parse().unwrap()).collect();
            Ranges::of(Ranges::of(read).others()).to_string()
        };
        assert_eq!(others("80,8000-8010"), "1-79,81-7999,8011-65535");
        assert_eq!(others("1-9,65535"), "10-65534");
        assert_eq!(others("1-65535"), "");
        for (text, mend) in [
            ("0", "a number from 1 to 65535"),
            ("65536", "a number from 1 to 65535"),
            ("", "a number from 1 to 65535"),
            ("http", "`http` is no port"),
            ("-5", "`` is no port"),
            ("20-10", "write 10-20"),
            ("22 ", "`22 ` is no port"),
        ] {
            let error = ranges(text).unwrap_err();
            assert!(error.contains(mend), "{text}: {error}");
        }
    }

    #[test]
    fn networks_have_no_bits_beyond_their_prefix() {
        assert_eq!(network("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("fd00::1").unwrap().to_string(), "fd00::1/128");
        for (text, mend) in [
            ("10.0.0.1/8", "write 10.0.0.0/8"),
            ("10.0.0.0/33", "is no network"),
            ("example.org", "is no network"),
            ("10.0.0.0/8; flush ruleset", "is no network"),
        ] {
            let error = network(text).unwrap_err();
            assert!(error.contains(mend), "{text}: {error}");
        }
    }

    #[test]
    fn a_control_group_is_what_proc_shows() {
        let path: CgroupPath = "/system.slice/postern\\x2dproxy.service".parse().unwrap();
        assert_eq!(path.level(), 2);
        assert_eq!(path.to_string(), "system.slice/postern\\x2dproxy.service");
        for text in ["", "/", "a//b", "../a", "a/.", "a\" accept", "a b", "ä"] {
            assert!(text.parse::<CgroupPath>().is_err(), "{text}");
        }
        assert!("a".repeat(513).parse::<CgroupPath>().is_err());
    }

    #[test]
    fn name_servers_are_read_as_the_c_library_reads_them() {
        let text = "# a comment\nsearch example.org\nnameserver 10.0.0.10\n\
                    nameserver\tfe80::1%eth0\nnameserver 127.0.0.53\nnameserver ::1\n\
                    nameserver resolver.example\nnameserver\nnameserver ::ffff:10.0.0.10\n\
                    nameservers 10.0.0.11\n";
        let found: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.10", "fe80::1"]);
    }
}
