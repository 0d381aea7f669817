//! The `unix` attestor: user, group and program, in SPIRE's spelling.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use aws_lc_rs::digest;

use super::{AttestFailed, Attestor, Subject, inode_of, read_text};
use crate::caller::ProcFolder;

/// States `unix:` selectors.
#[derive(Debug, Default)]
pub struct Unix {
    digests: Digests,
    /// No Workload asks for a digest.
    is_spared: AtomicBool,
}

impl Attestor for Unix {
    fn kind(&self) -> &'static str {
        "unix"
    }

    fn state_digests(&self, asked: bool) {
        self.is_spared.store(!asked, Ordering::Relaxed);
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        let [_, uid, ..] = subject.status.uids;
        let [_, gid, ..] = subject.status.gids;
        add(&format!("uid:{uid}"));
        add(&format!("gid:{gid}"));
        // Read each time: names change, and the C library's look-up is not for static programs.
        let users = names(Path::new("/etc/passwd"));
        let groups = names(Path::new("/etc/group"));
        if let Some(name) = users.get(&uid) {
            add(&format!("user:{name}"));
        }
        if let Some(name) = groups.get(&gid) {
            add(&format!("group:{name}"));
        }
        for group in &subject.status.groups {
            add(&format!("supplementary_gid:{group}"));
            if let Some(name) = groups.get(group) {
                add(&format!("supplementary_group:{name}"));
            }
        }
        if let Some(path) = program(subject.folder) {
            add(&format!("path:{path}"));
        }
        if !self.is_spared.load(Ordering::Relaxed)
            && let Some(digest) = self.digests.of(&subject.folder.join("exe"))
        {
            add(&format!("sha256:{digest}"));
        }
        Ok(())
    }
}

/// The path of the running program, if a file of that path is the running program.
///
/// A deleted or replaced one has no path; a file that is really named `x (deleted)` has.
///
/// Who lives in a user namespace of its own may mount anything anywhere, so its paths say nothing.
pub fn program(folder: &ProcFolder) -> Option<String> {
    let users = |folder: &ProcFolder| inode_of(&folder.join("ns/user"));
    if users(folder)? != users(&ProcFolder::own())? {
        return None;
    }
    let link = fs::read_link(folder.join("exe")).ok()?;
    let running = fs::metadata(folder.join("exe")).ok()?;
    // Seen from the process' own root: a container's paths are not the host's.
    let inside = PathBuf::from(std::ffi::OsStr::from_bytes(
        link.as_os_str().as_bytes().strip_prefix(b"/")?,
    ));
    let named = fs::metadata(folder.join("root").join(inside)).ok()?;
    let same = named.dev() == running.dev() && named.ino() == running.ino();
    same.then(|| link.into_os_string().into_string().ok())
        .flatten()
}

/// SHA-256 of running programs, remembered by what tells that a file has changed.
#[derive(Debug, Default)]
pub struct Digests {
    /// One file is read at a time: many who ask for the same one wait for it to be read once.
    reading: Mutex<()>,
    known: Mutex<HashMap<FileState, Option<String>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Digests {
    fn known(&self, file: &FileState) -> Option<Option<String>> {
        self.known.lock().ok()?.get(file).cloned()
    }

    /// The digest of the file behind `exe`, in lower-case hexadecimal. A file that is too large,
    /// cannot be read or changes meanwhile has none.
    pub fn of(&self, exe: &Path) -> Option<String> {
        let mut file = File::open(exe).ok()?;
        let before = state(&file)?;
        if let Some(known) = self.known(&before) {
            return known;
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.known(&before) {
            return known;
        }
        let digest = (before.size <= MAX_PROGRAM_BYTES)
            .then(|| hash(&mut file))
            .flatten();
        if state(&file)? != before {
            return None;
        }
        // A program that cannot be read now is tried again; one that is too large is not.
        if digest.is_none() && before.size <= MAX_PROGRAM_BYTES {
            return None;
        }
        let mut known = self.known.lock().ok()?;
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(before, digest.clone());
        digest
    }
}

fn state(file: &File) -> Option<FileState> {
    let found = file.metadata().ok()?;
    Some(FileState {
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

fn hash(file: &mut File) -> Option<String> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut buffer).ok()?;
        if read == 0 {
            break;
        }
        context.update(buffer.get(..read)?);
    }
    Some(
        context
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    )
}

/// Names by number, from a file of the form `name:…:number:…`.
fn names(path: &Path) -> HashMap<u32, String> {
    let text = read_text(path).unwrap_or_default();
    let entry = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
    };
    // The first of several names for a number counts, as in the C library.
    let mut names = HashMap::new();
    for (number, name) in text.lines().filter_map(entry) {
        names.entry(number).or_insert(name);
    }
    names
}

/// Larger programs are not read: a sparse file would keep us busy for nothing.
const MAX_PROGRAM_BYTES: u64 = 1 << 30;

/// How many programs' digests are remembered.
const MAX_KNOWN: usize = 1024;
