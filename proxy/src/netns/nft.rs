//! The rules in the language of `nft`. Pure.

use std::{fmt::Display, net::IpAddr};

use super::{
    PROBE_EXEMPTION, PROBE_INBOUND, PROBE_OUTBOUND,
    plan::{Exempt, Mode, Plan, Ranges, by_family},
    routing::MARK,
};

/// The whole ruleset as one transaction: it takes the place of what was there before.
pub(crate) fn ruleset(plan: &Plan) -> String {
    let chains = [
        match plan.mode {
            Mode::Redirect => redirect_in(plan),
            Mode::Tproxy => hand_over_in(plan),
        },
        redirect_out(plan),
        deny_in(plan),
        deny_out(plan),
        Chain {
            why: "A pod is no router: what lies behind it has no proxy.",
            name: "deny_through",
            hook: "type filter hook forward priority filter; policy drop;",
            rules: vec![DROP.to_owned()],
        },
    ];
    let chains: Vec<String> = chains.iter().map(Chain::text).collect();
    format!("{CLEAN}table inet postern {{\n{}}}\n", chains.join("\n"))
}

/// Takes the table away, whether there is one or not.
pub(crate) const CLEAN: &str = "table inet postern\ndelete table inet postern\n";

struct Chain {
    why: &'static str,
    name: &'static str,
    hook: &'static str,
    rules: Vec<String>,
}

impl Chain {
    fn text(&self) -> String {
        let mut text = format!(
            "    # {}\n    chain {} {{\n        {}\n",
            self.why, self.name, self.hook
        );
        for rule in &self.rules {
            text.push_str("        ");
            text.push_str(rule);
            text.push('\n');
        }
        text.push_str("    }\n");
        text
    }
}

fn redirect_in(plan: &Plan) -> Chain {
    let mut rules = vec!["iifname \"lo\" return".to_owned(), NOT_OURS.to_owned()];
    rules.extend(to_ports(&open(plan), "return"));
    rules.push(format!(
        "meta l4proto tcp redirect to :{}",
        plan.ports.inbound
    ));
    Chain {
        why: "From outside: to the proxy's inbound port, whatever port was asked for.",
        name: "redirect_in",
        hook: "type nat hook prerouting priority dstnat; policy accept;",
        rules,
    }
}

fn hand_over_in(plan: &Plan) -> Chain {
    let to_proxy = format!(
        "tproxy to :{} meta mark set {MARK} accept",
        plan.ports.inbound
    );
    let mut rules = vec![
        format!("iifname \"lo\" tcp dport {PROBE_INBOUND} {to_proxy}"),
        "iifname \"lo\" return".to_owned(),
        NOT_OURS.to_owned(),
    ];
    rules.extend(to_ports(&open(plan), "return"));
    rules.push(format!("meta l4proto tcp {to_proxy}"));
    Chain {
        why: "From outside: to the proxy's inbound socket, the destination as it was.",
        name: "hand_over_in",
        hook: "type filter hook prerouting priority mangle; policy accept;",
        rules,
    }
}

fn redirect_out(plan: &Plan) -> Chain {
    let outbound = plan.ports.outbound;
    let mut rules = vec![format!(
        "oifname \"lo\" tcp dport {PROBE_OUTBOUND} redirect to :{outbound}"
    )];
    if plan.mode == Mode::Redirect {
        rules.push(format!(
            "oifname \"lo\" tcp dport {PROBE_INBOUND} redirect to :{}",
            plan.ports.inbound
        ));
    }
    rules.push(format!(
        "oifname \"lo\" tcp dport != {PROBE_EXEMPTION} return"
    ));
    rules.push(format!("{} return", exempt(&plan.proxy)));
    rules.extend(to_resolvers(&plan.resolvers, "tcp dport 53", "return"));
    rules.extend(to_ports(&plan.direct_ports, "return"));
    rules.extend(to_networks(plan, "return"));
    rules.push(format!("meta l4proto tcp redirect to :{outbound}"));
    Chain {
        why: "From the app: to the proxy's outbound port. What stays in the pod stays as it is, but for probes.",
        name: "redirect_out",
        hook: "type nat hook output priority -100; policy accept;",
        rules,
    }
}

