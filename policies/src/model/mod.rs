//! The documents as written, read and checked, but not yet compiled.

pub mod workload;
