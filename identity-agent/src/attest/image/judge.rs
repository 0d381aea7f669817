//! What the evidence says of the image of a container at a moment. Pure.
//!
//! Of each scanner its newest report on the image counts, and no older one where that cannot be used; of
//! several scanners the worst. What is not known makes no selector.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, SystemTime},
};

use super::{
    digest::Digest,
    document::Document,
    report::{Report, ScannedImage, Scanner, Severity, Vulnerability},
    signature::Signed,
    vex::Statement,
};

/// All that is known of images, from one reading of the folder.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub(super) reports: Vec<Named<Report>>,
    /// By each name of the vulnerability that they are about.
    pub(super) statements: HashMap<String, Vec<Statement>>,
    pub(super) signatures: Vec<Named<Signature>>,
    /// Files that give nothing to anybody, and why.
    pub(super) without_effect: Vec<Named<String>>,
    /// Keys that cannot be used, and why.
    pub(super) useless_keys: Vec<Named<String>>,
}

/// Something of a file, with the file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named<T> {
    pub(super) file: String,
    pub(super) value: T,
}

/// A signature, and which of the configured keys made it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signature {
    pub(super) manifest: Digest,
    pub(super) keys: BTreeSet<String>,
}

impl Evidence {
    /// Takes in what a file says. `keys` tells the names of the keys that made a signature.
    pub(super) fn add(
        &mut self,
        file: &str,
        document: Document,
        keys: impl Fn(&Signed) -> BTreeSet<String>,
    ) {
        let named = |value| Named {
            file: file.to_owned(),
            value,
        };
        match document {
            Document::Report(value) => self.reports.push(Named {
                file: file.to_owned(),
                value,
            }),
            Document::Exceptions(all) => {
                for one in all {
                    for name in &one.names {
                        let own = self.statements.entry(name.clone()).or_default();
                        own.push(one.clone());
                    }
                }
            }
            Document::Signatures(all) => self.signatures.extend(all.iter().map(|one| Named {
                file: file.to_owned(),
                value: Signature {
                    manifest: one.manifest.clone(),
                    keys: keys(one),
                },
            })),
            Document::Information(why) => self.without_effect.push(named(why.to_owned())),
        }
    }
}

/// The image that a container was started from, by the word of its engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunningImage {
    /// The digest of its configuration, where the engine tells it.
    pub(super) config: Option<Digest>,
    /// The digests of its manifest and of indexes that it is in: none of an image that was never in a
    /// registry.
    pub(super) manifests: Vec<Digest>,
}

impl RunningImage {
    /// By the ID that an engine has for it, and the references by which it knows it in registries. Where
    /// the ID is the digest of a manifest, as in containerd's store, that of the configuration is not told.
    pub(crate) fn of(id: &str, references: &[String]) -> Self {
        let references = references.iter();
        let manifests: Vec<Digest> = references
            .filter_map(|one| Digest::in_reference(one))
            .collect();
        let config = Digest::parse(id).filter(|id| !manifests.contains(id));
        Self { config, manifests }
    }

    pub(super) fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.config.iter().chain(&self.manifests)
    }

    /// Is a report about this image? An index stands for images of several machines, so where both sides
    /// tell the configuration that decides, and elsewhere the report must not name another machine.
    fn is(&self, scanned: &ScannedImage) -> bool {
        if let (Some(own), Some(other)) = (&self.config, &scanned.config) {
            return own == other;
        }
        let other = scanned.config.iter().chain(&scanned.manifests);
        let is_of_here = scanned.architecture.as_deref().is_none_or(is_here);
        is_of_here
            && self
                .digests()
                .any(|own| other.clone().any(|one| one == own))
    }

    fn shown(&self) -> String {
        let digest = self.digests().next();
        digest.map_or_else(|| "no digest".to_owned(), ToString::to_string)
    }
}

/// Does this machine run what is made for an architecture, as Go names it?
fn is_here(architecture: &str) -> bool {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    architecture == own
}

/// What is known of an image, and why not more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judgement {
    /// What the worst of its scanners says; none where no report can be used.
    pub(super) counts: Option<Counts>,
    /// The names of the keys that signed it.
    pub(super) signed: BTreeSet<String>,
    pub(super) findings: Vec<Finding>,
}

/// How many vulnerabilities there are that nothing excepts, each once however many packages have it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) critical: usize,
    pub(super) high: usize,
}

/// Something that stands in the way of a selector, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub(super) about: About,
    pub(super) why: String,
}

