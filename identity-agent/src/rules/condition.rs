//! Conditions as they are written: a parser that knows the grammar and no field.
//!
//! `or` binds weakest, then `and`, then `not`. What is written after an operator is read by another
//! rule than names are: `evt.dir=<` compares with `<`.

use super::written::{Spot, Written};

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expr {
    /// All of them hold.
    All(Vec<Expr>),
    /// One of them holds.
    Any(Vec<Expr>),
    /// It does not hold.
    Not(Box<Expr>),
    /// The macro of this name holds.
    Named(Name),
    /// A test of one field.
    Test(Test),
}

/// A name, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) text: String,
    pub(super) at: Spot,
}

/// `field operator value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) tested: Tested,
    pub(super) operator: Operator,
    pub(super) operand: Operand,
}

/// A field with its argument, and what is made of its value before it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tested {
    pub(super) at: Spot,
    /// The outermost first.
    pub(super) transformers: Vec<Name>,
    pub(super) field: String,
    pub(super) argument: Option<String>,
}

impl Tested {
    /// As it was written, without transformers.
    pub(super) fn name(&self) -> String {
        match &self.argument {
            Some(argument) => format!("{}[{argument}]", self.field),
            None => self.field.clone(),
        }
    }
}

/// What a field is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operand {
    /// Nothing: `exists`.
    Nothing,
    /// A value.
    One(Literal),
    /// A list in brackets; its items may be names of lists.
    Many(Vec<Literal>),
    /// Another field.
    Field(Tested),
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Literal {
    pub(super) text: String,
    pub(super) is_quoted: bool,
    pub(super) at: Spot,
}

/// How a field is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Contains,
    ContainsInAnyCase,
    StartsWith,
    EndsWith,
    Glob,
    GlobInAnyCase,
    Regex,
    In,
    Intersects,
    PathMatch,
    Exists,
    /// On bytes that are no text, which no field here has.
    OfBytes,
}

impl Operator {
    /// Its operand is a list.
    pub(super) fn takes_list(self) -> bool {
        matches!(self, Self::In | Self::Intersects | Self::PathMatch)
    }

    /// By the word that `comps` of an exception, or a condition, writes.
    pub(super) fn of(word: &str) -> Option<Self> {
        let all = SIGNS.iter().chain(&WORDS);
        all.clone()
            .find_map(|(name, operator)| (*name == word).then_some(*operator))
    }
}

