//! Workloads that were registered over the admin socket, kept in an embedded database.
//!
//! A change is there whole or not at all, whatever happens to the process or the machine.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, backends::FileBackend,
};

/// The database.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// None when it could not be opened again.
    database: Mutex<Option<Database>>,
}

/// Why the database cannot be used. It stays as it is.
#[derive(Debug, thiserror::Error)]
#[error("the registry `registry.redb` in the state folder: {0}")]
pub struct StoreError(String);

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self(error.into().to_string())
    }
}

impl Store {
    /// Opens the database of this folder, or makes it, for its owner alone.
    ///
    /// # Errors
    /// [`StoreError`]; callers do not start.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            folder: folder.to_owned(),
            database: Mutex::new(Some(open(folder)?)),
        })
    }

    /// All documents by `namespace/name`, in the order of their names.
    ///
    /// # Errors
    /// [`StoreError`]; callers keep what they have.
    pub fn all(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(WORKLOADS)?;
            let all = table.iter()?.map(|entry| {
                let (name, document) = entry?;
                Ok((name.value().to_owned(), document.value().to_owned()))
            });
            all.collect()
        })
    }

    /// Puts documents in, all or none.
    ///
    /// # Errors
    /// [`StoreError`]; nothing has changed then.
    pub fn put(&self, documents: &[(String, String)]) -> Result<(), StoreError> {
        self.with(|database| {
            let change = database.begin_write()?;
            {
                let mut table = change.open_table(WORKLOADS)?;
                for (name, document) in documents {
                    table.insert(name.as_str(), document.as_str())?;
                }
            }
            Ok(change.commit()?)
        })
    }

    /// Takes a document out.
    ///
    /// # Errors
    /// [`StoreError`]; nothing has changed then.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.with(|database| {
            let change = database.begin_write()?;
            change.open_table(WORKLOADS)?.remove(name)?;
            Ok(change.commit()?)
        })
    }

    /// Does something with the database. After a failed write, as on a full disk, it answers nothing
    /// until it is opened again.
    fn with<T>(&self, work: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let mut opened = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*opened {
            match work(database) {
                Err(redb::Error::PreviousIo) => {}
                done => return Ok(done?),
            }
        }
        // Two must not have it open at once.
        *opened = None;
        let fresh = open(&self.folder)?;
        let done = work(&fresh);
        *opened = Some(fresh);
        Ok(done?)
    }
}

fn open(folder: &Path) -> Result<Database, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    let file = options
        .open(folder.join(FILE))
        .map_err(|error| StoreError(error.to_string()))?;
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(FileBackend::new(file)?)?;
    // A reader needs the table to be there.
    let change = database.begin_write()?;
    change.open_table(WORKLOADS)?;
    change.commit()?;
    Ok(database)
}

const FILE: &str = "registry.redb";
const WORKLOADS: TableDefinition<'_, &str, &str> = TableDefinition::new("workloads");
const CACHE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{FILE, Store};

    #[test]
    fn what_was_put_in_is_there_after_a_restart_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let document = |name: &str| (name.to_owned(), format!("{{\"of\": \"{name}\"}}"));
        {
            let store = Store::open(folder.path()).unwrap();
            store.put(&[document("b/b"), document("a/a")]).unwrap();
            store.remove("b/b").unwrap();
            store.remove("never/there").unwrap();
            assert!(Store::open(folder.path()).is_err(), "it is in use");
        }
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.all().unwrap(), [document("a/a")]);
        let mode = std::fs::metadata(folder.path().join(FILE)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_and_left_alone() {
        // FAULTS 35
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, vec![7; 4096]).unwrap();
        assert!(Store::open(folder.path()).is_err());
        assert_eq!(std::fs::read(path).unwrap(), vec![7; 4096]);
    }
}
