//! Files of rules as they are written: lists, macros and rules, and how a later one changes an
//! earlier one. Later ones win, and nothing is used before all files are read.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use postern_policies::{
    Diagnostic, SourceFile,
    diagnostic::{Place, Problems, Severity},
    yaml::{
        Entry, Fields, Node, Value,
        fields::{self, nearest},
        node,
    },
};

use super::{
    condition::{Expr, Literal, Mistake, parse, quoted},
    exception::{self, Exception},
    priority::Priority,
    written::{Spot, Written},
};

/// Everything that some files define.
#[derive(Debug, Default)]
pub(super) struct Library {
    pub(super) files: Vec<Arc<Path>>,
    pub(super) lists: BTreeMap<String, Vec<Literal>>,
    pub(super) macros: BTreeMap<String, Macro>,
    /// In the order in which they were defined first.
    pub(super) rules: Vec<Draft>,
    /// What is wrong, or probably not meant.
    pub(super) found: Vec<Diagnostic>,
}

/// A macro as it is written.
#[derive(Debug, Clone)]
pub(super) struct Macro {
    condition: Written,
    /// None where it has a mistake, which was told.
    pub(super) expr: Option<Expr>,
}

/// A rule as it is written.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) at: Spot,
    pub(super) condition: Written,
    /// None where it has a mistake, which was told.
    pub(super) expr: Option<Expr>,
    pub(super) output: Written,
    pub(super) priority: Priority,
    pub(super) is_enabled: bool,
    pub(super) tags: Vec<String>,
    pub(super) source: String,
    pub(super) exceptions: Vec<Exception>,
    /// Leave it out, without a word, where a field is unknown.
    pub(super) skips_unknown: bool,
}

impl Library {
    /// Reads files, one after the other. Pure. What is wrong is in [`Library::found`].
    pub(super) fn read(sources: &[SourceFile]) -> Self {
        let mut library = Self::default();
        for source in sources {
            library.read_file(source);
        }
        library.parse_all();
        library
    }

    pub(super) fn tell(&mut self, severity: Severity, mistake: Mistake) {
        let file = self.files.get(mistake.at.file);
        self.found.push(Diagnostic {
            severity,
            file: file.map(|file| file.to_path_buf()).unwrap_or_default(),
            line: mistake.at.place.line,
            column: mistake.at.place.column,
            message: mistake.message,
            hint: mistake.hint,
        });
    }

    fn read_file(&mut self, source: &SourceFile) {
        let number = self.files.len();
        let file: Arc<Path> = Arc::from(source.path.as_path());
        self.files.push(file.clone());
        let start = Spot {
            file: number,
            place: Place { line: 1, column: 1 },
        };
        if source.text.len() > MAX_FILE_BYTES {
            let message = format!("the file has more than {MAX_FILE_BYTES} bytes");
            return self.tell(Severity::Error, Mistake::new(start, message));
        }
        let Ok(text) = std::str::from_utf8(&source.text) else {
            let mistake = Mistake::new(start, "this is not UTF-8");
            return self.tell(Severity::Error, mistake);
        };
        let documents = match node::read(text) {
            Ok(documents) => documents,
            Err((place, message)) => {
                let spot = Spot { place, ..start };
                return self.tell(Severity::Error, Mistake::new(spot, message));
            }
        };
        let lines: Vec<&str> = text.lines().collect();
        let mut found = Vec::new();
        let mut reader = Reader {
            library: self,
            problems: Problems::new(&file, &mut found),
            lines: &lines,
            file: number,
        };
        for document in &documents {
            let Some(items) = fields::list(document, "a file of rules", &mut reader.problems)
            else {
                continue;
            };
            items.iter().for_each(|item| reader.item(item));
        }
        self.found.extend(found);
    }

    /// Reads the conditions, which may have been put together from several pieces.
    fn parse_all(&mut self) {
        let mut mistakes = Vec::new();
        for (name, one) in &mut self.macros {
            match parse(&one.condition) {
                Ok(expr) => one.expr = Some(expr),
                Err(mistake) => mistakes.push(mistake.of(&format!("macro `{name}`"))),
            }
        }
        for rule in &mut self.rules {
            match parse(&rule.condition) {
                Ok(expr) => rule.expr = Some(expr),
                Err(mistake) => mistakes.push(mistake.of(&format!("rule `{}`", rule.name))),
            }
        }
        for mistake in mistakes {
            self.tell(Severity::Error, mistake);
        }
    }
}

/// What a later item does to an earlier one, key by key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Replace,
    Append,
}

/// Reads one file.
struct Reader<'a, 'f> {
    library: &'a mut Library,
    problems: Problems<'f>,
    lines: &'a [&'a str],
    file: usize,
}

impl Reader<'_, '_> {
    fn spot(&self, place: Place) -> Spot {
        let file = self.file;
        Spot { file, place }
    }

