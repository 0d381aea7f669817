//! `security.istio.io` AuthorizationPolicy.
//!
//! Sources, operations and conditions are all the same thing here: fields that are compared with
//! patterns, each as written or in its `not…` form.

use super::{Meta, labels::Labels, pattern::Pattern};
use crate::diagnostic::Place;

#[derive(Debug, Clone)]
pub(crate) struct AuthorizationPolicy {
    pub(crate) meta: Meta,
    /// Empty: every workload of the namespace, or of the mesh in the root namespace.
    pub(crate) selector: Labels,
    pub(crate) action: Action,
    /// Who is asked, by name; of CUSTOM alone.
    pub(crate) provider: Option<String>,
    /// Shown in the log, without a say in the verdict.
    pub(crate) dry_run: bool,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    Deny,
    Audit,
    /// Somebody else is asked. There is nobody here, so what it matches is denied.
    Custom,
}

/// Any source, any operation, all conditions. An empty list holds.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) at: Place,
    pub(crate) from: Vec<Vec<FieldMatch>>,
    pub(crate) to: Vec<Vec<FieldMatch>>,
    pub(crate) when: Vec<FieldMatch>,
}

impl Rule {
    /// Every comparison of the rule.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &FieldMatch> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }
}

/// One field, compared with any of the patterns; negated: with none of them.
#[derive(Debug, Clone)]
pub(crate) struct FieldMatch {
    pub(crate) field: Field,
    pub(crate) patterns: Vec<Pattern>,
    pub(crate) negated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    RemoteIp,
    DestinationIp,
    DestinationPort,
    ServerName,
    Host,
    Method,
    Path,
    /// A header, by its name in lower case.
    Header(String),
    /// Issuer and subject of the token.
    RequestPrincipal,
    /// A claim of the token, by the keys that lead to it.
    Claim(Vec<String>),
}

impl Field {
    /// Is there nothing to compare where no HTTP was parsed?
    pub(crate) fn is_http_only(&self) -> bool {
        matches!(
            self,
            Self::Host
                | Self::Method
                | Self::Path
                | Self::Header(_)
                | Self::RequestPrincipal
                | Self::Claim(_)
        )
    }

    /// The word for people.
    pub(crate) fn noun(&self) -> String {
        match self {
            Self::Principal => "principal".into(),
            Self::Namespace => "namespace".into(),
            Self::ServiceAccount => "service account".into(),
            Self::TrustDomain => "trust domain".into(),
            Self::SourceIp => "source address".into(),
            Self::RemoteIp => "remote address".into(),
            Self::DestinationIp => "destination address".into(),
            Self::DestinationPort => "port".into(),
            Self::ServerName => "server name".into(),
            Self::Host => "host".into(),
            Self::Method => "method".into(),
            Self::Path => "path".into(),
            Self::Header(name) => format!("header `{name}`"),
            Self::RequestPrincipal => "request principal".into(),
            Self::Claim(path) => format!("claim `{}`", path.join("`, `")),
        }
    }
}
