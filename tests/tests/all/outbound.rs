//! The proxy's road out, towards upstreams that fail in every way: written in Python, behind mutual
//! TLS, so that nothing of Postern vouches for them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use postern_tests::{
    binaries,
    certificates::Authority,
    eventually, root, run,
    world::{World, free_address},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, SanType};

const WEB: &str = "spiffe://example.org/ns/default/sa/web";
const LIMIT_PROXY: &str = "postern_proxy_upstream_bounds_reached_total";

/// A proxy whose app reaches one Workload, `web`, at `out`.
struct Site {
    world: World,
    authority: Authority,
    out: SocketAddr,
    metrics: SocketAddr,
    port: u16,
    /// The process whose network is used, if it is not ours.
    space: Option<u32>,
}

/// A program, in a network of its own if there is one.
fn program(space: Option<u32>, name: impl AsRef<std::ffi::OsStr>) -> Command {
    match space {
        None => Command::new(name),
        Some(process) => {
            let mut command = Command::new("nsenter");
            command.args(["-n", "-m", "-t", &process.to_string(), "--"]);
            command.arg(name);
            command
        }
    }
}

impl Site {
    /// `addresses` are those of the Workload; `outbound` is more of that section.
    fn start(addresses: &str, outbound: &str) -> Self {
        Self::start_with(addresses, "", outbound)
    }

    fn start_with(addresses: &str, workload: &str, outbound: &str) -> Self {
        Self::start_in(World::new().unwrap(), None, addresses, workload, outbound)
    }

    fn start_in(
        mut world: World,
        space: Option<u32>,
        addresses: &str,
        workload: &str,
        outbound: &str,
    ) -> Self {
        let authority = Authority::new("example.org").unwrap();
        let frontend = "spiffe://example.org/ns/default/sa/frontend";
        authority
            .write_leaf(world.path(), "frontend", frontend, |_| {})
            .unwrap();
        authority
            .write_leaf(world.path(), "web", WEB, |_| {})
            .unwrap();
        world.write("bundle.crt", &authority.pem).unwrap();
        let port = free_address().unwrap().port();
        let of_frontend = "apiVersion: postern.dev/v1\nkind: Workload\n\
             metadata: {name: frontend, labels: {app: frontend}}\nspec: {serviceAccount: frontend}\n";
        let workloads = format!(
            "{of_frontend}---\napiVersion: postern.dev/v1\nkind: Workload\n\
             metadata: {{name: web, labels: {{app: web}}}}\nspec:\n  serviceAccount: web\n  \
             addresses: {addresses}\n  ports: [{{name: http, port: {port}}}]\n{workload}"
        );
        world.write("workloads/all.yaml", &workloads).unwrap();
        world.write("policies/egress.yaml", EGRESS).unwrap();
        let [out, metrics, admin, inbound] = [(); 4].map(|()| free_address().unwrap());
        let config = format!(
            "identity: {{files: {{certificate: frontend.crt, key: frontend.key, bundle: bundle.crt}}}}\n\
             policies: {{directory: policies}}\nworkloads: {{directory: workloads}}\n\
             inbound: {{listen: '{inbound}', forward: '127.0.0.1:9'}}\n\
             outbound:\n  listeners: [{{listen: '{out}', to: default/web, port: http}}]\n{outbound}\
             admin: {{listen: '{admin}'}}\nmetrics: {{listen: '{metrics}'}}\n\
             accessLog: {{path: access.log}}\ndrain: 1s\n"
        );
        let config = world.write("proxy.yaml", &config).unwrap();
        let mut command = program(space, binaries().unwrap().join("postern-proxy"));
        command.args(["run", "--config"]).arg(config);
        world.spawn("proxy", &mut command).unwrap();
        world.said("proxy", "ready").unwrap();
        Self {
            world,
            authority,
            out,
            metrics,
            port,
            space,
        }
    }

