//! Exceptions: what its maker says of a vulnerability in an image (VEX). Pure.
//!
//! A statement is about one vulnerability in one image, named by its digest, and where it says so in some
//! packages of it alone. Of several statements the newest holds.
//!
//! Spec: OpenVEX 0.2.0; CycloneDX 1.4 and later, `vulnerabilities[].analysis`.

use std::{collections::HashMap, time::SystemTime};

use serde::Deserialize;

use super::{
    digest::Digest,
    document::{Refused, cut},
    package::is_of,
    report::{Vulnerability, instant},
};

/// What somebody says of a vulnerability in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// All names by which it is known.
    pub(super) names: Vec<String>,
    product: Digest,
    /// The packages of the image that it is about; none stands for all.
    packages: Vec<String>,
    /// Does it say that the vulnerability does no harm there?
    pub(super) excepts: bool,
    pub(super) at: SystemTime,
}

impl Statement {
    /// Is it about this package of an image of these digests?
    pub(super) fn is_about(&self, found: &Vulnerability, image: &[&Digest]) -> bool {
        let is_named = |package: &String| self.packages.iter().any(|own| is_of(package, own));
        // Where nobody knows the package, it may be the one that is said to be affected.
        let is_meant = found.package.as_ref().map_or(!self.excepts, is_named);
        image.contains(&&self.product) && (self.packages.is_empty() || is_meant)
    }
}

#[derive(Debug, Deserialize)]
struct OpenVex {
    #[serde(rename = "@context")]
    context: String,
    timestamp: Option<String>,
    statements: Vec<Said>,
}

#[derive(Debug, Deserialize)]
struct Said {
    vulnerability: Named,
    timestamp: Option<String>,
    products: Option<Vec<Product>>,
    status: String,
    justification: Option<String>,
    impact_statement: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    aliases: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Product {
    #[serde(flatten)]
    itself: Component,
    subcomponents: Option<Vec<Component>>,
}

#[derive(Debug, Deserialize)]
struct Component {
    #[serde(rename = "@id")]
    id: Option<String>,
    identifiers: Option<HashMap<String, String>>,
    hashes: Option<HashMap<String, String>>,
}

impl Component {
    fn names(&self) -> impl Iterator<Item = &str> {
        let identifiers = self.identifiers.as_ref();
        let purl = identifiers.and_then(|all| all.get("purl"));
        let all = [self.id.as_deref(), purl.map(String::as_str)];
        all.into_iter().flatten()
    }

