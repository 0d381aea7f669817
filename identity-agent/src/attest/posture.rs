//! The `posture` attestor: the isolation that a process really has.
//!
//! Judged over all threads: a leader that lowers its own rights looks clean while its threads keep
//! theirs.

use std::path::Path;

use super::{AttestFailed, Attestor, Subject, inode_of, read_text};

/// States `posture:` selectors.
#[derive(Debug)]
pub struct Posture {
    /// The host's namespaces, by their names under `ns/`.
    host: Vec<(&'static str, Option<u64>)>,
}

impl Posture {
    /// Takes the kernel's own thread as the measure of what is the host's.
    pub fn new() -> Self {
        // kthreadd lives in the initial namespaces. Where it cannot be read, as without root, the
        // agent's own stand in: what differs from them is at least not the agent's.
        let host = NAMESPACES.map(|name| {
            let of = |process: &str| inode_of(Path::new(&format!("/proc/{process}/ns/{name}")));
            let kernel = is_kernels_thread().then(|| of("2")).flatten();
            (name, kernel.or_else(|| of("self")))
        });
        Self {
            host: host.to_vec(),
        }
    }
}

/// Is process 2 the kernel's own? In a PID namespace it is anybody.
fn is_kernels_thread() -> bool {
    let status = read_text(Path::new("/proc/2/status")).unwrap_or_default();
    let says = |line: &str| status.lines().any(|one| one == line);
    says("Name:\tkthreadd") && says("PPid:\t0")
}

impl Default for Posture {
    fn default() -> Self {
        Self::new()
    }
}

impl Attestor for Posture {
    fn kind(&self) -> &'static str {
        "posture"
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        let threads = subject.threads;
        if threads.iter().all(|thread| thread.no_new_privs) {
            add("no-new-privs");
        }
        if threads.iter().all(|thread| thread.seccomp == 2) {
            add("seccomp:filter");
        }
        if threads.iter().all(|thread| thread.capabilities == [0; 5]) {
            add("caps:none");
        }
        if threads.iter().all(|thread| !thread.uids.contains(&0)) {
            add("nonroot");
        }
        let [uid, ..] = subject.status.uids;
        if threads.iter().all(|thread| thread.uids == [uid; 4]) {
            add(&format!("uid:{uid}"));
        }
        for (name, host) in &self.host {
            let own = inode_of(&subject.folder.join(&format!("ns/{name}")));
            if let (Some(own), Some(host)) = (own, host)
                && own != *host
            {
                add(&format!("ns:{name}:own"));
            }
        }
        Ok(())
    }
}

const NAMESPACES: [&str; 7] = ["pid", "net", "mnt", "ipc", "uts", "user", "cgroup"];
