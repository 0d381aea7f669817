//! The whole road: app → proxy → mutual TLS → proxy → app, with identities from a real agent.

mod bodies;
mod grpc;
mod withdrawn;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use postern_tests::{
    binaries, eventually, run,
    world::{App, World, free_address},
};
use rustix::process::Signal;

/// Two pods on loopback. The programs of the two proxies are two links to the same file, which is
/// how the agent tells them apart.
struct Road {
    world: World,
    app: App,
    /// Where the frontend's app reaches web.
    web: SocketAddr,
    /// Where the frontend's app would reach a database that it may not reach.
    database: SocketAddr,
    web_health: SocketAddr,
}

/// In which order the daemons start.
#[derive(PartialEq, Eq)]
enum Start {
    AgentFirst,
    AgentMissing,
}

impl Road {
    fn new(start: &Start, svid_ttl: &str) -> Self {
        let app = App::start().unwrap();
        let address = app.address;
        Self::to(app, address, start, svid_ttl)
    }

    /// With another app than `app` behind web.
    fn to(app: App, address: SocketAddr, start: &Start, svid_ttl: &str) -> Self {
        let mut world = World::new().unwrap();
        let port = address.port();
        for pod in ["frontend", "web"] {
            link(&binaries().unwrap().join("postern-proxy"), &world, pod);
        }
        let workloads = ["frontend", "web", "database"].map(|name| {
            format!(
                "apiVersion: postern.dev/v1\nkind: Workload\n\
                 metadata: {{name: {name}, labels: {{app: {name}}}}}\n\
                 spec:\n  serviceAccount: {name}\n  svidTTL: {svid_ttl}\n  \
                 selectors: ['unix:path:{}']\n  addresses: [127.0.0.2]\n  \
                 ports: [{{name: http, port: {}}}]\n",
                world.path().join(name).display(),
                if name == "database" { 1 } else { port },
            )
        });
        let workloads = workloads.join("---\n");
        world
            .write("policies/rules.yaml", &rules(port, "[\"GET\"]"))
            .unwrap();
        if *start == Start::AgentFirst {
            world.agent(&workloads).unwrap();
        }
        world.write("directory/workloads.yaml", &workloads).unwrap();
        let [web, database, frontend_in, web_health] = [(); 4].map(|()| free_address().unwrap());
        // An agent without privileges sees only what any process of its user may see.
        let harden = match rustix::process::geteuid().is_root() {
            true => "",
            false => "harden: {insecureAllowDumpable: true}\n",
        };
        let common = |health: SocketAddr, name: &str| {
            format!(
                "identity: {{workloadApi: 'unix://{}/public/agent.sock'}}\n\
                 policies: {{directory: policies}}\nworkloads: {{directory: directory}}\n\
                 admin: {{listen: '{}'}}\nmetrics: {{listen: '{health}'}}\n\
                 accessLog: {{path: {name}-access.log}}\ndrain: 1s\n{harden}",
                world.path().display(),
                free_address().unwrap(),
            )
        };
        let of_web = format!(
            "{}inbound: {{listen: '127.0.0.2:{port}', forward: '{address}'}}\n",
            common(web_health, "web"),
        );
        let of_frontend = format!(
            "{}inbound: {{listen: '{frontend_in}', forward: '127.0.0.1:9'}}\n\
             outbound:\n  listeners:\n    - {{listen: '{web}', to: default/web, port: http}}\n    \
             - {{listen: '{database}', to: default/database, port: http}}\n",
            common(free_address().unwrap(), "frontend"),
        );
        for (pod, config) in [("web", &of_web), ("frontend", &of_frontend)] {
            let program = world.path().join(pod);
            world.proxy_at(pod, &program, config).unwrap();
            if *start == Start::AgentFirst {
                world.said(pod, "ready").unwrap();
            }
        }
        Self {
            world,
            app,
            web,
            database,
            web_health,
        }
    }

    fn metric(&self, name: &str) -> Option<String> {
        let url = format!("http://{}/metrics", self.web_health);
        let output = run("curl", &["-s", &url]).unwrap();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .strip_prefix(' ')
                    .map(str::to_owned)
            })
    }
}

