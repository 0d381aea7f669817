//! The folder of Workload documents.

use std::{
    io,
    path::{Path, PathBuf},
};

use postern_policies::SourceFile;

use crate::guarded;

/// Where documents lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
    is_named: bool,
}

impl Folder {
    /// One that somebody has named: it must be there.
    pub fn named(path: PathBuf) -> Self {
        Self {
            path,
            is_named: true,
        }
    }

    /// The one that is looked for where nobody names one: it may come later.
    pub fn by_default(path: PathBuf) -> Self {
        Self {
            path,
            is_named: false,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its documents; none if it may be missing, and is. One that `was_there` may not: its Workloads would
    /// lose their identities by a slip.
    ///
    /// # Errors
    /// It cannot be read, or others can write to it.
    pub(super) fn read(&self, was_there: bool) -> io::Result<Option<Vec<SourceFile>>> {
        if !self.is_named && !was_there {
            match self.path.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                _ => {}
            }
        }
        guarded::documents(&self.path).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::ErrorKind};

    use super::Folder;

    #[test]
    fn a_folder_that_nobody_named_may_come_later_and_may_not_go() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("workloads");
        let missing = |folder: &Folder, was_there| {
            let error = folder.read(was_there).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        };
        let usual = Folder::by_default(path.clone());
        assert!(usual.read(false).unwrap().is_none());
        missing(&usual, true);
        missing(&Folder::named(path.clone()), false);
        fs::create_dir(&path).unwrap();
        assert!(usual.read(false).unwrap().is_some_and(|all| all.is_empty()));
    }
}
