//! The line that a rule says when it hits: a text with fields in it.

use super::{
    check::{Given, MAX_GENERATIONS},
    derived,
    event::{Argument, Event, Value},
    field::{self, Field, Source, Takes},
};

/// A line with fields in it.
#[derive(Debug)]
pub(super) struct Output(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Text(String),
    /// None for one that nobody fills.
    Field(String, Option<(Field, Given)>),
}

impl Output {
    /// Reads a line. Falco's `*` before it says nothing any more.
    ///
    /// # Errors
    /// The position and the name of a field that is none.
    pub(super) fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut pieces = Vec::new();
        let mut rest = text.trim().strip_prefix('*').unwrap_or(text.trim());
        while let Some((before, after)) = rest.split_once('%') {
            pieces.push(Piece::Text(before.to_owned()));
            let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
            let end = after.find(|c| !is_of_name(c)).unwrap_or(after.len());
            let (name, mut left) = after.split_at_checked(end).unwrap_or_default();
            // A full stop after a field ends the sentence.
            let name = name.trim_end_matches('.');
            left = after.get(name.len()..).unwrap_or(left);
            if name.is_empty() {
                pieces.push(Piece::Text("%".to_owned()));
                rest = left;
                continue;
            }
            let mut argument = None;
            if let Some((inner, after)) =
                left.strip_prefix('[').and_then(|left| left.split_once(']'))
            {
                argument = Some(inner);
                left = after;
            }
            let known = field::known(name).ok_or_else(|| {
                let position = text.len().saturating_sub(after.len() + 1);
                (position, name.to_owned())
            })?;
            if name == CONTAINER {
                pieces.extend(container());
                rest = left;
                continue;
            }
            pieces.push(Piece::Field(
                match argument {
                    Some(argument) => format!("{name}[{argument}]"),
                    None => name.to_owned(),
                },
                asked(known, argument),
            ));
            rest = left;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// The fields that are always `<NA>`.
    pub(super) fn unfilled(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Field(name, None) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The line for an event.
    pub(super) fn line(&self, event: &dyn Event) -> String {
        let mut line = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Field(_, asked) => {
                    let value = asked.as_ref().and_then(|(field, given)| {
                        let argument = match given {
                            Given::Generation(generation) => Argument::Generation(*generation),
                            Given::Variable(name) => Argument::Variable(name),
                            Given::AnyGeneration | Given::Nothing => Argument::None,
                        };
                        derived::value(event, *field, argument)
                    });
                    push(&mut line, value);
                }
            }
        }
        line.truncate(line.floor_char_boundary(MAX_LINE_BYTES));
        line
    }
}

/// What Falco itself puts in place of `%container.info`.
fn container() -> [Piece; 4] {
    let field = |name: &str, field| Piece::Field(name.to_owned(), Some((field, Given::Nothing)));
    [
        Piece::Text("container_id=".to_owned()),
        field("container.id", Field::ContainerId),
        Piece::Text(" container_name=".to_owned()),
        field("container.name", Field::ContainerName),
    ]
}

fn asked(known: field::Known, argument: Option<&str>) -> Option<(Field, Given)> {
    let (Source::Every(field) | Source::Socket(field)) = known.source else {
        return None;
    };
    let given = match (known.takes, argument) {
        (Takes::Generation, Some(text)) => {
            let generation = text.parse().ok().filter(|n| *n <= MAX_GENERATIONS)?;
            Given::Generation(generation)
        }
        (Takes::Generation, None) => Given::Generation(1),
        (Takes::Variable, Some(name)) => Given::Variable(name.into()),
        _ => Given::Nothing,
    };
    Some((field, given))
}

/// What a process chooses itself must not make a line of its own.
fn push(line: &mut String, value: Option<Value<'_>>) {
    match value {
        None => line.push_str("<NA>"),
        Some(Value::Text(text)) => {
            let shown = text.get(..MAX_VALUE_BYTES).unwrap_or(text);
            for c in String::from_utf8_lossy(shown).chars() {
                match c.is_control() {
                    true => line.extend(c.escape_default()),
                    false => line.push(c),
                }
            }
        }
        Some(Value::Number(number)) => line.push_str(&number.to_string()),
        Some(Value::Flag(flag)) => line.push_str(if flag { "true" } else { "false" }),
        Some(Value::Address(address)) => line.push_str(&address.to_string()),
    }
}

const CONTAINER: &str = "container.info";
const MAX_VALUE_BYTES: usize = 4 << 10;
const MAX_LINE_BYTES: usize = 16 << 10;
