//! What a request may look like, and what becomes of it.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod framing;
pub(crate) mod grpc;
pub(crate) mod guard;
pub(crate) mod head;
pub(crate) mod headers;
pub(crate) mod serve;
pub(crate) mod trace;
pub(crate) mod upgrade;
