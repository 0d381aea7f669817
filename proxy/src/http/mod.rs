//! What a request may look like, and what becomes of it.

pub(crate) mod body;
pub(crate) mod headers;
pub(crate) mod serve;
