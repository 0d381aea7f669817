//! Reads documents from disk. The only part of this library that opens a file: the engine itself
//! is given bytes.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
};

use crate::SourceFile;

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 8 << 20;

/// The most files that one folder may hold, those in its subfolders included.
pub const MAX_FILES: usize = 20_000;

/// The most bytes that one folder may hold altogether.
pub const MAX_FOLDER_BYTES: u64 = 128 << 20;

/// Reads one file, or every document file below a folder, sorted by path.
///
/// Below a folder `.yaml`, `.yml` and `.json` files are read; hidden entries (`..data` of a
/// mounted ConfigMap among them) and `*.test.yaml` are passed over. A link to a file is followed,
/// a link to a folder is not: it might lead in a circle.
///
/// # Errors
/// The path that cannot be read, or the limit that was passed, is in the text. Nothing is
/// skipped: callers keep what they had.
pub fn read_documents(path: &Path) -> io::Result<Vec<SourceFile>> {
    let metadata = fs::metadata(path).map_err(|error| at(path, &error))?;
    if !metadata.is_dir() {
        return Ok(vec![read_file(path)?]);
    }
    let mut paths = Vec::new();
    list(path, &mut paths)?;
    paths.sort();

    let mut left = MAX_FOLDER_BYTES;
    let mut files = Vec::with_capacity(paths.len());
    for found in paths {
        let file = read_file(&found)?;
        left = left
            .checked_sub(file.text.len() as u64)
            .ok_or_else(|| limit(path, format_args!("more than {MAX_FOLDER_BYTES} bytes")))?;
        files.push(file);
    }
    Ok(files)
}

/// Adds the document files of a folder and of the folders below it.
fn list(folder: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder).map_err(|error| at(folder, &error))? {
        let entry = entry.map_err(|error| at(folder, &error))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(|error| at(&path, &error))?;
        if kind.is_dir() {
            list(&path, paths)?;
        } else if is_document(&path) {
            if paths.len() == MAX_FILES {
                return Err(limit(folder, format_args!("more than {MAX_FILES} files")));
            }
            paths.push(path);
        }
    }
    Ok(())
}

fn is_document(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default();
    ["yaml", "yml", "json"]
        .iter()
        .any(|known| extension == *known)
        && !name.ends_with(".test.yaml")
}

fn read_file(path: &Path) -> io::Result<SourceFile> {
    let file = File::open(path).map_err(|error| at(path, &error))?;
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|error| at(path, &error))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(limit(
            path,
            format_args!("more than {MAX_FILE_BYTES} bytes"),
        ));
    }
    Ok(SourceFile {
        path: path.to_owned(),
        text,
    })
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot read `{}`: {error}", path.display()),
    )
}

fn limit(path: &Path, passed: std::fmt::Arguments<'_>) -> io::Error {
    let text = format!("`{}` holds {passed}; split it", path.display());
    io::Error::new(ErrorKind::FileTooLarge, text)
}

#[cfg(test)]
mod tests;
