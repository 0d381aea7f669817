//! `security.istio.io` RequestAuthentication.

use super::{Meta, labels::Labels};
use crate::diagnostic::Place;

#[derive(Debug, Clone)]
pub(crate) struct RequestAuthentication {
    pub(crate) meta: Meta,
    /// Empty: every workload of the namespace, or of the mesh in the root namespace.
    pub(crate) selector: Labels,
    pub(crate) rules: Vec<JwtRule>,
}

/// Which tokens are accepted, and where they are looked for.
#[derive(Debug, Clone)]
pub(crate) struct JwtRule {
    pub(crate) at: Place,
    /// `None`: any, where `jwksUri` says which keys.
    pub(crate) issuer: Option<String>,
    /// Empty: any.
    pub(crate) audiences: Vec<String>,
    pub(crate) keys: Keys,
    /// Claims that are split at spaces, beside those that always are.
    pub(crate) space_delimited: Vec<String>,
}

/// Where the keys come from that sign the tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Where OpenID Connect Discovery finds them.
    Discovered,
    /// A JWK Set in the policy itself.
    Inline(String),
    /// Fetched from here.
    Uri(String),
}