    /// Starts an upstream at an address of loopback, with a certificate of this name.
    fn upstream(&mut self, name: &str, address: &str, certificate: &str, kind: &str) {
        let script = match kind {
            "http2" => "tests/python/upstream2.py",
            _ => "tests/python/upstream.py",
        };
        let mut command = program(self.space, root().join("target/python/bin/python"));
        command.arg(root().join(script));
        command.args([address, &self.port.to_string()]);
        for file in [format!("{certificate}.crt"), format!("{certificate}.key")] {
            command.arg(self.world.path().join(file));
        }
        command.arg(self.world.path().join("bundle.crt")).arg(kind);
        self.world.spawn(name, &mut command).unwrap();
        self.told(name, "listening", 1);
    }

    /// The events of a kind that an upstream told.
    fn events(&self, upstream: &str, event: &str) -> Vec<String> {
        let log = fs::read_to_string(self.world.log(upstream)).unwrap_or_default();
        let wanted = format!("\"event\": \"{event}\"");
        let lines = log.lines().filter(|line| line.contains(&wanted));
        lines.map(str::to_owned).collect()
    }

    /// Waits until it told as many.
    #[track_caller]
    fn told(&self, upstream: &str, event: &str, count: usize) -> Vec<String> {
        let enough = || Some(self.events(upstream, event)).filter(|told| told.len() >= count);
        let log = || fs::read_to_string(self.world.log(upstream)).unwrap_or_default();
        let told = eventually(event, enough);
        told.with_context(|| format!("{upstream} said:\n{}", log()))
            .unwrap()
    }

    /// How often a path was asked for.
    fn asked(&self, upstream: &str, path: &str) -> usize {
        let wanted = format!("\"path\": \"{path}\"");
        let requests = self.events(upstream, "request");
        requests
            .iter()
            .filter(|line| line.contains(&wanted))
            .count()
    }

    /// The sum of a metric over its labels that contain `label`.
    fn metric(&self, name: &str, label: &str) -> u64 {
        let url = format!("http://{}/metrics", self.metrics);
        let output = program(self.space, "curl")
            .args(["-s", &url])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|line| line.starts_with(name));
        let values = lines.filter(|line| line.contains(label));
        values
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum()
    }

    fn access_log(&self) -> String {
        fs::read_to_string(self.world.path().join("access.log")).unwrap_or_default()
    }

    /// Waits until the access log says something.
    #[track_caller]
    fn logged(&self, text: &str) {
        let said = || self.access_log().contains(text).then_some(());
        eventually(text, said)
            .with_context(|| self.access_log())
            .unwrap();
    }

    /// The status that curl gets.
    fn curl(&self, version: &str, path: &str) -> u16 {
        let url = format!("http://{}{path}", self.out);
        let mut command = program(self.space, "curl");
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", version, &url]);
        let status = command.output().unwrap().stdout;
        String::from_utf8_lossy(&status).parse().unwrap_or_default()
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"
        ))
    }

    /// Sends a request and reads to the end of the connection.
    fn ask(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.out).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = Vec::new();
        let ended = stream.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Answer {
            status: head
                .get(9..12)
                .and_then(|code| code.parse().ok())
                .unwrap_or_default(),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
            reset: ended.is_err(),
        }
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
    reset: bool,
}

impl Answer {
    /// Did the body arrive as its head said it would?
    fn is_whole(&self) -> bool {
        let length = self
            .head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        match length.and_then(|length| length.parse::<usize>().ok()) {
            Some(length) => self.body.len() == length,
            None => self.body.ends_with("0\r\n\r\n") && !self.reset,
        }
    }
}

const EGRESS: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: frontend}
spec:
  podSelector: {matchLabels: {app: frontend}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]
";

#[test]
fn an_upstream_that_is_down_slow_or_back_is_told_from_one_that_answers() {
    // FAULTS 125
    let mut site = Site::start("[127.0.0.2]", "  requestTimeout: 500ms\n");
    let down = site.get("/");
    assert_eq!(
        (down.status, down.body.as_str()),
        (503, "upstream unavailable")
    );
    site.logged("cannot connect to the upstream");
    // Back, and served at once.
    site.upstream("up", "127.0.0.2", "web", "http1");
    assert_eq!(site.get("/").status, 200);
    assert_eq!(site.get("/slow").status, 504);
    site.logged("did not answer in time");
    assert_eq!(site.get("/").status, 200);
    assert!(site.metric("postern_proxy_upstream_retries_total", "connect") > 0);
}

