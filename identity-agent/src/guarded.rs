//! Files that decide who is who: documents, bundles of others, the authority's state.
//!
//! Whoever may write to one, or may put another in its place, decides with them. So, as sshd does with
//! its keys, only what nobody but root and the agent's own user can change is read. What is looked at
//! is every folder on the way, through every link: one of them in other hands is enough.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use postern_policies::{SourceFile, files};
use rustix::fs::{StatVfsMountFlags, statvfs};

/// Reads the documents of a folder, if nobody else can write to it or to one of them.
///
/// # Errors
/// As [`check`] and [`files::read_documents`]; callers keep what they had.
pub(crate) fn documents(folder: &Path) -> io::Result<Vec<SourceFile>> {
    check(folder)?;
    let documents = files::read_documents(folder)?;
    documents.iter().try_for_each(|file| check(&file.path))?;
    Ok(documents)
}

/// Checks that nobody but root and the agent's own user can change what lies at a path, or what the
/// path leads to.
///
/// A mount that is read-only from here is the word of whoever mounted it, unless that is a service
/// manager which makes everything read-only for us (`ProtectSystem=strict`) and for nobody else. Below
/// a folder that others cannot enter, nothing is in their reach.
///
/// # Errors
/// What is in other hands, and how to mend it.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    let mut way = Way::to(&std::path::absolute(path)?);
    while let Some(step) = way.next()? {
        if let Some(hands) = hands(&step.found, step.is_last, own)
            && !way.is_private()
            && !is_read_only(&step.path)?
        {
            return Err(refused(path, &step.path, hands));
        }
        way.go(step)?;
    }
    Ok(())
}

/// In which hands something is that is not in ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hands {
    /// It belongs to this user.
    Of(u32),
    /// Others than its owner may write to it.
    Others,
}

/// Pure. In a sticky folder nobody may rename or remove what is somebody else's; but anybody may put
/// more into it.
fn hands(found: &Metadata, is_last: bool, own: u32) -> Option<Hands> {
    judge(found.uid(), found.mode(), is_last, own)
}

fn judge(owner: u32, mode: u32, is_last: bool, own: u32) -> Option<Hands> {
    if ![0, own].contains(&owner) {
        return Some(Hands::Of(owner));
    }
    let is_link = mode & TYPE == LINK;
    let is_held = mode & STICKY != 0 && !is_last;
    (mode & 0o022 != 0 && !is_link && !is_held).then_some(Hands::Others)
}

