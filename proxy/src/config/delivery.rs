//! The part of `outbound` that says how traffic is delivered: time limits, retries, endpoints that
//! are left out, bounds.

use std::{ops::RangeInclusive, time::Duration};

use postern_policies::{
    diagnostic::Problems,
    yaml::{Fields, Node, Value, fields},
};

use crate::relay;

/// How traffic is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// How long a connection may take, mutual TLS included.
    pub connect_timeout: Duration,
    /// How long the head of an answer may take after the last byte of the request, all tries
    /// together.
    pub request_timeout: Duration,
    /// How long an opaque connection may be silent.
    pub idle_timeout: Duration,
    /// How old the answers for DNS names become before they are asked for again.
    pub dns_refresh: Duration,
    /// When a request is tried again.
    pub retries: Retries,
    /// When an endpoint is left out.
    pub outlier: Outlier,
    /// What one destination may take of us.
    pub bounds: Bounds,
}

/// When a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// How often one request may be tried again.
    pub attempts: u32,
    /// How many retries there may be to a hundred requests.
    pub budget_percent: u32,
    /// How many retries a second there may be at any rate.
    pub floor: u32,
    /// How long one try may take; the whole time, if nothing is said.
    pub try_timeout: Option<Duration>,
}

/// When an endpoint is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlier {
    /// After so many failures in a row.
    pub failures: u32,
    /// For how long, the first time.
    pub ejection: Duration,
    /// For how long at most.
    pub max_ejection: Duration,
    /// How many of a hundred endpoints may be left out at once.
    pub max_percent: u32,
}

/// What one destination may take of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Requests at once.
    pub requests: usize,
    /// Requests that wait for a connection.
    pub pending: usize,
    /// Connections at once: HTTP/1.1 to each endpoint, opaque to all.
    pub connections: usize,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(60),
            idle_timeout: relay::IDLE_TIMEOUT,
            dns_refresh: Duration::from_secs(10),
            retries: Retries {
                attempts: 2,
                budget_percent: 20,
                floor: 10,
                try_timeout: None,
            },
            outlier: Outlier {
                failures: 5,
                ejection: Duration::from_secs(10),
                max_ejection: Duration::from_secs(300),
                max_percent: 50,
            },
            bounds: Bounds {
                requests: 1024,
                pending: 1024,
                connections: 1024,
            },
        }
    }
}

/// The names that this part has in `outbound`.
pub(super) const KEYS: [&str; 7] = [
    "connectTimeout",
    "requestTimeout",
    "idleTimeout",
    "dnsRefresh",
    "retries",
    "outlier",
    "bounds",
];