#[test]
fn an_answer_that_breaks_off_is_a_visible_cut_and_nothing_is_done_twice() {
    // FAULTS 95, 126
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "http1");
    let whole = site.get("/bytes/5");
    assert!(whole.status == 200 && whole.is_whole(), "{whole:?}");
    for path in ["/cut", "/cut-chunked"] {
        let cut = site.get(path);
        assert!(cut.status == 200 && !cut.is_whole(), "{cut:?}");
        assert_eq!(site.asked("up", path), 1);
    }
    // A body that was sent is not sent again, whatever the method.
    for method in ["POST", "PUT"] {
        let before = site.asked("up", "/swallow");
        let request = format!(
            "{method} /swallow HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody"
        );
        assert_eq!(site.ask(&request).status, 502);
        assert_eq!(site.asked("up", "/swallow"), before + 1, "{method}");
    }
    // Without a body: GET is asked again, as often as `retries` says; POST never.
    let ask = |method: &str| {
        let length = "content-length: 0\r\nconnection: close";
        site.ask(&format!(
            "{method} /break HTTP/1.1\r\nhost: web\r\n{length}\r\n\r\n"
        ))
    };
    assert_eq!(ask("POST").status, 502);
    assert_eq!(site.asked("up", "/break"), 1);
    assert_eq!(ask("GET").status, 502);
    assert_eq!(site.asked("up", "/break"), 1 + 3);
    assert_eq!(
        site.get("/").status,
        200,
        "the next one gets its own answer"
    );
}

#[test]
fn an_odd_answer_is_no_answer_and_never_the_next_callers() {
    // FAULTS 95
    let mut site = Site::start("[127.0.0.2]", "  retries: {attempts: 0}\n");
    site.upstream("up", "127.0.0.2", "web", "http1");
    for odd in [
        "lengths", "nul", "switch", "huge", "many", "text", "negative",
    ] {
        assert_eq!(site.get(&format!("/odd/{odd}")).status, 502, "{odd}");
        let next = site.get("/");
        assert_eq!((next.status, next.body.as_str()), (200, "hello\n"), "{odd}");
    }
    // A length beside chunks: the chunks count, and the length does not get through.
    let both = site.get("/odd/both");
    let one_length = !both.head.contains("content-length: 3");
    assert!(both.status == 502 || one_length, "{both:?}");
    // The first answer is good. What follows it belongs to nobody.
    for _ in 0..5 {
        let extra = site.get("/odd/extra");
        assert_eq!((extra.status, extra.body.as_str()), (200, "hello\n"));
        let next = site.get("/");
        assert_eq!((next.status, next.body.as_str()), (200, "hello\n"));
    }
}

#[test]
fn a_kept_connection_that_died_costs_no_request() {
    // FAULTS 125
    let mut site = Site::start("[127.0.0.2]", "  retries: {attempts: 0}\n");
    site.upstream("up", "127.0.0.2", "web", "http1");
    // Every answer says that the connection stays open; the upstream closes it all the same.
    for _ in 0..10 {
        assert_eq!(site.get("/goodbye").status, 200);
    }
    // It breaks when it is used again, after the request was written.
    for _ in 0..3 {
        assert_eq!(site.get("/second").status, 200);
    }
    assert!(site.metric("postern_proxy_upstream_dead_connections_replaced_total", "") > 0);
    // A request that may not be done twice is not: the caller is told.
    assert_eq!(site.get("/").status, 200);
    let post =
        "POST /second HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";
    let before = site.asked("up", "/second");
    assert_eq!(site.ask(post).status, 502);
    assert_eq!(site.asked("up", "/second"), before + 1);
}

#[test]
fn retries_stay_within_their_number_and_their_budget() {
    let budget = "  retries: {attempts: 3, budget: 0%, floor: 1}\n  outlier: {maxShare: 0%}\n";
    let mut site = Site::start("[127.0.0.2]", budget);
    site.upstream("up", "127.0.0.2", "web", "http1");
    // Two bad answers, then a good one.
    assert_eq!(site.get("/status/503/2").status, 200);
    assert_eq!(site.asked("up", "/status/503/2"), 3);
    // Other failures are the upstream's answer.
    assert_eq!(site.get("/status/500").status, 500);
    assert_eq!(site.asked("up", "/status/500"), 1);
    // The budget is ten for ten seconds, and there is no more.
    let bound = || site.metric(LIMIT_PROXY, "bound=\"retries\"");
    for _ in 0..10 {
        assert_eq!(site.get("/status/503").status, 503);
    }
    assert!(bound() > 0);
    let tries = site.asked("up", "/status/503");
    assert!((10..40).contains(&tries), "{tries}");
    site.world
        .said("proxy", "a bound of outgoing traffic is reached")
        .unwrap();
    let post = "POST /status/503/9 HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
    assert_eq!(site.ask(post).status, 503);
    assert_eq!(site.asked("up", "/status/503/9"), 1);
}

