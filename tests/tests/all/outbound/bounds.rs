//! How much may be under way, who is left out, and what it costs.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use postern_tests::{eventually, run};

use super::{LIMIT_PROXY, Site};

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
    let (before, _) = memory(&site, "proxy");
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
    let (with, _) = memory(&site, "proxy");
    let each = with.saturating_sub(before) / many;
    assert!(each <= 60, "{each} KiB for each of {many} connections");
    assert_eq!(site.get("/").status, 200);
    drop(clients);
}

/// The memory of a proxy in KiB, and the most that it was.
fn memory(site: &Site, name: &str) -> (u64, u64) {
    let status = format!("/proc/{}/status", site.world.pid(name).unwrap());
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
    let (before, _) = memory(&site, "proxy");
    pass_much(&site, "up");
    let (_, most) = memory(&site, "proxy");
    assert!(
        most < before + (48 << 10),
        "{before} KiB before, {most} KiB at most"
    );
}

/// A large answer to a slow reader, and a large request.
fn pass_much(site: &Site, upstream: &str) {
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
    let ended = site.told(upstream, "ended", 1);
    assert!(
        ended.concat().contains(&format!("\"bytes\": {bytes}")),
        "{ended:?}"
    );
}

#[test]
fn large_bodies_pass_through_two_proxies_with_little_memory() {
    // FAULTS 129
    let mut site = Site::start("[127.0.0.2]", "");
    site.pod();
    assert_eq!(site.get("/").status, 200);
    let before = ["proxy", "web"].map(|name| memory(&site, name).0);
    pass_much(&site, "app");
    let most = ["proxy", "web"].map(|name| memory(&site, name).1);
    for (before, most) in before.into_iter().zip(most) {
        assert!(
            most < before + (64 << 10),
            "{before} KiB before, {most} KiB at most"
        );
    }
    let opened = "postern_proxy_upstream_connections_opened_total";
    assert!(site.metric(opened, "http2") > 0);
    assert_eq!(
        site.metric(opened, "http1"),
        0,
        "between proxies it is HTTP/2"
    );
}
