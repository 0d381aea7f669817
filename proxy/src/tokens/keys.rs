//! The keys that sign tokens: from the policy itself, or fetched, kept, and fetched again.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use dashmap::DashMap;
use jsonwebtoken::{
    Algorithm, DecodingKey, Header,
    jwk::{Jwk, KeyOperations, PublicKeyUse},
};
use postern_policies::model::request_authentication::{JwtRule, Keys};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::fetch::Fetcher;
use crate::{app::Proxy, config::TokenKeys, telemetry::Metrics};

/// Claims by the hash of their token.
type Seen = HashMap<[u8; 32], Arc<Map<String, Value>>>;

/// The keys of one source, and the tokens that they were already seen to have signed.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The one algorithm that it is for, if it says so.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    /// Reads a JWK Set. Keys of kinds that are not known are passed over (RFC 7517 section 5).
    ///
    /// # Errors
    /// It is no JWK Set, or has no key of use.
    pub(super) fn parse(text: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(text).context("it is no JWK Set")?;
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Key::read).collect();
        ensure!(
            !keys.is_empty(),
            "it has no public key that can verify a signature"
        );
        Ok(Self {
            keys,
            seen: Mutex::default(),
        })
    }

    /// The keys that may have made a token with this header.
    pub(super) fn fitting(&self, header: &Header) -> impl Iterator<Item = &DecodingKey> {
        self.keys
            .iter()
            .filter(move |key| key.fits(header))
            .map(|key| &key.key)
    }

    /// The claims of a token whose signature was found good before.
    pub(super) fn seen(&self, text: &str) -> Option<Arc<Map<String, Value>>> {
        self.lock().get(&hash(text)).cloned()
    }

    /// Remembers a token with a good signature. Bounded: only who has good tokens fills it.
    pub(super) fn keep(&self, text: &str, claims: Map<String, Value>) -> Arc<Map<String, Value>> {
        let claims = Arc::new(claims);
        let mut seen = self.lock();
        if seen.len() >= MAX_SEEN {
            seen.clear();
        }
        seen.insert(hash(text), claims.clone());
        claims
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Key {
    fn read(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let common = &jwk.common;
        let signs = common
            .public_key_use
            .as_ref()
            .is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
        let verifies = common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        let algorithm = match common.key_algorithm {
            Some(algorithm) => Some(algorithm.to_string().parse().ok()?),
            None => None,
        };
        if !signs || !verifies || algorithm.is_some_and(is_secret) {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let public = key.family() != jsonwebtoken::AlgorithmFamily::Hmac;
        public.then(|| Self {
            id: common.key_id.clone(),
            algorithm,
            key,
        })
    }

    fn fits(&self, header: &Header) -> bool {
        let named = match (&self.id, &header.kid) {
            (Some(own), Some(wanted)) => own == wanted,
            _ => true,
        };
        named
            && self.key.family() == header.alg.family()
            && self.algorithm.is_none_or(|own| own == header.alg)
    }
}

fn is_secret(algorithm: Algorithm) -> bool {
    algorithm.family() == jsonwebtoken::AlgorithmFamily::Hmac
}

fn hash(text: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    hash
}

/// Where keys are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// A JWK Set at a URL.
    Uri(String),
    /// Found by OpenID Connect Discovery.
    Issuer(String),
}

impl Source {
    fn of(rule: &JwtRule) -> Option<Self> {
        match (&rule.keys, &rule.issuer) {
            (Keys::Uri(uri), _) => Some(Self::Uri(uri.clone())),
            (Keys::Discovered, Some(issuer)) => Some(Self::Issuer(issuer.clone())),
            _ => None,
        }
    }
}

/// All keys that the rules in force speak of.
#[derive(Debug)]
pub(crate) struct KeyStore {
    inline: DashMap<String, Arc<KeySet>>,
    remote: DashMap<Source, Remote>,
    fetcher: Arc<Fetcher>,
    refresh: Duration,
    metrics: Arc<Metrics>,
}

/// Keys that a task fetches.
#[derive(Debug)]
struct Remote {
    current: watch::Receiver<Option<Arc<KeySet>>>,
    again: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KeyStore {
    /// Without any keys.
    pub(crate) fn new(config: &TokenKeys, metrics: Arc<Metrics>) -> Self {
        Self {
            inline: DashMap::new(),
            remote: DashMap::new(),
            fetcher: Arc::new(Fetcher::new(config.authorities.clone())),
            refresh: config.refresh,
            metrics,
        }
    }

    /// The keys of a rule. Those that are under way are waited for.
    pub(super) async fn of(&self, rule: &JwtRule) -> Option<Arc<KeySet>> {
        if let Keys::Inline(text) = &rule.keys {
            return Some(self.inline(text));
        }
        let mut current = self.current(rule)?;
        let there = timeout(rule.timeout, current.wait_for(Option::is_some));
        there.await.ok()?.ok()?.clone()
    }

    /// Asks for keys to be fetched anew: there may be another.
    pub(super) fn look_again(&self, rule: &JwtRule) {
        if let Some(source) = Source::of(rule)
            && let Some(remote) = self.remote.get(&source)
        {
            remote.again.notify_one();
        }
    }

    fn inline(&self, text: &str) -> Arc<KeySet> {
        if let Some(set) = self.inline.get(text) {
            return set.clone();
        }
        let set = KeySet::parse(text.as_bytes()).unwrap_or_else(|error| {
            tracing::error!(
                error = format!("{error:#}"),
                "the `jwks` of a RequestAuthentication is of no use, its tokens are refused"
            );
            KeySet::default()
        });
        let set = Arc::new(set);
        self.inline.insert(text.to_owned(), set.clone());
        set
    }

    fn current(&self, rule: &JwtRule) -> Option<watch::Receiver<Option<Arc<KeySet>>>> {
        let source = Source::of(rule)?;
        if let Some(remote) = self.remote.get(&source) {
            return Some(remote.current.clone());
        }
        let remote = self.remote.entry(source.clone()).or_insert_with(|| {
            let (sender, current) = watch::channel(None);
            let again = Arc::new(Notify::new());
            let work = keep(
                self.fetcher.clone(),
                source,
                rule.timeout,
                self.refresh,
                sender,
                again.clone(),
                self.metrics.clone(),
            );
            Remote {
                current,
                again,
                task: tokio::spawn(work).abort_handle(),
            }
        });
        Some(remote.current.clone())
    }

    /// Begins to fetch what these rules need, and forgets what none needs.
    fn serve<'a>(&self, rules: impl Iterator<Item = &'a JwtRule>) {
        let mut needed = HashSet::new();
        let mut inline = HashSet::new();
        for rule in rules {
            match &rule.keys {
                Keys::Inline(text) => {
                    self.inline(text);
                    inline.insert(text.clone());
                }
                Keys::Uri(_) | Keys::Discovered => {
                    self.current(rule);
                    needed.extend(Source::of(rule));
                }
            }
        }
        self.inline.retain(|text, _| inline.contains(text));
        self.remote.retain(|source, _| needed.contains(source));
    }
}

/// Keeps the keys of our own workload at hand, for ever.
pub(crate) async fn follow(proxy: Arc<Proxy>) {
    let mut changes = proxy.policies();
    loop {
        if let (Some((_, set)), Some(own)) = (proxy.ready(), proxy.own_workload()) {
            proxy.token_keys.serve(set.token_rules(&own));
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Fetches keys, for ever: when they are old, and when somebody misses one.
async fn keep(
    fetcher: Arc<Fetcher>,
    source: Source,
    patience: Duration,
    refresh: Duration,
    current: watch::Sender<Option<Arc<KeySet>>>,
    again: Arc<Notify>,
    metrics: Arc<Metrics>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let fetched = timeout(patience, fetcher.keys(&source))
            .await
            .context("no answer in time")
            .and_then(|fetched| fetched);
        match fetched {
            Ok(set) => {
                tracing::info!(
                    ?source,
                    keys = set.keys.len(),
                    "the keys of tokens were fetched"
                );
                current.send_replace(Some(Arc::new(set)));
                pause = FIRST_PAUSE;
                sleep(AGAIN_AFTER).await;
                tokio::select! {
                    () = sleep(refresh.saturating_sub(AGAIN_AFTER)) => {}
                    () = again.notified() => {}
                }
            }
            Err(error) => {
                metrics.token_key_errors.inc();
                tracing::warn!(
                    ?source,
                    error = format!("{error:#}"),
                    "the keys of tokens cannot be fetched; those fetched before stay"
                );
                sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Tokens with unknown keys cost anybody nothing; they must not make us fetch without end.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How many good tokens are remembered for one source of keys.
const MAX_SEEN: usize = 1024;
