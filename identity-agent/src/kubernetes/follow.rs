//! Keeps the cache what the API server has: list once, then watch from there, for ever.
//!
//! Each kind is followed by itself. Whatever goes wrong, what is known stays; a kind is listed again when
//! the server does not remember as far back as we do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use futures_util::future::join_all;
use postern_policies::Options;
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    Kind, Server, Snapshot,
    api::{Api, ApiError, Event},
    backoff::Backoff,
    cache::{Cache, Change},
    object::Object,
};
use crate::telemetry::{KindLabel, Metrics, Readiness, ReasonLabel};

/// What is known, and how each kind is.
#[derive(Debug)]
pub struct Followed {
    server: Arc<Server>,
    cache: Mutex<Cache>,
    standing: Mutex<BTreeMap<Kind, Standing>>,
    /// Why nothing of it was ever in force; none once something was.
    not_in_force: Mutex<Option<String>>,
    changed: Notify,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
}

/// How far a kind is known.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// It was never listed, for this reason.
    Awaited(String),
    /// It was.
    Listed,
}

impl Followed {
    /// Nothing is known yet, which is told as the reason for not being ready.
    pub fn new(
        server: Server,
        options: Options,
        metrics: Arc<Metrics>,
        readiness: Arc<Readiness>,
    ) -> Arc<Self> {
        let server = Arc::new(server);
        let awaited = |kind| {
            (
                kind,
                Standing::Awaited("it was not answered yet".to_owned()),
            )
        };
        let followed = Self {
            cache: Mutex::new(Cache::new(server.clone(), options)),
            server,
            standing: Mutex::new(Kind::ALL.into_iter().map(awaited).collect()),
            not_in_force: Mutex::new(Some("it was not put into force yet".to_owned())),
            changed: Notify::new(),
            metrics,
            readiness,
        };
        followed.tell_readiness(&followed.standing());
        Arc::new(followed)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> MutexGuard<'_, BTreeMap<Kind, Standing>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_readiness(&self, standing: &BTreeMap<Kind, Standing>) {
        let awaited = standing.iter().filter_map(|(kind, one)| match one {
            Standing::Awaited(why) => Some(format!("kubernetes: {}: {why}", kind.resource())),
            Standing::Listed => None,
        });
        let mut awaited: Vec<String> = awaited.collect();
        let not_in_force = self.not_in_force();
        if let (true, Some(why)) = (awaited.is_empty(), &*not_in_force) {
            awaited.push(format!("kubernetes: {why}"));
        }
        self.readiness.waits_for(awaited);
    }

    fn not_in_force(&self) -> MutexGuard<'_, Option<String>> {
        self.not_in_force
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known was put into force, or refused.
    fn taken(&self, outcome: Result<(), String>) {
        let in_force = &self.metrics.kubernetes_in_force;
        in_force.set(i64::from(outcome.is_ok()));
        {
            let mut not_in_force = self.not_in_force();
            match outcome {
                Ok(()) => *not_in_force = None,
                Err(why) if not_in_force.is_some() => *not_in_force = Some(why),
                // What was in force stays.
                Err(_) => return,
            }
        }
        self.tell_readiness(&self.standing());
    }

    /// The documents of all, once every kind was listed.
    fn snapshot(&self) -> Option<Snapshot> {
        let mut standing = self.standing().values().cloned().collect::<Vec<_>>();
        standing.retain(|one| *one != Standing::Listed);
        standing.is_empty().then(|| self.cache().snapshot())
    }

    /// These are all objects of a kind.
    fn listed(&self, kind: Kind, objects: &[Object]) -> Result<(), ApiError> {
        let changes = {
            let mut cache = self.cache();
            let changes = cache.replace(kind, objects)?;
            self.count(&cache, kind);
            changes
        };
        self.tell(kind, &changes);
        let is_first = {
            let mut standing = self.standing();
            let before = standing.insert(kind, Standing::Listed);
            self.tell_readiness(&standing);
            before != Some(Standing::Listed)
        };
        if is_first || !changes.is_empty() {
            self.changed.notify_one();
        }
        self.is_current(kind, true);
        Ok(())
    }

    fn happened(&self, kind: Kind, event: &Event) -> Result<(), ApiError> {
        let change = {
            let mut cache = self.cache();
            let change = match event {
                Event::Is(object) => cache.put(kind, object)?,
                Event::Gone(object) => cache.remove(kind, object),
                Event::Bookmark(_) => Change::None,
            };
            self.count(&cache, kind);
            change
        };
        if change != Change::None {
            self.tell(kind, std::slice::from_ref(&change));
            self.changed.notify_one();
        }
        Ok(())
    }

    /// An object that cannot be read is told once for each of its versions.
    fn tell(&self, kind: Kind, changes: &[Change]) {
        for change in changes {
            if let Change::Unreadable(object, error) = change {
                tracing::error!(
                    kind = kind.name(),
                    object,
                    error,
                    "an object of the API server cannot be read: its last good version stays, or what it selects is denied"
                );
            }
        }
    }

