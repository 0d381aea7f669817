//! What rules are asked about: events, and which of Falco's types they are.

use std::net::IpAddr;

use super::field::Field;

/// A kind of event that is seen here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A process runs another program.
    Exec,
    /// A process has another user or group.
    Credentials,
    /// A socket waits for connections.
    Listen,
    /// A pod has connected to somebody.
    Connect,
    /// Somebody has connected to a pod.
    Accept,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Exec,
        Self::Credentials,
        Self::Listen,
        Self::Connect,
        Self::Accept,
    ];

    /// The types by which rules may call it. The first is the one that it is told by.
    pub(super) fn types(self) -> &'static [&'static str] {
        match self {
            Self::Exec => &["execve", "execveat"],
            Self::Credentials => &[
                "setuid",
                "setgid",
                "setreuid",
                "setregid",
                "setresuid",
                "setresgid",
            ],
            Self::Listen => &["listen", "bind"],
            Self::Connect => &["connect"],
            Self::Accept => &["accept", "accept4"],
        }
    }

    /// Why not all of them are seen, if that is so.
    pub(super) fn lack(self) -> Option<&'static str> {
        match self {
            Self::Exec => None,
            Self::Credentials => Some("only changes that were made are seen"),
            Self::Listen | Self::Connect | Self::Accept => {
                Some("sockets are looked at now and then: what fails or ends at once is missed")
            }
        }
    }

    pub(super) fn is_of_socket(self) -> bool {
        matches!(self, Self::Listen | Self::Connect | Self::Accept)
    }
}

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A text, which need not be UTF-8.
    Text(&'a [u8]),
    /// A number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
    /// An address.
    Address(IpAddr),
}

/// Something that happened, for rules to look at.
pub trait Event {
    /// What kind it is.
    fn class(&self) -> Class;

    /// The value of a field; none is Falco's `<NA>`. `argument` is what stands in square brackets.
    fn value(&self, field: Field, argument: Argument<'_>) -> Option<Value<'_>>;
}

/// What stands in the square brackets of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument<'a> {
    /// There are none.
    None,
    /// A generation of ancestors: 1 is the parent.
    Generation(u8),
    /// The name of a variable.
    Variable(&'a str),
}
