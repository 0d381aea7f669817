//! Proves that the pod's traffic is redirected: connections of our own must come back to us.
//!
//! The rules of `netns setup` redirect three ports of loopback. Two of them for everybody: what is
//! sent there must arrive at our own listener, from the socket that sent it. One for everybody but
//! the proxy: what comes back from there shows that the rules take the proxy for an app, and that
//! each connection it opens would be its own next customer. Nothing of this leaves the namespace,
//! and without rules the kernel refuses at once.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::TcpSocket,
    sync::{oneshot, watch},
    time::timeout,
};

use crate::{
    app::Proxy,
    config::{Config, Forward},
    netns::{PROBE_EXEMPTION, PROBE_INBOUND, PROBE_OUTBOUND},
};

/// What is known of the redirection.
#[derive(Debug)]
pub(crate) struct Probe {
    state: watch::Sender<State>,
    /// The connection that is under way; there is one at a time.
    expected: Mutex<Option<Expected>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing is redirected, or nobody wants to know.
    Off,
    /// Not proven yet, and why.
    Unproven(&'static str),
    Proven,
    /// Proven once, and no longer.
    Lost(&'static str),
}

#[derive(Debug)]
struct Expected {
    from: SocketAddr,
    to: SocketAddr,
    arrived: oneshot::Sender<()>,
}

/// One connection to make, and what must become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Check {
    to: SocketAddr,
    comes_back: bool,
    /// What it means if it does not.
    problem: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    CameBack,
    WentAway,
    /// This namespace does not speak this version of the Internet Protocol.
    NoSuchFamily,
}

impl Probe {
    /// Nothing is proven yet, unless nothing has to be.
    pub(crate) fn new(config: &Config) -> Self {
        let is_redirected =
            config.outbound.listen.is_some() || !matches!(config.inbound.forward, Forward::To(_));
        let state = if !is_redirected {
            State::Off
        } else if config.probe {
            State::Unproven(PENDING)
        } else {
            tracing::warn!(
                "`interception.probe` is off: nobody knows whether the app's traffic passes the proxy"
            );
            State::Off
        };
        Self {
            state: watch::Sender::new(state),
            expected: Mutex::new(None),
        }
    }

    /// What keeps the proxy from being ready.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        match *self.state.borrow() {
            State::Off | State::Proven => None,
            State::Unproven(problem) | State::Lost(problem) => Some(problem),
        }
    }

    /// Whether redirected connections may go out: before the rules are known to exempt the proxy,
    /// one of them could become two of them, and so on.
    pub(crate) fn lets_out(&self) -> bool {
        !matches!(*self.state.borrow(), State::Unproven(_))
    }

    /// Waits until nothing is missing.
    pub(crate) async fn proven(&self) {
        let mut state = self.state.subscribe();
        // The sender is ours and outlives the wait.
        let _ = state
            .wait_for(|state| matches!(state, State::Off | State::Proven))
            .await;
    }

    /// Whether a redirected connection is a probe, ours or that of a curious app. None of them is
    /// carried on.
    pub(crate) fn caught(&self, original: SocketAddr, from: SocketAddr) -> bool {
        if !is_probe(original) {
            return false;
        }
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |one: &mut Expected| one.from == from && one.to == original;
        if let Some(ours) = expected.take_if(is_ours) {
            // Who waited may have given up.
            let _ = ours.arrived.send(());
        }
        true
    }

    /// Makes all connections. The first that does not do as it must tells the problem.
    async fn prove(&self, checks: &[Check]) -> Result<(), &'static str> {
        for check in checks {
            let outcome = self.attempt(check.to).await;
            tracing::debug!(to = %check.to, ?outcome, "probed the redirection");
            judge(*check, outcome)?;
        }
        Ok(())
    }

    async fn attempt(&self, to: SocketAddr) -> Outcome {
        let (socket, from) = match socket(to.ip()) {
            Ok(socket) => socket,
            Err(_) => return Outcome::NoSuchFamily,
        };
        let (sender, arrived) = oneshot::channel();
        let expect = |expected| {
            *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = expected;
        };
        expect(Some(Expected {
            from,
            to,
            arrived: sender,
        }));
        let came_back = async { socket.connect(to).await.is_ok() && arrived.await.is_ok() };
        let came_back = timeout(PATIENCE, came_back).await.unwrap_or(false);
        expect(None);
        if came_back {
            Outcome::CameBack
        } else {
            Outcome::WentAway
        }
    }
}

