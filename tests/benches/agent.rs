//! What an identity costs: `cargo bench -p postern-tests --bench agent`.
//!
//! One agent in a folder of its own, this program as its workloads: it starts itself again for
//! processes and sessions of their own. The agent's processor time is read from the kernel, so that
//! what the clients cost does not count. The peer of a fetch is the health check on the same socket:
//! the same gRPC, without attestation and without an identity. Bounded; loopback is not used.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking, and prints its figures"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use postern_proto::workload_api::{
    X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use postern_tests::world::World;
use tokio::net::UnixStream;
use tonic::{
    Request, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    match words.as_slice() {
        [_, "first", socket] => runtime.block_on(first(Path::new(socket))),
        [_, "check", socket] => runtime.block_on(first_check(Path::new(socket))),
        [_, "streams", socket, number] => {
            runtime.block_on(streams(Path::new(socket), number.parse().unwrap()));
        }
        _ => runtime.block_on(measure()),
    }
}

async fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", value);
    request
}

async fn open(channel: &Channel) -> Streaming<X509svidResponse> {
    let mut client =
        SpiffeWorkloadApiClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let stream = client.fetch_x509svid(request(X509svidRequest {})).await;
    stream.unwrap().into_inner()
}

/// A process that asks once, and says how long it took in microseconds.
async fn first(socket: &Path) {
    let began = Instant::now();
    let mut stream = open(&connect(socket).await).await;
    stream.message().await.unwrap().unwrap();
    println!("{}", began.elapsed().as_micros());
}

/// The same with a health check: what a fresh process and a new connection cost by themselves.
async fn first_check(socket: &Path) {
    let began = Instant::now();
    check(&connect(socket).await).await;
    println!("{}", began.elapsed().as_micros());
}

/// A process that holds streams, says `open` when all have their first message, and then a line for
/// every further one.
async fn streams(socket: &Path, number: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    // More than the agent sends in one round.
    let (sender, mut messages) = tokio::sync::mpsc::channel(16 * number);
    for _ in 0..number.div_ceil(64) {
        let channel = connect(socket).await;
        for _ in 0..number.min(64) {
            let mut stream = open(&channel).await;
            stream.message().await.unwrap().unwrap();
            let sender = sender.clone();
            tasks.spawn(async move {
                while let Ok(Some(_)) = stream.message().await {
                    let _ = sender.send(()).await;
                }
            });
        }
    }
    println!("open");
    while messages.recv().await.is_some() {
        println!("message");
        std::io::stdout().flush().unwrap();
    }
}

/// Processor time of a process, user and system.
fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next().unwrap().parse::<u64>().unwrap();
    // USER_HZ is 100 on Linux.
    Duration::from_millis((ticks() + ticks()) * 10)
}

/// Resident memory of a process in KiB.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn percentile(sorted: &[u128], percent: usize) -> u128 {
    let place = (sorted.len() * percent / 100).min(sorted.len() - 1);
    *sorted.get(place).unwrap()
}

fn workloads(number: usize, more: &str) -> String {
    let uid = rustix::process::geteuid().as_raw();
    let one = |number: usize| {
        format!(
            "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: w{number}}}\n\
             spec: {{spiffeID: 'spiffe://example.org/w{number}', selectors: ['unix:uid:{uid}'{more}]}}\n---\n"
        )
    };
    (0..number).map(one).collect()
}

struct Agent {
    world: World,
    socket: PathBuf,
    pid: u32,
}

impl Agent {
    fn start(workloads: &str, more: &str) -> Self {
        let mut world = World::new().unwrap();
        let socket = world.agent_with(workloads, more).unwrap();
        let pid = world.pid("agent").unwrap();
        Self { world, socket, pid }
    }

    /// This program again, in a session of its own, which to the agent is a pod of its own. `setsid` becomes
    /// it, since it leads no group, so that the child that is ended is this program.
    fn child(&self, words: &[&str]) -> Child {
        let mut command = Command::new("setsid");
        command.arg(std::env::current_exe().unwrap());
        let (what, rest) = words.split_first().unwrap();
        command.arg(what).arg(&self.socket).args(rest);
        command.stdout(Stdio::piped());
        command.spawn().unwrap()
    }
}

async fn measure() {
    fetches().await;
    first_fetches();
    memory_of_svids();
    many_streams();
    idle();
}

/// Fetches by a process that the agent knows, against health checks on the same socket.
async fn fetches() {
    let agent = Agent::start(&workloads(1, ""), "");
    let channel = connect(&agent.socket).await;
    let mut each = Vec::new();
    for round in 0..2 {
        for fetch in [true, false] {
            let before = processor_time(agent.pid);
            for _ in 0..FETCHES {
                if fetch {
                    open(&channel).await.message().await.unwrap().unwrap();
                } else {
                    check(&channel).await;
                }
            }
            let spent = processor_time(agent.pid) - before;
            if round > 0 {
                each.push(spent.as_secs_f64() / f64::from(FETCHES));
            }
        }
    }
    let [fetch, check] = each.try_into().unwrap();
    println!(
        "warm fetch, attested anew: {:.0} us of the agent, {:.0} a second and core; health check \
         {:.0} us; ratio {:.1}",
        fetch * 1e6,
        1.0 / fetch,
        check * 1e6,
        fetch / check
    );
    let before = processor_time(agent.pid);
    for _ in 0..TOKENS {
        token(&channel).await;
    }
    let spent = (processor_time(agent.pid) - before).as_secs_f64() / f64::from(TOKENS);
    println!(
        "JWT-SVID, attested and signed anew: {:.0} us of the agent, {:.0} a second and core",
        spent * 1e6,
        1.0 / spent
    );
}

