//! From names to things: macros are put in their places, lists in theirs, fields are looked up, and
//! values get the types of their fields.

use std::collections::BTreeMap;

use postern_policies::yaml::fields::nearest;

use super::{
    builtin,
    check::{Asked, Case, Check, Given, How, MAX_GENERATIONS, Made, Other, Wanted},
    condition::{BASE64, Expr, Literal, Mistake, Name, Operand, Operator, Test, Tested},
    document::Library,
    field::{self, Field, Kind, Known, Source, Takes},
    written::Spot,
};

/// A condition in which nothing is left to look up.
#[derive(Debug)]
pub(super) enum Resolved {
    All(Vec<Resolved>),
    Any(Vec<Resolved>),
    Not(Box<Resolved>),
    Test(Leaf),
}

/// One test, with what a person must know of it.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) known: Known,
    /// As it was written.
    pub(super) name: String,
    pub(super) at: Spot,
    /// None for a field that nobody fills.
    pub(super) check: Option<std::sync::Arc<Check>>,
}

/// Why a rule does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) mistake: Mistake,
    /// The field that is meant, where there is one.
    pub(super) field: Option<String>,
    /// No field of Falco has this name.
    pub(super) is_unknown_field: bool,
}

impl From<Mistake> for Refused {
    fn from(mistake: Mistake) -> Self {
        Self {
            mistake,
            field: None,
            is_unknown_field: false,
        }
    }
}

