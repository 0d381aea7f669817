//! What is told of the connections that are open.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use postern_tests::eventually;
use serde_json::Value;

use super::{FRONTEND, Pair, WEB};

/// A request on a connection that stays open.
fn ask(stream: &mut TcpStream) {
    let request = b"GET /api/kept HTTP/1.1\r\nhost: web\r\n\r\n";
    stream.write_all(request).unwrap();
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while !answer.windows(11).any(|window| window == b"host: web\r\n") {
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(piece.get(..read).unwrap());
    }
}

/// The only connection of a proxy with another.
fn only(pair: &Pair, name: &str) -> Value {
    only_with(pair, name, "peer")
}

fn only_with(pair: &Pair, name: &str, end: &str) -> Value {
    let all = pair.told(name, "/connections");
    let mut all = all.as_array().unwrap().clone();
    all.retain(|one| one["end"] == end);
    let [one] = <[Value; 1]>::try_from(all).expect("one connection");
    one
}

#[test]
fn each_open_connection_is_told_with_who_is_there_and_what_let_it_in() {
    let pair = Pair::start();
    assert_eq!(pair.told("web", "/connections"), Value::Array(Vec::new()));
    let mut stream = TcpStream::connect(pair.out).unwrap();
    ask(&mut stream);
    ask(&mut stream);

    let (out, into) = (only(&pair, "frontend"), only(&pair, "web"));
    for (one, direction, peer, policy) in [
        (&out, "outbound", WEB, "default/frontend"),
        (&into, "inbound", FRONTEND, "default/web"),
    ] {
        assert_eq!(one["direction"], direction, "{one}");
        assert_eq!(one["peerIdentity"], peer);
        assert_eq!(one["protocol"], "h2");
        assert_eq!(one["tlsGroup"], "X25519MLKEM768");
        assert_eq!(one["requests"], 2);
        assert_eq!(one["policy"]["kind"], "NetworkPolicy");
        assert_eq!(one["policy"]["name"], policy);
        assert!(one["policy"]["line"].as_u64() > Some(0), "{one}");
        let file = one["policy"]["file"].as_str().unwrap();
        assert!(file.ends_with("policies/rules.yaml"), "{file}");
        assert!(one["ageSeconds"].as_u64() < Some(600), "{one}");
        assert!(one["peerCertificateEndsInSeconds"].as_u64() > Some(0));
    }
    // Both ends count the same bytes, and know each other's ports.
    assert_eq!(out["bytesSent"], into["bytesReceived"]);
    assert_eq!(out["bytesReceived"], into["bytesSent"]);
    assert!(out["bytesSent"].as_u64() > Some(100), "{out}");
    assert_eq!(out["peerAddress"], pair.web.to_string());
    assert_eq!(into["localPort"], pair.web.port());
    let port = out["localPort"].to_string();
    let peer = into["peerAddress"].as_str().unwrap();
    assert!(peer.ends_with(&format!(":{port}")), "{peer} {port}");

    // For people, the same in a table.
    let (code, text, _) = pair.command("web", &["connections"]);
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = text.lines().collect();
    let [names, line] = lines.try_into().expect(&text);
    assert!(
        names.starts_with("ID ") && names.ends_with("LET IN BY"),
        "{names}"
    );
    for part in [
        FRONTEND,
        "h2",
        "X25519MLKEM768",
        "NetworkPolicy default/web",
    ] {
        assert!(line.contains(part), "`{part}` in {line}");
    }
    let (_, text, _) = pair.command("web", &["connections", "--json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told[0]["id"], into["id"]);
}

#[test]
fn what_lets_a_connection_go_on_is_told_after_the_policies_have_changed() {
    let pair = Pair::start();
    let mut stream = TcpStream::connect(pair.out).unwrap();
    ask(&mut stream);
    let line = only(&pair, "web")["policy"]["line"].as_u64().unwrap();
    pair.rewrite(|text| format!("# one line more\n{text}"));
    eventually("the new place of the rule", || {
        (only(&pair, "web")["policy"]["line"] == line + 1).then_some(())
    })
    .unwrap();
    // And what no policy lets go on is not told any more.
    pair.rewrite(|text| text.replace("app: frontend", "app: other"));
    eventually("the end of the connection", || {
        (pair.told("web", "/connections") == Value::Array(Vec::new())).then_some(())
    })
    .unwrap();
}

#[test]
fn opaque_connections_are_counted_and_end_with_the_authorization_that_let_them_in() {
    let pair = Pair::start_speaking("tcp");
    // Opaque bytes have no method and no path.
    let operation = "to: [{operation: {methods: [GET], paths: ['/api/*']}}]\n";
    pair.rewrite(|text| text.replace(&format!("\n      {operation}"), "\n"));
    for name in ["web", "frontend"] {
        let generation = || pair.told(name, "/config_dump")["policies"]["generation"] == 2;
        eventually("the policy", || generation().then_some(())).unwrap();
    }
    let mut stream = TcpStream::connect(pair.out).unwrap();
    stream.write_all(b"question\r\n\r\n").unwrap();
    let mut answer = [0; 64];
    assert!(stream.read(&mut answer).unwrap() > 0);
    let (out, into) = (only(&pair, "frontend"), only(&pair, "web"));
    for one in [&out, &into] {
        assert_eq!(one["protocol"], "tcp", "{one}");
        assert_eq!(one["requests"], 0);
    }
    assert_eq!(into["bytesReceived"], 12);
    assert_eq!(into["policy"]["kind"], "AuthorizationPolicy", "{into}");
    let app = only_with(&pair, "frontend", "app");
    assert_eq!(
        (&app["protocol"], &app["requests"]),
        (&"tcp".into(), &0.into())
    );
    assert_eq!(app["bytesReceived"], 12);
    assert_eq!(app["policy"]["name"], "default/frontend", "{app}");
    // The same policy, for somebody else: the connection was let in by it and ends with it.
    pair.rewrite(|text| text.replace("sa/frontend", "sa/other"));
    while stream.read(&mut answer).unwrap_or_default() > 0 {}
    eventually("the end of the connection", || {
        (pair.told("web", "/connections") == Value::Array(Vec::new())).then_some(())
    })
    .unwrap();
}

const EGRESS: &str = "to: [{podSelector: {matchLabels: {app: web}}}]";

#[test]
fn the_apps_own_connection_is_told_and_ends_with_the_policy_that_let_it_out() {
    let pair = Pair::start();
    let mut stream = TcpStream::connect(pair.out).unwrap();
    ask(&mut stream);
    ask(&mut stream);
    let app = only_with(&pair, "frontend", "app");
    assert_eq!(app["direction"], "outbound", "{app}");
    assert_eq!(app["peerAddress"], stream.local_addr().unwrap().to_string());
    assert_eq!(app["peerIdentity"], Value::Null);
    assert_eq!(app["localPort"], pair.out.port());
    assert_eq!(
        (&app["protocol"], &app["requests"]),
        (&"http/1.1".into(), &2.into())
    );
    assert_eq!(app["bytesReceived"], 2 * 37);
    assert_eq!(app["policy"]["kind"], "NetworkPolicy", "{app}");
    assert_eq!(app["policy"]["name"], "default/frontend");
    assert_eq!(app["workload"], "default/web");
    assert_eq!(app["destination"], pair.web.to_string());
    assert_eq!(app["destinationIdentity"], WEB);
    let (_, text, _) = pair.command("frontend", &["connections"]);
    assert!(text.lines().any(|line| line.contains(" (app) ")), "{text}");

    // The rule stands elsewhere, and lets it go on.
    let line = app["policy"]["line"].as_u64().unwrap();
    pair.rewrite(|text| format!("# one line more\n{text}"));
    eventually("the new place of the rule", || {
        let app = only_with(&pair, "frontend", "app");
        (app["policy"]["line"] == line + 1).then_some(())
    })
    .unwrap();
    ask(&mut stream);
    // The twin goes elsewhere: nothing lets the connection out any more, and it asks for nothing.
    pair.rewrite(|text| text.replace(EGRESS, "to: [{podSelector: {matchLabels: {app: other}}}]"));
    assert_eq!(stream.read(&mut [0; 64]).unwrap_or_default(), 0);
    eventually("the end of the connections", || {
        (pair.told("frontend", "/connections") == Value::Array(Vec::new())).then_some(())
    })
    .unwrap();
}

#[test]
fn an_opaque_connection_of_the_app_ends_with_the_policy_that_let_it_out() {
    let pair = Pair::start_speaking("tcp");
    let operation = "to: [{operation: {methods: [GET], paths: ['/api/*']}}]\n";
    pair.rewrite(|text| text.replace(&format!("\n      {operation}"), "\n"));
    for name in ["web", "frontend"] {
        let generation = || pair.told(name, "/config_dump")["policies"]["generation"] == 2;
        eventually("the policy", || generation().then_some(())).unwrap();
    }
    let mut stream = TcpStream::connect(pair.out).unwrap();
    stream.write_all(b"question\r\n\r\n").unwrap();
    assert!(stream.read(&mut [0; 64]).unwrap() > 0);
    assert_eq!(only_with(&pair, "frontend", "app")["protocol"], "tcp");
    pair.rewrite(|text| text.replace(EGRESS, "to: [{podSelector: {matchLabels: {app: other}}}]"));
    while stream.read(&mut [0; 64]).unwrap_or_default() > 0 {}
    eventually("the end of the connections", || {
        (pair.told("frontend", "/connections") == Value::Array(Vec::new())).then_some(())
    })
    .unwrap();
    let log = pair.world.path().join("frontend-access.log");
    let told = || std::fs::read_to_string(&log).unwrap();
    eventually("the line of the connection", || {
        told()
            .contains("the connection may not go on")
            .then_some(())
    })
    .unwrap();
}
