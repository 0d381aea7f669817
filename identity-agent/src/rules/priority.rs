//! The priorities of rules, in Falco's words.

/// How bad it is when a rule hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the priority of Falco of this name")]
pub enum Priority {
    Emergency,
    Alert,
    Critical,
    Error,
    Warning,
    Notice,
    Informational,
    Debug,
}

impl Priority {
    /// As Falco prints it.
    pub fn as_str(self) -> &'static str {
        PRIORITIES
            .iter()
            .find_map(|(name, one)| (*one == self).then_some(*name))
            .unwrap_or_default()
    }

    pub(super) fn of(text: &str) -> Option<Self> {
        let mut all = PRIORITIES.iter().chain(&[("Info", Self::Informational)]);
        all.find_map(|(name, one)| name.eq_ignore_ascii_case(text).then_some(*one))
    }

    /// All names, the worst first.
    pub(super) fn names() -> Vec<&'static str> {
        PRIORITIES.iter().map(|(name, _)| *name).collect()
    }
}

const PRIORITIES: [(&str, Priority); 8] = [
    ("Emergency", Priority::Emergency),
    ("Alert", Priority::Alert),
    ("Critical", Priority::Critical),
    ("Error", Priority::Error),
    ("Warning", Priority::Warning),
    ("Notice", Priority::Notice),
    ("Informational", Priority::Informational),
    ("Debug", Priority::Debug),
];
