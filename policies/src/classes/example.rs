//! One access that stands for its class.

use std::{collections::BTreeMap, net::IpAddr};

use postern_spiffe::SpiffeId;
use serde_json::{Map, Value};

use crate::{
    decide::{Access, Destination, Direction, Headers, HttpRequest, Peer, Protocol, Source, Token},
    model::workload::WorkloadName,
};

/// One access that stands for all of its class. What is absent here does not matter, or has to be
/// absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Which end decides.
    pub direction: Direction,
    /// Who asks; `None` for plaintext.
    pub identity: Option<SpiffeId>,
    /// From where.
    pub ip: Option<IpAddr>,
    /// Whom.
    pub destination: Option<WorkloadName>,
    /// At which of its addresses.
    pub destination_ip: Option<IpAddr>,
    /// At which port.
    pub port: u16,
    /// By which transport.
    pub protocol: Protocol,
    /// The server name of the handshake.
    pub server_name: Option<String>,
    /// What, where HTTP is spoken.
    pub http: Option<HttpExample>,
    /// Issuer and claims of the token.
    pub token: Option<TokenExample>,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpExample {
    /// Its method.
    pub method: String,
    /// Its path, normalized.
    pub path: String,
    /// Its host.
    pub host: String,
    /// Its header fields, each once.
    pub headers: BTreeMap<String, String>,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenExample {
    /// Its issuer.
    pub issuer: String,
    /// Its claims.
    pub claims: Map<String, Value>,
}

impl Headers for HttpExample {
    fn values(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        if let Some(value) = self.headers.get(name) {
            each(value.as_bytes());
        }
    }
}

impl Example {
    /// Of nobody, to nothing in particular.
    pub(super) fn to(destination: &WorkloadName) -> Self {
        Self {
            direction: Direction::Inbound,
            identity: None,
            ip: None,
            destination: Some(destination.clone()),
            destination_ip: None,
            port: 1,
            protocol: Protocol::Tcp,
            server_name: None,
            http: None,
            token: None,
        }
    }

    /// Asks something of it.
    pub fn with<T>(&self, ask: impl FnOnce(&Access<'_>) -> T) -> T {
        ask(&Access {
            direction: self.direction,
            source: Source {
                peer: self
                    .identity
                    .as_ref()
                    .map_or(Peer::Plaintext, Peer::Verified),
                ip: self.ip,
                namespace: None,
                labels: None,
            },
            destination: Destination {
                workload: self.destination.as_ref(),
                ip: self.destination_ip,
                port: self.port,
                protocol: self.protocol,
            },
            http: self.http.as_ref().map(|http| HttpRequest {
                method: &http.method,
                path: &http.path,
                host: Some(&http.host),
                headers: http,
            }),
            token: self.token(),
            sni: self.server_name.as_deref(),
        })
    }

    pub(super) fn token(&self) -> Option<Token<'_>> {
        self.token.as_ref().map(|token| Token {
            issuer: &token.issuer,
            claims: &token.claims,
            verified_by: None,
        })
    }
}

impl HttpExample {
    /// A request of which nothing matters.
    pub(super) fn any() -> Self {
        Self {
            method: "GET".into(),
            path: "/other".into(),
            host: "other.invalid".into(),
            headers: BTreeMap::new(),
        }
    }
}
