//! WebSocket through the proxy of the app and that of the other pod.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
};

use postern_tests::eventually;
use serde_json::Value;

use super::{POLICIES, Site};

/// The example of RFC 6455, section 1.3, and the answer that it must get.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// `ping`, masked with 1, 2, 3, 4, and as the app says it.
const PING: &[u8] = b"\x81\x84\x01\x02\x03\x04qkmc";
const PONG: &[u8] = b"\x81\x04ping";
const BYE: &[u8] = b"\x81\x03bye";

/// Offers to switch; the head of the answer, and the connection.
fn offer(site: &Site, path: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(site.out).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: web\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.extend_from_slice(&byte);
    }
    (
        String::from_utf8(head).unwrap().to_ascii_lowercase(),
        stream,
    )
}

fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    rest
}

#[test]
fn a_websocket_goes_through_both_proxies_and_ends_by_either_side() {
    // FAULTS 91
    let mut site = Site::start("[127.0.0.2]", "");
    site.pod();
    let (head, mut stream) = offer(&site, "/ws");
    assert!(head.starts_with("http/1.1 101"), "{head}");
    for line in [
        "upgrade: websocket".to_owned(),
        "connection: upgrade".to_owned(),
        format!("sec-websocket-accept: {}", ACCEPT.to_ascii_lowercase()),
    ] {
        assert!(head.lines().any(|one| one == line), "{line}: {head}");
    }
    for _ in 0..3 {
        stream.write_all(PING).unwrap();
        let mut pong = [0; 6];
        stream.read_exact(&mut pong).unwrap();
        assert_eq!(pong, PONG);
    }
    // One way ends; the other is open still.
    stream.write_all(PING).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(stream), [PONG, BYE].concat());
    site.told("app", "ended", 1);
    // The app ends it.
    let (head, stream) = offer(&site, "/ws-bye");
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert_eq!(rest(stream), b"\x88\x02\x03\xe8");
    // Each has its line when it has ended, with what passed and why.
    site.logged("\"path\":\"/ws-bye\"");
    let lines = |log: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(site.world.path().join(log)).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &Value| line["status"] == 101).collect()
    };
    let of = |log: &str, path: &str| {
        let find = || lines(log).into_iter().find(|line| line["path"] == path);
        let line = eventually(path, find).unwrap();
        assert_eq!(
            lines(log)
                .iter()
                .filter(|line| line["path"] == path)
                .count(),
            1
        );
        assert_eq!(line["reason"], Value::Null, "{line}");
        (
            line["bytes_received"].as_u64().unwrap(),
            line["bytes_sent"].as_u64().unwrap(),
        )
    };
    let (there, back) = (4 * PING.len() as u64, (4 * PONG.len() + BYE.len()) as u64);
    assert_eq!(of("access.log", "/ws"), (back, there));
    assert_eq!(of("web.access.log", "/ws"), (there, back));
    assert_eq!(of("access.log", "/ws-bye"), (4, 0));
    let closed = site.metric(
        "postern_proxy_relays_ended_total",
        "direction=\"outbound\",reason=\"closed\"",
    );
    assert_eq!(closed, 2);
    let sent = site.metric(
        "postern_proxy_relayed_bytes_total",
        "direction=\"outbound\",way=\"sent\"",
    );
    assert_eq!(sent, there);
    // What does not switch is an answer like any other, and so is what comes behind it.
    let (head, stream) = offer(&site, "/status/404");
    assert!(head.starts_with("http/1.1 404"), "{head}");
    drop(stream);
    assert_eq!(site.get("/").status, 200);
}

#[test]
fn what_switches_to_something_else_or_unasked_is_refused() {
    // FAULTS 91
    let mut site = Site::start("[127.0.0.2]", "");
    site.upstream("up", "127.0.0.2", "web", "http1");
    let (head, _) = offer(&site, "/ws");
    assert!(head.starts_with("http/1.1 101"), "{head}");
    let (head, _) = offer(&site, "/ws-else");
    assert!(head.starts_with("http/1.1 502"), "{head}");
    assert_eq!(site.get("/odd/switch").status, 502);
}

#[test]
fn no_websocket_goes_out_where_the_configuration_says_so() {
    // FAULTS 91
    let mut site = Site::start("[127.0.0.2]", "  upgrades: []\n");
    site.pod();
    let (head, _) = offer(&site, "/ws");
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(!head.contains("upgrade"), "{head}");
    assert!(site.events("app", "switched").is_empty());
}

#[test]
fn a_websocket_ends_when_its_destination_is_no_longer_allowed_or_nothing_moves() {
    // FAULTS 91, 124
    let mut site = Site::start("[127.0.0.2]", "");
    site.pod();
    let (_, mut stream) = offer(&site, "/ws");
    stream.write_all(PING).unwrap();
    let mut pong = [0; 6];
    stream.read_exact(&mut pong).unwrap();
    let egress = "egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]";
    assert!(POLICIES.contains(egress));
    let policies = POLICIES.replace(egress, "egress: []");
    site.world.write("policies/all.yaml", &policies).unwrap();
    assert_eq!(rest(stream), b"");
    let (head, _) = offer(&site, "/ws");
    assert!(head.starts_with("http/1.1 403"), "{head}");
    assert_eq!(site.events("app", "switched").len(), 1);
    // With the app's connection, or its own.
    site.logged("\"reason\":\"the connection ");
    drop(site);

    let mut site = Site::start("[127.0.0.2]", "  idleTimeout: 1s\n");
    site.pod();
    let (head, stream) = offer(&site, "/ws");
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(!rest(stream).starts_with(PONG));
    site.told("app", "switched", 1);
    site.logged("nothing moved for 1s");
    for name in [
        "postern_proxy_relays_ended_total",
        "postern_proxy_upstream_bounds_reached_total",
    ] {
        let idle = eventually(name, || {
            let idle = site.metric(name, "\"idle\"");
            (idle > 0).then_some(idle)
        });
        assert_eq!(idle.unwrap(), 1, "{name}");
    }
}
