//! Wiring: opens everything, serves, and ends in order.

use std::{sync::Arc, time::SystemTime};

use anyhow::Context as _;
use postern_harden::Capability;
use postern_policies::{Options, files::Fingerprint};
use postern_proto::{
    control::control_server::ControlServer,
    sds::secret_discovery_service_server::SecretDiscoveryServiceServer,
    workload_api::spiffe_workload_api_server::SpiffeWorkloadApiServer,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Duration, MissedTickBehavior, interval},
};
use tonic::{Request, Status, service::interceptor::InterceptedService, transport::Server};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use crate::{
    admin,
    admission::{self, Admission},
    agent::{Agent, Ledger, Parts},
    attest::Attestors,
    authority::{Authority, Lifetimes, Rotation, Setting},
    caller,
    config::Config,
    control::{Control, Policies},
    federation::{self, Federation},
    monitor, publish,
    registry::{Registry, RegistryError, Store},
    sds::Sds,
    telemetry::{self, Metrics},
    workload_api::WorkloadApi,
};

/// Puts up the agent's walls. Called before any other thread is started. Capabilities go later, when
/// everything is open that needed one.
///
/// # Errors
/// A wall that cannot be put up; callers do not start.
pub fn harden() -> anyhow::Result<()> {
    postern_harden::no_new_privileges()?;
    postern_harden::not_dumpable()?;
    postern_harden::no_core_files()?;
    postern_harden::all_descriptors()?;
    Ok(())
}

/// Runs an agent until it is told to end.
///
/// # Errors
/// What keeps it from starting.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new());
    let agent = Arc::new(open(&config, metrics.clone())?);
    let api = caller::bind(&config.workload_api, 0o777)?;
    let admin_socket = caller::bind(&config.admin, 0o600)?;
    let own_sockets =
        [&config.workload_api, &config.admin].map(|path| crate::attest::inode_of(path));
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
    let health = telemetry::serve(config.health, metrics.clone()).await?;
    let kernel = monitor::Kernel::listen()
        .inspect_err(|error| {
            tracing::info!(%error, every = ?config.reattest, "the kernel does not tell what becomes of processes; they are looked at again on the timer");
        })
        .ok();
    // After the sockets and the state are open, before anybody is served. Two stay: to look at
    // processes of other users, and to read their programs.
    postern_harden::keep_capabilities(&[
        Capability::CAP_SYS_PTRACE,
        Capability::CAP_DAC_READ_SEARCH,
    ])?;

    let mut term = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let stop = async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("ending");
    };
    let admission = Arc::new(Admission::new(agent.clone()));
    let service = SpiffeWorkloadApiServer::new(WorkloadApi::new(admission.clone()))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let sds = SecretDiscoveryServiceServer::new(Sds::new(admission.clone()))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let control = ControlServer::new(Control::new(admission));
    let (reporter, health_service) = tonic_health::server::health_reporter();
    reporter
        .set_serving::<SpiffeWorkloadApiServer<WorkloadApi>>()
        .await;
    let serving = Server::builder()
        .max_concurrent_streams(MAX_STREAMS_OF_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .add_service(service)
        .add_service(sds)
        .add_service(control)
        // Spec: SPIFFE Workload Endpoint section 6.1 wants the header of every request.
        .add_service(InterceptedService::new(health_service, with_header))
        .add_service(InterceptedService::new(reflection()?, with_header))
        .serve_with_incoming(caller::incoming(api, MAX_CONNECTIONS, metrics));

    tracing::info!(
        trust_domain = %config.trust_domain,
        socket = %config.workload_api.display(),
        workloads = agent.registry.current().workloads().count(),
        "ready"
    );
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let ended = tokio::select! {
        served = serving => served.context("the Workload API ended"),
        () = admin::serve(admin_socket, agent.clone()) => Ok(()),
        () = health => Ok(()),
        () = published => Ok(()),
        () = watch_workloads(agent.clone()) => Ok(()),
        () = watch_pods(agent.clone()) => Ok(()),
        () = rotate(agent.clone()) => Ok(()),
        () = listen(kernel, agent.clone()) => Ok(()),
        () = follow_federation(agent) => Ok(()),
        () = socket_vanished(&config) => Err(anyhow::anyhow!(
            "the socket `{}` was removed from under the agent",
            config.workload_api.display()
        )),
        () = stop => Ok(()),
    };
    for (socket, own) in [&config.workload_api, &config.admin]
        .into_iter()
        .zip(own_sockets)
    {
        // Somebody else's may be there by now.
        if crate::attest::inode_of(socket) == own {
            let _ = std::fs::remove_file(socket);
        }
    }
    ended
}

