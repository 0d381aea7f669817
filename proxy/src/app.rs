//! Wiring: opens everything, serves, drains, ends.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use postern_policies::{PolicySet, model::workload::WorkloadName};
use postern_supervisor::{Notify, Sockets, Supervisor};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    access_log::AccessLog,
    admin,
    config::{Config, Forward},
    connections::Connections,
    detect::Late,
    drain::{self, Followed, Open, Steps},
    inbound,
    listener::{self, ADMIN, INBOUND, METRICS, OUTBOUND},
    outbound::{self, Destinations, Way},
    own::Own,
    policy_source::{self, CurrentPolicies, Reload},
    pool::Pool,
    probe::{self, Probe},
    supervision,
    telemetry::{
        self, DirectionLabel, LogFilter, Metrics,
        listener::{Answers, serve},
        otlp::Exporter,
    },
    tls::{self, Current, Identity},
    tokens::{self, KeyStore},
    unproven::Unproven,
    walls,
};

/// What both roads need.
pub(crate) struct Proxy {
    pub(crate) config: Config,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access_log: AccessLog,
    pub(crate) connections: Arc<Connections>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) destinations: Destinations,
    /// Where nothing is sent.
    pub(crate) own: Arc<Own>,
    /// The keys that sign tokens.
    pub(crate) token_keys: KeyStore,
    /// Connections whose first bytes did not tell in time what is spoken.
    pub(crate) late: Late,
    /// Those who have not proven who they are.
    pub(crate) unproven: Arc<Unproven>,
    /// Whether traffic is known to be redirected.
    pub(crate) probe: Probe,
    /// Cancelled when the proxy is to end.
    pub(crate) draining: CancellationToken,
    /// How far the end has come.
    pub(crate) steps: Steps,
    /// Cancelled when somebody at the admin listener wants it to end.
    pub(crate) told_to_end: CancellationToken,
    pub(crate) log_filter: LogFilter,
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

    /// The identity in force, and every change of it.
    pub(crate) fn identity(&self) -> Current {
        self.identity.clone()
    }

    /// Asks of one open connection whether it may go on.
    pub(crate) fn recheck_connection(&self, id: u64) {
        let identity = self.identity.borrow().clone();
        let policies = self.policies.borrow().clone();
        self.connections
            .recheck_this(id, identity.as_deref(), policies.as_deref());
    }

    /// The policies in force, and every change of them.
    pub(crate) fn policies(&self) -> CurrentPolicies {
        self.policies.clone()
    }

    /// The Workload that we stand for: the configured one, the one that the agent says if it has our
    /// identity, or the only one that has it.
    pub(crate) fn own_workload(&self) -> Option<WorkloadName> {
        if let Some(name) = &self.config.workload {
            return Some(name.clone());
        }
        let (identity, set) = self.ready()?;
        if let Some(told) = set.own_workload()
            && let Some(workload) = set.workload(told)
            && workload.spiffe_id == *identity.id()
        {
            return Some(told.clone());
        }
        let mut own = set.workloads_of(identity.id());
        match (own.next(), own.next()) {
            (Some(one), None) => Some(one.name.clone()),
            _ => None,
        }
    }

    /// What is missing before traffic can be served.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
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

/// Gives up what no proxy needs, before its walls. Called before any other thread is started.
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

/// Reads the profile of system calls that the configuration names.
///
/// # Errors
/// It cannot be read, or is none.
pub fn check_walls(config: &Config) -> anyhow::Result<()> {
    walls::profile(&config.walls).map(drop)
}

/// Reads the policies that the configuration names, and nothing else.
///
/// # Errors
/// What would keep a proxy from being ready with them.
pub fn check(config: &Config) -> anyhow::Result<()> {
    policy_source::check(&config.policies)
}

