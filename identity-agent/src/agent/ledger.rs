//! The SVIDs that are out there, so that they can be taken back, after a restart too.
//!
//! Each is written down when it is issued, as a line at the end of a file that is read at the start. The
//! lines are not synced: a crash of the agent loses none, and one of the machine only what belonged to
//! processes that ended with it. The file is replaced by a shorter one when most of it has ended. One that cannot be read
//! whole is kept aside: what it says of cannot be taken back, and somebody should know.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use postern_policies::model::workload::WorkloadName;
use postern_spiffe::SpiffeId;
use serde::{Deserialize, Serialize};

use crate::{
    attest::{Pod, read_text},
    authority::{RevokedSvid, replace_file},
};

/// An SVID that is out there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) workload: WorkloadName,
    pub(super) spiffe_id: SpiffeId,
    pub(super) pod: Pod,
    /// When the pod was known to be the one that it was issued to, in ticks of the clock since the machine
    /// was started; none if that was not written down.
    pub(super) seen: Option<u64>,
    /// The user whose process it was issued to first; none if that was not written down.
    pub(super) owner: Option<u32>,
    pub(super) svid: RevokedSvid,
}

/// All of them.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    limits: Limits,
    /// Which start of the machine this is. The numbers of pods mean something within one.
    boot: Option<String>,
    /// So many lines could not be read at the start.
    pub(crate) lost: u64,
    inner: Mutex<Inner>,
}

/// How many there may be that are out or taken back: all that are out may have to be taken back at
/// once, and have room on the revocation lists then.
#[derive(Debug, Clone, Copy)]
struct Limits {
    all: usize,
    of_user: usize,
}

#[derive(Debug)]
struct Inner {
    records: Vec<Record>,
    /// Whose were taken back, and when they end. A restart forgets it.
    taken: Vec<(Option<u32>, SystemTime)>,
    /// How many each user has of both together.
    of_user: HashMap<u32, usize>,
    file: File,
    lines: usize,
    /// The last line may be half of one.
    is_cut: bool,
}

impl Inner {
    fn recount(&mut self) {
        self.of_user.clear();
        let out = self.records.iter().map(|one| one.owner);
        let taken = self.taken.iter().map(|(owner, _)| *owner);
        for owner in out.chain(taken).flatten() {
            *self.of_user.entry(owner).or_default() += 1;
        }
    }

    fn room(&self, limits: Limits, owner: u32, revoked: usize) -> Result<(), NotNoted> {
        if self.records.len() + revoked >= limits.all {
            return Err(NotNoted::Full);
        }
        match self.of_user.get(&owner) {
            Some(held) if *held >= limits.of_user => Err(NotNoted::FullOfUser(owner)),
            _ => Ok(()),
        }
    }

    /// Replaces the file when most of it has ended.
    fn shorten(&mut self, path: &Path, boot: Option<&str>) -> io::Result<()> {
        if self.lines <= 2 * self.records.len() + ENDED_LINES {
            return Ok(());
        }
        self.file = write_anew(path, &self.records, boot)?;
        (self.lines, self.is_cut) = (self.records.len(), false);
        Ok(())
    }

    /// Writes a line at the end.
    fn write(&mut self, line: &str) -> io::Result<()> {
        // What a full disk has left of a line must not spoil the next one.
        let line = match self.is_cut {
            true => format!("\n{line}"),
            false => line.to_owned(),
        };
        let end = self.file.metadata()?.len();
        let written = self.file.write_all(line.as_bytes());
        self.is_cut = match &written {
            Ok(()) => false,
            // Half a line is nobody's: it was not handed out.
            Err(_) => self.file.set_len(end).is_err() || self.is_cut,
        };
        written?;
        self.lines += 1;
        Ok(())
    }
}

