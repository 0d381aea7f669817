//! Clair's vulnerability report. Spec: Clair v4, matcher API, `VulnerabilityReport`.

use std::{collections::HashMap, fmt, marker::PhantomData, time::SystemTime};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};

use super::{Report, ScannedImage, Scanner, Severity, Vulnerability};
use crate::attest::image::{digest::Digest, document::Refused};

#[derive(Debug, Deserialize)]
struct Written {
    manifest_hash: String,
    packages: Unique<IgnoredAny>,
    vulnerabilities: Unique<Found>,
    package_vulnerabilities: Unique<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Found {
    name: String,
    normalized_severity: Option<String>,
}

/// A map in which no key comes twice: of two, readers would take different ones.
#[derive(Debug)]
struct Unique<T>(HashMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = HashMap<String, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
                let mut map = HashMap::new();
                while let Some((key, value)) = all.next_entry::<String, T>()? {
                    if map.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key comes twice in a map"));
                    }
                }
                Ok(map)
            }
        }

        deserializer.deserialize_map(Reader(PhantomData)).map(Self)
    }
}

/// Reads one. The report has no time of its own; that of its file stands in.
///
/// # Errors
/// [`Refused`]: it says too little to be believed.
pub(in crate::attest::image) fn clair(
    text: &[u8],
    written_at: SystemTime,
) -> Result<Report, Refused> {
    let written: Written = serde_json::from_slice(text)?;
    let vulnerabilities = written.vulnerabilities.0;
    let mut named = written.package_vulnerabilities.0.values().flatten();
    if let Some(unknown) = named.find(|id| !vulnerabilities.contains_key(*id)) {
        return Err(Refused::new(format!(
            "a package has the vulnerability `{}`, which it does not describe",
            super::super::document::cut(unknown)
        )));
    }
    let coverage = match written.packages.0.is_empty() {
        false => Ok(()),
        true => Err(
            "it names no packages, so Clair knows nothing of what is in the image; scan with a scanner \
             that does",
        ),
    };
    // What is described counts, whether or not a package is named for it.
    let found = vulnerabilities.into_values().map(Vulnerability::from);
    Ok(Report {
        scanner: Scanner::Clair,
        scanned: ScannedImage {
            manifests: Digest::parse(&written.manifest_hash).into_iter().collect(),
            ..ScannedImage::default()
        },
        at: written_at,
        database: None,
        coverage,
        found: found.filter(|one| !one.severity.is_low()).collect(),
    })
}

impl From<Found> for Vulnerability {
    fn from(found: Found) -> Self {
        let severity = found.normalized_severity.as_deref();
        Self {
            id: found.name,
            aliases: Vec::new(),
            severity: Severity::by(
                ["Critical", "High"],
                &["Medium", "Low", "Negligible"],
                severity,
            ),
            package: None,
        }
    }
}
