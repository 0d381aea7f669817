//! Reading what the kernel shows, and whose fault it is when that fails.
//!
//! Three reasons, for three who must act. There is no such thing: the process has ended, or never had
//! it. It may not be read: that is the process' doing, or ours for want of rights, and it will be so the
//! next time too. We lack something, such as descriptors: that says nothing about the process, so it
//! neither takes something from it nor makes it another one.

use std::{
    error::Error,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags, fstat, makedev, open, statx},
    io::Errno,
};

use crate::caller::ProcFolder;

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is no such thing.
    #[error("there is none")]
    Absent,
    /// It may not be read, or is not what a kernel writes.
    #[error("it cannot be read")]
    Refused,
    /// It is not known what is there.
    #[error(transparent)]
    Lack(#[from] Lack),
}

/// The agent lacks what it needs to look: descriptors, memory, a disk that answers. Nothing follows
/// for the process that was to be looked at; it may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the agent cannot look for now: {0}")]
pub struct Lack(String);

impl Lack {
    /// Something that every machine has is not there to be read.
    pub(crate) fn of(what: &str) -> Self {
        Self(format!("`{what}` cannot be read"))
    }

    /// For this reason.
    pub(super) fn because(why: String) -> Self {
        Self(why)
    }

    /// The lack that made something fail, if it is one that has nothing to do with what was asked for.
    pub fn behind<'a>(causes: impl Iterator<Item = &'a (dyn Error + 'static)>) -> Option<Self> {
        let mut errors = causes.filter_map(|cause| cause.downcast_ref::<io::Error>());
        let found = errors.find(|error| Errno::from_io_error(error).is_some_and(is_of_means))?;
        Some(Self(found.to_string()))
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::SRCH | Errno::NOTDIR) => Self::Absent,
            // A dead file system in user space is its owner's doing, like a loop of links. What comes
            // without a number is a text that is too long or no text.
            None | Some(Errno::ACCESS | Errno::PERM) => Self::Refused,
            Some(Errno::LOOP | Errno::NAMETOOLONG | Errno::NOTCONN) => Self::Refused,
            // Anything else is no word on what is there.
            Some(_) => Self::Lack(Lack(error.to_string())),
        }
    }
}

/// Does the number say that there are no means left, whatever was asked for?
fn is_of_means(number: Errno) -> bool {
    matches!(
        number,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS
    )
}

/// What was read; none if there is no such thing, or if it may not be read.
///
/// # Errors
/// Nobody knows.
pub fn known<T>(read: Result<T, impl Into<ReadError>>) -> Result<Option<T>, Lack> {
    match read.map_err(Into::into) {
        Ok(value) => Ok(Some(value)),
        Err(ReadError::Absent | ReadError::Refused) => Ok(None),
        Err(ReadError::Lack(lack)) => Err(lack),
    }
}

/// Reads a text under `/proc`, up to a bound.
///
/// # Errors
/// The system's own, or that it is too long.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    // These files have no size; without room to begin with they are read in small pieces.
    let mut text = String::with_capacity(USUAL_TEXT_BYTES);
    let read = File::open(path)?
        .take(MAX_TEXT_BYTES + 1)
        .read_to_string(&mut text)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_TEXT_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the text is too long",
        ));
    }
    Ok(text)
}

/// Reads what one of the readers in `procfs` understands.
///
/// # Errors
/// A text that it does not understand is none that the kernel writes.
pub(crate) fn read_as<T>(path: &Path, read: impl Fn(&str) -> Option<T>) -> Result<T, ReadError> {
    read(&read_text(path)?).ok_or(ReadError::Refused)
}

/// The inode behind a path.
///
/// # Errors
/// [`ReadError`].
pub(crate) fn inode(path: &Path) -> Result<u64, ReadError> {
    Ok(fs::metadata(path)?.ino())
}