#[test]
fn an_endpoint_that_fails_is_left_out_and_all_of_them_never() {
    // FAULTS 125
    let outlier = "  outlier: {failures: 1, ejection: 1h, maxEjection: 1h}\n";
    let mut site = Site::start("[127.0.0.2, 127.0.0.3]", outlier);
    site.upstream("good", "127.0.0.2", "web", "http1");
    // The other one is down: nobody notices.
    // A request without a connection was not sent: any of them goes to the other endpoint, with its
    // body.
    for method in ["POST", "PUT", "GET", "PATCH"] {
        let length = "content-length: 4\r\nconnection: close";
        let request = format!("{method} /post HTTP/1.1\r\nhost: web\r\n{length}\r\n\r\nbody");
        assert_eq!(site.ask(&request).status, 200, "{method}");
    }
    assert_eq!(site.asked("good", "/post"), 4);
    let ejected = |site: &Site| site.metric("postern_proxy_upstream_ejections_total", "");
    eventually("the ejection", || {
        assert_eq!(site.get("/").status, 200);
        (ejected(&site) > 0).then_some(())
    })
    .unwrap();
    let retries = site.metric("postern_proxy_upstream_retries_total", "connect");
    for _ in 0..20 {
        assert_eq!(site.get("/").status, 200);
    }
    let after = site.metric("postern_proxy_upstream_retries_total", "connect");
    assert_eq!(after, retries, "it is not asked any more");
    // Now the good one goes away too. It is not left out: it is the last.
    site.world
        .signal("good", rustix::process::Signal::KILL)
        .unwrap();
    site.world.ended("good").unwrap();
    for _ in 0..5 {
        assert_eq!(site.get("/").status, 503);
    }
    assert_eq!(ejected(&site), 1);
    site.upstream("again", "127.0.0.2", "web", "http1");
    assert_eq!(site.get("/").status, 200);
}

