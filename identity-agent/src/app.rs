//! Wiring: opens everything, serves, and ends in order.

use std::{sync::Arc, time::SystemTime};

use anyhow::Context as _;
use postern_harden::Capability;
use postern_policies::{
    Options,
    files::{Look, SETTLES_IN, Watch},
};
use postern_proto::{
    control::control_server::ControlServer,
    sds::secret_discovery_service_server::SecretDiscoveryServiceServer,
};
use postern_supervisor::{Notify, Supervisor};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Duration, MissedTickBehavior, interval, sleep},
};
use tonic::{Request, Status, service::interceptor::InterceptedService, transport::Server};

use crate::{
    admin,
    admission::{self, Admission, CountRequests},
    agent::{Agent, Ledger, Parts},
    attest::Attestors,
    authority::{Authority, Lifetimes, Rotation, Setting},
    caller,
    config::Config,
    control::Control,
    federation::{self, Federation},
    kubernetes::{self, Followed, Snapshot},
    monitor, publish,
    registry::{Policies, Registry, RegistryError, Store},
    sds::Sds,
    settled,
    sockets::Sockets,
    telemetry::{self, Metrics, Readiness},
    walls,
    workload_api::{Framed, WorkloadApi},
};

/// Puts up the agent's walls. Called before any other thread is started. Capabilities go later, when
/// everything is open that needed one.
///
/// # Errors
/// A wall that cannot be put up; callers do not start.
pub fn harden(config: &Config) -> anyhow::Result<()> {
    postern_harden::no_new_privileges()?;
    postern_harden::not_dumpable()?;
    postern_harden::no_core_files()?;
    postern_harden::all_descriptors()?;
    walls::put_up(&config.walls)
}

/// Runs an agent until it is told to end.
///
/// # Errors
/// What keeps it from starting.
pub async fn run(config: Config, supervisor: Supervisor) -> anyhow::Result<()> {
    let Supervisor {
        notify,
        sockets,
        watchdog,
    } = supervisor;
    // From here on: a state that takes its time to read is no sign of death.
    let signs_of_life = tokio::spawn(notify.clone().watchdog(watchdog));
    let metrics = Arc::new(Metrics::new());
    let lacks = caller::namespace::lacks(config.sees)?;
    if let Some(lacks) = &lacks {
        tracing::error!(lacks, "the agent is not ready, and will not be");
    }
    let readiness = Arc::new(Readiness::lacking(lacks));
    let kubernetes = cluster(&config, &metrics, &readiness)?;
    let agent = Arc::new(open(&config, metrics.clone())?);
    let sockets = Sockets::open(&config, sockets)?;
    let published = match config.publication.clone() {
        Some(publication) => {
            let published = publish::serve(publication, agent.clone()).await;
            Some(published.context("`federation.endpoint`")?)
        }
        None => None,
    };
    let published = async {
        match published {
            Some(published) => published.await,
            None => std::future::pending().await,
        }
    };
    let health = telemetry::serve(config.health, metrics.clone(), readiness).await?;
    let kernel = monitor::Kernel::listen(config.waiting_events)
        .inspect_err(|error| {
            tracing::info!(%error, every = ?config.reattest, "the kernel does not tell what becomes of processes; they are looked at again on the timer");
        })
        .ok();
    // After the sockets and the state are open, before anybody is served. Three stay: to look at
    // processes of other users, to read their programs, and to end one where a Workload says `block`.
    postern_harden::keep_capabilities(&[
        Capability::CAP_SYS_PTRACE,
        Capability::CAP_DAC_READ_SEARCH,
        Capability::CAP_KILL,
    ])?;

    let mut term = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    let stop = async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("ending");
    };
    let admission = Arc::new(Admission::new(agent.clone(), config.calls_of_user));
    let service = Framed::new(WorkloadApi::new(admission.clone()), MAX_REQUEST_BYTES);
    let sds = SecretDiscoveryServiceServer::new(Sds::new(admission.clone()))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let control = ControlServer::new(Control::new(admission.clone()));
    let (reporter, health_service) = tonic_health::server::health_reporter();
    reporter.set_serving::<Framed>().await;
    let limits = caller::Limits {
        all: MAX_CONNECTIONS,
        of_user: MAX_CONNECTIONS / 2,
        idle: config.workload_api_idle,
    };
    let serving = Server::builder()
        .max_concurrent_streams(MAX_STREAMS_OF_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .layer(CountRequests(admission))
        .add_service(service)
        .add_service(sds)
        .add_service(control)
        // Spec: SPIFFE Workload Endpoint section 6.1 wants the header of every request.
        .add_service(InterceptedService::new(health_service, with_header))
        .add_service(InterceptedService::new(
            reflection().build_v1()?,
            with_header,
        ))
        // Many clients know only the older name of the same protocol.
        .add_service(InterceptedService::new(
            reflection().build_v1alpha()?,
            with_header,
        ))
        .serve_with_incoming(caller::incoming(
            sockets.workload_api()?,
            limits,
            metrics.clone(),
        ));
    let admin_socket = sockets.admin()?;

    tracing::info!(
        trust_domain = %config.trust_domain,
        socket = %config.workload_api.display(),
        workloads = agent.registry.current().workloads().count(),
        "ready"
    );
    let trust_domain = config.trust_domain.to_string();
    told(notify.ready(&status(&trust_domain, &agent, &metrics)));
    let state = {
        let (agent, metrics) = (agent.clone(), metrics.clone());
        let follow = notify.clone();
        follow.follow(move || status(&trust_domain, &agent, &metrics))
    };
    let ended = tokio::select! {
        served = serving => served.context("the Workload API ended"),
        () = admin::serve(admin_socket, agent.clone()) => Ok(()),
        () = health => Ok(()),
        () = published => Ok(()),
        () = watch_workloads(agent.clone()) => Ok(()),
        () = watch_cluster(kubernetes, agent.clone()) => Ok(()),
        () = watch_pods(agent.clone()) => Ok(()),
        () = watch_images(agent.clone()) => Ok(()),
        () = rotate(agent.clone()) => Ok(()),
        () = listen(kernel, config.waiting_events, agent.clone()) => Ok(()),
        () = read_again(hangup, agent.clone(), &notify) => Ok(()),
        () = state => Ok(()),
        () = follow_federation(agent) => Ok(()),
        () = socket_vanished(&config) => Err(anyhow::anyhow!(
            "the socket `{}` was removed from under the agent",
            config.workload_api.display()
        )),
        () = stop => Ok(()),
    };
    told(notify.stopping("ending"));
    signs_of_life.abort();
    sockets.remove();
    ended
}

