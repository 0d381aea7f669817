//! Reading YAML with the place of everything: the way in which all of Postern's files are read.
//!
//! Every mistake of a file is told in one run, with line, column and, where there is one, the mend.
//! An unknown name is a mistake.

pub mod fields;
pub mod node;
pub mod walls;

use std::{path::Path, sync::Arc};

pub use fields::Fields;
pub use node::{Entry, Node, Value};

use crate::diagnostic::{Diagnostic, Place, Problems};

/// Reads a file that holds one map: a configuration.
///
/// `meaning` takes the map and adds what is wrong with it to the problems.
///
/// # Errors
/// Every mistake of the file.
pub fn read_one<T>(
    path: &Path,
    text: &[u8],
    meaning: impl FnOnce(&Node, &mut Problems<'_>) -> Option<T>,
) -> Result<T, Vec<Diagnostic>> {
    let file: Arc<Path> = Arc::from(path);
    let mut found = Vec::new();
    let mut problems = Problems::new(&file, &mut found);
    let read = match std::str::from_utf8(text) {
        Ok(text) => node::read(text),
        Err(_) => Err((Place { line: 1, column: 1 }, "this is not UTF-8".to_owned())),
    };
    let value = match read {
        Err((at, message)) => {
            problems.error(at, message);
            None
        }
        Ok(documents) => match documents.as_slice() {
            [one] => meaning(one, &mut problems),
            [] => {
                problems.error(Place { line: 1, column: 1 }, "the file is empty");
                None
            }
            [_, second, ..] => {
                problems.error(second.at, "the file has more than one document");
                None
            }
        },
    };
    match value {
        Some(value) if found.is_empty() => Ok(value),
        _ => Err(found),
    }
}