/// Why an SVID could not be noted. It is not handed out then: nobody could take it back.
#[derive(Debug, thiserror::Error)]
pub enum NotNoted {
    /// There are too many: nothing more is issued.
    #[error(
        "{MAX_SVIDS} SVIDs are out or were taken back; they end by themselves, and no more are issued \
         before"
    )]
    Full,
    /// One user has too many: nothing more is issued to him.
    #[error(
        "user {0} has {MAX_SVIDS_OF_USER} SVIDs out, with those that were taken back from him; they \
         end by themselves, and he gets no more before"
    )]
    FullOfUser(u32),
    /// A restart would forget it.
    #[error("an SVID could not be written down in `{FILE}`: {0}")]
    Write(#[from] io::Error),
}

impl Ledger {
    /// Reads what was written down in this folder and has not ended for good by `settled`.
    ///
    /// # Errors
    /// The file can be neither read nor made, or is of a newer version; callers do not start.
    pub fn open(folder: &Path, settled: SystemTime) -> io::Result<Self> {
        let boot = read_text(Path::new("/proc/sys/kernel/random/boot_id")).ok();
        let boot = boot.map(|id| id.trim().to_owned());
        Self::open_within(LIMITS, folder, settled, boot)
    }

    /// The same, within these limits and after this start of the machine.
    fn open_within(
        limits: Limits,
        folder: &Path,
        settled: SystemTime,
        boot: Option<String>,
    ) -> io::Result<Self> {
        let path = folder.join(FILE);
        let (mut records, lost) = read(&path, boot.as_deref())?;
        if lost > 0 {
            let kept = keep_aside(&path)?;
            tracing::error!(path = %path.display(), kept = %kept.display(), lines = lost, "the ledger of issued SVIDs is damaged; what cannot be read of it cannot be taken back");
        }
        records.retain(|record: &Record| record.svid.expires > settled);
        let file = write_anew(&path, &records, boot.as_deref())?;
        let lines = records.len();
        let mut inner = Inner {
            records,
            taken: Vec::new(),
            of_user: HashMap::new(),
            file,
            lines,
            is_cut: false,
        };
        inner.recount();
        Ok(Self {
            path,
            limits,
            boot,
            lost,
            inner: Mutex::new(inner),
        })
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is there room for one more of this user, beside so many that were taken back? What is kept although
    /// it has ended gives way.
    pub(super) fn has_room(
        &self,
        owner: u32,
        revoked: usize,
        now: SystemTime,
    ) -> Result<(), NotNoted> {
        let mut inner = self.locked();
        inner.room(self.limits, owner, revoked).or_else(|full| {
            // Nobody's fullness makes what others had forgotten.
            let is_everybodys = matches!(full, NotNoted::Full);
            let gives_way = |one: &Record| {
                one.svid.expires <= now && (is_everybodys || one.owner == Some(owner))
            };
            if !inner.records.iter().any(gives_way) {
                return Err(full);
            }
            inner.records.retain(|one| !gives_way(one));
            inner.recount();
            inner.room(self.limits, owner, revoked)
        })
    }

    /// Notes one. One that cannot be written down is not noted at all.
    pub(super) fn note(&self, record: Record) -> Result<(), NotNoted> {
        let line = line_of(&record, self.boot.as_deref())?;
        let mut inner = self.locked();
        inner.write(&line)?;
        if let Some(owner) = record.owner {
            *inner.of_user.entry(owner).or_default() += 1;
        }
        if inner.records.len() == inner.records.capacity() {
            // Not twice as much: there are many, and for long.
            let more = inner.records.len() / 8 + 64;
            inner.records.reserve_exact(more);
        }
        inner.records.push(record);
        Ok(())
    }

    /// A pod has ended: what it held can still be taken back from its Workload, and is not that of
    /// another pod that comes to have the number.
    pub(super) fn end(&self, pod: Pod) -> Result<(), NotNoted> {
        let mut inner = self.locked();
        if !end(&mut inner.records, pod) {
            return Ok(());
        }
        let line = serde_json::to_string(&Entry::Ended { ended: pod }).map_err(io::Error::from)?;
        Ok(inner.write(&(line + "\n"))?)
    }

    /// When each pod was known last.
    pub(super) fn seen(&self) -> HashMap<Pod, u64> {
        let mut seen = HashMap::new();
        for record in &self.locked().records {
            let known = seen.entry(record.pod).or_default();
            *known = record.seen.unwrap_or_default().max(*known);
        }
        seen.remove(&Pod::Ended);
        seen
    }

    /// Takes those out of which it is so.
    pub(super) fn take(&self, is_taken: impl Fn(&Record) -> bool) -> Vec<Record> {
        let mut inner = self.locked();
        let taken = inner.records.extract_if(.., |record| is_taken(record));
        let taken: Vec<Record> = taken.collect();
        let ends = taken.iter().map(|one| (one.owner, one.svid.expires));
        inner.taken.extend(ends);
        inner.recount();
        taken
    }

    /// Forgets what has ended for good; tells whose identities are out there now, and where.
    pub(super) fn held(
        &self,
        now: SystemTime,
        settled: SystemTime,
    ) -> (HashSet<(WorkloadName, Pod)>, io::Result<()>) {
        let mut inner = self.locked();
        inner.records.retain(|record| record.svid.expires > settled);
        inner.taken.retain(|(_, expires)| *expires > now);
        inner.recount();
        let held = inner.records.iter();
        let held = held
            .filter(|record| record.pod != Pod::Ended && record.svid.expires > now)
            .map(|record| (record.workload.clone(), record.pod))
            .collect();
        (held, inner.shorten(&self.path, self.boot.as_deref()))
    }
}

/// Marks what a pod held that has ended. Tells whether there was anything.
fn end(records: &mut [Record], pod: Pod) -> bool {
    let of_pod = records.iter_mut().filter(|record| record.pod == pod);
    of_pod.fold(false, |_, record| {
        record.pod = Pod::Ended;
        true
    })
}

/// What stands in the file, and how many whole lines of it cannot be read.
fn read(path: &Path, boot: Option<&str>) -> io::Result<(Vec<Record>, u64)> {
    let (mut records, mut lost) = (Vec::new(), 0);
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((records, lost)),
        opened => BufReader::new(opened?),
    };
    if file.fill_buf()?.is_empty() {
        tracing::warn!(path = %path.display(), "the ledger of issued SVIDs is empty; what was out when it was emptied cannot be taken back");
    }
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        let is_whole = line.pop_if(|last| *last == b'\n').is_some();
        match serde_json::from_slice(&line).ok() {
            Some(Entry::Version { version }) if version != VERSION => return Err(newer(version)),
            Some(entry) => lost += u64::from(entry.put(&mut records, boot).is_none()),
            None if line.is_empty() => {}
            None if is_whole => lost += 1,
            // As a machine leaves it that lost its power.
            None => {
                tracing::warn!(path = %path.display(), "the last line of the issued SVIDs is cut; that one cannot be taken back");
            }
        }
        line.clear();
    }
    Ok((records, lost))
}

