//! `tap`: decisions as they are made.

use std::io::{ErrorKind, Write as _};

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{At, admin::query, identity};

/// Which decisions are shown, and how.
#[derive(Debug, Args)]
pub struct Options {
    /// Only those with this verdict
    #[arg(long, value_enum)]
    verdict: Option<Verdict>,

    /// Only those about this caller
    #[arg(long, value_name = "SPIFFE ID", value_parser = identity)]
    source: Option<String>,

    /// Only requests whose path begins like this
    #[arg(long, value_name = "PREFIX", value_parser = path)]
    path: Option<String>,

    /// Only one road
    #[arg(long, value_enum)]
    direction: Option<Direction>,

    /// For programs: the lines of the access log
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    at: At,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Verdict {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Direction {
    Inbound,
    Outbound,
}

fn path(text: &str) -> Result<String, String> {
    match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err("a path begins with `/`".to_owned()),
    }
}

/// Shows lines until the proxy ends, or nobody reads them any more.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let verdict = options.verdict.map(|verdict| match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    });
    let direction = options.direction.map(|direction| match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    });
    let target = query(
        "/tap",
        &[
            ("verdict", verdict),
            ("direction", direction),
            ("source", options.source.as_deref()),
            ("path", options.path.as_deref()),
        ],
    );
    let shown = options.at.admin().lines(&target, |line| {
        let mut output = std::io::stdout();
        match options.json {
            true => writeln!(output, "{line}")?,
            false => writeln!(output, "{}", words(line))?,
        }
        Ok(output.flush()?)
    });
    match shown {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        shown => shown,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// A decision in one line for people; what cannot be read is shown as it came.
fn words(line: &str) -> String {
    let Ok(told) = serde_json::from_str::<Value>(line) else {
        return line.to_owned();
    };
    if let Some(lost) = told.get("lost") {
        return format!("({lost} lines are missing here: this reader is too slow)");
    }
    let text = |name: &str| told.get(name).and_then(Value::as_str);
    let time = text("timestamp").and_then(|time| time.get(11..19));
    let who = text("src.identity").or(text("src.addr"));
    let whom = text("dst.workload").or(text("dst.addr"));
    let status = told.get("status").and_then(Value::as_u64);
    let place = match (text("file"), told.get("line")) {
        (Some(file), Some(line)) => Some(format!("{file}:{line}")),
        _ => None,
    };
    let all = [
        time.map(str::to_owned),
        text("verdict").map(str::to_uppercase),
        text("direction").map(str::to_owned),
        who.map(str::to_owned),
        Some("->".to_owned()),
        whom.map(str::to_owned),
        text("method").map(str::to_owned),
        text("path").map(str::to_owned),
        status.map(|status| status.to_string()),
        text("kind").map(str::to_owned),
        text("policy").map(str::to_owned),
        place,
        text("reason").map(|reason| format!("- {reason}")),
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    // What a caller sent is not to write on this terminal.
    let shown = all.join(" ");
    shown
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

pub(super) const EXAMPLES: &str = "\
Examples:
  postern-proxy tap --verdict deny
  postern-proxy tap --direction inbound --path /api/ --source spiffe://example.org/web
  postern-proxy tap --json | jq -r .reason";

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn a_decision_is_a_line_of_words() {
        let line = r#"{"timestamp":"2026-01-02T03:04:05.6Z","direction":"inbound","verdict":"deny",
            "src.identity":"spiffe://a/b","dst.workload":"n/web","method":"GET","path":"/x\u001b[2J",
            "status":403,"kind":"AuthorizationPolicy","policy":"n/p","file":"p.yaml","line":3,
            "reason":"no rule"}"#;
        let wanted = "03:04:05 DENY inbound spiffe://a/b -> n/web GET /x?[2J 403 \
                      AuthorizationPolicy n/p p.yaml:3 - no rule";
        assert_eq!(words(line), wanted);
        assert!(words("{\"target\":\"tap\",\"lost\":3}").contains("3 lines are missing"));
        assert_eq!(words("what"), "what");
    }
}
