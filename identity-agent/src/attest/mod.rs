//! What is true of a process: selectors.
//!
//! Each attestor states what it can read. What it cannot read it does not state: an unknown never
//! counts as a pass. Everything is read while the process is pinned.

pub(crate) mod capabilities;
pub mod cgroup;
pub mod docker;
pub mod image;
pub mod kubernetes;
mod patience;
pub mod posture;
pub mod procfs;
pub mod reading;
mod service;
pub mod systemd;
pub mod unix;

use std::{collections::BTreeSet, error::Error, fs, path::Path, sync::Arc, time::Duration};

use postern_spiffe::Selector;

use crate::{
    caller::{Moment, PinError, PinnedProcess, ProcFolder},
    config,
};
use procfs::Status;
pub(crate) use reading::read_text;
use reading::{Lack, ReadError, inode, read_as};

/// What was found out about a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// All that is true of it.
    pub selectors: BTreeSet<Selector>,
    /// The pod it belongs to.
    pub pod: Pod,
    /// What was found out beside: why some are not true.
    pub findings: Vec<Finding>,
    /// The number of the evidence on images that it was judged by.
    edition: u64,
}

/// Something that was found out beside selectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Of the isolation of the process.
    Posture(posture::Finding),
    /// Of the image of its container.
    Image(image::Finding),
}

/// Why a process lacks a selector, by what was found out; none where nothing was.
pub fn why_lacking(findings: &[Finding], kind: &str, value: &str) -> Option<String> {
    match kind {
        "image" => {
            let own = findings.iter().filter_map(|one| match one {
                Finding::Image(own) => Some(own),
                Finding::Posture(_) => None,
            });
            image::why_lacking(own, value)
        }
        _ => {
            let own = findings.iter().filter_map(|one| match one {
                Finding::Posture(own) => Some(own),
                Finding::Image(_) => None,
            });
            posture::why_lacking(own, kind, value)
        }
    }
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
    /// One that has no processes any more. Its number may be another's by now.
    Ended,
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

    /// The same, and what it found out beside: also what makes no selector, and why.
    ///
    /// # Errors
    /// As [`Attestor::attest`].
    fn examine(
        &self,
        subject: &Subject<'_>,
        add: &mut dyn FnMut(&str),
        _find: &mut dyn FnMut(Finding),
    ) -> Result<(), AttestFailed> {
        self.attest(subject, add)
    }

    /// Which of the costly selectors are asked for? Until it is said, all are stated.
    fn asked(&self, _: &Asked) {}
}

/// The selectors that cost most, and whether any Workload asks for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Digests of programs.
    pub digests: bool,
    /// What is true of all processes of a pod.
    pub pods: bool,
    /// Limits that no bundle asks for.
    pub all_limits: bool,
    /// The largest number of vulnerabilities in an image.
    pub vulnerabilities: usize,
}

impl Asked {
    /// By the selectors of all Workloads.
    pub fn by<'s>(selectors: impl Iterator<Item = &'s Selector>) -> Self {
        let mut asked = Self::default();
        for selector in selectors {
            let text = selector.as_str();
            asked.digests |= text.starts_with("unix:sha256:");
            asked.pods |= text.starts_with("pod:");
            asked.all_limits |= posture::is_costly(text);
            let number = image::asked_number(text).unwrap_or_default();
            asked.vulnerabilities = asked.vulnerabilities.max(number);
        }
        asked
    }
}

/// Why an attestor cannot tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttestFailed {
    /// The process is not as it should be, or not known to whoever is asked about it.
    #[error("{0}")]
    Unclear(String),
    /// Whoever is asked about it gives no answer, which says nothing about the process.
    #[error("{0}")]
    NoAnswer(String),
    /// The agent lacks something.
    #[error(transparent)]
    Lack(#[from] Lack),
}

impl AttestFailed {
    /// For this reason, which lies in the process.
    pub fn new(why: impl Into<String>) -> Self {
        Self::Unclear(why.into())
    }

    /// `who` cannot be asked for this reason, unless a lack of the agent's is behind it.
    fn because<'a>(
        who: &str,
        why: &dyn std::fmt::Display,
        causes: impl Iterator<Item = &'a (dyn Error + 'static)>,
    ) -> Self {
        match Lack::behind(causes) {
            Some(lack) => lack.into(),
            None => Self::NoAnswer(format!("{who}: {why:#}")),
        }
    }
}

/// An error and all that stands behind it.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        (*error).source()
    })
}

/// All attestors of an agent.
#[derive(Debug)]
pub struct Attestors {
    attestors: Vec<Box<dyn Attestor>>,
    images: Option<Arc<image::Images>>,
    own_network: Option<u64>,
    own_devices: Option<u64>,
}

/// Why a process could not be attested.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// It cannot be pinned, or ended meanwhile.
    #[error(transparent)]
    Pin(PinError),
    /// The agent lacks something; this says nothing about the process.
    #[error(transparent)]
    Lack(#[from] Lack),
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
        why: String,
    },
    /// An attestor gets no answer; this says nothing about the process.
    #[error("attestor `{kind}`: {why}")]
    NoAnswer {
        /// Which.
        kind: &'static str,
        /// Why.
        why: String,
    },
}

