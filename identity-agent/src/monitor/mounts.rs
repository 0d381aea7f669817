//! The kernel's word on mounts: whoever polls the table of a mount namespace hears when it changes. Spec:
//! proc_pid_mountinfo(5).
//!
//! A reason to look, never a fact, as of processes.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
    sync::Notify,
    task::AbortHandle,
};

use crate::{attest::Pod, caller::PinnedProcess};

/// The mount namespaces of pods that are followed, by their inodes. An open table keeps its namespace, so it
/// is closed when its pod has ended.
#[derive(Debug, Default)]
pub struct Mounts {
    followed: Mutex<HashMap<(Pod, u64), Following>>,
}

/// Ends when it is dropped.
#[derive(Debug)]
struct Following(AbortHandle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Mounts {
    /// Has `changed` told whenever something is mounted, or is not any more, where this process lives.
    /// What cannot be followed, or is found outside of a runtime, is looked at on the timer.
    pub fn follow(&self, pod: Pod, namespace: u64, pid: i32, changed: &Arc<Notify>) {
        let mut followed = self.locked();
        let of_pod = followed.keys().filter(|(of, _)| *of == pod).count();
        if followed.contains_key(&(pod, namespace))
            || followed.len() >= MAX_FOLLOWED
            || of_pod >= MAX_FOLLOWED_OF_POD
        {
            return;
        }
        let table = PinnedProcess::by_number(pid)
            .and_then(|process| process.read(|folder| File::open(folder.join("mountinfo"))));
        let Ok(Ok(table)) = table else { return };
        // The number of the namespace is that of the table that is open: a process that has moved on since
        // is looked at again anyway.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if let Ok(table) = watched(table) {
            let task = runtime.spawn(tell(table, changed.clone()));
            followed.insert((pod, namespace), Following(task.abort_handle()));
        }
    }

    /// These are all mount namespaces that a pod still has.
    pub fn keep_only(&self, pod: Pod, namespaces: &HashSet<u64>) {
        self.locked()
            .retain(|(of, namespace), _| *of != pod || namespaces.contains(namespace));
    }

    /// A pod has ended.
    pub fn forget(&self, pod: Pod) {
        self.locked().retain(|(of, _), _| *of != pod);
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<(Pod, u64), Following>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for types that may change their descriptor; a `File` that nobody \
              else touches does not"
)]
fn watched(table: File) -> io::Result<AsyncFd<File>> {
    AsyncFd::with_interest(table, Interest::PRIORITY)
}

async fn tell(table: AsyncFd<File>, changed: Arc<Notify>) {
    while let Ok(mut ready) = table.ready(Interest::PRIORITY).await {
        ready.clear_ready();
        changed.notify_one();
    }
}

/// A descriptor each; more mount namespaces than pods of a machine have.
const MAX_FOLLOWED: usize = 4_096;
const MAX_FOLLOWED_OF_POD: usize = 256;
