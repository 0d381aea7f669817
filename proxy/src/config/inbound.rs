//! The part of the configuration that is about the road in.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use postern_policies::{
    diagnostic::Problems,
    yaml::{Fields, Node, fields},
};

use super::limits::{self, Patience};
use crate::relay;

/// The road in.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Where callers arrive.
    pub listen: SocketAddr,
    /// Where the app is.
    pub forward: Forward,
    /// What is spoken; where nothing is said, the name of the port decides.
    pub protocol: Option<Protocol>,
    /// How long a caller may take to prove who it is.
    pub handshake_timeout: Duration,
    /// A request may switch to WebSocket.
    pub websocket: bool,
    /// How long a caller of HTTP may stand still.
    pub patience: Patience,
    /// How long an opaque connection may be silent.
    pub idle_timeout: Duration,
}

/// Where the app is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// Here.
    To(SocketAddr),
    /// Where the caller wanted to go before it was redirected.
    OriginalDestination,
    /// Where the caller wanted to go; its connection is handed over as it is (TPROXY).
    Transparent,
}

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Found out by ALPN or the first bytes.
    Auto,
    /// HTTP of either version.
    Http,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Anything, unread.
    Tcp,
}

/// Reads `inbound`.
pub(super) fn inbound(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Inbound> {
    let node = all.required("inbound", "proxy.yaml", problems)?;
    let known = [
        "listen",
        "forward",
        "protocol",
        "handshakeTimeout",
        "upgrades",
        "limits",
        "idleTimeout",
    ];
    let section = Fields::of(node, "inbound", &known, problems)?;
    let listen = match section.get("listen") {
        Some(node) => fields::socket_address(node, "inbound.listen", problems),
        None => Some(INBOUND),
    };
    let forward = section
        .required("forward", "inbound", problems)
        .and_then(
            |node| match fields::text(node, "inbound.forward", problems)? {
                "original-destination" => Some(Forward::OriginalDestination),
                "transparent" => Some(Forward::Transparent),
                _ => fields::socket_address(node, "inbound.forward", problems).map(Forward::To),
            },
        );
    let protocol = match section.get("protocol") {
        Some(node) => protocol(node, problems).map(Some),
        None => Some(None),
    };
    let handshake_timeout = match section.get("handshakeTimeout") {
        Some(node) => fields::duration(node, "handshakeTimeout", problems),
        None => Some(Duration::from_secs(10)),
    };
    let websocket = match section.get("upgrades") {
        Some(node) => upgrades(node, "inbound.upgrades", problems),
        None => Some(true),
    };
    let patience = match section.get("limits") {
        Some(node) => limits::patience(node, problems),
        None => Some(Patience::default()),
    };
    let idle_timeout = match section.get("idleTimeout") {
        Some(node) => fields::duration(node, "inbound.idleTimeout", problems),
        None => Some(relay::IDLE_TIMEOUT),
    };
    Some(Inbound {
        listen: listen?,
        forward: forward?,
        protocol: protocol?,
        handshake_timeout: handshake_timeout?,
        websocket: websocket?,
        patience: patience?,
        idle_timeout: idle_timeout?,
    })
}

/// The protocols that a request may switch to: `[websocket]` or `[]`.
pub(super) fn upgrades(node: &Node, key: &str, problems: &mut Problems<'_>) -> Option<bool> {
    let names = fields::list(node, key, problems)?;
    for name in names {
        let text = fields::text(name, key, problems)?;
        if text != "websocket" {
            let hint = "`[websocket]`, or `[]` for none";
            problems.error_with(name.at, format!("`{text}` is no known upgrade"), hint);
            return None;
        }
    }
    Some(!names.is_empty())
}

fn protocol(node: &Node, problems: &mut Problems<'_>) -> Option<Protocol> {
    match fields::text(node, "protocol", problems)? {
        "auto" => Some(Protocol::Auto),
        "http" => Some(Protocol::Http),
        "http1" => Some(Protocol::Http1),
        "http2" => Some(Protocol::Http2),
        "tcp" => Some(Protocol::Tcp),
        other => {
            let hint = "`auto`, `http`, `http1`, `http2` or `tcp`";
            problems.error_with(node.at, format!("`{other}` is no protocol"), hint);
            None
        }
    }
}

const INBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15006);
