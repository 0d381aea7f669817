//! The `unix` attestor: user, group and program, in SPIRE's spelling.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use aws_lc_rs::digest;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

use super::{
    Asked, AttestFailed, Attestor, Subject,
    patience::{Lane, What, patiently},
    reading::{
        FileState, Lack, ReadError, inode, known, opened_file, place_in_memory, read_text, root_of,
    },
};
use crate::caller::ProcFolder;

/// States `unix:` selectors.
#[derive(Debug, Default)]
pub struct Unix {
    digests: Digests,
    users: Names,
    groups: Names,
    /// No Workload asks for a digest.
    is_spared: AtomicBool,
}

impl Attestor for Unix {
    fn kind(&self) -> &'static str {
        "unix"
    }

    fn asked(&self, asked: &Asked) {
        self.is_spared.store(!asked.digests, Ordering::Relaxed);
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        let [_, uid, ..] = subject.status.uids;
        let [_, gid, ..] = subject.status.gids;
        add(&format!("uid:{uid}"));
        add(&format!("gid:{gid}"));
        // The C library's look-up is not for static programs.
        let users = self.users.of(Path::new("/etc/passwd"))?;
        let groups = self.groups.of(Path::new("/etc/group"))?;
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
        if let Some(path) = program(subject.folder)? {
            add(&format!("path:{path}"));
        }
        if !self.is_spared.load(Ordering::Relaxed)
            && let Some(digest) = self.digests.of(&subject.folder.join("exe"))?
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
///
/// # Errors
/// Nobody knows whether it has one.
pub fn program(folder: &ProcFolder) -> Result<Option<String>, Lack> {
    if !is_of_our_users(folder)? {
        return Ok(None);
    }
    let exe = folder.join("exe");
    let (Some(link), Some(running)) = (known(fs::read_link(&exe))?, known(place_in_memory(&exe))?)
    else {
        return Ok(None);
    };
    // Seen from the process' own root: a container's paths are not the host's.
    let Some(inside) = link.as_os_str().as_bytes().strip_prefix(b"/") else {
        return Ok(None);
    };
    let inside = PathBuf::from(std::ffi::OsStr::from_bytes(inside));
    let Some(root) = known(root_of(folder))? else {
        return Ok(None);
    };
    let lane = Lane::of(&folder.join(""), running.0, What::Names)?;
    Ok(match named(root, inside, lane)? == Some(running) {
        true => link.into_os_string().into_string().ok(),
        false => None,
    })
}

/// Device and inode of what lies at a path below a root, without links: the kernel tells the path of a program
/// without any, so one on the way was put there since.
///
/// What the kernel has in memory is told at once. That is so of a program that runs, unless somebody has
/// put something in its way or the file system wants to be asked each time.
fn named(root: OwnedFd, inside: PathBuf, lane: Lane) -> Result<Option<(u64, u64)>, Lack> {
    let open = |root: &OwnedFd, inside: &Path, more: ResolveFlags| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | more;
        openat2(root.as_fd(), inside, flags, Mode::empty(), resolve)
    };
    if let Ok(found) = open(&root, &inside, ResolveFlags::CACHED) {
        return known(opened_file(&found));
    }
    patiently(lane, move || {
        let found = match open(&root, &inside, ResolveFlags::empty()) {
            // An older kernel or sandbox does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                openat(&root, &inside, flags, Mode::empty())
            }
            found => found,
        };
        let found = found.map_err(|error| ReadError::from(io::Error::from(error)));
        known(found.and_then(|found| opened_file(&found)))
    })?
}

/// Does something lie at this path, as the agent sees it? Of whoever has a layer of a file system there.
///
/// # Errors
/// Nobody knows.
pub(crate) fn is_there(folder: &ProcFolder, path: PathBuf) -> Result<bool, Lack> {
    let open = |path: &Path, resolve: ResolveFlags| {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat2(CWD, path, flags, Mode::empty(), resolve)
    };
    match open(&path, ResolveFlags::CACHED) {
        Ok(_) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        Err(_) => {}
    }
    let Some((device, _)) = known(place_in_memory(&folder.join("exe")))? else {
        return Ok(false);
    };
    let lane = Lane::of(&folder.join(""), device, What::Names)?;
    patiently(lane, move || {
        let found = match open(&path, ResolveFlags::empty()) {
            // An older kernel or sandbox does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => fs::symlink_metadata(&path).map(drop),
            found => found.map(drop).map_err(io::Error::from),
        };
        Ok(known(found.map_err(ReadError::from))?.is_some())
    })?
}

/// Does a process live in the agent's own user namespace? One that may not be looked at does not.
///
/// # Errors
/// Nobody knows.
pub fn is_of_our_users(folder: &ProcFolder) -> Result<bool, Lack> {
    let users = |folder: &ProcFolder| known(inode(&folder.join("ns/user")));
    let (theirs, own) = (users(folder)?, users(&ProcFolder::own())?);
    Ok(theirs.is_some() && theirs == own)
}

/// SHA-256 of running programs, remembered by what tells that a file has changed.
#[derive(Debug, Default)]
pub struct Digests(Arc<ByFile>);