fn rules(port: u16, methods: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: web}}}}\n  policyTypes: [Ingress]\n  ingress:\n    \
         - {{from: [{{podSelector: {{matchLabels: {{app: frontend}}}}}}], ports: [{{port: {port}}}]}}\n\
         ---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: frontend}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: frontend}}}}\n  policyTypes: [Egress]\n  egress:\n    \
         - {{to: [{{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{{port: {port}}}]}}\n\
         ---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: web}}\n\
         spec:\n  selector: {{matchLabels: {{app: web}}}}\n  rules:\n    \
         - from: [{{source: {{principals: ['example.org/ns/default/sa/frontend']}}}}]\n      \
         to: [{{operation: {{methods: {methods}, paths: ['/api/*']}}}}]\n"
    )
}

pub(super) fn link(program: &Path, world: &World, name: &str) {
    let place = world.path().join(name);
    // A link, so that no copy is made; across file systems there is no other way than a copy.
    if fs::hard_link(program, &place).is_err() {
        postern_tests::copy_program(program, &place).unwrap();
    }
}

fn curl(address: SocketAddr, arguments: &[&str], path: &str) -> u16 {
    let url = format!("http://{address}{path}");
    let mut all = vec!["-s", "-o", "/dev/null", "-w", "%{http_code}"];
    all.extend(arguments);
    all.push(&url);
    let output = run("curl", &all).unwrap();
    String::from_utf8_lossy(&output.stdout)
        .parse()
        .unwrap_or_default()
}

/// One request on a connection of its own. An error, if it was not answered with 200.
fn get(address: SocketAddr) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).map_err(text)?;
    stream
        .write_all(b"GET /api/orders HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
        .map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    match answer.starts_with("HTTP/1.1 200 ") {
        true => Ok(()),
        false => Err(answer),
    }
}

#[test]
fn an_app_reaches_what_it_may_reach_and_nothing_else() {
    let road = Road::new(&Start::AgentFirst, "1h");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        assert_eq!(curl(road.web, &[version], "/api/orders"), 200);
        assert_eq!(curl(road.web, &[version, "-X", "PUT"], "/api/orders"), 403);
        assert_eq!(curl(road.web, &[version], "/admin"), 403);
        assert_eq!(curl(road.database, &[version], "/api/orders"), 403);
    }
    assert_eq!(
        road.app.reached(),
        2,
        "only what was allowed reached the app"
    );
    // Both sides have written down who asked, and which line decided.
    let log = |name: &str| fs::read_to_string(road.world.path().join(name)).unwrap_or_default();
    let inbound = "spiffe://example.org/ns/default/sa/frontend";
    eventually("web's access log", || {
        log("web-access.log").contains(inbound).then_some(())
    })
    .unwrap();
    eventually("the frontend's access log", || {
        log("frontend-access.log")
            .contains("rules.yaml")
            .then_some(())
    })
    .unwrap();
}

#[test]
fn rotation_loses_no_request() {
    // FAULTS 132
    let road = Road::new(&Start::AgentFirst, "4s");
    let expires = || road.metric("postern_proxy_identity_expires_seconds");
    let mut seen = vec![eventually("the identity's end", expires).unwrap()];
    eventually("three identities", || {
        get(road.web).unwrap();
        let now = expires()?;
        if !seen.contains(&now) {
            seen.push(now);
        }
        (seen.len() > 2).then_some(())
    })
    .unwrap();
}

#[test]
fn a_server_with_another_identity_is_not_spoken_to() {
    // FAULTS 70
    let road = Road::new(&Start::AgentFirst, "1h");
    assert_eq!(curl(road.web, &[], "/api/orders"), 200);
    let path = road.world.path().join("directory/workloads.yaml");
    let text = fs::read_to_string(&path).unwrap();
    // The directory now says that another service account serves the address.
    let other = text.replace("serviceAccount: web", "serviceAccount: other");
    road.world
        .write("directory/workloads.yaml", &other)
        .unwrap();
    eventually("the refusal", || {
        (curl(road.web, &[], "/api/orders") != 200).then_some(())
    })
    .unwrap();
    let refusal = "another identity serves the destination";
    road.world.said("frontend", refusal).unwrap();
}