/// Puts conditions together.
#[derive(Debug)]
pub(super) struct Resolver<'a> {
    library: &'a Library,
    builtin: BTreeMap<&'static str, Expr>,
    /// How many tests the condition at hand may still have.
    room: usize,
    /// How many tests and values all conditions together may still have.
    tests_left: usize,
    values_left: usize,
    /// How deep it lies in others.
    depth: usize,
    /// Legal, but probably not meant.
    pub(super) warnings: Vec<Mistake>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(library: &'a Library) -> Self {
        Self {
            library,
            builtin: builtin::macros(),
            room: MAX_TESTS,
            tests_left: MAX_ALL_TESTS,
            values_left: MAX_ALL_VALUES,
            depth: 0,
            warnings: Vec::new(),
        }
    }

    /// Resolves a whole condition.
    ///
    /// # Errors
    /// [`Refused`]; the rule does not run.
    pub(super) fn resolve(&mut self, expr: &Expr) -> Result<Resolved, Refused> {
        self.room = MAX_TESTS;
        self.depth = 0;
        self.warnings.clear();
        self.expr(expr, &mut Vec::new())
    }

    /// `within` are the macros that this stands in.
    fn expr(&mut self, expr: &Expr, within: &mut Vec<String>) -> Result<Resolved, Refused> {
        let many = |resolver: &mut Self, parts: &[Expr], within: &mut Vec<String>| {
            let parts = parts.iter().map(|part| resolver.expr(part, within));
            parts.collect::<Result<Vec<_>, _>>()
        };
        self.depth += 1;
        let resolved = match expr {
            Expr::All(parts) => many(self, parts, within).map(Resolved::All),
            Expr::Any(parts) => many(self, parts, within).map(Resolved::Any),
            Expr::Not(inner) => {
                let inner = self.expr(inner, within)?;
                Ok(Resolved::Not(Box::new(inner)))
            }
            Expr::Named(name) => self.named(name, within),
            Expr::Test(test) => self.test(test).map(Resolved::Test),
        };
        self.depth -= 1;
        resolved
    }

    fn named(&mut self, name: &Name, within: &mut Vec<String>) -> Result<Resolved, Refused> {
        if within.contains(&name.text) {
            let message = format!("the macro `{}` is made of itself", name.text);
            return Err(Mistake::new(name.at, message).into());
        }
        if within.len() >= MAX_MACROS || self.depth > MAX_DEPTH {
            let message = "macros and brackets stand too deep in each other";
            return Err(Mistake::new(name.at, message).into());
        }
        let library = self.library;
        let expr = match library.macros.get(&name.text) {
            Some(found) => found.expr.clone(),
            None => self.builtin.get(name.text.as_str()).cloned(),
        };
        let Some(expr) = expr else {
            return Err(self.unknown_macro(name).into());
        };
        within.push(name.text.clone());
        let resolved = self.expr(&expr, within);
        within.pop();
        resolved
    }

    fn unknown_macro(&self, name: &Name) -> Mistake {
        let known = self.library.macros.keys().map(String::as_str);
        let known: Vec<&str> = known.chain(self.builtin.keys().copied()).collect();
        let hint = match nearest(&name.text, &known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "define it, or name the file that does before this one".to_owned(),
        };
        let message = format!("there is no macro `{}`", name.text);
        Mistake::new(name.at, message).hint(hint)
    }

    fn test(&mut self, test: &Test) -> Result<Leaf, Refused> {
        let tested = &test.tested;
        self.room = self.room.checked_sub(1).ok_or_else(|| {
            let message = format!("with its macros the condition has more than {MAX_TESTS} tests");
            Mistake::new(tested.at, message)
        })?;
        self.tests_left = self.tests_left.checked_sub(1).ok_or_else(|| {
            let message = format!("all rules together have more than {MAX_ALL_TESTS} tests");
            Mistake::new(tested.at, message).hint("use fewer rules, or fewer macros in them")
        })?;
        let known = known(tested)?;
        let name = tested.name();
        let at = tested.at;
        let refused = |message: String, hint: &str| Refused {
            mistake: Mistake::new(at, format!("`{name}`: {message}")).hint(hint),
            field: Some(name.clone()),
            is_unknown_field: false,
        };
        if test.operator == Operator::OfBytes {
            let message = "`bcontains` and `bstartswith` are not supported: no field holds bytes";
            return Err(refused(message.to_owned(), "compare text with `contains`"));
        }
        if tested.transformers.iter().any(|one| one.text == BASE64) {
            let message = format!("the transformer `{BASE64}` is not supported");
            return Err(refused(message, "compare the text itself"));
        }
        let leaf = |check| Leaf {
            known,
            name: name.clone(),
            at,
            check,
        };
        let (Source::Every(field) | Source::Socket(field)) = known.source else {
            return Ok(leaf(None));
        };
        let asked = Asked {
            field,
            argument: argument(tested, known).map_err(|(message, hint)| refused(message, hint))?,
            made: made(tested, known, test.operator)
                .map_err(|(message, hint)| refused(message, hint))?,
        };
        let kind = if asked.made.is_length {
            Kind::Number
        } else {
            known.kind
        };
        let wanted = match &test.operand {
            Operand::Nothing => Wanted::Anything,
            Operand::One(value) => {
                self.warn_of_field(&name, value);
                let value = std::slice::from_ref(value);
                Wanted::of(kind, test.operator, value)
                    .map_err(|(message, hint)| refused(message, hint))?
            }
            Operand::Many(values) => {
                let values = self.items(values, &mut Vec::new())?;
                let left = self.values_left.checked_sub(values.len());
                self.values_left = left.ok_or_else(|| {
                    let message = format!(
                        "all rules together have more than {MAX_ALL_VALUES} values in lists"
                    );
                    Mistake::new(at, message).hint("test a long list in fewer places")
                })?;
                Wanted::of(kind, test.operator, &values)
                    .map_err(|(message, hint)| refused(message, hint))?
            }
            Operand::Field(other) => {
                let other = self.other(other, known, test.operator);
                Wanted::Same(other?)
            }
        };
        let is_negated = test.operator == Operator::Unequal;
        let check = Check {
            asked,
            wanted,
            is_negated,
        };
        Ok(leaf(Some(check.into())))
    }

    /// A value that reads like a field is a text.
    fn warn_of_field(&mut self, name: &str, value: &Literal) {
        let is_field = FIELD_FAMILIES
            .iter()
            .any(|family| value.text.starts_with(family))
            && field::known(&value.text).is_some();
        if is_field && !value.is_quoted {
            let text = &value.text;
            let message =
                format!("`{name}` is compared with the text `{text}`, which looks like a field");
            let hint = format!("write `val({text})` for the field, or quotes around the text");
            self.warnings
                .push(Mistake::new(value.at, message).hint(hint));
        }
    }

    /// The items of a list, with those of lists that it names.
    fn items(
        &mut self,
        items: &[Literal],
        within: &mut Vec<String>,
    ) -> Result<Vec<Literal>, Refused> {
        let mut all = Vec::new();
        for item in items {
            let library = self.library;
            let named = library.lists.get(&item.text).filter(|_| !item.is_quoted);
            let Some(named) = named else {
                all.push(item.clone());
                continue;
            };
            if within.contains(&item.text) || within.len() >= MAX_MACROS {
                let message = format!("the list `{}` is made of itself, or too deep", item.text);
                return Err(Mistake::new(item.at, message).into());
            }
            within.push(item.text.clone());
            let more = self.items(named, within);
            within.pop();
            all.extend(more?);
            if all.len() > MAX_ITEMS {
                let message =
                    format!("with the lists that it names a list has more than {MAX_ITEMS} items");
                return Err(Mistake::new(item.at, message).into());
            }
        }
        Ok(all)
    }

    fn other(&self, other: &Tested, own: Known, operator: Operator) -> Result<Other, Refused> {
        let known = known(other)?;
        let name = other.name();
        let refused = |message: &str, hint: &str| Refused {
            mistake: Mistake::new(other.at, format!("`val({name})`: {message}")).hint(hint),
            field: Some(name.clone()),
            is_unknown_field: false,
        };
        let Source::Every(field) = known.source else {
            return Err(refused(
                "not every event has this field",
                "compare with a value",
            ));
        };
        if known.kind != own.kind {
            return Err(refused(
                "the two fields are not of one kind",
                "compare with a value",
            ));
        }
        let how = match operator {
            Operator::Equal | Operator::Unequal => How::Equal,
            Operator::Contains => How::Contains,
            Operator::StartsWith => How::StartsWith,
            Operator::EndsWith => How::EndsWith,
            _ => {
                return Err(refused(
                    "this operator takes a value",
                    "compare fields with `=`",
                ));
            }
        };
        let argument = argument(other, known).map_err(|(message, hint)| refused(&message, hint))?;
        let made =
            made(other, known, operator).map_err(|(message, hint)| refused(&message, hint))?;
        if argument == Given::AnyGeneration || made.case != Case::AsIs || made.is_length {
            return Err(refused(
                "this cannot be made of the right side",
                "make it of the left side",
            ));
        }
        let other = Asked {
            field,
            argument,
            made,
        };
        Ok(Other { how, other })
    }
}

