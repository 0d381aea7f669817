//! The pure policy engine: documents in, decisions out.
//!
//! `parse` turns YAML into the documents of `model`, each with its place in its file; `compile`
//! turns documents into a [`PolicySet`], in which nothing is left to fail; `decide` answers. No
//! sockets, no clock, no async. Only [`files`], beside the core, opens anything.

#![forbid(unsafe_code)]

pub mod model;

mod parse;

pub mod classes;

mod compile;

pub mod decide;

mod explain;

mod lint;

mod set;

pub mod diagnostic;

pub mod files;

pub mod normalize;

pub mod yaml;

pub use compile::MtlsMode;
pub use decide::RuleName;
pub use diagnostic::{Diagnostic, Severity};
pub use explain::{Considered, Explanation};
pub use set::{Defaults, Loaded, Observed, Options, PolicySet, SourceFile};
