//! How long a start takes, from the process's own: `cargo bench --workspace --bench start`.
//!
//! Agent: until a workload, which asks from the first moment on, has its first SVID; with an empty
//! state, so that the authority is made too, and with that of one that was killed. Proxy: until its
//! readiness is told, with an identity from a running agent and policies from a folder. The peers,
//! in turns in the same run: nginx with TLS until its first answer, and either program that only
//! tells its version. Machines are noisy: quotients say more than times, and processor time more
//! than that of the wall.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking, and prints its figures"
)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use postern_proto::workload_api::{
    X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use postern_tests::{
    binaries,
    certificates::Authority,
    world::{World, free_address},
};
use tokio::net::UnixStream;
use tonic::{Request, metadata::MetadataValue, transport::Endpoint};

/// Something that is started, and how long that took in each round.
struct Start {
    name: &'static str,
    run: Box<dyn Fn() -> Took>,
    all: Vec<Took>,
}

#[derive(Debug, Clone, Copy)]
struct Took {
    wall: Duration,
    /// What its threads ran; nothing is known of a process that has ended.
    processor: Duration,
}

fn main() {
    let site = Site::new();
    let start = |name, run: fn(&Site) -> Took| {
        let site = site.clone();
        Start {
            name,
            run: Box::new(move || run(&site)),
            all: Vec::new(),
        }
    };
    let mut starts = [
        start("nginx, to its first answer over TLS", nginx),
        start("`postern-agent --version`", |site| version(site, AGENT)),
        start("agent with a new authority, to the first SVID", new_agent),
        start("agent that was killed before, to the first SVID", old_agent),
        start("`postern-proxy --version`", |site| version(site, PROXY)),
        start("proxy, to ready", proxy),
    ];
    for _ in 0..ROUNDS {
        for one in &mut starts {
            let took = (one.run)();
            one.all.push(took);
        }
    }
    println!("{ROUNDS} rounds, programs of {}", site.programs.display());
    println!(
        "| from the start of the process | p50 ms | best ms | worst ms | quotient to nginx | processor ms |"
    );
    println!("|---|---|---|---|---|---|");
    let mut peer = None;
    for one in &starts {
        let walls = sorted(one.all.iter().map(|took| took.wall));
        let processors = sorted(one.all.iter().map(|took| took.processor));
        let of = |times: &[f64], place: usize| times.get(place).copied().unwrap_or_default();
        let [best, median, worst] = [0, ROUNDS / 2, ROUNDS - 1].map(|place| of(&walls, place));
        println!(
            "| {} | {median:.1} | {best:.1} | {worst:.1} | {:.1} | {:.1} |",
            one.name,
            median / *peer.get_or_insert(median),
            of(&processors, ROUNDS / 2)
        );
    }
}

/// In milliseconds.
fn sorted(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
    times.sort_unstable_by(f64::total_cmp);
    times
}

/// Files, and an agent for the proxies.
#[derive(Clone)]
struct Site {
    folder: PathBuf,
    programs: &'static Path,
    /// Kept running until the end.
    _world: std::rc::Rc<World>,
}

impl Site {
    fn new() -> Self {
        let mut world = World::new().unwrap();
        let folder = world.path().to_owned();
        world.agent(&workload()).unwrap();
        let authority = Authority::new("example.org").unwrap();
        let id = "spiffe://example.org/web";
        authority.write_leaf(&folder, "web", id, |_| {}).unwrap();
        let policies = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                        metadata: {name: all}\nspec: {rules: [{}]}\n---\n";
        let policies = policies.to_owned() + &workload();
        world.write("policies/all.yaml", &policies).unwrap();
        Self {
            folder,
            programs: binaries().unwrap(),
            _world: std::rc::Rc::new(world),
        }
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Running {
        let began = Instant::now();
        let child = Command::new(program)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Running { child, began }
    }
}

fn workload() -> String {
    let uid = rustix::process::geteuid().as_raw();
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web}}\n\
         spec: {{spiffeID: 'spiffe://example.org/web', selectors: ['unix:uid:{uid}']}}\n"
    )
}

/// Ended when nobody measures it any more.
struct Running {
    child: Child,
    began: Instant,
}