fn newer(version: u32) -> io::Error {
    let text = format!(
        "it has version {version}, and this program knows version {VERSION}; it was left as it is"
    );
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Keeps what stands in the file under another name.
fn keep_aside(path: &Path) -> io::Result<PathBuf> {
    let text = fs::read(path)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut second = now.unwrap_or_default().as_secs();
    let named = |second: u64| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{second}"));
        PathBuf::from(name)
    };
    while named(second).try_exists()? {
        second += 1;
    }
    let kept = named(second);
    replace_file(&kept, &text)?;
    Ok(kept)
}

/// Replaces the file, and opens it to be written on.
fn write_anew(path: &Path, records: &[Record], boot: Option<&str>) -> io::Result<File> {
    let version = Entry::Version { version: VERSION };
    let mut lines = serde_json::to_string(&version)? + "\n";
    for record in records {
        lines += &line_of(record, boot)?;
    }
    replace_file(path, lines.as_bytes())?;
    // Made again if it is gone: what is written on must be what is found at the next start.
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).open(path)
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Entry {
    /// An SVID was issued.
    Issued(Line),
    /// A pod has ended.
    Ended {
        /// Which.
        ended: Pod,
    },
    /// The first line, but not of older versions.
    Version {
        /// Of the file.
        version: u32,
    },
}

