//! Which endpoint is tried next: the best one to which the policies let us.

use std::{net::SocketAddr, sync::Arc};

use postern_policies::{
    PolicySet,
    decide::{HttpRequest, Verdict},
};

use super::destination::{Destination, Endpoint};
use crate::{access_log::Record, connections::Facts};

/// What one request or connection has seen of the endpoints.
#[derive(Debug, Default)]
pub(super) struct Seen {
    tried: Vec<SocketAddr>,
    denied: Vec<SocketAddr>,
}

/// Why there is no endpoint.
pub(super) enum Missing {
    /// No address may be dialled.
    Address,
    /// The policies forbid each of them; this is what they say of the first.
    Denied(Box<Record>),
}

impl Seen {
    /// The next endpoint, and what is to be told of it. An endpoint that the policies forbid is as
    /// good as none; where all were tried, one is tried again.
    pub(super) fn next(
        &mut self,
        set: &PolicySet,
        facts: &Facts,
        destination: &Destination,
        endpoints: &[Arc<Endpoint>],
        http: Option<&HttpRequest<'_>>,
    ) -> Result<(Arc<Endpoint>, Facts, Record), Missing> {
        let mut first = None;
        loop {
            let seen: Vec<SocketAddr> = self.tried.iter().chain(&self.denied).copied().collect();
            let chosen = destination
                .choose(endpoints, &seen)
                .or_else(|| destination.choose(endpoints, &self.denied));
            let Some(endpoint) = chosen else {
                return Err(first.map_or(Missing::Address, Missing::Denied));
            };
            let mut facts = Facts {
                destination: endpoint.address,
                destination_identity: Some(destination.identity.clone()),
                workload: Some(destination.workload.clone()),
                ..facts.clone()
            };
            let access = facts.access(http.copied());
            let decision = set.decide_connection(&access);
            let record = Record::of(&facts).decided(set, &access, &decision);
            if decision.verdict == Verdict::Allow {
                facts.let_in_by = decision.decided_by;
                self.tried.push(endpoint.address);
                return Ok((endpoint, facts, record));
            }
            self.denied.push(endpoint.address);
            first.get_or_insert_with(|| Box::new(record));
        }
    }

    /// Is there an endpoint that was not tried?
    pub(super) fn leaves_others(&self, endpoints: &[Arc<Endpoint>]) -> bool {
        let is_new = |one: &Arc<Endpoint>| {
            !self.tried.contains(&one.address) && !self.denied.contains(&one.address)
        };
        endpoints.iter().any(is_new)
    }
}
