//! Bundles of other trust domains: from files, and from their endpoints.
//!
//! A bundle is never merged with another domain's, and who speaks for a domain is configured, never
//! inferred. What was fetched last is written down: after a restart an endpoint with SPIFFE
//! authentication is verified by the newest bundle, not by the first. Spec: SPIFFE Federation
//! sections 4 and 5.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use postern_https::{Client, Trust};
use postern_policies::files::Fingerprint;
use postern_spiffe::{
    SpiffeId, TrustDomain,
    bundle::{BundleDocument, MAX_DOCUMENT},
};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, timeout},
};

use crate::{authority::replace_file, guarded};

/// A trust domain that Workloads may federate with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub trust_domain: TrustDomain,
    /// Its bundle document in a file, read again when it changes.
    pub file: Option<PathBuf>,
    /// Where it publishes its bundle.
    pub endpoint: Option<Endpoint>,
}

/// A bundle endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its `https` URL.
    pub url: String,
    /// How its server is verified.
    pub profile: Profile,
    /// How often it is asked; `None` as often as the bundle says.
    pub every: Option<Duration>,
}

/// How the server of a bundle endpoint is verified. Spec: SPIFFE Federation section 5.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// As a web site, by the system's authorities or by those of a file.
    Web(Option<PathBuf>),
    /// By this identity and the bundle that we have.
    Spiffe(SpiffeId),
}

/// The bundles that are known.
#[derive(Debug)]
pub struct Federation {
    peers: Vec<Peer>,
    folder: PathBuf,
    current: ArcSwap<BTreeMap<TrustDomain, Arc<BundleDocument>>>,
    /// The bundle files as they were when they were read first.
    first_seen: BTreeMap<PathBuf, Fingerprint>,
}

impl Federation {
    /// Reads what there is: of each domain the file, or what was fetched, whichever is newer.
    ///
    /// # Errors
    /// A bundle file that cannot be used; the agent does not start.
    pub fn open(peers: Vec<Peer>, folder: PathBuf) -> anyhow::Result<Self> {
        let files = peers.iter().filter_map(|peer| peer.file.clone());
        // Before they are read: what changes meanwhile is seen later.
        let first_seen = files.map(|file| {
            let seen = Fingerprint::of(&file);
            (file, seen)
        });
        let federation = Self {
            first_seen: first_seen.collect(),
            peers,
            folder,
            current: ArcSwap::default(),
        };
        for peer in &federation.peers {
            let fetched = federation.written(&peer.trust_domain);
            let time = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
            let path = match &peer.file {
                Some(file) if time(file) >= time(&fetched) => file,
                _ if fetched.exists() => &fetched,
                Some(file) => file,
                None => continue,
            };
            let document = read(&peer.trust_domain, path)?;
            federation.put(&peer.trust_domain, document);
        }
        Ok(federation)
    }

