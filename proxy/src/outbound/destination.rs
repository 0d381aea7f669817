//! A port of a Workload, as a place to send to: its endpoints, how they do, and what it may take of
//! us. Shell around `resolve`, `balance`, `outlier` and `retry_budget`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dashmap::DashMap;
use postern_policies::model::workload::{Workload, WorkloadName};
use postern_spiffe::SpiffeId;
use rustls_pki_types::ServerName;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};

use super::{
    balance::{PeakEwma, mix, pick},
    outlier::{Health, may_eject},
    resolve::{Answers, Resolver, Source, endpoints_here},
    retry::Failure,
    retry_budget::RetryBudget,
};
use crate::{
    config::delivery::Delivery,
    own::Own,
    pool::{Limits, Upstream},
    telemetry::{
        Metrics,
        upstream::{BoundLabels, ReasonLabel},
    },
};

/// All places that anything was sent to.
pub(crate) struct Destinations {
    known: DashMap<Key, Arc<Destination>>,
    shared: Arc<Shared>,
}

/// What destinations have in common.
pub(crate) struct Shared {
    pub(crate) settings: Delivery,
    own: Arc<Own>,
    resolver: Resolver,
    metrics: Arc<Metrics>,
    dice: AtomicU64,
}

/// Where in a Workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// Any of its addresses, at this port.
    Port(u16),
    /// The one that the app itself has chosen.
    Address(SocketAddr),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    workload: WorkloadName,
    place: Place,
}

/// A place to send to.
pub(crate) struct Destination {
    pub(crate) workload: WorkloadName,
    /// Who must be there.
    pub(crate) identity: SpiffeId,
    /// What is said in the handshake.
    server_name: Option<ServerName<'static>>,
    sources: Vec<Source>,
    port: u16,
    endpoints: Mutex<Arc<[Arc<Endpoint>]>>,
    names: Mutex<Vec<Answers>>,
    /// Held by whoever looks names up.
    looking: Arc<tokio::sync::Mutex<()>>,
    budget: Mutex<RetryBudget>,
    requests: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    told: Mutex<Option<Instant>>,
    shared: Arc<Shared>,
}

/// One address of it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// Its connections in the pool.
    pub(crate) upstream: Upstream,
    in_flight: AtomicU32,
    latency: Mutex<PeakEwma>,
    health: Mutex<Health>,
}

/// A request that an endpoint works on, counted until it is dropped.
pub(crate) struct InFlight(Arc<Endpoint>);

impl Destinations {
    pub(crate) fn new(settings: Delivery, own: Arc<Own>, metrics: Arc<Metrics>) -> Self {
        // Another start in each process, so that many proxies do not choose alike.
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        Self {
            known: DashMap::new(),
            shared: Arc::new(Shared {
                settings,
                own,
                resolver: Resolver::default(),
                metrics,
                dice: AtomicU64::new(seed),
            }),
        }
    }

    /// The place in a Workload. As long as the directory says the same of it, it is the same.
    pub(crate) fn of(&self, workload: &Workload, place: Place) -> Arc<Destination> {
        let key = Key {
            workload: workload.name.clone(),
            place,
        };
        let known = self.known.get(&key).map(|known| known.clone());
        if let Some(known) = known.filter(|known| known.is_of(workload, place)) {
            return known;
        }
        if self.known.len() >= MAX_DESTINATIONS {
            self.known.retain(|_, known| Arc::strong_count(known) > 1);
        }
        let new = Arc::new(Destination::new(workload, place, self.shared.clone()));
        match self.known.len() < MAX_DESTINATIONS {
            true => drop(self.known.insert(key, new.clone())),
            false => new.count_bound("destinations"),
        }
        new
    }
}

impl Shared {
    /// A random number.
    pub(crate) fn random(&self) -> u64 {
        mix(self.dice.fetch_add(1, Ordering::Relaxed))
    }
}

impl Destination {
    fn new(workload: &Workload, place: Place, shared: Arc<Shared>) -> Self {
        let bounds = shared.settings.bounds;
        let now = Instant::now();
        let (sources, port) = sources(workload, place);
        let names = sources.iter().filter_map(|source| match source {
            Source::Name(name) => Some(Answers::new(name.clone())),
            Source::Literal(_) => None,
        });
        let new = Self {
            workload: workload.name.clone(),
            identity: workload.spiffe_id.clone(),
            server_name: server_name(workload),
            names: Mutex::new(names.collect()),
            endpoints: Mutex::new(Arc::from([])),
            looking: Arc::default(),
            budget: Mutex::new(RetryBudget::new(now)),
            requests: Arc::new(Semaphore::new(bounds.requests)),
            connections: Arc::new(Semaphore::new(bounds.connections)),
            told: Mutex::new(None),
            sources,
            port,
            shared,
        };
        new.renew();
        new
    }

    fn is_of(&self, workload: &Workload, place: Place) -> bool {
        let (sources, port) = sources(workload, place);
        self.identity == workload.spiffe_id
            && self.server_name == server_name(workload)
            && self.sources == sources
            && self.port == port
    }