fn with_header(request: Request<()>) -> Result<Request<()>, Status> {
    admission::has_header(&request).map(|()| request)
}

/// What is served here, told to tools such as grpcurl.
fn reflection() -> anyhow::Result<ServerReflectionServer<impl ServerReflection>> {
    let mut builder = tonic_reflection::server::Builder::configure();
    for contract in postern_proto::DESCRIPTORS {
        builder = builder.register_encoded_file_descriptor_set(contract);
    }
    Ok(builder.build_v1()?)
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
    let options = Options::new(config.trust_domain.clone());
    let store = Store::open(&config.state)?;
    let registry = Registry::open(config.workloads.clone(), options, Some(store));
    let registry = registry.map_err(|error| match error {
        RegistryError::Read(error) => {
            anyhow::Error::from(error).context("the Workload documents (`workloads.directory`)")
        }
        mistakes => anyhow::Error::from(mistakes),
    })?;
    metrics.workloads_current.set(1);
    let policies = match &config.policies {
        Some(told) => {
            let options = Options {
                namespace: told.namespace.clone(),
                ..Options::new(config.trust_domain.clone())
            };
            let folder = told.directory.clone();
            let opened = Policies::open(folder, options, &registry.current());
            Some(opened.context("the policies (`policies.directory`)")?)
        }
        None => None,
    };
    let federation = Federation::open(config.federation.clone(), config.state.join("federated"))
        .context("`federation`")?;
    let attestors = Attestors::configured(&config.attestors);
    let ledger = Ledger::open(&config.state, SystemTime::now())
        .context("the ledger of issued SVIDs (`issued.jsonl` in `stateDir`)")?;
    Ok(Agent::new(Parts {
        attestors,
        registry,
        authority,
        federation,
        policies,
        ledger,
        metrics,
        reattest: config.reattest,
    }))
}

/// Reads the folders of Workloads and policies again whenever they look different.
async fn watch_workloads(agent: Arc<Agent>) {
    let look = |agent: &Agent| {
        let policies = agent.policies.as_ref();
        let policies = policies.map(|policies| Fingerprint::of(policies.folder()));
        (Fingerprint::of(agent.registry.folder()), policies)
    };
    // Read once more at the start: something may have changed since.
    let mut seen = Default::default();
    let mut every = interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let now = look(&agent);
        if now == seen {
            continue;
        }
        let reloaded = agent.registry.reload().and_then(|workloads| {
            let policies = agent.policies.as_ref();
            policies.map_or(Ok(()), |policies| {
                policies.reload(&agent.registry.current())
            })?;
            Ok(workloads)
        });
        // What was good is told, whatever became of the rest.
        agent.announce_documents();
        // What could not be read for a moment is tried again.
        if !matches!(
            reloaded,
            Err(RegistryError::Read(_) | RegistryError::Store(_))
        ) {
            seen = now;
        }
        match reloaded {
            Ok(workloads) => {
                agent.metrics.workloads_current.set(1);
                tracing::info!(workloads, "workloads in force");
            }
            Err(error) => {
                agent.metrics.workloads_current.set(0);
                agent.metrics.reloads_failed.inc();
                tracing::error!(%error, "the documents were refused, the last good ones stay");
            }
        }
    }
}

/// Looks at every pod that holds an identity, again and again.
async fn watch_pods(agent: Arc<Agent>) {
    let mut every = interval(agent.reattest);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let agent = agent.clone();
        let round = tokio::task::spawn_blocking(move || agent.watch_pods(SystemTime::now()));
        if round.await.is_err() {
            tracing::error!("a round of watching the pods failed");
        }
    }
}

/// Passes on what the kernel tells of processes, if it does.
async fn listen(kernel: Option<monitor::Kernel>, agent: Arc<Agent>) {
    if let Some(kernel) = kernel
        && let Err(error) = kernel.tell(&agent.followed).await
    {
        tracing::warn!(%error, "the kernel tells no more of processes; the timer remains");
    }
    std::future::pending().await
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

/// How soon a changed document is seen.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// No request of the Workload API is larger.
const MAX_REQUEST_BYTES: usize = 64 << 10;

const MAX_CONNECTIONS: usize = 8_192;
const MAX_STREAMS_OF_CONNECTION: u32 = 256;