#[test]
fn all_endpoints_share_the_work() {
    let mut site = Site::start("[127.0.0.2, 127.0.0.3, 127.0.0.4]", "");
    let addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];
    for address in addresses {
        site.upstream(address, address, "web", "http1");
    }
    // What is in flight weighs: nobody gets much more than the others.
    let open = |number: usize| {
        let mut stream = TcpStream::connect(site.out).unwrap();
        let request = format!("GET /slow?{number} HTTP/1.1\r\nhost: web\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let held: Vec<TcpStream> = (0..30).map(open).collect();
    let share = |address: &str| site.events(address, "request").len();
    let all = || addresses.map(share);
    let done = || (all().iter().sum::<usize>() == 30).then_some(());
    eventually("all of them", done).unwrap();
    assert!(all().iter().all(|&share| share >= 6), "{:?}", all());
    drop(held);
}

#[test]
fn more_requests_than_the_bound_are_answered_at_once_with_503() {
    let mut site = Site::start(
        "[127.0.0.2]",
        "  requestTimeout: 3s\n  bounds: {requests: 2}\n",
    );
    site.upstream("up", "127.0.0.2", "web", "http1");
    let open = |path: &str| {
        let mut stream = TcpStream::connect(site.out).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let held = [open("/slow?1"), open("/slow?2")];
    site.told("up", "request", 2);
    let refused = site.get("/");
    assert_eq!(
        (refused.status, refused.body.as_str()),
        (503, "upstream overloaded")
    );
    site.logged("the bound `requests` is reached");
    assert_eq!(site.metric(LIMIT_PROXY, "bound=\"requests\""), 1);
    // Whoever is done makes room.
    eventually("room", || (site.get("/").status == 200).then_some(())).unwrap();
    drop(held);
}

#[test]
fn requests_wait_for_a_connection_up_to_a_bound() {
    let bounds = "  bounds: {connections: 1, pending: 1}\n";
    let mut site = Site::start("[127.0.0.2]", bounds);
    site.upstream("up", "127.0.0.2", "web", "http1");
    assert_eq!(site.get("/").status, 200);
    let open = |path: &str| {
        let mut stream = TcpStream::connect(site.out).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let slow = open("/wait/1");
    site.told("up", "request", 2);
    let mut waiting = open("/");
    // One waits; whoever comes next does not.
    let refused = eventually("the bound", || {
        let answer = site.get("/");
        (answer.body == "upstream overloaded").then_some(answer)
    });
    assert_eq!(refused.unwrap().status, 503);
    assert!(site.metric(LIMIT_PROXY, "bound=\"pending\"") > 0);
    // The slow one is done, and the one that waited is served.
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(slow);
}

#[test]
fn a_server_with_a_bad_certificate_sees_no_byte_of_a_request() {
    // FAULTS 69, 70
    let mut site = Site::start("[127.0.0.2]", "  retries: {attempts: 0}\n");
    type Change = fn(&mut CertificateParams);
    let wrong: [(&str, &str, Change); 9] = [
        (
            "another",
            "spiffe://example.org/ns/default/sa/other",
            |_| {},
        ),
        ("domain", "spiffe://other.org/ns/default/sa/web", |_| {}),
        ("longer", "spiffe://example.org/ns/default/sa/web/2", |_| {}),
        ("expired", WEB, |params| {
            params.not_after = time::OffsetDateTime::now_utc() - time::Duration::seconds(1);
        }),
        ("early", WEB, |params| {
            params.not_before = time::OffsetDateTime::now_utc() + time::Duration::minutes(30);
        }),
        ("twice", WEB, |params| {
            let again = SanType::URI(WEB.try_into().unwrap());
            params.subject_alt_names.push(again);
        }),
        ("name", WEB, |params| {
            params.subject_alt_names = vec![SanType::DnsName("web".try_into().unwrap())];
        }),
        ("authority", WEB, |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }),
        ("client", WEB, |params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        }),
    ];
    let stranger = Authority::new("example.org").unwrap();
    stranger
        .write_leaf(site.world.path(), "stranger", WEB, |_| {})
        .unwrap();
    for (name, id, change) in wrong {
        site.authority
            .write_leaf(site.world.path(), name, id, change)
            .unwrap();
    }
    let names = wrong.map(|(name, ..)| name).into_iter().chain(["stranger"]);
    for name in names {
        site.upstream(name, "127.0.0.2", name, "probe");
        let refused = site.get("/");
        assert_eq!(
            (refused.status, refused.body.as_str()),
            (503, "upstream unavailable"),
            "{name}"
        );
        let handshakes = site.told(name, "refused", 1);
        assert_eq!(
            site.events(name, "handshake"),
            Vec::<String>::new(),
            "{name} {handshakes:?}"
        );
        site.world
            .signal(name, rustix::process::Signal::KILL)
            .unwrap();
        site.world.ended(name).unwrap();
    }
    // The good twin of all of them.
    site.upstream("good", "127.0.0.2", "web", "http1");
    assert_eq!(site.get("/").status, 200);
}

#[test]
fn the_name_in_the_handshake_is_the_workloads_own() {
    let mut named = Site::start_with("[127.0.0.2]", "  dnsNames: [web.default.svc, web]\n", "");
    named.upstream("up", "127.0.0.2", "web", "http1");
    assert_eq!(named.get("/").status, 200);
    let told = named.told("up", "handshake", 1);
    assert!(
        told[0].contains("\"name\": \"web.default.svc\""),
        "{told:?}"
    );
    let mut plain = Site::start("[127.0.0.2]", "");
    plain.upstream("up", "127.0.0.2", "web", "http1");
    assert_eq!(plain.get("/").status, 200);
    let told = plain.told("up", "handshake", 1);
    assert!(told[0].contains("\"name\": null"), "{told:?}");
}

#[test]
fn a_name_that_leads_to_this_machine_is_not_dialled() {
    // FAULTS 117, 118
    let cases = [
        ("[localhost]", 503),
        ("['2130706434']", 503),
        ("['0x7f000002']", 503),
        ("['127.2']", 503),
        // The same place, named by the document itself.
        ("[127.0.0.2]", 200),
        ("['2130706434', 127.0.0.2]", 200),
    ];
    for (addresses, status) in cases {
        let mut site = Site::start(addresses, "");
        for address in ["127.0.0.1", "127.0.0.2"] {
            site.upstream(address, address, "web", "http1");
        }
        assert_eq!(site.get("/").status, status, "{addresses}");
        let reached = site.events("127.0.0.1", "handshake").len();
        assert_eq!(reached, 0, "{addresses}");
        if addresses == "[localhost]" {
            let denied = "postern_proxy_upstream_addresses_denied_total";
            assert!(site.metric(denied, "loopback") > 0);
            site.world
                .said(
                    "proxy",
                    "an address is never dialled because of a name; the Workload may name it itself",
                )
                .unwrap();
        }
    }
}

#[test]
fn the_proxys_own_doors_are_no_destination() {
    // FAULTS 116
    let site = Site::start("[127.0.0.1]", "");
    let path = site.world.path().join("workloads/all.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let port = format!("port: {}", site.port);
    for own in [site.out, site.metrics] {
        let own = text.replace(&port, &format!("port: {}", own.port()));
        fs::write(&path, own).unwrap();
        site.world
            .signal("proxy", rustix::process::Signal::HUP)
            .unwrap();
        let denied = "postern_proxy_upstream_addresses_denied_total";
        let before = site.metric(denied, "own_listener");
        eventually("the refusal", || {
            let status = site.get("/").status;
            assert_eq!(status, 503);
            (site.metric(denied, "own_listener") > before).then_some(())
        })
        .unwrap();
    }
    // One request is one connection to the proxy: nothing went round.
    let accepted = site.metric("postern_proxy_connections_accepted_total", "outbound");
    let answered = site.metric("postern_proxy_requests_answered_total", "outbound");
    assert_eq!(accepted, answered);
}

#[test]
fn opaque_connections_end_each_way_for_itself_and_are_bounded() {
    let bounds = "  idleTimeout: 1s\n  bounds: {connections: 1}\n";
    let mut site = Site::start("[127.0.0.2]", bounds);
    site.upstream("up", "127.0.0.2", "web", "tcp");
    let open = || {
        let mut stream = TcpStream::connect(site.out).unwrap();
        stream.write_all(&[0; 100]).unwrap();
        stream
    };
    let mut stream = open();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "got 100\n");
    site.logged("\"bytes_sent\":100,\"bytes_received\":8");
    // A silent one is ended, and while it lasts there is no room for another.
    let mut silent = open();
    site.told("up", "handshake", 2);
    let mut refused = open();
    assert!(matches!(refused.read(&mut [0; 1]), Ok(0) | Err(_)));
    site.logged("the bound `connections` is reached");
    assert!(matches!(silent.read(&mut [0; 1]), Ok(0) | Err(_)));
    site.logged("nothing moved for 1s");
    assert_eq!(site.metric(LIMIT_PROXY, "bound=\"idle\""), 1);
}

#[test]
fn many_requests_share_few_connections_and_outlive_them() {
    let mut site = Site::start("[127.0.0.2]", "  requestTimeout: 20s\n");
    site.upstream("up", "127.0.0.2", "web", "http2");
    let streams: Vec<_> = (0..60)
        .map(|number| {
            let mut stream = TcpStream::connect(site.out).unwrap();
            let line = format!("GET /wait/0.5?{number} HTTP/1.1");
            let request = format!("{line}\r\nhost: web\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(
        site.events("up", "handshake").len(),
        1,
        "one connection for all"
    );
    // It is taken away, and nobody notices.
    for _ in 0..3 {
        assert_eq!(site.get("/goaway").status, 200);
        assert_eq!(site.get("/").status, 200);
    }
    site.world
        .signal("up", rustix::process::Signal::KILL)
        .unwrap();
    site.world.ended("up").unwrap();
    site.upstream("again", "127.0.0.2", "web", "http2");
    assert_eq!(site.get("/").status, 200);
}

#[test]
fn a_connection_whose_other_end_went_deaf_is_replaced() {
    // FAULTS 125
    let mut site = Site::start("[127.0.0.2]", "  requestTimeout: 1s\n");
    site.upstream("up", "127.0.0.2", "web", "http2");
    assert_eq!(site.get("/deaf").status, 200);
    // The upstream reads no more, also no PING: the connection is given up without a request.
    site.told("up", "handshake", 1);
    eventually("another connection", || {
        (site.get("/").status == 200).then_some(())
    })
    .unwrap();
    assert!(site.events("up", "handshake").len() > 1);
}

#[test]
fn a_caller_that_goes_away_ends_its_request_at_the_upstream() {
    // FAULTS 107
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "http2");
    let url = format!("http://{}/wait/600", site.out);
    let mut caller = Command::new("curl");
    caller.args(["-s", "--http2-prior-knowledge", &url]);
    site.world.spawn("caller", &mut caller).unwrap();
    site.told("up", "request", 1);
    assert_eq!(site.events("up", "reset"), Vec::<String>::new());
    site.world
        .signal("caller", rustix::process::Signal::KILL)
        .unwrap();
    site.told("up", "reset", 1);
    assert_eq!(site.get("/").status, 200);
    assert_eq!(site.events("up", "handshake").len(), 1);
}

#[test]
fn more_clients_than_descriptors_do_not_end_the_proxy() {
    // FAULTS 128
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "http1");
    let pid = site.world.pid("proxy").unwrap().to_string();
    let limited = run("prlimit", &["--pid", &pid, "--nofile=256:256"]).unwrap();
    assert!(limited.status.success(), "{limited:?}");
    let began = Instant::now();
    let log = || fs::read_to_string(site.world.log("proxy")).unwrap();
    let message = "cannot accept a connection";
    let mut clients = Vec::new();
    while clients.len() < 1000 && !log().contains(message) {
        // Who is not accepted waits in vain.
        clients.extend(TcpStream::connect_timeout(
            &site.out,
            Duration::from_millis(200),
        ));
    }
    site.world.said("proxy", message).unwrap();
    drop(clients);
    eventually("service", || (site.get("/").status == 200).then_some(())).unwrap();
    // It waits after each failure, and does not turn in circles.
    let most = began.elapsed().as_millis() / 50 + 2;
    let told = log().matches(message).count();
    assert!(u128::try_from(told).unwrap() <= most, "{told} of {most}");
}

#[test]
fn idle_connections_cost_little() {
    // FAULTS 127
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "http1");
    assert_eq!(site.get("/").status, 200);
    let (before, _) = memory(&site);
    let told = std::env::var("POSTERN_TEST_CONNECTIONS").ok();
    let many: u64 = told.and_then(|told| told.parse().ok()).unwrap_or(2000);
    let clients: Vec<TcpStream> = (0..many)
        .map(|_| {
            let mut stream = TcpStream::connect(site.out).unwrap();
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")
                .unwrap();
            let mut answer = [0; 1024];
            assert!(stream.read(&mut answer).unwrap() > 12 && answer.starts_with(b"HTTP/1.1 200"));
            stream
        })
        .collect();
    let (with, _) = memory(&site);
    let each = with.saturating_sub(before) / many;
    assert!(each <= 60, "{each} KiB for each of {many} connections");
    assert_eq!(site.get("/").status, 200);
    drop(clients);
}

