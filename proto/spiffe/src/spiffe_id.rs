//! The SPIFFE ID: `spiffe://<trust domain>/<path>`.
//!
//! Only the canonical form is accepted: nothing is lowered, decoded or trimmed, so equal strings
//! are equal identities and no other pair is. Spec: SPIFFE-ID section 2.

use std::{fmt, str::FromStr, sync::Arc};

use crate::trust_domain::{TrustDomain, TrustDomainError};

/// A valid SPIFFE ID.
///
/// With an empty path it names a trust domain; with a path, a workload. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// The longest ID that is accepted, in bytes. Spec: SPIFFE-ID section 2.3.
    pub const MAX_BYTES: usize = 2048;

    /// Reads a SPIFFE ID in its canonical form.
    ///
    /// # Errors
    /// The first rule of SPIFFE-ID section 2 that the text breaks.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.is_empty() {
            return Err(SpiffeIdError::Empty);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(SpiffeIdError::TooLong { bytes: text.len() });
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (name, path) = match rest.split_once('/') {
            Some((name, path)) => (name, Some(path)),
            None => (rest, None),
        };
        let trust_domain = TrustDomain::parse(name)?;
        if let Some(path) = path {
            path.split('/').try_for_each(check_segment)?;
        }
        Ok(Self {
            text: text.into(),
            trust_domain,
        })
    }

    /// The ID of a workload: a trust domain and a path that begins with `/`.
    ///
    /// # Errors
    /// As [`SpiffeId::parse`].
    pub fn from_parts(trust_domain: &TrustDomain, path: &str) -> Result<Self, SpiffeIdError> {
        Self::parse(&format!("{SCHEME}{trust_domain}{path}"))
    }

    /// The default layout for Kubernetes names,
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    ///
    /// # Errors
    /// As [`SpiffeId::parse`]; a name that holds a `/` is refused, it would be another identity.
    pub fn for_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        for segment in [namespace, service_account] {
            check_segment(segment)?;
        }
        Self::from_parts(
            trust_domain,
            &format!("/ns/{namespace}/sa/{service_account}"),
        )
    }

    /// The trust domain that vouches for this identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading `/`, or the empty string for the ID of a trust domain.
    pub fn path(&self) -> &str {
        let start = SCHEME.len() + self.trust_domain.as_str().len();
        self.text.get(start..).unwrap_or_default()
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The ID without `spiffe://`: what Istio calls a principal.
    pub fn principal(&self) -> &str {
        self.text.get(SCHEME.len()..).unwrap_or_default()
    }

    /// Namespace and service account, where the path has the layout of
    /// [`SpiffeId::for_service_account`] and nothing more.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let mut segments = self.path().split('/').skip(1);
        let found = match (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account)) => (namespace, account),
            _ => return None,
        };
        segments.next().is_none().then_some(found)
    }
}

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// There is no text.
    #[error("the SPIFFE ID is empty")]
    Empty,
    /// The text is longer than [`SpiffeId::MAX_BYTES`].
    #[error("the SPIFFE ID has {bytes} bytes, at most 2048 are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The text does not begin with `spiffe://`.
    #[error("the SPIFFE ID does not begin with `spiffe://`")]
    Scheme,
    /// The authority is not a trust domain name; a port or a user part ends here too.
    #[error(transparent)]
    TrustDomain(#[from] TrustDomainError),
    /// Two slashes follow each other, or the path ends in one.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// A segment is `.` or `..`.
    #[error("the path has a `.` or `..` segment")]
    DotSegment,
    /// The path holds a character outside `A-Z a-z 0-9 . - _`; percent-encoding, query and
    /// fragment end here too.
    #[error("the path holds {found:?}, only A-Z, a-z, 0-9, `.`, `-` and `_` are allowed")]
    Character {
        /// The first such character.
        found: char,
    },
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

/// Checks one path segment. Spec: SPIFFE-ID section 2.2.
fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    match segment {
        "" => return Err(SpiffeIdError::EmptySegment),
        "." | ".." => return Err(SpiffeIdError::DotSegment),
        _ => {}
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match segment.chars().find(|&c| !allowed(c)) {
        Some(found) => Err(SpiffeIdError::Character { found }),
        None => Ok(()),
    }
}

const SCHEME: &str = "spiffe://";

#[cfg(test)]
mod tests;
