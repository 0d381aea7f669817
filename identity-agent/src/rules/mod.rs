//! Rules in Falco's language: parsed, checked against what is seen here, and asked about events.
//!
//! Pure: texts in, rules out; an event is asked for its fields. Who reads files and who makes events
//! is elsewhere. A rule runs whole, in part, or not at all, and says which; what runs in part misses
//! something, and what it hits is right.

mod builtin;
mod check;
mod compile;
mod condition;
mod derived;
mod document;
mod event;
mod exception;
mod field;
mod output;
mod priority;
mod resolve;
mod written;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use postern_policies::{
    Diagnostic, SourceFile,
    diagnostic::{Place, Severity},
};

use compile::{Compiled, Program};
use condition::{Expr, Mistake};
pub use document::MAX_FILE_BYTES;
use document::{Draft, Library};
pub use event::{Argument, Class, Event, Value};
pub use field::Field;
use output::Output;
pub use priority::Priority;
use resolve::{Refused, Resolver};
use written::Spot;

/// The rules of some files, and what became of each.
#[derive(Debug)]
pub struct RuleSet {
    /// Those that run, by the kind of event that they look at.
    running: HashMap<Class, Vec<Running>>,
    /// What became of every rule, in the order of the files.
    pub checked: Vec<Checked>,
    /// Legal, but probably not meant.
    pub warnings: Vec<Diagnostic>,
}

/// A rule that runs.
#[derive(Debug)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// How bad it is when it hits.
    pub priority: Priority,
    /// Its tags.
    pub tags: Vec<String>,
    output: Output,
}

/// A rule, and what its condition comes to for one kind of event.
#[derive(Debug)]
struct Running {
    rule: Arc<Rule>,
    program: Program,
}

impl Rule {
    /// What it says about an event that it has hit.
    pub fn line(&self, event: &dyn Event) -> String {
        self.output.line(event)
    }
}

/// What became of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Its name.
    pub rule: String,
    /// Its file.
    pub file: PathBuf,
    /// Where it begins.
    pub place: Place,
    /// Does it run?
    pub runs: Runs,
    /// Is it switched on?
    pub is_enabled: bool,
    /// Why it does not run, or not whole.
    pub reasons: Vec<Reason>,
    /// Fields of its output that are always `<NA>`.
    pub empty_outputs: Vec<String>,
}

/// How far a rule runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// It sees all that it means.
    Whole,
    /// What it hits is right, and it misses something.
    Partly,
    /// It never hits.
    Not,
    /// It never hits, and says itself that this is right where a field is unknown.
    Skipped,
}

impl Runs {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Partly => "partly",
            Self::Not => "not",
            Self::Skipped => "skipped",
        }
    }
}

/// Why a rule does not run, or not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The file of the place.
    pub file: PathBuf,
    /// Where it stands.
    pub place: Place,
    /// The field, where one is meant.
    pub field: Option<String>,
    /// The types of events, where such are meant.
    pub events: Vec<String>,
    /// In one line.
    pub why: String,
    /// How to mend it, if that can be said.
    pub hint: Option<String>,
}

impl RuleSet {
    /// Reads rules from files, of which later ones change earlier ones.
    ///
    /// Pure. Rules that cannot run are in [`RuleSet::checked`] and nowhere else.
    ///
    /// # Errors
    /// Every mistake for which the files are not rules.
    pub fn load(sources: &[SourceFile]) -> Result<Self, Vec<Diagnostic>> {
        let mut library = Library::read(sources);
        let is_error = |one: &Diagnostic| one.severity == Severity::Error;
        if library.found.iter().any(is_error) {
            return Err(library.found);
        }
        let warnings = std::mem::take(&mut library.found);
        let mut set = Self {
            running: HashMap::new(),
            checked: Vec::new(),
            warnings,
        };
        let mut resolver = Resolver::new(&library);
        let mut mistakes = Vec::new();
        for draft in &library.rules {
            let (checked, rule, programs) = checked(draft, &library, &mut resolver);
            let warnings = resolver.warnings.drain(..);
            let what = format!("rule `{}`", draft.name);
            mistakes.extend(warnings.map(|mistake| mistake.of(&what)));
            set.checked.push(checked);
            let Some(rule) = rule.filter(|_| draft.is_enabled).map(Arc::new) else {
                continue;
            };
            for (class, program) in programs {
                let rule = Arc::clone(&rule);
                let of_class = set.running.entry(class).or_default();
                of_class.push(Running { rule, program });
            }
        }
        for mistake in mistakes {
            library.tell(Severity::Warning, mistake);
        }
        set.warnings.append(&mut library.found);
        Ok(set)
    }

    /// The rules that an event hits.
    pub fn hits<'a>(&'a self, event: &'a dyn Event) -> impl Iterator<Item = &'a Arc<Rule>> {
        let of_class = self.running.get(&event.class());
        let hit = of_class.into_iter().flatten();
        hit.filter(move |one| one.program.holds(event))
            .map(|one| &one.rule)
    }

    /// Does any rule look at sockets?
    pub fn asks_for_sockets(&self) -> bool {
        self.running.keys().any(|class| class.is_of_socket())
    }
}

