//! Bounds that may be set: whole numbers within a range.

use std::ops::RangeInclusive;

use postern_policies::{
    diagnostic::Problems,
    yaml::{Fields, Value},
};

/// One of them.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    pub(super) default: u32,
    pub(super) range: RangeInclusive<u32>,
    /// What it bounds, for who sets it wrongly.
    pub(super) why: &'static str,
}

impl Bound {
    /// What its section says, or the default. None where that is no such number.
    pub(super) fn read(
        &self,
        section: Option<&Fields<'_>>,
        problems: &mut Problems<'_>,
    ) -> Option<u32> {
        let Some(node) = section.and_then(|section| section.get(self.name)) else {
            return Some(self.default);
        };
        let found = match node.value {
            Value::Integer(number) => u32::try_from(number).ok(),
            _ => None,
        };
        let found = found.filter(|number| self.range.contains(number));
        if found.is_none() {
            let (first, last) = (self.range.start(), self.range.end());
            problems.error_with(
                node.at,
                format!(
                    "`{}.{}` is not from {first} to {last}",
                    self.section, self.name
                ),
                format!("{}; `{}` is the default", self.why, self.default),
            );
        }
        found
    }
}
