//! The `posture` attestor: the isolation that a process really has, layer by layer.
//!
//! Judged over all threads: a leader that lowers its own rights looks clean while its threads keep
//! theirs. What the kernel does not tell is unknown, and an unknown states nothing; what it tells in a way
//! that no kernel does, or what the agent lacks the means to read, refuses the process.
//!
//! Each file is read once. Kept from one process to the next is what a running kernel does not change, and
//! the tables of mounts of the agent and the host, which the kernel says are as they were.

mod devices;
mod finding;
pub(crate) mod host;
mod limits;
mod lsm;
mod masks;
pub(crate) mod mountinfo;
mod mounts;
mod namespaces;
mod pod;
mod rights;
mod rules;

use std::{
    collections::BTreeSet,
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx},
    io::Errno,
};

use super::{
    Asked, AttestFailed, Attestor, Finding as AnyFinding, Subject,
    cgroup::Groups,
    inode_of,
    patience::{Lane, What, patiently},
    reading::{ReadError, opened_file, read_text, root_of},
    thread_names,
};
use crate::caller::ProcFolder;
use devices::Devices;
use finding::Verdict;
pub use finding::{Finding, Outcome, why_lacking};
use host::{Mounts, Table};
use limits::Limits;
use lsm::Confinement;
use masks::Masks;
use mounts::Mounted;
use namespaces::{Namespaces, Reference};
pub use pod::PodPosture;
use rights::Roots;
use rules::Bundle;

/// States `posture:` selectors.
#[derive(Debug)]
pub struct Posture {
    reference: Reference,
    security: lsm::Kernel,
    masks: Masks,
    /// Where the agent has control groups.
    own: Arc<Table>,
    /// None where the agent sees no process in the host's mount namespace.
    host: Option<Arc<Table>>,
    sockets: Vec<String>,
    /// What every workload may have of the host: the socket of the Workload API.
    given: Vec<String>,
    /// No Workload asks for the limits that cost most to read.
    is_spared: AtomicBool,
}

/// All that was found out about a process.
#[derive(Debug)]
pub struct Report {
    /// Layer by layer.
    pub findings: Vec<Finding>,
    /// What is true of it beside that, after `posture:`.
    more: Vec<String>,
}

impl Report {
    /// All that is stated, after `posture:`.
    pub fn selectors(&self) -> BTreeSet<String> {
        let stated = self.findings.iter().filter_map(Finding::selector);
        let bundles = [
            ("baseline", Bundle::Baseline),
            ("restricted", Bundle::Restricted),
        ];
        let bundles = bundles.iter().filter(|(_, bundle)| self.is_in(*bundle));
        stated
            .chain(bundles.map(|(name, _)| *name))
            .map(str::to_owned)
            .chain(self.more.iter().cloned())
            .collect()
    }

    /// Does it pass all that this bundle asks for?
    fn is_in(&self, bundle: Bundle) -> bool {
        let asks = |finding: &&Finding| match bundle {
            Bundle::Baseline => finding.bundle() == Bundle::Baseline,
            _ => finding.bundle() != Bundle::Neither,
        };
        let mut asked = self.findings.iter().filter(asks);
        asked.all(|finding| finding.outcome == Outcome::Pass)
    }
}

impl Posture {
    /// Measures by this machine. `engine` is a socket more that an engine listens on, `workload_api` the
    /// agent's own.
    pub fn new(engine: Option<&Path>, workload_api: &Path) -> Self {
        let reference = Reference::of_machine();
        if !reference.is_whole() {
            tracing::warn!(
                mend = "run the agent as root and in the host's PID namespace",
                "the host's namespaces cannot be read: who shares them is unknown"
            );
        }
        let own = Arc::new(Table::new("/proc/self/mountinfo"));
        let own_mounts = inode_of(Path::new("/proc/self/ns/mnt"));
        let is_hosts = |process: &&str| {
            let found = inode_of(Path::new(&format!("/proc/{process}/ns/mnt")));
            found.is_some() && found == reference.mounts()
        };
        let host = match own_mounts.is_some() && own_mounts == reference.mounts() {
            true => Some(own.clone()),
            false => ["1", "2"]
                .iter()
                .find(|process| is_hosts(process))
                .map(|process| Arc::new(Table::new(format!("/proc/{process}/mountinfo")))),
        };
        let sockets = mounts::SOCKETS.iter().map(|path| (*path).to_owned());
        let engine = engine.and_then(Path::to_str).map(str::to_owned);
        Self {
            reference,
            security: lsm::Kernel::of_machine(),
            masks: Masks::of(Path::new("/proc"), Path::new("/sys")),
            own,
            host,
            sockets: sockets.chain(engine).collect(),
            given: given(workload_api),
            is_spared: AtomicBool::new(false),
        }
    }

