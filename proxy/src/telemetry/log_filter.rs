//! Which lines of the log are written, and how that is changed while the proxy runs.
//!
//! What is asked for is put on top of the filter of the start, so that the filter in force depends on
//! the last change alone, and what it does not name stays as it was.

use std::sync::{Mutex, PoisonError};

use postern_policies::yaml::fields::nearest;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// The filter of the log.
#[derive(Debug)]
pub struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    /// As it was at the start.
    initial: String,
    current: Mutex<String>,
}

/// What may be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// One level for all that the filter does not name.
    Level(&'static str),
    /// Levels for modules.
    Filter(String),
    /// Back to what it was at the start.
    Reset,
}

/// Why it is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error(
        "`{0}` is no level; there are `off`, `error`, `warn`, `info`, `debug`, `trace`, and `reset`{1}"
    )]
    Level(String, String),
    #[error("`{0}` is neither a level nor `target=level`, as in `postern_proxy::tls=debug`")]
    Directive(String),
    #[error("the filter has more than {MAX_BYTES} bytes")]
    Long,
    #[error("the filter is empty; `level=reset` goes back to that of the start")]
    Empty,
    #[error("the filter cannot be used: {0}")]
    Other(String),
}

impl LogFilter {
    pub(super) fn new(filter: EnvFilter) -> (reload::Layer<EnvFilter, Registry>, Self) {
        let initial = filter.to_string();
        let (layer, handle) = reload::Layer::new(filter);
        let current = Mutex::new(initial.clone());
        let filter = Self {
            handle,
            initial,
            current,
        };
        (layer, filter)
    }

    /// The filter in force.
    pub(crate) fn current(&self) -> String {
        let current = self.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another one in force, and tells it.
    ///
    /// # Errors
    /// [`Refused`]; the one before stays.
    pub(crate) fn change(&self, change: &Change) -> Result<String, Refused> {
        let other = |error: &dyn std::fmt::Display| Refused::Other(error.to_string());
        let text = with(&self.initial, change);
        let filter = EnvFilter::try_new(&text).map_err(|error| other(&error))?;
        let now = filter.to_string();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Told by the filter that ends: the one that begins may be silent.
        tracing::warn!(from = *current, to = now, "the log's filter is changed");
        self.handle.reload(filter).map_err(|error| other(&error))?;
        current.clone_from(&now);
        Ok(now)
    }
}

/// What is said last about a target holds.
fn with(initial: &str, change: &Change) -> String {
    match change {
        Change::Reset => initial.to_owned(),
        Change::Level(level) => format!("{initial},{level}"),
        Change::Filter(filter) => format!("{initial},{filter}"),
    }
}

impl Change {
    /// A level, or `reset`.
    pub(crate) fn level(text: &str) -> Result<Self, Refused> {
        if text == "reset" {
            return Ok(Self::Reset);
        }
        let lower = text.to_ascii_lowercase();
        match LEVELS.iter().find(|level| **level == lower) {
            Some(level) => Ok(Self::Level(level)),
            None => {
                let near = nearest(&lower, &LEVELS);
                let hint =
                    near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                Err(Refused::Level(cut(text), hint))
            }
        }
    }

    /// `target=level` and levels, with commas between. Filters by spans and their fields are not
    /// taken: there are none to find, and their patterns are a program of their own.
    pub(crate) fn filter(text: &str) -> Result<Self, Refused> {
        if text.len() > MAX_BYTES {
            return Err(Refused::Long);
        }
        let parts = text.split(',').map(str::trim);
        let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Err(Refused::Empty);
        }
        for part in &parts {
            let (target, level) = part.rsplit_once('=').unwrap_or(("_", part));
            let is_target = !target.is_empty()
                && target
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-'));
            if !is_target || !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
                return Err(Refused::Directive(cut(part)));
            }
        }
        Ok(Self::Filter(parts.join(",")))
    }
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

const MAX_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use tracing_subscriber::EnvFilter;

    use super::{Change, with};

    #[track_caller]
    fn check(change: &Change, filter: &str) {
        let text = with("info,h2=error", change);
        let filter_of = |text: &str| EnvFilter::try_new(text).unwrap().to_string();
        assert_eq!(filter_of(&text), filter_of(filter), "{text}");
    }

    #[test]
    fn a_change_is_put_on_top_of_the_filter_of_the_start() {
        check(&Change::level("debug").unwrap(), "debug,h2=error");
        check(&Change::level("DEBUG").unwrap(), "debug,h2=error");
        check(&Change::level("off").unwrap(), "off,h2=error");
        check(&Change::level("reset").unwrap(), "info,h2=error");
        let filter = |text| Change::filter(text).unwrap();
        let tls = "postern_proxy::tls=debug";
        check(&filter(tls), "info,h2=error,postern_proxy::tls=debug");
        check(&filter("h2=trace"), "info,h2=trace");
        check(&filter(" warn , h2=off,"), "warn,h2=off");
    }

    #[test]
    fn what_is_no_level_and_no_filter_is_refused_by_name() {
        for (text, said) in [
            ("debgu", "`debgu` is no level"),
            ("debgu", "did you mean `debug`?"),
            ("warning", "`warning` is no level"),
            ("", "`` is no level"),
            ("3", "`3` is no level"),
            ("info,debug", "`info,debug` is no level"),
        ] {
            let refused = Change::level(text).unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
        }
        for (text, said) in [
            ("debgu", "`debgu` is neither a level nor"),
            ("postern_proxy=", "`postern_proxy=` is neither"),
            ("=debug", "`=debug` is neither"),
            ("a b=debug", "`a b=debug` is neither"),
            ("info,a=loud", "`a=loud` is neither"),
            ("a[span{x=.*}]=debug", "is neither"),
            ("", "is empty"),
            (",", "is empty"),
            (&"a".repeat(1025), "more than 1024 bytes"),
        ] {
            let refused = Change::filter(text).unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
        }
    }
}