/// Reads it; what is not written has its default.
pub(super) fn delivery(section: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Delivery> {
    let default = Delivery::default();
    let mut time = |name, default| duration(section, name, default, problems);
    let connect_timeout = time("connectTimeout", default.connect_timeout);
    let request_timeout = time("requestTimeout", default.request_timeout);
    let idle_timeout = time("idleTimeout", default.idle_timeout);
    let dns_refresh = time("dnsRefresh", default.dns_refresh);
    let retries = retries(section, default.retries, problems);
    let outlier = outlier(section, default.outlier, problems);
    let bounds = bounds(section, default.bounds, problems);
    Some(Delivery {
        connect_timeout: connect_timeout?,
        request_timeout: request_timeout?,
        idle_timeout: idle_timeout?,
        dns_refresh: dns_refresh?,
        retries: retries?,
        outlier: outlier?,
        bounds: bounds?,
    })
}

fn retries(all: &Fields<'_>, default: Retries, problems: &mut Problems<'_>) -> Option<Retries> {
    let Some(node) = all.get("retries") else {
        return Some(default);
    };
    let known = ["attempts", "budget", "floor", "tryTimeout"];
    let section = Fields::of(node, "outbound.retries", &known, problems)?;
    let attempts = count(&section, "attempts", 0..=10, default.attempts, problems);
    let budget = percent(&section, "budget", default.budget_percent, problems);
    let floor = count(&section, "floor", 0..=10_000, default.floor, problems);
    let try_timeout = match section.get("tryTimeout") {
        Some(node) => fields::duration(node, "tryTimeout", problems).map(Some),
        None => Some(default.try_timeout),
    };
    Some(Retries {
        attempts: attempts?,
        budget_percent: budget?,
        floor: floor?,
        try_timeout: try_timeout?,
    })
}

fn outlier(all: &Fields<'_>, default: Outlier, problems: &mut Problems<'_>) -> Option<Outlier> {
    let Some(node) = all.get("outlier") else {
        return Some(default);
    };
    let known = ["failures", "ejection", "maxEjection", "maxShare"];
    let section = Fields::of(node, "outbound.outlier", &known, problems)?;
    let failures = count(&section, "failures", 1..=1_000, default.failures, problems);
    let ejection = duration(&section, "ejection", default.ejection, problems);
    let max_ejection = duration(&section, "maxEjection", default.max_ejection, problems);
    let max_share = percent(&section, "maxShare", default.max_percent, problems);
    Some(Outlier {
        failures: failures?,
        ejection: ejection?,
        max_ejection: max_ejection?,
        max_percent: max_share?,
    })
}

fn bounds(all: &Fields<'_>, default: Bounds, problems: &mut Problems<'_>) -> Option<Bounds> {
    let Some(node) = all.get("bounds") else {
        return Some(default);
    };
    let known = ["requests", "pending", "connections"];
    let section = Fields::of(node, "outbound.bounds", &known, problems)?;
    let mut size = |name, default| count(&section, name, 1..=MOST, default, problems);
    let requests = size("requests", default.requests);
    let pending = size("pending", default.pending);
    let connections = size("connections", default.connections);
    Some(Bounds {
        requests: requests?,
        pending: pending?,
        connections: connections?,
    })
}

fn duration(
    section: &Fields<'_>,
    name: &str,
    default: Duration,
    problems: &mut Problems<'_>,
) -> Option<Duration> {
    match section.get(name) {
        Some(node) => fields::duration(node, name, problems),
        None => Some(default),
    }
}

/// A whole number of a range.
fn count<N: TryFrom<i64>>(
    section: &Fields<'_>,
    name: &str,
    range: RangeInclusive<i64>,
    default: N,
    problems: &mut Problems<'_>,
) -> Option<N> {
    let Some(node) = section.get(name) else {
        return Some(default);
    };
    let number = match node.value {
        Value::Integer(number) if range.contains(&number) => N::try_from(number).ok(),
        _ => None,
    };
    if number.is_none() {
        let (least, most) = range.into_inner();
        let text = format!("`{name}` must be a whole number from {least} to {most}");
        problems.error(node.at, text);
    }
    number
}

/// A share, such as `20%`.
fn percent(
    section: &Fields<'_>,
    name: &str,
    default: u32,
    problems: &mut Problems<'_>,
) -> Option<u32> {
    let Some(node) = section.get(name) else {
        return Some(default);
    };
    let share = parse_percent(node);
    if share.is_none() {
        let hint = "a whole number from 0 to 100 and a percent sign, such as `20%`";
        problems.error_with(node.at, format!("`{name}` is no share"), hint);
    }
    share
}

fn parse_percent(node: &Node) -> Option<u32> {
    let Value::Text(text) = &node.value else {
        return None;
    };
    let digits = text.strip_suffix('%')?;
    let is_number = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
    let share: u32 = is_number.then(|| digits.parse().ok()).flatten()?;
    (share <= 100).then_some(share)
}

const MOST: i64 = 1_000_000;

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::Delivery;
    use crate::config::Config;

    fn read(outbound: &str) -> Result<Delivery, Vec<String>> {
        let text = format!(
            "policies: {{directory: p}}\ninbound: {{forward: '127.0.0.1:8080'}}\n\
             outbound: {outbound}\n"
        );
        Config::read(Path::new("proxy.yaml"), text.as_bytes(), None)
            .map(|config| config.outbound.delivery)
            .map_err(|found| found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_not_written_has_its_default() {
        assert_eq!(read("{}").unwrap(), Delivery::default());
        let delivery = read(
            "{requestTimeout: 5s, retries: {attempts: 0, budget: 7%, tryTimeout: 200ms}, \
             outlier: {failures: 1, maxShare: 100%}, bounds: {pending: 3}}",
        )
        .unwrap();
        assert_eq!(delivery.request_timeout, Duration::from_secs(5));
        assert_eq!(delivery.retries.attempts, 0);
        assert_eq!(delivery.retries.budget_percent, 7);
        let try_timeout = Some(Duration::from_millis(200));
        assert_eq!(delivery.retries.try_timeout, try_timeout);
        assert_eq!(delivery.outlier.failures, 1);
        assert_eq!(delivery.outlier.max_percent, 100);
        assert_eq!(delivery.bounds.pending, 3);
        let default = Delivery::default();
        assert_eq!(delivery.connect_timeout, default.connect_timeout);
        assert_eq!(delivery.bounds.requests, default.bounds.requests);
    }

    #[test]
    fn every_mistake_is_told() {
        for (outbound, expected) in [
            ("{requestTimeout: 5}", "`requestTimeout` needs a unit"),
            ("{requestTimeout: 0s}", "is no duration"),
            ("{requestTimout: 5s}", "did you mean `requestTimeout`?"),
            (
                "{retries: {tries: 5}}",
                "unknown field `tries` in outbound.retries",
            ),
            ("{retries: {attempts: 11}}", "from 0 to 10"),
            ("{retries: {attempts: '2'}}", "from 0 to 10"),
            ("{retries: {budget: 20}}", "`budget` is no share"),
            ("{retries: {budget: 101%}}", "`budget` is no share"),
            ("{retries: {budget: '%'}}", "`budget` is no share"),
            ("{retries: {budget: +1%}}", "`budget` is no share"),
            ("{outlier: {failures: 0}}", "from 1 to 1000"),
            ("{bounds: {requests: 0}}", "from 1 to 1000000"),
            ("{bounds: {requests: -1}}", "from 1 to 1000000"),
        ] {
            let found = read(outbound).unwrap_err();
            let told = found.iter().any(|one| one.contains(expected));
            assert!(told, "`{expected}` in {found:?}");
        }
    }
}