impl Entry {
    /// Does to the records what the line says. None if it cannot be.
    fn put(self, records: &mut Vec<Record>, boot: Option<&str>) -> Option<()> {
        match self {
            Self::Issued(line) => records.push(line.meaning(boot)?),
            Self::Ended { ended } => drop(end(records, ended)),
            Self::Version { .. } => {}
        }
        Some(())
    }
}

/// A record as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    namespace: String,
    name: String,
    spiffe_id: String,
    pod: Pod,
    /// None in lines of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<u32>,
    /// None in lines of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<u64>,
    serial: Vec<u8>,
    issuer: Vec<u8>,
    /// Seconds since 1970.
    expires: u64,
    /// The start of the machine that the number of the pod is of.
    #[serde(default)]
    boot: Option<String>,
}

impl Line {
    fn meaning(self, boot: Option<&str>) -> Option<Record> {
        let is_of_another = self.boot.is_some() && self.boot.as_deref() != boot;
        Some(Record {
            workload: WorkloadName {
                namespace: self.namespace.into(),
                name: self.name.into(),
            },
            spiffe_id: SpiffeId::parse(&self.spiffe_id).ok()?,
            owner: self.owner,
            seen: self.seen,
            pod: match is_of_another {
                true => Pod::Ended,
                false => self.pod,
            },
            svid: RevokedSvid {
                serial: self.serial.into(),
                issuer: self.issuer.into(),
                expires: UNIX_EPOCH.checked_add(Duration::from_secs(self.expires))?,
            },
        })
    }
}

fn line_of(record: &Record, boot: Option<&str>) -> io::Result<String> {
    let expires = record.svid.expires.duration_since(UNIX_EPOCH);
    let line = Line {
        namespace: record.workload.namespace.to_string(),
        name: record.workload.name.to_string(),
        spiffe_id: record.spiffe_id.to_string(),
        pod: record.pod,
        owner: record.owner,
        seen: record.seen,
        serial: record.svid.serial.to_vec(),
        issuer: record.svid.issuer.to_vec(),
        expires: expires.unwrap_or_default().as_secs(),
        boot: boot.map(str::to_owned),
    };
    Ok(serde_json::to_string(&line)? + "\n")
}

const FILE: &str = "issued.jsonl";
const VERSION: u32 = 1;

/// More than the pods of a node hold. A revocation list of them has under 3 MiB; a message of more than
/// 4 MiB is none that clients of gRPC take.
const MAX_SVIDS: usize = 80_000;

/// Of a user three quarters: nobody has all of them.
const MAX_SVIDS_OF_USER: usize = MAX_SVIDS / 4 * 3;

const LIMITS: Limits = Limits {
    all: MAX_SVIDS,
    of_user: MAX_SVIDS_OF_USER,
};

