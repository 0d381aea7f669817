//! What is asked: one access, as the data plane saw it or as a person imagines it.
//!
//! Borrowed throughout: asking costs no allocation.

use std::net::IpAddr;

use postern_spiffe::SpiffeId;

use super::token::Token;
use crate::model::workload::WorkloadName;

/// One access to judge.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// Which end decides.
    pub direction: Direction,
    /// Who asks.
    pub source: Source<'a>,
    /// What is asked for.
    pub destination: Destination<'a>,
    /// The request, where the connection carries HTTP; `None` for opaque TCP, UDP and SCTP.
    pub http: Option<HttpRequest<'a>>,
    /// The request's token, if it has one; its signature and times were checked.
    pub token: Option<Token<'a>>,
    /// The server name of the TLS handshake.
    pub sni: Option<&'a str>,
}

/// Which end of the connection decides, and by whose policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Decided at the destination, by its policies.
    Inbound,
    /// Decided at the source, by its egress rules.
    Outbound,
}

/// The end that opened the connection.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Who it proved to be. Outbound: the asking workload itself.
    pub peer: Peer<'a>,
    /// The address at the other end of the socket, where it is known.
    pub ip: Option<IpAddr>,
    /// A what-if: takes the place of the namespace that the peer's Workload has.
    pub namespace: Option<&'a str>,
    /// A what-if: takes the place of the labels that the peer's Workload has.
    pub labels: Option<&'a std::collections::BTreeMap<String, String>>,
}

/// What the TLS handshake proved about the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer<'a> {
    /// Mutual TLS: this identity, verified.
    Verified(&'a SpiffeId),
    /// No mutual TLS: nobody, whatever the address says.
    Plaintext,
}

/// The end that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// The Workload it is, or `None` for an address outside the mesh.
    pub workload: Option<&'a WorkloadName>,
    /// Its address, where it is known.
    pub ip: Option<IpAddr>,
    /// The port at the workload (the container's, never a Service's).
    pub port: u16,
    /// The transport.
    pub protocol: Protocol,
}

/// A transport protocol, spelled as NetworkPolicy spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// `TCP`
    Tcp,
    /// `UDP`
    Udp,
    /// `SCTP`
    Sctp,
}

impl Protocol {
    /// As documents write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// The parts of a request that policies speak of. They are the ones that will be forwarded:
/// normalized before, not after.
#[derive(Debug, Clone, Copy)]
pub struct HttpRequest<'a> {
    /// The method, as sent.
    pub method: &'a str,
    /// The path without query and fragment, normalized.
    pub path: &'a str,
    /// The authority: `Host` or `:authority`, with its port if one was sent.
    pub host: Option<&'a str>,
    /// The header fields.
    pub headers: &'a dyn Headers,
}

/// Looks up header fields, whatever type holds them.
pub trait Headers: std::fmt::Debug + Sync {
    /// Calls `each` with every value of the field `name` (lower case), in order. A value that is
    /// not text arrives as the bytes it has.
    fn values(&self, name: &str, each: &mut dyn FnMut(&[u8]));
}

/// No header fields at all.
#[derive(Debug, Clone, Copy)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn values(&self, _name: &str, _each: &mut dyn FnMut(&[u8])) {}
}
