//! A port whose name says what is spoken there.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use super::Site;

const LATE: &str = "postern_proxy_detections_timed_out_total";
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";

fn say(site: &Site, words: &[u8]) -> String {
    let mut stream = TcpStream::connect(site.out).unwrap();
    stream.write_all(words).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_port_for_tcp_carries_whatever_is_said_and_waits_for_nothing() {
    let mut site = Site::start_named("tcp-app");
    site.upstream("up", "127.0.0.2", "web", "greet");
    let mut stream = TcpStream::connect(site.out).unwrap();
    let mut words = [0; 11];
    stream.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"220 hello\r\n");
    // What looks like a request is none.
    stream.write_all(GET).unwrap();
    let mut back = vec![0; GET.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, GET);
    drop(stream);
    site.logged("\"bytes_received\"");
    assert!(!site.access_log().contains("\"method\":\"GET\""));
    assert_eq!(site.metric(LATE, ""), 0);
}

#[test]
fn a_port_for_http_carries_nothing_else() {
    let mut site = Site::start_named("http-app");
    site.upstream("up", "127.0.0.2", "web", "http1");
    assert!(say(&site, GET).starts_with("HTTP/1.1 200"));
    // The twin differs in its first byte.
    let other = [b"\0", GET].concat();
    assert_eq!(say(&site, &other), "");
    site.logged("the app does not speak HTTP, and `appProtocol` or the name of the port in `ports` says that it does");
    assert_eq!(site.events("up", "handshake").len(), 1);
    let refused = site.metric("postern_proxy_refused_total", "reason=\"protocol\"");
    assert_eq!(refused, 1);
    // Where nothing is declared those bytes pass.
    let mut site = Site::start_named("app");
    site.upstream("up", "127.0.0.2", "web", "http1");
    let mut stream = TcpStream::connect(site.out).unwrap();
    stream.write_all(&other).unwrap();
    site.told("up", "handshake", 1);
}

#[test]
fn what_a_port_is_declared_to_speak_counts_more_than_its_name() {
    let carries_anything = |declared: &str| {
        let mut site = Site::start_declared(declared);
        site.upstream("up", "127.0.0.2", "web", "greet");
        let mut stream = TcpStream::connect(site.out).unwrap();
        let mut words = [0; 11];
        stream.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"220 hello\r\n", "{declared}");
        assert_eq!(site.metric(LATE, ""), 0, "{declared}: nothing is found out");
    };
    let refuses_other_bytes = |declared: &str| {
        let mut site = Site::start_declared(declared);
        site.upstream("up", "127.0.0.2", "web", "http1");
        assert!(say(&site, GET).starts_with("HTTP/1.1 200"), "{declared}");
        assert_eq!(say(&site, &[b"\0", GET].concat()), "", "{declared}");
        let refused = site.metric("postern_proxy_refused_total", "reason=\"protocol\"");
        assert_eq!(refused, 1, "{declared}");
    };
    refuses_other_bytes("appProtocol: kubernetes.io/ws");
    refuses_other_bytes("name: tcp-app, appProtocol: http");
    carries_anything("name: http-app, appProtocol: tcp");
    carries_anything("name: http, appProtocol: TLS");

    // What nobody knows is told, and leaves nothing to the name.
    let mut site = Site::start_declared("name: http, appProtocol: example.com/mine");
    site.upstream("up", "127.0.0.2", "web", "greet");
    let mut stream = TcpStream::connect(site.out).unwrap();
    let mut words = [0; 11];
    stream.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"220 hello\r\n");
    assert_eq!(site.metric(LATE, "outcome=\"silent\""), 1);
    let told = site
        .world
        .told("proxy", "`appProtocol` `example.com/mine` is not known");
    assert!(told.unwrap().contains("workloads/all.yaml:"));
}