/// So many lines more than needed are not worth a new file.
const ENDED_LINES: usize = 1_000;

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use postern_policies::model::workload::WorkloadName;
    use postern_spiffe::SpiffeId;

    use super::{FILE, Ledger, Limits, NotNoted, Record};
    use crate::{attest::Pod, authority::RevokedSvid};

    fn record(name: &str, expires: SystemTime) -> Record {
        Record {
            workload: WorkloadName {
                namespace: "default".into(),
                name: name.into(),
            },
            spiffe_id: SpiffeId::parse(&format!("spiffe://example.org/{name}")).unwrap(),
            pod: Pod::Session(7),
            seen: Some(70),
            owner: Some(1),
            svid: RevokedSvid {
                serial: [1, 2].into(),
                issuer: [3].into(),
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
        assert_eq!(text.lines().count(), 3);
        std::fs::write(&path, text + "{\"namespace\":\"def").unwrap();
        let ledger = Ledger::open(folder.path(), now + 2 * second).unwrap();
        assert_eq!(ledger.lost, 0);
        let (held, written) = ledger.held(now + 2 * second, now + 2 * second);
        written.unwrap();
        assert_eq!(held.len(), 1);
        let taken = ledger.take(|record| &*record.workload.name == "a");
        assert_eq!(taken, [record("a", now + 60 * second)]);
        assert!(ledger.take(|_| true).is_empty());
    }

    #[test]
    fn numbers_of_pods_mean_nothing_after_another_start_of_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let after = |boot: &str| {
            Ledger::open_within(super::LIMITS, folder.path(), now, Some(boot.into())).unwrap()
        };
        let expires = now + Duration::from_secs(60);
        after("one").note(record("a", expires)).unwrap();
        assert_eq!(after("one").held(now, now).0.len(), 1, "the agent alone");
        let ledger = after("two");
        assert!(ledger.held(now, now).0.is_empty());
        // It is out there all the same.
        let gone = Record {
            pod: Pod::Ended,
            ..record("a", expires)
        };
        assert_eq!(ledger.take(|_| true), [gone]);
        assert!(
            after("one").held(now, now).0.is_empty(),
            "it is written down"
        );
    }

    #[test]
    fn what_an_ended_pod_held_is_not_that_of_the_next_with_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let open = || Ledger::open(folder.path(), now).unwrap();
        let expires = now + Duration::from_secs(60);
        let ledger = open();
        ledger.note(record("a", expires)).unwrap();
        ledger.end(Pod::Session(8)).unwrap();
        assert_eq!(ledger.held(now, now).0.len(), 1, "another one ended");
        ledger.end(Pod::Session(7)).unwrap();
        ledger.note(record("b", expires)).unwrap();
        for ledger in [ledger, open(), open()] {
            let held: Vec<_> = ledger.held(now, now).0.into_iter().collect();
            assert_eq!(held, [(record("b", expires).workload, Pod::Session(7))]);
            assert_eq!(ledger.take(|one| one.pod == Pod::Ended).len(), 1);
        }
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
            text.lines().count() - 1
        };
        ledger.held(now, now).1.unwrap();
        assert_eq!(lines(), 1_500);
        let later = now + Duration::from_secs(2);
        ledger.held(later, later).1.unwrap();
        assert_eq!(lines(), 0);
        ledger
            .note(record("b", now + Duration::from_secs(9)))
            .unwrap();
        assert_eq!(lines(), 1);
    }

    fn of_user(owner: u32, name: &str, expires: SystemTime) -> Record {
        Record {
            owner: Some(owner),
            ..record(name, expires)
        }
    }

    #[test]
    fn a_user_fills_his_share_and_another_one_still_gets_his() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let end = now + Duration::from_secs(60);
        let limits = Limits { all: 4, of_user: 3 };
        let open = || Ledger::open_within(limits, folder.path(), now, None).unwrap();
        let refused = |ledger: &Ledger, owner| {
            let room = ledger.has_room(owner, 0, now);
            matches!(room, Err(NotNoted::FullOfUser(user)) if user == owner)
        };
        let mut ledger = open();
        for name in ["a", "b", "c"] {
            assert!(!refused(&ledger, 1));
            ledger.note(of_user(1, name, end)).unwrap();
        }
        // After a restart too.
        for _ in 0..2 {
            assert!(refused(&ledger, 1));
            assert!(ledger.has_room(2, 0, now).is_ok());
            drop(ledger);
            ledger = open();
        }
        ledger.note(of_user(2, "d", end)).unwrap();
        assert!(matches!(ledger.has_room(3, 0, now), Err(NotNoted::Full)));
        // What was taken back is on the lists, and counts until it ends.
        assert_eq!(ledger.take(|one| one.owner == Some(1)).len(), 3);
        assert!(refused(&ledger, 1));
        assert!(ledger.has_room(2, 2, now).is_ok());
        assert!(matches!(ledger.has_room(2, 3, now), Err(NotNoted::Full)));
        ledger.held(end, end).1.unwrap();
        assert!(ledger.has_room(1, 0, end).is_ok());
    }

    #[test]
    fn what_has_ended_by_a_clock_that_jumped_is_kept_and_gives_way_where_there_is_no_room() {
        // FAULTS 36, 37
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (end, jumped) = (
            now + Duration::from_secs(60),
            now + Duration::from_secs(7_200),
        );
        let limits = Limits { all: 2, of_user: 2 };
        let ledger = Ledger::open_within(limits, folder.path(), now, None).unwrap();
        ledger.note(record("a", end)).unwrap();
        assert!(ledger.held(jumped, now).0.is_empty());
        assert_eq!(ledger.held(now, now).0.len(), 1, "the clock is back");
        ledger.note(record("b", end)).unwrap();
        assert!(matches!(ledger.has_room(1, 0, now), Err(NotNoted::Full)));
        assert!(ledger.has_room(1, 0, jumped).is_ok());
        assert!(ledger.take(|_| true).is_empty(), "they gave way");
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_what_can_be_read_of_it_counts() {
        // FAULTS 35
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let open = || Ledger::open(folder.path(), now).unwrap();
        let expires = now + Duration::from_secs(60);
        open().note(record("a", expires)).unwrap();
        let good = std::fs::read(&path).unwrap();
        let kept = || {
            let all = std::fs::read_dir(folder.path()).unwrap().flatten();
            let all = all.map(|one| one.path());
            let all = all.filter(|one| one.display().to_string().contains(".damaged-"));
            all.collect::<Vec<_>>()
        };
        assert_eq!((open().lost, kept().len()), (0, 0));
        for (number, (damage, lost, left)) in [
            ([b"\xff\xfe\n", &*good].concat(), 1, 1),
            ([&*good, b"{}\n{}\n"].concat(), 2, 1),
        ]
        .into_iter()
        .enumerate()
        {
            std::fs::write(&path, &damage).unwrap();
            let ledger = open();
            assert_eq!(ledger.lost, lost);
            assert_eq!(ledger.held(now, now).0.len(), left);
            assert_eq!(kept().len(), number + 1);
            let same = |one: &std::path::PathBuf| std::fs::read(one).unwrap() == damage;
            assert!(kept().iter().any(same), "it is as it was");
            drop(ledger);
            assert_eq!(open().lost, 0, "it is written anew");
        }
        // What an idle agent of older versions left, or a machine that lost its power.
        for short in [&[], &good[..good.len() - 9]] {
            let before = kept().len();
            std::fs::write(&path, short).unwrap();
            let ledger = open();
            let left = ledger.held(now, now).0.len();
            assert_eq!((ledger.lost, left, kept().len()), (0, 0, before));
        }
        let newer = "{\"version\":2}\n";
        std::fs::write(&path, newer).unwrap();
        let refused = Ledger::open(folder.path(), now).unwrap_err().to_string();
        assert!(refused.contains("it has version 2"), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
        // As the versions before wrote it.
        let (_, older) = std::str::from_utf8(&good)
            .unwrap()
            .split_once('\n')
            .unwrap();
        std::fs::write(&path, older).unwrap();
        let ledger = open();
        assert_eq!((ledger.lost, ledger.held(now, now).0.len()), (0, 1));
    }

    #[test]
    fn what_cannot_be_written_down_is_not_noted_and_the_next_one_is_again() {
        // FAULTS 33
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let end = now + Duration::from_secs(60);
        let ledger = Ledger::open(folder.path(), now).unwrap();
        ledger.note(record("a", end)).unwrap();
        let full = std::fs::File::options().append(true).open("/dev/full");
        let good = std::mem::replace(&mut ledger.locked().file, full.unwrap());
        let refused = ledger.note(record("b", end));
        assert!(matches!(refused, Err(NotNoted::Write(_))), "{refused:?}");
        assert_eq!(ledger.held(now, now).0.len(), 1);
        ledger.locked().file = good;
        ledger.note(record("c", end)).unwrap();
        let ledger = Ledger::open(folder.path(), now).unwrap();
        assert_eq!(ledger.lost, 0);
        let names = ledger.take(|_| true).into_iter().map(|one| one.workload);
        let names: Vec<String> = names.map(|name| name.name.to_string()).collect();
        assert_eq!(names, ["a", "c"]);
    }
}
