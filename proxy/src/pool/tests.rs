//! Who gets which connection, with upstreams in memory.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{DuplexStream, duplex},
    sync::Semaphore,
    task::{JoinHandle, yield_now},
};

use super::{
    Connected, Limits, STREAMS, Upstream, UpstreamError,
    host::{Host, Lease},
};
use crate::telemetry::Metrics;

/// An upstream, and the other ends of its connections.
#[derive(Clone)]
struct Site {
    host: Arc<Host>,
    limits: Limits,
    http2: bool,
    /// How many connections may be made; a closed one makes them fail.
    gate: Arc<Semaphore>,
    asked: Arc<AtomicUsize>,
    ends: Arc<Mutex<Vec<DuplexStream>>>,
}

impl Site {
    fn new(http2: bool, limits: Limits) -> Self {
        let upstream = Upstream::Mesh {
            identity: "spiffe://example.org/web".parse().unwrap(),
            address: "10.0.0.5:80".parse().unwrap(),
            name: None,
        };
        Self {
            host: Arc::new(Host::new(&upstream, Arc::new(Metrics::new()))),
            limits,
            http2,
            gate: Arc::new(Semaphore::new(0)),
            asked: Arc::default(),
            ends: Arc::default(),
        }
    }

    fn checkout(&self) -> JoinHandle<Result<Lease, UpstreamError>> {
        let site = self.clone();
        tokio::spawn(async move {
            let connect = || site.connect();
            site.host.checkout(&site.limits, &connect).await
        })
    }

    async fn connect(&self) -> Result<Connected, UpstreamError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.gate.acquire().await {
            Ok(permit) => permit.forget(),
            Err(_) => return Err(UpstreamError::Connect("refused".into())),
        }
        let (ours, theirs) = duplex(1 << 16);
        self.ends.lock().unwrap().push(theirs);
        Ok(Connected {
            stream: Box::new(ours),
            http2: self.http2,
            retire_at: None,
            watched: None,
            renewal: None,
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(10),
    answer: Duration::from_secs(10),
    connections: 2,
    shared: 2,
    pending: 1000,
};

/// Lets all other tasks run until they wait.
async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

#[tokio::test]
async fn one_request_connects_for_all_who_wait() {
    let site = Site::new(true, LIMITS);
    let waiting: Vec<_> = (0..STREAMS).map(|_| site.checkout()).collect();
    settle().await;
    assert_eq!(site.asked(), 1);
    site.gate.add_permits(1);
    let mut leases = Vec::new();
    for one in waiting {
        leases.push(one.await.unwrap().unwrap());
    }
    assert_eq!(site.asked(), 1);
    // It is full: the next one has another, and then there is no more.
    site.gate.add_permits(9);
    for _ in 0..STREAMS {
        leases.push(site.checkout().await.unwrap().unwrap());
    }
    assert_eq!(site.asked(), 2);
    let last = site.checkout();
    settle().await;
    assert!(!last.is_finished());
    leases.pop();
    assert!(last.await.unwrap().is_ok());
    assert_eq!(site.asked(), 2);
}

#[tokio::test]
async fn a_failure_is_that_of_all_who_wait() {
    let site = Site::new(true, LIMITS);
    let waiting: Vec<_> = (0..50).map(|_| site.checkout()).collect();
    settle().await;
    site.gate.close();
    for one in waiting {
        let refused = Some(UpstreamError::Connect("refused".into()));
        assert_eq!(one.await.unwrap().err(), refused);
    }
    assert_eq!(site.asked(), 1, "nobody tries it one after the other");
    // Who comes later tries anew.
    assert!(site.checkout().await.unwrap().is_err());
    assert_eq!(site.asked(), 2);
}

#[tokio::test]
async fn whoever_goes_away_while_connecting_leaves_it_to_the_next() {
    let site = Site::new(true, LIMITS);
    let first = site.checkout();
    settle().await;
    let second = site.checkout();
    settle().await;
    first.abort();
    site.gate.add_permits(1);
    assert!(second.await.unwrap().is_ok());
    assert_eq!(site.asked(), 2);
}

#[tokio::test]
async fn connections_and_those_who_wait_for_them_are_bounded() {
    let site = Site::new(
        false,
        Limits {
            pending: 1,
            ..LIMITS
        },
    );
    site.gate.add_permits(9);
    let first = site.checkout().await.unwrap().unwrap();
    let second = site.checkout().await.unwrap().unwrap();
    let third = site.checkout();
    settle().await;
    let refused = site.checkout().await.unwrap().err();
    assert_eq!(refused, Some(UpstreamError::Bound("pending")));
    assert!(!third.is_finished());
    assert_eq!(site.asked(), 2);
    // A connection that ends makes room.
    drop(first);
    let third = third.await.unwrap();
    assert!(third.is_ok());
    assert_eq!(site.asked(), 3);
    drop(second);
}