#[test]
#[ignore = "needs root, for a network of its own"]
fn root_a_name_that_comes_to_lead_elsewhere_is_not_followed() {
    // FAULTS 117, 118
    let mut world = World::new().unwrap();
    let mut space = Command::new("unshare");
    space.args(["--net", "--mount", "sleep", "1000"]);
    world.spawn("space", &mut space).unwrap();
    let pid = world.pid("space").unwrap();
    let own = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
    let is_apart = || (own(&pid.to_string()) != own("self")).then_some(());
    eventually("a network", is_apart).unwrap();
    let inside = |line: &str| {
        let done = program(Some(pid), "sh")
            .args(["-ec", line])
            .output()
            .unwrap();
        assert!(done.status.success(), "{line}: {done:?}");
    };
    world
        .write(
            "resolv.conf",
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        )
        .unwrap();
    let folder = world.path().display().to_string();
    inside("ip link set lo up");
    for address in ["10.99.0.5/32", "169.254.169.254/32", "fd00:ec2::254/128"] {
        inside(&format!("ip addr add {address} dev lo nodad"));
    }
    inside(&format!(
        "mount --bind {folder}/resolv.conf /etc/resolv.conf"
    ));
    let say = |world: &World, addresses: &str| {
        world.write("next", addresses).unwrap();
        // In one step, so that no answer is half of it.
        fs::rename(world.path().join("next"), world.path().join("names")).unwrap();
    };
    say(&world, "10.99.0.5");
    let mut names = program(Some(pid), root().join("target/python/bin/python"));
    names.arg(root().join("tests/python/names.py"));
    names.arg(world.path().join("names"));
    world.spawn("names", &mut names).unwrap();
    let settings = "  dnsRefresh: 100ms\n  retries: {attempts: 0}\n";
    let mut site = Site::start_in(world, Some(pid), "[web.test]", "", settings);
    site.upstream("good", "10.99.0.5", "web", "http1");
    // Each trap shows the right certificate: only the address is wrong.
    let traps = ["127.0.0.1", "169.254.169.254", "fd00:ec2::254"];
    for trap in traps {
        site.upstream(trap, trap, "web", "http1");
    }
    let get = |site: &Site| site.curl("--http1.1", "/");
    eventually("the first answer", || (get(&site) == 200).then_some(())).unwrap();
    for wrong in [
        "127.0.0.1",
        "169.254.169.254",
        "::ffff:127.0.0.1",
        "fd00:ec2::254",
    ] {
        say(&site.world, wrong);
        eventually(wrong, || (get(&site) == 503).then_some(())).unwrap();
        for trap in traps {
            let events = site.events(trap, "handshake").len() + site.events(trap, "refused").len();
            assert_eq!(events, 0, "{wrong} led to {trap}");
        }
        say(&site.world, &format!("{wrong}\n10.99.0.5"));
        eventually("the good one of two", || (get(&site) == 200).then_some(())).unwrap();
    }
    // Without a name server the last good answer stays.
    site.world
        .signal("names", rustix::process::Signal::KILL)
        .unwrap();
    site.world.ended("names").unwrap();
    let failed = || site.metric("postern_proxy_upstream_lookups_failed_total", "");
    let before = failed();
    eventually("a lookup that fails", || {
        assert_eq!(get(&site), 200);
        (failed() > before).then_some(())
    })
    .unwrap();
    assert_eq!(get(&site), 200);
}

