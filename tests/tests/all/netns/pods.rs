//! Pods in network namespaces of their own, on a bridge in another one.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use postern_tests::{binaries, run};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Namespaces that are removed on drop. `outside` holds the bridge and no rules.
pub(super) struct Net {
    prefix: String,
    places: Vec<&'static str>,
}

pub(super) const OUTSIDE: &str = "outside";
pub(super) const FRONTEND: &str = "frontend";
pub(super) const WEB: &str = "web";

/// The user of the proxies.
pub(super) const PROXY: u32 = 1337;

impl Net {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let net = Self {
            prefix: format!("postern-test-{}-{number}", std::process::id()),
            places: vec![OUTSIDE, FRONTEND, WEB],
        };
        for place in &net.places {
            ip(&["netns", "add", &net.name(place)]);
            net.ip(place, &["link", "set", "lo", "up"]);
        }
        net.ip(OUTSIDE, &["link", "add", "bridge0", "type", "bridge"]);
        net.configure(OUTSIDE, "bridge0");
        for pod in [FRONTEND, WEB] {
            let name = net.name(pod);
            net.ip(
                OUTSIDE,
                &[
                    "link", "add", pod, "type", "veth", "peer", "name", "eth0", "netns", &name,
                ],
            );
            net.ip(OUTSIDE, &["link", "set", pod, "master", "bridge0", "up"]);
            net.configure(pod, "eth0");
        }
        net
    }

    fn configure(&self, place: &str, device: &str) {
        for (address, prefix) in addresses(place).iter().zip(["24", "64"]) {
            let address = format!("{address}/{prefix}");
            let mut arguments = vec!["address", "add", &address, "dev", device];
            if prefix == "64" {
                arguments.push("nodad");
            }
            self.ip(place, &arguments);
        }
        self.ip(place, &["link", "set", device, "up"]);
    }

    pub(super) fn ip(&self, place: &str, arguments: &[&str]) {
        let name = self.name(place);
        let mut all = vec!["-n", &name];
        all.extend(arguments);
        ip(&all);
    }

    fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }

    fn path(&self, place: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name(place))
    }

    /// Does `work` in a place, on a thread of its own. What it opens stays there.
    pub(super) fn inside<T: Send + 'static>(
        &self,
        place: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let namespace = File::open(self.path(place)).unwrap();
        let work = move || {
            use std::os::fd::AsFd as _;
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).unwrap();
            work()
        };
        std::thread::spawn(work).join().unwrap()
    }

    /// A program of that user in a place.
    pub(super) fn command(&self, place: &str, uid: u32, more: &[&str], program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path(place).display()));
        let uid = uid.to_string();
        command.args([
            "setpriv",
            "--reuid",
            &uid,
            "--regid",
            &uid,
            "--clear-groups",
        ]);
        command.args(more).arg(program);
        command
    }

    /// `postern-proxy netns …` in a place, with the one right that it needs.
    pub(super) fn netns(&self, place: &str, arguments: &[&str]) -> Output {
        let program = binaries().unwrap().join("postern-proxy");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path(place).display()));
        command.args([
            "setpriv",
            "--bounding-set",
            "-all,+net_admin",
            "--inh-caps",
            "-all",
        ]);
        command.arg(program).arg("netns").args(arguments);
        command.output().unwrap()
    }

    /// `postern-proxy netns setup …`, which must do it.
    pub(super) fn set_up(&self, place: &str, arguments: &[&str]) {
        let mut all = vec!["setup"];
        all.extend(arguments);
        let output = self.netns(place, &all);
        assert!(output.status.success(), "{output:?}");
    }

    /// What a program says in a place, as root.
    pub(super) fn says(&self, place: &str, line: &[&str]) -> String {
        let namespace = format!("--net={}", self.path(place).display());
        let mut all = vec![namespace.as_str()];
        all.extend(line);
        let output = run("nsenter", &all).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The rules and the policy routing of a place.
    pub(super) fn rules(&self, place: &str) -> String {
        let rules = self.says(place, &["nft", "--stateless", "list", "ruleset"]);
        // Which of them the older program keeps is told with the counts of packets.
        let plain: Vec<&str> = rules
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        let routing = ["-4", "-6"].map(|family| self.says(place, &["ip", family, "rule", "show"]));
        format!("{}\n{}", plain.join("\n"), routing.concat())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in &self.places {
            let _ = run("ip", &["netns", "delete", &self.name(place)]);
        }
    }
}

/// The addresses of a place, one of each version.
pub(super) fn addresses(place: &str) -> [IpAddr; 2] {
    let host = match place {
        OUTSIDE => 1,
        FRONTEND => 2,
        _ => 3,
    };
    [
        format!("10.78.0.{host}").parse().unwrap(),
        format!("fd78::{host}").parse().unwrap(),
    ]
}

fn ip(arguments: &[&str]) {
    let output = run("ip", arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "ip {}: {said}",
        arguments.join(" ")
    );
}

/// Answers every connection with the same words, and counts those that said something.
#[derive(Clone)]
pub(super) struct Server {
    reached: Arc<AtomicUsize>,
}

impl Server {
    pub(super) fn start(net: &Net, place: &str, port: u16) -> Self {
        let reached = Arc::new(AtomicUsize::new(0));
        let listener = net.inside(place, move || TcpListener::bind(("::", port)).unwrap());
        let counter = reached.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counter = counter.clone();
                std::thread::spawn(move || answer(stream, &counter));
            }
        });
        Self { reached }
    }

    pub(super) fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, counter: &AtomicUsize) {
    let mut head = [0; 8192];
    while let Ok(read @ 1..) = stream.read(&mut head) {
        counter.fetch_add(1, Ordering::SeqCst);
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{ANSWER}",
            ANSWER.len()
        );
        let is_last =
            String::from_utf8_lossy(head.get(..read).unwrap()).contains("connection: close");
        if stream.write_all(answer.as_bytes()).is_err() || is_last {
            return;
        }
    }
}

/// One request from a place, in plain HTTP, and all that is answered.
pub(super) fn ask(net: &Net, place: &str, to: (IpAddr, u16), method: &str, path: &str) -> String {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: web\r\nx-words: {QUESTION}\r\nconnection: close\r\n\r\n"
    );
    net.inside(place, move || {
        let asked = (|| -> std::io::Result<String> {
            let to = SocketAddr::from(to);
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(4 * PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })();
        asked.unwrap_or_else(|error| format!("not answered: {error}"))
    })
}

/// Everything that crosses the bridge.
pub(super) struct Capture {
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Capture {
    pub(super) fn start(net: &Net) -> Self {
        use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, recv, socket};
        // ETH_P_ALL in the order of the network.
        let all = Protocol::from_raw(u32::from(3_u16.to_be()).try_into().unwrap());
        let socket = net.inside(OUTSIDE, move || {
            socket(AddressFamily::PACKET, SocketType::RAW, Some(all)).unwrap()
        });
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        std::thread::spawn(move || {
            let mut packet = vec![0; 1 << 16];
            while let Ok((length, _)) = recv(&socket, packet.as_mut_slice(), RecvFlags::empty()) {
                sink.lock()
                    .unwrap()
                    .extend_from_slice(packet.get(..length).unwrap());
            }
        });
        Self { seen }
    }

    pub(super) fn saw(&self, words: &[u8]) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.windows(words.len()).any(|window| window == words)
    }
}

pub(super) const QUESTION: &str = "the-words-of-the-app";
pub(super) const ANSWER: &str = "the-words-of-the-server";
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
