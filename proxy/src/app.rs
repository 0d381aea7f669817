//! Wiring: opens everything, serves, drains, ends.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use postern_policies::{PolicySet, model::workload::WorkloadName};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access_log::AccessLog,
    config::{Config, Forward},
    connections::Connections,
    inbound, listener,
    outbound::{self, Destinations, Way},
    policy_source::{self, CurrentPolicies},
    pool::Pool,
    probe::{self, Probe},
    telemetry::{self, DirectionLabel, Metrics, Readiness},
    tls::{self, Current, Identity},
    tokens::{self, KeyStore},
    unproven::Unproven,
};

/// What both roads need.
pub(crate) struct Proxy {
    pub(crate) config: Config,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access_log: AccessLog,
    pub(crate) connections: Arc<Connections>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) destinations: Destinations,
    /// The keys that sign tokens.
    pub(crate) token_keys: KeyStore,
    /// Those who have not proven who they are.
    pub(crate) unproven: Arc<Unproven>,
    /// Whether traffic is known to be redirected.
    pub(crate) probe: Probe,
    /// Cancelled when the proxy is to end.
    pub(crate) draining: CancellationToken,
    identity: Current,
    policies: CurrentPolicies,
}

impl Proxy {
    /// Identity and policies, if there are both.
    pub(crate) fn ready(&self) -> Option<(Arc<Identity>, Arc<PolicySet>)> {
        let identity = self.identity.borrow().clone()?;
        let policies = self.policies.borrow().clone()?;
        Some((identity, policies))
    }

    /// The policies in force, and every change of them.
    pub(crate) fn policies(&self) -> CurrentPolicies {
        self.policies.clone()
    }

    /// The Workload that we stand for: the configured one, or the only one with our identity.
    pub(crate) fn own_workload(&self) -> Option<WorkloadName> {
        if let Some(name) = &self.config.workload {
            return Some(name.clone());
        }
        let (identity, set) = self.ready()?;
        let mut own = set.workloads_of(identity.id());
        match (own.next(), own.next()) {
            (Some(one), None) => Some(one.name.clone()),
            _ => None,
        }
    }

    /// What is missing before traffic can be served.
    fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.identity.borrow().is_none() {
            missing.push("identity");
        }
        if self.policies.borrow().is_none() {
            missing.push("policies");
        } else if self.metrics.policies_current.get() == 0 {
            missing.push("policies on disk were refused, older ones are in force");
        }
        if self.ready().is_some() && self.own_workload().is_none() {
            missing.push("workload (no Workload, or more than one, has our identity)");
        }
        missing.extend(self.probe.missing());
        if self.draining.is_cancelled() {
            missing.push("draining");
        }
        missing
    }
}

/// Puts up the proxy's walls. Called before any other thread is started.
///
/// # Errors
/// A wall that cannot be put up; callers do not start.
pub fn harden(config: &Config) -> anyhow::Result<()> {
    postern_harden::no_new_privileges()?;
    postern_harden::no_core_files()?;
    postern_harden::all_descriptors()?;
    if config.allow_dumpable {
        tracing::warn!(
            "`harden.insecureAllowDumpable` is on: processes of this user can read the proxy's keys"
        );
    } else {
        postern_harden::not_dumpable()?;
    }
    Ok(())
}