    /// The name of the handshake; the address where there is none, which is never sent.
    pub(crate) fn server_name(&self, endpoint: &Endpoint) -> (ServerName<'static>, bool) {
        match &self.server_name {
            Some(name) => (name.clone(), true),
            None => (ServerName::from(endpoint.address.ip()), false),
        }
    }

    /// What is said where no address may be dialled.
    pub(crate) fn no_address(&self) -> String {
        let workload = &self.workload;
        format!("Workload `{workload}` has no address that can be reached; are its names known?")
    }

    pub(crate) fn settings(&self) -> &Delivery {
        &self.shared.settings
    }

    /// What one endpoint may take of us, with the head of its answer by `patience`.
    pub(crate) fn limits(&self, patience: Duration) -> Limits {
        let Delivery {
            bounds,
            connect_timeout,
            ..
        } = self.shared.settings;
        Limits {
            connect: connect_timeout,
            answer: patience,
            connections: bounds.connections,
            shared: bounds.requests.div_ceil(crate::pool::STREAMS),
            pending: bounds.pending,
        }
    }

    /// The addresses that may be dialled, as they are known now. Only who asks first waits for a
    /// name; later the answers are renewed beside the traffic.
    pub(crate) async fn endpoints(self: &Arc<Self>) -> Arc<[Arc<Endpoint>]> {
        let known = lock(&self.endpoints).clone();
        if !self.is_due() {
            return known;
        }
        if known.is_empty() {
            let _one = self.looking.lock().await;
            if self.is_due() {
                self.look_up().await;
            }
            return lock(&self.endpoints).clone();
        }
        if let Ok(one) = self.looking.clone().try_lock_owned() {
            let this = self.clone();
            tokio::spawn(async move {
                this.look_up().await;
                drop(one);
            });
        }
        known
    }

    fn is_due(&self) -> bool {
        let now = Instant::now();
        lock(&self.names).iter().any(|name| name.is_due(now))
    }

    /// Asks for the names whose answers are old, for all at once: one that is silent holds up no
    /// other.
    async fn look_up(&self) {
        let now = Instant::now();
        let mut looking = JoinSet::new();
        for name in lock(&self.names).iter().filter(|name| name.is_due(now)) {
            let (name, shared) = (name.name().clone(), self.shared.clone());
            looking.spawn(async move {
                let found = shared.resolver.look_up(&name).await;
                (name, found)
            });
        }
        while let Some(Ok((name, found))) = looking.join_next().await {
            self.answered(&name, found);
        }
        self.renew();
    }

    fn answered(&self, name: &Arc<str>, found: io::Result<Vec<IpAddr>>) {
        if let Err(error) = &found {
            self.shared.metrics.upstream.lookups_failed.inc();
            tracing::warn!(dst.workload = %self.workload, %name, %error, "a name cannot be looked up");
        }
        let refresh = self.shared.settings.dns_refresh;
        let mut names = lock(&self.names);
        if let Some(answers) = names.iter_mut().find(|one| one.name() == name) {
            answers.answered(found.ok(), refresh, Instant::now());
        }
    }

    /// Puts the addresses together anew; what is known of an endpoint that stays is kept.
    fn renew(&self) {
        let names = lock(&self.names);
        let (good, bad) = endpoints_here(&self.sources, names.iter(), self.port, &self.shared.own);
        drop(names);
        for (address, why) in bad {
            let labels = ReasonLabel {
                reason: why.label(),
            };
            let denied = &self.shared.metrics.upstream.denied_addresses;
            denied.get_or_create(&labels).inc();
            tracing::warn!(dst.workload = %self.workload, dst.addr = %address, reason = why.label(),
                "an address of a Workload is not dialled");
        }
        let mut endpoints = lock(&self.endpoints);
        let new = good.into_iter().map(|address| {
            let known = endpoints.iter().find(|known| known.address == address);
            known.cloned().unwrap_or_else(|| {
                Arc::new(Endpoint::new(Upstream::Mesh {
                    identity: self.identity.clone(),
                    address,
                    name: self.server_name.clone(),
                }))
            })
        });
        *endpoints = new.collect();
    }

    /// Chooses among the endpoints that were not `tried`; those that are left out only where there
    /// is no other.
    pub(crate) fn choose(
        &self,
        endpoints: &[Arc<Endpoint>],
        tried: &[SocketAddr],
    ) -> Option<Arc<Endpoint>> {
        if let [only] = endpoints
            && tried.is_empty()
        {
            return Some(only.clone());
        }
        let now = Instant::now();
        let untried = || {
            let is_new = |one: &&Arc<Endpoint>| !tried.contains(&one.address);
            endpoints.iter().filter(is_new)
        };
        let healthy = untried().filter(|one| !lock(&one.health).is_ejected(now));
        let mut candidates: Vec<&Arc<Endpoint>> = healthy.collect();
        if candidates.is_empty() {
            candidates = untried().collect();
        }
        if let [only] = candidates.as_slice() {
            return Some((*only).clone());
        }
        let loads: Vec<f64> = candidates.iter().map(|one| one.load(now)).collect();
        let place = pick(&loads, self.shared.random())?;
        candidates.get(place).map(|one| (*one).clone())
    }