/// The memory of the proxy, and the most that it was.
fn memory(site: &Site) -> (u64, u64) {
    let status = format!("/proc/{}/status", site.world.pid("proxy").unwrap());
    let status = fs::read_to_string(status).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// How much goes through, in MiB; `POSTERN_TEST_MIB=1024` for the whole gigabyte.
fn much() -> u64 {
    let told = std::env::var("POSTERN_TEST_MIB").ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(256)
}

#[test]
fn large_bodies_pass_with_slow_readers_and_little_memory() {
    // FAULTS 129
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "http1");
    assert_eq!(site.get("/").status, 200);
    let (before, _) = memory(&site);
    let bytes = much() << 20;
    let mut stream = TcpStream::connect(site.out).unwrap();
    let request = format!("GET /bytes/{bytes} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let (mut read, mut buffer) = (0_u64, vec![0; 1 << 20]);
    loop {
        let now = stream.read(&mut buffer).unwrap();
        if now == 0 {
            break;
        }
        // Slower than the upstream: everything between is full.
        if read < 64 << 20 {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        read += u64::try_from(now).unwrap();
    }
    assert!(read > bytes, "{read}");
    // The other way.
    let mut stream = TcpStream::connect(site.out).unwrap();
    let request = format!(
        "POST /take HTTP/1.1\r\nhost: web\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    for _ in 0..much() {
        stream.write_all(&buffer).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let ended = site.told("up", "ended", 1);
    assert!(
        ended[0].contains(&format!("\"bytes\": {bytes}")),
        "{ended:?}"
    );
    let (_, most) = memory(&site);
    assert!(
        most < before + (48 << 10),
        "{before} KiB before, {most} KiB at most"
    );
}