/// How the agent is, for whoever looks at the service manager.
fn status(trust_domain: &str, agent: &Agent, metrics: &Metrics) -> String {
    let workloads = agent.registry.current().workloads().count();
    match metrics.workloads_current.get() {
        1 => format!("serves {trust_domain}, {workloads} Workloads"),
        _ => format!(
            "serves {trust_domain}, {workloads} Workloads; the newest documents were refused, see the log"
        ),
    }
}

/// A service manager that cannot be told thinks what it likes; whoever looks into the log knows better.
fn told(outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "the service manager was not told");
    }
}

/// Reads the documents again whenever SIGHUP asks for it, changed or not.
async fn read_again(mut hangup: Signal, agent: Arc<Agent>, notify: &Notify) {
    while hangup.recv().await.is_some() {
        told(notify.reloading());
        if let Some(Err(refused)) = agent.change(reload).await {
            refused_documents(&refused.to_string());
        }
        told(notify.reloaded());
    }
}

fn with_header(request: Request<()>) -> Result<Request<()>, Status> {
    admission::has_header(&request).map(|()| request)
}

/// What is served here, told to tools such as grpcurl.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure();
    postern_proto::DESCRIPTORS
        .into_iter()
        .fold(builder, |builder, contract| {
            builder.register_encoded_file_descriptor_set(contract)
        })
}

fn open(config: &Config, metrics: Arc<Metrics>) -> anyhow::Result<Agent> {
    let lifetimes = Lifetimes {
        root: config.ca_ttl,
        svid: config.svid_ttl,
        jwt: config.jwt_ttl,
    };
    let publication = config.publication.as_ref();
    let setting = Setting {
        lifetimes,
        upstream: config.upstream.clone(),
        jwt_issuer: publication.and_then(|publication| publication.oidc_issuer.clone()),
    };
    let authority = Authority::open(
        &config.state,
        config.trust_domain.clone(),
        setting,
        SystemTime::now(),
    )?;
    let registry = registry(config, Some(Store::open(&config.state)?))?;
    metrics.workloads_current.set(1);
    let federation = Federation::open(config.federation.clone(), config.state.join("federated"))
        .context("`federation`")?;
    let attestors = Attestors::configured(&config.attestors, &config.workload_api);
    let ledger = Ledger::open(&config.state, settled::at_start(SystemTime::now()))
        .context("the ledger of issued SVIDs (`issued.jsonl` in `stateDir`)")?;
    metrics.ledger_lines_lost.inc_by(ledger.lost);
    Ok(Agent::new(Parts {
        attestors,
        registry,
        authority,
        federation,
        ledger,
        metrics,
        reattest: config.reattest,
    }))
}