impl From<PinError> for AttestError {
    fn from(error: PinError) -> Self {
        match error {
            PinError::Lack(lack) => Self::Lack(lack),
            other => Self::Pin(other),
        }
    }
}

impl From<ReadError> for AttestError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Lack(lack) => Self::Lack(lack),
            ReadError::Absent | ReadError::Refused => Self::Unreadable,
        }
    }
}

impl Attestors {
    /// These attestors, on this machine.
    pub fn new(attestors: Vec<Box<dyn Attestor>>) -> Self {
        let own = ProcFolder::own();
        Self {
            attestors,
            images: None,
            own_network: inode(&own.join("ns/net")).ok(),
            own_devices: inode(&own.join(DEVICES)).ok(),
        }
    }

    /// Those that the configuration switches on. `workload_api` is where they are asked for, which every
    /// workload may have mounted.
    pub fn configured(config: &config::Attestors, workload_api: &Path) -> Self {
        let mut attestors: Vec<Box<dyn Attestor>> = Vec::new();
        if config.unix {
            attestors.push(Box::new(unix::Unix::default()));
        }
        if config.posture {
            let posture = Arc::new(posture::Posture::new(
                config.docker.as_deref(),
                workload_api,
            ));
            attestors.push(Box::new(posture.clone()));
            attestors.push(Box::new(posture::PodPosture::new(posture)));
        }
        if config.cgroup {
            attestors.push(Box::new(cgroup::Cgroup));
        }
        let docker = config.docker.clone();
        let docker = docker.map(|socket| Arc::new(docker::Docker::new(socket)));
        if let Some(docker) = &docker {
            attestors.push(Box::new(docker.clone()));
        }
        let kubelet = config.kubernetes.clone();
        let kubernetes = kubelet.map(|kubelet| Arc::new(kubernetes::Kubernetes::new(kubelet)));
        if let Some(kubernetes) = &kubernetes {
            attestors.push(Box::new(kubernetes.clone()));
        }
        let images = config.image.clone();
        let images = images.map(|config| Arc::new(image::Images::new(config, docker, kubernetes)));
        if let Some(images) = &images {
            attestors.push(Box::new(images.clone()));
        }
        if let Some(bus) = &config.systemd {
            attestors.push(Box::new(systemd::Systemd::new(bus.clone())));
        }
        Self {
            images,
            ..Self::new(attestors)
        }
    }

    /// The evidence on images, if there is an attestor that goes by it.
    pub(crate) fn images(&self) -> Option<&Arc<image::Images>> {
        self.images.as_ref()
    }

    fn edition(&self) -> u64 {
        self.images.as_ref().map_or(0, |images| images.edition())
    }

    /// What was found out about a process a moment ago, if it still is what it was then and there is no
    /// other evidence since.
    fn kept(&self, process: &PinnedProcess, now: &Moment) -> Option<Arc<Attested>> {
        let known = process.known(now, MAX_AGE)?;
        (known.edition == self.edition()).then_some(known)
    }

