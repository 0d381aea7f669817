//! What was found out about one layer, and what would mend it.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::rules::{Bundle, Rule};

/// How a layer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It isolates.
    Pass,
    /// It does not.
    Fail,
    /// Nobody could tell. Never counts as a pass.
    Unknown,
    /// There is nothing here that it could be asked about.
    NotApplicable,
}

impl Outcome {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
            Self::NotApplicable => "not-applicable",
        }
    }
}

/// How a layer stands, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) why: Cow<'static, str>,
}

impl Verdict {
    pub(super) fn pass(why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Outcome::Pass, why)
    }

    pub(super) fn fail(why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Outcome::Fail, why)
    }

    pub(super) fn unknown(why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Outcome::Unknown, why)
    }

    /// A pass, or a fail for this reason.
    pub(super) fn of(
        is_met: bool,
        met: &'static str,
        unmet: impl FnOnce() -> Cow<'static, str>,
    ) -> Self {
        match is_met {
            true => Self::pass(met),
            false => Self::fail(unmet()),
        }
    }

    fn new(outcome: Outcome, why: impl Into<Cow<'static, str>>) -> Self {
        let why = why.into();
        Self { outcome, why }
    }

    pub(super) fn is_pass(&self) -> bool {
        self.outcome == Outcome::Pass
    }
}

/// What was found out about one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    rule: &'static Rule,
    /// How it stands.
    pub outcome: Outcome,
    /// Why, for people.
    pub why: Cow<'static, str>,
    /// Does it count for the bundles that its rule is in?
    counts: bool,
}

impl Finding {
    pub(super) fn new(rule: &'static Rule, verdict: Verdict) -> Self {
        Self {
            rule,
            outcome: verdict.outcome,
            why: verdict.why,
            counts: true,
        }
    }

    /// The rule holds only where the kernel has what it asks for, which this one has not.
    pub(super) fn without_weight(mut self) -> Self {
        self.counts = false;
        self
    }

    /// Of the image that a process was started from.
    pub fn of_image(outcome: Outcome, why: String) -> Self {
        let why = why.into();
        Self::new(&super::rules::IMAGE, Verdict { outcome, why })
    }

    /// Of all processes of a pod.
    pub(super) fn of_pod(verdict: Verdict) -> Self {
        Self::new(&super::rules::POD, verdict)
    }

    /// The layer's name.
    pub fn layer(&self) -> &'static str {
        self.rule.layer
    }

    /// Docker's flag, the key of Compose and the field of Kubernetes that would mend it.
    pub fn mend(&self) -> String {
        self.rule.mend()
    }

    /// In which bundles it is.
    pub(super) fn bundle(&self) -> Bundle {
        match self.counts {
            true => self.rule.bundle,
            false => Bundle::Neither,
        }
    }

    /// The selector that a pass states, after the type.
    pub(super) fn selector(&self) -> Option<&'static str> {
        let selector = self.rule.selector;
        (self.outcome == Outcome::Pass && !selector.is_empty()).then_some(selector)
    }

    /// Does it stand in the way of what this selector states, given after its type?
    fn hinders(&self, selector: &str) -> bool {
        let is_met = self.outcome == Outcome::Pass;
        !is_met
            && match selector {
                "baseline" => self.bundle() == Bundle::Baseline,
                "restricted" => self.bundle() != Bundle::Neither,
                other => self.rule.is_about(other),
            }
    }

    /// As programs read it.
    pub fn to_json(&self) -> Value {
        json!({
            "layer": self.layer(),
            "status": self.outcome.name(),
            "why": self.why,
            "mend": self.mend(),
        })
    }
}

/// Why a process lacks a selector, by what was found out; none where nothing was.
pub fn why_lacking<'f>(
    findings: impl Iterator<Item = &'f Finding>,
    kind: &str,
    value: &str,
) -> Option<String> {
    let hinders = |finding: &&Finding| match kind {
        "posture" => finding.hinders(value),
        "pod" => finding.layer() == super::rules::POD.layer && finding.outcome != Outcome::Pass,
        _ => false,
    };
    let all = findings.filter(hinders);
    let all: Vec<String> = all
        .map(|one| match one.outcome {
            Outcome::Unknown => format!("{} is unknown: {}", one.layer(), one.why),
            _ => format!("{}: {}", one.layer(), one.why),
        })
        .collect();
    (!all.is_empty()).then(|| all.join("; "))
}
