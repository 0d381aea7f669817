//! The corpus of the fuzz targets, as ordinary tests: what was found once is never lost.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

#[path = "../fuzz/properties.rs"]
mod properties;

fn every_file(target: &str, holds: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        holds(&fs::read(entry.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files > 0, "the corpus of `{target}` is empty");
}

#[test]
fn detect() {
    every_file("detect", properties::detect);
}

#[test]
fn follow() {
    every_file("follow", properties::follow);
}

#[test]
fn clean() {
    every_file("clean", properties::clean);
}

#[test]
fn trace() {
    every_file("trace", properties::trace);
}

/// Pieces of which requests are made, good and bad.
const FRAGMENTS: [&[u8]; 45] = [
    b"GET / HTTP/1.1\r\n",
    b"POST / HTTP/1.1\r\n",
    b"GET / HTTP/1.0\r\n",
    b"get ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"Host: a\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Upgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"X: y\r\n",
    b"X-SPIFFE-ID: y\r\n",
    b"\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\r",
    b"\n",
    b" ",
    b"\t",
    b"\0",
    b":",
    b";",
    b"hello",
    b"5\r\nhello\r\n",
    b"5\r\n",
    b"5;a=b\r\n",
    b"0\r\n",
    b"0\r\n\r\n",
    b"fffffffffffffff\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    b"connection: x, x-request-id\n",
    b"cookie: a=b\n",
    b"x_forwarded_client_cert: a\n",
    b"te: trailers\n",
    b"x-request-id: a\n",
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n",
    b"traceparent: cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-",
    b"tracestate: a=1\n",
    b"tracestate: a=1,b@c=2",
    b"HTTP/1.1",
];

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config {
        cases: 4096,
        failure_persistence: None,
        ..proptest::test_runner::Config::default()
    })]

    #[test]
    fn what_holds_for_the_corpus_holds_for_mixtures(
        parts in proptest::collection::vec(0..FRAGMENTS.len(), 0..12),
        cut in 0..400_usize,
    ) {
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| FRAGMENTS[*part]).copied().collect();
        bytes.truncate(cut);
        properties::detect(&bytes);
        properties::follow(&bytes);
        properties::clean(&bytes);
        properties::trace(&bytes);
    }
}
