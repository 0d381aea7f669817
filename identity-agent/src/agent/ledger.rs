//! The SVIDs that are out there, so that they can be taken back, after a restart too.
//!
//! Each is written down when it is issued, as a line at the end of a file that is read at the start. The
//! lines are not synced: a crash of the agent loses none, and one of the machine only what belonged to
//! processes that ended with it. The file is replaced by a shorter one when most of it has ended.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use postern_policies::model::workload::WorkloadName;
use serde::{Deserialize, Serialize};

use crate::{
    attest::Pod,
    authority::{RevokedSvid, replace_file},
};

/// An SVID that is out there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) workload: WorkloadName,
    pub(super) spiffe_id: String,
    pub(super) pod: Pod,
    pub(super) svid: RevokedSvid,
}

/// All of them.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    records: Vec<Record>,
    file: File,
    lines: usize,
    /// The last line may be half of one.
    is_cut: bool,
}

impl Inner {
    /// Replaces the file when most of it has ended.
    fn shorten(&mut self, path: &Path) -> io::Result<()> {
        if self.lines <= 2 * self.records.len() + ENDED_LINES {
            return Ok(());
        }
        self.file = write_anew(path, &self.records)?;
        (self.lines, self.is_cut) = (self.records.len(), false);
        Ok(())
    }
}

/// Why an SVID could not be noted.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotNoted {
    /// There are too many: nothing more is issued.
    #[error(
        "{MAX_RECORDS} SVIDs are out, or {MAX_REVOKED} were taken back; they end by themselves, and no \
         more are issued before"
    )]
    Full,
    /// It is in memory, and a restart would forget it.
    #[error("an SVID could not be written down: {0}")]
    Write(#[from] io::Error),
}

impl Ledger {
    /// Reads what was written down in this folder and is still out there.
    ///
    /// # Errors
    /// The file can be neither read nor made; callers do not start.
    pub fn open(folder: &Path, now: SystemTime) -> io::Result<Self> {
        let path = folder.join(FILE);
        let mut records = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                for line in BufReader::new(file).lines() {
                    let record = serde_json::from_str::<Line>(&line?).ok();
                    match record.and_then(Line::meaning) {
                        Some(record) if record.svid.expires > now => records.push(record),
                        Some(_) => {}
                        // The last one may have been cut.
                        None => {
                            tracing::warn!(path = %path.display(), "a line of the issued SVIDs cannot be read; that one cannot be taken back")
                        }
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = write_anew(&path, &records)?;
        let lines = records.len();
        Ok(Self {
            path,
            inner: Mutex::new(Inner {
                records,
                file,
                lines,
                is_cut: false,
            }),
        })
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is there room for one more, beside so many that were taken back?
    pub(super) fn has_room(&self, revoked: usize) -> Result<(), NotNoted> {
        let is_full = revoked >= MAX_REVOKED || self.locked().records.len() >= MAX_RECORDS;
        match !is_full {
            true => Ok(()),
            false => Err(NotNoted::Full),
        }
    }

    /// Notes one.
    pub(super) fn note(&self, record: Record) -> Result<(), NotNoted> {
        let line = line_of(&record);
        let mut inner = self.locked();
        inner.records.push(record);
        inner.lines += 1;
        let line = line?;
        // What a full disk has left of a line must not spoil the next one.
        let line = match std::mem::take(&mut inner.is_cut) {
            true => format!("\n{line}"),
            false => line,
        };
        inner.file.write_all(line.as_bytes()).map_err(|error| {
            inner.is_cut = true;
            error.into()
        })
    }

    /// Takes those out of which it is so.
    pub(super) fn take(&self, is_taken: impl Fn(&Record) -> bool) -> Vec<Record> {
        self.locked()
            .records
            .extract_if(.., |record| is_taken(record))
            .collect()
    }

    /// Forgets what has ended; tells whose identities are out there, and where.
    pub(super) fn held(&self, now: SystemTime) -> (HashSet<(WorkloadName, Pod)>, io::Result<()>) {
        let mut inner = self.locked();
        inner.records.retain(|record| record.svid.expires > now);
        let held = inner.records.iter();
        let held = held
            .map(|record| (record.workload.clone(), record.pod))
            .collect();
        (held, inner.shorten(&self.path))
    }
}

/// Replaces the file, and opens it to be written on.
fn write_anew(path: &Path, records: &[Record]) -> io::Result<File> {
    let lines = records
        .iter()
        .map(line_of)
        .collect::<io::Result<String>>()?;
    replace_file(path, lines.as_bytes())?;
    // Made again if it is gone: what is written on must be what is found at the next start.
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).open(path)
}

/// A record as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    namespace: String,
    name: String,
    spiffe_id: String,
    pod: Pod,
    serial: Vec<u8>,
    issuer: Vec<u8>,
    /// Seconds since 1970.
    expires: u64,
}

impl Line {
    fn meaning(self) -> Option<Record> {
        Some(Record {
            workload: WorkloadName {
                namespace: self.namespace.into(),
                name: self.name.into(),
            },
            spiffe_id: self.spiffe_id,
            pod: self.pod,
            svid: RevokedSvid {
                serial: self.serial,
                issuer: self.issuer,
                expires: UNIX_EPOCH.checked_add(Duration::from_secs(self.expires))?,
            },
        })
    }
}

fn line_of(record: &Record) -> io::Result<String> {
    let expires = record.svid.expires.duration_since(UNIX_EPOCH);
    let line = Line {
        namespace: record.workload.namespace.to_string(),
        name: record.workload.name.to_string(),
        spiffe_id: record.spiffe_id.clone(),
        pod: record.pod,
        serial: record.svid.serial.clone(),
        issuer: record.svid.issuer.clone(),
        expires: expires.unwrap_or_default().as_secs(),
    };
    Ok(serde_json::to_string(&line)? + "\n")
}

const FILE: &str = "issued.jsonl";

/// More SVIDs than a node has processes.
const MAX_RECORDS: usize = 200_000;

/// A longer revocation list is no message that clients take.
const MAX_REVOKED: usize = 50_000;

/// So many lines more than needed are not worth a new file.
const ENDED_LINES: usize = 1_000;

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use postern_policies::model::workload::WorkloadName;