    /// The trust domains that are configured.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The bundle of a trust domain, if it is known and trusts anybody.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<Arc<BundleDocument>> {
        self.current.load().get(trust_domain).cloned()
    }

    /// The domains whose bundles are known, in the order of their names.
    pub fn known(&self) -> Vec<Arc<BundleDocument>> {
        self.current.load().values().cloned().collect()
    }

    fn put(&self, trust_domain: &TrustDomain, document: BundleDocument) {
        let document = Arc::new(document);
        self.current.rcu(|before| {
            let mut next = BTreeMap::clone(before);
            next.insert(trust_domain.clone(), document.clone());
            next
        });
    }

    fn written(&self, trust_domain: &TrustDomain) -> PathBuf {
        self.folder.join(format!("{trust_domain}.json"))
    }

    /// Takes a bundle that an endpoint told. Tells whether it is another one. Blocking.
    fn take(&self, peer: &Peer, json: &[u8]) -> anyhow::Result<bool> {
        let document = BundleDocument::parse(peer.trust_domain.clone(), json)?;
        if let Some(before) = self.get(&peer.trust_domain) {
            // A publisher may number its bundles, or stop to (section 4.1 of Trust Domain and Bundle).
            if let (Some(before), Some(now)) = (before.sequence, document.sequence) {
                anyhow::ensure!(
                    now >= before,
                    "its sequence number has gone back, from {before} to {now}; if its publisher has begun \
                     anew, remove `{}` and start the agent again",
                    self.written(&peer.trust_domain).display()
                );
            }
            if is_same(&before, &document) {
                return Ok(false);
            }
        }
        let path = self.written(&peer.trust_domain);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        replace_file(&path, json).with_context(|| format!("cannot write `{}`", path.display()))?;
        self.put(&peer.trust_domain, document);
        Ok(true)
    }

    async fn fetch(self: &Arc<Self>, peer: &Peer, endpoint: &Endpoint) -> anyhow::Result<bool> {
        let trust = match &endpoint.profile {
            Profile::Web(None) => Trust::System,
            Profile::Web(Some(file)) => Trust::File(file.clone()),
            Profile::Spiffe(id) => {
                // Mostly its own; another trust domain may speak for it.
                let known = self.get(id.trust_domain());
                let known = known.context("there is no bundle yet by which to verify it")?;
                Trust::Spiffe(id.clone(), Arc::new(known.x509.clone()))
            }
        };
        let client = Client::new(&trust, None)?.up_to(MAX_DOCUMENT);
        let json = timeout(PATIENCE, client.get(&endpoint.url, None)).await;
        let json = json.context("no answer in time")??;
        let (federation, peer) = (self.clone(), peer.clone());
        spawn_blocking(move || federation.take(&peer, &json)).await?
    }

    fn pause(&self, peer: &Peer, endpoint: &Endpoint) -> Duration {
        let hint = || self.get(&peer.trust_domain)?.refresh_hint;
        endpoint.every.unwrap_or_else(|| {
            let hint = hint().unwrap_or(DEFAULT_PAUSE);
            hint.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
        })
    }
}

/// Keeps the bundle of one domain up to date; calls `changed` whenever it was replaced.
pub async fn follow(federation: &Arc<Federation>, peer: &Peer, changed: impl Fn()) {
    tokio::join!(
        follow_file(federation, peer, &changed),
        follow_endpoint(federation, peer, &changed)
    );
}

async fn follow_file(federation: &Federation, peer: &Peer, changed: &impl Fn()) {
    let Some(file) = &peer.file else { return };
    let look = async |seen: Option<Fingerprint>| {
        let (trust_domain, file) = (peer.trust_domain.clone(), file.clone());
        spawn_blocking(move || look_at(&trust_domain, &file, seen)).await
    };
    let mut seen = federation.first_seen.get(file).cloned();
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let Ok((now, document)) = look(seen.clone()).await else {
            continue;
        };
        seen = Some(now);
        match document {
            None => {}
            Some(Ok(document)) => {
                federation.put(&peer.trust_domain, document);
                tracing::info!(trust_domain = %peer.trust_domain, "a federated bundle was replaced");
                changed();
            }
            Some(Err(error)) => tracing::error!(
                trust_domain = %peer.trust_domain,
                error = format!("{error:#}"),
                "a federated bundle was refused, the last good one stays"
            ),
        }
    }
}

/// What a file looks like, and what it says if it looked different before. Blocking.
fn look_at(
    trust_domain: &TrustDomain,
    file: &Path,
    seen: Option<Fingerprint>,
) -> (Fingerprint, Option<anyhow::Result<BundleDocument>>) {
    let now = Fingerprint::of(file);
    let is_another = seen.is_some_and(|seen| seen != now);
    let document = is_another.then(|| read(trust_domain, file));
    (now, document)
}

