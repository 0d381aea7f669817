//! How long callers may stand still.

use std::time::Duration;

use postern_policies::{
    diagnostic::Problems,
    yaml::{Fields, Node, fields},
};

/// How long a caller of HTTP may stand still before its connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until the head of the next request is there, counted from the end of the one before.
    pub head: Duration,
    /// Until more of a body comes. For HTTP/1: streams of HTTP/2 may be silent for longer.
    pub body: Duration,
    /// Until the caller takes more of an answer.
    pub write: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(20),
            write: Duration::from_secs(30),
        }
    }
}

/// Reads `inbound.limits`.
pub(super) fn patience(node: &Node, problems: &mut Problems<'_>) -> Option<Patience> {
    let known = ["headTimeout", "bodyTimeout", "writeTimeout"];
    let section = Fields::of(node, "inbound.limits", &known, problems)?;
    let usual = Patience::default();
    let mut read = |name: &str, usual: Duration| match section.get(name) {
        Some(node) => fields::duration(node, name, problems),
        None => Some(usual),
    };
    let (head, body, write) = (
        read("headTimeout", usual.head),
        read("bodyTimeout", usual.body),
        read("writeTimeout", usual.write),
    );
    Some(Patience {
        head: head?,
        body: body?,
        write: write?,
    })
}