/// Runs a proxy until it is told to end, and then until it is drained.
///
/// # Errors
/// What keeps it from starting.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new());
    telemetry::watch_panics(&metrics);
    let access_log = AccessLog::open(&config.access_log, metrics.clone())?;
    let listeners = Listeners::bind(&config).await?;
    let (identity_sender, identity) = watch::channel(None);
    let (policy_sender, policies) = watch::channel(None);
    let reload = Arc::new(Notify::new());
    let proxy = Arc::new(Proxy {
        connections: Arc::new(Connections::new(metrics.clone())),
        pool: Arc::new(Pool::new(metrics.clone())),
        destinations: Destinations::new(
            config.outbound.delivery.clone(),
            outbound::own_listeners(&config),
            metrics.clone(),
        ),
        token_keys: KeyStore::new(&config.token_keys, metrics.clone()),
        unproven: Arc::new(Unproven::new(MAX_UNPROVEN)),
        probe: Probe::new(&config),
        draining: CancellationToken::new(),
        identity: identity.clone(),
        policies: policies.clone(),
        metrics: metrics.clone(),
        access_log,
        config,
    });
    let readiness: Readiness = {
        let proxy = proxy.clone();
        Arc::new(move || proxy.missing())
    };
    let config = &proxy.config;
    let told = telemetry::serve(
        config.metrics,
        "metrics",
        metrics.clone(),
        readiness.clone(),
        None,
    )
    .await?;
    let inspector = {
        let proxy = proxy.clone();
        Arc::new(move |path: &str| inspect(&proxy, path)) as telemetry::Inspector
    };
    let inspected = telemetry::serve(
        config.admin,
        "admin",
        metrics.clone(),
        readiness,
        Some(inspector),
    )
    .await?;
    // Everything is open that needed a right.
    postern_harden::keep_capabilities(&[])?;

    tokio::spawn(told);
    tokio::spawn(inspected);
    tokio::spawn(tls::follow(
        config.identity.clone(),
        identity_sender,
        metrics.clone(),
    ));
    tokio::spawn(policy_source::follow(
        config.policies.clone(),
        identity,
        reload.clone(),
        policy_sender,
        metrics,
    ));
    tokio::spawn(recheck(proxy.clone()));
    tokio::spawn(proxy.pool.clone().tend());
    tokio::spawn(tokens::follow(proxy.clone()));
    tokio::spawn(announce(proxy.clone()));
    tokio::spawn(listeners.probe(&proxy)?);

    let open = TaskTracker::new();
    let stop = CancellationToken::new();
    listeners.serve(&proxy, &open, &stop);
    wait_for_the_end(&reload).await?;
    drain(&proxy, &open, &stop).await
}

/// Everything that accepts traffic.
struct Listeners {
    inbound: TcpListener,
    outbound: Vec<(TcpListener, Way)>,
}

impl Listeners {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        let mut outbound = Vec::new();
        if let Some(address) = config.outbound.listen {
            for bound in listener::bind_outbound(address).await? {
                outbound.push((bound, Way::Redirected));
            }
        }
        for one in &config.outbound.listeners {
            let bound = listener::bind(one.listen, "outbound.listeners").await?;
            outbound.push((bound, Way::To(Arc::new(one.clone()))));
        }
        let listen = config.inbound.listen;
        let inbound = match config.inbound.forward {
            Forward::Transparent => listener::bind_transparent(listen, "inbound.listen")?,
            _ => listener::bind(listen, "inbound.listen").await?,
        };
        Ok(Self { inbound, outbound })
    }

    /// Proves, while all of them accept, that they get what is redirected.
    fn probe(&self, proxy: &Arc<Proxy>) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let redirected = self
            .outbound
            .iter()
            .filter(|(_, way)| matches!(way, Way::Redirected))
            .map(|(listener, _)| listener.local_addr());
        let outbound = redirected.collect::<Result<Vec<_>, _>>()?;
        let inbound = self.inbound.local_addr()?;
        Ok(probe::follow(proxy.clone(), inbound, outbound))
    }

    fn serve(self, proxy: &Arc<Proxy>, open: &TaskTracker, stop: &CancellationToken) {
        let places = Arc::new(Semaphore::new(listener::MAX_CONNECTIONS));
        let inbound = each(proxy, open, "inbound", inbound::connection);
        tokio::spawn(listener::accept(
            self.inbound,
            places,
            stop.clone(),
            inbound,
        ));
        let places = Arc::new(Semaphore::new(listener::MAX_CONNECTIONS));
        for (listener, way) in self.outbound {
            let outbound = each(proxy, open, "outbound", move |proxy, stream, from| {
                outbound::connection(proxy, stream, from, way.clone())
            });
            tokio::spawn(listener::accept(
                listener,
                places.clone(),
                stop.clone(),
                outbound,
            ));
        }
    }
}

/// What is done with each connection: counted, and followed in a task of its own.
fn each<F: Future<Output = ()> + Send + 'static>(
    proxy: &Arc<Proxy>,
    open: &TaskTracker,
    direction: &'static str,
    road: impl Fn(Arc<Proxy>, TcpStream, SocketAddr) -> F + Send + 'static,
) -> impl FnMut(TcpStream, SocketAddr, OwnedSemaphorePermit) + Send + 'static {
    let (proxy, open) = (proxy.clone(), open.clone());
    let accepted = proxy
        .metrics
        .connections
        .get_or_create_owned(&DirectionLabel { direction });
    move |stream, from, place| {
        accepted.inc();
        let work = road(proxy.clone(), stream, from);
        open.spawn(async move {
            work.await;
            drop(place);
        });
    }
}

