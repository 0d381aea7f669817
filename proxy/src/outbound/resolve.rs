//! Where a Workload is reached: its addresses as they stand in its document, and what its DNS names
//! lead to.
//!
//! Every address is checked here, and this very address is dialled later: a name is never looked up
//! a second time on the way, so a second answer cannot lead elsewhere. The table of answers is pure;
//! the lookup itself is the shell.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::timeout};

use super::address::{Denied, denied, looks_like_a_number};
use crate::own::{Own, is_here};

/// One entry of a Workload's `addresses`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// An address that the document names itself.
    Literal(IpAddr),
    /// A name.
    Name(Arc<str>),
}

impl Source {
    /// Reads an entry. Numbers in unusual forms are no names: the system would read addresses out
    /// of them.
    pub(crate) fn read(text: &str) -> Option<Self> {
        match text.parse::<IpAddr>() {
            Ok(ip) => Some(Self::Literal(ip)),
            Err(_) if looks_like_a_number(text) => None,
            Err(_) => Some(Self::Name(Arc::from(text))),
        }
    }
}

/// The answers for one name, as old as they may be.
#[derive(Debug)]
pub(crate) struct Answers {
    name: Arc<str>,
    addresses: Vec<IpAddr>,
    /// From when on they are asked for again.
    due: Option<Instant>,
    failures: u32,
}

impl Answers {
    /// Nothing is known of this name.
    pub(crate) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            addresses: Vec::new(),
            due: None,
            failures: 0,
        }
    }

    /// The name.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Is it time to ask?
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| now >= due)
    }

    /// An answer came. An empty one is none: the last good one stays.
    pub(crate) fn answered(&mut self, found: Option<Vec<IpAddr>>, refresh: Duration, now: Instant) {
        match found.filter(|found| !found.is_empty()) {
            Some(mut found) => {
                found.sort_unstable();
                found.dedup();
                // One more, so that it is seen that there are too many.
                found.truncate(MAX_ADDRESSES + 1);
                self.addresses = found;
                self.failures = 0;
                self.due = now.checked_add(refresh);
            }
            None => {
                self.failures = self.failures.saturating_add(1);
                let wait = RETRY.saturating_mul(1 << self.failures.min(5)).min(refresh);
                self.due = now.checked_add(wait);
            }
        }
    }
}

/// The addresses to dial, and those that were left out, with the reason. Pure.
pub(crate) fn endpoints<'a>(
    sources: &[Source],
    answers: impl IntoIterator<Item = &'a Answers> + Clone,
    port: u16,
    own: &Own,
    is_here: impl Fn(IpAddr) -> bool + Copy,
) -> (Vec<SocketAddr>, Vec<(SocketAddr, Denied)>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let mut add = |ip: IpAddr, literal: bool| {
        let address = SocketAddr::new(ip.to_canonical(), port);
        let reason = match own.has(address, literal, is_here) {
            true => Some(Denied::Own),
            false if literal => None,
            false => denied(ip),
        };
        match reason {
            Some(reason) => bad.push((address, reason)),
            None if good.contains(&address) => {}
            None if good.len() >= MAX_ADDRESSES => bad.push((address, Denied::Surplus)),
            None => good.push(address),
        }
    };
    for source in sources {
        match source {
            Source::Literal(ip) => add(*ip, true),
            Source::Name(name) => {
                let known = answers.clone().into_iter().find(|one| one.name == *name);
                // What the document names itself may also come from a name.
                let literal = |ip: &IpAddr| sources.contains(&Source::Literal(*ip));
                for ip in known.map_or(&[][..], |known| &known.addresses) {
                    add(*ip, literal(ip));
                }
            }
        }
    }
    (good, bad)
}

/// Looks names up, a few at a time.
#[derive(Debug)]
pub(crate) struct Resolver {
    places: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_LOOKUPS)),
        }
    }
}

impl Resolver {
    /// The addresses of a name.
    ///
    /// # Errors
    /// When there are none, or none in time.
    pub(crate) async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        let asked = async {
            let place = self.places.clone().acquire_owned().await;
            let place = place.map_err(io::Error::other)?;
            let name = name.to_owned();
            // The system's lookup cannot be called off: it keeps its place until it ends.
            let looking = tokio::task::spawn_blocking(move || {
                let found = (name.as_str(), 0_u16).to_socket_addrs();
                drop(place);
                found.map(|found| found.map(|address| address.ip()).collect())
            });
            looking.await.map_err(io::Error::other)?
        };
        timeout(PATIENCE, asked)
            .await
            .unwrap_or_else(|_| Err(late()))
    }
}

/// The check of the shell: with the addresses that this machine has.
pub(crate) fn endpoints_here<'a>(
    sources: &[Source],
    answers: impl IntoIterator<Item = &'a Answers> + Clone,
    port: u16,
    own: &Own,
) -> (Vec<SocketAddr>, Vec<(SocketAddr, Denied)>) {
    endpoints(sources, answers, port, own, is_here)
}