async fn follow_endpoint(federation: &Arc<Federation>, peer: &Peer, changed: &impl Fn()) {
    let Some(endpoint) = &peer.endpoint else {
        return;
    };
    loop {
        match federation.fetch(peer, endpoint).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(trust_domain = %peer.trust_domain, "a federated bundle was replaced");
                changed();
            }
            Err(error) => tracing::warn!(
                trust_domain = %peer.trust_domain,
                url = endpoint.url,
                error = format!("{error:#}"),
                "a federated bundle cannot be fetched, the last good one stays"
            ),
        }
        tokio::time::sleep(federation.pause(peer, endpoint)).await;
    }
}

fn read(trust_domain: &TrustDomain, path: &Path) -> anyhow::Result<BundleDocument> {
    let told = || format!("the bundle of `{trust_domain}` in `{}`", path.display());
    guarded::check(path).with_context(told)?;
    let found = fs::metadata(path).with_context(told)?;
    // Anything else, such as a pipe, might keep us waiting for ever.
    if !found.is_file() {
        return Err(io::Error::other("it is no file")).with_context(told);
    }
    let size = found.len();
    if size > MAX_DOCUMENT as u64 {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge)).with_context(told);
    }
    let json = fs::read(path).with_context(told)?;
    BundleDocument::parse(trust_domain.clone(), &json).with_context(told)
}

fn is_same(one: &BundleDocument, other: &BundleDocument) -> bool {
    one.x509.authorities() == other.x509.authorities()
        && one.jwt == other.jwt
        && one.sequence == other.sequence
        && one.refresh_hint == other.refresh_hint
}

const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Spec: SPIFFE Federation section 4.3; never more often than once a minute unless told to.
const DEFAULT_PAUSE: Duration = Duration::from_secs(5 * 60);
const SHORTEST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        DEFAULT_PAUSE, Endpoint, Federation, LONGEST_PAUSE, Peer, Profile, SHORTEST_PAUSE,
    };

    fn endpoint(every: Option<Duration>) -> Endpoint {
        Endpoint {
            url: "https://other.test/".into(),
            profile: Profile::Web(None),
            every,
        }
    }

    fn federation(folder: &std::path::Path) -> (Federation, Peer) {
        let peer = Peer {
            trust_domain: "other.test".parse().unwrap(),
            file: None,
            endpoint: Some(endpoint(None)),
        };
        let federation = Federation::open(vec![peer.clone()], folder.to_owned()).unwrap();
        (federation, peer)
    }

    fn document(more: &str) -> Vec<u8> {
        format!("{{\"keys\": []{more}}}").into_bytes()
    }

    #[test]
    fn a_sequence_number_goes_forward_wherever_there_are_two() {
        let folder = tempfile::tempdir().unwrap();
        let (federation, peer) = federation(folder.path());
        let take = |more: &str| federation.take(&peer, &document(more));
        assert!(take(", \"spiffe_sequence\": 5").unwrap());
        assert!(!take(", \"spiffe_sequence\": 5").unwrap(), "the same");
        let refused = take(", \"spiffe_sequence\": 4").unwrap_err().to_string();
        assert!(refused.contains("gone back, from 5 to 4"), "{refused}");
        assert!(refused.contains("other.test.json"), "{refused}");
        assert!(take(", \"spiffe_sequence\": 6").unwrap());
        // Nobody has to number them.
        assert!(take("").unwrap());
        assert!(take(", \"spiffe_sequence\": 1").unwrap());
    }

    #[test]
    fn a_publisher_says_how_often_it_is_asked_within_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let (federation, peer) = federation(folder.path());
        let pause = |every| federation.pause(&peer, &endpoint(every));
        assert_eq!(pause(None), DEFAULT_PAUSE);
        for (hint, expected) in [
            (1, SHORTEST_PAUSE),
            (90, Duration::from_secs(90)),
            (86_400, LONGEST_PAUSE),
        ] {
            let more = format!(", \"spiffe_refresh_hint\": {hint}");
            federation.take(&peer, &document(&more)).unwrap();
            assert_eq!(pause(None), expected);
            let own = Duration::from_millis(200);
            assert_eq!(pause(Some(own)), own, "who configures it knows why");
        }
    }
}