    fn count(&self, cache: &Cache, kind: Kind) {
        let as_gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let objects = self.metrics.kubernetes_objects.get_or_create(&label(kind));
        objects.set(as_gauge(cache.count(kind)));
        let unreadable = &self.metrics.kubernetes_unreadable;
        unreadable.set(as_gauge(cache.unreadable()));
    }

    fn is_current(&self, kind: Kind, is: bool) {
        let current = self.metrics.kubernetes_current.get_or_create(&label(kind));
        current.set(i64::from(is));
    }

    /// It cannot be followed for now.
    fn failed(&self, kind: Kind, error: &ApiError, again_in: Duration) {
        let reason = ReasonLabel {
            reason: error.label(),
        };
        self.metrics
            .kubernetes_failures
            .get_or_create(&reason)
            .inc();
        self.is_current(kind, false);
        let mut standing = self.standing();
        if let Some(Standing::Awaited(why)) = standing.get_mut(&kind) {
            *why = error.to_string();
            self.tell_readiness(&standing);
        }
        drop(standing);
        tracing::warn!(
            kind = kind.name(),
            error = error.to_string(),
            ?again_in,
            "what the API server has cannot be followed; what is known stays"
        );
    }
}

fn label(kind: Kind) -> KindLabel {
    KindLabel { kind: kind.name() }
}

/// Follows all kinds, for ever. `news` is called with each state that is whole, and says why it is not in
/// force if it is not; the next one is made when it has returned. What is not in force is tried again, and
/// `refused` told why, once for each reason.
pub async fn follow<F: Future<Output = Result<(), String>>>(
    followed: Arc<Followed>,
    news: impl Fn(Snapshot) -> F,
    refused: impl Fn(&str),
) {
    let kinds = Kind::ALL.map(|kind| Reflector::of(kind, followed.clone()).run());
    let tell = async {
        let mut told = None;
        loop {
            let changed = followed.changed.notified();
            match told {
                None => changed.await,
                // Files and databases may be readable again, and nobody else says so.
                Some(_) => drop(timeout(TRIED_AGAIN_IN, changed).await),
            }
            // What comes together is told together.
            sleep(SETTLES_IN).await;
            let known = followed.clone();
            let outcome = match spawn_blocking(move || known.snapshot()).await {
                Ok(Some(snapshot)) => news(snapshot).await,
                Ok(None) => continue,
                Err(error) => Err(format!(
                    "what the API server has could not be put together: {error}"
                )),
            };
            let why = outcome.as_ref().err().cloned();
            if let Some(why) = why.as_ref().filter(|why| told.as_ref() != Some(*why)) {
                followed.metrics.reloads_failed.inc();
                refused(why);
            }
            told = why;
            followed.taken(outcome);
        }
    };
    tokio::join!(join_all(kinds), tell);
}

/// Follows one kind.
struct Reflector {
    kind: Kind,
    api: Api,
    followed: Arc<Followed>,
    /// Where the next watch begins; none when all is to be listed.
    from: Option<Position>,
    backoff: Backoff,
    /// How often in a row a list was forgotten before it was read to its end.
    forgotten: u32,
    /// How many objects are asked for at a time.
    page: usize,
    is_missing: bool,
}

/// Up to where something is known.
#[derive(Debug, Clone)]
struct Position {
    api_version: &'static str,
    resource_version: String,
}

impl Reflector {
    fn of(kind: Kind, followed: Arc<Followed>) -> Self {
        Self {
            kind,
            api: Api::of(followed.server.clone()),
            followed,
            from: None,
            backoff: Backoff::default(),
            forgotten: 0,
            page: PAGE,
            is_missing: false,
        }
    }

    async fn run(mut self) {
        loop {
            let Err(error) = self.round().await else {
                continue;
            };
            let pause = match &error {
                ApiError::Missing if self.none_is_installed().await => MISSING_AGAIN,
                error => {
                    let pause = self.backoff.next(error.retry_after(), random());
                    self.followed.failed(self.kind, error, pause);
                    pause
                }
            };
            sleep(pause).await;
        }
    }

    /// Lists if need be, and watches until the server ends it.
    async fn round(&mut self) -> Result<(), ApiError> {
        let from = match &self.from {
            Some(from) => from.clone(),
            None => self.list().await?,
        };
        let lifetime = WATCH_TIME + WATCH_TIME * u32::from(random()) / 255;
        let version = from.api_version;
        let watch = self
            .api
            .watch(self.kind, version, &from.resource_version, lifetime);
        let mut watch = watch.await.inspect_err(|error| self.lost(error))?;
        self.followed.is_current(self.kind, true);
        let mut heard = false;
        loop {
            let event = watch.next().await.inspect_err(|error| self.lost(error))?;
            let Some(event) = event else { break };
            heard = true;
            self.backoff.reset();
            let kind = self.kind;
            let told = self.know(move |followed| followed.happened(kind, &event));
            // What was not taken is missing from now on: only a list tells all again.
            told.await.inspect_err(|error| self.lost(error))?;
            self.from = Some(Position {
                api_version: version,
                resource_version: watch.version().to_owned(),
            });
        }
        if !heard {
            // A server that ends every watch at once is not asked all the time.
            sleep(self.backoff.next(None, random())).await;
        }
        Ok(())
    }

