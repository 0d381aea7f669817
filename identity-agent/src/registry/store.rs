//! Workloads that were registered over the admin socket, kept in an embedded database.
//!
//! A change is there whole or not at all, whatever happens to the process or the machine.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, StorageBackend as _, TableDefinition,
    WriteTransaction,
    backends::{FileBackend, InMemoryBackend},
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
    /// Opens the database of this folder, or makes it where there is none, for its owner alone. An empty file is
    /// not none: something was in it.
    ///
    /// # Errors
    /// [`StoreError`]; callers do not start.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        if !folder.join(FILE).try_exists().map_err(failed)? {
            make(folder)?;
        }
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
            let change = begin(database)?;
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
            let change = begin(database)?;
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
    let path = folder.join(FILE);
    prove(&path)?;
    let database = checked().open(path)?;
    database.begin_read()?.open_table(WORKLOADS)?;
    Ok(database)
}

/// Begins a change. After a change of one phase, damage to what it wrote would be mended by going back to what was
/// there before: what was deleted would be there again, and nobody told.
fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut change = database.begin_write()?;
    change.set_two_phase_commit(true);
    Ok(change)
}

/// All of it is read and compared with its checksums: what was damaged is refused, not found out later.
fn checked() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_check_integrity_on_open(true);
    builder
}

/// Opens a copy in memory. Whatever is opened is repaired as far as it can be, and a damaged file is to stay as
/// it is.
fn prove(path: &Path) -> Result<(), StoreError> {
    let bytes = fs::read(path).map_err(failed)?;
    let proved = match bytes.is_empty() {
        true => Err("it is empty".to_owned()),
        false => open_copy(&bytes).map_err(|error| error.to_string()),
    };
    proved.map_err(|why| {
        StoreError(format!(
            "{why}; it was left as it is: restore it from a backup, or move it away to begin with no registered Workload"
        ))
    })
}

fn open_copy(bytes: &[u8]) -> Result<(), redb::Error> {
    let copy = InMemoryBackend::new();
    copy.set_len(bytes.len() as u64)?;
    copy.write(0, bytes)?;
    let database = checked().create_with_backend(copy)?;
    database.begin_read()?.open_table(WORKLOADS)?;
    Ok(())
}

fn failed(error: io::Error) -> StoreError {
    StoreError(error.to_string())
}

/// Makes an empty database, which has its name only once it is whole: a crash leaves none, or that.
fn make(folder: &Path) -> Result<(), StoreError> {
    let fresh = folder.join(FRESH);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(&fresh).map_err(failed)?;
    let database = Database::builder().create_with_backend(FileBackend::new(file)?)?;
    let change = begin(&database)?;
    // A reader needs the table to be there.
    change.open_table(WORKLOADS)?;
    change.commit()?;
    drop(database);
    fs::rename(&fresh, folder.join(FILE)).map_err(failed)?;
    let folder = File::open(folder).map_err(failed)?;
    folder.sync_all().map_err(failed)
}

const FILE: &str = "registry.redb";
const FRESH: &str = "registry.redb.new";
const WORKLOADS: TableDefinition<'_, &str, &str> = TableDefinition::new("workloads");
const CACHE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{FILE, FRESH, Store};

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
    fn a_file_that_is_no_whole_database_is_refused_and_left_alone() {
        // FAULTS 35
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let documents: Vec<_> = (0..200)
            .map(|number| (format!("a/{number}"), "x".repeat(500)))
            .collect();
        Store::open(folder.path()).unwrap().put(&documents).unwrap();
        let good = std::fs::read(&path).unwrap();
        let text = good.windows(9).position(|found| found == b"xxxxxxxxx");
        let mut changed = good.clone();
        changed[text.unwrap()] = b'y';
        let mut newer = good.clone();
        // The version of the file's form, of both slots of the header.
        for slot in [64, 192] {
            newer[slot] += 1;
        }
        for damaged in [
            vec![],
            vec![7; 4096],
            good[..5].to_vec(),
            good[..good.len() / 2].to_vec(),
            changed,
            newer,
        ] {
            std::fs::write(&path, &damaged).unwrap();
            assert!(Store::open(folder.path()).is_err(), "{}", damaged.len());
            assert!(std::fs::read(&path).unwrap() == damaged);
        }
        std::fs::write(&path, &good).unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.all().unwrap().len(), 200);
    }

    #[test]
    fn damage_to_the_last_change_is_not_mended_by_going_back_before_it() {
        // FAULTS 35
        let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let store = Store::open(folder.path()).unwrap();
        for letter in ["x", "y"] {
            let document = (format!("a/{letter}"), letter.repeat(500));
            store.put(&[document]).unwrap();
        }
        // As a kill leaves it: nothing was closed.
        let mut bytes = std::fs::read(folder.path().join(FILE)).unwrap();
        let copy = other.path().join(FILE);
        std::fs::write(&copy, &bytes).unwrap();
        assert_eq!(Store::open(other.path()).unwrap().all().unwrap().len(), 2);
        let place = bytes.windows(9).position(|found| found == b"yyyyyyyyy");
        bytes[place.unwrap()] = b'z';
        std::fs::write(&copy, &bytes).unwrap();
        assert!(Store::open(other.path()).is_err());
    }

    #[test]
    fn one_that_was_half_made_is_made_anew_and_one_that_vanished_is_not_made_again() {
        // FAULTS 31, 35
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FRESH), "half").unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(!folder.path().join(FRESH).exists());
        assert!(store.all().unwrap().is_empty());
        *store.database.lock().unwrap() = None;
        std::fs::remove_file(folder.path().join(FILE)).unwrap();
        assert!(store.all().is_err() && !folder.path().join(FILE).exists());
    }
}