impl Running {
    /// Asks again and again, and tells how long it took until there was an answer.
    fn until<T>(mut self, mut ask: impl FnMut() -> Option<T>) -> Took {
        while ask().is_none() {
            assert!(self.began.elapsed() < LONGEST, "it never answers");
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}");
            std::thread::park_timeout(PAUSE);
        }
        Took {
            wall: self.began.elapsed(),
            processor: self.processor(),
        }
    }

    /// Of the threads that are there, to the nanosecond.
    fn processor(&self) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let ran = threads.flatten().filter_map(|thread| {
            let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            stat.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(ran.sum())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn version(site: &Site, program: &str) -> Took {
    let mut running = site.run(&site.programs.join(program), &["--version"]);
    assert!(running.child.wait().unwrap().success());
    Took {
        wall: running.began.elapsed(),
        processor: Duration::ZERO,
    }
}

fn new_agent(site: &Site) -> Took {
    let state = site.folder.join("start/state");
    if state.exists() {
        fs::remove_dir_all(&state).unwrap();
    }
    old_agent(site)
}

fn old_agent(site: &Site) -> Took {
    let here = site.folder.join("start");
    fs::create_dir_all(here.join("workloads")).unwrap();
    fs::write(here.join("workloads/web.yaml"), workload()).unwrap();
    let socket = here.join("public/agent.sock");
    let config = format!(
        "trustDomain: example.org\nstateDir: state\n\
         workloadApi: {{socket: 'unix://{}'}}\nadmin: {{socket: 'unix://{}'}}\nhealth: {{listen: '127.0.0.1:0'}}\n",
        socket.display(),
        here.join("admin/admin.sock").display()
    );
    fs::write(here.join("agent.yaml"), config).unwrap();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    let program = site.programs.join(AGENT);
    let running = site.run(&program, &["run", "--config", "start/agent.yaml"]);
    running.until(|| runtime.block_on(fetch(&socket)))
}

/// The first SVID, if there is somebody to ask.
async fn fetch(socket: &Path) -> Option<()> {
    let socket = socket.to_owned();
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .ok()?;
    let mut request = Request::new(X509svidRequest {});
    let value = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", value);
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let mut stream = client.fetch_x509svid(request).await.ok()?.into_inner();
    let answer = stream.message().await.ok()??;
    (answer.svids.len() == 1).then_some(())
}

fn proxy(site: &Site) -> Took {
    let metrics = free_address().unwrap();
    let config = format!(
        "identity: {{workloadApi: 'unix://{}'}}\npolicies: {{directory: policies}}\nworkloads: {{directory: policies}}\n\
         inbound: {{listen: '{}', forward: '127.0.0.1:9'}}\nadmin: {{listen: '{}'}}\n\
         metrics: {{listen: '{metrics}'}}\naccessLog: {{path: /dev/null}}\n",
        site.folder.join("public/agent.sock").display(),
        free_address().unwrap(),
        free_address().unwrap(),
    );
    fs::write(site.folder.join("proxy.yaml"), config).unwrap();
    let program = site.programs.join(PROXY);
    let running = site.run(&program, &["run", "--config", "proxy.yaml"]);
    running.until(|| is_ready(metrics))
}

fn is_ready(metrics: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect(metrics).ok()?;
    let ask = "GET /healthz/ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(())
}

fn nginx(site: &Site) -> Took {
    let address = free_address().unwrap();
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr; events {{}}\n\
         http {{ access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; \
         uwsgi_temp_path u; scgi_temp_path s;\n\
         server {{ listen {address} ssl; ssl_certificate web.crt; ssl_certificate_key web.key; return 204; }} }}\n"
    );
    fs::write(site.folder.join("nginx.conf"), config).unwrap();
    let folder = site.folder.display().to_string();
    let arguments = ["-e", "stderr", "-p", &folder, "-c", "nginx.conf"];
    let running = site.run(Path::new("nginx"), &arguments);
    // Its sockets are open before it serves, and a handshake needs it.
    running.until(|| shakes_hands(address))
}

/// Whether a `ClientHello` is answered.
fn shakes_hands(address: SocketAddr) -> Option<()> {
    let roots = rustls::RootCertStore::empty();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().ok()?;
    let mut client = rustls::ClientConnection::new(config.into(), name).ok()?;
    let mut stream = TcpStream::connect(address).ok()?;
    client.write_tls(&mut stream).ok()?;
    (client.read_tls(&mut stream).ok()? > 0).then_some(())
}

const AGENT: &str = "postern-agent";
const PROXY: &str = "postern-proxy";
const ROUNDS: usize = 30;
const PAUSE: Duration = Duration::from_micros(500);
const LONGEST: Duration = Duration::from_secs(20);