impl Digests {
    /// The digest of the file behind `exe`, in lower-case hexadecimal. A file that is too large,
    /// may not be read or changes meanwhile has none.
    ///
    /// # Errors
    /// Nobody knows which one it has.
    pub fn of(&self, exe: &Path) -> Result<Option<String>, Lack> {
        let (Some((device, _)), Some(folder)) = (known(place_in_memory(exe))?, exe.parent()) else {
            return Ok(None);
        };
        let lane = |what| Lane::of(folder, device, what);
        let path = exe.to_owned();
        let opened = patiently(lane(What::Names)?, move || opened(&path))?;
        let Some((file, before)) = opened? else {
            return Ok(None);
        };
        if let Some(known) = known_digest(&self.0, &before) {
            return Ok(known);
        }
        let all = self.0.clone();
        patiently(lane(What::Contents)?, move || digest(&all, file, before))?
    }
}

type ByFile = Mutex<HashMap<FileState, Option<String>>>;

fn known_digest(all: &ByFile, file: &FileState) -> Option<Option<String>> {
    let all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.get(file).cloned()
}

/// A program and its state, unless it may not be read.
fn opened(exe: &Path) -> Result<Option<(File, FileState)>, Lack> {
    let Some(file) = known(File::open(exe))? else {
        return Ok(None);
    };
    let state = state(&file)?;
    Ok(state.map(|state| (file, state)))
}

/// Reads a program, unless somebody has just done so.
fn digest(all: &ByFile, mut file: File, before: FileState) -> Result<Option<String>, Lack> {
    if let Some(known) = known_digest(all, &before) {
        return Ok(known);
    }
    let digest = match before.size <= MAX_PROGRAM_BYTES {
        true => known(hash(&mut file))?,
        false => None,
    };
    if state(&file)? != Some(before) {
        return Ok(None);
    }
    // A program that may not be read now is tried again; one that is too large is not.
    if digest.is_none() && before.size <= MAX_PROGRAM_BYTES {
        return Ok(None);
    }
    let mut known = all.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= MAX_KNOWN {
        known.clear();
    }
    known.insert(before, digest.clone());
    Ok(digest)
}

fn state(file: &File) -> Result<Option<FileState>, Lack> {
    Ok(known(file.metadata())?.map(|found| FileState::from(&found)))
}

fn hash(file: &mut File) -> io::Result<String> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => context.update(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let digest = context.finish();
    let digits = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
    Ok(digits.collect())
}

/// The names in a file of the system, read again when it is another.
#[derive(Debug, Default)]
struct Names(Mutex<Option<(FileState, ByNumber)>>);

type ByNumber = Arc<HashMap<u32, String>>;

impl Names {
    /// Those of the file as it is now. None where there is no file, as in many containers.
    fn of(&self, path: &Path) -> Result<ByNumber, Lack> {
        let Some(found) = known(fs::metadata(path))? else {
            return Ok(ByNumber::default());
        };
        let now = FileState::from(&found);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((state, names)) = &*kept
            && *state == now
        {
            return Ok(names.clone());
        }
        let names = names(&known(read_text(path))?.unwrap_or_default());
        let names = ByNumber::new(names);
        *kept = Some((now, names.clone()));
        Ok(names)
    }
}

/// Names by number, from a text of lines of the form `name:…:number:…`.
fn names(text: &str) -> HashMap<u32, String> {
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

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::{Digests, Names, names};

    #[test]
    fn the_first_name_of_a_number_counts_and_half_a_line_does_not() {
        let found = names("root:x:0:0::/:\ntoor:x:0:0\nhalf:x\nword:x:y:\nlast:x:7");
        assert_eq!(found.len(), 2);
        assert_eq!((found[&0].as_str(), found[&7].as_str()), ("root", "last"));
    }

    #[test]
    fn names_are_read_again_when_the_file_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passwd");
        let kept = Names::default();
        assert!(kept.of(&path).unwrap().is_empty(), "there is no file");
        fs::write(&path, "a:x:1:").unwrap();
        assert_eq!(kept.of(&path).unwrap()[&1], "a");
        let same = kept.of(&path).unwrap();
        assert!(std::sync::Arc::ptr_eq(&same, &kept.of(&path).unwrap()));
        fs::write(folder.path().join("new"), "b:x:1:").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(kept.of(&path).unwrap()[&1], "b");
        // Of one length, and written in place.
        fs::write(&path, "c:x:1:").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(9))
            .unwrap();
        assert_eq!(kept.of(&path).unwrap()[&1], "c");
        fs::remove_file(&path).unwrap();
        assert!(kept.of(&path).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_program_has_no_digest() {
        let folder = tempfile::tempdir().unwrap();
        let digests = Digests::default();
        assert_eq!(digests.of(&folder.path().join("none")), Ok(None));
        let path = folder.path().join("some");
        fs::write(&path, "abc").unwrap();
        let digest = digests.of(&path).unwrap().unwrap();
        assert!(digest.starts_with("ba7816bf8f01cfea"), "{digest}");
        assert_eq!(digests.of(&path), Ok(Some(digest)));
    }
}