/// Reads the documents that the configuration names, and those that were registered.
fn registry(config: &Config, store: Option<Store>) -> anyhow::Result<Registry> {
    let options = Options::new(config.trust_domain.clone());
    let cluster = config.kubernetes.as_ref();
    let policies = config.policies.as_ref().map(|told| {
        let options = Options {
            namespace: told.namespace.clone(),
            ..cluster_options(config)
        };
        Policies::of(told.directory.clone(), options)
    });
    let told = || Policies::without_folder(cluster_options(config));
    let policies = policies.or_else(|| cluster.map(|_| told()));
    let registry = Registry::open(config.workloads.clone(), options, store, policies);
    let registry = registry.map(|registry| match cluster {
        Some(_) => registry.awaiting_cluster(),
        None => registry,
    });
    registry.map_err(|error| match error {
        RegistryError::Read(error) => anyhow::Error::from(error)
            .context("the documents (`workloads.directory`, `policies.directory`)"),
        mistakes => anyhow::Error::from(mistakes),
    })
}

/// How documents of the cluster are read.
fn cluster_options(config: &Config) -> Options {
    let mut options = Options::new(config.trust_domain.clone());
    if let Some(cluster) = &config.kubernetes {
        options.root_namespace.clone_from(&cluster.root_namespace);
    }
    options
}

/// What is to be followed of a cluster, if one is.
fn cluster(
    config: &Config,
    metrics: &Arc<Metrics>,
    readiness: &Arc<Readiness>,
) -> anyhow::Result<Option<Arc<Followed>>> {
    let Some(server) = config.kubernetes.clone() else {
        return Ok(None);
    };
    let server = server.within(|name| std::env::var(name).ok())?;
    let options = cluster_options(config);
    let followed = Followed::new(server, options, metrics.clone(), readiness.clone());
    Ok(Some(followed))
}

/// Follows what the API server has, if one is to be followed.
async fn watch_cluster(followed: Option<Arc<Followed>>, agent: Arc<Agent>) {
    let Some(followed) = followed else {
        return std::future::pending().await;
    };
    let news = |snapshot| take_cluster(agent.clone(), snapshot);
    kubernetes::follow(followed, news, refused_documents).await;
}

async fn take_cluster(agent: Arc<Agent>, snapshot: Snapshot) -> Result<(), String> {
    let (pods, policies) = (snapshot.directory.len(), snapshot.policies.len());
    let taken = agent.change(move |agent| {
        let replaced = agent.registry.take_cluster(snapshot)?;
        agent.take_back_of(&replaced);
        agent.announce_documents();
        Ok::<(), RegistryError>(())
    });
    match taken.await {
        Some(Ok(())) => {
            tracing::debug!(pods, policies, "what the API server has is in force");
            Ok(())
        }
        Some(Err(refused)) => Err(refused.to_string()),
        None => Err("what the API server has could not be taken".to_owned()),
    }
}

/// Reads the profile of system calls that the configuration names.
///
/// # Errors
/// It cannot be read, or is none.
pub fn check_walls(config: &Config) -> anyhow::Result<()> {
    walls::profile(&config.walls).map(drop)
}

/// Reads all documents that the configuration names, and nothing else. Tells how many Workloads there
/// are.
///
/// # Errors
/// What would keep an agent from starting with them.
pub fn check(config: &Config) -> anyhow::Result<usize> {
    Ok(registry(config, None)?.current().workloads().count())
}

/// Reads the folders of Workloads and policies again whenever they look different.
async fn watch_workloads(agent: Arc<Agent>) {
    // Read once more at the start: something may have changed since.
    let mut watch = Watch::default();
    let mut told = String::new();
    let mut every = interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let Some(now) = agent.look(|agent| agent.registry.looks()).await else {
            continue;
        };
        match watch.look(&now) {
            Look::Same => {}
            Look::Again => {
                watch.is_changing(now);
                every.reset_after(SETTLES_IN);
            }
            Look::Read => {
                let refused = match agent.change(reload).await {
                    Some(Err(refused)) => refused,
                    Some(Ok(())) => {
                        told.clear();
                        watch.was_read(now);
                        continue;
                    }
                    None => continue,
                };
                // What could not be read for a moment is tried again, and told once.
                if !matches!(refused, RegistryError::Read(_) | RegistryError::Store(_)) {
                    watch.was_read(now);
                }
                let why = refused.to_string();
                if why != told {
                    refused_documents(&why);
                    told = why;
                }
            }
        }
    }
}

/// Reads what is known of images again whenever its folder looks different, and has everybody judged anew.
async fn watch_images(agent: Arc<Agent>) {
    if agent.attestors.images().is_none() {
        return std::future::pending().await;
    }
    let mut watch = Watch::default();
    let mut every = interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let looks = agent.look(|agent| agent.attestors.images().map(|images| images.looks()));
        let Some(now) = looks.await.flatten() else {
            continue;
        };
        match watch.look(&now) {
            Look::Same => {}
            Look::Again => {
                watch.is_changing(now);
                every.reset_after(SETTLES_IN);
            }
            Look::Read => {
                let read = agent.look(|agent| {
                    agent
                        .attestors
                        .images()
                        .into_iter()
                        .for_each(|images| images.read());
                    agent.announce();
                });
                if read.await.is_some() {
                    tracing::info!("image evidence was read");
                    watch.was_read(now);
                }
            }
        }
    }
}

