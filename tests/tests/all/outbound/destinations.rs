//! Who is called, by what name, at which address, and who never is.

use std::{
    fs,
    net::{Shutdown, TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    thread,
};

use postern_tests::{certificates::Authority, eventually, root, world::World};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, SanType};

use super::{Site, WEB, program};

#[test]
fn a_server_with_a_bad_certificate_sees_no_byte_of_a_request() {
    // FAULTS 69, 70
    let mut site = Site::start("[127.0.0.2]", "  retries: {attempts: 0}\n");
    type Change = fn(&mut CertificateParams);
    let wrong: [(&str, &str, Change); 9] = [
        (
            "another",
            "spiffe://example.org/ns/default/sa/other",
            |_| {},
        ),
        ("domain", "spiffe://other.org/ns/default/sa/web", |_| {}),
        ("longer", "spiffe://example.org/ns/default/sa/web/2", |_| {}),
        ("expired", WEB, |params| {
            params.not_after = time::OffsetDateTime::now_utc() - time::Duration::seconds(1);
        }),
        ("early", WEB, |params| {
            params.not_before = time::OffsetDateTime::now_utc() + time::Duration::minutes(30);
        }),
        ("twice", WEB, |params| {
            let again = SanType::URI(WEB.try_into().unwrap());
            params.subject_alt_names.push(again);
        }),
        ("name", WEB, |params| {
            params.subject_alt_names = vec![SanType::DnsName("web".try_into().unwrap())];
        }),
        ("authority", WEB, |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }),
        ("client", WEB, |params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        }),
    ];
    let stranger = Authority::new("example.org").unwrap();
    stranger
        .write_leaf(site.world.path(), "stranger", WEB, |_| {})
        .unwrap();
    for (name, id, change) in wrong {
        site.authority
            .write_leaf(site.world.path(), name, id, change)
            .unwrap();
    }
    let names = wrong.map(|(name, ..)| name).into_iter().chain(["stranger"]);
    for name in names {
        site.upstream(name, "127.0.0.2", name, "probe");
        let refused = site.get("/");
        assert_eq!(
            (refused.status, refused.body.as_str()),
            (503, "upstream unavailable"),
            "{name}"
        );
        let handshakes = site.told(name, "refused", 1);
        assert_eq!(
            site.events(name, "handshake"),
            Vec::<String>::new(),
            "{name} {handshakes:?}"
        );
        site.world
            .signal(name, rustix::process::Signal::KILL)
            .unwrap();
        site.world.ended(name).unwrap();
    }
    // The good twin of all of them.
    site.upstream("good", "127.0.0.2", "web", "http1");
    assert_eq!(site.get("/").status, 200);
}

#[test]
fn a_server_whose_authority_is_withdrawn_during_the_handshake_sees_no_request() {
    for is_withdrawn in [false, true] {
        let mut site = Site::start("[127.0.0.2]", "  retries: {attempts: 0}\n");
        site.upstream("web", "127.0.0.3", "web", "http1");
        // Between them, somebody who has the handshake wait.
        let listener = TcpListener::bind(("127.0.0.2", site.port)).unwrap();
        let upstream = ("127.0.0.3", site.port);
        let (reached, is_reached) = mpsc::sync_channel(1);
        let (go_on, goes_on) = mpsc::sync_channel(1);
        let relay = thread::spawn(move || {
            let (caller, _) = listener.accept().unwrap();
            reached.send(()).unwrap();
            goes_on.recv().unwrap();
            let server = TcpStream::connect(upstream).unwrap();
            let pair = |from: &TcpStream, to: &TcpStream| {
                (from.try_clone().unwrap(), to.try_clone().unwrap())
            };
            let halves = [pair(&caller, &server), pair(&server, &caller)];
            let copies = halves.map(|(mut from, mut to)| {
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                })
            });
            for copy in copies {
                copy.join().unwrap();
            }
        });
        let answer = thread::scope(|scope| {
            let answer = scope.spawn(|| site.get("/"));
            is_reached.recv().unwrap();
            if is_withdrawn {
                let other = Authority::new("example.org").unwrap();
                let frontend = "spiffe://example.org/ns/default/sa/frontend";
                let folder = site.world.path();
                // The bundle first: whatever is in force next has it.
                site.world.write("bundle.crt", &other.pem).unwrap();
                other
                    .write_leaf(folder, "frontend", frontend, |_| {})
                    .unwrap();
                let in_force = || {
                    let log = fs::read_to_string(site.world.log("proxy")).unwrap();
                    (log.matches("identity in force").count() > 1).then_some(())
                };
                eventually("the new bundle", in_force).unwrap();
            }
            go_on.send(()).unwrap();
            answer.join().unwrap()
        });
        assert_eq!(answer.status == 200, !is_withdrawn, "{answer:?}");
        assert_eq!(site.asked("web", "/"), usize::from(!is_withdrawn));
        relay.join().unwrap();
    }
}

#[test]
fn the_name_in_the_handshake_is_the_workloads_own() {
    let mut named = Site::start_with("[127.0.0.2]", "  dnsNames: [web.default.svc, web]\n", "");
    named.upstream("up", "127.0.0.2", "web", "http1");
    assert_eq!(named.get("/").status, 200);
    let told = named.told("up", "handshake", 1);
    assert!(
        told[0].contains("\"name\": \"web.default.svc\""),
        "{told:?}"
    );
    let mut plain = Site::start("[127.0.0.2]", "");
    plain.upstream("up", "127.0.0.2", "web", "http1");
    assert_eq!(plain.get("/").status, 200);
    let told = plain.told("up", "handshake", 1);
    assert!(told[0].contains("\"name\": null"), "{told:?}");
}

