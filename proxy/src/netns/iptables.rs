//! The rules in the language of `iptables-restore`, for machines without `nft`. Pure.
//!
//! Each table is one transaction. The rules stand in chains of our own, which a restore without
//! flushing empties and fills; only the jump to a chain has to be known to be there or not.

use std::net::IpAddr;

use super::{
    PROBE_EXEMPTION, PROBE_INBOUND, PROBE_OUTBOUND,
    plan::{Exempt, Mode, Plan, Ranges, by_family},
    routing::MARK,
};

/// Version 4 and version 6 have a program each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn save(self) -> &'static str {
        match self {
            Self::V4 => "iptables-save",
            Self::V6 => "ip6tables-save",
        }
    }

    pub(crate) fn restore(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }
}

/// One chain of ours and where it hangs.
struct Chain {
    table: &'static str,
    hook: &'static str,
    name: &'static str,
}

const HAND_OVER_IN: Chain = Chain {
    table: "mangle",
    hook: "PREROUTING",
    name: "POSTERN_HAND_OVER_IN",
};
const REDIRECT_IN: Chain = Chain {
    table: "nat",
    hook: "PREROUTING",
    name: "POSTERN_REDIRECT_IN",
};
const REDIRECT_OUT: Chain = Chain {
    table: "nat",
    hook: "OUTPUT",
    name: "POSTERN_REDIRECT_OUT",
};
const DENY_IN: Chain = Chain {
    table: "filter",
    hook: "INPUT",
    name: "POSTERN_DENY_IN",
};
const DENY_OUT: Chain = Chain {
    table: "filter",
    hook: "OUTPUT",
    name: "POSTERN_DENY_OUT",
};
const DENY_THROUGH: Chain = Chain {
    table: "filter",
    hook: "FORWARD",
    name: "POSTERN_DENY_THROUGH",
};
const CHAINS: [Chain; 6] = [
    HAND_OVER_IN,
    REDIRECT_IN,
    REDIRECT_OUT,
    DENY_IN,
    DENY_OUT,
    DENY_THROUGH,
];

