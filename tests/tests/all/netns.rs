//! The redirection and the default deny of `postern-proxy netns`, in real network namespaces.

mod injected;
mod mesh;
mod pods;
mod refusals;

use std::{fs, process::Command};

use mesh::{APP, Mesh};
use pods::{ANSWER, Capture, FRONTEND, Net, OUTSIDE, PROXY, QUESTION, Server, WEB, addresses, ask};
use postern_tests::{binaries, eventually, world::World};
use refusals::send_udp;

/// The apps talk plain HTTP to each other, and on the wire there is nothing of it.
fn app_to_app(forward: &str, options: &[&str]) {
    let mesh = Mesh::new(forward, options);
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
    app_to_app("original-destination", &[]);
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_apps_talk_plainly_where_connections_are_handed_over_as_they_are() {
    // FAULTS 119
    app_to_app("transparent", &[]);
}

#[test]
#[ignore = "needs root, ip and iptables: network namespaces"]
fn root_the_older_program_hands_over_as_well() {
    // FAULTS 119
    app_to_app("transparent", &["--backend", "iptables"]);
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
    assert!(
        mesh.told(WEB, "/metrics")
            .contains("postern_proxy_interception_proven 1\n")
    );

    // Whoever does not want to know is warned.
    mesh.configure(
        FRONTEND,
        "original-destination",
        "interception: {probe: false}\n",
    );
    mesh.start(FRONTEND);
    mesh.world.said(FRONTEND, "ready").unwrap();
    let warned = "`interception.probe` is off";
    mesh.world.told(FRONTEND, warned).unwrap();
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
    let why = "which needs CAP_NET_ADMIN at start";
    mesh.world.told(WEB, why).unwrap();
}

#[test]
#[ignore = "needs root, ip and nft: network namespaces"]
fn root_only_what_is_excluded_is_reached_without_the_proxy() {
    let net = Net::new();
    let outside = [7000, 7001].map(|port| Server::start(&net, OUTSIDE, port));
    let web = [9090, 9091].map(|port| Server::start(&net, WEB, port));
    let [v4, v6] = addresses(OUTSIDE);
    for backend in ["nft", "iptables"] {
        let set_up = |pod, option, value| {
            net.set_up(pod, &["--backend", backend, "--no-resolver", option, value]);
        };
        let reached = |place, to| ask(&net, place, to, "GET", "/").ends_with(ANSWER);
        set_up(FRONTEND, "--exclude-outbound-ports", "6999-7000");
        for address in [v4, v6] {
            assert!(reached(FRONTEND, (address, 7000)), "{backend} {address}");
            assert!(!reached(FRONTEND, (address, 7001)), "{backend} {address}");
        }
        set_up(FRONTEND, "--exclude-outbound-cidrs", "10.78.0.0/30");
        assert!(reached(FRONTEND, (v4, 7001)), "{backend}");
        assert!(!reached(FRONTEND, (v6, 7001)), "{backend}");
        assert!(send_udp(&net, FRONTEND, (v4, 7001)).is_err(), "{backend}");
        set_up(WEB, "--exclude-inbound-ports", "9090");
        for address in addresses(WEB) {
            assert!(reached(OUTSIDE, (address, 9090)), "{backend} {address}");
            assert!(!reached(OUTSIDE, (address, 9091)), "{backend} {address}");
        }
    }
    assert_eq!(outside.map(|server| server.reached()), [4, 2]);
    assert_eq!(web.map(|server| server.reached()), [4, 0]);
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
