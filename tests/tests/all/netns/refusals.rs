//! Ways round the proxy, ways in past it, and ways back into it.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
};

use postern_tests::{
    run,
    world::{World, free_address},
};

use super::{
    mesh::{APP, Mesh},
    pods::{ANSWER, FRONTEND, Net, OUTSIDE, PATIENCE, PROXY, Server, WEB, addresses, ask},
};

pub(super) fn send_udp(net: &Net, place: &str, to: (IpAddr, u16)) -> std::io::Result<usize> {
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
        std::thread::spawn(move || {
            let (_, from) = names.recv_from(&mut [0; 16]).unwrap();
            names.send_to(b"an answer", from).unwrap();
        });
        let answered = net.inside(FRONTEND, move || {
            let socket = UdpSocket::bind((addresses(FRONTEND)[usize::from(address.is_ipv6())], 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(b"a question", (address, 53))?;
            socket.recv(&mut [0; 16])
        });
        assert_eq!(answered.unwrap(), 9, "{address}");
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
        mesh.world.told(WEB, &refused).unwrap();
    }
    let after = (accepted(FRONTEND), accepted(WEB));
    assert!(
        after.0 - before.0 < 20 && after.1 - before.1 < 20,
        "{before:?} {after:?}"
    );
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
    assert_eq!(asked.stdout, b"upstream unavailable", "{asked:?}");
    let metrics = run("curl", &["-s", &url(health, "/metrics")]).unwrap();
    let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
    let once = "connections_accepted_total{direction=\"outbound\"} 1\n";
    let denied = "upstream_addresses_denied_total{reason=\"own_listener\"} 1\n";
    assert!(
        metrics.contains(once) && metrics.contains(denied),
        "{metrics}"
    );
}