#[test]
fn a_dot_in_the_name_of_an_identity_is_a_dot() {
    // FAULTS 113
    let road = Road::new(&Start::AgentFirst, "1h");
    assert_eq!(curl(road.web, &[], "/api/orders"), 200);
    let text = rules(road.app.address.port(), "[\"GET\"]");
    for other in ["fron.end", "fronten.", ".*", "frontend.", "f[r]ontend"] {
        let changed = text.replace("sa/frontend'", &format!("sa/{other}'"));
        assert_ne!(changed, text);
        road.world.write("policies/rules.yaml", &changed).unwrap();
        let refused = || (curl(road.web, &[], "/api/orders") == 403).then_some(());
        eventually(other, refused).unwrap();
        road.world.write("policies/rules.yaml", &text).unwrap();
        let allowed = || (curl(road.web, &[], "/api/orders") == 200).then_some(());
        eventually("what holds again", allowed).unwrap();
    }
}

#[test]
fn a_policy_that_is_written_in_place_is_empty_for_a_moment_and_denies_nothing() {
    let road = Road::new(&Start::AgentFirst, "1h");
    get(road.web).unwrap();
    let path = road.world.path().join("policies/rules.yaml");
    let text = fs::read_to_string(&path).unwrap();
    // Longer than the proxies' looks at the folder are apart: each of them meets it empty.
    let end = Instant::now() + Duration::from_secs(4);
    let mut rounds = 0;
    while Instant::now() < end {
        let emptied = Instant::now();
        fs::write(&path, "").unwrap();
        let mut answers = Vec::new();
        while emptied.elapsed() < Duration::from_millis(30) {
            answers.push(get(road.web));
        }
        fs::write(&path, &text).unwrap();
        // On a busy machine it may have been empty for so long that it was meant.
        if emptied.elapsed() < Duration::from_millis(90) {
            answers.into_iter().for_each(Result::unwrap);
            rounds += 1;
        } else {
            eventually("the text to hold", || get(road.web).ok()).unwrap();
        }
    }
    assert!(rounds > 0, "it was never empty for a moment only");
    // And what it says in the end is what holds.
    fs::write(&path, "").unwrap();
    eventually("the refusal", || get(road.web).err()).unwrap();
}

#[test]
fn a_changed_policy_holds_for_connections_that_are_open() {
    // FAULTS 124
    let road = Road::new(&Start::AgentFirst, "1h");
    let mut stream = TcpStream::connect(road.web).unwrap();
    let mut ask = || {
        stream
            .write_all(b"GET /api/orders HTTP/1.1\r\nhost: web\r\n\r\n")
            .ok()?;
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer).ok().filter(|read| *read > 0)?;
        String::from_utf8_lossy(answer.get(9..12)?)
            .parse::<u16>()
            .ok()
            .filter(|_| read > 12)
    };
    assert_eq!(ask(), Some(200));
    let port = road.app.address.port();
    road.world
        .write("policies/rules.yaml", &rules(port, "[\"POST\"]"))
        .unwrap();
    eventually("the refusal", || (ask() != Some(200)).then_some(())).unwrap();
    assert_eq!(curl(road.web, &[], "/api/orders"), 403);
    assert_eq!(curl(road.web, &["-X", "POST"], "/api/orders"), 200);
}

#[test]
fn a_proxy_waits_for_its_agent_and_says_so() {
    // FAULTS 130
    let mut road = Road::new(&Start::AgentMissing, "1h");
    road.world
        .said(
            "web",
            "no answer from the Workload API; is the agent running?",
        )
        .unwrap();
    let ready = format!("http://{}/healthz/ready", road.web_health);
    let told = run("curl", &["-s", "-w", "%{http_code}", &ready]).unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("identity") && told.ends_with("503"), "{told}");
    assert!(get(road.web).is_err(), "nothing passes without an identity");
    assert_eq!(road.app.reached(), 0);

    let workloads = fs::read_to_string(road.world.path().join("directory/workloads.yaml")).unwrap();
    road.world.agent(&workloads).unwrap();
    road.world.said("frontend", "ready").unwrap();
    eventually("the whole road", || get(road.web).ok()).unwrap();
}