/// Device and inode behind a link of `/proc` to what a process uses, such as its program, by what the kernel has
/// of it in memory: a file system that hangs keeps nobody waiting.
///
/// # Errors
/// [`ReadError`].
pub(crate) fn place_in_memory(link: &Path) -> Result<(u64, u64), ReadError> {
    match statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::INO) {
        Ok(found) => Ok(place(&found)),
        // An older sandbox does not know the call.
        Err(Errno::NOSYS) => {
            let found = fs::metadata(link)?;
            Ok((found.dev(), found.ino()))
        }
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// The same of what was opened as a path alone.
///
/// # Errors
/// [`ReadError`].
pub(super) fn opened_file(path: &impl AsFd) -> Result<(u64, u64), ReadError> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
    match statx(path, "", flags, StatxFlags::INO) {
        Ok(found) => Ok(place(&found)),
        Err(Errno::NOSYS) => {
            let found = fstat(path).map_err(io::Error::from)?;
            Ok((found.st_dev, found.st_ino))
        }
        Err(error) => Err(io::Error::from(error).into()),
    }
}

fn place(found: &Statx) -> (u64, u64) {
    let device = makedev(found.stx_dev_major, found.stx_dev_minor);
    (device, found.stx_ino)
}

/// The root of a process, opened as a path alone, which asks no file system.
///
/// # Errors
/// [`ReadError`].
pub(super) fn root_of(folder: &ProcFolder) -> Result<OwnedFd, ReadError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = open(folder.join("root"), flags, Mode::empty());
    Ok(root.map_err(io::Error::from)?)
}

/// What tells a file from others, and from itself before a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileState {
    device: u64,
    inode: u64,
    /// In bytes.
    pub(crate) size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for FileState {
    fn from(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

const MAX_TEXT_BYTES: u64 = 256 << 10;
const USUAL_TEXT_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use std::{io, path::Path};

    use rustix::io::Errno;

    use super::{Lack, MAX_TEXT_BYTES, ReadError, inode, known, place_in_memory, read_text};
    use crate::attest::cgroup::Groups;

    #[test]
    fn a_text_that_is_too_long_is_not_read() {
        // FAULTS 14
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cgroup");
        let line = format!("12:pids:/{}\n", "a".repeat(4096));
        let lines = usize::try_from(MAX_TEXT_BYTES).unwrap() / line.len();
        std::fs::write(&path, line.repeat(lines)).unwrap();
        assert!(Groups::parse(&read_text(&path).unwrap()).is_some());
        std::fs::write(&path, line.repeat(lines + 1)).unwrap();
        let error: ReadError = read_text(&path).unwrap_err().into();
        assert_eq!(error, ReadError::Refused);
    }

    #[test]
    fn the_three_reasons_are_told_apart() {
        let of = |number: Errno| ReadError::from(io::Error::from(number));
        for absent in [Errno::NOENT, Errno::SRCH, Errno::NOTDIR] {
            assert_eq!(of(absent), ReadError::Absent);
        }
        for refused in [Errno::ACCESS, Errno::PERM, Errno::LOOP, Errno::NAMETOOLONG] {
            assert_eq!(of(refused), ReadError::Refused);
        }
        for lack in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::IO] {
            assert!(matches!(of(lack), ReadError::Lack(_)), "{lack:?}");
            assert!(known::<()>(Err(of(lack))).is_err(), "{lack:?}");
        }
        let nowhere = inode(Path::new("/nonexistent/file"));
        assert_eq!(nowhere, Err(ReadError::Absent));
        assert_eq!(known(nowhere), Ok(None));
    }

    #[test]
    fn the_file_of_a_program_is_the_one_that_others_see() {
        let found = std::fs::metadata("/proc/self/exe").unwrap();
        let wanted = std::os::unix::fs::MetadataExt::ino(&found);
        let device = std::os::unix::fs::MetadataExt::dev(&found);
        let own = place_in_memory(Path::new("/proc/self/exe"));
        assert_eq!(own, Ok((device, wanted)));
        let nowhere = place_in_memory(Path::new("/nonexistent"));
        assert_eq!(nowhere, Err(ReadError::Absent));
    }

    #[test]
    fn the_lack_is_found_behind_what_others_say_of_it() {
        let of = |number: Errno| {
            let error = anyhow::Error::from(io::Error::from(number)).context("the engine");
            Lack::behind(error.chain())
        };
        assert!(of(Errno::MFILE).is_some());
        assert_eq!(of(Errno::CONNREFUSED), None);
        assert_eq!(of(Errno::IO), None);
    }
}
