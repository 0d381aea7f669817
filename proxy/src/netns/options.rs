//! The options of `netns setup`, and the plan that they mean.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::Args;
use ipnet::IpNet;
use postern_proto::ENDPOINT_VARIABLE;

use super::{
    Failure, PROBE_EXEMPTION, PROBE_INBOUND, PROBE_OUTBOUND,
    plan::{
        CgroupPath, Exempt, MAX_RESOLVERS, Mode, Plan, PortRange, Ports, Ranges, by_family,
        nameservers, network,
    },
};
use crate::config::{Config, Forward};

/// What is to be set up.
#[derive(Debug, Args)]
pub struct Setup {
    /// Takes ports and mode from the proxy's configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prints what would be done, and does nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// How inbound connections reach the proxy [default: redirect]
    #[arg(long, value_enum, conflicts_with = "config")]
    mode: Option<Mode>,
    /// The port of `inbound.listen` [default: 15006]
    #[arg(long, value_name = "PORT", conflicts_with = "config", value_parser = clap::value_parser!(u16).range(1..))]
    inbound_port: Option<u16>,
    /// The port of `outbound.listen` [default: 15001]
    #[arg(long, value_name = "PORT", conflicts_with = "config", value_parser = clap::value_parser!(u16).range(1..))]
    outbound_port: Option<u16>,
    /// The user as which the proxy runs, and no app [default: 1337, unless --proxy-cgroup is given]
    #[arg(long, value_name = "UID")]
    proxy_uid: Option<u32>,
    /// The proxy's control group (version 2); beside --proxy-uid both must hold
    #[arg(long, value_name = "PATH")]
    proxy_cgroup: Option<CgroupPath>,
    /// Ports of this pod that are reached without the proxy
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_inbound_ports: Vec<PortRange>,
    /// Ports elsewhere that are reached without the proxy, at any address
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_outbound_ports: Vec<PortRange>,
    /// Networks that are reached without the proxy, by TCP
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = network)]
    exclude_outbound_cidrs: Vec<IpNet>,
    /// Who may be asked for names, by UDP and TCP [default: those of /etc/resolv.conf]
    #[arg(
        long,
        value_name = "ADDRESS",
        value_delimiter = ',',
        conflicts_with = "no_resolver"
    )]
    resolver: Vec<IpAddr>,
    /// Nobody may be asked for names
    #[arg(long)]
    no_resolver: bool,
    /// The program that applies the rules
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub(super) backend: Backend,
}

/// The program that applies the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Backend {
    /// `nft` where it is installed, else `iptables`
    Auto,
    /// `nft`
    Nft,
    /// `iptables-restore` and `ip6tables-restore`
    Iptables,
}

impl Setup {
    /// What the options mean together.
    pub(super) fn plan(&self) -> Result<Plan, Failure> {
        let (ports, mode) = match &self.config {
            Some(path) => of_config(&read(path)?)?,
            None => (self.ports(), self.mode.unwrap_or(Mode::Redirect)),
        };
        let plan = Plan {
            ports,
            mode,
            proxy: self.proxy()?,
            resolvers: self.resolvers()?,
            open_ports: Ranges::of(self.exclude_inbound_ports.clone()),
            direct_ports: Ranges::of(self.exclude_outbound_ports.clone()),
            direct_networks: self.exclude_outbound_cidrs.clone(),
        };
        consistent(&plan)?;
        something_is_left(&plan)?;
        Ok(plan)
    }

    fn ports(&self) -> Ports {
        Ports {
            inbound: self.inbound_port.unwrap_or(15006),
            outbound: self.outbound_port.unwrap_or(15001),
            admin: 15000,
            metrics: Some(15020),
        }
    }

    fn proxy(&self) -> Result<Exempt, Failure> {
        match (self.proxy_uid, self.proxy_cgroup.clone()) {
            (Some(0), _) => Err(wrong(
                "--proxy-uid 0 is root, and every process of root would go round the proxy: run the proxy as a user of its own",
            )),
            (Some(u32::MAX), _) => Err(wrong("--proxy-uid 4294967295 is no user")),
            (Some(uid), Some(path)) => Ok(Exempt::Both(uid, path)),
            (Some(uid), None) => Ok(Exempt::Uid(uid)),
            (None, Some(path)) => Ok(Exempt::Cgroup(path)),
            (None, None) => Ok(Exempt::Uid(PROXY_UID)),
        }
    }

