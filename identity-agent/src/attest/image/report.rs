//! What a scanner found in an image, whichever scanner it was. Pure.
//!
//! The four forms have a reader each, with a narrow view: what decides is read, and the rest passed over.

mod clair;
mod grype;
mod snyk;
mod trivy;

use std::{fmt, time::SystemTime};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::digest::Digest;

pub(super) use clair::clair;
pub(super) use grype::grype;
pub(super) use snyk::snyk;
pub(super) use trivy::trivy;

/// Whose report it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scanner {
    Trivy,
    Grype,
    Clair,
    Snyk,
}

impl Scanner {
    pub(super) const ALL: [Self; 4] = [Self::Trivy, Self::Grype, Self::Clair, Self::Snyk];
}

impl fmt::Display for Scanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trivy => "Trivy",
            Self::Grype => "Grype",
            Self::Clair => "Clair",
            Self::Snyk => "Snyk",
        })
    }
}

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) scanner: Scanner,
    pub(super) scanned: ScannedImage,
    /// When it was made.
    pub(super) at: SystemTime,
    /// When the scanner's database was made, where the report tells.
    pub(super) database: Option<SystemTime>,
    /// Did it look at anything that it knows vulnerabilities of? Otherwise why not: nothing found by
    /// nobody who looked is not zero.
    pub(super) coverage: Result<(), &'static str>,
    /// Those that may count: rated critical or high, or not rated.
    pub(super) found: Vec<Vulnerability>,
}

/// The image that a report is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ScannedImage {
    /// The digest of its configuration.
    pub(super) config: Option<Digest>,
    /// The digests of its manifest, and of indexes that it is in.
    pub(super) manifests: Vec<Digest>,
    /// As Go names it.
    pub(super) architecture: Option<String>,
}

impl ScannedImage {
    pub(super) fn is_named(&self) -> bool {
        self.config.is_some() || !self.manifests.is_empty()
    }
}

/// One vulnerability of one package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vulnerability {
    /// As the scanner names it.
    pub(super) id: String,
    /// As others do.
    pub(super) aliases: Vec<String>,
    pub(super) severity: Severity,
    /// The package URL of what has it, where the scanner tells.
    pub(super) package: Option<String>,
}

/// How bad the scanner says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    Critical,
    High,
    /// Anything that is rated, and lower.
    Lower,
    /// Not rated, or in a word that the scanner does not have. Counts as critical and as high.
    Unknown,
}

impl Severity {
    /// By the scanner's own words, which are compared letter by letter: for critical, for high, and for
    /// the lower ratings.
    fn by(words: [&str; 2], lower: &[&str], told: Option<&str>) -> Self {
        let [critical, high] = words;
        match told {
            Some(word) if word == critical => Self::Critical,
            Some(word) if word == high => Self::High,
            Some(word) if lower.contains(&word) => Self::Lower,
            _ => Self::Unknown,
        }
    }

    /// Does it never count?
    fn is_low(self) -> bool {
        self == Self::Lower
    }
}

/// A time as the forms write it. Spec: RFC 3339.
pub(super) fn instant(text: Option<&str>) -> Option<SystemTime> {
    let parsed = OffsetDateTime::parse(text?, &Rfc3339).ok()?;
    // Go's zero time stands for none.
    (parsed.unix_timestamp() > 0).then(|| parsed.into())
}

#[cfg(test)]
mod tests;