const MAX_ADDRESSES: usize = 256;
const MAX_LOOKUPS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::{
        net::IpAddr,
        sync::Arc,
        time::{Duration, Instant},
    };

    use super::{Answers, Source, endpoints};
    use crate::{outbound::address::Denied, own::Own};

    const REFRESH: Duration = Duration::from_secs(10);

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn sources(texts: &[&str]) -> Vec<Source> {
        texts.iter().filter_map(|text| Source::read(text)).collect()
    }

    fn answered(texts: &[&str]) -> Answers {
        let mut answers = Answers::new(Arc::from("web"));
        answers.answered(Some(ips(texts)), REFRESH, Instant::now());
        answers
    }

    #[track_caller]
    fn check(written: &[&str], answer: &[&str], good: &[&str], bad: &[(&str, Denied)]) {
        let answers = answered(answer);
        let own = Own::default();
        let found = endpoints(&sources(written), [&answers], 80, &own, |_| false);
        let texts: Vec<String> = found.0.iter().map(|one| one.ip().to_string()).collect();
        assert_eq!(texts, good);
        let denied: Vec<_> = found
            .1
            .iter()
            .map(|(at, why)| (at.ip().to_string(), *why))
            .collect();
        let bad: Vec<_> = bad
            .iter()
            .map(|(at, why)| ((*at).to_owned(), *why))
            .collect();
        assert_eq!(denied, bad);
    }

    #[test]
    fn names_lead_nowhere_that_the_document_does_not_name_itself() {
        // FAULTS 117, 118
        check(&["10.0.0.5"], &[], &["10.0.0.5"], &[]);
        check(&["127.0.0.2"], &[], &["127.0.0.2"], &[]);
        check(
            &["web"],
            &["10.0.0.5", "10.0.0.6"],
            &["10.0.0.5", "10.0.0.6"],
            &[],
        );
        check(
            &["web"],
            &["127.0.0.2"],
            &[],
            &[("127.0.0.2", Denied::Loopback)],
        );
        check(
            &["web"],
            &["10.0.0.5", "169.254.169.254"],
            &["10.0.0.5"],
            &[("169.254.169.254", Denied::Metadata)],
        );
        check(&["web", "127.0.0.2"], &["127.0.0.2"], &["127.0.0.2"], &[]);
        check(
            &["web", "127.0.0.2"],
            &["127.0.0.3"],
            &["127.0.0.2"],
            &[("127.0.0.3", Denied::Loopback)],
        );
        check(&["web", "10.0.0.5"], &["10.0.0.5"], &["10.0.0.5"], &[]);
    }

    #[test]
    fn there_is_an_end_to_addresses() {
        let many: Vec<String> = (0..1000)
            .map(|n| format!("10.0.{}.{}", n / 250, n % 250))
            .collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let answers = answered(&many);
        let own = Own::default();
        let (good, bad) = endpoints(&sources(&["web"]), [&answers], 80, &own, |_| false);
        assert_eq!(good.len(), 256);
        assert!(matches!(bad.as_slice(), [(_, Denied::Surplus)]), "{bad:?}");
    }

    #[test]
    fn numbers_are_not_looked_up() {
        // FAULTS 117
        for text in ["2130706433", "0x7f000001", "127.1"] {
            assert_eq!(Source::read(text), None, "{text}");
        }
    }

    #[test]
    fn a_second_answer_is_checked_like_the_first() {
        // FAULTS 118
        let (own, now) = (Own::default(), Instant::now());
        let mut answers = answered(&["10.0.0.5"]);
        let of =
            |answers: &Answers| endpoints(&sources(&["web"]), [answers], 80, &own, |_| false).0;
        assert_eq!(of(&answers).len(), 1);
        answers.answered(Some(ips(&["127.0.0.1"])), REFRESH, now);
        assert_eq!(of(&answers), []);
    }

    #[test]
    fn the_last_good_answer_stays_while_there_is_no_other() {
        let now = Instant::now();
        let mut answers = Answers::new(Arc::from("web"));
        assert!(answers.is_due(now), "nothing is known");
        answers.answered(
            Some(ips(&["10.0.0.6", "10.0.0.5", "10.0.0.6"])),
            REFRESH,
            now,
        );
        assert!(!answers.is_due(now + REFRESH / 2));
        assert!(answers.is_due(now + REFRESH));
        for failed in [None, Some(Vec::new())] {
            answers.answered(failed, REFRESH, now + REFRESH);
            assert!(!answers.is_due(now + REFRESH));
            assert!(answers.is_due(now + REFRESH * 2), "tried again before long");
            assert_eq!(answers.addresses, ips(&["10.0.0.5", "10.0.0.6"]));
        }
    }
}