fn deny_in(plan: &Plan) -> Chain {
    let mut rules = vec!["iifname \"lo\" accept".to_owned()];
    rules.extend(ONGOING.map(str::to_owned));
    rules.push(match plan.mode {
        Mode::Redirect => format!("tcp dport {} ct status dnat accept", plan.ports.inbound),
        Mode::Tproxy => format!("meta l4proto tcp meta mark {MARK} accept"),
    });
    rules.extend(to_ports(&open(plan), "accept"));
    rules.push(format!(
        "icmpv6 type {{ nd-router-advert, {NEIGHBOURS} }} ip6 hoplimit 255 accept"
    ));
    rules.push("icmpv6 type mld-listener-query accept".to_owned());
    rules.push(DROP.to_owned());
    Chain {
        why: "What did not go to the proxy does not come in, and nobody dials its ports themselves.",
        name: "deny_in",
        hook: "type filter hook input priority filter; policy drop;",
        rules,
    }
}

fn deny_out(plan: &Plan) -> Chain {
    let mut rules = vec!["oifname \"lo\" accept".to_owned()];
    rules.extend(ONGOING.map(str::to_owned));
    // This hook still shows the interface of the first route of what was redirected a moment ago.
    rules.push(format!(
        "tcp dport {} ct status dnat accept",
        plan.ports.outbound
    ));
    rules.push(format!("{} meta l4proto tcp accept", exempt(&plan.proxy)));
    rules.extend(to_resolvers(
        &plan.resolvers,
        "meta l4proto { tcp, udp } th dport 53",
        "accept",
    ));
    rules.extend(to_ports(&plan.direct_ports, "accept"));
    rules.extend(to_networks(plan, "accept"));
    rules.push(format!(
        "icmpv6 type {{ nd-router-solicit, {NEIGHBOURS} }} ip6 hoplimit 255 accept"
    ));
    rules.push("icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } ip6 hoplimit 1 accept".to_owned());
    rules.push(DROP.to_owned());
    Chain {
        why: "Nobody but the proxy talks to the world, and names are asked of the resolvers alone.",
        name: "deny_out",
        hook: "type filter hook output priority filter; policy drop;",
        rules,
    }
}

/// What is reached without the proxy's inbound port.
fn open(plan: &Plan) -> Ranges {
    plan.open_ports.with(plan.ports.metrics)
}

fn exempt(proxy: &Exempt) -> String {
    let uid = proxy.uid().map(|uid| format!("meta skuid {uid}"));
    let cgroup = proxy
        .cgroup()
        .map(|path| format!("socket cgroupv2 level {} \"{path}\"", path.level()));
    let parts: Vec<String> = uid.into_iter().chain(cgroup).collect();
    parts.join(" ")
}

fn to_ports(ports: &Ranges, verdict: &str) -> Option<String> {
    let ports = set(ports.iter().map(|range| {
        if range.first == range.last {
            range.first.to_string()
        } else {
            format!("{}-{}", range.first, range.last)
        }
    }))?;
    Some(format!("tcp dport {ports} {verdict}"))
}

fn to_resolvers(resolvers: &[IpAddr], what: &str, verdict: &str) -> Vec<String> {
    let v4 = set(resolvers.iter().filter(|address| address.is_ipv4()));
    let v6 = set(resolvers.iter().filter(|address| address.is_ipv6()));
    let v4 = v4.map(|addresses| format!("ip daddr {addresses} {what} {verdict}"));
    let v6 = v6.map(|addresses| format!("ip6 daddr {addresses} {what} {verdict}"));
    v4.into_iter().chain(v6).collect()
}

fn to_networks(plan: &Plan, verdict: &str) -> Vec<String> {
    let (v4, v6) = by_family(&plan.direct_networks);
    let v4 = set(v4).map(|networks| format!("meta l4proto tcp ip daddr {networks} {verdict}"));
    let v6 = set(v6).map(|networks| format!("meta l4proto tcp ip6 daddr {networks} {verdict}"));
    v4.into_iter().chain(v6).collect()
}

fn set<T: Display>(elements: impl IntoIterator<Item = T>) -> Option<String> {
    let elements: Vec<String> = elements.into_iter().map(|one| one.to_string()).collect();
    (!elements.is_empty()).then(|| format!("{{ {} }}", elements.join(", ")))
}

/// What is for somebody else must not be rewritten into something that is for us.
const NOT_OURS: &str = "fib daddr type != local return";

/// The policy of a chain drops too; this says how much.
const DROP: &str = "counter drop";

/// Of connections that were let in or out, and errors about them.
const ONGOING: [&str; 2] = [
    "ct state established accept",
    // Not `ipv6-icmp`: that name is looked up in /etc/protocols, which a small image does not have.
    "ct state related meta l4proto { icmp, icmpv6 } accept",
];

