//! `test`: runs the cases beside policies, and tells which rules no case exercised.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anstyle::{AnsiColor, Style};
use clap::Args;
use postern_policies::{Diagnostic, Loaded, PolicySet, RuleName, SourceFile, files};

use super::{
    cases::{self, Answer, Case, CaseFile, Expected},
    query, show,
};

/// Runs the cases in `*.test.yaml` files
#[derive(Debug, Args)]
pub(super) struct Test {
    /// Folders, read with all folders within, and files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// Tell every case, not only those that fail
    #[arg(long, short)]
    verbose: bool,

    /// Fail when a rule of the policies is exercised by no case
    #[arg(long)]
    require_coverage: bool,
}

/// What came of all files.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: usize,
    broken_files: usize,
    rules: BTreeSet<RuleName>,
    exercised: BTreeSet<RuleName>,
}

impl Test {
    pub(super) fn run(&self) -> ExitCode {
        let mut found = Vec::new();
        for path in &self.paths {
            if let Err(error) = find(path, &mut found) {
                anstream::eprintln!("postern-policy: `{}`: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
        found.sort();
        if found.is_empty() {
            anstream::eprintln!(
                "postern-policy: there is nothing to test: no file ends in `.test.yaml`"
            );
            return ExitCode::FAILURE;
        }
        let mut tally = Tally::default();
        for path in &found {
            self.file(path, &mut tally);
        }
        let idle: Vec<&RuleName> = tally.rules.difference(&tally.exercised).collect();
        for rule in &idle {
            anstream::println!("{YELLOW}not exercised{YELLOW:#} {rule}");
        }
        anstream::println!(
            "{} files, {} cases passed, {} failed; {} of {} rules exercised",
            found.len(),
            tally.passed,
            tally.failed,
            tally.rules.len() - idle.len(),
            tally.rules.len()
        );
        let uncovered = self.require_coverage && !idle.is_empty();
        match tally.failed + tally.broken_files > 0 || uncovered {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        }
    }

    fn file(&self, path: &Path, tally: &mut Tally) {
        let broken = |found: &[Diagnostic], text: Vec<u8>| {
            let source = SourceFile {
                path: path.to_owned(),
                text,
            };
            show(found, &[source]);
        };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) => {
                anstream::eprintln!("postern-policy: `{}`: {error}", path.display());
                tally.broken_files += 1;
                return;
            }
        };
        let file = match cases::read(path, &text) {
            Ok(file) => file,
            Err(found) => {
                broken(&found, text);
                tally.broken_files += 1;
                return;
            }
        };
        let folder = match file.documents {
            Some(_) => Vec::new(),
            None => match documents(&file.policies) {
                Ok(documents) => documents,
                Err(error) => {
                    anstream::eprintln!("postern-policy: {error}");
                    tally.broken_files += 1;
                    return;
                }
            },
        };
        // Documents that do not depend on the case are compiled once.
        let shared = PolicySet::load(&folder, &file.options);
        if let Ok(loaded) = &shared {
            tally.rules.extend(loaded.set.rules());
        }
        for case in &file.cases {
            let result = match &file.documents {
                Some(text) => {
                    let source = case.documents(path, text);
                    let loaded = PolicySet::load(&[source], &file.options);
                    check(case, &loaded, &mut tally.exercised)
                }
                None => check(case, &shared, &mut tally.exercised),
            };
            self.tell(path, &file, case, &result);
            match result {
                Ok(()) => tally.passed += 1,
                Err(_) => tally.failed += 1,
            }
        }
    }

    fn tell(&self, path: &Path, _file: &CaseFile, case: &Case, result: &Result<(), String>) {
        let place = format!("{}:{}", path.display(), case.at.line);
        match result {
            Err(error) => {
                anstream::println!("{RED}failed{RED:#} {place} {}\n    {error}", case.because);
            }
            Ok(()) if self.verbose => {
                anstream::println!("{GREEN}passed{GREEN:#} {place} {}", case.because);
            }
            Ok(()) => {}
        }
    }
}

/// Does the case come out as it says?
fn check(
    case: &Case,
    loaded: &Result<Loaded, Vec<Diagnostic>>,
    exercised: &mut BTreeSet<RuleName>,
) -> Result<(), String> {
    let all = |found: &[Diagnostic]| {
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        texts.join("\n    ")
    };
    match (&case.expect, loaded) {
        (Expected::Invalid { error }, Err(found)) => {
            let said = all(found);
            match said.contains(error) {
                true => Ok(()),
                false => Err(format!(
                    "expected the mistake `{error}`, but there is:\n    {said}"
                )),
            }
        }
        (Expected::Invalid { .. }, Ok(_)) => {
            Err("the documents are taken, though they were expected to be refused".into())
        }
        (_, Err(found)) => Err(format!("the documents are refused:\n    {}", all(found))),
        (Expected::Warning { warning }, Ok(loaded)) => {
            let said = all(&loaded.warnings);
            match said.contains(warning) && !said.is_empty() {
                true => Ok(()),
                false => Err(format!(
                    "expected the warning `{warning}`, but there is:\n    {said}"
                )),
            }
        }
        (Expected::Answer(answer), Ok(loaded)) => compare(answer, &loaded.set, exercised),
    }
}

fn compare(
    expected: &Answer,
    set: &PolicySet,
    exercised: &mut BTreeSet<RuleName>,
) -> Result<(), String> {
    let parsed = expected.query.clone().parse(set)?;
    let answer = parsed.answer(serde_json::Value::Null, set);
    exercised.extend(
        set.explain(&parsed.access())
            .considered
            .into_iter()
            .filter(|one| one.matched)
            .map(|one| RuleName::from(&one.origin)),
    );
    let found = query::Found::of(&answer);
    let mut wrong = Vec::new();
    let mut same = |what: &str, wanted: Option<&str>, is: Option<&str>| {
        if wanted.is_some() && wanted != is {
            let (wanted, is) = (wanted.unwrap_or("none"), is.unwrap_or("none"));
            wrong.push(format!("{what} is `{is}` and not `{wanted}`"));
        }
    };
    same("the verdict", Some(&expected.verdict), Some(found.verdict));
    same("the stage", expected.stage.as_deref(), Some(found.stage));
    same("the policy", expected.policy.as_deref(), found.policy);
    same("the kind", expected.kind.as_deref(), found.kind);
    let line = expected.line.map(|line| line.to_string());
    let is = found.line.map(|line| line.to_string());
    same("the line", line.as_deref(), is.as_deref());
    let list = |names: &Vec<String>| names.join(", ");
    let audit = expected.audit.as_ref().map(list);
    same("audit", audit.as_deref(), Some(&found.audit.join(", ")));
    let dry_run = expected.dry_run.as_ref().map(list);
    same(
        "dryRun",
        dry_run.as_deref(),
        Some(&found.dry_run.join(", ")),
    );
    if let Some(part) = &expected.reason
        && !found.reason.contains(part)
    {
        wrong.push(format!("the reason does not say `{part}`"));
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(format!("{}: {}", wrong.join(", "), found.reason)),
    }
}

fn documents(paths: &[PathBuf]) -> io::Result<Vec<SourceFile>> {
    let mut all = Vec::new();
    for path in paths {
        all.extend(files::read_documents(path)?);
    }
    Ok(all)
}

/// All files of cases below a path.
fn find(path: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    if !fs::metadata(path)?.is_dir() {
        found.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        // A link to a folder is not followed: it may lead back.
        if entry.file_type()?.is_dir() {
            find(&entry.path(), found)?;
        } else if name.to_string_lossy().ends_with(".test.yaml") {
            found.push(entry.path());
        }
    }
    Ok(())
}

const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const RED: Style = AnsiColor::Red.on_default().bold();
