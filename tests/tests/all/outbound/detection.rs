//! What the app speaks, found out by its first bytes, however they come.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use postern_tests::eventually;

use super::Site;

const LATE: &str = "postern_proxy_detections_timed_out_total";

/// Says the pieces with a pause between them that is longer than silence may be.
fn say(site: &Site, pieces: &[&[u8]]) -> TcpStream {
    let mut stream = TcpStream::connect(site.out).unwrap();
    stream.set_nodelay(true).unwrap();
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            std::thread::park_timeout(Duration::from_millis(600));
        }
        stream.write_all(piece).unwrap();
    }
    stream
}

fn answer(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

const REST: &[u8] = b" / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";

#[test]
fn a_request_stays_one_however_slowly_it_begins() {
    // FAULTS 114
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "http1");
    let methods: [&[&[u8]]; 4] = [
        &[b"GET"],
        &[b"GE", b"T"],
        &[b"G", b"E", b"T"],
        &[b"\r\n", b"GET"],
    ];
    for (number, method) in methods.into_iter().enumerate() {
        let pieces = [method, &[REST]].concat();
        let answer = answer(say(&site, &pieces));
        assert!(answer.starts_with("HTTP/1.1 200"), "{pieces:?}: {answer}");
        // As a request: the proxy knows its method.
        let requests = || {
            let count = site.access_log().matches("\"method\":\"GET\"").count();
            (count == number + 1).then_some(())
        };
        eventually("its line", requests).unwrap();
    }
    assert_eq!(site.metric(LATE, ""), 0);
}

#[test]
fn what_begins_like_a_request_and_does_not_go_on_is_refused_and_other_bytes_are_not() {
    // FAULTS 114
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "tcp");
    // The twin: no request begins like this.
    let mut other = say(&site, &[b"ge"]);
    site.told("up", "handshake", 1);
    other.shutdown(std::net::Shutdown::Write).unwrap();
    let mut counted = String::new();
    other.read_to_string(&mut counted).unwrap();
    assert_eq!(counted, "got 2\n");
    assert_eq!(answer(say(&site, &[b"GE"])), "");
    site.logged("what begins like a request of HTTP does not go on within 10s");
    assert_eq!(site.metric(LATE, "unfinished"), 1);
    assert_eq!(site.events("up", "handshake").len(), 1);
    site.world
        .said(
            "proxy",
            "the first bytes did not tell in time what is spoken",
        )
        .unwrap();
}

#[test]
fn where_the_app_is_silent_whoever_speaks_first_decides() {
    // FAULTS 114
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "greet");
    let mut greeted = TcpStream::connect(site.out).unwrap();
    let mut words = [0; 11];
    greeted.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"220 hello\r\n");
    // From now on it is opaque, whatever it looks like.
    greeted.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut back = [0; 18];
    greeted.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(site.metric(LATE, "silent"), 1);
    drop(greeted);
    site.logged("\"bytes_received\"");
    assert!(!site.access_log().contains("\"method\":\"GET\""));
}

#[test]
fn a_request_on_a_connection_that_was_opened_early_is_a_request() {
    // FAULTS 114
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "http1");
    let mut early = TcpStream::connect(site.out).unwrap();
    // The way is open for whatever the upstream could say first.
    let handshake = site.told("up", "handshake", 1).concat();
    assert!(handshake.contains("\"alpn\": null"), "{handshake}");
    early.write_all(&[b"GET", REST].concat()).unwrap();
    let answer = answer(early);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    site.logged("\"method\":\"GET\"");
    // Not over the connection for opaque bytes.
    assert_eq!(site.events("up", "handshake").len(), 2);
}

#[test]
fn an_app_that_speaks_first_is_heard_through_both_proxies() {
    let mut site = Site::start("[127.0.0.2]", "  idleTimeout: 1s\n");
    site.pod_of("greet-plain");
    let mut stream = TcpStream::connect(site.out).unwrap();
    let mut words = [0; 11];
    stream.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"220 hello\r\n");
    // Nobody says more.
    assert_eq!(answer(stream), "");
    site.logged("nothing moved for 1s");
    let mut refused = TcpStream::connect(site.out).unwrap();
    let _ = refused.write_all(b"POST /x HTTP/1.1\r\nhost: web\r\ncontent-length: x\r\n\r\n");
    let said = answer(refused);
    assert!(said.starts_with("HTTP/1.1 400"), "{said}");
}