fn refused(path: &Path, at: &Path, hands: Hands) -> io::Error {
    let (path, at) = (path.display(), at.display());
    let text = match hands {
        Hands::Of(user) => format!(
            "`{at}` belongs to user {user}, who could change what `{path}` says; `chown` it to root or \
             to the agent's user"
        ),
        Hands::Others => format!(
            "`{at}` can be written by others, who could change what `{path}` says; `chmod go-w` it"
        ),
    };
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

fn is_read_only(path: &Path) -> io::Result<bool> {
    // systemd sets it for all that it starts; no container has it.
    if std::env::var_os("INVOCATION_ID").is_some() {
        return Ok(false);
    }
    // What a link says stands in the folder that it lies in.
    let folder = path.parent().unwrap_or(path);
    let is_link = fs::symlink_metadata(path)?.is_symlink();
    let mount = statvfs(if is_link { folder } else { path })?;
    Ok(mount.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// The way to a file, one name after the other, with links as they are.
#[derive(Debug)]
struct Way {
    /// A real path, without links.
    here: PathBuf,
    left: VecDeque<OsString>,
    links: usize,
    /// The outermost folder here that others cannot enter.
    private: Option<PathBuf>,
}

#[derive(Debug)]
struct Step {
    path: PathBuf,
    found: Metadata,
    is_last: bool,
}

impl Way {
    fn to(path: &Path) -> Self {
        let mut way = Self {
            here: PathBuf::from("/"),
            left: VecDeque::new(),
            links: 0,
            private: None,
        };
        way.insert(path);
        way
    }

    /// Puts a path before what is left.
    fn insert(&mut self, path: &Path) {
        if path.is_absolute() {
            self.here = PathBuf::from("/");
        }
        let names = path.components().filter_map(|part| match part {
            Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
            _ => None,
        });
        let names: Vec<OsString> = names.collect();
        names
            .into_iter()
            .rev()
            .for_each(|name| self.left.push_front(name));
    }

    /// What is next. None at the end.
    fn next(&mut self) -> io::Result<Option<Step>> {
        while let Some(name) = self.left.pop_front() {
            if name == ".." {
                self.here.pop();
                continue;
            }
            let path = self.here.join(name);
            let found = fs::symlink_metadata(&path).map_err(|error| {
                let text = format!("cannot look at `{}`: {error}", path.display());
                io::Error::new(error.kind(), text)
            })?;
            let is_last = self.left.is_empty();
            return Ok(Some(Step {
                path,
                found,
                is_last,
            }));
        }
        Ok(None)
    }

    fn go(&mut self, step: Step) -> io::Result<()> {
        if step.found.is_symlink() {
            self.links += 1;
            if self.links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            self.insert(&fs::read_link(&step.path)?);
            return Ok(());
        }
        let was_private = self.is_private();
        if !was_private && step.found.is_dir() && step.found.mode() & 0o011 == 0 {
            self.private = Some(step.path.clone());
        }
        self.here = step.path;
        Ok(())
    }

    fn is_private(&self) -> bool {
        let mut private = self.private.iter();
        private.any(|folder| self.here.starts_with(folder))
    }
}

const TYPE: u32 = 0o170_000;
const LINK: u32 = 0o120_000;
const STICKY: u32 = 0o1000;

/// As many as the kernel follows.
const MAX_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt as _, symlink},
        path::{Path, PathBuf},
    };

    use super::{Hands, LINK, check, documents, judge};

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// A folder that others may enter, with `outer/inner/w.yaml` in it.
    fn world() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let world = tempfile::tempdir().unwrap();
        mode(world.path(), 0o755);
        let outer = world.path().join("outer");
        let inner = outer.join("inner");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("w.yaml"), "").unwrap();
        for path in [&outer, &inner] {
            mode(path, 0o755);
        }
        mode(&inner.join("w.yaml"), 0o644);
        (world, outer, inner)
    }

    #[track_caller]
    fn is_refused(path: &Path, named: &Path) {
        let error = documents(path).unwrap_err().to_string();
        let wanted = format!("`{}` can be written by others", named.display());
        assert!(
            error.starts_with(&wanted) && error.contains("chmod go-w"),
            "{error}"
        );
    }

    #[test]
    fn what_is_in_whose_hands() {
        for (owner, bits, is_last, expected) in [
            (0, 0o755, true, None),
            (7, 0o755, true, None),
            (8, 0o755, true, Some(Hands::Of(8))),
            (8, 0o700, false, Some(Hands::Of(8))),
            (7, 0o775, true, Some(Hands::Others)),
            (7, 0o757, false, Some(Hands::Others)),
            (0, 0o1777, false, None),
            (0, 0o1777, true, Some(Hands::Others)),
            (7, LINK | 0o777, false, None),
            (8, LINK | 0o777, false, Some(Hands::Of(8))),
        ] {
            assert_eq!(
                judge(owner, bits, is_last, 7),
                expected,
                "{owner} {bits:o} {is_last}"
            );
        }
    }

    #[test]
    fn one_folder_on_the_way_that_others_may_write_to_is_enough() {
        let (_world, outer, inner) = world();
        let file = inner.join("w.yaml");
        assert_eq!(documents(&inner).unwrap().len(), 1);
        for (path, good, bad) in [
            (&inner, 0o755, 0o775),
            (&inner, 0o755, 0o757),
            (&inner, 0o755, 0o1777),
            (&outer, 0o755, 0o775),
            (&outer, 0o755, 0o757),
            (&file, 0o644, 0o664),
            (&file, 0o644, 0o646),
        ] {
            mode(path, bad);
            is_refused(&inner, path);
            mode(path, good);
            documents(&inner).unwrap();
        }
        mode(&outer, 0o1777);
        documents(&inner).unwrap();
    }

    #[test]
    fn links_are_followed_to_the_real_folder_and_every_one_counts() {
        let (world, outer, inner) = world();
        let links = world.path().join("links");
        fs::create_dir(&links).unwrap();
        mode(&links, 0o755);
        symlink("../outer/inner", links.join("second")).unwrap();
        symlink(links.join("second"), world.path().join("first")).unwrap();
        let first = world.path().join("first");
        documents(&first).unwrap();
        for path in [&links, &outer, &inner] {
            mode(path, 0o777);
            is_refused(&first, path);
            mode(path, 0o755);
        }
        // Of a document as well.
        let elsewhere = outer.join("elsewhere.txt");
        fs::write(&elsewhere, "").unwrap();
        symlink(&elsewhere, inner.join("x.yaml")).unwrap();
        mode(&elsewhere, 0o666);
        is_refused(&inner, &elsewhere);
        mode(&elsewhere, 0o644);
        assert_eq!(documents(&first).unwrap().len(), 2);
        symlink("round", world.path().join("round")).unwrap();
        assert!(check(&world.path().join("round")).is_err());
    }

    #[test]
    fn below_a_folder_that_others_cannot_enter_nothing_is_in_their_reach() {
        let (world, outer, inner) = world();
        mode(&inner, 0o777);
        for (way, is_good) in [(0o700, true), (0o744, true), (0o710, false), (0o701, false)] {
            mode(&outer, way);
            assert_eq!(documents(&inner).is_ok(), is_good, "{way:o}");
        }
        // A link leads out of it again.
        mode(&outer, 0o700);
        let open = world.path().join("open");
        fs::create_dir(&open).unwrap();
        mode(&open, 0o777);
        symlink("../open", outer.join("link")).unwrap();
        is_refused(&outer.join("link"), &open);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = check(Path::new("/nonexistent/workloads")).unwrap_err();
        assert!(error.to_string().contains("`/nonexistent`"), "{error}");
    }
}
