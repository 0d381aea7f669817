//! The `image` attestor: what scanners found in the image that a container was started from, and who signed
//! it.
//!
//! The image is known by its digest, by the word of the Docker Engine or of the kubelet, and never by a
//! name. What is known of images lies in a folder, which is read whenever it changes; how old it is counts
//! anew at each look. `document` tells the forms of files, `report` and `vex` what scanners and makers say,
//! `signature` who signed; `judge` decides, and only `folder` opens files.

mod digest;
mod document;
#[cfg(test)]
mod fixtures;
mod folder;
mod judge;
mod package;
mod report;
mod signature;
mod vex;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;

use super::{
    Asked, AttestFailed, Attestor, Finding as AnyFinding, Subject, docker::Docker,
    kubernetes::Kubernetes,
};
use crate::config::ImageEvidence;
use folder::Folder;
use judge::{About, Clock, Evidence, judge};

pub use digest::Digest;
pub use judge::{Finding, RunningImage};

pub(crate) use folder::Looks;
pub(crate) use judge::why_lacking;

/// States `image:` selectors.
#[derive(Debug)]
pub struct Images {
    config: ImageEvidence,
    docker: Option<Arc<Docker>>,
    kubernetes: Option<Arc<Kubernetes>>,
    folder: Mutex<Folder>,
    /// What was told of files that give nothing, so that it is told once.
    told: Mutex<BTreeMap<PathBuf, String>>,
    evidence: ArcSwap<Evidence>,
    /// Rises whenever there is other evidence.
    edition: AtomicU64,
    /// The largest number of vulnerabilities that any Workload asks for.
    asked: AtomicUsize,
}

impl Images {
    /// By what these know of the images of containers. Reads the folder for the first time.
    pub(super) fn new(
        config: ImageEvidence,
        docker: Option<Arc<Docker>>,
        kubernetes: Option<Arc<Kubernetes>>,
    ) -> Self {
        let images = Self {
            folder: Mutex::new(Folder::of(config.clone())),
            config,
            docker,
            kubernetes,
            told: Mutex::default(),
            evidence: ArcSwap::default(),
            edition: AtomicU64::new(0),
            asked: AtomicUsize::new(0),
        };
        images.read();
        images
    }

    /// What the folder and the keys look like from outside.
    pub(crate) fn looks(&self) -> Looks {
        folder::looks(&self.config)
    }

    /// Reads what has changed in the folder.
    pub(crate) fn read(&self) {
        let mut folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut useless = BTreeMap::new();
        let evidence = folder.read(&mut |path: &Path, why: &str| {
            if told.get(path).is_none_or(|known| known != why) {
                let path = path.display();
                tracing::warn!(%path, why, "a file of image evidence gives nothing");
            }
            useless.insert(path.to_owned(), why.to_owned());
        });
        *told = useless;
        self.evidence.store(Arc::new(evidence));
        // Whoever is looked at from here on is looked at with it.
        self.edition.fetch_add(1, Ordering::SeqCst);
    }

    /// The number of the evidence in force.
    pub(super) fn edition(&self) -> u64 {
        self.edition.load(Ordering::SeqCst)
    }

    /// The image of the container that a process is in; none for one that is in none.
    fn image(&self, subject: &Subject<'_>) -> Result<Option<RunningImage>, AttestFailed> {
        if let Some(kubernetes) = &self.kubernetes
            && let Some(image) = kubernetes.image(subject)?
        {
            return Ok(Some(image));
        }
        match &self.docker {
            Some(docker) => docker.image(subject),
            None => Ok(None),
        }
    }
}

impl Attestor for Arc<Images> {
    fn kind(&self) -> &'static str {
        "image"
    }

    fn asked(&self, asked: &Asked) {
        self.asked.store(asked.vulnerabilities, Ordering::Relaxed);
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        self.examine(subject, add, &mut |_| ())
    }

    fn examine(
        &self,
        subject: &Subject<'_>,
        add: &mut dyn FnMut(&str),
        find: &mut dyn FnMut(AnyFinding),
    ) -> Result<(), AttestFailed> {
        let Some(image) = self.image(subject)? else {
            let none = "it is in no container that the engine or the kubelet knows";
            find(AnyFinding::Image(Finding::new(About::Everything, none)));
            return Ok(());
        };
        let clock = Clock {
            now: SystemTime::now(),
            max_age: self.config.max_age,
        };
        let judgement = judge(&self.evidence.load(), &image, clock);
        for digest in image.digests() {
            add(&format!("digest:{digest}"));
        }
        if let Some(counts) = judgement.counts {
            add("scanned");
            let asked = self.asked.load(Ordering::Relaxed);
            for (word, number) in [("critical", counts.critical), ("high", counts.high)] {
                // At most so many: true of every larger number that is asked for too.
                for number in number..=number.max(asked) {
                    add(&format!("{word}:{number}"));
                }
            }
        }
        for key in &judgement.signed {
            add(&format!("signed:{key}"));
        }
        let findings = judgement.findings.into_iter();
        findings.map(AnyFinding::Image).for_each(find);
        Ok(())
    }
}

/// The number that a selector asks for, if it is one of those that have one.
pub(super) fn asked_number(selector: &str) -> Option<usize> {
    let value = selector.strip_prefix("image:")?;
    let number = value
        .strip_prefix("critical:")
        .or_else(|| value.strip_prefix("high:"))?;
    // One spelling alone is ever stated.
    let parsed: usize = number.parse().ok()?;
    (parsed <= MAX_ASKED && parsed.to_string() == number).then_some(parsed)
}

/// Whoever asks for a larger number asks for nothing.
const MAX_ASKED: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::asked_number;

    #[test]
    fn a_number_that_is_asked_for_has_one_spelling_and_a_bound() {
        for (selector, expected) in [
            ("image:critical:0", Some(0)),
            ("image:high:12", Some(12)),
            ("image:high:1000", Some(1000)),
            ("image:high:1001", None),
            ("image:high:012", None),
            ("image:high:+1", None),
            ("image:high:-1", None),
            ("image:high:99999999999999999999999", None),
            ("image:medium:1", None),
            ("docker:label:critical:1", None),
        ] {
            assert_eq!(asked_number(selector), expected, "{selector}");
        }
    }
}