    fn resolvers(&self) -> Result<Vec<IpAddr>, Failure> {
        if self.no_resolver {
            return Ok(Vec::new());
        }
        if self.resolver.is_empty() {
            let text = std::fs::read_to_string(RESOLV_CONF).map_err(|error| {
                let why = format!(
                    "cannot read `{RESOLV_CONF}`: {error}; give --resolver or --no-resolver"
                );
                anyhow::Error::msg(why)
            })?;
            return Ok(nameservers(&text));
        }
        let mut resolvers: Vec<IpAddr> = self.resolver.iter().map(IpAddr::to_canonical).collect();
        resolvers.sort_unstable();
        resolvers.dedup();
        if resolvers.len() > MAX_RESOLVERS {
            return Err(wrong(format!(
                "--resolver was given {} addresses, at most {MAX_RESOLVERS} are taken",
                resolvers.len()
            )));
        }
        match resolvers
            .iter()
            .find(|one| one.is_unspecified() || one.is_multicast())
        {
            Some(one) => Err(wrong(format!(
                "--resolver {one} is the address of no machine"
            ))),
            None => Ok(resolvers),
        }
    }
}

fn read(path: &Path) -> Result<Config, Failure> {
    let unread =
        |error| Failure::Configuration(format!("cannot read `{}`: {error}", path.display()));
    let text = std::fs::read(path).map_err(unread)?;
    let endpoint = std::env::var(ENDPOINT_VARIABLE).ok();
    Config::read(path, &text, endpoint.as_deref()).map_err(|found| {
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        Failure::Configuration(lines.join("\n"))
    })
}

fn of_config(config: &Config) -> Result<(Ports, Mode), Failure> {
    let outbound = config.outbound.listen.ok_or_else(|| {
        Failure::Configuration(
            "proxy.yaml has no `outbound.listen`, so what the app sends would go nowhere: write `outbound: {listen: '127.0.0.1:15001'}`"
                .to_owned(),
        )
    })?;
    let outside = |address: &SocketAddr| !address.ip().is_loopback();
    let ports = Ports {
        inbound: config.inbound.listen.port(),
        outbound: outbound.port(),
        admin: config.admin.port(),
        metrics: Some(config.metrics)
            .filter(outside)
            .map(|address| address.port()),
    };
    let mode = match config.inbound.forward {
        Forward::Transparent => Mode::Tproxy,
        Forward::OriginalDestination | Forward::To(_) => Mode::Redirect,
    };
    Ok((ports, mode))
}

