//! Reading the folder of evidence: only what nobody else can write to, and never more than the bounds.
//!
//! A file that cannot be used gives nothing, and is named with the reason. What has not changed since it
//! was read is not read again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::{
    document::{self, Document, Refused},
    judge::{Evidence, Named},
    signature::{Key, Signed},
};
use crate::{attest::reading::FileState, config::ImageEvidence, guarded};

/// What the folder and the keys look like from outside: it differs when one of them was added, removed,
/// replaced or written to.
pub(crate) type Looks = BTreeMap<PathBuf, Option<FileState>>;

/// The folder, and what was read of it last.
#[derive(Debug)]
pub(super) struct Folder {
    config: ImageEvidence,
    known: BTreeMap<PathBuf, Read>,
}

/// What was read of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Read {
    /// None where it could not even be looked at.
    state: Option<FileState>,
    said: Result<Document, Refused>,
}

impl Folder {
    pub(super) fn of(config: ImageEvidence) -> Self {
        Self {
            config,
            known: BTreeMap::new(),
        }
    }

    /// Reads what has changed. `tell` is called with a path and the reason for all that gives nothing.
    pub(super) fn read(&mut self, tell: &mut dyn FnMut(&Path, &str)) -> Evidence {
        let mut evidence = Evidence::default();
        let (keys, useless) = self.keys();
        for (path, why) in useless {
            tell(&path, &why);
            let file = path.display().to_string();
            evidence.useless_keys.push(Named { file, value: why });
        }
        let made_by = |signed: &Signed| -> BTreeSet<String> {
            let made = keys.iter().filter(|(_, key)| key.has_made(signed));
            made.map(|(name, _)| name.clone()).collect()
        };
        match self.files() {
            Ok(files) => self.known = files,
            Err(error) => {
                self.known.clear();
                let (file, value) = (self.config.directory.display(), error.to_string());
                tell(&self.config.directory, &value);
                let file = file.to_string();
                evidence.without_effect.push(Named { file, value });
            }
        }
        for (path, read) in &self.known {
            let file = name(path);
            match &read.said {
                Ok(document) => {
                    evidence.add(&file, document.clone(), made_by);
                    if let Document::Information(why) = document {
                        tell(path, why);
                    }
                }
                Err(why) => {
                    tell(path, &why.to_string());
                    let value = why.to_string();
                    evidence.without_effect.push(Named { file, value });
                }
            }
        }
        for one in evidence
            .signatures
            .iter()
            .filter(|one| one.value.keys.is_empty())
        {
            let path = self.config.directory.join(&one.file);
            tell(&path, "a signature in it was made by none of `image.keys`");
        }
        evidence
    }

    /// The keys that can be used, by their names, and the files of the others with the reason.
    fn keys(&self) -> (BTreeMap<String, Key>, Vec<(PathBuf, String)>) {
        let (mut keys, mut useless) = (BTreeMap::new(), Vec::new());
        for (name, path) in &self.config.keys {
            let read = text(path, MAX_KEY_BYTES).map_err(|error| Refused::new(error.to_string()));
            match read.and_then(|(text, _)| Key::read(&text)) {
                Ok(key) => drop(keys.insert(name.clone(), key)),
                Err(why) => useless.push((path.clone(), why.to_string())),
            }
        }
        (keys, useless)
    }

