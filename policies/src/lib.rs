//! The pure policy engine: documents in, decisions out.

#![forbid(unsafe_code)]

pub mod model;

pub mod decide;

pub mod files;

mod set;

pub use set::{Defaults, Diagnostic, Loaded, MtlsMode, Options, PolicySet, SourceFile};