    fn item(&mut self, node: &Node) {
        let Value::Map(entries) = &node.value else {
            let what = fields::kind_of(node);
            let hint = "an item is a map that begins with `rule`, `macro` or `list`";
            let message = format!("an item of a file of rules must be a map, and this is {what}");
            return self.problems.error_with(node.at, message, hint);
        };
        let first = |key: &str| entries.iter().any(|entry| entry.key == key);
        match KINDS.iter().find(|kind| first(kind)) {
            Some(&"list") => drop(self.list(node)),
            Some(&"macro") => drop(self.named_condition(node)),
            Some(&"rule") => drop(self.rule(node, entries)),
            Some(&"required_engine_version") => drop(self.engine_version(node)),
            Some(_) => {
                let message = "`required_plugin_versions`: plugins are not loaded";
                let hint =
                    "rules of their sources do not run here; `container` is filled by the agent";
                self.problems.warn(node.at, message, hint);
            }
            None => {
                let key = entries.first().map_or("", |entry| entry.key.as_str());
                let hint = match nearest(key, &KINDS) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => "an item begins with `rule`, `macro` or `list`".to_owned(),
                };
                let message = format!("`{key}` is no kind of item");
                self.problems.error_with(node.at, message, hint);
            }
        }
    }

    /// A text, or what a number or a word of YAML was written as.
    fn written(&mut self, node: &Node, what: &str) -> Option<Written> {
        let text = match &node.value {
            Value::Text(text) => text.clone(),
            Value::Integer(_) | Value::Number(_) | Value::Bool(_) => {
                let from_zero = |n: u32| usize::try_from(n).unwrap_or(usize::MAX).saturating_sub(1);
                let line = self.lines.get(from_zero(node.at.line)).copied();
                let rest = line.unwrap_or_default().chars();
                let plain = rest.skip(from_zero(node.at.column));
                let plain: String = plain.take_while(|c| !",]}#".contains(*c)).collect();
                plain.trim().to_owned()
            }
            _ => {
                fields::text(node, what, &mut self.problems)?;
                return None;
            }
        };
        Some(Written::of(self.lines, self.spot(node.at), &text))
    }

    fn filled(&mut self, node: &Node, what: &str) -> Option<Written> {
        let written = self.written(node, what)?;
        if written.text.trim().is_empty() {
            let message = format!("`{what}` must not be empty");
            self.problems.error(node.at, message);
            return None;
        }
        if written.text.len() > MAX_TEXT_BYTES {
            let message = format!("`{what}` has more than {MAX_TEXT_BYTES} bytes");
            self.problems.error(node.at, message);
            return None;
        }
        Some(written)
    }

    fn required(&mut self, all: &Fields<'_>, key: &str, what: &str) -> Option<Written> {
        let node = all.required(key, what, &mut self.problems)?;
        self.filled(node, key)
    }

    fn list(&mut self, node: &Node) -> Option<()> {
        let all = Fields::of(node, "a list", &LIST, &mut self.problems)?;
        let name = self.required(&all, "list", "a list")?.text;
        let what = format!("list `{name}`");
        let items = all.required("items", &what, &mut self.problems)?;
        let items = self.items(items, "items")?;
        let known = self.library.lists.contains_key(&name);
        match self.change(&all, "items", &what, known)? {
            Change::Append => self.library.lists.entry(name).or_default().extend(items),
            Change::Replace => drop(self.library.lists.insert(name, items)),
        }
        Some(())
    }

    fn items(&mut self, node: &Node, what: &str) -> Option<Vec<Literal>> {
        let items = fields::list(node, what, &mut self.problems)?;
        if items.len() > MAX_ITEMS {
            let message = format!("`{what}` has more than {MAX_ITEMS} items");
            self.problems.error(node.at, message);
            return None;
        }
        let read = items.iter().map(|item| {
            // Where its letters stand is not asked, and costs the length of the line.
            let text = match &item.value {
                Value::Text(text) => text.clone(),
                _ => self.written(item, what)?.text,
            };
            Some(literal(&text, self.spot(item.at)))
        });
        read.collect()
    }

    fn named_condition(&mut self, node: &Node) -> Option<()> {
        let all = Fields::of(node, "a macro", &MACRO, &mut self.problems)?;
        let name = self.required(&all, "macro", "a macro")?.text;
        let what = format!("macro `{name}`");
        let condition = self.required(&all, "condition", &what)?;
        let known = self.library.macros.contains_key(&name);
        let change = self.change(&all, "condition", &what, known)?;
        match self.library.macros.get_mut(&name) {
            Some(earlier) if change == Change::Append => earlier.condition.append(&condition),
            _ => {
                let expr = None;
                let read = Macro { condition, expr };
                self.library.macros.insert(name, read);
            }
        }
        Some(())
    }

    /// What an item does to an earlier one of its name, as for this key.
    fn change(&mut self, all: &Fields<'_>, key: &str, what: &str, known: bool) -> Option<Change> {
        let old = match all.get("append") {
            Some(node) => fields::boolean(node, "append", &mut self.problems)?,
            None => false,
        };
        let new = self.override_of(all, key)?;
        if old && new.is_some() {
            let message = format!("{what} has both `append` and `override`");
            let hint = "write `override` alone";
            self.problems.error_with(all.at, message, hint);
            return None;
        }
        let change = match new {
            Some(change) => change,
            None if old => Change::Append,
            None => return Some(Change::Replace),
        };
        if !known {
            let message = format!("there is no {what} yet that could be changed");
            let hint = "name the file that defines it before this one";
            self.problems.error_with(all.at, message, hint);
            return None;
        }
        Some(change)
    }

    /// What `override` says of this key.
    fn override_of(&mut self, all: &Fields<'_>, key: &str) -> Option<Option<Change>> {
        let Some(node) = all.get("override") else {
            return Some(None);
        };
        let said = Fields::of(node, "`override`", &OVERRIDE, &mut self.problems)?;
        let Some(node) = said.get(key) else {
            return Some(None);
        };
        match fields::text(node, key, &mut self.problems)? {
            "append" if APPENDED.contains(&key) => Some(Some(Change::Append)),
            "replace" => Some(Some(Change::Replace)),
            other => {
                let message = format!("`{other}` is nothing that `override` does to `{key}`");
                let hint = match APPENDED.contains(&key) {
                    true => "`append` or `replace`",
                    false => "`replace`",
                };
                self.problems.error_with(node.at, message, hint);
                None
            }
        }
    }

    fn rule(&mut self, node: &Node, entries: &[Entry]) -> Option<()> {
        let all = Fields::of(node, "a rule", &RULE, &mut self.problems)?;
        let name = self.required(&all, "rule", "a rule")?.text;
        let what = format!("rule `{name}`");
        let place = self.library.rules.iter().position(|rule| rule.name == name);
        let changes = |key: &str| entries.iter().any(|entry| entry.key == key);
        let only_switch = entries
            .iter()
            .all(|entry| ["rule", "enabled"].contains(&entry.key.as_str()));
        let is_change = changes("override") || changes("append") || only_switch;
        if !is_change {
            let fresh = self.whole_rule(&all, &name, node.at)?;
            match place.and_then(|place| self.library.rules.get_mut(place)) {
                Some(earlier) => *earlier = fresh,
                None => self.library.rules.push(fresh),
            }
            return Some(());
        }
        let known = place
            .and_then(|place| self.library.rules.get(place))
            .cloned();
        let Some(mut rule) = known else {
            let names: Vec<&str> = self
                .library
                .rules
                .iter()
                .map(|one| one.name.as_str())
                .collect();
            let hint = match nearest(&name, &names) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "name the file that defines it before this one".to_owned(),
            };
            let message = format!("there is no {what} yet that could be changed");
            self.problems.error_with(node.at, message, hint);
            return None;
        };
        self.change_rule(&all, &what, &mut rule)?;
        if let Some(earlier) = place.and_then(|place| self.library.rules.get_mut(place)) {
            *earlier = rule;
        }
        Some(())
    }

    fn whole_rule(&mut self, all: &Fields<'_>, name: &str, at: Place) -> Option<Draft> {
        let what = format!("rule `{name}`");
        let condition = self.required(all, "condition", &what);
        let output = self.required(all, "output", &what);
        let priority = all.required("priority", &what, &mut self.problems);
        let priority = priority.and_then(|node| self.priority(node, &what));
        if all.get("desc").is_none() {
            let hint = "say in `desc` what it detects";
            self.problems
                .warn(at, format!("{what} has no `desc`"), hint);
        }
        let mut rule = Draft {
            name: name.to_owned(),
            at: self.spot(at),
            condition: condition?,
            expr: None,
            output: output?,
            priority: priority?,
            is_enabled: true,
            tags: Vec::new(),
            source: "syscall".to_owned(),
            exceptions: Vec::new(),
            skips_unknown: false,
        };
        if let Some(node) = all.get("exceptions") {
            rule.exceptions = exception::read(node, &what, &mut self.problems, self.file)?;
        }
        self.plain_keys(all, &mut rule)?;
        Some(rule)
    }

    /// The keys that are replaced, never appended to.
    fn plain_keys(&mut self, all: &Fields<'_>, rule: &mut Draft) -> Option<()> {
        if let Some(node) = all.get("enabled") {
            rule.is_enabled = fields::boolean(node, "enabled", &mut self.problems)?;
        }
        if let Some(node) = all.get("tags") {
            let tags = self.items(node, "tags")?;
            rule.tags = tags.into_iter().map(|tag| tag.text).collect();
        }
        if let Some(source) = all.text("source", &mut self.problems) {
            source.clone_into(&mut rule.source);
        }
        if let Some(node) = all.get("skip-if-unknown-filter") {
            let what = "skip-if-unknown-filter";
            rule.skips_unknown = fields::boolean(node, what, &mut self.problems)?;
        }
        Some(())
    }

    fn priority(&mut self, node: &Node, what: &str) -> Option<Priority> {
        let text = fields::text(node, "priority", &mut self.problems)?;
        let priority = Priority::of(text);
        if priority.is_none() {
            let known = Priority::names();
            let hint = match nearest(text, &known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("there are {}", known.join(", ")),
            };
            let message = format!("`{text}` of {what} is no priority");
            self.problems.error_with(node.at, message, hint);
        }
        priority
    }

    fn change_rule(&mut self, all: &Fields<'_>, what: &str, rule: &mut Draft) -> Option<()> {
        for key in ["condition", "output"] {
            let Some(node) = all.get(key) else { continue };
            let written = self.filled(node, key)?;
            let change = self.change(all, key, what, true)?;
            let kept = match key {
                "condition" => &mut rule.condition,
                _ => &mut rule.output,
            };
            match change {
                Change::Append => kept.append(&written),
                Change::Replace => *kept = written,
            }
        }
        if let Some(node) = all.get("exceptions") {
            let read = exception::read(node, what, &mut self.problems, self.file)?;
            match self.change(all, "exceptions", what, true)? {
                Change::Replace => rule.exceptions = read,
                Change::Append => {
                    for one in read {
                        exception::append(&mut rule.exceptions, one);
                    }
                }
            }
        }
        if let Some(node) = all.get("priority") {
            rule.priority = self.priority(node, what)?;
        }
        let tags = std::mem::take(&mut rule.tags);
        self.plain_keys(all, rule)?;
        if self.change(all, "tags", what, true)? == Change::Append || rule.tags.is_empty() {
            rule.tags.splice(0..0, tags);
        }
        Some(())
    }

    /// A whole number, or three parted by dots.
    fn engine_version(&mut self, node: &Node) -> Option<()> {
        let key = "required_engine_version";
        let all = Fields::of(node, "the version", &[key], &mut self.problems)?;
        let text = self.required(&all, key, "the version")?.text;
        let parts: Option<Vec<u32>> = text.split('.').map(|part| part.parse().ok()).collect();
        // Falco counted its engine up to 26, and goes on with 0.27.0.
        let version = match parts.as_deref() {
            Some([minor] | [0, minor, _]) => *minor,
            Some([_, _, _]) => u32::MAX,
            _ => {
                let message = format!("`{text}` is no version of an engine");
                let hint = "a whole number, or such as `0.57.0`";
                self.problems.error_with(node.at, message, hint);
                return None;
            }
        };
        if version > ENGINE {
            let message =
                format!("`{key}: {text}` is newer than the 0.{ENGINE}.0 that is known here");
            let hint = "what is new since is told as an error";
            self.problems.warn(node.at, message, hint);
        }
        Some(())
    }
}

