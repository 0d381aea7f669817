//! A defect of ours: a task of the proxy panics. The clock does it, which a library put in front of the C library's
//! lets fail once, after words that it was told to wait for have come in.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
};

use postern_tests::{binaries, eventually, run};

use super::Pair;

/// The standard library takes it for granted that there is a time, and panics where there is none.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int broken;
static int (*true_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    true_clock = dlsym(RTLD_NEXT, "clock_gettime");
}

static ssize_t heard(const void *words, ssize_t length) {
    if (length > 0 && memmem(words, length, "break-the-clock", 15)) broken = 1;
    return length;
}

ssize_t recv(int from, void *to, size_t most, int flags) {
    ssize_t (*true_recv)(int, void *, size_t, int) = dlsym(RTLD_NEXT, "recv");
    return heard(to, true_recv(from, to, most, flags));
}

ssize_t read(int from, void *to, size_t most) {
    ssize_t (*true_read)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    return heard(to, true_read(from, to, most));
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int is_first_thread = gettid() == getpid();
    if (which == CLOCK_REALTIME && is_first_thread && __sync_bool_compare_and_swap(&broken, 1, 0)) {
        errno = EINVAL;
        return -1;
    }
    return true_clock(which, now);
}
"#;

/// A pair whose frontend has such a clock.
fn start() -> Pair {
    let mut pair = Pair::start();
    let source = pair.world.write("clock.c", CLOCK).unwrap();
    let library = source.with_extension("so");
    let [source, built] = [&source, &library].map(|path| path.to_str().unwrap());
    let arguments = ["-shared", "-fPIC", "-o", built, source, "-ldl"];
    let compiled = run("cc", &arguments).unwrap();
    assert!(compiled.status.success(), "{compiled:?}");
    pair.world
        .signal("frontend", rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(pair.world.ended("frontend").unwrap(), Some(0));
    let mut command = Command::new(binaries().unwrap().join("postern-proxy"));
    command.args(["run", "--config", "frontend.yaml"]);
    command.env("LD_PRELOAD", &library);
    pair.world.spawn("frontend", &mut command).unwrap();
    pair.world.said("frontend", "ready").unwrap();
    pair
}

fn panics(pair: &Pair) -> String {
    let metrics = format!("http://{}/metrics", pair.metrics_of("frontend"));
    let text = super::told(&["-sS", &metrics]);
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with("postern_proxy_tasks_panicked_total "));
    line.expect(&text).to_owned()
}

fn answer(stream: &mut TcpStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    let (mut held, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut piece).unwrap();
        held.extend_from_slice(piece.get(..read).unwrap());
        let text = String::from_utf8_lossy(&held);
        let is_whole = text.contains("host: web\r\n") || text.ends_with("internal error");
        if read == 0 || is_whole {
            return text.into_owned();
        }
    }
}

#[test]
fn a_panic_fails_one_request_and_the_proxy_lives() {
    // FAULTS 134
    let pair = start();
    let mut other = TcpStream::connect(pair.out).unwrap();
    assert!(answer(&mut other, "/api/before").starts_with("HTTP/1.1 200"));
    assert_eq!(panics(&pair), "postern_proxy_tasks_panicked_total 0");

    // Not the first one: with that comes what the connection itself asks the clock for.
    let mut stream = TcpStream::connect(pair.out).unwrap();
    assert!(answer(&mut stream, "/api/first").starts_with("HTTP/1.1 200"));
    let failed = answer(&mut stream, "/api/break-the-clock");
    assert!(failed.starts_with("HTTP/1.1 500"), "{failed}");
    let log = pair.world.told("frontend", "its task panicked").unwrap();
    assert!(log.contains("\"message\":\"a task panicked\""), "{log}");
    assert!(log.contains("\"place\":\""), "{log}");
    assert_eq!(panics(&pair), "postern_proxy_tasks_panicked_total 1");
    // Who was there is served on, and who comes is, too.
    assert!(answer(&mut other, "/api/after").starts_with("HTTP/1.1 200"));
    let again = pair.ask(&["-w", "%{http_code}", "-o", "/dev/null"], "/api/again");
    assert_eq!(again, "200");

    // Opaque bytes have no answer: their connection ends, and no other.
    let mut opaque = TcpStream::connect(pair.out).unwrap();
    opaque.write_all(b"\0break-the-clock").unwrap();
    let mut nothing = Vec::new();
    let _ = opaque.read_to_end(&mut nothing);
    assert!(nothing.is_empty());
    let counted = || panics(&pair).ends_with(" 2").then_some(());
    eventually("the second panic", counted).unwrap();
    assert!(answer(&mut other, "/api/still").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_panic_in_a_task_on_which_all_depends_ends_the_proxy() {
    // FAULTS 134: one that no longer followed its policies would go on by old ones.
    let mut pair = start();
    let mut other = TcpStream::connect(pair.out).unwrap();
    assert!(answer(&mut other, "/api/before").starts_with("HTTP/1.1 200"));
    // What follows the policies looks at the clock.
    pair.rewrite(|text| format!("# break-the-clock\n{text}"));
    assert_eq!(pair.world.ended("frontend").unwrap(), Some(1));
    let told = "a task on which all depends panicked";
    pair.world.told("frontend", told).unwrap();
    assert_eq!(other.read(&mut [0]).unwrap_or_default(), 0);
}