    /// Finds out all about a process.
    ///
    /// # Errors
    /// [`AttestFailed`] where something is not as a kernel shows it, or the agent cannot look.
    pub fn report(&self, subject: &Subject<'_>) -> Result<Report, AttestFailed> {
        let threads = subject.threads;
        let folders = namespaces::folders(subject.folder, other_threads(subject)?);
        let spaces = self.reference.judge(&folders)?;
        let roots = roots(subject, &spaces)?;
        let held = rights::capabilities(threads);
        let user = match &roots {
            Ok(roots) => rights::user(threads, roots),
            Err(unknown) => unknown.clone(),
        };
        let group = match &roots {
            Ok(roots) => rights::group(threads, roots),
            Err(unknown) => unknown.clone(),
        };
        let mounted = self.mounts(subject, &spaces, !user.is_pass())?;
        let groups = Groups::of(subject.folder)?;
        let own = told(self.own.now(), "the agent's own mounts")?;
        let own = own.unwrap_or_default();
        let limits = Limits {
            groups: &groups,
            hierarchies: own.control_groups(),
        };
        let devices = devices(subject, &spaces, &limits, held)?;
        let confinement = Confinement::of(self.security, &folders)?;
        let lsm = Finding::new(&rules::LSM, confinement.verdict);

        let mut found = Vec::with_capacity(FINDINGS);
        let mut find = |rule, verdict| found.push(Finding::new(rule, verdict));
        find(&rules::PID_NAMESPACE, spaces.verdict("pid"));
        find(&rules::NETWORK_NAMESPACE, spaces.verdict("net"));
        find(&rules::IPC_NAMESPACE, spaces.verdict("ipc"));
        find(&rules::MOUNT_NAMESPACE, spaces.verdict("mnt"));
        find(&rules::UTS_NAMESPACE, spaces.verdict("uts"));
        find(&rules::USER_NAMESPACE, spaces.verdict("user"));
        find(&rules::CGROUP_NAMESPACE, spaces.verdict("cgroup"));
        find(
            &rules::PRIVILEGED,
            unprivileged(held, &devices, &mounted.masks),
        );
        find(
            &rules::CAPABILITIES_DEFAULT,
            rights::default_capabilities(held),
        );
        find(&rules::CAPABILITIES, rights::restricted_capabilities(held));
        find(
            &rules::NO_NEW_PRIVILEGES,
            rights::no_new_privileges(threads),
        );
        find(&rules::USER, user);
        find(&rules::GROUP, group);
        find(&rules::SECCOMP, rights::seccomp(threads));
        find(&rules::ROOT_FILE_SYSTEM, mounted.root_file_system);
        find(&rules::MEMORY_LIMIT, limits.judge(&limits::MEMORY)?);
        find(&rules::PIDS_LIMIT, limits.judge(&limits::PIDS)?);
        find(&rules::CPU_LIMIT, limits.judge(&limits::CPU)?);
        if !self.is_spared.load(Ordering::Relaxed) {
            find(&rules::SWAP_LIMIT, limits.judge(&limits::SWAP)?);
            find(&rules::IO_LIMIT, limits.judge(&limits::IO)?);
            find(&rules::CPUSET, limits.cpus()?);
            find(&rules::MEMFD, memfd(&spaces)?);
        }
        find(&rules::HOST_MOUNTS, mounted.host_mounts);
        find(&rules::RUNTIME_SOCKET, mounted.runtime_socket);
        find(&rules::PROC_MASKS, mounted.masks);
        find(&rules::DEVICES, devices.verdict);
        find(&rules::MOUNT_PROPAGATION, mounted.propagation);
        find(&rules::WRITABLE_EXECUTABLE, mounted.writable_executable);
        found.push(match confinement.is_active {
            true => lsm,
            false => lsm.without_weight(),
        });
        Ok(Report {
            findings: found,
            more: exactly(subject, held).chain(confinement.selector).collect(),
        })
    }