/// Asks the health protocol: its messages are small enough to be written by hand.
async fn check(channel: &Channel) {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidRequest>::default();
    grpc.unary(request(X509svidRequest {}), path, codec)
        .await
        .unwrap();
}

async fn token(channel: &Channel) {
    let mut client = SpiffeWorkloadApiClient::new(channel.clone());
    let asked = postern_proto::workload_api::JwtsvidRequest {
        audience: vec!["benchmark".into()],
        spiffe_id: String::new(),
    };
    client.fetch_jwtsvid(request(asked)).await.unwrap();
}

/// The first fetch of processes that the agent has never seen, each in a pod of its own.
fn first_fetches() {
    let agent = Agent::start(&workloads(1, ""), "");
    let mut all = [Vec::new(), Vec::new()];
    for _ in 0..PROCESSES {
        for (what, times) in ["first", "check"].iter().zip(&mut all) {
            let output = agent.child(&[what]).wait_with_output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            times.push(text.trim().parse::<u128>().unwrap());
        }
    }
    all.iter_mut().for_each(|times| times.sort_unstable());
    let [first, check] = &all;
    println!(
        "first fetch of a process, from connect to the identity in hand: p50 {} us, p99 {} us; first \
         health check: p50 {} us, p99 {} us",
        percentile(first, 50),
        percentile(first, 99),
        percentile(check, 50),
        percentile(check, 99)
    );
}

/// What one more SVID costs that is kept ready: each of many pods holds a hundred of them. What a message
/// takes while it is sent has been taken once before, by the first pod.
fn memory_of_svids() {
    let agent = Agent::start(&workloads(100, ""), "reattest: {every: 60s}\n");
    let mut children = Vec::new();
    let mut before = 0;
    for number in 0..=CHILDREN {
        let mut child = agent.child(&["streams", "1"]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "open");
        if number == 0 {
            before = memory(agent.pid);
        }
        children.push((child, lines));
    }
    let number = u64::from(CHILDREN) * 100;
    println!(
        "{number} SVIDs in use: {} bytes each, with their place in the ledger",
        (memory(agent.pid) - before) * 1024 / number
    );
    for (mut child, _) in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Streams of twenty pods: what they hold, and how long until all have a new SVID.
fn many_streams() {
    let agent = Agent::start(&workloads(1, ""), "reattest: {every: 60s}\n");
    let before = memory(agent.pid);
    let mut children: Vec<(Child, _)> = (0..CHILDREN)
        .map(|_| {
            let mut child = agent.child(&["streams", "250"]);
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            (child, lines)
        })
        .collect();
    for (_, lines) in &mut children {
        assert_eq!(lines.next().unwrap().unwrap(), "open");
    }
    let number = u64::from(CHILDREN) * 250;
    let after = memory(agent.pid);
    println!(
        "{number} idle streams: {} bytes each",
        (after - before) * 1024 / number
    );
    let shown = agent.world.admin(&["authority", "show", "--json"]).unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let old = shown.pointer("/0/id").unwrap().as_str().unwrap().to_owned();
    for words in [vec!["prepare"], vec!["activate"]] {
        agent
            .world
            .admin(&[&["authority"], words.as_slice()].concat())
            .unwrap();
        for (_, lines) in &mut children {
            // Each stream hears of the new bundle.
            if words == ["prepare"] {
                lines.by_ref().take(250).for_each(drop);
            }
        }
    }
    let (began, spent) = (Instant::now(), processor_time(agent.pid));
    agent.world.admin(&["authority", "taint", &old]).unwrap();
    for (_, lines) in &mut children {
        lines.by_ref().take(250).for_each(drop);
    }
    println!(
        "{number} streams in {CHILDREN} pods rotate at once: {} ms until the last has its new SVID, {} \
         ms of the agent, {} KiB resident at the end",
        began.elapsed().as_millis(),
        (processor_time(agent.pid) - spent).as_millis(),
        memory(agent.pid)
    );
    for (mut child, _) in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// A node at rest: a thousand Workloads, and a stream in each of a hundred pods.
fn idle() {
    let own = workloads(1, "");
    let strangers = workloads(1000, ", 'unix:path:/nobody'").replace("name: w", "name: x");
    let agent = Agent::start(&(own + &strangers), "reattest: {every: 5s}\n");
    let mut children: Vec<(Child, _)> = (0..100)
        .map(|_| {
            let mut child = agent.child(&["streams", "1"]);
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            (child, lines)
        })
        .collect();
    for (_, lines) in &mut children {
        assert_eq!(lines.next().unwrap().unwrap(), "open");
    }
    let (began, spent) = (Instant::now(), processor_time(agent.pid));
    std::thread::park_timeout(Duration::from_secs(20));
    let used = (processor_time(agent.pid) - spent).as_secs_f64() / began.elapsed().as_secs_f64();
    println!(
        "at rest, 1001 Workloads and 100 pods looked at every 5 s: {:.2} % of a core, {} KiB resident",
        used * 100.0,
        memory(agent.pid)
    );
    for (mut child, _) in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

const FETCHES: u32 = 5_000;
const TOKENS: u32 = 400;
const PROCESSES: usize = 300;
const CHILDREN: u32 = 20;