#[test]
fn the_road_stays_open_while_the_agent_is_away_and_its_root_survives() {
    // FAULTS 135
    let mut road = Road::new(&Start::AgentFirst, "1h");
    let state = road.world.path().join("state/authority.json");
    let before = fs::read(&state).unwrap();
    for _ in 0..3 {
        road.world.signal("agent", Signal::KILL).unwrap();
        road.world.ended("agent").unwrap();
        get(road.web).unwrap();
        let workloads = road.world.path().join("directory/workloads.yaml");
        road.world
            .agent(&fs::read_to_string(workloads).unwrap())
            .unwrap();
        get(road.web).unwrap();
    }
    assert_eq!(
        fs::read(&state).unwrap(),
        before,
        "the authority is the same"
    );
}

#[test]
fn without_the_agent_the_road_is_open_until_the_identities_end_and_closed_from_then_on() {
    // FAULTS 131
    let mut road = Road::new(&Start::AgentFirst, "6s");
    get(road.web).unwrap();
    road.world.signal("agent", Signal::KILL).unwrap();
    road.world.ended("agent").unwrap();
    get(road.web).unwrap();
    eventually("the end of the identities", || {
        get(road.web).is_err().then_some(())
    })
    .unwrap();
    let reached = road.app.reached();
    let open = curl(road.web, &[], "/api/orders");
    assert!(open == 0 || open == 503, "{open}");
    assert_eq!(
        road.app.reached(),
        reached,
        "nothing passes in plaintext either"
    );
    // And open again when it is back.
    let workloads = road.world.path().join("directory/workloads.yaml");
    let workloads = fs::read_to_string(workloads).unwrap();
    road.world.agent(&workloads).unwrap();
    eventually("the road to be open again", || get(road.web).ok()).unwrap();
}

/// Asks again and again over kept connections until it is told to stop; tells how often, and what
/// went wrong.
fn ask_steadily(to: SocketAddr, stop: &AtomicBool) -> (usize, Vec<String>) {
    let (mut asked, mut failed) = (0, Vec::new());
    let mut kept: Option<TcpStream> = None;
    while !stop.load(Ordering::Relaxed) {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => TcpStream::connect(to).unwrap(),
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        asked += 1;
        match ask_once(&mut stream) {
            Ok(true) => kept = Some(stream),
            Ok(false) => {}
            Err(problem) => failed.push(problem),
        }
        // About five hundred a second.
        std::thread::park_timeout(Duration::from_millis(2));
    }
    (asked, failed)
}

/// Tells whether the connection may be used again.
fn ask_once(stream: &mut TcpStream) -> Result<bool, String> {
    stream
        .write_all(b"GET /api/orders HTTP/1.1\r\nhost: web\r\n\r\n")
        .map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !answer.ends_with(b"hello\n") {
        match stream.read(&mut piece) {
            Ok(0) => return Err(format!("cut: {}", String::from_utf8_lossy(&answer))),
            Ok(read) => answer.extend_from_slice(piece.get(..read).unwrap()),
            Err(error) => return Err(error.to_string()),
        }
        if answer.starts_with(b"HTTP/1.1 ") && !answer.starts_with(b"HTTP/1.1 200") {
            return Err(String::from_utf8_lossy(&answer).into_owned());
        }
    }
    let text = String::from_utf8_lossy(&answer).to_lowercase();
    Ok(!text.contains("connection: close"))
}

/// Open descriptors and resident memory in KiB.
fn held(road: &Road, pod: &str) -> (usize, usize) {
    let pid = road.world.pid(pod).unwrap();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let resident = line.unwrap().split_whitespace().nth(1).unwrap();
    (open, resident.parse().unwrap())
}