    /// # Errors
    /// The folder cannot be read, others can write to it, or it holds more than is read: what is left out
    /// might be what takes an identity away, so then all of it is.
    fn files(&self) -> io::Result<BTreeMap<PathBuf, Read>> {
        guarded::check(&self.config.directory)?;
        let paths = paths(&self.config.directory)?;
        let states: Vec<(PathBuf, Option<FileState>)> = paths
            .into_iter()
            .map(|path| (path.clone(), state(&path)))
            .collect();
        let sizes = states
            .iter()
            .filter_map(|(_, state)| Some(state.as_ref()?.size));
        let bytes: u64 = sizes.map(|bytes| bytes.min(MAX_FILE_BYTES)).sum();
        if bytes > MAX_BYTES {
            let folder = self.config.directory.display();
            let text = format!(
                "the files of `{folder}` have more than {MAX_BYTES} bytes, and none of them is read; remove \
                 those of images that do not run any more"
            );
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        let mut files = BTreeMap::new();
        for (path, before) in states {
            let known = self.known.get(&path);
            let known = known.filter(|read| before.is_some() && read.state == before);
            let read = match known {
                // Its folders may be in other hands by now.
                Some(known) if guarded::check(&path).is_ok() => known.clone(),
                _ => Read {
                    state: before,
                    said: said(&path),
                },
            };
            files.insert(path, read);
        }
        Ok(files)
    }
}

/// What the folder and the keys look like now.
pub(super) fn looks(config: &ImageEvidence) -> Looks {
    let files = paths(&config.directory).unwrap_or_default();
    let keys = config.keys.values().cloned();
    let all = files.into_iter().chain(keys);
    // The folder's own state: its owner and mode count too.
    let all = all.chain(std::iter::once(config.directory.clone()));
    all.map(|path| {
        let state = state(&path);
        (path, state)
    })
    .collect()
}

/// The files of evidence in a folder. Hidden ones are passed over, which leaves out those that are still
/// being written, and the `..data` of a mounted ConfigMap.
fn paths(folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let named = |error: io::Error| {
        let text = format!("cannot read `{}`: {error}", folder.display());
        io::Error::new(error.kind(), text)
    };
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(named)? {
        let path = entry.map_err(named)?.path();
        if is_evidence(&path) {
            paths.insert(path);
        }
        if paths.len() > MAX_FILES {
            let text = format!(
                "`{}` has more than {MAX_FILES} files, and none of them is read; remove those of images \
                 that do not run any more",
                folder.display()
            );
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
    }
    Ok(paths)
}

fn is_evidence(path: &Path) -> bool {
    let name = name(path);
    let endings = [".json", ".jsonl", ".sarif"];
    !name.starts_with('.') && endings.iter().any(|ending| name.ends_with(ending))
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn state(path: &Path) -> Option<FileState> {
    fs::metadata(path).ok().as_ref().map(FileState::from)
}

fn said(path: &Path) -> Result<Document, Refused> {
    let refused = |error: io::Error| Refused::new(error.to_string());
    let (text, written_at) = text(path, MAX_FILE_BYTES).map_err(refused)?;
    document::read(&text, written_at)
}

/// The text of a file, and when it was written.
///
/// # Errors
/// It is in other hands, no file, too large, or was written to meanwhile.
fn text(path: &Path, most: u64) -> io::Result<(Vec<u8>, std::time::SystemTime)> {
    guarded::check(path)?;
    let mut file = opened(path)?;
    let before = file.metadata()?;
    let refused = |kind, text: String| Err(io::Error::new(kind, text));
    if !before.is_file() {
        return refused(io::ErrorKind::InvalidInput, "it is no file".to_owned());
    }
    let too_large = |bytes: u64| format!("it has {bytes} bytes, and at most {most} are read");
    if before.len() > most {
        return refused(io::ErrorKind::FileTooLarge, too_large(before.len()));
    }
    let mut text = Vec::new();
    file.by_ref().take(most + 1).read_to_end(&mut text)?;
    let read = u64::try_from(text.len()).unwrap_or(u64::MAX);
    if read > most {
        return refused(io::ErrorKind::FileTooLarge, too_large(read));
    }
    if FileState::from(&file.metadata()?) != FileState::from(&before) {
        let text = "it was written to while it was read; write elsewhere, and move it here";
        return refused(io::ErrorKind::ResourceBusy, text.to_owned());
    }
    Ok((text, before.modified()?))
}

/// Opens without waiting: a pipe that nobody writes to would hold up everything.
fn opened(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Of a folder.
pub(super) const MAX_FILES: usize = 1_024;

/// Of a file: a report on a large image has some.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Of all files of a folder.
const MAX_BYTES: u64 = 512 << 20;

const MAX_KEY_BYTES: u64 = 16 << 10;

#[cfg(test)]
mod tests;
