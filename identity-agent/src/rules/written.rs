//! Where in a file each letter of a text stands.
//!
//! YAML folds lines and strips indentation, so a mistake in the middle of a condition has no place of
//! its own. Blanks are all that YAML changes in a plain or block text: the other letters are found again
//! in the file, in order.

use postern_policies::diagnostic::Place;

/// A place in one of several files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    /// The number of the file.
    pub(super) file: usize,
    pub(super) place: Place,
}

/// A text and where its letters stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) text: String,
    /// By the position in bytes, of letters that are no blanks.
    spots: Vec<(usize, Spot)>,
    start: Spot,
}

impl Written {
    /// A text that begins at this spot, in the file of these lines.
    pub(super) fn of(lines: &[&str], start: Spot, text: &str) -> Self {
        let mut letters = letters_from(lines, start.place);
        let mut spots = Vec::new();
        for (position, letter) in text.char_indices().filter(|(_, c)| !c.is_whitespace()) {
            // What stands in quotes may be escaped; from there on the last one has to do.
            let Some((_, place)) = letters.by_ref().find(|(c, _)| *c == letter) else {
                break;
            };
            let file = start.file;
            spots.push((position, Spot { file, place }));
        }
        let text = text.to_owned();
        Self { text, spots, start }
    }

    /// Puts another text behind this one.
    pub(super) fn append(&mut self, other: &Self) {
        self.text.push(' ');
        let shift = self.text.len();
        self.text.push_str(&other.text);
        let first = (shift, other.start);
        let moved = other.spots.iter().map(|(at, spot)| (at + shift, *spot));
        self.spots.extend(std::iter::once(first).chain(moved));
    }

    /// The spot of the letter at this position, or of the nearest one before it.
    pub(super) fn spot(&self, position: usize) -> Spot {
        let before = self.spots.partition_point(|(at, _)| *at <= position);
        let found = before.checked_sub(1).and_then(|at| self.spots.get(at));
        found.map_or(self.start, |(_, spot)| *spot)
    }
}

/// The letters of a file from a place on, without blanks, and without the line that begins a block.
fn letters_from<'a>(
    lines: &'a [&'a str],
    start: Place,
) -> impl Iterator<Item = (char, Place)> + 'a {
    let from_zero = |number: u32| {
        usize::try_from(number)
            .unwrap_or(usize::MAX)
            .saturating_sub(1)
    };
    let (first, column) = (from_zero(start.line), from_zero(start.column));
    let sign = lines.get(first).and_then(|line| line.chars().nth(column));
    let is_block = sign.is_some_and(|c| matches!(c, '>' | '|'));
    let from = if is_block { first + 1 } else { first };
    let numbered = lines.iter().enumerate().skip(from);
    numbered.flat_map(move |(number, line)| {
        let skipped = if number == first { column } else { 0 };
        let letters = line.chars().enumerate().skip(skipped);
        letters
            .filter(|(_, c)| !c.is_whitespace())
            .map(move |(column, c)| (c, place(number, column)))
    })
}

fn place(line: usize, column: usize) -> Place {
    let from_one = |number: usize| u32::try_from(number + 1).unwrap_or(u32::MAX);
    Place {
        line: from_one(line),
        column: from_one(column),
    }
}

#[cfg(test)]
mod tests {
    use postern_policies::diagnostic::Place;

    use super::{Spot, Written};

    fn spot(file: usize, line: u32, column: u32) -> Spot {
        let place = Place { line, column };
        Spot { file, place }
    }

    #[test]
    fn the_letters_of_a_folded_text_are_found_in_its_lines() {
        let file = "- macro: a\n  condition: >\n    one and\n      two\n";
        let lines: Vec<&str> = file.lines().collect();
        let mut written = Written::of(&lines, spot(0, 2, 14), "one and two\n");
        for (position, line, column) in [(0, 3, 5), (4, 3, 9), (8, 4, 7), (10, 4, 9), (99, 4, 9)] {
            assert_eq!(written.spot(position), spot(0, line, column), "{position}");
        }
        let lines = ["condition: or x"];
        written.append(&Written::of(&lines, spot(1, 1, 12), "or x"));
        assert_eq!(written.text, "one and two\n or x");
        assert_eq!(written.spot(10), spot(0, 4, 9));
        assert_eq!(written.spot(13), spot(1, 1, 12));
        assert_eq!(written.spot(16), spot(1, 1, 15));
    }
}