/// Each port has one meaning.
fn consistent(plan: &Plan) -> Result<(), Failure> {
    let Ports {
        inbound,
        outbound,
        admin,
        metrics,
    } = plan.ports;
    let own = [
        (Some(inbound), "the proxy's inbound port"),
        (Some(outbound), "the proxy's outbound port"),
        (Some(admin), "the proxy's admin port"),
        (metrics, "the proxy's metrics port"),
        (Some(PROBE_INBOUND), "the probe of the inbound redirection"),
        (
            Some(PROBE_OUTBOUND),
            "the probe of the outbound redirection",
        ),
        (Some(PROBE_EXEMPTION), "the probe of the proxy's exemption"),
    ];
    let named = |(port, what): (Option<u16>, &'static str)| port.map(|port| (port, what));
    let own: Vec<(u16, &str)> = own.into_iter().filter_map(named).collect();
    for (index, (port, what)) in own.iter().enumerate() {
        if let Some((_, other)) = own.iter().take(index).find(|(earlier, _)| earlier == port) {
            return Err(wrong(format!(
                "port {port} is {other} and {what}: give each a port of its own"
            )));
        }
        // The metrics port is open without being named.
        if plan.open_ports.contains(*port) && Some(*port) != metrics {
            return Err(wrong(format!(
                "--exclude-inbound-ports holds {port}, which is {what}: leave it out"
            )));
        }
    }
    Ok(())
}

/// Exclusions are for some of the traffic. Whoever means all of it wants no proxy.
fn something_is_left(plan: &Plan) -> Result<(), Failure> {
    let (v4, v6) = by_family(&plan.direct_networks);
    let is_all = v4.iter().any(|network| network.prefix_len() == 0)
        || v6.iter().any(|network| network.prefix_len() == 0);
    if is_all {
        return Err(wrong(
            "--exclude-outbound-cidrs holds every address, and nothing would go through the proxy: name the networks",
        ));
    }
    if (1..=u16::MAX).all(|port| plan.direct_ports.contains(port)) {
        return Err(wrong(
            "--exclude-outbound-ports holds every port, and nothing would go through the proxy: name the ports",
        ));
    }
    Ok(())
}

fn wrong(text: impl Into<String>) -> Failure {
    Failure::Usage(text.into())
}

/// The user that meshes give their proxies.
const PROXY_UID: u32 = 1337;
const RESOLV_CONF: &str = "/etc/resolv.conf";

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{Failure, Mode, Setup};
    use crate::netns::plan::Plan;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        setup: Setup,
    }

    /// Wrong use is told by the parser of options or by us, with the same exit code.
    fn plan(arguments: &str) -> Result<Plan, String> {
        let arguments = ["setup", "--no-resolver"]
            .into_iter()
            .chain(arguments.split_whitespace());
        let line = Line::try_parse_from(arguments).map_err(|error| error.to_string())?;
        line.setup.plan().map_err(|failure| match failure {
            Failure::Usage(text) => text,
            other => format!("not wrong use: {other}"),
        })
    }

    #[test]
    fn the_defaults_are_those_of_meshes() {
        let plan = plan("").unwrap();
        assert_eq!((plan.ports.inbound, plan.ports.outbound), (15006, 15001));
        assert_eq!(plan.ports.metrics, Some(15020));
        assert_eq!(plan.proxy.uid(), Some(1337));
        assert_eq!(plan.mode, Mode::Redirect);
        assert!(plan.resolvers.is_empty() && plan.open_ports.iter().next().is_none());
    }

    #[test]
    fn a_control_group_takes_the_place_of_the_default_user() {
        assert_eq!(plan("--proxy-cgroup /a/b").unwrap().proxy.uid(), None);
        let both = plan("--proxy-cgroup /a/b --proxy-uid 7").unwrap().proxy;
        assert_eq!(both.uid(), Some(7));
        assert!(both.cgroup().is_some());
    }

    #[test]
    fn wrong_options_are_named_with_their_mend() {
        for (arguments, mend) in [
            ("--proxy-uid 0", "a user of its own"),
            ("--proxy-uid 4294967295", "no user"),
            ("--proxy-uid 4294967296", "--proxy-uid"),
            ("--proxy-cgroup /", "name the proxy's own"),
            ("--inbound-port 0", "--inbound-port"),
            (
                "--inbound-port 15001",
                "is the proxy's inbound port and the proxy's outbound port",
            ),
            (
                "--outbound-port 15099",
                "and the probe of the outbound redirection",
            ),
            (
                "--exclude-inbound-ports 15000",
                "the proxy's admin port: leave it out",
            ),
            ("--exclude-inbound-ports 1-65535", "leave it out"),
            ("--exclude-inbound-ports 22,,80", "`` is no port"),
            ("--exclude-outbound-ports 99999", "a number from 1 to 65535"),
            ("--exclude-outbound-cidrs 10.0.0.1/8", "write 10.0.0.0/8"),
            (
                "--exclude-outbound-cidrs 0.0.0.0/1,128.0.0.0/1",
                "holds every address",
            ),
            ("--exclude-outbound-cidrs ::/0", "holds every address"),
            ("--exclude-outbound-ports 1-4000,4001-65535", "every port"),
            ("--resolver 1.2.3.4", "--no-resolver"),
            ("--mode ebpf", "redirect, tproxy"),
            ("--config proxy.yaml --mode tproxy", "cannot be used with"),
        ] {
            let error = plan(arguments).unwrap_err();
            assert!(error.contains(mend), "{arguments}: {error}");
        }
        assert!(plan("--exclude-inbound-ports 15020,22").is_ok());
    }

    #[test]
    fn resolvers_are_addresses_of_machines() {
        let resolvers = |list: &str| {
            let line = Line::try_parse_from(["setup", "--resolver", list]).unwrap();
            line.setup.plan().map(|plan| plan.resolvers)
        };
        assert_eq!(resolvers("10.0.0.10,fd00::10,10.0.0.10").unwrap().len(), 2);
        for (list, mend) in [
            ("0.0.0.0".to_owned(), "the address of no machine"),
            ("ff02::fb".to_owned(), "the address of no machine"),
            (
                (0..17)
                    .map(|last| format!("10.0.0.{last}"))
                    .collect::<Vec<_>>()
                    .join(","),
                "at most 16",
            ),
        ] {
            let error = resolvers(&list).unwrap_err().to_string();
            assert!(error.contains(mend), "{list}: {error}");
        }
    }
}