#[test]
fn a_name_that_leads_to_this_machine_is_not_dialled() {
    // FAULTS 117, 118
    let cases = [
        ("[localhost]", 503),
        ("['2130706434']", 503),
        ("['0x7f000002']", 503),
        ("['127.2']", 503),
        // The same place, named by the document itself.
        ("[127.0.0.2]", 200),
        ("['2130706434', 127.0.0.2]", 200),
    ];
    for (addresses, status) in cases {
        let mut site = Site::start(addresses, "");
        for address in ["127.0.0.1", "127.0.0.2"] {
            site.upstream(address, address, "web", "http1");
        }
        assert_eq!(site.get("/").status, status, "{addresses}");
        let reached = site.events("127.0.0.1", "handshake").len();
        assert_eq!(reached, 0, "{addresses}");
        if addresses == "[localhost]" {
            let denied = "postern_proxy_upstream_addresses_denied_total";
            assert!(site.metric(denied, "loopback") > 0);
            site.world
                .said("proxy", "an address of a Workload is not dialled")
                .unwrap();
        }
    }
}

#[test]
fn the_proxys_own_doors_are_no_destination() {
    // FAULTS 116
    let site = Site::start("[127.0.0.1]", "");
    let path = site.world.path().join("workloads/all.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let port = format!("port: {}", site.port);
    for listener in [site.out, site.metrics] {
        let own = text.replace(&port, &format!("port: {}", listener.port()));
        fs::write(&path, own).unwrap();
        site.world
            .signal("proxy", rustix::process::Signal::HUP)
            .unwrap();
        let denied = "postern_proxy_upstream_addresses_denied_total";
        let before = site.metric(denied, "own_listener");
        let refused = eventually("the refusal", || {
            let status = site.get("/").status;
            assert_eq!(status, 503);
            (site.metric(denied, "own_listener") > before).then_some(())
        });
        assert!(refused.is_ok(), "{listener}: {}", site.access_log());
    }
    // One request is one connection to the proxy: nothing went round.
    let accepted = site.metric("postern_proxy_connections_accepted_total", "outbound");
    let answered = site.metric("postern_proxy_requests_answered_total", "outbound");
    assert_eq!(accepted, answered);
}

#[test]
#[ignore = "needs root, for a network of its own"]
fn root_a_name_that_comes_to_lead_elsewhere_is_not_followed() {
    // FAULTS 117, 118
    let mut world = World::new().unwrap();
    let mut space = Command::new("unshare");
    space.args(["--net", "--mount", "sleep", "1000"]);
    world.spawn("space", &mut space).unwrap();
    let pid = world.pid("space").unwrap();
    let own = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
    let is_apart = || (own(&pid.to_string()) != own("self")).then_some(());
    eventually("a network", is_apart).unwrap();
    let inside = |line: &str| {
        let done = program(Some(pid), "sh")
            .args(["-ec", line])
            .output()
            .unwrap();
        assert!(done.status.success(), "{line}: {done:?}");
    };
    world
        .write(
            "resolv.conf",
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        )
        .unwrap();
    let folder = world.path().display().to_string();
    inside("ip link set lo up");
    for address in ["10.99.0.5/32", "169.254.169.254/32", "fd00:ec2::254/128"] {
        inside(&format!("ip addr add {address} dev lo nodad"));
    }
    inside(&format!(
        "mount --bind {folder}/resolv.conf /etc/resolv.conf"
    ));
    let say = |world: &World, addresses: &str| {
        world.write("next", addresses).unwrap();
        // In one step, so that no answer is half of it.
        fs::rename(world.path().join("next"), world.path().join("names")).unwrap();
    };
    say(&world, "10.99.0.5");
    let mut names = program(Some(pid), root().join("target/python/bin/python"));
    names.arg(root().join("tests/python/names.py"));
    names.arg(world.path().join("names"));
    world.spawn("names", &mut names).unwrap();
    let settings = "  dnsRefresh: 100ms\n  retries: {attempts: 0}\n";
    let mut site = Site::start_in(world, Some(pid), "[web.test]", "", settings);
    site.upstream("good", "10.99.0.5", "web", "http1");
    // Each trap shows the right certificate: only the address is wrong.
    let traps = ["127.0.0.1", "169.254.169.254", "fd00:ec2::254"];
    for trap in traps {
        site.upstream(trap, trap, "web", "http1");
    }
    let get = |site: &Site| site.curl("--http1.1", "/");
    eventually("the first answer", || (get(&site) == 200).then_some(())).unwrap();
    for wrong in [
        "127.0.0.1",
        "169.254.169.254",
        "::ffff:127.0.0.1",
        "fd00:ec2::254",
    ] {
        say(&site.world, wrong);
        eventually(wrong, || (get(&site) == 503).then_some(())).unwrap();
        for trap in traps {
            let events = site.events(trap, "handshake").len() + site.events(trap, "refused").len();
            assert_eq!(events, 0, "{wrong} led to {trap}");
        }
        say(&site.world, &format!("{wrong}\n10.99.0.5"));
        eventually("the good one of two", || (get(&site) == 200).then_some(())).unwrap();
    }
    // Without a name server the last good answer stays.
    site.world
        .signal("names", rustix::process::Signal::KILL)
        .unwrap();
    site.world.ended("names").unwrap();
    let failed = || site.metric("postern_proxy_upstream_lookups_failed_total", "");
    let before = failed();
    eventually("a lookup that fails", || {
        assert_eq!(get(&site), 200);
        (failed() > before).then_some(())
    })
    .unwrap();
    assert_eq!(get(&site), 200);
}