/// Which selectors a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// All.
    Everything,
    /// Those of scans.
    Scan,
    Critical,
    High,
    Signature,
}

impl Finding {
    pub(super) fn new(about: About, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { about, why }
    }

    /// Does it stand in the way of this selector, given after its type?
    fn hinders(&self, selector: &str) -> bool {
        let (kind, _) = selector.split_once(':').unwrap_or((selector, ""));
        match self.about {
            About::Everything => true,
            About::Scan => ["scanned", "critical", "high"].contains(&kind),
            About::Critical => kind == "critical",
            About::High => kind == "high",
            About::Signature => kind == "signed",
        }
    }
}

/// Why an image lacks a selector, by what was found out.
pub(crate) fn why_lacking<'f>(
    findings: impl Iterator<Item = &'f Finding>,
    selector: &str,
) -> Option<String> {
    let all: Vec<&str> = findings
        .filter(|one| one.hinders(selector))
        .map(|one| one.why.as_str())
        .collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// How old evidence may be, and what time it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) now: SystemTime,
    pub(super) max_age: Duration,
}

impl Clock {
    /// Was something made at a time that still counts?
    ///
    /// # Errors
    /// Why not, behind the name of what was made.
    fn check(&self, at: SystemTime, mend: &str) -> Result<(), String> {
        let Ok(age) = self.now.duration_since(at) else {
            return match at.duration_since(self.now) {
                Ok(ahead) if ahead > SKEW => Err(format!(
                    "is from the future, by {}; set the clocks, and {mend}",
                    shown(ahead)
                )),
                _ => Ok(()),
            };
        };
        match age > self.max_age {
            true => Err(format!(
                "is too old: {} of at most {} (`image.maxAge`); {mend}",
                shown(age),
                shown(self.max_age)
            )),
            false => Ok(()),
        }
    }
}

/// Judges an image.
pub(super) fn judge(evidence: &Evidence, image: &RunningImage, clock: Clock) -> Judgement {
    let mut judgement = Judgement::default();
    let reports = evidence.reports.iter();
    let of_others = reports.clone().filter(|one| !image.is(&one.value.scanned));
    let own: Vec<&Named<Report>> = reports.filter(|one| image.is(&one.value.scanned)).collect();
    for scanner in Scanner::ALL {
        let all = own.iter().filter(|one| one.value.scanner == scanner);
        let Some(newest) = all.clone().map(|one| one.value.at).max() else {
            continue;
        };
        let (usable, useless): (Vec<_>, Vec<_>) = all
            .filter(|one| one.value.at == newest)
            .map(|one| check(one, clock).map(|()| *one))
            .partition(Result::is_ok);
        let useless: Vec<String> = useless.into_iter().filter_map(Result::err).collect();
        // Of several at once that cannot be told apart each must be good.
        if useless.is_empty() {
            for report in usable.into_iter().flatten() {
                judgement.add(report, evidence, image, clock);
            }
        }
        let useless = useless
            .into_iter()
            .map(|why| Finding::new(About::Scan, why));
        judgement.findings.extend(useless);
    }
    if own.is_empty() {
        let others = list(of_others.map(|one| one.file.as_str()));
        let mut why = format!("no report is on {}", image.shown());
        if !others.is_empty() {
            why.push_str(&format!(", but on other images: {others}"));
        }
        let why = why + &useless(&evidence.without_effect);
        let why = format!("{why}; scan it by its digest and put the report into `image.directory`");
        judgement.findings.push(Finding::new(About::Scan, why));
    }
    add_signatures(&mut judgement, evidence, image);
    judgement
}

/// Can a report be used?
///
/// # Errors
/// Why not, and what mends it.
fn check(report: &Named<Report>, clock: Clock) -> Result<(), String> {
    let Named { file, value } = report;
    let scanner = value.scanner;
    clock
        .check(value.at, "scan the image again")
        .map_err(|why| format!("`{file}` of {scanner} {why}"))?;
    if let Some(at) = value.database {
        clock
            .check(at, "update it and scan again")
            .map_err(|why| format!("the database of {scanner} for `{file}` {why}"))?;
    }
    value.coverage.map_err(|why| format!("`{file}`: {why}"))
}

