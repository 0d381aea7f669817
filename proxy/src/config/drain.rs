//! How the proxy ends.

use std::time::Duration;

use postern_policies::{
    diagnostic::Problems,
    yaml::{Fields, Node, Value, fields},
};

/// How long each step of the end takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Before callers are asked to leave, and again before nobody new is let in.
    pub delay: Duration,
    /// From the signal to the end, whatever is open then.
    pub deadline: Duration,
}

impl Drain {
    /// With the usual delay.
    fn until(deadline: Duration) -> Self {
        Self {
            delay: DELAY.min(deadline / 4),
            deadline,
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::until(DEADLINE)
    }
}

/// Reads `drain`: the deadline alone, or a map.
pub(super) fn drain(node: &Node, problems: &mut Problems<'_>) -> Option<Drain> {
    if !matches!(node.value, Value::Map(_)) {
        return fields::duration(node, "drain", problems).map(Drain::until);
    }
    let section = Fields::of(node, "drain", &["delay", "deadline"], problems)?;
    let usual = match section.get("deadline") {
        Some(node) => Drain::until(fields::duration(node, "drain.deadline", problems)?),
        None => Drain::default(),
    };
    let Some(node) = section.get("delay") else {
        return Some(usual);
    };
    let delay = delay(node, problems)?;
    if delay * 2 > usual.deadline {
        let message = format!(
            "`drain.delay` is waited for twice, and two times {delay:?} are more than `drain.deadline`, {:?}",
            usual.deadline
        );
        problems.error_with(
            node.at,
            message,
            "a shorter `delay`, or a longer `deadline`",
        );
        return None;
    }
    Some(Drain { delay, ..usual })
}

/// None at all is right where something else has waited before the signal.
fn delay(node: &Node, problems: &mut Problems<'_>) -> Option<Duration> {
    match &node.value {
        Value::Text(text) if fields::parse_duration(text) == Some(Duration::ZERO) => {
            Some(Duration::ZERO)
        }
        _ => fields::duration(node, "drain.delay", problems),
    }
}

/// Load balancers ask every few seconds at most, or are told at once.
const DELAY: Duration = Duration::from_secs(1);

const DEADLINE: Duration = Duration::from_secs(30);
