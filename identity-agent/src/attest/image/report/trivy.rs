//! `trivy image --format json`. Spec: Trivy, report schema version 2.

use serde::Deserialize;

use super::{Report, ScannedImage, Scanner, Severity, Vulnerability, instant};
use crate::attest::image::{digest::Digest, document::Refused};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Written {
    schema_version: u64,
    created_at: Option<String>,
    artifact_type: Option<String>,
    metadata: Option<Metadata>,
    results: Option<Vec<Section>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    #[serde(rename = "OS")]
    os: Option<Os>,
    #[serde(rename = "ImageID")]
    image_id: Option<String>,
    repo_digests: Option<Vec<String>>,
    image_config: Option<ImageConfig>,
}

#[derive(Debug, Deserialize)]
struct Os {
    /// Has its distribution ended?
    #[serde(rename = "EOSL", default)]
    ended: bool,
}

#[derive(Debug, Deserialize)]
struct ImageConfig {
    architecture: Option<String>,
}

/// What was found in one place of the image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Section {
    class: Option<String>,
    vulnerabilities: Option<Vec<Found>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    #[serde(rename = "VulnerabilityID")]
    id: String,
    #[serde(rename = "PkgIdentifier")]
    package: Option<PackageName>,
    severity: Option<String>,
}

#[derive(Debug, Deserialize)]
struct PackageName {
    #[serde(rename = "PURL")]
    purl: Option<String>,
}

/// Reads one.
///
/// # Errors
/// [`Refused`]: it says too little to be believed.
pub(in crate::attest::image) fn trivy(text: &[u8]) -> Result<Report, Refused> {
    let written: Written = serde_json::from_slice(text)?;
    if written.schema_version != SCHEMA {
        return Err(Refused::new(format!(
            "it has version {} of Trivy's schema, and {SCHEMA} is read",
            written.schema_version
        )));
    }
    if written.artifact_type.as_deref() != Some("container_image") {
        return Err(Refused::new(
            "it is no report on an image; make it with `trivy image --format json`",
        ));
    }
    let at = instant(written.created_at.as_deref()).ok_or_else(|| {
        Refused::new("it does not say when it was made (`CreatedAt`); make it with a newer Trivy")
    })?;
    let metadata = written.metadata.unwrap_or_default();
    let sections = written.results.unwrap_or_default();
    let coverage = match &metadata.os {
        Some(os) if os.ended => Err(
            "its distribution has ended, and nobody tells what is vulnerable in it any more; move the \
             image to one that is maintained",
        ),
        _ if sections.iter().any(Section::is_of_packages) => Ok(()),
        _ => Err(
            "it names no packages that Trivy knows vulnerabilities of; scan with `--scanners vuln`, or \
             with a scanner that knows the distribution",
        ),
    };
    let found = sections
        .into_iter()
        .flat_map(|section| section.vulnerabilities.unwrap_or_default())
        .map(Vulnerability::from)
        .filter(|one| !one.severity.is_low());
    let references = metadata.repo_digests.unwrap_or_default();
    Ok(Report {
        scanner: Scanner::Trivy,
        scanned: ScannedImage {
            config: metadata.image_id.as_deref().and_then(Digest::parse),
            manifests: references
                .iter()
                .filter_map(|one| Digest::in_reference(one))
                .collect(),
            architecture: metadata.image_config.and_then(|one| one.architecture),
        },
        at,
        // The report does not tell.
        database: None,
        coverage,
        found: found.collect(),
    })
}

impl Section {
    fn is_of_packages(&self) -> bool {
        let class = self.class.as_deref();
        class.is_some_and(|class| ["os-pkgs", "lang-pkgs"].contains(&class))
    }
}

impl From<Found> for Vulnerability {
    fn from(found: Found) -> Self {
        let severity = found.severity.as_deref();
        Self {
            id: found.id,
            aliases: Vec::new(),
            severity: Severity::by(["CRITICAL", "HIGH"], &["MEDIUM", "LOW"], severity),
            package: found.package.and_then(|one| one.purl),
        }
    }
}

const SCHEMA: u64 = 2;