    /// Says which of the costly selectors any Workload asks for. Until it is said, all are stated.
    pub fn asked(&self, asked: &Asked) {
        self.attestors.iter().for_each(|one| one.asked(asked));
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
            if let Some(known) = self.kept(process, &before) {
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

    /// What was found out about a process less than a second ago, if it still is the same program, user
    /// and control group. Waits for nothing but the kernel.
    pub fn known(&self, process: &PinnedProcess) -> Option<Arc<Attested>> {
        if !process.was_looked_at(MAX_AGE) {
            return None;
        }
        let now = process.moment().ok()?;
        process.is_who_connected(&now).ok()?;
        self.kept(process, &now)
    }

    fn look_at(
        &self,
        process: &PinnedProcess,
        folder: &ProcFolder,
    ) -> Result<Attested, AttestError> {
        let edition = self.edition();
        let stated = with_subject(process, folder, |subject| self.stated(subject))?;
        let (selectors, findings) = stated?;
        let pod = self.pod(folder)?;
        Ok(Attested {
            selectors,
            pod,
            findings,
            edition,
        })
    }

    /// What all attestors say.
    fn stated(
        &self,
        subject: &Subject<'_>,
    ) -> Result<(BTreeSet<Selector>, Vec<Finding>), AttestError> {
        let (mut selectors, mut findings) = (BTreeSet::new(), Vec::new());
        for attestor in &self.attestors {
            let mut add = |value: &str| {
                // A value that makes no selector, such as a path with a newline, cannot be asked
                // for either.
                if let Ok(selector) = Selector::parse(&format!("{}:{value}", attestor.kind())) {
                    selectors.insert(selector);
                }
            };
            let stated = attestor.examine(subject, &mut add, &mut |one| findings.push(one));
            let kind = attestor.kind();
            stated.map_err(|why| match why {
                AttestFailed::Lack(lack) => AttestError::Lack(lack),
                AttestFailed::Unclear(why) => AttestError::Failed { kind, why },
                AttestFailed::NoAnswer(why) => AttestError::NoAnswer { kind, why },
            })?;
        }
        Ok((selectors, findings))
    }

    /// The pod of a process.
    ///
    /// # Errors
    /// [`ReadError::Refused`] for one whose network namespace may not be looked at and is another than
    /// the agent's; callers take it for a member of no pod they know, and never for one of a session.
    pub fn pod(&self, folder: &ProcFolder) -> Result<Pod, ReadError> {
        let network = match inode(&folder.join("ns/net")) {
            Err(ReadError::Refused) if self.is_in_own_network(folder)? => self.own_network,
            network => Some(network?),
        };
        match network {
            Some(inode) if Some(inode) != self.own_network => Ok(Pod::Network(inode)),
            _ => {
                let stat = read_as(&folder.join("stat"), procfs::stat)?;
                Ok(Pod::Session(stat.session))
            }
        }
    }

    /// Does a process live in the agent's own network namespace? Asked without the right to look at its
    /// namespaces: what is listed of a network is one file for all who live in it.
    fn is_in_own_network(&self, folder: &ProcFolder) -> Result<bool, ReadError> {
        Ok(Some(inode(&folder.join(DEVICES))?) == self.own_devices)
    }
}

/// Has a process looked at, with the state of all its threads.
///
/// # Errors
/// [`AttestError`] where that cannot be read, as of one whose first thread has ended.
pub(crate) fn with_subject<T>(
    process: &PinnedProcess,
    folder: &ProcFolder,
    look: impl FnOnce(&Subject<'_>) -> T,
) -> Result<T, AttestError> {
    let status = read_as(&folder.join("status"), procfs::status)?;
    if status.is_zombie {
        return Err(AttestError::Unreadable);
    }
    let threads = threads(folder)?;
    Ok(look(&Subject {
        process,
        folder,
        threads: &threads,
        status: &status,
    }))
}

/// The state of every thread, each read once, between two lists that name the same ones: one that is
/// starting others must not slip through.
fn threads(folder: &ProcFolder) -> Result<Vec<Status>, ReadError> {
    let mut names = thread_names(folder)?;
    for _ in 0..THREAD_READINGS {
        let states: Result<Vec<Status>, ReadError> = names
            .iter()
            .map(|name| {
                let path = folder.join("task").join(name).join("status");
                read_as(&path, procfs::status)
            })
            .collect();
        let after = thread_names(folder)?;
        match states {
            Ok(states) if names == after && !states.is_empty() => return Ok(states),
            // One that has ended meanwhile is none.
            Ok(_) | Err(ReadError::Absent) => names = after,
            Err(error) => return Err(error),
        }
    }
    Err(ReadError::Refused)
}

/// The numbers of the threads of a process, sorted.
///
/// # Errors
/// [`ReadError::Refused`] for more than anybody has.
pub(crate) fn thread_names(folder: &ProcFolder) -> Result<Vec<String>, ReadError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.join("task"))? {
        names.extend(entry?.file_name().into_string());
        if names.len() > MAX_THREADS {
            return Err(ReadError::Refused);
        }
    }
    names.sort();
    Ok(names)
}

/// The inode of a path of our own, if there is one.
pub(crate) fn inode_of(path: &Path) -> Option<u64> {
    inode(path).ok()
}

/// The devices of the network namespace that a process lives in.
const DEVICES: &str = "net/dev";

/// How long what was found out is good for.
const MAX_AGE: Duration = Duration::from_secs(1);

/// A process that is another one at the end of so many readings is refused.
const READINGS: usize = 3;

/// More threads than any process that we would vouch for has.
const MAX_THREADS: usize = 16_384;

/// A set of threads that does not hold still for so many readings is refused.
const THREAD_READINGS: usize = 8;

#[cfg(test)]
mod tests {
    use super::{Attestors, Pod, ReadError, thread_names, threads};
    use crate::caller::ProcFolder;

    #[test]
    fn every_thread_is_read_and_a_process_that_has_ended_has_none() {
        let (end, wait) = std::sync::mpsc::sync_channel::<()>(0);
        let thread = std::thread::spawn(move || wait.recv());
        let own = ProcFolder::own();
        // The other tests come and go in threads of their own.
        let read = threads(&own).unwrap().len();
        assert!(
            read >= 2 && !thread_names(&own).unwrap().is_empty(),
            "{read}"
        );
        drop(end);
        let _ = thread.join();
        let nobody = ProcFolder::of(i32::MAX);
        assert_eq!(threads(&nobody), Err(ReadError::Absent));
        let attestors = Attestors::new(Vec::new());
        assert_eq!(attestors.pod(&nobody), Err(ReadError::Absent));
    }

    #[test]
    fn who_shares_the_agents_network_has_the_pod_of_a_session() {
        let attestors = Attestors::new(Vec::new());
        let own = ProcFolder::own();
        assert!(matches!(attestors.pod(&own), Ok(Pod::Session(_))));
        assert_eq!(attestors.is_in_own_network(&own), Ok(true));
    }
}
