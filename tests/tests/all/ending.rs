//! The end of a proxy, step by step, seen by clients of every kind.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Condvar, Mutex},
};

use postern_tests::{
    certificates::Authority,
    eventually, root, run,
    world::{World, free_address},
};
use rustix::process::Signal;

/// An app that answers at once, but `/held` only when it is told to, and echoes what is no HTTP.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let opened = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(opened, |opened| !*opened).unwrap());
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut piece = [0; 8192];
        while let Ok(read @ 1..) = stream.read(&mut piece) {
            let said = piece.get(..read).unwrap();
            let answer: &[u8] = match said.starts_with(b"GET ") {
                true => b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n",
                false => said,
            };
            if said.starts_with(b"GET /held") {
                self.wait();
            }
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    }
}

/// Two proxies: `web` in front of the app, and `frontend` whose app reaches web at `out`.
pub(super) struct Site {
    pub(super) world: World,
    gate: Gate,
    pub(super) web: SocketAddr,
    pub(super) web_health: SocketAddr,
    web_admin: SocketAddr,
    pub(super) out: SocketAddr,
    frontend: SocketAddr,
}

impl Site {
    /// Both end like this.
    pub(super) fn start(drain: &str) -> Self {
        let mut world = World::new().unwrap();
        let (gate, app) = (Gate::default(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = app.local_addr().unwrap();
        let serving = gate.clone();
        std::thread::spawn(move || {
            for stream in app.incoming().flatten() {
                let gate = serving.clone();
                std::thread::spawn(move || gate.serve(stream));
            }
        });
        let authority = Authority::new("example.org").unwrap();
        for name in ["web", "frontend"] {
            let id = format!("spiffe://example.org/ns/default/sa/{name}");
            authority
                .write_leaf(world.path(), name, &id, |_| {})
                .unwrap();
        }
        world.write("bundle.crt", &authority.pem).unwrap();
        let [web, web_health, web_admin, out, frontend] = [(); 5].map(|()| free_address().unwrap());
        let web = SocketAddr::from(([127, 0, 0, 2], web.port()));
        world
            .write("workloads/all.yaml", &workloads(web.port()))
            .unwrap();
        world.write("policies/all.yaml", PERMISSIVE).unwrap();
        let common = |name: &str, health: SocketAddr, admin: SocketAddr| {
            format!(
                "identity: {{files: {{certificate: {name}.crt, key: {name}.key, bundle: bundle.crt}}}}\n\
                 policies: {{directory: policies}}\nworkloads: {{directory: workloads}}\n\
                 defaults: istio\nadmin: {{listen: '{admin}'}}\nmetrics: {{listen: '{health}'}}\n\
                 accessLog: {{path: {name}-access.log}}\ndrain: {drain}\n"
            )
        };
        let of_web = format!(
            "{}inbound: {{listen: '{web}', forward: '{address}'}}\n",
            common("web", web_health, web_admin)
        );
        let of_frontend = format!(
            "{}inbound: {{listen: '{frontend}', forward: '127.0.0.1:9'}}\n\
             outbound: {{listeners: [{{listen: '{out}', to: default/web, port: any}}]}}\n",
            common("frontend", free_address().unwrap(), free_address().unwrap())
        );
        for (name, config) in [("web", &of_web), ("frontend", &of_frontend)] {
            world.proxy(name, config).unwrap();
            world.said(name, "ready").unwrap();
        }
        Self {
            world,
            gate,
            web,
            web_health,
            web_admin,
            out,
            frontend,
        }
    }

    fn tell(&self, name: &str) {
        self.world.signal(name, Signal::TERM).unwrap();
    }

    #[track_caller]
    fn ends_well(&mut self, name: &str) {
        assert_eq!(self.world.ended(name).unwrap(), Some(0));
    }

    fn access_log(&self, name: &str) -> String {
        let path = self.world.path().join(format!("{name}-access.log"));
        fs::read_to_string(path).unwrap()
    }

    /// Waits until a client written in Python has printed this.
    #[track_caller]
    fn printed(&self, name: &str, word: &str) {
        let log = || fs::read_to_string(self.world.log(name)).unwrap_or_default();
        let found = eventually(word, || log().contains(word).then_some(()));
        assert!(found.is_ok(), "no `{word}` in {}", log());
    }

    /// A request over HTTP/2 that is answered when the gate is opened.
    fn held_http2(&mut self, name: &str, to: SocketAddr) {
        let mut python = Command::new(root().join("target/python/bin/python"));
        python.arg(root().join("tests/python/ending.py"));
        python.args([&to.ip().to_string(), &to.port().to_string(), "/held"]);
        self.world.spawn(name, &mut python).unwrap();
        self.printed(name, "asked");
    }
}

/// Head and body of curl's answer on a connection of its own; empty where there was none.
pub(super) fn curl(to: SocketAddr, path: &str) -> String {
    let output = run("curl", &["-si", "-m", "10", &format!("http://{to}{path}")]).unwrap();
    String::from_utf8_lossy(&output.stdout).to_lowercase()
}

/// Asks once and reads the whole answer.
pub(super) fn ask(stream: &mut TcpStream, path: &str) -> std::io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n").as_bytes())?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"hello\n") {
        match stream.read(&mut piece)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(piece.get(..read).unwrap()),
        }
    }
    Ok(String::from_utf8_lossy(&answer).to_lowercase())
}

