//! The trust domain: the authority part of a SPIFFE ID.
//!
//! It is a name and nothing else. It is never resolved, even where it looks like a DNS name or an
//! address. Spec: SPIFFE-ID section 2.1.

use std::{fmt, str::FromStr, sync::Arc};

/// A valid trust domain name, such as `example.org`.
///
/// Cheap to clone. Two trust domains are equal exactly when their names are, byte for byte.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The longest name that is accepted, in bytes. Spec: SPIFFE-ID section 2.1.
    pub const MAX_BYTES: usize = 255;

    /// Reads a trust domain name, without scheme and path.
    ///
    /// Upper case is refused rather than lowered: two spellings of one identity are one too many.
    ///
    /// # Errors
    /// The first rule of SPIFFE-ID section 2.1 that the name breaks.
    pub fn parse(name: &str) -> Result<Self, TrustDomainError> {
        if name.is_empty() {
            return Err(TrustDomainError::Empty);
        }
        if name.len() > Self::MAX_BYTES {
            return Err(TrustDomainError::TooLong { bytes: name.len() });
        }
        match name.chars().find(|&c| !is_trust_domain_char(c)) {
            Some(found) => Err(TrustDomainError::Character { found }),
            None => Ok(Self(name.into())),
        }
    }

    /// The name alone: `example.org`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself, `spiffe://example.org`: the key under which the
    /// Workload API and SDS name its bundle.
    pub fn id_string(&self) -> String {
        format!("spiffe://{}", self.0)
    }
}

/// Why a trust domain name is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustDomainError {
    /// There is no name.
    #[error("the trust domain is empty")]
    Empty,
    /// The name is longer than [`TrustDomain::MAX_BYTES`].
    #[error("the trust domain has {bytes} bytes, at most 255 are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The name holds a character outside `a-z 0-9 . - _`.
    #[error("the trust domain holds {found:?}, only a-z, 0-9, `.`, `-` and `_` are allowed")]
    Character {
        /// The first such character.
        found: char,
    },
}

impl FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

fn is_trust_domain_char(c: char) -> bool {
    matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')
}

#[cfg(test)]
mod tests;