    /// A connection that broke, and one that was refused, is taken up where it was; everything else is a reason to list again.
    fn lost(&mut self, error: &ApiError) {
        let is_kept = matches!(
            error,
            ApiError::Unreachable(_)
                | ApiError::Files(_)
                | ApiError::Unauthorized(_)
                | ApiError::Forbidden { .. }
                | ApiError::Other {
                    status: 429 | 500..=599,
                    ..
                }
        );
        if !is_kept {
            self.from = None;
        }
    }

    /// All objects, page by page.
    async fn list(&mut self) -> Result<Position, ApiError> {
        let mut missing = ApiError::Missing;
        for version in self.kind.versions() {
            match self.pages(version).await {
                Err(error @ ApiError::Missing) => missing = error,
                Err(error) => return Err(error),
                Ok((objects, resource_version)) => {
                    let kind = self.kind;
                    self.know(move |followed| followed.listed(kind, &objects))
                        .await?;
                    self.backoff.reset();
                    (self.forgotten, self.is_missing) = (0, false);
                    let position = Position {
                        api_version: version,
                        resource_version,
                    };
                    self.from = Some(position.clone());
                    return Ok(position);
                }
            }
        }
        Err(missing)
    }

    async fn pages(&mut self, version: &str) -> Result<(Vec<Object>, String), ApiError> {
        // A list that is forgotten again and again before its end is asked for in one piece.
        let limit = (self.forgotten < PATIENT_LISTS).then_some(self.page);
        let mut next: Option<String> = None;
        let mut objects = Vec::new();
        let mut bytes = 0_usize;
        loop {
            let page = self.api.page(self.kind, version, next.as_deref(), limit);
            let page = page.await.inspect_err(|error| {
                match error {
                    ApiError::Gone(_) if next.is_some() => self.forgotten += 1,
                    // Large objects: fewer at a time, and not all in one piece.
                    ApiError::TooLarge { .. } => {
                        self.page = (self.page / 2).max(LEAST_PAGE);
                        self.forgotten = 0;
                    }
                    _ => {}
                }
            })?;
            objects.extend(page.objects);
            bytes = bytes.saturating_add(page.bytes);
            let limits = self.followed.server.limits;
            if bytes > limits.bytes {
                return Err(super::cache::Full::Bytes(limits.bytes).into());
            }
            let most = limits.objects;
            if objects.len() > most {
                return Err(super::cache::Full::Objects(most).into());
            }
            match page.next {
                Some(more) => next = Some(more),
                None => return Ok((objects, page.resource_version)),
            }
        }
    }

    /// Nobody has installed the kind: there are none of it, until it is there. One that was there with
    /// objects has not gone with a word on them, so they stay.
    async fn none_is_installed(&mut self) -> bool {
        let kind = self.kind;
        if !kind.may_be_missing() {
            return false;
        }
        let is_news = !std::mem::replace(&mut self.is_missing, true);
        let none = self.know(move |followed| {
            let is_none = followed.cache().count(kind) == 0;
            if is_none && is_news {
                let kind_name = kind.name();
                tracing::info!(
                    kind = kind_name,
                    "the API server has no such kind: there are none of it yet"
                );
                followed.listed(kind, &[])?;
            }
            Ok(is_none)
        });
        none.await.unwrap_or(false)
    }

    /// Does something with what is known, on a thread for it: reading many objects takes its time.
    async fn know<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Followed) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let followed = self.followed.clone();
        let done = spawn_blocking(move || work(&followed)).await;
        done.unwrap_or_else(|error| Err(ApiError::Unreadable(error.to_string())))
    }
}

/// A byte that nobody can foresee. Without one all wait alike, which is no worse than being slow.
fn random() -> u8 {
    let mut byte = [255];
    let _ = SystemRandom::new().fill(&mut byte);
    let [byte] = byte;
    byte
}

/// Pods come and go in swarms.
const SETTLES_IN: Duration = Duration::from_millis(200);

/// How soon what was refused is tried again without any news.
const TRIED_AGAIN_IN: Duration = Duration::from_secs(10);

/// A watch lives so long, and up to twice as long.
const WATCH_TIME: Duration = Duration::from_secs(300);

/// How soon a kind is looked for again that nobody has installed.
const MISSING_AGAIN: Duration = Duration::from_secs(10);

/// Objects of a page.
const PAGE: usize = 250;

/// Fewer are never asked for: so many of the largest ones that etcd takes fit into a page.
const LEAST_PAGE: usize = 10;

/// So many lists in a row may be forgotten.
const PATIENT_LISTS: u32 = 2;