    /// The digests by which it is named.
    fn digests(&self) -> impl Iterator<Item = Digest> {
        let hashes = self.hashes.iter().flatten();
        let hashes = hashes.filter(|(algorithm, _)| *algorithm == "sha-256");
        let hashes = hashes.filter_map(|(_, hex)| Digest::of_hex(hex));
        self.names().filter_map(Digest::in_reference).chain(hashes)
    }
}

/// Reads an OpenVEX document.
///
/// # Errors
/// [`Refused`]: a statement is none by the standard. One without its reason may be a slip.
pub(super) fn openvex(text: &[u8]) -> Result<Vec<Statement>, Refused> {
    let written: OpenVex = serde_json::from_slice(text)?;
    if !written.context.starts_with("https://openvex.dev/ns") {
        return Err(Refused::new(format!(
            "`@context` is `{}`, which is not OpenVEX's",
            cut(&written.context)
        )));
    }
    let mut all = Vec::new();
    for said in &written.statements {
        let name = cut(&said.vulnerability.name);
        let told = said.timestamp.as_deref().or(written.timestamp.as_deref());
        let at = instant(told).ok_or_else(|| {
            Refused::new(format!(
                "nobody knows when `{name}` was judged: no `timestamp`"
            ))
        })?;
        let excepts = excepts(said).map_err(|why| Refused::new(format!("`{name}`: {why}")))?;
        let aliases = said.vulnerability.aliases.iter().flatten();
        let names = std::iter::once(&said.vulnerability.name).chain(aliases);
        let names: Vec<String> = names.cloned().collect();
        if names.len() > MAX_NAMES {
            return Err(Refused::new(format!(
                "`{name}` has {} names, more than {MAX_NAMES}",
                names.len()
            )));
        }
        for product in said.products.iter().flatten() {
            let parts = product.subcomponents.iter().flatten();
            let packages: Vec<String> = parts
                .clone()
                .flat_map(Component::names)
                .map(str::to_owned)
                .collect();
            if packages.is_empty() && parts.count() > 0 {
                return Err(Refused::new(format!(
                    "`{name}`: a subcomponent has no `@id` and no `identifiers.purl`"
                )));
            }
            all.extend(product.itself.digests().map(|product| Statement {
                names: names.clone(),
                product,
                packages: packages.clone(),
                excepts,
                at,
            }));
        }
    }
    match all.is_empty() {
        true => Err(Refused::new(NO_PRODUCT)),
        false => Ok(all),
    }
}

/// Does a statement except? Spec: OpenVEX, "Status Labels" and "Status Justifications".
fn excepts(said: &Said) -> Result<bool, String> {
    let is_told = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.trim().is_empty());
    match said.status.as_str() {
        "fixed" => Ok(true),
        "affected" | "under_investigation" => Ok(false),
        "not_affected" => match said.justification.as_deref() {
            Some(word) if JUSTIFICATIONS.contains(&word) => Ok(true),
            Some(word) => Err(format!("`{}` is no justification of OpenVEX", cut(word))),
            None if is_told(&said.impact_statement) => Ok(true),
            None => {
                Err("`not_affected` needs a `justification` or an `impact_statement`".to_owned())
            }
        },
        other => Err(format!("`{}` is no status of OpenVEX", cut(other))),
    }
}

const JUSTIFICATIONS: [&str; 5] = [
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
];

#[derive(Debug, Deserialize)]
struct CycloneDx {
    #[serde(rename = "bomFormat")]
    format: String,
    metadata: Option<Metadata>,
    components: Option<Vec<BomComponent>>,
    vulnerabilities: Option<Vec<Judged>>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    timestamp: Option<String>,
    component: Option<BomComponent>,
}

#[derive(Debug, Deserialize)]
struct BomComponent {
    #[serde(rename = "bom-ref")]
    reference: Option<String>,
    purl: Option<String>,
    version: Option<String>,
    hashes: Option<Vec<Hash>>,
}

#[derive(Debug, Deserialize)]
struct Hash {
    alg: String,
    content: String,
}

