//! How many streams are open, in all and for each process.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dashmap::DashMap;
use prometheus_client::metrics::gauge::Gauge;

#[derive(Debug, Default)]
pub(super) struct Streams {
    all: AtomicUsize,
    by_process: DashMap<i32, usize>,
    by_user: DashMap<u32, usize>,
}

impl Streams {
    pub(super) fn open(
        self: Arc<Self>,
        (pid, uid): (i32, u32),
        gauge: &Gauge,
    ) -> Option<OpenStream> {
        // Before anything is counted: who is refused leaves nothing behind.
        if self.all.load(Ordering::Relaxed) >= MAX_STREAMS {
            return None;
        }
        {
            let mut own = self.by_process.entry(pid).or_default();
            let mut of_user = self.by_user.entry(uid).or_default();
            if *own >= MAX_STREAMS_OF_PROCESS || *of_user >= MAX_STREAMS_OF_USER {
                let is_new = *own == 0;
                drop((own, of_user));
                if is_new {
                    self.by_process.remove_if(&pid, |_, open| *open == 0);
                }
                return None;
            }
            *own += 1;
            *of_user += 1;
        }
        self.all.fetch_add(1, Ordering::Relaxed);
        gauge.inc();
        Some(OpenStream {
            streams: self,
            gauge: gauge.clone(),
            pid,
            uid,
        })
    }
}

/// One open stream; counted off when it is dropped, however it ended.
#[derive(Debug)]
pub(crate) struct OpenStream {
    streams: Arc<Streams>,
    gauge: Gauge,
    pid: i32,
    uid: u32,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.gauge.dec();
        self.streams.all.fetch_sub(1, Ordering::Relaxed);
        count_off(&self.streams.by_process, self.pid);
        count_off(&self.streams.by_user, self.uid);
    }
}

fn count_off<K: Eq + std::hash::Hash>(counts: &DashMap<K, usize>, whose: K) {
    if let dashmap::Entry::Occupied(mut own) = counts.entry(whose) {
        *own.get_mut() -= 1;
        if *own.get() == 0 {
            own.remove();
        }
    }
}

/// Three quarters: nobody has all of them.
const MAX_STREAMS_OF_USER: usize = MAX_STREAMS / 4 * 3;
const MAX_STREAMS: usize = 10_000;
const MAX_STREAMS_OF_PROCESS: usize = 256;
