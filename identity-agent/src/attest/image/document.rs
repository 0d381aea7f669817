//! Which form a file has, and what it says. Pure.
//!
//! A file is of exactly one form. What fits to several could be read as one thing here and as another by
//! whoever made it, so it is refused, like what fits to none.

use std::time::SystemTime;

use serde::{Deserialize, de::IgnoredAny};

use super::{
    report::{self, Report},
    signature::{self, Signed},
    vex::{self, Statement},
};

/// What a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Document {
    Report(Report),
    Exceptions(Vec<Statement>),
    Signatures(Vec<Signed>),
    /// It is in order and says nothing that decides.
    Information(&'static str),
}

/// Why a file says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

impl Refused {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl From<serde_json::Error> for Refused {
    fn from(error: serde_json::Error) -> Self {
        // What is quoted of the file may be as long as the file.
        Self(format!("it cannot be read: {}", cut(&error.to_string())))
    }
}

/// The keys by which the forms are told from each other, each at the top.
#[derive(Debug, Default, Deserialize)]
struct Marks {
    #[serde(rename = "SchemaVersion")]
    trivy: Option<IgnoredAny>,
    #[serde(rename = "matches")]
    grype: Option<IgnoredAny>,
    #[serde(rename = "manifest_hash")]
    clair: Option<IgnoredAny>,
    #[serde(rename = "projectName")]
    snyk: Option<IgnoredAny>,
    #[serde(rename = "@context")]
    openvex: Option<IgnoredAny>,
    #[serde(rename = "bomFormat")]
    cyclonedx: Option<IgnoredAny>,
    #[serde(rename = "Base64Signature")]
    cosign: Option<IgnoredAny>,
    #[serde(rename = "verificationMaterial")]
    bundle: Option<IgnoredAny>,
    #[serde(rename = "runs")]
    sarif: Option<IgnoredAny>,
    #[serde(rename = "spdxVersion")]
    spdx: Option<IgnoredAny>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Trivy,
    Grype,
    Clair,
    Snyk,
    OpenVex,
    CycloneDx,
    Signatures,
    Sarif,
    Spdx,
}

impl Marks {
    fn form(&self) -> Result<Form, Refused> {
        let marks = [
            (&self.trivy, Form::Trivy),
            (&self.grype, Form::Grype),
            (&self.clair, Form::Clair),
            (&self.snyk, Form::Snyk),
            (&self.openvex, Form::OpenVex),
            (&self.cyclonedx, Form::CycloneDx),
            (&self.cosign, Form::Signatures),
            (&self.bundle, Form::Signatures),
            (&self.sarif, Form::Sarif),
            (&self.spdx, Form::Spdx),
        ];
        let mut forms = marks
            .into_iter()
            .filter_map(|(mark, form)| mark.as_ref().map(|_| form));
        match (forms.next(), forms.next()) {
            (Some(form), None) => Ok(form),
            (None, _) => Err(Refused::new(
                "it is of no form that is known: a report of Trivy, Grype, Clair or Snyk in JSON, \
                 OpenVEX, CycloneDX, or signatures of cosign",
            )),
            (Some(_), Some(_)) => Err(Refused::new("it could be read as several forms")),
        }
    }
}

/// Reads a file. `written_at` is when it was written, for forms that have no time of their own.
///
/// # Errors
/// [`Refused`], for people: it gives nothing.
pub(super) fn read(text: &[u8], written_at: SystemTime) -> Result<Document, Refused> {
    // Read by its own type below, which is a list of what Snyk found, or nothing.
    let form = match is_list(text) {
        true => Form::Snyk,
        false => form(text)?,
    };
    Ok(match form {
        Form::Trivy => Document::Report(report::trivy(text)?),
        Form::Grype => Document::Report(report::grype(text)?),
        Form::Clair => Document::Report(report::clair(text, written_at)?),
        Form::Snyk => Document::Report(report::snyk(text, written_at)?),
        Form::OpenVex => Document::Exceptions(vex::openvex(text)?),
        Form::CycloneDx => Document::Exceptions(vex::cyclonedx(text)?),
        Form::Signatures => Document::Signatures(signature::read(text)?),
        Form::Sarif => {
            serde_json::from_slice::<IgnoredAny>(text)?;
            Document::Information(
                "it is SARIF, which names no image by its digest; write the scanner's own JSON beside it",
            )
        }
        Form::Spdx => {
            serde_json::from_slice::<IgnoredAny>(text)?;
            Document::Information(
                "it is a list of packages (SPDX), which says nothing of vulnerabilities; scan the image",
            )
        }
    })
}

/// By the first value of the file: there are several where somebody made several signatures.
fn form(text: &[u8]) -> Result<Form, Refused> {
    if first_byte(text) != Some(b'{') {
        return Err(Refused::new("it is no JSON object"));
    }
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Marks>();
    let marks = values.next().transpose()?;
    marks.unwrap_or_default().form()
}

/// Is the whole text a list? A struct may be written as one, and none is here.
pub(super) fn is_list(text: &[u8]) -> bool {
    first_byte(text) == Some(b'[')
}

fn first_byte(text: &[u8]) -> Option<u8> {
    let mut bytes = text.iter().copied();
    bytes.find(|byte| !byte.is_ascii_whitespace())
}

/// A part of a file for a line of the log.
pub(super) fn cut(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .filter(|one| !one.is_control())
        .take(SHOWN)
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

const SHOWN: usize = 160;

#[cfg(test)]
mod tests;
