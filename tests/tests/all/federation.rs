//! Two trust domains that know each other.

use std::net::SocketAddr;

use postern_tests::{
    binaries,
    certificates::Authority,
    eventually, root, run,
    world::{World, free_address},
};
use rcgen::{CertificateParams, SanType};
use rustix::process::Signal;
use serde_json::Value;

fn workload(more: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: app}}\n\
         spec: {{spiffeID: 'spiffe://example.org/app', selectors: ['unix:uid:{}']{more}}}\n",
        rustix::process::geteuid().as_raw()
    )
}

/// The bundle document of a trust domain of its own.
fn other_bundle(other: &World) -> String {
    let shown = other
        .admin(&["bundle", "show", "--format", "spiffe"])
        .unwrap();
    String::from_utf8(shown.stdout).unwrap()
}

fn federated(world: &World) -> Option<String> {
    let agent = binaries().unwrap().join("postern-agent");
    let socket = world.path().join("public/agent.sock");
    let arguments = ["api", "fetch", "-output", "json", "-socketPath"];
    let mut all = arguments.to_vec();
    all.push(socket.to_str().unwrap());
    let output = run(agent.to_str().unwrap(), &all).unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    let bundle = answer
        .get("federated_bundles")?
        .get("spiffe://other.test")?;
    Some(bundle.as_str().unwrap().to_owned())
}

const FROM_FILE: &str =
    "federation: {trustDomains: [{name: other.test, bundleFile: other.json}]}\n";

#[test]
fn a_workload_gets_the_bundles_that_it_federates_with_and_no_others() {
    let mut other = World::new().unwrap();
    other.agent_of("other.test", "", "").unwrap();
    let mut world = World::new().unwrap();
    world.write("other.json", &other_bundle(&other)).unwrap();
    let with = workload(", federatesWith: [other.test]");
    world.agent_with(&with, FROM_FILE).unwrap();
    let first = federated(&world).unwrap();
    // The same Workload without the word.
    world
        .write("workloads/workloads.yaml", &workload(""))
        .unwrap();
    eventually("the bundle to be withdrawn", || {
        federated(&world).is_none().then_some(())
    })
    .unwrap();
    world.write("workloads/workloads.yaml", &with).unwrap();
    eventually("the bundle to come back", || federated(&world)).unwrap();
    // The other domain prepares a new root; its document is put in place of the old one.
    assert!(
        other
            .admin(&["authority", "prepare"])
            .unwrap()
            .status
            .success()
    );
    world.write("other.json", &other_bundle(&other)).unwrap();
    eventually("the new bundle", || {
        (federated(&world)? != first).then_some(())
    })
    .unwrap();
    // What cannot be read leaves the last good one in force.
    let good = federated(&world);
    world.write("other.json", "{\"keys\": 1}").unwrap();
    world
        .said(
            "agent",
            "a federated bundle was refused, the last good one stays",
        )
        .unwrap();
    assert_eq!(federated(&world), good);
}

#[test]
fn a_token_of_another_trust_domain_is_good_for_those_who_federate_with_it() {
    let mut other = World::new().unwrap();
    let theirs = workload("").replace("example.org", "other.test");
    let their_socket = other.agent_of("other.test", &theirs, "").unwrap();
    let agent = binaries().unwrap().join("postern-agent");
    let api = |arguments: &[&str], socket: &std::path::Path| {
        let mut all = vec!["api"];
        all.extend(arguments);
        all.extend(["-output", "json", "-socketPath", socket.to_str().unwrap()]);
        run(agent.to_str().unwrap(), &all).unwrap()
    };
    let fetched = api(&["fetch", "jwt", "-audience", "a"], &their_socket);
    let fetched: Value = serde_json::from_slice(&fetched.stdout).unwrap();
    let token = fetched[0]["svids"][0]["svid"].as_str().unwrap();
    for (more, is_good) in [(", federatesWith: [other.test]", true), ("", false)] {
        let mut world = World::new().unwrap();
        world.write("other.json", &other_bundle(&other)).unwrap();
        let socket = world.agent_with(&workload(more), FROM_FILE).unwrap();
        let validated = api(
            &["validate", "jwt", "-audience", "a", "-svid", token],
            &socket,
        );
        assert_eq!(validated.status.success(), is_good, "{more}");
    }
}

/// A certificate for the loopback address, of an authority of the web.
fn web_certificate(world: &World) {
    let authority = Authority::new("web.test").unwrap();
    world.write("web-ca.pem", &authority.pem).unwrap();
    let named = |params: &mut CertificateParams| {
        let address = SanType::IpAddress("127.0.0.1".parse().unwrap());
        params.subject_alt_names = vec![address];
    };
    authority
        .write_leaf(world.path(), "web", "spiffe://web.test/", named)
        .unwrap();
}

/// Starts a trust domain that publishes its bundle, and tells where.
fn publishing(other: &mut World, endpoint: &str, more: &str) -> SocketAddr {
    let listen = free_address().unwrap();
    let config = format!("federation: {{endpoint: {{listen: '{listen}', {endpoint}}}{more}}}\n");
    let theirs = workload("").replace("example.org", "other.test");
    other.agent_of("other.test", &theirs, &config).unwrap();
    listen
}