    fn mounts(
        &self,
        subject: &Subject<'_>,
        spaces: &Namespaces,
        is_root: bool,
    ) -> Result<MountVerdicts, AttestFailed> {
        let all = |verdict| Ok(MountVerdicts::all(&verdict));
        if spaces.is_host("mnt") {
            return all(Verdict::fail("it lives in the host's mount namespace"));
        }
        if !spaces.is_of_one_table {
            return all(Verdict::fail(
                "its threads live in different mount namespaces",
            ));
        }
        let host = match &self.host {
            Some(host) if spaces.is_own("mnt") => told(host.now(), "the host's mounts")?,
            _ => Err(Verdict::unknown(
                "it is not known what the host's mounts are",
            )),
        };
        let host: Arc<Mounts> = match host {
            Ok(host) => host,
            Err(unknown) => return all(unknown),
        };
        let text = match told(host::table(subject.folder), "its mounts")? {
            Ok(text) => text,
            Err(unknown) => return all(unknown),
        };
        match told(has_whole_root(subject.folder), "its root")? {
            Ok(true) => {}
            Ok(false) => {
                return all(Verdict::fail(
                    "it has changed its root, which hides what is mounted beside that",
                ));
            }
            Err(unknown) => return all(unknown),
        }
        let mounts = mountinfo::parse(&text).ok_or_else(|| {
            AttestFailed::new("its mounts are not written as a kernel writes them")
        })?;
        let mounted = Mounted {
            mounts: &mounts,
            host: &host,
            namespaces: spaces,
            sockets: &self.sockets,
            given: &self.given,
        };
        Ok(MountVerdicts {
            root_file_system: mounted.root_file_system(),
            host_mounts: mounted.host_mounts(),
            runtime_socket: mounted.runtime_socket(),
            masks: self.masks.judge(&mounts),
            propagation: mounted.propagation(),
            writable_executable: mounted.writable_executable(is_root),
        })
    }
}

impl Attestor for Arc<Posture> {
    fn kind(&self) -> &'static str {
        "posture"
    }

    fn asked(&self, asked: &Asked) {
        self.is_spared.store(!asked.all_limits, Ordering::Relaxed);
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        self.examine(subject, add, &mut |_| ())
    }

    fn examine(
        &self,
        subject: &Subject<'_>,
        add: &mut dyn FnMut(&str),
        find: &mut dyn FnMut(AnyFinding),
    ) -> Result<(), AttestFailed> {
        let report = self.report(subject)?;
        report.selectors().iter().for_each(|one| add(one));
        let findings = report.findings.into_iter();
        findings.map(AnyFinding::Posture).for_each(find);
        Ok(())
    }
}

/// Is this one of the selectors that are stated only where they are asked for?
pub(super) fn is_costly(selector: &str) -> bool {
    let rules = [
        &rules::SWAP_LIMIT,
        &rules::IO_LIMIT,
        &rules::CPUSET,
        &rules::MEMFD,
    ];
    let value = selector.strip_prefix("pod:").unwrap_or(selector);
    let value = value.strip_prefix("posture:");
    value.is_some_and(|value| rules.iter().any(|rule| rule.selector == value))
}

/// What the mounts of a process say.
#[derive(Debug)]
struct MountVerdicts {
    root_file_system: Verdict,
    host_mounts: Verdict,
    runtime_socket: Verdict,
    masks: Verdict,
    propagation: Verdict,
    writable_executable: Verdict,
}

