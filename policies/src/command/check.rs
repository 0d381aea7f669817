//! `check`: every mistake and every doubtful line, in one run.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use anstyle::{AnsiColor, Style};
use clap::Args;
use postern_policies::{
    Defaults, Diagnostic, PolicySet, Severity, SourceFile,
    classes::{self, DeadRule, TooMany, Why},
};

use super::{Reading, read, show};

/// Tells every mistake and every doubtful line of policies
#[derive(Debug, Args)]
pub(super) struct Check {
    /// Files and folders of policies, Workloads and Namespaces
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    reading: Reading,
}

impl Check {
    pub(super) fn run(&self) -> ExitCode {
        let files = match read(self.paths.iter().map(PathBuf::as_path)) {
            Ok(files) => files,
            Err(error) => {
                anstream::eprintln!("postern-policy: {error}");
                return ExitCode::FAILURE;
            }
        };
        if files.is_empty() {
            anstream::eprintln!(
                "postern-policy: there is nothing to check: no file ends in `.yaml`, `.yml` or \
                 `.json`; folders within a folder are not read, name them too"
            );
            return ExitCode::FAILURE;
        }
        match PolicySet::load(&files, &self.reading.options(Defaults::STRICT)) {
            Ok(loaded) => {
                let mut warnings = loaded.warnings;
                match classes::dead_rules(&loaded.set) {
                    Ok(dead) => warnings.extend(dead.iter().map(never_matters)),
                    Err(TooMany) => anstream::eprintln!(
                        "note: there are too many rules to look for those that never matter"
                    ),
                }
                warnings.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
                show(&warnings, &files);
                anstream::eprintln!(
                    "{} files, no mistakes, {} warnings",
                    files.len(),
                    warnings.len()
                );
                ExitCode::SUCCESS
            }
            Err(found) => {
                show(&found, &files);
                anstream::eprintln!("{} files, {} mistakes", files.len(), found.len());
                ExitCode::FAILURE
            }
        }
    }
}

/// A rule that no access needs.
fn never_matters(dead: &DeadRule) -> Diagnostic {
    let DeadRule { rule, why } = dead;
    let number = rule.rule.unwrap_or_default();
    let (message, hint) = match why {
        Why::Never => (
            format!("rule {number} of `{}` can never match", rule.policy),
            "its fields exclude each other".to_owned(),
        ),
        Why::Denied(by) => (
            format!(
                "rule {number} of `{}` never matters: all that it allows is denied",
                rule.policy
            ),
            format!("by `{}`, {}:{}", by.policy, by.file.display(), by.line),
        ),
    };
    Diagnostic {
        severity: Severity::Warning,
        file: rule.file.to_path_buf(),
        line: rule.line,
        column: 1,
        message,
        hint: Some(hint),
    }
}

/// One finding: the message, the line it is about with a caret, and the mend.
pub(super) fn render(found: &Diagnostic, files: &[SourceFile]) -> String {
    let (word, style) = match found.severity {
        Severity::Error => ("error", AnsiColor::Red.on_default().bold()),
        Severity::Warning => ("warning", AnsiColor::Yellow.on_default().bold()),
    };
    let mut text = format!("{style}{word}{style:#}{BOLD}: {}{BOLD:#}\n", found.message);
    let place = match found.line {
        0 => found.file.display().to_string(),
        line => format!("{}:{line}:{}", found.file.display(), found.column),
    };
    let number = found.line.to_string();
    let margin = " ".repeat(number.len());
    // Writing to a string does not fail.
    let _ = writeln!(text, "{margin}{DIM}-->{DIM:#} {place}");
    if let Some(line) = source_line(found, files) {
        let before = usize::try_from(found.column.saturating_sub(1)).unwrap_or_default();
        let indent: String = line
            .chars()
            .take(before)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let _ = writeln!(text, "{DIM}{margin} |{DIM:#}");
        let _ = writeln!(text, "{DIM}{number} |{DIM:#} {line}");
        let _ = writeln!(text, "{DIM}{margin} |{DIM:#} {indent}{style}^{style:#}");
    }
    if let Some(hint) = &found.hint {
        let hint = hint.replace('\n', &format!("\n{margin}   "));
        let _ = writeln!(text, "{margin} {DIM}={DIM:#} {hint}");
    }
    text
}

fn source_line(found: &Diagnostic, files: &[SourceFile]) -> Option<String> {
    let file = files.iter().find(|file| file.path == found.file)?;
    let text = std::str::from_utf8(&file.text).ok()?;
    let line = usize::try_from(found.line.checked_sub(1)?).ok()?;
    let line: String = text.lines().nth(line)?.chars().take(LINE_LIMIT).collect();
    Some(line)
}

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// How much of a long line is shown.
const LINE_LIMIT: usize = 200;