/// Serves until the proxy is told to end, and then until it is drained.
///
/// # Errors
/// What keeps it from starting.
pub fn run(config: Config, supervisor: Supervisor, log_filter: LogFilter) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new());
    telemetry::watch_panics(&metrics);
    let access_log = AccessLog::open(&config.access_log, &metrics)?;
    // One thread carries the traffic; files are read on another.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve_until_told(
        config,
        supervisor,
        log_filter,
        metrics,
        access_log.clone(),
    ));
    // What is dropped here still writes its line.
    runtime.shutdown_timeout(BLOCKING);
    access_log.end();
    outcome
}

async fn serve_until_told(
    config: Config,
    supervisor: Supervisor,
    log_filter: LogFilter,
    metrics: Arc<Metrics>,
    access_log: AccessLog,
) -> anyhow::Result<()> {
    let Supervisor {
        notify,
        mut sockets,
        watchdog,
    } = supervisor;
    // Only the threads of the logs are there already: they write to what is open, or open it anew.
    walls::put_up(&config.walls)?;
    let mut vital = JoinSet::new();
    vital.spawn(notify.clone().watchdog(watchdog));
    let listeners = Listeners::bind(&config, &mut sockets).await?;
    let metrics_listener = listener::open(&mut sockets, config.metrics, METRICS).await?;
    let admin_listener = listener::open(&mut sockets, config.admin, ADMIN).await?;
    sockets.finish()?;
    let otlp = config.otlp.as_ref();
    let (spans, exporter) = otlp.map(|otlp| Exporter::new(otlp, &metrics)).unzip();
    let (identity_sender, identity) = watch::channel(None);
    let (policy_sender, policies) = watch::channel(None);
    let reload = Arc::new(Reload::default());
    let own = Arc::new(Own::of(&config));
    let proxy = Arc::new(Proxy {
        connections: Arc::new(Connections::new(metrics.clone())),
        pool: Arc::new(Pool::new(metrics.clone())),
        destinations: Destinations::new(
            config.outbound.delivery.clone(),
            own.clone(),
            metrics.clone(),
        ),
        own,
        token_keys: KeyStore::new(&config.token_keys, metrics.clone()),
        late: Late::new(metrics.clone()),
        unproven: Arc::new(Unproven::new(MAX_UNPROVEN)),
        probe: Probe::new(&config),
        draining: CancellationToken::new(),
        steps: Steps::default(),
        told_to_end: CancellationToken::new(),
        log_filter,
        identity: identity.clone(),
        policies: policies.clone(),
        metrics: metrics.clone(),
        access_log: access_log.with_spans(spans),
        config,
    });
    let config = &proxy.config;
    let mut answers = Answers {
        metrics: metrics.clone(),
        readiness: {
            let proxy = proxy.clone();
            Arc::new(move || proxy.missing())
        },
        administration: None,
    };
    let told = serve(metrics_listener, answers.clone());
    answers.administration = Some(admin::of(&proxy));
    let inspected = serve(admin_listener, answers);
    // Everything is open that needed a right.
    postern_harden::keep_capabilities(&[])?;

    vital.spawn(told);
    vital.spawn(inspected);
    vital.spawn(tls::follow(
        config.identity.clone(),
        identity_sender,
        metrics.clone(),
    ));
    vital.spawn(policy_source::follow(
        config.policies.clone(),
        identity,
        reload.clone(),
        policy_sender,
        metrics,
    ));
    vital.spawn(recheck(proxy.clone()));
    vital.spawn(proxy.pool.clone().tend());
    vital.spawn(tokens::follow(proxy.clone()));
    vital.spawn(supervision::follow(proxy.clone(), notify.clone()));
    vital.spawn(announce(proxy.clone(), notify.clone()));
    vital.spawn(listeners.probe(&proxy)?);

    let exporting = exporter.map(|exporter| exporter.begin(proxy.clone()));
    let open = Open::default();
    listeners.serve(&proxy, &open, &mut vital);
    let mut signals = Signals::listen()?;
    let is_signal = tokio::select! {
        () = signals.end(&proxy, &reload, &notify) => true,
        () = proxy.told_to_end.cancelled() => false,
        lost = lost(&mut vital) => return Err(lost),
    };
    supervision::told(notify.stopping(&supervision::status(&proxy)));
    let nobody = Notify::nobody();
    let told_again = async {
        // Whoever asks for the end before the signal, as a `preStop` hook does, is not in a hurry.
        if !is_signal {
            signals.end(&proxy, &reload, &nobody).await;
        }
        signals.end(&proxy, &reload, &nobody).await;
    };
    tokio::select! {
        () = drain::drain(&proxy, &open, told_again) => {}
        lost = lost(&mut vital) => return Err(lost),
    }
    if let Some(exporting) = exporting {
        exporting.end().await;
    }
    Ok(())
}

