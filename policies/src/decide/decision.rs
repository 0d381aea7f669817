//! What is answered: a verdict, and what made it.

use std::{fmt, path::Path, sync::Arc};

/// The answer to one access. There is always one, and by default it is deny.
///
/// Cheap to make: why, in words, is [`PolicySet::reason`](crate::PolicySet::reason), asked only
/// where somebody reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// May it pass?
    pub verdict: Verdict,
    /// The last layer that was asked: for a deny the one that denied.
    pub stage: Stage,
    /// What decided within that layer.
    pub decided_by: DecidedBy,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// It may not.
    Deny,
}

/// The layers, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Must the peer prove an identity?
    PeerAuthentication,
    /// Are the request's tokens valid?
    RequestAuthentication,
    /// May these two ends talk at all?
    Network,
    /// May this identity do this?
    Authorization,
}

/// What made the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecidedBy {
    /// One rule of one policy.
    Rule(RuleOrigin),
    /// Policies of this kind select the workload, and no rule of theirs matched.
    NoMatch(PolicyKind),
    /// No policy had a say; the configured default decided.
    Default,
    /// The request itself: its path has no single meaning, so it is refused before any policy.
    Request,
    /// An access that no authorization policy was asked about, allowed by the layers before.
    Unasked,
}

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleOrigin {
    /// The kind of its policy.
    pub kind: PolicyKind,
    /// `namespace/name` of its policy.
    pub policy: Arc<str>,
    /// Its place in the policy's list, from 0; `None` where the policy as a whole decides.
    pub rule: Option<u32>,
    /// The file it was read from.
    pub file: Arc<Path>,
    /// The line on which the rule begins, from 1.
    pub line: u32,
}

/// A rule by its name, without its place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleName {
    /// The kind of its policy.
    pub kind: PolicyKind,
    /// `namespace/name` of its policy.
    pub policy: Arc<str>,
    /// Its place in the policy's list, from 0.
    pub rule: Option<u32>,
    /// The line on which it begins, from 1.
    pub line: u32,
}

impl From<&RuleOrigin> for RuleName {
    fn from(origin: &RuleOrigin) -> Self {
        Self {
            kind: origin.kind,
            policy: origin.policy.clone(),
            rule: origin.rule,
            line: origin.line,
        }
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.policy)?;
        match self.rule {
            Some(rule) => write!(f, " rule {rule} (line {})", self.line),
            None => write!(f, " (line {})", self.line),
        }
    }
}

/// The kinds of documents that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1` NetworkPolicy
    NetworkPolicy,
    /// `security.istio.io` PeerAuthentication
    PeerAuthentication,
    /// `security.istio.io` RequestAuthentication
    RequestAuthentication,
    /// `security.istio.io` AuthorizationPolicy
    AuthorizationPolicy,
}
