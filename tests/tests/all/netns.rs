//! The redirection and the default deny of `postern-proxy netns`, in real network namespaces.

mod pods;

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    process::Command,
};

use pods::{
    ANSWER, Capture, FRONTEND, Net, OUTSIDE, PATIENCE, PROXY, QUESTION, Server, WEB, addresses, ask,
};
use postern_tests::{
    binaries, eventually, run,
    world::{World, free_address},
};

/// Two pods with their proxies and one app, and a place outside.
struct Mesh {
    world: World,
    net: Net,
    app: Server,
}

const APP: u16 = 8080;

impl Mesh {
    /// Namespaces and an agent, and nothing else yet.
    fn bare() -> Self {
        let mut world = World::new().unwrap();
        let net = Net::new();
        let open = |mode| fs::Permissions::from_mode(mode);
        fs::set_permissions(world.path(), open(0o755)).unwrap();
        fs::create_dir(world.path().join("logs")).unwrap();
        fs::set_permissions(world.path().join("logs"), open(0o777)).unwrap();
        let program = binaries().unwrap().join("postern-proxy");
        for pod in [FRONTEND, WEB] {
            let place = world.path().join(pod);
            // A link, so that no copy is made; across file systems there is no other way than a copy.
            if fs::hard_link(&program, &place).is_err() {
                fs::copy(&program, &place).unwrap();
            }
        }
        let workloads = [FRONTEND, WEB].map(|name| {
            let [v4, v6] = addresses(name);
            format!(
                "apiVersion: postern.dev/v1\nkind: Workload\n\
                 metadata: {{name: {name}, labels: {{app: {name}}}}}\n\
                 spec:\n  serviceAccount: {name}\n  selectors: ['unix:path:{}']\n  \
                 addresses: ['{v4}', '{v6}']\n  \
                 ports: [{{name: http, port: {APP}}}, {{name: admin, port: 15000}}]\n",
                world.path().join(name).display(),
            )
        });
        let workloads = workloads.join("---\n");
        world.write("directory/workloads.yaml", &workloads).unwrap();
        world.write("policies/rules.yaml", RULES).unwrap();
        world.agent(&workloads).unwrap();
        let app = Server::start(&net, WEB, APP);
        Self { world, net, app }
    }

    /// Everything, with rules made from the proxies' own configurations.
    fn new(forward: &str, options: &[&str]) -> Self {
        let mut mesh = Self::bare();
        for pod in [FRONTEND, WEB] {
            let config = mesh.configure(pod, forward, "");
            let mut all = vec!["--config", &config];
            all.extend(options);
            mesh.net.set_up(pod, &all);
        }
        for pod in [FRONTEND, WEB] {
            mesh.start(pod);
            mesh.world.said(pod, "ready").unwrap();
        }
        mesh
    }

    fn configure(&self, pod: &str, forward: &str, more: &str) -> String {
        let config = format!(
            "identity: {{workloadApi: 'unix://{}/public/agent.sock'}}\n\
             policies: {{directory: policies}}\nworkloads: {{directory: directory}}\n\
             inbound: {{listen: '[::]:15006', forward: {forward}}}\n\
             outbound: {{listen: '127.0.0.1:15001'}}\nmetrics: {{listen: '[::]:15020'}}\n\
             accessLog: {{path: logs/{pod}.log}}\ndrain: 1s\n{more}",
            self.world.path().display(),
        );
        let path = self.world.write(&format!("{pod}.yaml"), &config).unwrap();
        path.display().to_string()
    }

    /// Starts a configured proxy with the one right that TPROXY needs.
    fn start(&mut self, pod: &str) {
        let rights = ["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"];
        self.start_with(pod, &rights);
    }

    fn start_with(&mut self, pod: &str, rights: &[&str]) {
        let program = self.world.path().join(pod).display().to_string();
        let mut command = self.net.command(pod, PROXY, rights, &program);
        command.args(["run", "--config", &format!("{pod}.yaml")]);
        self.world.spawn(pod, &mut command).unwrap();
    }

    /// What `path` of a pod's metrics listener says, asked in the pod itself.
    fn told(&self, pod: &'static str, path: &str) -> String {
        ask(
            &self.net,
            pod,
            ("127.0.0.1".parse().unwrap(), 15020),
            "GET",
            path,
        )
    }