    /// A place among the requests at once.
    pub(crate) fn enter(&self) -> Option<OwnedSemaphorePermit> {
        self.place(&self.requests, "requests")
    }

    /// A place among the opaque connections at once.
    pub(crate) fn connect(&self) -> Option<OwnedSemaphorePermit> {
        self.place(&self.connections, "connections")
    }

    fn place(&self, of: &Arc<Semaphore>, bound: &'static str) -> Option<OwnedSemaphorePermit> {
        let place = of.clone().try_acquire_owned().ok();
        if place.is_none() {
            self.count_bound(bound);
        }
        place
    }

    /// A bound is reached: counted each time, told once in a while.
    pub(crate) fn count_bound(&self, bound: &'static str) {
        let labels = BoundLabels {
            direction: "outbound",
            bound,
        };
        let bounds = &self.shared.metrics.upstream.bounds;
        bounds.get_or_create(&labels).inc();
        self.tell_bound(bound);
    }

    /// Tells of a bound, once in a while.
    pub(crate) fn tell_bound(&self, bound: &'static str) {
        let mut told = lock(&self.told);
        if told.is_none_or(|at| at.elapsed() > TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(dst.workload = %self.workload, bound, "a bound of outgoing traffic is reached");
        }
    }

    /// A request that is no retry.
    pub(crate) fn asked(&self) {
        lock(&self.budget).asked(Instant::now());
    }

    /// Takes a retry out of the budget, if there is one left.
    pub(crate) fn may_retry(&self, failure: Failure) -> bool {
        let retries = self.shared.settings.retries;
        let (percent, floor) = (retries.budget_percent, retries.floor);
        if !lock(&self.budget).take(percent, floor, Instant::now()) {
            self.count_bound("retries");
            return false;
        }
        let labels = ReasonLabel {
            reason: failure.label(),
        };
        let retries = &self.shared.metrics.upstream.retries;
        retries.get_or_create(&labels).inc();
        true
    }

    /// How long to wait before the next try.
    pub(crate) fn pause(&self, tries: u32, others: bool) -> Duration {
        super::retry::pause(tries, others, self.shared.random())
    }

    /// An endpoint answered.
    pub(crate) fn succeeded(&self, endpoint: &Endpoint, took: Duration) {
        let now = Instant::now();
        lock(&endpoint.latency).observe(took, now);
        lock(&endpoint.health).succeeded(&self.shared.settings.outlier, now);
    }

    /// An endpoint failed: it counts as slow, and is left out if it was one time too many.
    pub(crate) fn failed(&self, all: &[Arc<Endpoint>], endpoint: &Endpoint, took: Duration) {
        let now = Instant::now();
        lock(&endpoint.latency).observe(took.max(FAILURE_LATENCY), now);
        let out = all.iter().filter(|one| lock(&one.health).is_ejected(now));
        let settings = &self.shared.settings.outlier;
        let may = may_eject(out.count(), all.len(), settings.max_percent);
        let random = self.shared.random();
        let ejected = lock(&endpoint.health).failed(settings, may, random, now);
        if let Some(period) = ejected {
            self.shared.metrics.upstream.ejections.inc();
            tracing::warn!(dst.workload = %self.workload, dst.addr = %endpoint.address,
                seconds = period.as_secs(), "an endpoint fails and is left out for a while");
        }
    }
}

impl Endpoint {
    fn new(upstream: Upstream) -> Self {
        let (Upstream::Mesh { address, .. } | Upstream::App { address, .. }) = &upstream;
        Self {
            address: *address,
            in_flight: AtomicU32::new(0),
            latency: Mutex::new(PeakEwma::new(Instant::now())),
            health: Mutex::default(),
            upstream,
        }
    }

    fn load(&self, now: Instant) -> f64 {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        lock(&self.latency).load(in_flight, now)
    }

    /// Counts a request until the answer is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a Workload is reached. The app's own choice is one of the addresses of the document.
fn sources(workload: &Workload, place: Place) -> (Vec<Source>, u16) {
    match place {
        Place::Address(address) => (vec![Source::Literal(address.ip())], address.port()),
        Place::Port(port) => {
            let addresses = workload.addresses.iter();
            let sources = addresses.filter_map(|text| Source::read(text));
            (sources.collect(), port)
        }
    }
}

/// The first DNS name of the Workload's SVID.
fn server_name(workload: &Workload) -> Option<ServerName<'static>> {
    let name = workload.dns_names.first()?;
    let name = ServerName::try_from(name.clone()).ok()?;
    matches!(name, ServerName::DnsName(_)).then_some(name)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const MAX_DESTINATIONS: usize = 4096;

/// Who fails quickly must not look quick.
const FAILURE_LATENCY: Duration = Duration::from_secs(1);

const TELL_EVERY: Duration = Duration::from_secs(10);
