//! `snyk container test --json`. Spec: Snyk CLI, JSON output; an image with applications in it is a list.

use std::time::SystemTime;

use serde::Deserialize;

use super::{Report, ScannedImage, Scanner, Severity, Vulnerability};
use crate::attest::image::{
    digest::Digest,
    document::{Refused, is_list},
};

/// What was found of one package manager.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Project {
    vulnerabilities: Vec<Found>,
    dependency_count: Option<u64>,
    /// The image as it was named on the command line.
    path: Option<String>,
    /// Of newer versions, in the one of the distribution.
    applications: Option<Vec<Application>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Application {
    vulnerabilities: Vec<Found>,
    dependency_count: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Found {
    id: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    severity: Option<String>,
    identifiers: Option<Identifiers>,
}

#[derive(Debug, Default, Deserialize)]
struct Identifiers {
    #[serde(rename = "CVE")]
    cve: Option<Vec<String>>,
}

/// Reads one. The report has no time of its own; that of its file stands in.
///
/// # Errors
/// [`Refused`]: it says too little to be believed.
pub(in crate::attest::image) fn snyk(
    text: &[u8],
    written_at: SystemTime,
) -> Result<Report, Refused> {
    let projects: Vec<Project> = match is_list(text) {
        true => serde_json::from_slice(text)?,
        false => vec![serde_json::from_slice(text)?],
    };
    let mut paths = projects.iter().map(|project| project.path.as_deref());
    // Of an application the path may go on into the image.
    let scanned = paths.next().flatten().map(named).unwrap_or_default();
    if paths.any(|path| path.map(named).is_some_and(|other| other != scanned)) {
        return Err(Refused::new(
            "it is about several images; scan each by itself",
        ));
    }
    if !scanned.is_named() {
        return Err(Refused::new(
            "it does not say which image it is about: `path` has no digest; scan it by digest, \
             `snyk container test NAME@sha256:… --json`",
        ));
    }
    let (mut packages, mut found) = (0_u64, Vec::new());
    for project in projects {
        let own = (project.dependency_count, project.vulnerabilities);
        let inner = project.applications.unwrap_or_default().into_iter();
        let inner = inner.map(|one| (one.dependency_count, one.vulnerabilities));
        for (count, vulnerabilities) in std::iter::once(own).chain(inner) {
            packages = packages.saturating_add(count.unwrap_or_default());
            let rated = vulnerabilities.into_iter().filter(Found::is_vulnerability);
            found.extend(rated.map(Vulnerability::from));
        }
    }
    found.retain(|one| !one.severity.is_low());
    let coverage = match packages {
        0 if found.is_empty() => Err(
            "it names no packages, so Snyk knows nothing of what is in the image; scan with a scanner \
             that does",
        ),
        _ => Ok(()),
    };
    Ok(Report {
        scanner: Scanner::Snyk,
        scanned,
        at: written_at,
        database: None,
        coverage,
        found,
    })
}

/// The image that a path names by digest: `NAME@sha256:…`, or the ID of a local one.
fn named(path: &str) -> ScannedImage {
    let (image, _) = path.split_once(":/").unwrap_or((path, ""));
    ScannedImage {
        config: Digest::parse(image),
        manifests: Digest::in_reference(image).into_iter().collect(),
        architecture: None,
    }
}

impl Found {
    /// Licences are rated too.
    fn is_vulnerability(&self) -> bool {
        self.kind.as_deref() != Some("license")
    }
}

impl From<Found> for Vulnerability {
    fn from(found: Found) -> Self {
        let identifiers = found.identifiers.unwrap_or_default();
        let severity = found.severity.as_deref();
        Self {
            id: found.id,
            aliases: identifiers.cve.unwrap_or_default(),
            severity: Severity::by(["critical", "high"], &["medium", "low"], severity),
            package: None,
        }
    }
}
