//! Reading a folder of documents: the one place of this crate that opens files.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::set::SourceFile;

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// Reads one file, or the documents that lie directly in a folder, in the order of their names.
///
/// Documents are the files that end in `.yaml`, `.yml` or `.json`. Hidden names are passed over,
/// which leaves out the `..data` folders of a mounted ConfigMap, and so are `*.test.yaml` cases.
///
/// # Errors
/// The system's own, with the path in front. A file that is too large, or that cannot be read, is
/// an error: a policy that is passed over may have been the one that denies.
pub fn read_documents(path: &Path) -> io::Result<Vec<SourceFile>> {
    if !fs::metadata(path)
        .map_err(|error| named(path, &error))?
        .is_dir()
    {
        return Ok(vec![read_one(path)?]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| named(path, &error))? {
        let file = entry.map_err(|error| named(path, &error))?.path();
        if is_document(&file) && file.is_file() {
            paths.push(file);
        }
    }
    paths.sort();
    paths.iter().map(|file| read_one(file)).collect()
}

/// What a folder of documents looks like from outside: it differs when a document was added,
/// removed, replaced or written to. Comparing two costs no reading.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fingerprint(Vec<(PathBuf, u64, u64, Option<SystemTime>)>);

impl Fingerprint {
    /// Takes the fingerprint of a file or folder; one that is not there has an empty one.
    pub fn of(path: &Path) -> Self {
        let entries = fs::read_dir(path).map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|file| is_document(file))
                .collect()
        });
        let mut paths: Vec<PathBuf> = entries.unwrap_or_else(|_| vec![path.to_owned()]);
        paths.sort();
        let marks = paths.into_iter().filter_map(|path| {
            // Followed through links, as the reading is: a ConfigMap swaps the link.
            let found = fs::metadata(&path).ok()?;
            Some((path, found.ino(), found.size(), found.modified().ok()))
        });
        Self(marks.collect())
    }
}

fn read_one(path: &Path) -> io::Result<SourceFile> {
    let size = fs::metadata(path)
        .map_err(|error| named(path, &error))?
        .len();
    if size > MAX_FILE_BYTES {
        let problem = format!(
            "`{}` has {size} bytes, at most {MAX_FILE_BYTES} are read; split it",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    let text = fs::read(path).map_err(|error| named(path, &error))?;
    Ok(SourceFile {
        path: PathBuf::from(path),
        text,
    })
}

fn is_document(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let is_yaml = [".yaml", ".yml", ".json"]
        .iter()
        .any(|ending| name.ends_with(ending));
    let is_case = [".test.yaml", ".test.yml"]
        .iter()
        .any(|ending| name.ends_with(ending));
    is_yaml && !is_case && !name.starts_with('.')
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot read `{}`: {error}", path.display()),
    )
}
