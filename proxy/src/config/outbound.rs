//! The part of the configuration that is about the road out.

use std::net::SocketAddr;

use postern_policies::{
    diagnostic::Problems,
    model::workload::WorkloadName,
    yaml::{Fields, Value, fields},
};

use super::{delivery, inbound, workload_name};

/// The road out.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Where redirected connections arrive.
    pub listen: Option<SocketAddr>,
    /// Explicit ways to one Workload each.
    pub listeners: Vec<Listener>,
    /// A request may switch to WebSocket.
    pub websocket: bool,
    /// How traffic is delivered.
    pub delivery: delivery::Delivery,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            listen: None,
            listeners: Vec::new(),
            websocket: true,
            delivery: delivery::Delivery::default(),
        }
    }
}

/// An explicit way to one Workload.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Where the app connects.
    pub listen: SocketAddr,
    /// The Workload.
    pub to: WorkloadName,
    /// Its port.
    pub port: ToPort,
}

/// A port of a Workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToPort {
    /// By number.
    Number(u16),
    /// By the name that the Workload gives it.
    Name(String),
}

/// Reads `outbound`; without it nothing goes out.
pub(super) fn outbound(all: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Outbound> {
    let Some(node) = all.get("outbound") else {
        return Some(Outbound::default());
    };
    let known: Vec<&str> = [&["listen", "listeners", "upgrades"], &delivery::KEYS[..]].concat();
    let section = Fields::of(node, "outbound", &known, problems)?;
    let delivery = delivery::delivery(&section, problems);
    let listen = match section.get("listen") {
        Some(node) => Some(fields::socket_address(node, "outbound.listen", problems)?),
        None => None,
    };
    let websocket = match section.get("upgrades") {
        Some(node) => inbound::upgrades(node, "outbound.upgrades", problems)?,
        None => true,
    };
    let listeners: Vec<Option<Listener>> = section
        .list("listeners", problems)
        .iter()
        .map(|node| {
            let one = Fields::of(node, "a listener", &["listen", "to", "port"], problems)?;
            let listen = one.required("listen", "a listener", problems)?;
            let to = one.required("to", "a listener", problems)?;
            let port = one.required("port", "a listener", problems)?;
            Some(Listener {
                listen: fields::socket_address(listen, "listen", problems)?,
                to: workload_name(to, "to", problems)?,
                port: match &port.value {
                    Value::Text(name) => ToPort::Name(name.clone()),
                    _ => ToPort::Number(fields::port(port, "port", problems)?),
                },
            })
        })
        .collect();
    Some(Outbound {
        listen,
        listeners: listeners.into_iter().collect::<Option<_>>()?,
        websocket,
        delivery: delivery?,
    })
}