    fn log(&self, pod: &str) -> String {
        fs::read_to_string(self.world.log(pod)).unwrap_or_default()
    }
}

/// The frontend may ask web for what lies under `/api`, and reach any of its ports.
const RULES: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
    - {from: [{podSelector: {matchLabels: {app: frontend}}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: frontend}
spec:
  podSelector: {matchLabels: {app: frontend}}
  policyTypes: [Egress]
  egress:
    - {to: [{podSelector: {matchLabels: {app: web}}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  rules:
    - from: [{source: {principals: ['example.org/ns/default/sa/frontend']}}]
      to: [{operation: {methods: [GET], paths: ['/api/*', '/connections']}}]
";

/// The apps talk plain HTTP to each other, and on the wire there is nothing of it.
fn app_to_app(forward: &str) {
    let mesh = Mesh::new(forward, &[]);
    // The right to be transparent was given up before anything was accepted.
    let status = format!("/proc/{}/status", mesh.world.pid(WEB).unwrap());
    let status = fs::read_to_string(status).unwrap();
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        assert!(
            status.contains(&format!("{set}:\t0000000000000000\n")),
            "{status}"
        );
    }
    let capture = Capture::start(&mesh.net);
    for web in addresses(WEB) {
        let answer = ask(&mesh.net, FRONTEND, (web, APP), "GET", "/api/orders");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{web}: {answer}");
        assert!(answer.ends_with(ANSWER), "{web}: {answer}");
        let answer = ask(&mesh.net, FRONTEND, (web, APP), "PUT", "/api/orders");
        assert!(answer.starts_with("HTTP/1.1 403 "), "{web}: {answer}");
    }
    assert_eq!(
        mesh.app.reached(),
        2,
        "only what was allowed reached the app"
    );

    // What is plain is seen, so that the silence about the rest means something.
    let metrics = ask(
        &mesh.net,
        OUTSIDE,
        (addresses(WEB)[0], 15020),
        "GET",
        "/metrics",
    );
    assert!(metrics.contains("postern_proxy_connections_accepted_total"));
    eventually("the metrics on the wire", || {
        capture
            .saw(b"postern_proxy_connections_accepted_total")
            .then_some(())
    })
    .unwrap();
    assert!(!capture.saw(b"/api/orders"), "the question is on the wire");
    assert!(!capture.saw(ANSWER.as_bytes()), "the answer is on the wire");
    // The last question of all was that for the metrics, which bore the same words.
    assert!(capture.saw(QUESTION.as_bytes()));
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_apps_talk_plainly_and_the_wire_is_encrypted() {
    // FAULTS 119
    app_to_app("original-destination");
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_apps_talk_plainly_where_connections_are_handed_over_as_they_are() {
    // FAULTS 119
    app_to_app("transparent");
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_the_older_program_makes_the_same_rules() {
    // FAULTS 119, 120
    let mesh = Mesh::new("original-destination", &["--backend", "iptables"]);
    for web in addresses(WEB) {
        let answer = ask(&mesh.net, FRONTEND, (web, APP), "GET", "/api/orders");
        assert!(answer.ends_with(ANSWER), "{web}: {answer}");
        let answer = ask(&mesh.net, OUTSIDE, (web, APP), "GET", "/api/orders");
        assert!(!answer.contains("HTTP"), "{web}: {answer}");
    }
    let outside = Server::start(&mesh.net, OUTSIDE, 7000);
    for address in addresses(OUTSIDE) {
        let answer = ask(&mesh.net, FRONTEND, (address, 7000), "GET", "/");
        assert!(!answer.contains(ANSWER), "{address}: {answer}");
        assert!(send_udp(&mesh.net, FRONTEND, (address, 9999)).is_err());
    }
    assert_eq!((mesh.app.reached(), outside.reached()), (2, 0));
}

fn send_udp(net: &Net, place: &str, to: (IpAddr, u16)) -> std::io::Result<usize> {
    net.inside(place, move || {
        let any = match to.0 {
            IpAddr::V4(_) => "0.0.0.0:0",
            IpAddr::V6(_) => "[::]:0",
        };
        UdpSocket::bind(any)?.send_to(b"hello", SocketAddr::from(to))
    })
}

/// Sends a packet of a protocol that nobody filters by accident. `kind` is its first byte, which in
/// ICMPv6 is its type.
fn send_raw(
    net: &Net,
    place: &str,
    to: IpAddr,
    (protocol, kind): (u32, u8),
) -> rustix::io::Result<usize> {
    use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType, sendto, socket};
    net.inside(place, move || {
        let family = match to {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let protocol = Protocol::from_raw(protocol.try_into().unwrap());
        let socket = socket(family, SocketType::RAW, Some(protocol))?;
        let packet = [kind, 0, 0, 0, 0, 1, 0, 1];
        sendto(
            &socket,
            &packet,
            SendFlags::empty(),
            &SocketAddr::new(to, 0),
        )
    })
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_an_app_has_no_way_round_its_proxy() {
    // FAULTS 119
    let resolver = addresses(OUTSIDE)
        .map(|address| address.to_string())
        .join(",");
    let mesh = Mesh::new("original-destination", &["--resolver", &resolver]);
    let net = &mesh.net;
    let outside = Server::start(net, OUTSIDE, 7000);
    for address in addresses(OUTSIDE) {
        // By TCP it ends at the proxy, which knows nobody there.
        let answer = ask(net, FRONTEND, (address, 7000), "GET", "/api/orders");
        assert!(answer.starts_with("HTTP/1.1 403 "), "{address}: {answer}");
        // By UDP it gets as far as the resolver's one port.
        let names = net.inside(OUTSIDE, move || UdpSocket::bind((address, 53)).unwrap());
        names.set_read_timeout(Some(PATIENCE)).unwrap();
        send_udp(net, FRONTEND, (address, 53)).unwrap();
        assert_eq!(names.recv(&mut [0; 16]).unwrap(), 5);
        assert!(send_udp(net, FRONTEND, (address, 54)).is_err(), "{address}");
        // An experimental protocol, IPv6 in IPv4, an echo request of ICMPv6, and a neighbour
        // solicitation that routers would pass on.
        for packet in [(253, 0), (41, 0x60), (58, 128), (58, 135)] {
            let sent = send_raw(net, FRONTEND, address, packet);
            assert_eq!(sent, Err(rustix::io::Errno::PERM), "{address} {packet:?}");
        }
    }
    // UDP to another pod whose address is no resolver.
    for address in addresses(WEB) {
        assert!(send_udp(net, FRONTEND, (address, 53)).is_err(), "{address}");
    }
    // FAULTS 117: where clouds keep a machine's secrets.
    for (address, device) in [("169.254.169.254/32", "-4"), ("fd00:ec2::254/128", "-6")] {
        net.ip(OUTSIDE, &["address", "add", address, "dev", "lo"]);
        let gateway = addresses(OUTSIDE)[usize::from(device == "-6")].to_string();
        net.ip(
            FRONTEND,
            &[device, "route", "add", "default", "via", &gateway],
        );
    }
    for address in ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"] {
        let answer = ask(
            net,
            FRONTEND,
            (address.parse().unwrap(), 7000),
            "GET",
            "/latest",
        );
        assert!(answer.starts_with("HTTP/1.1 403 "), "{address}: {answer}");
    }
    assert_eq!(outside.reached(), 0);

    // The ports to which all is redirected are taken, and cannot be taken from the proxy.
    for port in [15001, 15006] {
        let bound = net.inside(FRONTEND, move || TcpListener::bind(("127.0.0.1", port)));
        assert!(bound.is_err(), "{port}");
    }

    // The limit: who is the proxy's user is the proxy, for the rules.
    let mut as_proxy = net.command(FRONTEND, PROXY, &[], "curl");
    let url = format!("http://{}:7000/", addresses(OUTSIDE)[0]);
    let output = as_proxy.args(["-s", &url]).output().unwrap();
    assert_eq!(output.stdout, ANSWER.as_bytes());
    assert_eq!(outside.reached(), 1);
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_from_outside_there_is_only_mutual_tls() {
    // FAULTS 120, 121
    from_outside_there_is_only_mutual_tls("original-destination");
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_from_outside_there_is_only_mutual_tls_handed_over() {
    // FAULTS 120, 121
    from_outside_there_is_only_mutual_tls("transparent");
}

fn from_outside_there_is_only_mutual_tls(forward: &str) {
    let mesh = Mesh::new(forward, &[]);
    let net = &mesh.net;
    for web in addresses(WEB) {
        let answer = ask(net, OUTSIDE, (web, APP), "GET", "/api/orders");
        assert!(!answer.contains("HTTP"), "plaintext, {web}: {answer}");
        let udp = net.inside(WEB, move || UdpSocket::bind((web, 9999)).unwrap());
        udp.set_nonblocking(true).unwrap();
        send_udp(net, OUTSIDE, (web, 9999)).unwrap();
        // Without an identity a TLS client gets no further.
        let url = format!("https://{}/api/orders", SocketAddr::new(web, APP));
        let told = net.says(
            OUTSIDE,
            &["curl", "-sk", "-m", "5", "-w", "%{http_code}", &url],
        );
        assert_eq!(told, "000", "{web}");
        assert!(udp.recv(&mut [0; 16]).is_err(), "UDP came in at {web}");

        // The proxy's own ports are no way in either.
        for port in [15000, 15001, 15006] {
            let answer = ask(net, OUTSIDE, (web, port), "GET", "/config_dump");
            assert!(!answer.contains("HTTP"), "{web}:{port}: {answer}");
        }
        // Metrics are told, and nothing can be changed by them.
        let ask = |method, path| ask(net, OUTSIDE, (web, 15020), method, path);
        assert!(ask("GET", "/metrics").starts_with("HTTP/1.1 200 "));
        assert!(ask("GET", "/config_dump").starts_with("HTTP/1.1 404 "));
        for path in [
            "/shutdown",
            "/quitquitquit",
            "/logging?level=off",
            "/healthz/ready",
        ] {
            assert!(ask("POST", path).starts_with("HTTP/1.1 405 "), "{path}");
        }
        assert!(ask("GET", "/healthz/ready").starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(mesh.app.reached(), 0);
    // In the pod itself the app is reached as ever.
    let own = ask(net, WEB, ("127.0.0.1".parse().unwrap(), APP), "GET", "/");
    assert!(own.ends_with(ANSWER), "{own}");
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_the_proxys_own_ports_are_no_destination() {
    // FAULTS 116, 121
    the_proxys_own_ports_are_no_destination("original-destination");
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_the_proxys_own_ports_are_no_destination_handed_over() {
    // FAULTS 116, 121
    the_proxys_own_ports_are_no_destination("transparent");
}

fn the_proxys_own_ports_are_no_destination(forward: &str) {
    let mesh = Mesh::new(forward, &[]);
    let loopback: IpAddr = "127.0.0.1".parse().unwrap();
    let accepted = |pod| {
        let metrics = mesh.told(pod, "/metrics");
        let lines = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("postern_proxy_connections_accepted_total"));
        lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum::<u64>()
    };
    let before = (accepted(FRONTEND), accepted(WEB));
    for web in addresses(WEB) {
        // Every policy allows it: the admin port is named by the directory.
        let answer = ask(&mesh.net, FRONTEND, (web, 15000), "GET", "/connections");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{web}: {answer}");
    }
    for pod in [FRONTEND, WEB] {
        for address in [loopback, addresses(pod)[0], addresses(pod)[1]] {
            let answer = ask(&mesh.net, pod, (address, 15001), "GET", "/api/orders");
            assert!(!answer.contains("HTTP"), "{pod} {address}: {answer}");
            let answer = ask(&mesh.net, pod, (address, 15006), "GET", "/api/orders");
            assert!(!answer.contains("HTTP"), "{pod} {address}: {answer}");
        }
    }
    for web in addresses(WEB) {
        let refused = format!("{} is the proxy itself", SocketAddr::new(web, 15000));
        assert!(mesh.log(WEB).contains(&refused), "{}", mesh.log(WEB));
    }
    let after = (accepted(FRONTEND), accepted(WEB));
    assert!(
        after.0 - before.0 < 20 && after.1 - before.1 < 20,
        "{before:?} {after:?}"
    );
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_setup_is_whole_the_same_twice_and_leaves_nothing() {
    let net = Net::new();
    let empty = net.rules(WEB);
    for options in [
        &["--no-resolver"] as &[&str],
        &[
            "--resolver",
            "10.0.0.10,fd00::10",
            "--exclude-inbound-ports",
            "22,8000-8010",
        ],
        &[
            "--mode",
            "tproxy",
            "--exclude-outbound-cidrs",
            "10.0.0.0/8,fd00::/8",
            "--no-resolver",
        ],
        &[
            "--backend",
            "iptables",
            "--no-resolver",
            "--exclude-outbound-ports",
            "25",
        ],
        &[
            "--backend",
            "iptables",
            "--mode",
            "tproxy",
            "--resolver",
            "10.0.0.10,fd00::10",
        ],
    ] {
        let with = |first: &[&'static str]| [first, options].concat();
        // What is only shown changes nothing, and is all that there is to do.
        let shown = net.netns(WEB, &with(&["setup", "--dry-run"]));
        assert!(shown.status.success(), "{shown:?}");
        assert_eq!(net.rules(WEB), empty, "{options:?}");
        let script = String::from_utf8(shown.stdout).unwrap();
        net.says(WEB, &["sh", "-ec", &script]);
        let by_hand = net.rules(WEB);
        assert_ne!(by_hand, empty, "{options:?}");

        net.set_up(WEB, options);
        assert_eq!(net.rules(WEB), by_hand, "{options:?}");
        net.set_up(WEB, options);
        assert_eq!(net.rules(WEB), by_hand, "{options:?}");

        let shown = net.netns(WEB, &["cleanup", "--dry-run"]);
        assert!(shown.status.success() && net.rules(WEB) == by_hand);
        for _ in 0..2 {
            assert!(net.netns(WEB, &["cleanup"]).status.success());
            let left = net.rules(WEB);
            assert!(
                !left.to_lowercase().contains("postern"),
                "{options:?}: {left}"
            );
            assert!(!left.contains("0x539"), "{options:?}: {left}");
        }
        // The older program leaves the empty tables in which its chains were.
        net.says(WEB, &["nft", "flush", "ruleset"]);
        assert_eq!(net.rules(WEB), empty, "{options:?}");
    }
    let refused = net.netns(WEB, &["setup", "--proxy-uid", "0"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let refused = net.netns(WEB, &["setup", "--config", "/nowhere/proxy.yaml"]);
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
    assert_eq!(net.rules(WEB), empty);
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_without_redirection_a_proxy_is_not_ready() {
    let mut mesh = Mesh::bare();
    mesh.configure(WEB, "original-destination", "");
    mesh.start(WEB);
    mesh.world
        .said(WEB, "the redirection is not proven")
        .unwrap();
    let told = mesh.told(WEB, "/healthz/ready");
    assert!(
        told.contains(" 503 ") && told.contains("is not redirected"),
        "{told}"
    );

    // Rules for another user make the proxy its own customer: found before one connection goes out.
    mesh.net
        .set_up(WEB, &["--no-resolver", "--proxy-uid", "4000"]);
    let told = eventually("the loop", || {
        let told = mesh.told(WEB, "/healthz/ready");
        told.contains("the rules redirect the proxy's own connections")
            .then_some(told)
    });
    assert!(told.unwrap().contains(" 503 "));
    let outside = ask(&mesh.net, WEB, (addresses(OUTSIDE)[0], 7000), "GET", "/");
    assert!(!outside.contains("HTTP"), "{outside}");

    mesh.net.set_up(WEB, &["--no-resolver"]);
    mesh.world.said(WEB, "ready").unwrap();
    assert!(mesh.told(WEB, "/healthz/ready").contains(" 200 "));

    // Whoever does not want to know is warned.
    mesh.configure(
        FRONTEND,
        "original-destination",
        "interception: {probe: false}\n",
    );
    mesh.start(FRONTEND);
    mesh.world.said(FRONTEND, "ready").unwrap();
    assert!(mesh.log(FRONTEND).contains("`interception.probe` is off"));
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces and control groups"]
fn root_a_proxy_known_by_its_control_group_shares_its_user_with_nobody() {
    // FAULTS 119
    let net = Net::new();
    let outside = Server::start(&net, OUTSIDE, 7000);
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut mounts = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let unified = mounts.find(|words| words[2] == "cgroup2").unwrap()[1].to_owned();
    let group = Group(format!("{unified}/postern-test-{}", std::process::id()));
    fs::create_dir(&group.0).unwrap();
    let name = group.0.strip_prefix(&unified).unwrap();

    // `nft` looks for control groups where systemd mounts them.
    let program = binaries()
        .unwrap()
        .join("postern-proxy")
        .display()
        .to_string();
    let set_up = format!(
        "mount -t cgroup2 none /sys/fs/cgroup && exec {program} netns setup --no-resolver --proxy-cgroup {name} --proxy-uid {PROXY}"
    );
    let line = ["unshare", "--mount", "sh", "-c", &set_up];
    let url = format!("http://{}:7000/", addresses(OUTSIDE)[0]);
    let get = |uid: u32, group: &str| {
        let enter = format!("echo $$ > {group}/cgroup.procs && exec \"$@\"");
        let inner = net.command(FRONTEND, uid, &[], "curl");
        let mut command = Command::new("sh");
        command.args(["-c", &enter, "sh"]).arg(inner.get_program());
        command.args(inner.get_args()).args(["-s", "-m", "3", &url]);
        command.output().unwrap().status.success()
    };
    net.says(FRONTEND, &line);
    assert!(net.rules(FRONTEND).contains("socket cgroupv2"));
    assert!(get(PROXY, &group.0), "the proxy goes out");
    assert!(!get(PROXY, &unified), "its user elsewhere does not");
    assert!(!get(1500, &group.0), "nor somebody else in its group");
    assert_eq!(outside.reached(), 1);
}

/// A control group that is removed on drop.
struct Group(String);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = eventually("an empty control group", || fs::remove_dir(&self.0).ok());
    }
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_a_transparent_listener_needs_one_right_and_says_which() {
    let mut mesh = Mesh::bare();
    mesh.configure(WEB, "transparent", "");
    mesh.start_with(WEB, &[]);
    assert_eq!(mesh.world.ended(WEB).unwrap(), Some(1));
    let log = mesh.log(WEB);
    assert!(log.contains("which needs CAP_NET_ADMIN at start"), "{log}");
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_a_pod_is_no_router() {
    // FAULTS 119
    let net = Net::new();
    let outside = Server::start(&net, OUTSIDE, 7000);
    // What the frontend's proxy sends to this address goes by way of web.
    let [web, _] = addresses(WEB).map(|address| address.to_string());
    let [bridge, _] = addresses(OUTSIDE).map(|address| address.to_string());
    net.ip(OUTSIDE, &["address", "add", "10.79.0.1/32", "dev", "lo"]);
    net.ip(FRONTEND, &["route", "add", "10.79.0.1", "via", &web]);
    net.ip(WEB, &["route", "add", "10.79.0.1", "via", &bridge]);
    net.says(WEB, &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    let get = || {
        let mut curl = net.command(FRONTEND, PROXY, &[], "curl");
        curl.args(["-s", "-m", "3", "http://10.79.0.1:7000/"]);
        curl.output().unwrap().status.success()
    };
    assert!(get(), "without rules it forwards");
    net.set_up(WEB, &["--no-resolver"]);
    assert!(!get());
    assert_eq!(outside.reached(), 1);
}

#[test]
fn a_listener_that_leads_to_itself_is_no_loop() {
    // FAULTS 116
    let mut world = World::new().unwrap();
    let [itself, inbound, health] = [(); 3].map(|()| free_address().unwrap());
    let uid = rustix::process::geteuid().as_raw();
    let workload = format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: itself}}\n\
         spec: {{serviceAccount: itself, selectors: ['unix:uid:{uid}'], addresses: ['{}'], \
         ports: [{{name: http, port: {}}}]}}\n",
        itself.ip(),
        itself.port(),
    );
    let socket = world.agent(&workload).unwrap();
    world.write("directory/itself.yaml", &workload).unwrap();
    fs::create_dir(world.path().join("policies")).unwrap();
    let config = format!(
        "identity: {{workloadApi: 'unix://{}'}}\ndefaults: istio\npolicies: {{directory: policies}}\n\
         workloads: {{directory: directory}}\ninbound: {{listen: '{inbound}', forward: '127.0.0.1:9'}}\n\
         outbound: {{listeners: [{{listen: '{itself}', to: default/itself, port: http}}]}}\n\
         admin: {{listen: '{}'}}\nmetrics: {{listen: '{health}'}}\n{}",
        socket.display(),
        free_address().unwrap(),
        // An agent without privileges sees only what any process of its user may see.
        if uid == 0 {
            ""
        } else {
            "harden: {insecureAllowDumpable: true}\n"
        },
    );
    world.proxy("proxy", &config).unwrap();
    world.said("proxy", "ready").unwrap();
    let url = |address: SocketAddr, path: &str| format!("http://{address}{path}");
    let asked = run("curl", &["-s", "-m", "5", &url(itself, "/")]).unwrap();
    assert!(
        !asked.status.success() && asked.stdout.is_empty(),
        "{asked:?}"
    );
    world
        .said("proxy", "a connection has no destination")
        .unwrap();
    let metrics = run("curl", &["-s", &url(health, "/metrics")]).unwrap();
    let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
    let once = "connections_accepted_total{direction=\"outbound\"} 1\n";
    assert!(metrics.contains(once), "{metrics}");
}

/// Asks `netns` only for what it would do, or for its refusal.
fn would(arguments: &[&str], code: i32) -> String {
    let program = binaries().unwrap().join("postern-proxy");
    let mut command = Command::new(program);
    let output = command.arg("netns").args(arguments).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {output:?}"
    );
    let told = if code == 0 {
        output.stdout
    } else {
        output.stderr
    };
    String::from_utf8_lossy(&told).into_owned()
}

#[test]
fn wrong_options_and_files_are_told_from_each_other_and_named() {
    let world = World::new().unwrap();
    let file = |name: &str, text: &str| world.write(name, text).unwrap().display().to_string();
    let inbound =
        "policies: {directory: p}\ninbound: {listen: '[::]:16006', forward: transparent}\n";
    let lacking = file("lacking.yaml", inbound);
    let bad = file("bad.yaml", &format!("{inbound}outbund: {{}}\n"));
    for (arguments, code, mend) in [
        (
            vec!["--proxy-uid", "0"],
            2,
            "run the proxy as a user of its own",
        ),
        (
            vec!["--exclude-inbound-ports", "15000"],
            2,
            "the proxy's admin port: leave it out",
        ),
        (
            vec!["--exclude-outbound-cidrs", "10.0.0.1/8"],
            2,
            "write 10.0.0.0/8",
        ),
        (
            vec!["--config", &lacking],
            64,
            "write `outbound: {listen: '127.0.0.1:15001'}`",
        ),
        (vec!["--config", &bad], 64, "did you mean `outbound`?"),
        (
            vec!["--config", "/nowhere/proxy.yaml"],
            64,
            "cannot read `/nowhere/proxy.yaml`",
        ),
    ] {
        let told = would(
            &[&["setup", "--dry-run", "--no-resolver"], &arguments[..]].concat(),
            code,
        );
        assert!(told.contains(mend), "{arguments:?}: {told}");
    }
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_ports_and_mode_are_those_of_the_proxys_file() {
    let world = World::new().unwrap();
    let config = "policies: {directory: p}\ninbound: {listen: '[::]:16006', forward: transparent}\n\
                  outbound: {listen: '127.0.0.1:16001'}\nmetrics: {listen: '127.0.0.1:16020'}\n";
    let config = world
        .write("proxy.yaml", config)
        .unwrap()
        .display()
        .to_string();
    let told = would(
        &["setup", "--dry-run", "--no-resolver", "--config", &config],
        0,
    );
    for part in [
        "tproxy to :16006 ",
        "redirect to :16001",
        "ip -6 rule add fwmark",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(
        !told.contains("16020"),
        "metrics on loopback are for nobody outside"
    );
}