#[track_caller]
fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"\x01ping").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"\x01ping");
}

const ASKS_TO_LEAVE: &str = "callers are asked to leave";
const LETS_NOBODY_IN: &str = "nobody new is let in";

#[test]
fn readiness_turns_first_and_everybody_is_served_as_before() {
    // FAULTS 123
    let mut site = Site::start("{delay: 1m, deadline: 10m}");
    let mut kept = TcpStream::connect(site.web).unwrap();
    ask(&mut kept, "/api").unwrap();
    let ready = |site: &Site| curl(site.web_health, "/healthz/ready");
    assert!(ready(&site).starts_with("http/1.1 200"));
    site.tell("web");
    site.world.said("web", "draining").unwrap();
    let told = ready(&site);
    assert!(
        told.starts_with("http/1.1 503") && told.contains("draining"),
        "{told}"
    );
    for answer in [ask(&mut kept, "/api").unwrap(), curl(site.web, "/api")] {
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    // A second signal ends at once, whatever is open.
    site.tell("web");
    site.world
        .said("web", "told twice, what is open is cut")
        .unwrap();
    site.ends_well("web");
    assert!(ask(&mut kept, "/api").is_err());
    assert_eq!(site.access_log("web").lines().count(), 3, "a line for each");
}

#[test]
fn callers_are_asked_to_leave_then_nobody_is_let_in_and_what_was_begun_is_finished() {
    // FAULTS 123
    let mut site = Site::start("{delay: 5s, deadline: 10m}");
    let mut kept = TcpStream::connect(site.web).unwrap();
    ask(&mut kept, "/api").unwrap();
    let mut silent = TcpStream::connect(site.web).unwrap();
    ask(&mut silent, "/api").unwrap();
    let mut opaque = TcpStream::connect(site.web).unwrap();
    echoes(&mut opaque);
    site.held_http2("held", site.web);

    site.tell("web");
    site.world.said("web", ASKS_TO_LEAVE).unwrap();
    site.printed("held", "goaway");
    // Also who comes now is served, and told.
    for answer in [ask(&mut kept, "/api").unwrap(), curl(site.web, "/api")] {
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    assert!(
        ask(&mut kept, "/api").is_err(),
        "it was closed, as it was said"
    );

    site.world.said("web", LETS_NOBODY_IN).unwrap();
    eventually("the listener to close", || {
        let refused = TcpStream::connect(site.web).err()?;
        (refused.kind() == ErrorKind::ConnectionRefused).then_some(())
    })
    .unwrap();
    assert_eq!(
        silent.read(&mut [0]).unwrap(),
        0,
        "it asked nothing any more"
    );
    // What was begun goes on, and is waited for.
    echoes(&mut opaque);
    site.gate.open();
    site.printed("held", "answered 200");
    site.printed("held", "closed");
    echoes(&mut opaque);
    drop(opaque);
    site.world.said("web", "drained").unwrap();
    site.ends_well("web");
    let lines = site.access_log("web");
    assert!(lines.contains("\"path\":\"/held\""), "{lines}");
    assert!(lines.contains("\"bytes_sent\":15"), "{lines}");
}

#[test]
fn what_is_open_at_the_deadline_is_cut_and_told() {
    // FAULTS 123
    let mut site = Site::start("{delay: 100ms, deadline: 2s}");
    let mut opaque = TcpStream::connect(site.web).unwrap();
    echoes(&mut opaque);
    site.held_http2("held", site.web);
    site.tell("web");
    site.ends_well("web");
    let log = fs::read_to_string(site.world.log("web")).unwrap();
    let line = log
        .lines()
        .find(|line| line.contains("the deadline is over"));
    let line: serde_json::Value = serde_json::from_str(line.unwrap()).unwrap();
    assert_eq!(
        (&line["inbound"], &line["outbound"]),
        (&2.into(), &0.into())
    );
    assert!(!matches!(opaque.read(&mut [0]), Ok(1..)), "it was cut");
    site.printed("held", "closed");
    // The last lines are not lost.
    let lines = site.access_log("web");
    let cut = lines
        .lines()
        .find(|line| line.contains("the connection was cut"));
    let cut: serde_json::Value = serde_json::from_str(cut.unwrap()).unwrap();
    assert_eq!(
        (&cut["bytes_received"], &cut["bytes_sent"]),
        (&5.into(), &5.into())
    );
}

/// As a hook of Kubernetes asks for the end, and the signal follows at once.
#[test]
fn a_signal_after_the_wish_to_end_cuts_nothing_and_the_next_one_does() {
    for signals in 1..=2 {
        let mut site = Site::start("{delay: 0s, deadline: 10m}");
        site.held_http2("held", site.web);
        let url = format!("http://{}/shutdown", site.web_admin);
        let told = run("curl", &["-s", "-X", "POST", &url]).unwrap();
        assert!(told.status.success());
        site.world.said("web", LETS_NOBODY_IN).unwrap();
        site.tell("web");
        if signals == 1 {
            site.gate.open();
            site.printed("held", "answered 200");
            site.world.said("web", "drained").unwrap();
        } else {
            // Two that come at once are one.
            let log = || fs::read_to_string(site.world.log("web")).unwrap();
            eventually("the cut", || {
                let _ = site.world.signal("web", Signal::TERM);
                log()
                    .contains("told twice, what is open is cut")
                    .then_some(())
            })
            .unwrap();
        }
        site.ends_well("web");
    }
}

#[test]
fn the_apps_own_requests_are_served_while_the_proxy_ends() {
    // FAULTS 123
    let mut site = Site::start("{delay: 300ms, deadline: 10m}");
    site.held_http2("held", site.out);
    let mut opaque = TcpStream::connect(site.out).unwrap();
    echoes(&mut opaque);
    site.tell("frontend");
    site.world.said("frontend", LETS_NOBODY_IN).unwrap();
    eventually("the road in to close", || {
        TcpStream::connect(site.frontend).err()
    })
    .unwrap();
    for _ in 0..10 {
        let answer = curl(site.out, "/api");
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        echoes(&mut TcpStream::connect(site.out).unwrap());
    }
    site.printed("held", "goaway");
    site.gate.open();
    site.printed("held", "answered 200");
    echoes(&mut opaque);
    drop(opaque);
    site.world.said("frontend", "drained").unwrap();
    site.ends_well("frontend");
}

#[test]
fn under_load_no_request_fails_while_the_proxy_ends() {
    // FAULTS 123
    let mut site = Site::start("{delay: 1s, deadline: 10m}");
    let web = site.web;
    // Half of them keep their connections as long as they may.
    let callers = [true, true, false, false].map(|keeps| {
        std::thread::spawn(move || {
            let (mut asked, mut kept) = (0, None);
            loop {
                let mut stream = match kept.take().map_or_else(|| TcpStream::connect(web), Ok) {
                    Ok(stream) => stream,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                        return asked;
                    }
                };
                match ask(&mut stream, "/api") {
                    Ok(answer) => {
                        assert!(answer.starts_with("http/1.1 200"), "{answer}");
                        asked += 1;
                        kept = (keeps && !answer.contains("connection: close")).then_some(stream);
                    }
                    // In the instant in which the listener goes, the kernel answers like this.
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                        let after = TcpStream::connect(web).unwrap_err();
                        assert_eq!(after.kind(), ErrorKind::ConnectionRefused);
                        return asked;
                    }
                    Err(error) => panic!("after {asked} requests: {error}"),
                }
            }
        })
    });
    eventually("some load", || {
        (site.access_log("web").lines().count() > 100).then_some(())
    })
    .unwrap();
    site.tell("web");
    let asked: usize = callers.map(|caller| caller.join().unwrap()).iter().sum();
    site.ends_well("web");
    let lines = site.access_log("web").lines().count();
    assert!(lines >= asked, "{lines} lines for {asked} requests");
}

fn workloads(port: u16) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web}}\n\
         spec: {{serviceAccount: web, addresses: [127.0.0.2], ports: [{{name: any, port: {port}}}]}}\n\
         ---\napiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: frontend}}\n\
         spec: {{serviceAccount: frontend}}\n"
    )
}

const PERMISSIVE: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: all}
spec: {mtls: {mode: PERMISSIVE}}
";