impl Judgement {
    /// Takes in a report that can be used.
    fn add(
        &mut self,
        report: &Named<Report>,
        evidence: &Evidence,
        image: &RunningImage,
        clock: Clock,
    ) {
        let Named { file, value } = report;
        let scanner = value.scanner;
        let digests: Vec<&Digest> = image.digests().collect();
        let left = value.found.iter();
        let left = left.filter(|one| !is_excepted(one, &evidence.statements, &digests, clock.now));
        let left: Vec<&Vulnerability> = left.collect();
        let rated = |wanted: Severity| {
            let all = left.iter();
            let all = all.filter(|one| one.severity == wanted || one.severity == Severity::Unknown);
            all.map(|one| one.id.as_str()).collect::<BTreeSet<&str>>()
        };
        let (critical, high) = (rated(Severity::Critical), rated(Severity::High));
        for (about, word, ids) in [
            (About::Critical, "critical", &critical),
            (About::High, "high", &high),
        ] {
            if !ids.is_empty() {
                let number = ids.len();
                let names = list(ids.iter().copied());
                let why = format!(
                    "`{file}` of {scanner} rates {number} {word} or not at all: {names}; mend them, or \
                     except what does no harm with VEX"
                );
                self.findings.push(Finding::new(about, why));
            }
        }
        let counts = self.counts.get_or_insert_default();
        counts.critical = counts.critical.max(critical.len());
        counts.high = counts.high.max(high.len());
    }
}

/// Does the newest of the statements on a vulnerability say that it does no harm? Of two that were made at
/// once the one that says so does not hold. Where others know it by several names, every one of them must
/// be excepted.
fn is_excepted(
    found: &Vulnerability,
    statements: &HashMap<String, Vec<Statement>>,
    image: &[&Digest],
    now: SystemTime,
) -> bool {
    let by = |name: &str| {
        let about = statements.get(name).into_iter().flatten();
        let about = about.filter(|one| one.is_about(found, image));
        let newest = about.max_by_key(|one| (one.at, !one.excepts));
        newest.map(|one| one.excepts && one.at <= now + SKEW)
    };
    match by(&found.id) {
        // By another name it may have been taken back.
        Some(excepted) => excepted && found.aliases.iter().all(|name| by(name) != Some(false)),
        None => {
            let mut aliases = found.aliases.iter();
            !found.aliases.is_empty() && aliases.all(|name| by(name) == Some(true))
        }
    }
}

fn add_signatures(judgement: &mut Judgement, evidence: &Evidence, image: &RunningImage) {
    let own = evidence.signatures.iter();
    let own = own.filter(|one| image.manifests.contains(&one.value.manifest));
    let mut files = BTreeSet::new();
    for one in own {
        files.insert(one.file.as_str());
        judgement.signed.extend(one.value.keys.iter().cloned());
    }
    let why = if image.manifests.is_empty() {
        format!(
            "the engine knows no digest of a manifest of {}, as of an image that was built here or \
             imported; push it to a registry, sign it there, and run it by its digest",
            image.shown()
        )
    } else if files.is_empty() {
        format!(
            "no signature is on {}; put what `cosign download signature` writes into `image.directory`",
            list(image.manifests.iter().map(Digest::as_str))
        )
    } else {
        let signed = judgement.signed.iter().map(String::as_str);
        let signed = match judgement.signed.is_empty() {
            true => "by no key of `image.keys`".to_owned(),
            false => format!("by {} alone", list(signed)),
        };
        format!("{} is signed {signed}", list(files.into_iter()))
    };
    let why = why + &useless(&evidence.useless_keys);
    judgement.findings.push(Finding::new(About::Signature, why));
}

/// The first of what cannot be used, for people.
fn useless(all: &[Named<String>]) -> String {
    let shown = all.iter().take(SHOWN);
    let shown = shown.map(|one| format!("; `{}`: {}", one.file, one.value));
    let more = all.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("; and {more} more that cannot be used"));
    shown.chain(more).collect()
}

/// Some of many, for people.
fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let mut names = names.map(|name| format!("`{name}`"));
    let mut shown: Vec<String> = names.by_ref().take(SHOWN).collect();
    let more = names.count();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown.join(", ")
}

/// A duration as it is configured, in its two largest units.
fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, name) in units {
        let number = rest / size;
        rest %= size;
        if number > 0 {
            parts.push(format!("{number}{name}"));
        }
    }
    parts.truncate(2);
    match parts.is_empty() {
        true => "0s".to_owned(),
        false => parts.concat(),
    }
}

/// How far the clock of whoever made something may be ahead.
const SKEW: Duration = Duration::from_secs(60);

const SHOWN: usize = 3;

#[cfg(test)]
mod tests;
