//! Exceptions of a rule: what it does not hit although its condition holds. Each becomes
//! `and not (…)`.

use postern_policies::{
    diagnostic::{Place, Problems},
    yaml::{Fields, Node, Value, fields},
};

use super::{
    condition::{Expr, Literal, Operand, Operator, Test, Tested},
    document::literal,
    written::Spot,
};

/// One exception: fields, how each is compared, and rows of values.
#[derive(Debug, Clone)]
pub(super) struct Exception {
    name: String,
    at: Spot,
    fields: Vec<String>,
    comps: Vec<Operator>,
    /// Each row has a value, or several, for each field.
    rows: Vec<Vec<Vec<Literal>>>,
    /// A file may give values to an exception that an earlier one has described.
    is_described: bool,
}

impl Exception {
    /// Does it hold? None where there are no values yet.
    pub(super) fn expr(&self) -> Option<Expr> {
        if self.rows.is_empty() {
            return None;
        }
        let rows = self.rows.iter().map(|row| {
            let tests = self.fields.iter().zip(&self.comps).zip(row);
            let tests = tests.map(|((field, comp), values)| self.test(field, *comp, values));
            Expr::All(tests.collect())
        });
        Some(Expr::Any(rows.collect()))
    }

    fn test(&self, field: &str, operator: Operator, values: &[Literal]) -> Expr {
        let (field, argument) = match field.split_once('[') {
            Some((field, rest)) => (field, Some(rest.trim_end_matches(']').to_owned())),
            None => (field, None),
        };
        let tested = Tested {
            at: values.first().map_or(self.at, |value| value.at),
            transformers: Vec::new(),
            field: field.to_owned(),
            argument,
        };
        let operand = match (operator.takes_list(), values) {
            (false, [only]) => Operand::One(only.clone()),
            _ => Operand::Many(values.to_vec()),
        };
        Expr::Test(Test {
            tested,
            operator,
            operand,
        })
    }
}

/// Puts an exception beside others; values for one that is there go to that one.
pub(super) fn append(all: &mut Vec<Exception>, fresh: Exception) {
    match all.iter_mut().find(|known| known.name == fresh.name) {
        Some(known) if known.fields.len() == 1 => {
            known
                .rows
                .extend(fresh.rows.into_iter().map(|row| vec![row.concat()]));
        }
        Some(known) => known.rows.extend(fresh.rows),
        None => all.push(fresh),
    }
}

/// Reads the exceptions of a rule.
pub(super) fn read(
    node: &Node,
    what: &str,
    problems: &mut Problems<'_>,
    file: usize,
) -> Option<Vec<Exception>> {
    let items = fields::list(node, "exceptions", problems)?;
    let mut all = Vec::new();
    for item in items {
        append(&mut all, one(item, what, problems, file)?);
    }
    Some(all)
}

fn one(node: &Node, what: &str, problems: &mut Problems<'_>, file: usize) -> Option<Exception> {
    let all = Fields::of(node, "an exception", &KEYS, problems)?;
    let name = all.required("name", "an exception", problems)?;
    let name = fields::filled(name, "name", problems)?.to_owned();
    let what = format!("exception `{name}` of {what}");
    let (mut names, mut comps) = (Vec::new(), Vec::new());
    if let Some(node) = all.get("fields") {
        names = texts(node, "fields", problems)?;
        comps = match all.get("comps") {
            Some(node) => operators(node, &what, problems)?,
            None if is_list(node) => vec![Operator::Equal; names.len()],
            None => vec![Operator::In],
        };
    }
    let is_described = all.get("fields").is_some();
    if comps.len() != names.len() {
        let message = format!(
            "{what} has {} fields and {} comps",
            names.len(),
            comps.len()
        );
        problems.error_with(
            node.at,
            message,
            "write one of `comps` for each of `fields`",
        );
        return None;
    }
    let at = |place: Place| Spot { file, place };
    let mut rows = Vec::new();
    if let Some(node) = all.get("values") {
        let of_one = is_described && names.len() == 1;
        for row in fields::list(node, "values", problems)? {
            let row_of = row_of(row, of_one, problems, &at)?;
            if is_described && row_of.len() != names.len() {
                let message = format!(
                    "a row of {what} has {} values for {} fields",
                    row_of.len(),
                    names.len()
                );
                problems.error_with(row.at, message, "write a value for each of `fields`");
                return None;
            }
            rows.push(row_of);
        }
        if rows.len() > MAX_ROWS {
            problems.error(node.at, format!("{what} has more than {MAX_ROWS} rows"));
            return None;
        }
    }
    Some(Exception {
        name,
        at: at(node.at),
        fields: names,
        comps,
        rows,
        is_described,
    })
}

impl Exception {
    /// Does it say which fields it compares, and does each row have a value for each?
    pub(super) fn mistake(&self) -> Option<(Spot, String)> {
        if !self.is_described {
            let message = format!("the exception `{}` has no `fields`", self.name);
            return Some((self.at, message));
        }
        let wrong = self
            .rows
            .iter()
            .find(|row| row.len() != self.fields.len())?;
        let first = wrong.iter().flatten().next();
        let message = format!(
            "a row of the exception `{}` has {} values for {} fields",
            self.name,
            wrong.len(),
            self.fields.len()
        );
        Some((first.map_or(self.at, |value| value.at), message))
    }
}

/// The values of one row; `of_one` where it need not be a list.
fn row_of(
    row: &Node,
    of_one: bool,
    problems: &mut Problems<'_>,
    at: &impl Fn(Place) -> Spot,
) -> Option<Vec<Vec<Literal>>> {
    match &row.value {
        // `values: [a, b]` of one field, or `[[a, b]]`.
        Value::List(items) if of_one && !items.iter().any(is_list) => {
            Some(vec![many(items, problems, at)?])
        }
        Value::List(items) => {
            let each = items.iter().map(|item| match &item.value {
                Value::List(items) => many(items, problems, at),
                _ => many(std::slice::from_ref(item), problems, at),
            });
            each.collect()
        }
        _ => Some(vec![many(std::slice::from_ref(row), problems, at)?]),
    }
}

fn many(
    items: &[Node],
    problems: &mut Problems<'_>,
    at: &impl Fn(Place) -> Spot,
) -> Option<Vec<Literal>> {
    let each = items.iter().map(|item| match item.value {
        Value::Integer(number) => Some(literal(&number.to_string(), at(item.at))),
        Value::Bool(flag) => Some(literal(&flag.to_string(), at(item.at))),
        _ => Some(literal(
            fields::text(item, "values", problems)?,
            at(item.at),
        )),
    });
    each.collect()
}

fn texts(node: &Node, what: &str, problems: &mut Problems<'_>) -> Option<Vec<String>> {
    let items = match &node.value {
        Value::List(items) => items.as_slice(),
        _ => std::slice::from_ref(node),
    };
    let read = items
        .iter()
        .map(|item| fields::filled(item, what, problems).map(str::to_owned));
    read.collect()
}

fn operators(node: &Node, what: &str, problems: &mut Problems<'_>) -> Option<Vec<Operator>> {
    let words = texts(node, "comps", problems)?;
    let read = words.iter().map(|word| {
        let operator = Operator::of(word);
        if operator.is_none() {
            problems.error(
                node.at,
                format!("`{word}` in `comps` of {what} is no operator"),
            );
        }
        operator
    });
    read.collect()
}

fn is_list(node: &Node) -> bool {
    matches!(node.value, Value::List(_))
}

const KEYS: [&str; 4] = ["name", "fields", "comps", "values"];
const MAX_ROWS: usize = 1_000;