/// IPv6 has no other way to find its neighbours.
const NEIGHBOURS: &str = "nd-neighbor-solicit, nd-neighbor-advert";

#[cfg(test)]
mod tests {
    use super::ruleset;
    use crate::netns::plan::{Exempt, Mode, Plan, Ports, Ranges, network};

    fn plan() -> Plan {
        Plan {
            ports: Ports {
                inbound: 15006,
                outbound: 15001,
                admin: 15000,
                metrics: Some(15020),
            },
            mode: Mode::Redirect,
            proxy: Exempt::Uid(1337),
            resolvers: Vec::new(),
            open_ports: Ranges::default(),
            direct_ports: Ranges::default(),
            direct_networks: Vec::new(),
        }
    }

    /// Each change of the plan, and the lines that come and go with it.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Plan), comes: &[&str], goes: &[&str]) {
        let before = ruleset(&plan());
        let mut plan = plan();
        change(&mut plan);
        let after = ruleset(&plan);
        let lines = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.trim().to_owned()).collect()
        };
        let (before, after) = (lines(&before), lines(&after));
        let new: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
        let old: Vec<&String> = before.iter().filter(|line| !after.contains(line)).collect();
        assert_eq!(new, comes);
        assert_eq!(old, goes);
    }

    #[test]
    fn every_option_changes_its_rules_and_no_others() {
        check(|_| {}, &[], &[]);
        check(
            |plan| plan.ports.metrics = None,
            &[],
            &["tcp dport { 15020 } return", "tcp dport { 15020 } accept"],
        );
        check(
            |plan| plan.proxy = Exempt::Both(7, "a/b".parse().unwrap()),
            &[
                "meta skuid 7 socket cgroupv2 level 2 \"a/b\" return",
                "meta skuid 7 socket cgroupv2 level 2 \"a/b\" meta l4proto tcp accept",
            ],
            &[
                "meta skuid 1337 return",
                "meta skuid 1337 meta l4proto tcp accept",
            ],
        );
        check(
            |plan| plan.resolvers = vec!["10.0.0.10".parse().unwrap(), "fd00::a".parse().unwrap()],
            &[
                "ip daddr { 10.0.0.10 } tcp dport 53 return",
                "ip6 daddr { fd00::a } tcp dport 53 return",
                "ip daddr { 10.0.0.10 } meta l4proto { tcp, udp } th dport 53 accept",
                "ip6 daddr { fd00::a } meta l4proto { tcp, udp } th dport 53 accept",
            ],
            &[],
        );
        check(
            |plan| plan.open_ports = Ranges::of(vec!["22".parse().unwrap()]),
            &[
                "tcp dport { 22, 15020 } return",
                "tcp dport { 22, 15020 } accept",
            ],
            &["tcp dport { 15020 } return", "tcp dport { 15020 } accept"],
        );
        check(
            |plan| plan.direct_ports = Ranges::of(vec!["5432-5433".parse().unwrap()]),
            &[
                "tcp dport { 5432-5433 } return",
                "tcp dport { 5432-5433 } accept",
            ],
            &[],
        );
        check(
            |plan| {
                plan.direct_networks = vec![
                    network("10.0.0.0/9").unwrap(),
                    network("10.128.0.0/9").unwrap(),
                ]
            },
            &[
                "meta l4proto tcp ip daddr { 10.0.0.0/8 } return",
                "meta l4proto tcp ip daddr { 10.0.0.0/8 } accept",
            ],
            &[],
        );
    }

    #[test]
    fn everything_that_is_not_named_is_dropped() {
        let rules = ruleset(&plan());
        for hook in ["input", "output", "forward"] {
            let chain = format!("type filter hook {hook} priority filter; policy drop;");
            assert!(rules.contains(&chain), "{hook}");
        }
        assert!(!rules.contains("udp"), "no resolver, no UDP");
    }

    #[test]
    fn a_handed_over_connection_keeps_its_destination() {
        let mut plan = plan();
        plan.mode = Mode::Tproxy;
        let rules = ruleset(&plan);
        assert!(rules.contains("meta l4proto tcp tproxy to :15006 meta mark set 0x539 accept"));
        assert!(rules.contains("meta l4proto tcp meta mark 0x539 accept"));
        assert!(!rules.contains("redirect to :15006"));
        assert!(rules.contains("redirect to :15001"), "outbound is the same");
    }
}