impl MountVerdicts {
    fn all(verdict: &Verdict) -> Self {
        Self {
            root_file_system: verdict.clone(),
            host_mounts: verdict.clone(),
            runtime_socket: verdict.clone(),
            masks: verdict.clone(),
            propagation: verdict.clone(),
            writable_executable: verdict.clone(),
        }
    }
}

/// The Workload API's socket, and its folder if that is not everybody's.
fn given(workload_api: &Path) -> Vec<String> {
    let socket = match (workload_api.parent(), workload_api.file_name()) {
        (Some(folder), Some(name)) => folder.canonicalize().map(|folder| folder.join(name)),
        _ => return Vec::new(),
    };
    let socket = socket.unwrap_or_else(|_| workload_api.to_owned());
    let folder = socket.parent().filter(|folder| {
        folder.components().count() > 2 && !EVERYBODYS.iter().any(|one| *folder == Path::new(one))
    });
    let all = std::iter::once(&*socket).chain(folder);
    all.filter_map(Path::to_str).map(str::to_owned).collect()
}

const EVERYBODYS: [&str; 3] = ["/var/run", "/var/tmp", "/dev/shm"];

/// What was read, or that it may not be.
///
/// # Errors
/// The process has ended, or the agent lacks what it needs.
fn told<T>(read: Result<T, ReadError>, what: &str) -> Result<Result<T, Verdict>, AttestFailed> {
    match read {
        Ok(value) => Ok(Ok(value)),
        Err(ReadError::Absent) => Err(AttestFailed::new(format!("{what} cannot be found"))),
        Err(ReadError::Refused) => Ok(Err(Verdict::unknown(format!(
            "{what} may not be read; run the agent as root, or with CAP_SYS_PTRACE"
        )))),
        Err(ReadError::Lack(lack)) => Err(lack.into()),
    }
}

/// The threads beside the first one.
fn other_threads(subject: &Subject<'_>) -> Result<impl Iterator<Item = String>, AttestFailed> {
    let own = subject.process.pid().to_string();
    let names = match subject.threads {
        [_] => Vec::new(),
        _ => match thread_names(subject.folder) {
            Ok(names) => names,
            Err(ReadError::Lack(lack)) => return Err(lack.into()),
            Err(_) => return Err(AttestFailed::new("its threads cannot be read")),
        },
    };
    Ok(names.into_iter().filter(move |name| *name != own))
}

/// Who counts as root.
fn roots(
    subject: &Subject<'_>,
    spaces: &Namespaces,
) -> Result<Result<Roots, Verdict>, AttestFailed> {
    if spaces.is_host("user") {
        return Ok(Ok(Roots::of_host()));
    }
    let read = |name: &str| read_text(&subject.folder.join(name)).map_err(ReadError::from);
    let (users, groups) = match (
        told(read("uid_map"), "its users")?,
        told(read("gid_map"), "its groups")?,
    ) {
        (Ok(users), Ok(groups)) => (users, groups),
        (Err(unknown), _) | (_, Err(unknown)) => return Ok(Err(unknown)),
    };
    let roots = Roots::of_maps(&users, &groups);
    let failed = || AttestFailed::new("its users are not mapped as a kernel writes it");
    Ok(Ok(roots.ok_or_else(failed)?))
}

/// Is the root of the process that of its mount namespace? The way up from it is taken as the agent sees it,
/// and ends where it began only at the very top.
fn has_whole_root(folder: &ProcFolder) -> Result<bool, ReadError> {
    let root = root_of(folder)?;
    let place = |from: &OwnedFd, path: &str| {
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
        match statx(from, path, flags, wanted) {
            Ok(found) => {
                let device = (found.stx_dev_major, found.stx_dev_minor);
                Ok((device, found.stx_ino, found.stx_mnt_id))
            }
            // An older sandbox does not know the call.
            Err(Errno::NOSYS) => Err(ReadError::Refused),
            Err(error) => Err(io::Error::from(error).into()),
        }
    };
    let own = place(&root, "")?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // A file system may want to be asked who may pass.
    let up = match openat2(&root, "..", flags, Mode::empty(), ResolveFlags::CACHED) {
        Ok(up) => place(&up, "")?,
        Err(_) => patiently(lane_of_root(folder)?, move || place(&root, ".."))??,
    };
    Ok(own == up)
}

