//! Decides accesses against the compiled policies. No I/O, no panic, always an answer.

mod access;
pub(crate) mod authorization;
mod decision;
pub(crate) mod network;
pub(crate) mod token;

pub use access::{
    Access, Destination, Direction, Headers, HttpRequest, NoHeaders, Peer, Protocol, Source,
};
pub use token::Token;

pub use decision::{DecidedBy, Decision, PolicyKind, RuleName, RuleOrigin, Stage, Verdict};

use crate::{
    compile::{Compiled, Entry, MtlsMode},
    set::Defaults,
};

/// What every decision needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) compiled: &'a Compiled,
    pub(crate) defaults: Defaults,
    pub(crate) access: &'a Access<'a>,
}

impl<'a> Question<'a> {
    /// The entry of the destination, if it is a Workload.
    pub(crate) fn destination(&self) -> Option<&'a Entry> {
        self.access
            .destination
            .workload
            .and_then(|name| self.compiled.by_name(name))
    }

    /// Peer authentication, then the network.
    pub(crate) fn connection(&self) -> Decision {
        match self.access.direction {
            Direction::Outbound => network::egress(self),
            Direction::Inbound => match self.peer_authentication() {
                Some(denied) => denied,
                None => network::ingress(self),
            },
        }
    }

    /// Is plaintext refused where it was used?
    fn peer_authentication(&self) -> Option<Decision> {
        if self.access.source.peer != Peer::Plaintext {
            return None;
        }
        let (mode, origin) = self
            .destination()?
            .mtls
            .of_port(self.access.destination.port);
        (*mode == MtlsMode::Strict).then(|| Decision {
            verdict: Verdict::Deny,
            stage: Stage::PeerAuthentication,
            decided_by: origin.clone().map_or(DecidedBy::Default, DecidedBy::Rule),
        })
    }
}
