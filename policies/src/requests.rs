//! What could be asked of a Workload: the requests that its policies can tell apart.
//!
//! For every pattern of a field a value that fits it, for patterns taken together a value that fits
//! both, and one that fits none. Together with [`Caller`](crate::Caller) these few questions stand
//! for all.

use std::collections::BTreeSet;

use crate::{
    compile::Compiled,
    decide::{Protocol, authorization},
    model::{
        authorization_policy::Field, network_policy::PortNumber, pattern::Pattern,
        workload::WorkloadName,
    },
};

/// Values of each part of a request. A question has one of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    /// Ports at the destination.
    pub ports: BTreeSet<u16>,
    /// Transports.
    pub protocols: BTreeSet<Protocol>,
    /// Methods.
    pub methods: BTreeSet<String>,
    /// Paths.
    pub paths: BTreeSet<String>,
    /// Hosts.
    pub hosts: BTreeSet<String>,
}

impl Requests {
    /// What either can tell apart.
    pub fn union(mut self, other: Self) -> Self {
        self.ports.extend(other.ports);
        self.protocols.extend(other.protocols);
        self.methods.extend(other.methods);
        self.paths.extend(other.paths);
        self.hosts.extend(other.hosts);
        self
    }
}

pub(crate) fn of(compiled: &Compiled, destination: &WorkloadName) -> Requests {
    let Some(own) = compiled.by_name(destination) else {
        return Requests::default();
    };
    let mut requests = Requests {
        ports: own.workload.ports.iter().map(|port| port.port).collect(),
        protocols: BTreeSet::from([Protocol::Tcp]),
        ..Requests::default()
    };
    let (mut methods, mut paths, mut hosts) =
        (Parts::default(), Parts::default(), Parts::default());
    for places in [&own.custom, &own.deny, &own.allow] {
        let policies = authorization::at(compiled, places);
        for field in policies
            .flat_map(|policy| &policy.rules)
            .flat_map(|rule| rule.fields())
        {
            for pattern in &field.patterns {
                match (&field.field, pattern) {
                    (Field::Method, _) => methods.learn(pattern),
                    (Field::Path, _) => paths.learn(pattern),
                    (Field::Host, _) => hosts.learn(pattern),
                    (Field::DestinationPort, Pattern::Port(port)) => {
                        requests.ports.insert(*port);
                    }
                    _ => {}
                }
            }
        }
    }
    let rules = own
        .ingress
        .iter()
        .filter_map(|&place| compiled.network.get(place))
        .flat_map(|policy| policy.ingress.iter().flatten());
    for port in rules.flat_map(|rule| &rule.ports) {
        requests.protocols.insert(port.protocol);
        if let PortNumber::Range(first, last) = port.number {
            requests.ports.extend([first, last]);
            requests.ports.extend(last.checked_add(1));
        }
    }
    requests.ports.insert(OTHER_PORT);
    requests.methods = methods.values("OTHER", "");
    requests.paths = paths.values("/other", "/");
    requests.hosts = hosts.values("other.invalid", "");
    requests
}

/// What patterns ask of a text.
#[derive(Debug, Default)]
struct Parts {
    whole: BTreeSet<String>,
    begins: BTreeSet<String>,
    ends: BTreeSet<String>,
}

impl Parts {
    fn learn(&mut self, pattern: &Pattern) {
        match pattern {
            Pattern::Exact(text) => {
                self.whole.insert(text.clone());
            }
            Pattern::Prefix(text) => {
                self.begins.insert(text.clone());
            }
            Pattern::Suffix(text) => {
                self.ends.insert(text.clone());
            }
            Pattern::Template(template) => {
                self.whole.insert(template.example());
            }
            _ => {}
        }
    }

    /// A text for each pattern, for a beginning with an end, and one that fits none.
    fn values(self, other: &str, start: &str) -> BTreeSet<String> {
        let mut all = self.whole;
        for begin in self.begins.iter().map(String::as_str).chain([start]) {
            for end in self.ends.iter().map(String::as_str).chain([""]) {
                for middle in ["", "x"] {
                    all.insert(format!("{begin}{middle}{end}"));
                }
            }
        }
        all.insert(other.to_owned());
        all.remove("");
        all
    }
}

/// A port that no policy is likely to speak of.
const OTHER_PORT: u16 = 65_534;
