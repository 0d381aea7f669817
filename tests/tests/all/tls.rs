//! The handshake, by callers who want something else than it gives.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use postern_tests::{eventually, root, run};
use rcgen::{KeyPair, SanType};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, Stream,
    crypto::aws_lc_rs::{self, default_provider},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};

use super::chains::Credulous;
use super::inbound::Site;

fn script(site: &Site, case: &str) -> Vec<String> {
    let output = Command::new("python3")
        .arg(root().join("tests/python/handshakes.py"))
        .args([case, "127.0.0.1", &site.address.port().to_string()])
        .output()
        .unwrap();
    postern_tests::lines(&output, case).unwrap()
}

fn openssl(site: &Site, more: &[&str]) -> String {
    let address = site.address.to_string();
    let file = |name: &str| site.world.path().join(name).display().to_string();
    let (certificate, key) = (file("caller.crt"), file("caller.key"));
    let mut all = vec![
        "s_client",
        "-connect",
        &address,
        "-cert",
        &certificate,
        "-key",
        &key,
    ];
    all.extend(more);
    let mut child = Command::new("openssl");
    let mut child = child
        .args(&all)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let request = b"GET /api/v1/x HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
    let mut input = child.stdin.take().unwrap();
    let _ = input.write_all(request);
    let output = child.wait_with_output().unwrap();
    drop(input);
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn older_versions_and_other_protocols_get_an_alert_and_tls_13_an_answer() {
    // FAULTS 71, 72
    let site = Site::start();
    site.leaf(|_| {});
    let good = openssl(&site, &["-tls1_3", "-ign_eof"]);
    assert!(good.contains("HTTP/1.1 200"), "{good}");
    for more in [
        &["-tls1_2"][..],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        &["-tls1_3", "-alpn", "imap"],
        &["-tls1_3", "-groups", "X448"],
        &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"],
    ] {
        let said = openssl(&site, more);
        assert!(said.contains("alert"), "{more:?}: {said}");
        assert!(!said.contains("HTTP/1.1 "), "{more:?}: {said}");
    }
    for more in [
        &["-alpn", "h2"][..],
        &["-alpn", "http/1.1"],
        &["-groups", "P-256"],
    ] {
        let said = openssl(&site, &[&["-tls1_3"], more].concat());
        assert!(said.contains("New, TLSv1.3"), "{more:?}: {said}");
    }
    // What was asked over HTTP/2 was none.
    assert_eq!(site.app.reached(), 3);
}

/// A client that shows its certificate and believes everybody's.
fn caller(site: &Site) -> Arc<ClientConfig> {
    let pem = |name: &str| site.world.path().join(name);
    let chain = vec![CertificateDer::from_pem_file(pem("caller.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pem("caller.key")).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_client_auth_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

#[test]
fn who_began_a_handshake_before_its_authority_was_withdrawn_gets_nothing_after_it() {
    for is_withdrawn in [false, true] {
        let site = Site::start();
        site.leaf(|_| {});
        let name = ServerName::from(site.address.ip());
        let mut connection = ClientConnection::new(caller(&site), name).unwrap();
        let mut socket = TcpStream::connect(site.address).unwrap();
        // All but the last word of the handshake.
        connection.write_tls(&mut socket).unwrap();
        while connection.is_handshaking() {
            connection.read_tls(&mut socket).unwrap();
            connection.process_new_packets().unwrap();
        }
        if is_withdrawn {
            let other = postern_tests::certificates::Authority::new("example.org").unwrap();
            let web = "spiffe://example.org/ns/production/sa/web";
            other
                .write_leaf(site.world.path(), "web", web, |_| {})
                .unwrap();
            site.world.write("bundle.crt", &other.pem).unwrap();
            eventually("the new bundle", || {
                (site.curl(&["--max-time", "5"], "/api/v1/orders") == 0).then_some(())
            })
            .unwrap();
        }
        let before = site.app.reached();
        let mut stream = Stream::new(&mut connection, &mut socket);
        let request = b"GET /api/v1/x HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer.starts_with(b"HTTP/1.1 200"), !is_withdrawn);
        assert_eq!(site.app.reached() - before, usize::from(!is_withdrawn));
    }
}

#[test]
fn no_tickets_are_given_and_none_is_taken() {
    // FAULTS 73, 74, 75
    let site = Site::start();
    site.leaf(|_| {});
    let session = site.world.path().join("session").display().to_string();
    let said = openssl(&site, &["-tls1_3", "-ign_eof", "-sess_out", &session]);
    assert!(said.contains("HTTP/1.1 200"), "{said}");
    assert!(!said.contains("Session Ticket arrived"), "{said}");
    assert!(said.contains("Early data was not sent"), "{said}");

    // A client that would resume if it could.
    let config = caller(&site);
    for _ in 0..3 {
        let name = ServerName::from(site.address.ip());
        let mut connection = ClientConnection::new(config.clone(), name).unwrap();
        let mut socket = TcpStream::connect(site.address).unwrap();
        let mut stream = Stream::new(&mut connection, &mut socket);
        let request = b"GET /api/v1/x HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(connection.tls13_tickets_received(), 0);
        // Whoever can, exchanges keys in a way that a quantum computer does not break.
        let group = connection.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), aws_lc_rs::kx_group::X25519MLKEM768.name());
    }
}

#[test]
fn a_connection_ends_with_its_peers_certificate() {
    // FAULTS 76
    let site = Site::start();
    site.leaf(|params| {
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::seconds(4)
    });
    let file = |name: &str| site.world.path().join(name).display().to_string();
    let (certificate, key) = (file("caller.crt"), file("caller.key"));
    let mut client = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &site.address.to_string(),
            "-tls1_3",
            "-quiet",
        ])
        .args(["-cert", &certificate, "-key", &key])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = client.stdin.take().unwrap();
    input
        .write_all(b"GET /api/v1/x HTTP/1.1\r\nhost: web\r\n\r\n")
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("HTTP/1.1 200"));
    // It stays open for as long as the certificate lives, and no longer.
    let ended = eventually("the end of the connection", || client.try_wait().unwrap());
    ended.unwrap();
    let metrics = site.metrics();
    assert!(metrics.contains("reason=\"expired\"} 1"), "{metrics}");
    drop(input);
}

