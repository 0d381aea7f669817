//! What of a log is wanted, and in which form: `POSTERN_LOG` and `POSTERN_LOG_FORMAT`.

use std::env::{self, VarError};

use anyhow::{bail, ensure};
use tracing_subscriber::filter::{Directive, EnvFilter};

/// What `POSTERN_LOG` says, or else `default`.
///
/// # Errors
/// It says nothing that can be meant; callers exit with 64.
pub fn filter(default: &str) -> anyhow::Result<EnvFilter> {
    match variable(FILTER)? {
        Some(text) => parse(&text),
        None => Ok(EnvFilter::new(default)),
    }
}

/// Is plain text wanted? `POSTERN_LOG_FORMAT` says so; else people at a terminal want it.
///
/// # Errors
/// It names another format; callers exit with 64.
pub fn is_plain() -> anyhow::Result<bool> {
    match variable(FORMAT)?.as_deref() {
        Some("plain") => Ok(true),
        Some("json") => Ok(false),
        Some(other) => bail!("`{FORMAT}`: `{other}` is no format; write `json` or `plain`"),
        None => Ok(std::io::IsTerminal::is_terminal(&std::io::stdout())),
    }
}

/// A variable of the environment; an empty one is none.
fn variable(name: &str) -> anyhow::Result<Option<String>> {
    match env::var(name) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => bail!("`{name}` is not UTF-8"),
    }
}

fn parse(text: &str) -> anyhow::Result<EnvFilter> {
    let trimmed: Vec<&str> = text.split(',').map(str::trim).collect();
    let text = &trimmed.join(",");
    // To the library any word is the name of a target, so that a slip would silence all others.
    for word in &trimmed {
        if let Some(level) = meant(word) {
            bail!("`{FILTER}`: `{word}` is no level; did you mean `{level}`?");
        }
    }
    EnvFilter::try_new(text)
        .or_else(|error| {
            let mut parts = trimmed.iter().copied();
            let wrong = parts.find(|part| part.parse::<Directive>().is_err());
            let wrong = wrong.unwrap_or(text);
            bail!("`{FILTER}`: `{wrong}` is no filter: {error}; {HINT}")
        })
        .and_then(|filter| {
            ensure!(
                !text.contains(",,"),
                "`{FILTER}`: there is nothing between two commas; {HINT}"
            );
            Ok(filter)
        })
}

/// The level that a word is nearly.
fn meant(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let is_near = |level: &&&str| {
        let (short, long) = match word.len() < level.len() {
            true => (word.as_str(), **level),
            false => (**level, word.as_str()),
        };
        short.len() >= 3 && long.starts_with(short) || is_one_letter_off(&word, level)
    };
    let found = LEVELS.iter().find(is_near)?;
    (word != *found).then_some(found)
}

/// The same but for one letter, or two that changed places.
fn is_one_letter_off(word: &str, level: &str) -> bool {
    let differing = word.bytes().zip(level.bytes()).filter(|(a, b)| a != b);
    let (mut ours, mut theirs) = (word.as_bytes().to_vec(), level.as_bytes().to_vec());
    ours.sort_unstable();
    theirs.sort_unstable();
    word.len() == level.len() && (differing.count() == 1 || (ours == theirs && word != level))
}

const FILTER: &str = "POSTERN_LOG";
const FORMAT: &str = "POSTERN_LOG_FORMAT";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
const HINT: &str = "such as `info`, or `info,postern_proxy=debug`";

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_filter_that_cannot_be_meant_is_refused_and_says_why() {
        for good in [
            "info",
            "INFO",
            "off",
            "audit",
            "access",
            "info,h2=error",
            "info, audit=off",
            "postern_agent=debug",
            "postern_proxy::inbound=trace,warn",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (bad, told) in [
            ("inf", "`inf` is no level; did you mean `info`?"),
            ("warning", "did you mean `warn`?"),
            ("err,h2=off", "did you mean `error`?"),
            ("dbeug", "did you mean `debug`?"),
            ("infp", "did you mean `info`?"),
            ("info,h2=loud", "`h2=loud` is no filter"),
            ("=info=", "is no filter"),
            ("info,,warn", "nothing between two commas"),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(
                error.starts_with("`POSTERN_LOG`: ") && error.contains(told),
                "{bad}: {error}"
            );
        }
    }
}