/// What is to be restored, where `saved` is what there is.
pub(crate) fn rules(plan: &Plan, family: Family, saved: &str) -> String {
    let handed_over = plan.mode == Mode::Tproxy;
    let mut text = String::new();
    for table in ["mangle", "nat", "filter"] {
        text.push_str(&format!("*{table}\n"));
        for chain in CHAINS.iter().filter(|chain| chain.table == table) {
            let rules = match chain.name {
                "POSTERN_HAND_OVER_IN" if handed_over => hand_over_in(plan),
                "POSTERN_REDIRECT_IN" if !handed_over => redirect_in(plan),
                "POSTERN_REDIRECT_OUT" => redirect_out(plan, family),
                "POSTERN_DENY_IN" => deny_in(plan, family),
                "POSTERN_DENY_OUT" => deny_out(plan, family),
                "POSTERN_DENY_THROUGH" => vec!["-j DROP".to_owned()],
                // Of the other mode: an empty chain lets all pass.
                _ => Vec::new(),
            };
            text.push_str(&format!(":{} - [0:0]\n", chain.name));
            for rule in rules {
                text.push_str(&format!("-A {} {rule}\n", chain.name));
            }
            if !chain.is_in(saved) {
                text.push_str(&format!("-I {} 1 -j {}\n", chain.hook, chain.name));
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// What takes away our chains, if `saved` has any.
pub(crate) fn clean(_: Family, saved: &str) -> Option<String> {
    let mut text = String::new();
    for table in ["mangle", "nat", "filter"] {
        let ours: Vec<&Chain> = CHAINS
            .iter()
            .filter(|chain| chain.table == table && chain.exists_in(saved))
            .collect();
        if ours.is_empty() {
            continue;
        }
        text.push_str(&format!("*{table}\n"));
        for chain in ours {
            if chain.is_in(saved) {
                text.push_str(&format!("-D {} -j {}\n", chain.hook, chain.name));
            }
            text.push_str(&format!("-F {0}\n-X {0}\n", chain.name));
        }
        text.push_str("COMMIT\n");
    }
    (!text.is_empty()).then_some(text)
}

impl Chain {
    /// Whether what `iptables-save` told jumps to it.
    fn is_in(&self, saved: &str) -> bool {
        let jump = format!("-A {} -j {}", self.hook, self.name);
        saved.lines().any(|line| line.trim_end() == jump)
    }

    fn exists_in(&self, saved: &str) -> bool {
        let declared = format!(":{} ", self.name);
        saved.lines().any(|line| line.starts_with(&declared))
    }
}

fn redirect_in(plan: &Plan) -> Vec<String> {
    let mut rules = vec!["-i lo -j RETURN".to_owned(), NOT_OURS.to_owned()];
    rules.extend(to_ports(&open(plan), "RETURN"));
    rules.push(format!(
        "-p tcp -j REDIRECT --to-ports {}",
        plan.ports.inbound
    ));
    rules
}

fn hand_over_in(plan: &Plan) -> Vec<String> {
    let to_proxy = format!(
        "-j TPROXY --on-port {} --tproxy-mark {MARK}",
        plan.ports.inbound
    );
    let mut rules = vec![
        format!("-i lo -p tcp --dport {PROBE_INBOUND} {to_proxy}"),
        "-i lo -j RETURN".to_owned(),
        NOT_OURS.to_owned(),
    ];
    rules.extend(to_ports(&open(plan), "RETURN"));
    // This target drops what belongs to a socket that is not transparent, such as the answers to
    // the proxy's own connections. Later packets of a connection find its socket by themselves.
    rules.push("-m conntrack ! --ctstate NEW -j RETURN".to_owned());
    rules.push(format!("-p tcp {to_proxy}"));
    rules
}

fn redirect_out(plan: &Plan, family: Family) -> Vec<String> {
    let to = |port: u16| format!("-j REDIRECT --to-ports {port}");
    let outbound = to(plan.ports.outbound);
    let mut rules = vec![format!("-o lo -p tcp --dport {PROBE_OUTBOUND} {outbound}")];
    if plan.mode == Mode::Redirect {
        let inbound = to(plan.ports.inbound);
        rules.push(format!("-o lo -p tcp --dport {PROBE_INBOUND} {inbound}"));
    }
    rules.push(format!(
        "-o lo -p tcp ! --dport {PROBE_EXEMPTION} -j RETURN"
    ));
    rules.push(format!("{} -j RETURN", exempt(&plan.proxy)));
    rules.extend(to_resolvers(plan, family, &["tcp"], "RETURN"));
    rules.extend(to_ports(&plan.direct_ports, "RETURN"));
    rules.extend(to_networks(plan, family, "RETURN"));
    rules.push(format!("-p tcp {outbound}"));
    rules
}

fn deny_in(plan: &Plan, family: Family) -> Vec<String> {
    let mut rules = vec!["-i lo -j ACCEPT".to_owned()];
    rules.extend(ongoing(family));
    rules.push(match plan.mode {
        Mode::Redirect => format!(
            "-p tcp --dport {} -m conntrack --ctstate DNAT -j ACCEPT",
            plan.ports.inbound
        ),
        Mode::Tproxy => format!("-p tcp -m mark --mark {MARK} -j ACCEPT"),
    });
    rules.extend(to_ports(&open(plan), "ACCEPT"));
    if family == Family::V6 {
        // Router advertisement, neighbour solicitation and advertisement; who listens to groups.
        rules.extend([134, 135, 136].map(|kind| icmpv6(kind, Some(255))));
        rules.push(icmpv6(130, None));
    }
    rules.push("-j DROP".to_owned());
    rules
}

fn deny_out(plan: &Plan, family: Family) -> Vec<String> {
    let mut rules = vec!["-o lo -j ACCEPT".to_owned()];
    rules.extend(ongoing(family));
    rules.push(format!(
        "-p tcp --dport {} -m conntrack --ctstate DNAT -j ACCEPT",
        plan.ports.outbound
    ));
    rules.push(format!("-p tcp {} -j ACCEPT", exempt(&plan.proxy)));
    rules.extend(to_resolvers(plan, family, &["tcp", "udp"], "ACCEPT"));
    rules.extend(to_ports(&plan.direct_ports, "ACCEPT"));
    rules.extend(to_networks(plan, family, "ACCEPT"));
    if family == Family::V6 {
        // Router solicitation, neighbour solicitation and advertisement; reports about groups.
        rules.extend([133, 135, 136].map(|kind| icmpv6(kind, Some(255))));
        rules.extend([131, 132, 143].map(|kind| icmpv6(kind, Some(1))));
    }
    rules.push("-j DROP".to_owned());
    rules
}

fn open(plan: &Plan) -> Ranges {
    plan.open_ports.with(plan.ports.metrics)
}

/// Of connections that were let in or out, and errors about them.
fn ongoing(family: Family) -> [String; 2] {
    let errors = match family {
        Family::V4 => "icmp",
        Family::V6 => "ipv6-icmp",
    };
    [
        "-m conntrack --ctstate ESTABLISHED -j ACCEPT".to_owned(),
        format!("-p {errors} -m conntrack --ctstate RELATED -j ACCEPT"),
    ]
}

fn icmpv6(kind: u8, hops: Option<u8>) -> String {
    let hops = hops.map_or_else(String::new, |hops| format!(" -m hl --hl-eq {hops}"));
    format!("-p ipv6-icmp --icmpv6-type {kind}{hops} -j ACCEPT")
}

fn exempt(proxy: &Exempt) -> String {
    let uid = proxy.uid().map(|uid| format!("-m owner --uid-owner {uid}"));
    let cgroup = proxy
        .cgroup()
        .map(|path| format!("-m cgroup --path {path}"));
    let parts: Vec<String> = uid.into_iter().chain(cgroup).collect();
    parts.join(" ")
}

fn to_ports(ports: &Ranges, verdict: &str) -> Vec<String> {
    let rule = |first, last| format!("-p tcp --dport {first}:{last} -j {verdict}");
    ports
        .iter()
        .map(|range| rule(range.first, range.last))
        .collect()
}

fn to_resolvers(plan: &Plan, family: Family, protocols: &[&str], verdict: &str) -> Vec<String> {
    let of_family = |address: &&IpAddr| address.is_ipv4() == (family == Family::V4);
    let rules = |address: &IpAddr| {
        let rule = |protocol| format!("-d {address} -p {protocol} --dport 53 -j {verdict}");
        protocols.iter().map(rule).collect::<Vec<_>>()
    };
    plan.resolvers
        .iter()
        .filter(of_family)
        .flat_map(rules)
        .collect()
}

fn to_networks(plan: &Plan, family: Family, verdict: &str) -> Vec<String> {
    let (v4, v6) = by_family(&plan.direct_networks);
    let networks: Vec<String> = match family {
        Family::V4 => v4.iter().map(ToString::to_string).collect(),
        Family::V6 => v6.iter().map(ToString::to_string).collect(),
    };
    let rule = |network: &String| format!("-p tcp -d {network} -j {verdict}");
    networks.iter().map(rule).collect()
}

/// What is for somebody else must not be rewritten into something that is for us.
const NOT_OURS: &str = "-m addrtype ! --dst-type LOCAL -j RETURN";

#[cfg(test)]
mod tests {
    use super::{CHAINS, Family, clean};

    #[test]
    fn only_what_is_there_is_taken_away() {
        assert_eq!(clean(Family::V4, ""), None);
        let others = "*nat\n:PREROUTING ACCEPT [0:0]\n:ISTIO_INBOUND - [0:0]\n\
                      -A PREROUTING -j ISTIO_INBOUND\nCOMMIT\n";
        assert_eq!(clean(Family::V4, others), None);
        let ours = format!(
            "{others}*filter\n:POSTERN_DENY_IN - [0:0]\n-A INPUT -j POSTERN_DENY_IN\nCOMMIT\n"
        );
        assert_eq!(
            clean(Family::V6, &ours).unwrap(),
            "*filter\n-D INPUT -j POSTERN_DENY_IN\n-F POSTERN_DENY_IN\n-X POSTERN_DENY_IN\nCOMMIT\n"
        );
        // A chain whose jump somebody took away already.
        let ours = ours.replace("-A INPUT -j POSTERN_DENY_IN\n", "");
        assert_eq!(
            clean(Family::V6, &ours).unwrap(),
            "*filter\n-F POSTERN_DENY_IN\n-X POSTERN_DENY_IN\nCOMMIT\n"
        );
    }

    #[test]
    fn names_of_chains_fit_into_the_kernels_28_bytes() {
        assert!(CHAINS.iter().all(|chain| chain.name.len() <= 28));
    }
}
