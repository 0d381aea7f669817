//! The proxy's own listeners, and what never leads to them: it would be its own customer.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
};

use crate::{
    config::Config,
    listener::{canonical, to_ourselves},
};

/// The listeners of this proxy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own {
    /// Where a connection would go round in circles, or into the proxy's own doors.
    closed: Vec<SocketAddr>,
    /// Where callers arrive: a Workload may call itself.
    inbound: Option<SocketAddr>,
}

impl Own {
    /// Those of a configuration.
    pub(crate) fn of(config: &Config) -> Self {
        let explicit = config.outbound.listeners.iter().map(|one| one.listen);
        // Redirected connections of IPv6 arrive at `::1`.
        let redirected = config.outbound.listen.into_iter().flat_map(|listen| {
            let twin = SocketAddr::from((Ipv6Addr::LOCALHOST, listen.port()));
            [listen, twin]
        });
        let doors = [config.admin, config.metrics];
        Self {
            closed: explicit.chain(redirected).chain(doors).collect(),
            inbound: Some(config.inbound.listen),
        }
    }

    /// Would a connection to this address arrive at one of them? `is_here` tells which addresses
    /// are this pod's, which counts where a listener has all of them; it is asked only where the
    /// port is ours. A Workload that names the inbound listener itself (`is_literal`) may be called.
    pub(crate) fn has(
        &self,
        address: SocketAddr,
        is_literal: bool,
        is_here: impl Fn(IpAddr) -> bool,
    ) -> bool {
        let address = canonical(address);
        let is = |own: &SocketAddr| {
            let at = own.ip().to_canonical();
            let is_at = at == address.ip() || (at.is_unspecified() && is_here(address.ip()));
            own.port() == address.port() && is_at
        };
        self.closed.iter().any(is) || (!is_literal && self.inbound.iter().any(is))
    }

    /// Refuses a destination that is the proxy itself. A proxy of another pod may have the same port
    /// beside us.
    ///
    /// # Errors
    /// When a connection to it would arrive at one of our own listeners.
    pub(crate) fn refuse_loop(
        &self,
        destination: SocketAddr,
        is_here: impl Fn(IpAddr) -> bool,
    ) -> io::Result<()> {
        match self.has(destination, false, is_here) {
            true => Err(to_ourselves(destination)),
            false => Ok(()),
        }
    }

    /// Refuses an inbound destination that is not the app of this pod. Behind somebody else's
    /// address we would be a way around the caller's own egress rules.
    ///
    /// # Errors
    /// When it is no address of this pod, or a port of the proxy itself.
    pub(crate) fn must_be_the_app(
        &self,
        destination: SocketAddr,
        is_here: impl FnOnce(IpAddr) -> bool,
    ) -> io::Result<()> {
        if !is_here(destination.ip()) {
            let problem = format!("{destination} is no address of this pod");
            return Err(io::Error::other(problem));
        }
        // The pod is ours alone, so that its port is enough: what is told on loopback stays there.
        let mut own = self.closed.iter().chain(&self.inbound);
        match own.any(|own| own.port() == destination.port()) {
            true => Err(to_ourselves(destination)),
            false => Ok(()),
        }
    }
}

/// Whether an address is one of this network namespace: only those can be bound. In doubt it is.
pub(crate) fn is_here(ip: IpAddr) -> bool {
    let bound = UdpSocket::bind((ip, 0));
    !bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, path::Path};

    use super::{Own, is_here};
    use crate::config::Config;

    fn own() -> Own {
        let text = "policies: {directory: p}\ninbound: {forward: '10.0.0.9:8080', listen: '0.0.0.0:15006'}\n\
            metrics: {listen: '[::]:15020'}\noutbound:\n  listen: 127.0.0.1:15001\n  \
            listeners: [{listen: '127.0.0.2:8080', to: a/b, port: 1}]\n";
        Own::of(&Config::read(Path::new("proxy.yaml"), text.as_bytes(), None).unwrap())
    }

    #[test]
    fn only_what_arrives_at_the_proxys_own_listeners_is_a_loop() {
        // FAULTS 116
        let cases = [
            ("127.0.0.1:15000", true, false),
            ("127.0.0.1:15001", true, false),
            ("[::1]:15001", true, false),
            ("[::ffff:127.0.0.1]:15001", true, false),
            ("10.0.0.9:15006", true, false),
            ("10.0.0.9:15020", true, false),
            ("[fd00::9]:15020", true, false),
            ("127.0.0.2:8080", true, false),
            // Nobody listens there, or somebody else.
            ("10.0.0.9:15006", false, true),
            ("127.0.0.3:8080", true, true),
            ("10.0.0.9:15001", true, true),
            ("10.0.0.9:15021", true, true),
            ("10.0.0.9:8080", false, true),
        ];
        for (destination, here, passes) in cases {
            let judged = own().refuse_loop(destination.parse().unwrap(), |_| here);
            assert_eq!(judged.is_ok(), passes, "{destination} {here}");
        }
    }

    #[test]
    fn a_workload_may_call_itself_where_its_document_says_so_and_not_because_of_a_name() {
        // FAULTS 116
        let here = |ip: IpAddr| ip.to_string() == "10.0.0.5";
        for (address, is_literal, expected) in [
            ("10.0.0.5:15006", true, false),
            ("10.0.0.5:15006", false, true),
            ("10.0.0.6:15006", false, false),
            ("10.0.0.5:15020", true, true),
            ("10.0.0.6:15020", true, false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(own().has(address, is_literal, here), expected, "{address}");
        }
    }

    #[test]
    fn an_inbound_destination_is_an_address_of_the_pod_and_no_port_of_the_proxy() {
        // FAULTS 116
        let cases = [
            ("10.0.0.9:9090", true, true),
            ("10.0.0.9:9090", false, false),
            ("10.0.0.9:15000", true, false),
            ("[fd00::9]:15006", true, false),
        ];
        for (destination, here, passes) in cases {
            let judged = own().must_be_the_app(destination.parse().unwrap(), |_| here);
            assert_eq!(judged.is_ok(), passes, "{destination} {here}");
        }
    }

    #[test]
    fn the_kernel_knows_which_addresses_are_here() {
        assert!(is_here("127.0.0.1".parse().unwrap()));
        assert!(is_here("0.0.0.0".parse().unwrap()), "a way to say here");
        assert!(!is_here("192.0.2.1".parse().unwrap()));
    }
}
