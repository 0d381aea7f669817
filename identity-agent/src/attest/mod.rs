//! What is true of a process: selectors.
//!
//! Each attestor states what it can read. What it cannot read it does not state: an unknown never
//! counts as a pass. Everything is read while the process is pinned.

pub mod cgroup;
pub mod docker;
pub mod kubernetes;
pub mod posture;
pub mod procfs;
mod service;
pub mod systemd;
pub mod unix;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use postern_spiffe::Selector;

use crate::{
    caller::{PinError, PinnedProcess, ProcFolder},
    config,
};
use procfs::Status;

/// What was found out about a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// All that is true of it.
    pub selectors: BTreeSet<Selector>,
    /// The pod it belongs to.
    pub pod: Pod,
}

/// The processes that share a fate.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Pod {
    /// Those in one network namespace, by its inode number.
    Network(u64),
    /// Plain processes in the agent's own network namespace: those of one session.
    Session(i32),
}

/// What an attestor may look at.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The process itself.
    pub process: &'a PinnedProcess,
    /// Its folder under `/proc`.
    pub folder: &'a ProcFolder,
    /// The state of each of its threads, the first one's first. Never empty.
    pub threads: &'a [Status],
    /// The state of the process itself.
    pub status: &'a Status,
}

/// States what is true of a process.
pub trait Attestor: std::fmt::Debug + Send + Sync {
    /// Adds selectors, as texts after the attestor's own type.
    ///
    /// # Errors
    /// [`AttestFailed`] where it cannot tell whether there is more to say: callers give no identity.
    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed>;

    /// The type of its selectors.
    fn kind(&self) -> &'static str;

    /// Are digests of programs asked for? They cost most.
    fn state_digests(&self, _: bool) {}
}

/// Why an attestor cannot tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AttestFailed(String);

impl AttestFailed {
    /// For this reason.
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// All attestors of an agent.
#[derive(Debug)]
pub struct Attestors {
    attestors: Vec<Box<dyn Attestor>>,
    own_network: Option<u64>,
}

/// Why a process could not be attested.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// It cannot be pinned, or ended meanwhile.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// It became another one again and again while it was looked at.
    #[error("it changes its program, user or control group faster than it can be looked at")]
    Restless,
    /// Its state cannot be read, or is not what a kernel writes.
    #[error("its state under /proc cannot be read")]
    Unreadable,
    /// An attestor cannot tell what is true of it.
    #[error("attestor `{kind}`: {why}")]
    Failed {
        /// Which.
        kind: &'static str,
        /// Why.
        why: AttestFailed,
    },
}

impl Attestors {
    /// These attestors, on this machine.
    pub fn new(attestors: Vec<Box<dyn Attestor>>) -> Self {
        let own_network = inode_of(Path::new("/proc/self/ns/net"));
        Self {
            attestors,
            own_network,
        }
    }

    /// Those that the configuration switches on.
    pub fn configured(config: &config::Attestors) -> Self {
        let mut attestors: Vec<Box<dyn Attestor>> = Vec::new();
        if config.unix {
            attestors.push(Box::new(unix::Unix::default()));
        }
        if config.posture {
            attestors.push(Box::new(posture::Posture::new()));
        }
        if config.cgroup {
            attestors.push(Box::new(cgroup::Cgroup));
        }
        if let Some(socket) = &config.docker {
            attestors.push(Box::new(docker::Docker::new(socket.clone())));
        }
        if let Some(kubelet) = &config.kubernetes {
            attestors.push(Box::new(kubernetes::Kubernetes::new(kubelet.clone())));
        }
        if let Some(bus) = &config.systemd {
            attestors.push(Box::new(systemd::Systemd::new(bus.clone())));
        }
        Self::new(attestors)
    }

    /// Says whether any Workload asks for the digest of a program. Until it is said, they are stated.
    pub fn state_digests(&self, asked: bool) {
        self.attestors
            .iter()
            .for_each(|one| one.state_digests(asked));
    }