#[test]
fn twenty_seconds_of_rotations_reloads_and_a_killed_agent_lose_no_request() {
    // FAULTS 132, 135
    rotations("6s", Duration::from_secs(20));
}

#[test]
#[ignore = "takes ten minutes: `cargo test --workspace --test all -- --ignored soak`"]
fn soak_ten_minutes_of_rotations_reloads_and_a_killed_agent_lose_no_request() {
    // FAULTS 132, 133, 135
    rotations("20s", Duration::from_secs(600));
}

/// Five hundred requests a second while certificates rotate, policies are read again every second,
/// and the agent is killed once: none fails, and memory and descriptors stay flat.
fn rotations(svid_ttl: &str, long: Duration) {
    let mut road = Road::new(&Start::AgentFirst, svid_ttl);
    let (web, stop) = (road.web, Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let caller = std::thread::spawn(move || ask_steadily(web, &stopped));
    let workloads = road.world.path().join("directory/workloads.yaml");
    let workloads = fs::read_to_string(workloads).unwrap();
    let policies = fs::read_to_string(road.world.path().join("policies/rules.yaml")).unwrap();
    let mut before = None;
    let end = Instant::now() + long;
    for round in 0.. {
        std::thread::park_timeout(Duration::from_secs(1));
        let changed = format!("{policies}# {round}\n");
        road.world.write("policies/rules.yaml", &changed).unwrap();
        if round == 4 {
            before = Some((held(&road, "web"), held(&road, "frontend")));
        }
        if round == 8 {
            road.world.signal("agent", Signal::KILL).unwrap();
            road.world.ended("agent").unwrap();
            road.world.agent(&workloads).unwrap();
        }
        if Instant::now() > end {
            break;
        }
    }
    let (before_web, before_frontend) = before.unwrap();
    for (pod, before) in [("web", before_web), ("frontend", before_frontend)] {
        let after = held(&road, pod);
        assert!(
            after.0 < before.0 + 20,
            "descriptors of {pod}: {before:?} {after:?}"
        );
        assert!(
            after.1 < before.1 + 8 * 1024,
            "memory of {pod}: {before:?} {after:?}"
        );
    }
    stop.store(true, Ordering::Relaxed);
    let (asked, failed) = caller.join().unwrap();
    let first = failed.first();
    assert!(failed.is_empty(), "{} of {asked}: {first:?}", failed.len());
    assert!(asked > 1_000, "{asked}");
}

#[test]
fn many_hosts_and_paths_make_no_more_metrics_and_each_request_one_line() {
    // FAULTS 122
    let road = Road::new(&Start::AgentFirst, "1h");
    let metrics = || {
        let url = format!("http://{}/metrics", road.web_health);
        let output = run("curl", &["-s", &url]).unwrap();
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    get(road.web).unwrap();
    assert_eq!(curl(road.web, &[], "/admin"), 403);
    let before = metrics();
    let mut stream = TcpStream::connect(road.web).unwrap();
    let mut answers = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut all, mut piece) = (Vec::new(), [0; 65536]);
        while let Ok(read @ 1..) = answers.read(&mut piece) {
            all.extend_from_slice(piece.get(..read).unwrap());
        }
        String::from_utf8_lossy(&all).matches("HTTP/1.1 ").count()
    });
    let many = 1_000;
    for number in 0..many {
        let close = match number + 1 == many {
            true => "connection: close\r\n",
            false => "",
        };
        let request = format!(
            "GET /api/{number}%0d%0a{{\"x\":1}} HTTP/1.1\r\nhost: host-{number}.test\r\n{close}\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
    }
    assert_eq!(reader.join().unwrap(), many);
    assert_eq!(metrics(), before, "as many series as before");
    let log = road.world.path().join("frontend-access.log");
    eventually("a line for each", || {
        let log = fs::read_to_string(&log).unwrap();
        (log.lines().count() == many + 2).then_some(())
    })
    .unwrap();
    for line in fs::read_to_string(&log).unwrap().lines() {
        let told: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(told.get("path").is_some(), "{line}");
    }
}