/// What becomes of a rule.
fn checked(
    draft: &Draft,
    library: &Library,
    resolver: &mut Resolver<'_>,
) -> (Checked, Option<Rule>, Vec<(Class, Program)>) {
    let mut checked = Checked {
        rule: draft.name.clone(),
        file: file(library, draft.at),
        place: draft.at.place,
        runs: Runs::Not,
        is_enabled: draft.is_enabled,
        reasons: Vec::new(),
        empty_outputs: Vec::new(),
    };
    match compiled(draft, resolver) {
        Ok((output, compiled)) => {
            checked.empty_outputs = output.unfilled().map(str::to_owned).collect();
            checked.reasons = reasons(draft, library, &compiled);
            checked.runs = match (compiled.programs.is_empty(), checked.reasons.is_empty()) {
                (true, _) => Runs::Not,
                (false, true) => Runs::Whole,
                (false, false) => Runs::Partly,
            };
            let rule = (!compiled.programs.is_empty()).then(|| Rule {
                name: draft.name.clone(),
                priority: draft.priority,
                tags: draft.tags.clone(),
                output,
            });
            (checked, rule, compiled.programs)
        }
        Err(refused) => {
            if draft.skips_unknown && refused.is_unknown_field {
                checked.runs = Runs::Skipped;
            }
            checked.reasons.push(Reason {
                file: file(library, refused.mistake.at),
                place: refused.mistake.at.place,
                field: refused.field,
                events: Vec::new(),
                why: refused.mistake.message,
                hint: refused.mistake.hint,
            });
            (checked, None, Vec::new())
        }
    }
}

fn compiled(draft: &Draft, resolver: &mut Resolver<'_>) -> Result<(Output, Compiled), Refused> {
    if draft.source != "syscall" {
        let message = format!(
            "its source is `{}`, and plugins are not loaded",
            draft.source
        );
        return Err(Mistake::new(draft.at, message)
            .hint("rules of the source `syscall` run")
            .into());
    }
    let mut parts: Vec<Expr> = draft.expr.iter().cloned().collect();
    for exception in &draft.exceptions {
        if let Some((at, message)) = exception.mistake() {
            return Err(Mistake::new(at, message).into());
        }
        let but = exception.expr().map(|expr| Expr::Not(Box::new(expr)));
        parts.extend(but);
    }
    let resolved = resolver.resolve(&Expr::All(parts))?;
    let output = Output::parse(&draft.output.text).map_err(|(position, name)| {
        let at = draft.output.spot(position);
        let mistake = Mistake::new(
            at,
            format!("`%{name}` of the output is no field that is known here"),
        );
        let hint = match postern_policies::yaml::fields::nearest(&name, &field::names()) {
            Some(meant) => format!("did you mean `%{meant}`?"),
            None => "docs/drift.md lists the fields".to_owned(),
        };
        Refused {
            mistake: mistake.hint(hint),
            field: Some(name),
            is_unknown_field: true,
        }
    })?;
    Ok((output, Compiled::of(&resolved)))
}

/// Why a rule does not run whole.
fn reasons(draft: &Draft, library: &Library, compiled: &Compiled) -> Vec<Reason> {
    let reason = |at: Spot, why: String| Reason {
        file: file(library, at),
        place: at.place,
        field: None,
        events: Vec::new(),
        why,
        hint: None,
    };
    let of_events = |at: Spot, events: &[String], why: &str| {
        let quoted: Vec<String> = events.iter().map(|name| format!("`{name}`")).collect();
        Reason {
            events: events.to_vec(),
            ..reason(at, format!("{}: {why}", quoted.join(", ")))
        }
    };
    let unfilled = compiled.unfilled.iter().map(|(field, (at, why))| Reason {
        field: Some(field.clone()),
        ..reason(*at, format!("`{field}` is not filled: {why}"))
    });
    let unseen = compiled.unseen.iter();
    let unseen = unseen.map(|(at, events)| of_events(*at, events, UNSEEN));
    let sampled = compiled.sampled.iter();
    let sampled =
        sampled.map(|lack| of_events(lack.at.unwrap_or(draft.at), &lack.events, lack.why));
    let mut reasons: Vec<Reason> = unfilled.chain(unseen).chain(sampled).collect();
    if compiled.means_all {
        let why = "it means events of every type, and only some are seen".to_owned();
        reasons.push(Reason {
            hint: Some("name the types with `evt.type in (…)`".to_owned()),
            ..reason(draft.at, why)
        });
    }
    if compiled.programs.is_empty() && reasons.is_empty() {
        let never = match &compiled.never {
            Some((field, at)) => Reason {
                field: Some(field.clone()),
                ..reason(*at, format!("`{field}` is never as this asks: {NEVER}"))
            },
            None => reason(draft.at, "its condition holds for no event".to_owned()),
        };
        reasons.push(never);
    }
    reasons
}

fn file(library: &Library, at: Spot) -> PathBuf {
    let file = library.files.get(at.file);
    file.map(|file| file.to_path_buf()).unwrap_or_default()
}

const UNSEEN: &str = "such events are not seen";

/// Why no event is as a test of its direction or result asks.
const NEVER: &str = "all that is seen has happened (`evt.dir = <`) and succeeded";