/// The longer ones first.
const SIGNS: [(&str, Operator); 7] = [
    ("!=", Operator::Unequal),
    ("==", Operator::Equal),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

const WORDS: [(&str, Operator); 13] = [
    ("contains", Operator::Contains),
    ("icontains", Operator::ContainsInAnyCase),
    ("startswith", Operator::StartsWith),
    ("endswith", Operator::EndsWith),
    ("glob", Operator::Glob),
    ("iglob", Operator::GlobInAnyCase),
    ("regex", Operator::Regex),
    ("in", Operator::In),
    ("intersects", Operator::Intersects),
    ("pmatch", Operator::PathMatch),
    ("exists", Operator::Exists),
    ("bcontains", Operator::OfBytes),
    ("bstartswith", Operator::OfBytes),
];

/// What may stand before a field in brackets.
pub(super) const TRANSFORMERS: [&str; 4] = ["tolower", "toupper", "basename", "len"];

/// One that rules may have, and that is not supported here.
pub(super) const BASE64: &str = "b64";

/// Those of several values.
const OTHER_TRANSFORMERS: [&str; 2] = ["join", "concat"];

/// A mistake in a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) at: Spot,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Mistake {
    pub(super) fn new(at: Spot, message: impl Into<String>) -> Self {
        Self {
            at,
            message: message.into(),
            hint: None,
        }
    }

    /// The same, with what it is in.
    pub(super) fn of(self, what: &str) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

/// Reads a condition. Pure.
///
/// # Errors
/// The first mistake.
pub(super) fn parse(written: &Written) -> Result<Expr, Mistake> {
    let mut parser = Parser {
        written,
        text: &written.text,
        position: 0,
    };
    let read = parser.any(0)?;
    parser.blanks();
    match parser.rest() {
        "" => Ok(read),
        ")" => Err(parser.mistake("there is a `)` without its `(`")),
        rest => {
            let word = first_word(rest);
            Err(parser
                .mistake(format!("`{word}` was not expected here"))
                .hint("tests are joined by `and` and `or`; put a value with blanks in quotes"))
        }
    }
}

struct Parser<'a> {
    written: &'a Written,
    text: &'a str,
    position: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.position..).unwrap_or_default()
    }

    fn spot(&self) -> Spot {
        self.written.spot(self.position)
    }

    fn mistake(&self, message: impl Into<String>) -> Mistake {
        Mistake::new(self.spot(), message)
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.position += rest.len() - rest.trim_start().len();
    }

    /// Takes a sign if it comes next.
    fn sign(&mut self, sign: &str) -> bool {
        self.blanks();
        let is_next = self.rest().starts_with(sign);
        if is_next {
            self.position += sign.len();
        }
        is_next
    }

    /// Takes a whole word if it comes next.
    fn word(&mut self, word: &str) -> bool {
        self.blanks();
        let rest = self.rest().strip_prefix(word);
        let is_next = rest.is_some_and(|rest| !rest.starts_with(is_of_name));
        if is_next {
            self.position += word.len();
        }
        is_next
    }

    fn any(&mut self, depth: usize) -> Result<Expr, Mistake> {
        let first = self.all(depth)?;
        let mut parts = vec![first];
        while self.word("or") {
            parts.push(self.all(depth)?);
        }
        Ok(one_or(parts, Expr::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Expr, Mistake> {
        let first = self.negated(depth)?;
        let mut parts = vec![first];
        while self.word("and") {
            parts.push(self.negated(depth)?);
        }
        Ok(one_or(parts, Expr::All))
    }

    fn negated(&mut self, depth: usize) -> Result<Expr, Mistake> {
        if depth > MAX_DEPTH {
            let message = format!("brackets and `not` lie deeper than {MAX_DEPTH} in each other");
            return Err(self.mistake(message).hint("name a part of it as a macro"));
        }
        if self.word("not") {
            return Ok(Expr::Not(Box::new(self.negated(depth + 1)?)));
        }
        let opened = {
            self.blanks();
            self.spot()
        };
        if !self.sign("(") {
            return self.test();
        }
        let inner = self.any(depth + 1)?;
        if !self.sign(")") {
            self.blanks();
            let found = self.rest();
            if found.is_empty() {
                return Err(Mistake::new(opened, "there is a `(` without its `)`"));
            }
            let word = first_word(found);
            return Err(self
                .mistake(format!("`{word}` was not expected here"))
                .hint("tests are joined by `and` and `or`; put a value with blanks in quotes"));
        }
        Ok(inner)
    }

    /// A test, or the name of a macro.
    fn test(&mut self) -> Result<Expr, Mistake> {
        let tested = self.tested(0)?;
        let Some(operator) = self.operator(&tested)? else {
            let is_macro = tested.transformers.is_empty()
                && tested.argument.is_none()
                && !tested.field.contains('.');
            if is_macro {
                return Ok(Expr::Named(Name {
                    text: tested.field,
                    at: tested.at,
                }));
            }
            let message = format!("the field `{}` needs an operator", tested.name());
            return Err(
                Mistake::new(tested.at, message).hint("such as `= value`, `in (a, b)` or `exists`")
            );
        };
        let operand = match operator {
            Operator::Exists => Operand::Nothing,
            operator if operator.takes_list() => Operand::Many(self.list(&tested)?),
            _ => self.operand(&tested)?,
        };
        Ok(Expr::Test(Test {
            tested,
            operator,
            operand,
        }))
    }

    /// A field with its argument and transformers.
    fn tested(&mut self, depth: usize) -> Result<Tested, Mistake> {
        self.blanks();
        let (at, rest) = (self.spot(), self.rest());
        let end = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
        let name = rest.get(..end).unwrap_or_default();
        if name.is_empty() {
            let mistake = match first_word(rest) {
                "" => self.mistake("the condition ends where a test was expected"),
                word => self.mistake(format!("`{word}` stands where a test was expected")),
            };
            return Err(mistake.hint("a test is `field operator value`, or the name of a macro"));
        }
        self.position += end;
        if self.rest().starts_with('(') {
            return self.transformed(name, at, depth);
        }
        let argument = match self.rest().strip_prefix('[') {
            Some(inner) => {
                let Some(end) = inner.find(']') else {
                    return Err(Mistake::new(at, format!("`{name}[` has no `]`")));
                };
                self.position += end + 2;
                let argument = inner.get(..end).unwrap_or_default();
                Some(argument.trim_matches(['"', '\'']).to_owned())
            }
            None => None,
        };
        Ok(Tested {
            at,
            transformers: Vec::new(),
            field: name.to_owned(),
            argument,
        })
    }

    fn transformed(&mut self, name: &str, at: Spot, depth: usize) -> Result<Tested, Mistake> {
        if OTHER_TRANSFORMERS.contains(&name) {
            let message = format!("the transformer `{name}` is not supported");
            return Err(Mistake::new(at, message).hint(format!("there are {}", transformers())));
        }
        if !TRANSFORMERS.contains(&name) && ![VALUE, BASE64].contains(&name) {
            let message = format!("`{name}` is no transformer");
            return Err(Mistake::new(at, message).hint(format!("there are {}", transformers())));
        }
        if depth >= MAX_TRANSFORMERS {
            let message = format!("more than {MAX_TRANSFORMERS} transformers lie in each other");
            return Err(Mistake::new(at, message));
        }
        self.sign("(");
        let mut tested = self.tested(depth + 1)?;
        if !self.sign(")") {
            return Err(self.mistake(format!("`{name}(` has no `)`")));
        }
        let text = name.to_owned();
        tested.transformers.insert(0, Name { text, at });
        tested.at = at;
        Ok(tested)
    }

    fn operator(&mut self, tested: &Tested) -> Result<Option<Operator>, Mistake> {
        self.blanks();
        for (sign, operator) in SIGNS {
            if self.sign(sign) {
                return Ok(Some(operator));
            }
        }
        for (word, operator) in WORDS {
            if self.word(word) {
                return Ok(Some(operator));
            }
        }
        let word = first_word(self.rest());
        if tested.field.contains('.') && !word.is_empty() && !["and", "or"].contains(&word) {
            let known: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
            let hint = match postern_policies::yaml::fields::nearest(word, &known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("there are = != < <= > >= {}", known.join(" ")),
            };
            let message = format!("`{word}` after `{}` is no operator", tested.name());
            return Err(self.mistake(message).hint(hint));
        }
        Ok(None)
    }

    fn operand(&mut self, tested: &Tested) -> Result<Operand, Mistake> {
        self.blanks();
        if self.rest().starts_with("val(") {
            let mut field = self.tested(0)?;
            field.transformers.retain(|one| one.text != VALUE);
            return Ok(Operand::Field(field));
        }
        self.literal(tested).map(Operand::One)
    }

    /// `(a, "b c", d)`, or the name of one list.
    fn list(&mut self, tested: &Tested) -> Result<Vec<Literal>, Mistake> {
        if !self.sign("(") {
            return Ok(vec![self.literal(tested)?]);
        }
        let mut items = Vec::new();
        if self.sign(")") {
            return Ok(items);
        }
        loop {
            if items.len() >= MAX_ITEMS {
                let message = format!("a list has more than {MAX_ITEMS} items");
                return Err(self.mistake(message));
            }
            items.push(self.literal(tested)?);
            if self.sign(")") {
                return Ok(items);
            }
            if !self.sign(",") {
                let name = tested.name();
                return Err(self
                    .mistake(format!("the list after `{name}` has no `)`"))
                    .hint("items are parted by commas; put one with blanks in quotes"));
            }
        }
    }

    fn literal(&mut self, tested: &Tested) -> Result<Literal, Mistake> {
        self.blanks();
        let (at, rest) = (self.spot(), self.rest());
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
        if let Some(quote) = quote {
            let (text, length) = quoted(rest, quote).ok_or_else(|| {
                Mistake::new(
                    at,
                    format!("the text after `{}` does not end", tested.name()),
                )
                .hint(format!("there is no second `{quote}`"))
            })?;
            self.position += length;
            let is_quoted = true;
            return Ok(Literal {
                text,
                is_quoted,
                at,
            });
        }
        let ends = |c: char| c.is_whitespace() || matches!(c, '(' | ')' | '"' | '\'' | ',');
        let end = rest.find(ends).unwrap_or(rest.len());
        if end == 0 {
            let message = format!("there is no value after `{}`", tested.name());
            return Err(Mistake::new(at, message).hint("write `\"\"` for an empty text"));
        }
        self.position += end;
        Ok(Literal {
            text: rest.get(..end).unwrap_or_default().to_owned(),
            is_quoted: false,
            at,
        })
    }
}

/// The text between quotes at the start of this one, and how many bytes it takes with them.
pub(super) fn quoted(rest: &str, quote: char) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut letters = rest.char_indices().skip(1);
    while let Some((at, c)) = letters.next() {
        if c == quote {
            return Some((text, at + 1));
        }
        if c != '\\' {
            text.push(c);
            continue;
        }
        match letters.next()?.1 {
            'n' => text.push('\n'),
            't' => text.push('\t'),
            escaped @ ('"' | '\'' | '\\') => text.push(escaped),
            // A regular expression's own.
            other => text.extend(['\\', other]),
        }
    }
    None
}

fn one_or(mut parts: Vec<Expr>, many: fn(Vec<Expr>) -> Expr) -> Expr {
    match (parts.pop(), parts.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            parts.extend(last);
            many(parts)
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

fn first_word(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let end = text.floor_char_boundary(end.min(MAX_SHOWN));
    text.get(..end).unwrap_or_default()
}

fn transformers() -> String {
    let quoted = TRANSFORMERS.iter().map(|name| format!("`{name}`"));
    quoted.collect::<Vec<_>>().join(", ")
}

/// Marks a field where a value is expected.
const VALUE: &str = "val";

/// No rule that people write comes near.
const MAX_DEPTH: usize = 32;
const MAX_TRANSFORMERS: usize = 4;
const MAX_ITEMS: usize = 10_000;

/// Bytes of a word that a message repeats.
const MAX_SHOWN: usize = 60;
