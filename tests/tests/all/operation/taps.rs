//! Decisions as they are made.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use postern_tests::{binaries, eventually};
use serde_json::Value;

use super::{FRONTEND, Pair, told};

/// Somebody who watches web.
struct Watcher {
    lines: BufReader<TcpStream>,
}

impl Watcher {
    /// Begins to watch; the head of the answer says whether that is possible.
    fn begin(admin: SocketAddr, query: &str) -> (String, Self) {
        let mut stream = TcpStream::connect(admin).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let request = format!("GET /tap{query} HTTP/1.0\r\nhost: {admin}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut lines = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(lines.read_line(&mut head).unwrap() > 0, "{head}");
        }
        (head, Self { lines })
    }

    fn open(pair: &Pair, query: &str) -> Self {
        let (head, watcher) = Self::begin(pair.admin_of("web"), query);
        assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
        watcher
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect(&line)
    }
}

#[test]
fn a_watcher_sees_the_lines_of_the_access_log_that_it_wants() {
    let pair = Pair::start();
    let caller = format!("?source={FRONTEND}");
    let mut all = Watcher::open(&pair, "");
    let mut denied = Watcher::open(&pair, "?verdict=deny&direction=inbound");
    let mut of_caller = Watcher::open(&pair, &format!("{caller}&path=/api/b"));
    let mut nobody = Watcher::open(&pair, "?source=spiffe://example.org/nobody");
    for path in ["/api/a", "/admin", "/api/b"] {
        pair.ask(&[], path);
    }
    for path in ["/api/a", "/admin", "/api/b"] {
        let line = all.next();
        assert_eq!(line["path"], path);
        assert_eq!(line, pair.logged("web", path), "as in the access log");
    }
    let line = denied.next();
    assert_eq!(
        (&line["path"], &line["verdict"]),
        (&"/admin".into(), &"deny".into())
    );
    assert!(line["reason"].as_str().is_some(), "{line}");
    assert_eq!(of_caller.next()["path"], "/api/b");
    // Who is refused before it has asked anything is seen as well.
    let url = format!("https://{}/", pair.web);
    told(&["-sk", &url]);
    assert_eq!(denied.next()["stage"], "peerAuthentication");
    // Nothing came for somebody who was not there.
    let stream = nobody.lines.get_mut();
    stream
        .set_read_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    assert!(nobody.lines.read(&mut [0]).is_err());
}

#[test]
fn a_tap_is_refused_by_name_and_there_are_few_of_them() {
    let pair = Pair::start();
    let admin = pair.admin_of("web");
    for (query, words) in [
        ("?verdikt=deny", "did you mean `verdict`?"),
        ("?verdict=denied", "is not one of `allow`, `deny`"),
        ("?source=web", "is not a SPIFFE ID"),
        ("?path=api", "is not how a path begins"),
    ] {
        let (head, mut watcher) = Watcher::begin(admin, query);
        assert!(head.starts_with("HTTP/1.0 400 "), "{head}");
        let mut said = String::new();
        watcher.lines.read_to_string(&mut said).unwrap();
        assert!(said.contains(words), "{said}");
    }
    let mut open: Vec<Watcher> = (0..4).map(|_| Watcher::open(&pair, "")).collect();
    let (head, _) = Watcher::begin(admin, "");
    assert!(head.starts_with("HTTP/1.0 429 "), "{head}");
    // Who goes makes room, and the others are not disturbed.
    drop(open.pop());
    eventually("a place", || {
        let (head, watcher) = Watcher::begin(admin, "");
        head.starts_with("HTTP/1.0 200 ").then_some(watcher)
    })
    .unwrap();
    pair.ask(&[], "/api/x");
    for watcher in &mut open {
        assert_eq!(watcher.next()["path"], "/api/x");
    }
}

/// Longer than the queue and what the kernel keeps for a reader.
const MANY: usize = 12_000;

#[test]
fn a_slow_watcher_loses_lines_is_told_how_many_and_slows_nobody_down() {
    let pair = Pair::start();
    let mut slow = Watcher::open(&pair, "?path=/api/");
    let mut stream = TcpStream::connect(pair.out).unwrap();
    let mut answers = stream.try_clone().unwrap();
    let reader =
        std::thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()).unwrap());
    for number in 0..MANY {
        let close = match number + 1 == MANY {
            true => "connection: close\r\n",
            false => "",
        };
        let request = format!("GET /api/{number} HTTP/1.1\r\nhost: web\r\n{close}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
    }
    reader.join().unwrap();
    // Each request was answered while nobody read. Now every line is there, or counted as lost.
    let (mut seen, mut lost, mut last) = (0, 0, None);
    while seen + lost < MANY {
        let line = slow.next();
        match line["lost"].as_u64() {
            Some(lines) => lost += usize::try_from(lines).unwrap(),
            None => {
                seen += 1;
                last = Some(line["path"].clone());
            }
        }
    }
    assert_eq!(seen + lost, MANY);
    assert!(lost > 0, "{seen} were seen, the last of them {last:?}");
}

/// A command that is ended when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_command_shows_decisions_to_people_and_to_programs() {
    let mut pair = Pair::start();
    let admin = pair.admin_of("web").to_string();
    let tap = |arguments: &[&str]| {
        let mut command = Command::new(binaries().unwrap().join("postern-proxy"));
        command
            .arg("tap")
            .args(arguments)
            .args(["--address", &admin]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        (Running(child), lines)
    };
    let (_words, mut words) = tap(&["--verdict", "deny"]);
    let (mut json_tap, mut json) = tap(&["--json", "--path", "/adm", "--source", FRONTEND]);
    // Nobody knows when they watch: it is asked until they do.
    let (sender, seen) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let (mut for_people, mut for_programs) = (String::new(), String::new());
        words.read_line(&mut for_people).unwrap();
        json.read_line(&mut for_programs).unwrap();
        let _ = sender.send((for_people, for_programs));
        // To the end.
        let _ = std::io::copy(&mut json, &mut std::io::sink());
    });
    let (for_people, for_programs) = eventually("a line of each", || {
        pair.ask(&[], "/admin");
        seen.try_recv().ok()
    })
    .unwrap();
    for part in ["DENY inbound", FRONTEND, "-> default/web GET /admin 403"] {
        assert!(for_people.contains(part), "`{part}` in {for_people}");
    }
    let line: Value = serde_json::from_str(&for_programs).unwrap();
    assert_eq!(line["path"], "/admin");
    // It ends well with the proxy.
    let (code, ..) = pair.command("web", &["shutdown"]);
    assert_eq!(code, Some(0));
    assert_eq!(pair.world.ended("web").unwrap(), Some(0));
    let status = eventually("the end of the tap", || json_tap.0.try_wait().unwrap()).unwrap();
    assert!(status.success(), "{status}");
    // Wrong use is known before anybody is asked.
    for wrong in [
        ["--verdict", "denied"],
        ["--source", "web"],
        ["--path", "api"],
    ] {
        let (code, ..) = pair.command("web", &[&["tap"], &wrong[..]].concat());
        assert_eq!(code, Some(2), "{wrong:?}");
    }
}