/// Proves the redirection to the listeners at these addresses, again and again: rules that were
/// right at start may be taken away later.
pub(crate) async fn follow(proxy: Arc<Proxy>, inbound: SocketAddr, outbound: Vec<SocketAddr>) {
    let redirected_in = !matches!(proxy.config.inbound.forward, Forward::To(_));
    let checks = checks(redirected_in.then_some(inbound), &outbound);
    if *proxy.probe.state.borrow() == State::Off {
        return;
    }
    let rounds = async {
        loop {
            let found = proxy.probe.prove(&checks).await;
            note(&proxy.probe.state, found);
            let proven = i64::from(found.is_ok());
            proxy.metrics.interception_proven.set(proven);
            let pause = if found.is_ok() { EVERY } else { RETRY };
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = rounds => {}
        // Nobody accepts probes any more.
        () = proxy.steps.closing.cancelled() => {}
    }
}

/// What follows from a round; told once when it changes.
fn note(state: &watch::Sender<State>, found: Result<(), &'static str>) {
    let before = *state.borrow();
    let now = next(before, found);
    if now == before {
        return;
    }
    match now {
        State::Off | State::Proven => tracing::info!("the redirection is proven"),
        State::Unproven(problem) | State::Lost(problem) => {
            tracing::warn!(reason = problem, "the redirection is not proven");
        }
    }
    state.send_replace(now);
}

/// A proxy that is no longer exempt stops at once; one that lost its rules goes on for those who
/// come, since they are not harmed by it, and says that it is not ready.
fn next(before: State, found: Result<(), &'static str>) -> State {
    match (before, found) {
        (State::Off, _) => State::Off,
        (_, Ok(())) => State::Proven,
        (State::Proven | State::Lost(_), Err(problem)) if problem != NOT_EXEMPT => {
            State::Lost(problem)
        }
        (_, Err(problem)) => State::Unproven(problem),
    }
}

fn judge(check: Check, outcome: Outcome) -> Result<(), &'static str> {
    match outcome {
        // What cannot be sent needs no redirection.
        Outcome::NoSuchFamily if check.to.is_ipv6() => Ok(()),
        Outcome::CameBack if check.comes_back => Ok(()),
        Outcome::WentAway if !check.comes_back => Ok(()),
        _ => Err(check.problem),
    }
}

/// What proves that all is redirected to these listeners.
fn checks(inbound: Option<SocketAddr>, outbound: &[SocketAddr]) -> Vec<Check> {
    let of = |listener: &SocketAddr, port: u16, comes_back: bool, problem: &'static str| {
        loopbacks(listener.ip())
            .iter()
            .map(|ip| Check {
                to: SocketAddr::new(*ip, port),
                comes_back,
                problem,
            })
            .collect::<Vec<_>>()
    };
    let mut checks = Vec::new();
    for listener in outbound {
        checks.extend(of(listener, PROBE_OUTBOUND, true, NO_OUTBOUND));
        checks.extend(of(listener, PROBE_EXEMPTION, false, NOT_EXEMPT));
    }
    if let Some(listener) = &inbound {
        checks.extend(of(listener, PROBE_INBOUND, true, NO_INBOUND));
    }
    checks
}

/// The loopback addresses whose redirected connections arrive at a listener.
fn loopbacks(listener: IpAddr) -> &'static [IpAddr] {
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    match listener {
        IpAddr::V4(_) => &[V4],
        IpAddr::V6(ip) if ip.is_unspecified() => &[V4, V6],
        IpAddr::V6(_) => &[V6],
    }
}

fn is_probe(original: SocketAddr) -> bool {
    original.ip().is_loopback()
        && [PROBE_INBOUND, PROBE_OUTBOUND, PROBE_EXEMPTION].contains(&original.port())
}