    /// Can any attestor state selectors of this type?
    pub fn knows(&self, kind: &str) -> bool {
        self.attestors
            .iter()
            .any(|attestor| attestor.kind() == kind)
    }

    /// Finds out all about a process. Blocking: it reads files. Who asks again within a second, and still
    /// is the same program, user and control group, is not looked at again.
    ///
    /// # Errors
    /// [`AttestError`]; callers give no identity.
    pub fn attest(&self, process: &PinnedProcess) -> Result<Arc<Attested>, AttestError> {
        for _ in 0..READINGS {
            let before = process.moment()?;
            process.is_who_connected(&before)?;
            if let Some(known) = process.known(&before, MAX_AGE) {
                return Ok(known);
            }
            let attested = process.read(|folder| self.look_at(process, folder))??;
            // All that was read must be of one program, one user and one control group.
            if process.moment()? == before {
                let attested = Arc::new(attested);
                process.remember(before, &attested);
                return Ok(attested);
            }
        }
        Err(AttestError::Restless)
    }

    fn look_at(
        &self,
        process: &PinnedProcess,
        folder: &ProcFolder,
    ) -> Result<Attested, AttestError> {
        let status = read_text(&folder.join("status")).ok();
        let status = status.and_then(|text| procfs::status(&text));
        let status = status
            .filter(|status| !status.is_zombie)
            .ok_or(AttestError::Unreadable)?;
        let threads = threads(folder).ok_or(AttestError::Unreadable)?;
        let subject = Subject {
            process,
            folder,
            threads: &threads,
            status: &status,
        };
        let mut selectors = BTreeSet::new();
        for attestor in &self.attestors {
            let stated = attestor.attest(&subject, &mut |value| {
                // A value that makes no selector, such as a path with a newline, cannot be asked
                // for either.
                if let Ok(selector) = Selector::parse(&format!("{}:{value}", attestor.kind())) {
                    selectors.insert(selector);
                }
            });
            let kind = attestor.kind();
            stated.map_err(|why| AttestError::Failed { kind, why })?;
        }
        Ok(Attested {
            selectors,
            pod: self.pod(folder).ok_or(AttestError::Unreadable)?,
        })
    }

    /// The pod of a process.
    pub fn pod(&self, folder: &ProcFolder) -> Option<Pod> {
        match inode_of(&folder.join("ns/net")) {
            Some(inode) if Some(inode) != self.own_network => Some(Pod::Network(inode)),
            _ => procfs::session(&read_text(&folder.join("stat")).ok()?).map(Pod::Session),
        }
    }
}

/// The state of every thread, read until two readings see the same threads: one that is starting
/// others must not slip through.
fn threads(folder: &ProcFolder) -> Option<Vec<Status>> {
    let mut before = Vec::new();
    for _ in 0..THREAD_READINGS {
        let mut names: Vec<String> = fs::read_dir(folder.join("task"))
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .take(MAX_THREADS + 1)
            .collect();
        if names.len() > MAX_THREADS {
            return None;
        }
        names.sort();
        let states: Option<Vec<Status>> = names
            .iter()
            .map(|name| {
                let path = folder.join("task").join(name).join("status");
                procfs::status(&read_text(&path).ok()?)
            })
            .collect();
        if let Some(states) = states
            && names == before
            && !states.is_empty()
        {
            return Some(states);
        }
        before = names;
    }
    None
}

/// Reads a text under `/proc`, up to a bound.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
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

pub(crate) fn inode_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.ino())
}

/// How long what was found out is good for.
const MAX_AGE: Duration = Duration::from_secs(1);

/// A process that is another one at the end of so many readings is refused.
const READINGS: usize = 3;

const MAX_TEXT_BYTES: u64 = 256 << 10;

/// More threads than any process that we would vouch for has.
const MAX_THREADS: usize = 16_384;

/// A set of threads that does not hold still for so many readings is refused.
const THREAD_READINGS: usize = 8;

#[cfg(test)]
mod tests {
    use super::{MAX_TEXT_BYTES, cgroup::Groups, read_text};

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
        assert!(read_text(&path).is_err());
    }
}