fn known(tested: &Tested) -> Result<Known, Refused> {
    let known = field::known(&tested.field).ok_or_else(|| {
        let names = field::names();
        let hint = match nearest(&tested.field, &names) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "docs/drift.md lists the fields".to_owned(),
        };
        let message = format!("`{}` is no field that is known here", tested.field);
        Refused {
            mistake: Mistake::new(tested.at, message).hint(hint),
            field: Some(tested.name()),
            is_unknown_field: true,
        }
    })?;
    Ok(known)
}

type Unfit = (String, &'static str);

fn argument(tested: &Tested, known: Known) -> Result<Given, Unfit> {
    match (known.takes, &tested.argument) {
        (Takes::Nothing | Takes::Anything, None) => Ok(Given::Nothing),
        (Takes::Generation, None) => Ok(Given::AnyGeneration),
        (Takes::Generation, Some(text)) => match text.parse::<u8>() {
            // 0 is the process itself.
            Ok(generation) if generation <= MAX_GENERATIONS => Ok(Given::Generation(generation)),
            _ => {
                let message = format!("`{text}` is no generation from 0 to {MAX_GENERATIONS}");
                Err((message, "1 is the parent"))
            }
        },
        (Takes::Variable, Some(text)) if !text.is_empty() => {
            Ok(Given::Variable(text.as_str().into()))
        }
        (Takes::Variable, None) => Ok(Given::Nothing),
        (Takes::Variable, Some(_)) => {
            let message = "there is no name of a variable in its brackets".to_owned();
            Err((message, "such as `proc.env[HOME]`"))
        }
        (Takes::Nothing, Some(_)) => {
            let message = "it takes nothing in square brackets".to_owned();
            Err((message, "leave them out"))
        }
        (Takes::Anything, Some(_)) => Ok(Given::Nothing),
    }
}

fn made(tested: &Tested, known: Known, operator: Operator) -> Result<Made, Unfit> {
    let mut made = Made::NOTHING;
    if matches!(
        operator,
        Operator::ContainsInAnyCase | Operator::GlobInAnyCase
    ) {
        made.case = Case::Either;
    }
    for transformer in &tested.transformers {
        if known.kind != Kind::Text {
            let message = format!("`{}` is made of texts, and this is none", transformer.text);
            return Err((message, "leave the transformer out"));
        }
        match transformer.text.as_str() {
            "len" => made.is_length = true,
            "basename" => made.is_basename = true,
            "tolower" => made.case = Case::Lower,
            "toupper" => made.case = Case::Upper,
            // `val` on the left changes nothing.
            _ => {}
        }
    }
    if made.case != Case::AsIs && operator == Operator::Regex {
        let message = "a regular expression has its own way to pass over case".to_owned();
        return Err((
            message,
            "begin it with `(?i)` and leave the transformer out",
        ));
    }
    Ok(made)
}

/// Is this the type of events?
pub(super) fn is_type(leaf: &Leaf) -> bool {
    leaf.known.source == Source::Every(Field::EvtType)
}

const FIELD_FAMILIES: [&str; 9] = [
    "evt.",
    "proc.",
    "thread.",
    "user.",
    "group.",
    "container.",
    "fd.",
    "fs.",
    "k8s.",
];

/// Of one condition, macros and exceptions put in.
const MAX_TESTS: usize = 20_000;
const MAX_ITEMS: usize = 50_000;
/// Of all conditions: several times what all of Falco's own take.
const MAX_ALL_TESTS: usize = 100_000;
const MAX_ALL_VALUES: usize = 500_000;
const MAX_MACROS: usize = 24;
const MAX_DEPTH: usize = 96;