fn socket(ip: IpAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = match ip {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Bound first: the listener may be faster than we are.
    socket.bind(SocketAddr::new(ip, 0))?;
    let from = socket.local_addr()?;
    Ok((socket, from))
}

const PENDING: &str = "interception (being probed)";
const NO_OUTBOUND: &str = "interception (what the app sends is not redirected to `outbound.listen`: run `postern-proxy netns setup`)";
const NO_INBOUND: &str = "interception (what comes in is not redirected to `inbound.listen`, which must be 0.0.0.0 or [::]: run `postern-proxy netns setup`)";
const NOT_EXEMPT: &str = "interception (the rules redirect the proxy's own connections: run it as the user of --proxy-uid or in the group of --proxy-cgroup)";

const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::{oneshot, watch};

    use super::{
        Check, Expected, NO_INBOUND, NO_OUTBOUND, NOT_EXEMPT, Outcome, PENDING, Probe, State,
        checks, judge, next,
    };

    fn shown(inbound: Option<&str>, outbound: &[&str]) -> Vec<(String, bool)> {
        let inbound = inbound.map(|text| text.parse().unwrap());
        let outbound: Vec<_> = outbound.iter().map(|text| text.parse().unwrap()).collect();
        checks(inbound, &outbound)
            .iter()
            .map(|check| (check.to.to_string(), check.comes_back))
            .collect()
    }

    #[test]
    fn every_family_of_every_listener_is_probed() {
        let back = |to: &str| (to.to_owned(), true);
        let away = |to: &str| (to.to_owned(), false);
        assert_eq!(
            shown(Some("[::]:15006"), &["127.0.0.1:15001", "[::1]:15001"]),
            [
                back("127.0.0.1:15099"),
                away("127.0.0.1:15097"),
                back("[::1]:15099"),
                away("[::1]:15097"),
                back("127.0.0.1:15098"),
                back("[::1]:15098"),
            ]
        );
        assert_eq!(shown(Some("0.0.0.0:1"), &[]), [back("127.0.0.1:15098")]);
        assert_eq!(shown(None, &[]), []);
    }

    #[test]
    fn only_our_own_socket_proves_anything_and_no_probe_is_carried_on() {
        let address = |text: &str| text.parse().unwrap();
        let (from, to) = (address("127.0.0.1:40000"), address("127.0.0.1:15099"));
        let (arrived, mut seen) = oneshot::channel();
        let probe = Probe {
            state: watch::Sender::new(State::Unproven(PENDING)),
            expected: Mutex::new(Some(Expected { from, to, arrived })),
        };
        for (original, caller, is_probe) in [
            ("127.0.0.1:15099", "127.0.0.1:40001", true),
            ("127.0.0.1:15099", "10.0.0.9:40000", true),
            ("[::1]:15099", "127.0.0.1:40000", true),
            ("127.0.0.1:15098", "127.0.0.1:40000", true),
            ("10.0.0.9:15099", "127.0.0.1:40000", false),
            ("127.0.0.1:8080", "127.0.0.1:40000", false),
        ] {
            let caught = probe.caught(address(original), address(caller));
            assert_eq!(caught, is_probe, "{caller} to {original}");
            assert!(seen.try_recv().is_err(), "{caller} to {original}");
        }
        assert!(probe.caught(to, from));
        assert!(seen.try_recv().is_ok());
    }

    #[test]
    fn a_probe_must_do_as_the_rules_say() {
        let check = |to: &str, comes_back| Check {
            to: to.parse().unwrap(),
            comes_back,
            problem: "problem",
        };
        let cases = [
            ("127.0.0.1:1", true, Outcome::CameBack, true),
            ("127.0.0.1:1", true, Outcome::WentAway, false),
            ("127.0.0.1:1", true, Outcome::NoSuchFamily, false),
            ("127.0.0.1:1", false, Outcome::CameBack, false),
            ("127.0.0.1:1", false, Outcome::WentAway, true),
            ("[::1]:1", true, Outcome::NoSuchFamily, true),
            ("[::1]:1", true, Outcome::WentAway, false),
        ];
        for (to, comes_back, outcome, good) in cases {
            let judged = judge(check(to, comes_back), outcome);
            assert_eq!(judged.is_ok(), good, "{to} {comes_back} {outcome:?}");
        }
    }

    #[test]
    fn only_a_proof_lets_out_and_only_a_loop_takes_it_back() {
        let cases = [
            (State::Off, Err(NO_OUTBOUND), State::Off),
            (State::Unproven(PENDING), Ok(()), State::Proven),
            (
                State::Unproven(PENDING),
                Err(NO_INBOUND),
                State::Unproven(NO_INBOUND),
            ),
            (State::Proven, Err(NO_OUTBOUND), State::Lost(NO_OUTBOUND)),
            (State::Proven, Err(NOT_EXEMPT), State::Unproven(NOT_EXEMPT)),
            (
                State::Lost(NO_OUTBOUND),
                Err(NOT_EXEMPT),
                State::Unproven(NOT_EXEMPT),
            ),
            (State::Lost(NO_OUTBOUND), Ok(()), State::Proven),
        ];
        for (before, found, expected) in cases {
            assert_eq!(next(before, found), expected, "{before:?} {found:?}");
        }
    }
}