fn refused_documents(why: &str) {
    tracing::error!(
        error = why,
        "the documents were refused, the last good ones stay"
    );
}

/// Reads the folders again.
fn reload(agent: &Agent) -> Result<(), RegistryError> {
    let read = agent.registry.reload().inspect_err(|_| {
        agent.metrics.workloads_current.set(0);
        agent.metrics.reloads_failed.inc();
    });
    let (workloads, replaced) = read?;
    if let Some(replaced) = replaced {
        agent.take_back_of(&replaced);
        agent.metrics.kubernetes_in_force.set(1);
    }
    agent.announce_documents();
    agent.metrics.workloads_current.set(1);
    tracing::info!(workloads, "workloads in force");
    Ok(())
}

/// How long there is no look at all pods after one: whoever makes it look has no say in how much of a
/// processor that takes.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Looks at every pod that holds an identity, again and again.
async fn watch_pods(agent: Arc<Agent>) {
    let mut every = interval(agent.reattest);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = agent.look_again.notified() => {}
        }
        let round = agent.look(|agent| agent.watch_pods(SystemTime::now()));
        if round.await.is_none() {
            tracing::error!("a round of watching the pods failed");
        }
        // What is changed without end is one reason to look.
        sleep(LOOK_PAUSE).await;
    }
}

/// Passes on what the kernel tells of processes, if it does.
async fn listen(kernel: Option<monitor::Kernel>, waiting: usize, agent: Arc<Agent>) {
    let (sender, receiver) = mpsc::channel(waiting);
    let heard = |event| {
        if !agent.watches_events() {
            return;
        }
        match event {
            monitor::Event::Lost(source) => agent.has_lost(source),
            event if sender.try_send(event).is_err() => agent.has_lost(monitor::Source::Queue),
            _ => {}
        }
    };
    let told = async {
        if let Some(kernel) = kernel
            && let Err(error) = kernel.tell(&agent.followed, heard).await
        {
            tracing::warn!(%error, "the kernel tells no more of processes; the timer remains");
        }
        std::future::pending().await
    };
    tokio::select! {
        () = told => {}
        () = judge(receiver, agent.clone()) => {}
    }
}

/// Has what the kernel tells judged, in its order.
async fn judge(mut events: mpsc::Receiver<monitor::Event>, agent: Arc<Agent>) {
    let mut batch = Vec::new();
    while events.recv_many(&mut batch, EVENTS_AT_ONCE).await > 0 {
        let batch = std::mem::take(&mut batch);
        let asked = agent.look(move |agent| agent.happened(&batch, SystemTime::now()));
        if asked.await.is_none() {
            tracing::error!("what processes did could not be judged");
        }
    }
}

/// Keeps the bundles of other trust domains up to date.
async fn follow_federation(agent: Arc<Agent>) {
    let changed = || agent.announce();
    let all = agent.federation.peers().iter();
    let all = all.map(|peer| federation::follow(&agent.federation, peer, changed));
    futures_util::future::join_all(all).await;
    std::future::pending().await
}

/// Looks every few seconds whether a root is to be prepared or let go.
async fn rotate(agent: Arc<Agent>) {
    let mut every = interval(Duration::from_secs(10));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if agent.change(rotate_if_due).await.is_none() {
            tracing::error!("a look at the roots failed");
        }
    }
}

fn rotate_if_due(agent: &Agent) {
    match agent.authority.rotate(SystemTime::now()) {
        Ok(Rotation::None) => {}
        Ok(Rotation::Changed) => {
            tracing::info!("the roots or the keys of tokens have changed");
            agent.renew_lists();
            agent.announce();
        }
        Err(error) => {
            agent.metrics.state_writes_failed.inc();
            tracing::error!(%error, "the roots cannot be rotated");
        }
    }
}

/// Ends when the socket is not where clients look for it any more: a restart mends that.
async fn socket_vanished(config: &Config) {
    let own = crate::attest::inode_of(&config.workload_api);
    let mut every = interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        if crate::attest::inode_of(&config.workload_api) != own {
            return;
        }
    }
}

/// How many events are judged in one go.
const EVENTS_AT_ONCE: usize = 64;

/// How soon a changed document is seen.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// No request of the Workload API is larger.
const MAX_REQUEST_BYTES: usize = 64 << 10;

const MAX_CONNECTIONS: usize = 8_192;
const MAX_STREAMS_OF_CONNECTION: u32 = 256;