#[test]
fn hellos_that_are_none_are_closed_and_nobody_else_notices() {
    // FAULTS 77, 79
    let site = Site::start();
    site.leaf(|_| {});
    let said = script(&site, "strange");
    assert_eq!(said.len(), 228);
    for (place, word) in said.iter().enumerate() {
        assert!(
            ["alert", "closed"].contains(&word.as_str()),
            "{place}: {word}"
        );
    }
    assert_eq!(site.curl(&[], "/api/v1/orders"), 200);
    assert_eq!(site.app.reached(), 1);
    let log = fs::read_to_string(site.world.log("proxy")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn what_is_no_tls_is_closed_without_a_word() {
    // FAULTS 80
    let site = Site::start();
    site.leaf(|_| {});
    assert_eq!(script(&site, "plain"), ["closed"; 5]);
    assert_eq!(site.curl(&[], "/api/v1/orders"), 200);
    assert_eq!(site.app.reached(), 1);
}

/// Holds so many connections that have begun like this.
fn hold(site: &Site, case: &str, number: usize) -> Child {
    let mut child = Command::new("python3")
        .arg(root().join("tests/python/handshakes.py"))
        .args([
            case,
            "127.0.0.1",
            &site.address.port().to_string(),
            &number.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "held");
    child
}

#[test]
fn thousands_who_never_finish_a_handshake_keep_nobody_out() {
    // FAULTS 78
    let site = Site::start();
    site.leaf(|_| {});
    let mut all: Vec<Child> = vec![hold(&site, "silent", 1000), hold(&site, "half", 1000)];
    for _ in 0..5 {
        assert_eq!(site.curl(&["--max-time", "20"], "/api/v1/orders"), 200);
    }
    // They have ten seconds.
    eventually("those who say nothing to be gone", || {
        let open = site.metric(
            "postern_proxy_refused_total{direction=\"inbound\",reason=\"handshake_timeout\"}",
        );
        (open >= 2000.0).then_some(())
    })
    .unwrap();
    for child in &mut all {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_bundle_that_is_empty_or_broken_lets_nobody_new_in_and_the_last_good_one_stays() {
    // FAULTS 67, 68
    let site = Site::start();
    site.leaf(|_| {});
    let good = fs::read_to_string(site.world.path().join("bundle.crt")).unwrap();
    let half = good.split_at(good.len() / 2).0.to_owned();
    let key = KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://example.org/x".try_into().unwrap())];
    let leaf = params.self_signed(&key).unwrap().pem();
    let errors = || site.metric("postern_proxy_identity_errors_total");
    for bad in ["", "nonsense", &half, &(good.clone() + &leaf)] {
        let before = errors();
        site.world.write("bundle.crt", bad).unwrap();
        eventually("the error to be counted", || {
            (errors() > before).then_some(())
        })
        .unwrap();
        assert_eq!(
            site.curl(&[], "/api/v1/orders"),
            200,
            "the last good one stays"
        );
    }
    // Another authority takes the place of the first while callers come and go.
    let other = postern_tests::certificates::Authority::new("example.org").unwrap();
    let web = "spiffe://example.org/ns/production/sa/web";
    other
        .write_leaf(site.world.path(), "web", web, |_| {})
        .unwrap();
    site.world.write("bundle.crt", &other.pem).unwrap();
    eventually("the new bundle", || {
        (site.curl(&["--max-time", "5"], "/api/v1/orders") == 0).then_some(())
    })
    .unwrap();
    let caller = "spiffe://example.org/workload/frontend";
    other
        .write_leaf(site.world.path(), "caller", caller, |_| {})
        .unwrap();
    assert_eq!(site.curl(&[], "/api/v1/orders"), 200);
    let log = fs::read_to_string(site.world.log("proxy")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn with_few_descriptors_the_proxy_lives_and_recovers() {
    // FAULTS 128
    let site = Site::start_under("ulimit -n 256");
    site.leaf(|_| {});
    assert_eq!(site.curl(&[], "/api/v1/orders"), 200);
    let mut many = hold(&site, "silent", 1000);
    let output = run(
        "sh",
        &[
            "-c",
            &format!("ls /proc/{}/fd | wc -l", site.world.pid("proxy").unwrap()),
        ],
    )
    .unwrap();
    let open = String::from_utf8(output.stdout).unwrap();
    assert!(open.trim().parse::<usize>().unwrap() <= 256, "{open}");
    many.kill().unwrap();
    many.wait().unwrap();
    eventually("the proxy to serve again", || {
        (site.curl(&["--max-time", "5"], "/api/v1/orders") == 200).then_some(())
    })
    .unwrap();
}
