//! `grype IMAGE --output json`. Spec: Grype, JSON presenter.

use serde::Deserialize;
use serde_json::Value;

use super::{Report, ScannedImage, Scanner, Severity, Vulnerability, instant};
use crate::attest::image::{digest::Digest, document::Refused};

#[derive(Debug, Deserialize)]
struct Written {
    matches: Vec<Match>,
    source: Option<Source>,
    distro: Option<Distro>,
    descriptor: Descriptor,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Match {
    vulnerability: Rated,
    related_vulnerabilities: Option<Vec<Named>>,
    artifact: Option<Artifact>,
}

#[derive(Debug, Deserialize)]
struct Rated {
    id: String,
    severity: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Named {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Artifact {
    purl: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Source {
    #[serde(rename = "type")]
    kind: String,
    /// Of a folder it is a text.
    target: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    #[serde(rename = "imageID")]
    image_id: Option<String>,
    manifest_digest: Option<String>,
    repo_digests: Option<Vec<String>>,
    architecture: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Distro {
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    name: String,
    timestamp: Option<String>,
    db: Option<Database>,
}

/// Up to version 5 of the database it says itself when it was built, later its status does.
#[derive(Debug, Deserialize)]
struct Database {
    built: Option<String>,
    status: Option<Status>,
}

#[derive(Debug, Deserialize)]
struct Status {
    built: Option<String>,
}

/// Reads one.
///
/// # Errors
/// [`Refused`]: it says too little to be believed.
pub(in crate::attest::image) fn grype(text: &[u8]) -> Result<Report, Refused> {
    let written: Written = serde_json::from_slice(text)?;
    let descriptor = written.descriptor;
    if descriptor.name != "grype" {
        return Err(Refused::new(format!(
            "it looks like Grype's and says that it is of `{}`",
            super::super::document::cut(&descriptor.name)
        )));
    }
    let target = match written.source {
        Some(Source {
            kind,
            target: Some(target),
        }) if kind == "image" => serde_json::from_value::<Target>(target)?,
        _ => {
            return Err(Refused::new(
                "it is no report on an image; make it with `grype IMAGE --output json`",
            ));
        }
    };
    let at = instant(descriptor.timestamp.as_deref()).ok_or_else(|| {
        Refused::new(
            "it does not say when it was made (`descriptor.timestamp`); do not leave it out",
        )
    })?;
    let database = descriptor.db.and_then(|db| {
        let status = db.status.and_then(|status| status.built);
        instant(status.or(db.built).as_deref())
    });
    if database.is_none() {
        return Err(Refused::new(
            "it does not say when its database was built (`descriptor.db`); make it with a newer Grype",
        ));
    }
    let is_known = written.distro.and_then(|distro| distro.name);
    let is_known = is_known.is_some_and(|name| !name.is_empty());
    let coverage = match is_known || !written.matches.is_empty() {
        true => Ok(()),
        false => Err(
            "Grype names no distribution and found nothing, so nobody knows whether it looked at \
             anything; scan with Trivy, which lists what it looked at",
        ),
    };
    let found = written.matches.into_iter().map(Vulnerability::from);
    let manifest = target.manifest_digest.as_deref().and_then(Digest::parse);
    let references = target.repo_digests.unwrap_or_default();
    let references = references
        .iter()
        .filter_map(|one| Digest::in_reference(one));
    Ok(Report {
        scanner: Scanner::Grype,
        scanned: ScannedImage {
            config: target.image_id.as_deref().and_then(Digest::parse),
            manifests: manifest.into_iter().chain(references).collect(),
            architecture: target.architecture.filter(|name| !name.is_empty()),
        },
        at,
        database,
        coverage,
        found: found.filter(|one| !one.severity.is_low()).collect(),
    })
}

impl From<Match> for Vulnerability {
    fn from(found: Match) -> Self {
        let severity = found.vulnerability.severity.as_deref();
        let related = found.related_vulnerabilities.unwrap_or_default();
        Self {
            id: found.vulnerability.id,
            aliases: related.into_iter().map(|one| one.id).collect(),
            severity: Severity::by(
                ["Critical", "High"],
                &["Medium", "Low", "Negligible"],
                severity,
            ),
            package: found.artifact.and_then(|one| one.purl),
        }
    }
}
