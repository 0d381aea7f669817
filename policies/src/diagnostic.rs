//! Mistakes and warnings, each with its place and, where there is one, the mend.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One mistake or one warning, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Does it refuse the set?
    pub severity: Severity,
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 where the file as a whole is meant.
    pub line: u32,
    /// The column, from 1; 0 where the file as a whole is meant.
    pub column: u32,
    /// What is wrong, in one line.
    pub message: String,
    /// How to mend it; may have several lines.
    pub hint: Option<String>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The set is refused whole.
    Error,
    /// Legal, but probably not what was meant.
    Warning,
}

impl fmt::Display for Diagnostic {
    /// `file:line:column: error: message`, the form that editors understand.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, ": {severity}: {}", self.message)?;
        match &self.hint {
            Some(hint) if !hint.contains('\n') => write!(f, " ({hint})"),
            _ => Ok(()),
        }
    }
}

/// A place in a file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// Collects the mistakes of one file, so that all are told in one run.
#[derive(Debug)]
pub struct Problems<'a> {
    file: &'a Arc<Path>,
    found: &'a mut Vec<Diagnostic>,
}

impl<'a> Problems<'a> {
    /// For one file; what is found goes to `found`.
    pub fn new(file: &'a Arc<Path>, found: &'a mut Vec<Diagnostic>) -> Self {
        Self { file, found }
    }

    /// The file.
    pub fn file(&self) -> &Arc<Path> {
        self.file
    }

    /// Adds a mistake.
    pub fn error(&mut self, at: Place, message: impl Into<String>) {
        self.add(Severity::Error, at, message.into(), None);
    }

    /// Adds a mistake with its mend.
    pub fn error_with(&mut self, at: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Error, at, message.into(), Some(hint.into()));
    }

    /// Adds something legal that is probably not meant.
    pub fn warn(&mut self, at: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Warning, at, message.into(), Some(hint.into()));
    }

    fn add(&mut self, severity: Severity, at: Place, message: String, hint: Option<String>) {
        self.found.push(Diagnostic {
            severity,
            file: self.file.to_path_buf(),
            line: at.line,
            column: at.column,
            message,
            hint,
        });
    }
}