#[test]
fn a_bundle_is_fetched_from_an_endpoint_with_spiffe_authentication() {
    let mut other = World::new().unwrap();
    let listen = publishing(&mut other, "profile: https_spiffe", "");
    let mut world = World::new().unwrap();
    world.write("other.json", &other_bundle(&other)).unwrap();
    let peer = |id: &str| {
        format!(
            "federation: {{trustDomains: [{{name: other.test, bundleFile: other.json, \
             url: 'https://{listen}/bundle', profile: https_spiffe, \
             endpointSPIFFEID: 'spiffe://other.test/{id}', refresh: 200ms}}]}}\n"
        )
    };
    let with = workload(", federatesWith: [other.test]");
    world
        .agent_with(&with, &peer("postern/bundle-endpoint"))
        .unwrap();
    let first = federated(&world).unwrap();
    // The other domain goes on to a new root; the endpoint's certificate is of the new one then.
    for change in ["prepare", "activate"] {
        assert!(
            other
                .admin(&["authority", change])
                .unwrap()
                .status
                .success()
        );
        let known = federated(&world).unwrap();
        if change == "prepare" {
            eventually("the new bundle", || {
                (federated(&world)? != first).then_some(())
            })
            .unwrap();
        } else {
            assert_ne!(known, first);
        }
    }
    world.signal("agent", Signal::TERM).unwrap();
    world.ended("agent").unwrap();
    // After a restart the bundle that was fetched last is known, not the first one.
    world
        .agent_with(&with, &peer("postern/bundle-endpoint"))
        .unwrap();
    assert_ne!(federated(&world).unwrap(), first);
    world.signal("agent", Signal::TERM).unwrap();
    world.ended("agent").unwrap();
    // Its twin expects another identity there.
    world.agent_with(&with, &peer("somebody-else")).unwrap();
    let refused = "a federated bundle cannot be fetched, the last good one stays";
    world.said("agent", refused).unwrap();
}

#[test]
fn a_bundle_is_fetched_from_an_endpoint_of_the_web() {
    let mut other = World::new().unwrap();
    web_certificate(&other);
    let endpoint = "profile: https_web, certificate: web.crt, key: web.key";
    let listen = publishing(&mut other, endpoint, "");
    let with = workload(", federatesWith: [other.test]");
    let authorities = other.path().join("web-ca.pem").display().to_string();
    let peer = |more: &str| {
        format!(
            "federation: {{trustDomains: [{{name: other.test, url: 'https://{listen}/', \
             profile: https_web{more}, refresh: 200ms}}]}}\n"
        )
    };
    let mut world = World::new().unwrap();
    world
        .agent_with(&with, &peer(&format!(", caFile: '{authorities}'")))
        .unwrap();
    eventually("the bundle", || federated(&world)).unwrap();
    // Spec: SPIFFE Federation section 5.1.
    let url = format!("https://{listen}/");
    let arguments = ["-sk", "-o", "/dev/null", "-w", "%{content_type}", &url];
    let kind = String::from_utf8(run("curl", &arguments).unwrap().stdout).unwrap();
    assert!(kind.starts_with("application/json"), "{kind}");
    // Its twin does not know the authority.
    let mut world = World::new().unwrap();
    world.agent_with(&with, &peer("")).unwrap();
    let refused = "a federated bundle cannot be fetched, the last good one stays";
    world.said("agent", refused).unwrap();
    assert_eq!(federated(&world), None);
}

#[test]
fn a_relying_party_verifies_tokens_by_the_url_of_the_issuer() {
    let mut other = World::new().unwrap();
    web_certificate(&other);
    let listen = free_address().unwrap();
    let issuer = format!("https://{listen}");
    let config = format!(
        "federation: {{endpoint: {{listen: '{listen}', profile: https_web, certificate: web.crt, \
         key: web.key}}, oidc: {{issuer: '{issuer}'}}}}\n"
    );
    let theirs = workload("").replace("example.org", "other.test");
    let socket = other.agent_of("other.test", &theirs, &config).unwrap();
    let agent = binaries().unwrap().join("postern-agent");
    let arguments = [
        "api",
        "fetch",
        "jwt",
        "-audience",
        "shop",
        "-output",
        "json",
        "-socketPath",
        socket.to_str().unwrap(),
    ];
    let fetched = run(agent.to_str().unwrap(), &arguments).unwrap();
    let fetched: Value = serde_json::from_slice(&fetched.stdout).unwrap();
    let token = fetched
        .pointer("/0/svids/0/svid")
        .unwrap()
        .as_str()
        .unwrap();
    let python = root().join("target/python/bin/python");
    let script = root().join("tests/python/oidc.py");
    let authorities = other.path().join("web-ca.pem");
    for (audience, expected) in [("shop", "spiffe://other.test/app\n"), ("bank", "")] {
        let arguments = [
            script.to_str().unwrap(),
            &issuer,
            authorities.to_str().unwrap(),
            audience,
            token,
        ];
        let output = run(python.to_str().unwrap(), &arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{said}");
    }
    // What is not published is not told.
    for path in ["/workloads", "/keys/x", "/metrics"] {
        let url = format!("{issuer}{path}");
        let arguments = ["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url];
        let output = run("curl", &arguments).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "404", "{path}");
    }
}