/// Where looks at what lies below the root of a process are made.
fn lane_of_root(folder: &ProcFolder) -> Result<Lane, ReadError> {
    let (device, _) = opened_file(&root_of(folder)?)?;
    Ok(Lane::of(&folder.join(""), device, What::Names)?)
}

fn devices(
    subject: &Subject<'_>,
    spaces: &Namespaces,
    limits: &Limits<'_>,
    held: u64,
) -> Result<Devices, AttestFailed> {
    if let Some(place) = limits.place("devices").filter(|place| !place.is_unified) {
        return Devices::listed(&place.file("devices.list"));
    }
    if limits.groups.path_of("devices").is_some() {
        return Ok(Devices::unseen());
    }
    match spaces.is_host("mnt") {
        true => Ok(Devices::of_host()),
        false => {
            let may_make = rights::has(held, rights::MKNOD);
            let folder = subject.folder.join("root/dev");
            match told(lane_of_root(subject.folder), "its root")? {
                Ok(lane) => Ok(patiently(lane, move || {
                    Devices::in_folder(&folder, may_make)
                })??),
                Err(_) => Ok(Devices::unseen()),
            }
        }
    }
}

/// None of the marks of a container that was given everything.
///
/// That it has all capabilities is none of them: an engine that lacks one itself cannot give it.
fn unprivileged(held: u64, devices: &Devices, masks: &Verdict) -> Verdict {
    if rights::has(held, rights::SYS_ADMIN) {
        return Verdict::fail("it has SYS_ADMIN");
    }
    if devices.are_all {
        return devices.verdict.clone();
    }
    match masks.outcome {
        Outcome::Pass => Verdict::pass("no SYS_ADMIN, not every device, and /proc is masked"),
        _ => masks.clone(),
    }
}

/// Is a program in memory kept from being executed?
fn memfd(spaces: &Namespaces) -> Result<Verdict, AttestFailed> {
    let read = read_text(Path::new("/proc/sys/vm/memfd_noexec")).map_err(ReadError::from);
    // What holds for the agent's PID namespace holds for those below it.
    Ok(match read.as_ref().map(|text| text.trim()) {
        Ok("2") => Verdict::pass("vm.memfd_noexec is 2"),
        Ok(_) if spaces.is_host("pid") => Verdict::fail("vm.memfd_noexec is not 2"),
        Ok(_) => Verdict::unknown("the kernel tells vm.memfd_noexec within a PID namespace alone"),
        Err(ReadError::Lack(lack)) => return Err(lack.clone().into()),
        Err(_) => Verdict::unknown("this kernel has no vm.memfd_noexec"),
    })
}

/// What is true of a process beside passes.
fn exactly(subject: &Subject<'_>, held: u64) -> impl Iterator<Item = String> {
    let threads = subject.threads;
    let none = (held == 0).then(|| "caps:none".to_owned());
    let [uid, ..] = subject.status.uids;
    let [gid, ..] = subject.status.gids;
    let uid = threads
        .iter()
        .all(|thread| thread.uids == [uid; 4])
        .then(|| format!("uid:{uid}"));
    let gid = threads
        .iter()
        .all(|thread| thread.gids == [gid; 4])
        .then(|| format!("gid:{gid}"));
    none.into_iter().chain(uid).chain(gid)
}

/// There are about so many.
const FINDINGS: usize = 32;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::given;

    #[test]
    fn a_folder_of_the_agents_own_is_given_to_workloads_and_no_folder_of_everybodys() {
        for (socket, expected) in [
            (
                "/nonexistent/postern/agent.sock",
                &["/nonexistent/postern/agent.sock", "/nonexistent/postern"][..],
            ),
            ("/var/tmp/agent.sock", &["/var/tmp/agent.sock"]),
            ("/tmp/agent.sock", &["/tmp/agent.sock"]),
            ("/agent.sock", &["/agent.sock"]),
        ] {
            assert_eq!(given(Path::new(socket)), expected, "{socket}");
        }
    }
}