    use super::{FILE, Ledger, Record};
    use crate::{attest::Pod, authority::RevokedSvid};

    fn record(name: &str, expires: SystemTime) -> Record {
        Record {
            workload: WorkloadName {
                namespace: "default".into(),
                name: name.into(),
            },
            spiffe_id: format!("spiffe://example.org/{name}"),
            pod: Pod::Session(7),
            svid: RevokedSvid {
                serial: vec![1, 2],
                issuer: vec![3],
                expires,
            },
        }
    }

    #[test]
    fn what_is_out_there_is_known_after_a_restart_and_what_has_ended_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let second = Duration::from_secs(1);
        let now = SystemTime::UNIX_EPOCH + 1_000_000 * second;
        {
            let ledger = Ledger::open(folder.path(), now).unwrap();
            for (name, end) in [("a", now + 60 * second), ("b", now + second)] {
                ledger.note(record(name, end)).unwrap();
            }
        }
        // The machine stopped while the last line was written.
        let path = folder.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        std::fs::write(&path, text + "{\"namespace\":\"def").unwrap();
        let ledger = Ledger::open(folder.path(), now + 2 * second).unwrap();
        let (held, written) = ledger.held(now + 2 * second);
        written.unwrap();
        assert_eq!(held.len(), 1);
        let taken = ledger.take(|record| &*record.workload.name == "a");
        assert_eq!(taken, [record("a", now + 60 * second)]);
        assert!(ledger.take(|_| true).is_empty());
    }

    #[test]
    fn a_file_that_has_mostly_ended_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ledger = Ledger::open(folder.path(), now).unwrap();
        for _ in 0..1_500 {
            ledger
                .note(record("a", now + Duration::from_secs(1)))
                .unwrap();
        }
        let lines = || {
            let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
            text.lines().count()
        };
        ledger.held(now).1.unwrap();
        assert_eq!(lines(), 1_500);
        ledger.held(now + Duration::from_secs(2)).1.unwrap();
        assert_eq!(lines(), 0);
        ledger
            .note(record("b", now + Duration::from_secs(9)))
            .unwrap();
        assert_eq!(lines(), 1);
    }
}