/// Asks every open connection again whenever the answer may have changed.
async fn recheck(proxy: Arc<Proxy>) {
    let (mut identity, mut policies) = (proxy.identity.clone(), proxy.policies.clone());
    loop {
        tokio::select! {
            changed = identity.changed() => {
                if changed.is_err() { return }
                // New requests show the new certificate; those in flight end as they began.
                proxy.pool.clear();
            }
            changed = policies.changed() => if changed.is_err() { return },
        }
        let (identity, policies) = (
            identity.borrow_and_update().clone(),
            policies.borrow_and_update().clone(),
        );
        proxy
            .connections
            .recheck(identity.as_deref(), policies.as_deref());
    }
}

/// Says once that the proxy serves.
async fn announce(proxy: Arc<Proxy>) {
    let (mut identity, mut policies) = (proxy.identity.clone(), proxy.policies.clone());
    if identity.wait_for(Option::is_some).await.is_err()
        || policies.wait_for(Option::is_some).await.is_err()
    {
        return;
    }
    proxy.probe.proven().await;
    if proxy.own_workload().is_none() {
        tracing::error!(
            "no Workload, or more than one, has our identity: inbound, all is denied; name it with `workload`"
        );
    }
    tracing::info!(
        inbound = %proxy.config.inbound.listen,
        workload = proxy.own_workload().map(tracing::field::display),
        "ready"
    );
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Waits for SIGTERM or SIGINT; SIGHUP reads the policies again.
async fn wait_for_the_end(reload: &Notify) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => reload.notify_one(),
        }
    }
}

/// Accepts nothing new, lets what is open finish, and ends by the deadline or a second signal.
async fn drain(
    proxy: &Arc<Proxy>,
    open: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    tracing::info!(open = open.len(), deadline = ?proxy.config.drain, "draining");
    proxy.draining.cancel();
    stop.cancel();
    open.close();
    let again = wait_for_the_end_again();
    tokio::select! {
        () = open.wait() => tracing::info!("drained"),
        () = tokio::time::sleep(proxy.config.drain) => {
            tracing::warn!(open = open.len(), "the deadline is over, what is open is cut");
        }
        outcome = again => {
            outcome?;
            tracing::warn!(open = open.len(), "told twice, what is open is cut");
        }
    }
    // The log's thread writes what it was handed.
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(())
}

async fn wait_for_the_end_again() -> anyhow::Result<()> {
    wait_for_the_end(&Notify::new()).await
}

/// How the proxy is, in short.
fn status(proxy: &Proxy) -> serde_json::Value {
    let missing = proxy.missing();
    let identity = proxy.identity.borrow().clone();
    let policies = proxy.policies.borrow().clone();
    let ends = identity.as_ref().and_then(|identity| {
        let left = identity
            .svid()
            .not_after()
            .duration_since(SystemTime::now());
        Some(left.ok()?.as_secs())
    });
    json!({
        "ready": missing.is_empty(),
        "missing": missing,
        "identity": identity.as_ref().map(|identity| identity.id().as_str()),
        "identityEndsInSeconds": ends,
        "workload": proxy.own_workload().map(|name| name.to_string()),
        "workloads": policies.map(|set| set.workloads().count()),
        "connections": proxy.connections.count(),
        "draining": proxy.draining.is_cancelled(),
    })
}

/// What the admin listener tells.
fn inspect(proxy: &Proxy, path: &str) -> Option<String> {
    match path {
        "/connections" => Some(proxy.connections.describe().to_string()),
        "/status" => Some(status(proxy).to_string()),
        "/config_dump" => {
            let identity = proxy.identity.borrow().clone();
            let workload = proxy.own_workload();
            let dump = json!({
                "identity": identity.map(|identity| json!({
                    "spiffeID": identity.id().as_str(),
                    "serial": identity.svid().serial().to_string(),
                    "key": "<secret>",
                })),
                "workload": workload.map(|name| name.to_string()),
                "config": format!("{:?}", proxy.config),
            });
            Some(dump.to_string())
        }
        _ => None,
    }
}

/// Half of the connections that may be open: the other half is for those who have proven themselves.
const MAX_UNPROVEN: usize = listener::MAX_CONNECTIONS / 2;