/// An item of a list. Quotes within the text are those of conditions.
pub(super) fn literal(text: &str, at: Spot) -> Literal {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    let inner = quote.and_then(|quote| quoted(text, quote));
    let inner = inner.filter(|(_, length)| *length == text.len());
    Literal {
        is_quoted: inner.is_some(),
        text: inner.map_or_else(|| text.to_owned(), |(inner, _)| inner),
        at,
    }
}

const KINDS: [&str; 5] = [
    "rule",
    "macro",
    "list",
    "required_engine_version",
    "required_plugin_versions",
];
const LIST: [&str; 4] = ["list", "items", "append", "override"];
const MACRO: [&str; 4] = ["macro", "condition", "append", "override"];
const RULE: [&str; 14] = [
    "rule",
    "desc",
    "condition",
    "output",
    "priority",
    "enabled",
    "tags",
    "source",
    "exceptions",
    "warn_evttypes",
    "skip-if-unknown-filter",
    "capture",
    "append",
    "override",
];
const OVERRIDE: [&str; 12] = [
    "items",
    "desc",
    "condition",
    "output",
    "priority",
    "enabled",
    "tags",
    "exceptions",
    "warn_evttypes",
    "skip-if-unknown-filter",
    "capture",
    "source",
];

/// What `override` may append to.
const APPENDED: [&str; 6] = ["items", "desc", "condition", "output", "tags", "exceptions"];

/// The engine whose language this is.
const ENGINE: u32 = 57;

/// A file of rules: several times what all of Falco's own take.
pub const MAX_FILE_BYTES: usize = 4 << 20;
const MAX_TEXT_BYTES: usize = 64 << 10;
const MAX_ITEMS: usize = 10_000;
