//! Reading a folder of documents: the one place of this crate that opens files.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
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
/// an error: a policy that is passed over may have been the one that denies. So is a folder that
/// is written to meanwhile ([`io::ErrorKind::ResourceBusy`]): half of a file may be a good one.
pub fn read_documents(path: &Path) -> io::Result<Vec<SourceFile>> {
    let before = Fingerprint::of(path);
    let documents = read_all(path)?;
    if Fingerprint::of(path) != before {
        let problem = format!("`{}` was written to while it was read", path.display());
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, problem));
    }
    Ok(documents)
}

fn read_all(path: &Path) -> io::Result<Vec<SourceFile>> {
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

/// Tells when what is watched is to be read: when it looks different from what was read last, and
/// has looked so twice. Whoever writes a file in place empties it first, and an empty file of
/// policies is a good one that allows nothing.
#[derive(Debug)]
pub struct Watch<L> {
    read: Option<L>,
    last: Option<L>,
}

/// What is to be done about what is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing: it looks as it did when it was read.
    Same,
    /// It has just changed, and may be changing still: look again after [`SETTLES_IN`].
    Again,
    /// It is to be read.
    Read,
}

/// How long something must look the same before it is read.
pub const SETTLES_IN: Duration = Duration::from_millis(100);

impl<L> Default for Watch<L> {
    fn default() -> Self {
        Self {
            read: None,
            last: None,
        }
    }
}

impl<L: PartialEq> Watch<L> {
    /// It looks like this now. What nobody has read is read at once.
    pub fn look(&mut self, now: &L) -> Look {
        match (&self.read, &self.last) {
            (None, _) => Look::Read,
            (Some(read), _) if read == now => {
                self.last = None;
                Look::Same
            }
            (_, Some(last)) if last == now => Look::Read,
            _ => Look::Again,
        }
    }

    /// It looked like this, and is to be looked at again.
    pub fn is_changing(&mut self, now: L) {
        self.last = Some(now);
    }

    /// It was read when it looked like this.
    pub fn was_read(&mut self, now: L) {
        self.read = Some(now);
        self.last = None;
    }

    /// It is to be read, whatever it looks like.
    pub fn forget(&mut self) {
        *self = Self::default();
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

#[cfg(test)]
mod tests {
    use super::{Look, Watch};

    #[test]
    fn a_change_is_read_when_it_has_settled_and_once() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(&1), Look::Read, "the first time");
        watch.was_read(1);
        assert_eq!(watch.look(&1), Look::Same);
        // Emptied, and written.
        assert_eq!(watch.look(&0), Look::Again);
        watch.is_changing(0);
        assert_eq!(watch.look(&2), Look::Again);
        watch.is_changing(2);
        assert_eq!(watch.look(&2), Look::Read);
        watch.was_read(2);
        assert_eq!(watch.look(&2), Look::Same);
        // Back to what it was before anybody read it.
        watch.is_changing(3);
        assert_eq!(watch.look(&2), Look::Same);
        assert_eq!(watch.look(&3), Look::Again, "nothing is remembered of it");
        watch.forget();
        assert_eq!(watch.look(&2), Look::Read);
    }
}