impl BomComponent {
    /// The digests by which an image is named: in its package URL, as its version, or as its hash.
    fn digests(&self) -> Vec<Digest> {
        let purl = self.purl.as_deref().and_then(Digest::in_reference);
        let version = self.version.as_deref().and_then(Digest::parse);
        let hashes = self.hashes.iter().flatten();
        let hashes = hashes.filter(|hash| hash.alg == "SHA-256");
        let hashes = hashes.filter_map(|hash| Digest::of_hex(&hash.content));
        purl.into_iter().chain(version).chain(hashes).collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Judged {
    id: Option<String>,
    analysis: Option<Analysis>,
    affects: Option<Vec<Affected>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Analysis {
    state: Option<String>,
    justification: Option<String>,
    last_updated: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Affected {
    #[serde(rename = "ref")]
    reference: String,
}

/// Reads the analyses of a CycloneDX document. The image is its `metadata.component`; what `affects` names
/// is that, or a component of the same document.
///
/// # Errors
/// [`Refused`]: it is about no image, or an analysis is none by the standard.
pub(super) fn cyclonedx(text: &[u8]) -> Result<Vec<Statement>, Refused> {
    let written: CycloneDx = serde_json::from_slice(text)?;
    if written.format != "CycloneDX" {
        return Err(Refused::new("`bomFormat` is not `CycloneDX`"));
    }
    let (timestamp, image) = match written.metadata {
        Some(metadata) => (metadata.timestamp, metadata.component),
        None => (None, None),
    };
    let products = image.as_ref().map(BomComponent::digests);
    let products = products.filter(|all| !all.is_empty());
    let (Some(image), Some(products)) = (image.as_ref(), products) else {
        return Err(Refused::new(NO_COMPONENT));
    };
    let components = written.components.unwrap_or_default();
    let mut all = Vec::new();
    for judged in written.vulnerabilities.iter().flatten() {
        let (Some(id), Some(analysis)) = (&judged.id, &judged.analysis) else {
            continue;
        };
        let excepts =
            is_harmless(analysis).map_err(|why| Refused::new(format!("`{}`: {why}", cut(id))))?;
        let told = analysis.last_updated.as_deref().or(timestamp.as_deref());
        let at = instant(told).ok_or_else(|| {
            Refused::new(format!(
                "nobody knows when `{}` was judged: no `metadata.timestamp`",
                cut(id)
            ))
        })?;
        for affected in judged.affects.iter().flatten() {
            let packages = named(&affected.reference, image, &components)
                .map_err(|why| Refused::new(format!("`{}`: {why}", cut(id))))?;
            all.extend(products.iter().map(|product| Statement {
                names: vec![id.clone()],
                product: product.clone(),
                packages: packages.clone(),
                excepts,
                at,
            }));
        }
    }
    match all.is_empty() {
        true => Err(Refused::new(
            "it judges no vulnerability (`analysis`) of anything that it names (`affects`)",
        )),
        false => Ok(all),
    }
}

/// The packages that a reference stands for; none for the image itself.
fn named(
    reference: &str,
    image: &BomComponent,
    components: &[BomComponent],
) -> Result<Vec<String>, String> {
    if image.reference.as_deref() == Some(reference) {
        return Ok(Vec::new());
    }
    let mut all = components.iter();
    let found = all.find(|one| one.reference.as_deref() == Some(reference));
    let purl = found.and_then(|one| one.purl.clone());
    purl.map(|purl| vec![purl]).ok_or_else(|| {
        format!(
            "`affects` names `{}`, which is neither the document's image nor a component of it with a \
             `purl`",
            cut(reference)
        )
    })
}

/// Spec: CycloneDX, `impactAnalysisState` and `impactAnalysisJustification`.
fn is_harmless(analysis: &Analysis) -> Result<bool, String> {
    match analysis.state.as_deref() {
        Some("resolved" | "resolved_with_pedigree") => Ok(true),
        // That a scanner is wrong is no statement on the image.
        Some("exploitable" | "in_triage" | "false_positive") => Ok(false),
        Some("not_affected") => match analysis.justification.as_deref() {
            Some(word) if CYCLONEDX_JUSTIFICATIONS.contains(&word) => Ok(true),
            Some(word) => Err(format!("`{}` is no justification of CycloneDX", cut(word))),
            None => Err("`not_affected` needs a `justification`".to_owned()),
        },
        Some(other) => Err(format!("`{}` is no state of CycloneDX", cut(other))),
        None => Err("`analysis` has no `state`".to_owned()),
    }
}

const CYCLONEDX_JUSTIFICATIONS: [&str; 9] = [
    "code_not_present",
    "code_not_reachable",
    "requires_configuration",
    "requires_dependency",
    "requires_environment",
    "protected_by_compiler",
    "protected_at_runtime",
    "protected_at_perimeter",
    "protected_by_mitigating_control",
];

/// No vulnerability is known by more names. Each is kept for each product.
const MAX_NAMES: usize = 64;

const NO_PRODUCT: &str = "no statement names an image by its digest; write products as \
     `{\"@id\": \"pkg:oci/NAME@sha256%3A…\"}`";

const NO_COMPONENT: &str = "its `metadata.component` names no image by its digest; give it \
     `purl: pkg:oci/NAME@sha256%3A…`";

#[cfg(test)]
mod tests;
