//! Selectors: true statements about a process, such as `unix:uid:1000`.
//!
//! An attestor makes them, a Workload lists those that a process must all have. The spelling is
//! SPIRE's wherever SPIRE has one: the text before the first colon is the type, all after it the
//! value, which may hold colons itself.

use std::{fmt, str::FromStr, sync::Arc};

/// One selector, `type:value`. Neither part is ever empty: an empty value would match everyone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    text: Arc<str>,
    colon: usize,
}

impl Selector {
    /// The longest selector that is accepted, in bytes.
    pub const MAX_BYTES: usize = 4096;

    /// Reads a selector.
    ///
    /// # Errors
    /// When there is no colon, one of the parts is empty, the type holds anything but lower-case
    /// letters, digits, `_` and `-`, the text holds a control character or is too long.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > Self::MAX_BYTES {
            return Err(SelectorError::TooLong { bytes: text.len() });
        }
        let (kind, value) = text.split_once(':').ok_or(SelectorError::NoColon)?;
        let is_kind_char = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-');
        if kind.is_empty() || !kind.chars().all(is_kind_char) {
            return Err(SelectorError::Type);
        }
        // `unix:uid:` names a property and then says nothing about it.
        if value.is_empty() || value.ends_with(':') {
            return Err(SelectorError::EmptyValue);
        }
        if value.chars().any(char::is_control) {
            return Err(SelectorError::Control);
        }
        Ok(Self {
            text: text.into(),
            colon: kind.len(),
        })
    }

    /// The type: the attestor that can state it.
    pub fn kind(&self) -> &str {
        self.text.get(..self.colon).unwrap_or_default()
    }

    /// The value: everything after the first colon.
    pub fn value(&self) -> &str {
        self.text.get(self.colon + 1..).unwrap_or_default()
    }

    /// The whole selector.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text has no colon.
    #[error("a selector is written `type:value`, and this has no colon")]
    NoColon,
    /// The type is empty or holds a character that no type has.
    #[error("the selector's type is not lower-case letters, digits, `_` and `-`")]
    Type,
    /// The value is empty or its last part is.
    #[error("the selector's value is empty, so it would match everyone")]
    EmptyValue,
    /// The value holds a control character.
    #[error("the selector holds a control character")]
    Control,
    /// The text is longer than [`Selector::MAX_BYTES`].
    #[error("the selector has {bytes} bytes, at most 4096 are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({})", self.text)
    }
}

#[cfg(test)]
mod tests;
