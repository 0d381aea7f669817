//! `security.istio.io` RequestAuthentication.

use std::time::Duration;

use super::{Meta, labels::Labels};
use crate::diagnostic::Place;

#[derive(Debug, Clone)]
pub(crate) struct RequestAuthentication {
    pub(crate) meta: Meta,
    /// Empty: every workload of the namespace, or of the mesh in the root namespace.
    pub(crate) selector: Labels,
    pub(crate) rules: Vec<JwtRule>,
}

/// Which tokens are accepted, where they are looked for, and what the app sees of them.
#[derive(Debug, Clone)]
pub struct JwtRule {
    pub(crate) at: Place,
    /// `None`: any, where `jwksUri` says which keys.
    pub issuer: Option<String>,
    /// Empty: any.
    pub audiences: Vec<String>,
    /// The keys that sign the tokens.
    pub keys: Keys,
    /// How long fetching the keys may take.
    pub timeout: Duration,
    /// Where tokens are looked for, in order.
    pub places: Vec<TokenPlace>,
    /// The app gets the token too.
    pub forward: bool,
    /// The field in which the app gets the claims, in base64url (lower case).
    pub payload_header: Option<String>,
    /// Fields in which the app gets single claims.
    pub claim_headers: Vec<ClaimHeader>,
    /// Claims that are split at spaces, beside those that always are.
    pub(crate) space_delimited: Vec<String>,
}

/// Where the keys come from that sign the tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Keys {
    /// Where OpenID Connect Discovery finds them, for the rule's issuer.
    Discovered,
    /// A JWK Set in the policy itself.
    Inline(String),
    /// Fetched from here.
    Uri(String),
}

/// A place of a request in which a token may stand.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TokenPlace {
    /// A header field.
    Header {
        /// Its name, in lower case.
        name: String,
        /// What stands before the token.
        prefix: String,
    },
    /// A parameter of the query.
    Parameter(String),
    /// A cookie.
    Cookie(String),
}

/// A claim that the app gets in a header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimHeader {
    /// The field's name, in lower case.
    pub header: String,
    /// The way to the claim, member by member.
    pub claim: Vec<String>,
}

impl TokenPlace {
    /// Where tokens are looked for if a rule does not say.
    pub(crate) fn defaults() -> Vec<Self> {
        vec![
            Self::Header {
                name: "authorization".into(),
                prefix: "Bearer ".into(),
            },
            Self::Parameter("access_token".into()),
        ]
    }
}
