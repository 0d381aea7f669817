//! Decides accesses against a compiled [`PolicySet`](crate::PolicySet). No I/O, no panic, always
//! an answer.

mod access;
mod decision;

pub use access::{
    Access, Destination, Direction, Headers, HttpRequest, NoHeaders, Peer, Protocol, Source,
};
pub use decision::{DecidedBy, Decision, PolicyKind, RuleOrigin, Stage, Verdict};
