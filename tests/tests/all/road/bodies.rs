//! Bodies much larger than anything that may be kept in memory.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use postern_tests::world::{App, free_address};

use super::{Road, Start, curl, eventually, held, rules};

const GIB: u64 = 1 << 30;
/// What buffers and windows may take, and what the allocator keeps of them.
const GROWTH_KIB: usize = 24 << 10;

/// An app that sends a GiB to whoever asks, and takes as much from whoever sends.
fn app() -> SocketAddr {
    let listener = TcpListener::bind(free_address().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let before = head.len();
        if reader.read_line(&mut head).unwrap_or_default() == 0 {
            return;
        }
        let line = head.get(before..).unwrap().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let taken = std::io::copy(&mut reader.take(length), &mut std::io::sink()).unwrap();
    let answer = match head.starts_with("GET ") {
        true => format!("HTTP/1.1 200 OK\r\ncontent-length: {GIB}\r\nconnection: close\r\n\r\n"),
        false => {
            let text = taken.to_string();
            let length = text.len();
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
            )
        }
    };
    let _ = stream.write_all(answer.as_bytes());
    if head.starts_with("GET ") {
        let _ = std::io::copy(&mut std::io::repeat(7).take(GIB), &mut stream);
    }
}

/// Watches both proxies for as long as `work` takes; tells how much they grew, in KiB.
fn growth(road: &Road, work: impl FnOnce() + Send) -> usize {
    let resident = || held(road, "web").1 + held(road, "frontend").1;
    let before = resident();
    let mut most = before;
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        while !work.is_finished() {
            most = most.max(resident());
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
        work.join().unwrap();
    });
    most - before
}

#[test]
fn a_gib_in_either_direction_passes_and_leaves_memory_flat() {
    let app_address = app();
    let road = Road::to(App::start().unwrap(), app_address, &Start::AgentFirst, "1h");
    let allowed = rules(app_address.port(), "[\"GET\", \"POST\"]");
    road.world.write("policies/rules.yaml", &allowed).unwrap();
    // Warm: connections, identities, buffers.
    eventually("the policies", || {
        (curl(road.web, &["-X", "POST", "-d", "x"], "/api/sink") == 200).then_some(())
    })
    .unwrap();

    let grown = growth(&road, || {
        let mut stream = TcpStream::connect(road.web).unwrap();
        let ask = b"GET /api/big HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
        stream.write_all(ask).unwrap();
        let all = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        assert!(all > GIB, "{all}");
    });
    assert!(grown < GROWTH_KIB, "download: {grown} KiB");

    let grown = growth(&road, || {
        let mut stream = TcpStream::connect(road.web).unwrap();
        let ask = format!(
            "POST /api/sink HTTP/1.1\r\nhost: web\r\ncontent-length: {GIB}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).unwrap();
        std::io::copy(&mut std::io::repeat(7).take(GIB), &mut stream).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with(&GIB.to_string()), "{answer}");
    });
    assert!(grown < GROWTH_KIB, "upload: {grown} KiB");
}