/// Waits until a task on which all depends has panicked. A proxy that goes on without one would serve by
/// what it knew before; whoever started it starts it again.
async fn lost(vital: &mut JoinSet<()>) -> anyhow::Error {
    loop {
        match vital.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                return anyhow::anyhow!("a task on which all depends panicked; the proxy ends");
            }
            // It has done what it was there for.
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// Everything that accepts traffic.
struct Listeners {
    inbound: TcpListener,
    outbound: Vec<(TcpListener, Way)>,
}

impl Listeners {
    async fn bind(config: &Config, inherited: &mut Sockets) -> anyhow::Result<Self> {
        let mut outbound = Vec::new();
        if let Some(address) = config.outbound.listen {
            for bound in listener::open_outbound(inherited, address).await? {
                outbound.push((bound, Way::Redirected));
            }
        }
        for one in &config.outbound.listeners {
            let bound = listener::open(inherited, one.listen, OUTBOUND).await?;
            outbound.push((bound, Way::To(Arc::new(one.clone()))));
        }
        let listen = config.inbound.listen;
        let inbound = match config.inbound.forward {
            Forward::Transparent => listener::open_transparent(inherited, listen, INBOUND)?,
            _ => listener::open(inherited, listen, INBOUND).await?,
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

    fn serve(self, proxy: &Arc<Proxy>, open: &Open, vital: &mut JoinSet<()>) {
        let steps = &proxy.steps;
        let places = Arc::new(Semaphore::new(listener::MAX_CONNECTIONS));
        let inbound = each(proxy, &open.inbound, "inbound", inbound::connection);
        let stop = steps.closing.clone();
        vital.spawn(listener::accept(self.inbound, places, stop, inbound));
        let places = Arc::new(Semaphore::new(listener::MAX_CONNECTIONS));
        for (listener, way) in self.outbound {
            let outbound = each(
                proxy,
                &open.outbound,
                "outbound",
                move |proxy, stream, from| outbound::connection(proxy, stream, from, way.clone()),
            );
            // The app may have to tidy up: it is served as long as anything is.
            let (places, stop) = (places.clone(), steps.cut.clone());
            vital.spawn(listener::accept(listener, places, stop, outbound));
        }
    }
}

/// What is done with each connection: counted, and followed in a task of its own.
fn each<F: Future<Output = ()> + Send + 'static>(
    proxy: &Arc<Proxy>,
    open: &Followed,
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
        open.follow(proxy.steps.cut.clone(), async move {
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
async fn announce(proxy: Arc<Proxy>, notify: Notify) {
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
    supervision::told(notify.ready(&supervision::status(&proxy)));
}

/// The signals that the proxy listens to.
struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?,
        })
    }

    /// Waits for SIGTERM or SIGINT; SIGHUP opens the access log anew and reads the policies again.
    async fn end(&mut self, proxy: &Proxy, reload: &Reload, notify: &Notify) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    supervision::told(notify.reloading());
                    proxy.access_log.reopen();
                    reload.ask();
                }
                () = reload.done() => supervision::told(notify.reloaded()),
            }
        }
    }
}

/// Half of the connections that may be open: the other half is for those who have proven themselves.
const MAX_UNPROVEN: usize = listener::MAX_CONNECTIONS / 2;

/// How long the end waits for a file that is being read.
const BLOCKING: Duration = Duration::from_secs(1);
