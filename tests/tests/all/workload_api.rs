//! The Workload API, asked by clients that others wrote.

use std::{os::unix::fs::symlink, process::Command, time::Duration};

use futures_util::StreamExt as _;
use postern_tests::{binaries, root, run, world::World};
use spiffe::{TrustDomain, WorkloadApiClient};

fn workload(ttl: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\n\
         metadata: {{name: frontend, namespace: production, labels: {{app: frontend}}}}\n\
         spec:\n  spiffeID: spiffe://example.org/workload/frontend\n  \
         selectors: ['unix:uid:{}']\n  svidTTL: {ttl}\n",
        rustix::process::geteuid().as_raw()
    )
}

#[test]
fn the_rust_client_fetches_and_sees_a_rotation() {
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("4s")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = WorkloadApiClient::connect_to(format!("unix://{}", socket.display()))
            .await
            .unwrap();
        let svid = client.fetch_x509_svid().await.unwrap();
        assert_eq!(
            svid.spiffe_id().to_string(),
            "spiffe://example.org/workload/frontend"
        );
        assert_eq!(svid.cert_chain().len(), 1);
        let bundles = client.fetch_x509_bundles().await.unwrap();
        let domain = TrustDomain::new("example.org").unwrap();
        assert!(
            bundles
                .get(&domain)
                .is_some_and(|bundle| bundle.authorities().len() == 1)
        );

        let mut updates = client.stream_x509_contexts().await.unwrap();
        let mut next = async || {
            let context = tokio::time::timeout(Duration::from_secs(20), updates.next()).await;
            context
                .unwrap()
                .unwrap()
                .unwrap()
                .default_svid()
                .unwrap()
                .leaf()
                .as_bytes()
                .to_vec()
        };
        let first = next().await;
        assert_ne!(next().await, first, "a new certificate is pushed");
    });
}

#[test]
fn the_python_client_fetches_and_sees_a_rotation() {
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("4s")).unwrap();
    let python = root().join("target/python/bin/python");
    let fetch = root().join("tests/python/fetch.py");
    let address = format!("unix://{}", socket.display());
    let output = run(
        python.to_str().unwrap(),
        &[fetch.to_str().unwrap(), &address],
    )
    .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "spiffe://example.org/workload/frontend\nrotated\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_line_that_users_of_spire_type_prints_the_identity() {
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("1h")).unwrap();
    symlink(
        binaries().unwrap().join("postern-agent"),
        world.path().join("spire-agent"),
    )
    .unwrap();
    let line = format!(
        "svid=$(spire-agent api fetch -socketPath {}); echo $svid | jq '.svids[0].spiffe_id'",
        socket.display()
    );
    let path = format!(
        "{}:{}",
        world.path().display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new("sh")
        .args(["-c", &line])
        .env("PATH", path)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "\"spiffe://example.org/workload/frontend\"\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn openssl_verifies_what_was_written() {
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("1h")).unwrap();
    let folder = world.path().join("svids");
    let agent = binaries().unwrap().join("postern-agent");
    let (socket, folder) = (socket.to_str().unwrap(), folder.to_str().unwrap());
    let fetched = run(
        agent.to_str().unwrap(),
        &["api", "fetch", "-socketPath", socket, "-write", folder],
    );
    assert!(fetched.unwrap().status.success());
    let (leaf, bundle) = (
        format!("{folder}/svid.0.pem"),
        format!("{folder}/bundle.0.pem"),
    );
    let verified = run("openssl", &["verify", "-CAfile", &bundle, &leaf]).unwrap();
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stderr)
    );
    let shown = run("openssl", &["x509", "-in", &leaf, "-noout", "-text"]).unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    for part in [
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "CA:FALSE",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "URI:spiffe://example.org/workload/frontend",
    ] {
        assert!(text.contains(part), "`{part}` in {text}");
    }
    let key = run(
        "openssl",
        &["pkey", "-in", &format!("{folder}/svid.0.key"), "-noout"],
    )
    .unwrap();
    assert!(key.status.success());
}

#[test]
fn what_is_told_passes_the_strictest_client() {
    let mut other = World::new().unwrap();
    other.agent_of("other.test", "", "").unwrap();
    let bundle = other
        .admin(&["bundle", "show", "--format", "spiffe"])
        .unwrap();
    let mut world = World::new().unwrap();
    let bundle = String::from_utf8(bundle.stdout).unwrap();
    world.write("other.json", &bundle).unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let workloads = ["one", "two"].map(|name| {
        format!(
            "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\n\
             spec: {{spiffeID: 'spiffe://example.org/{name}', hint: {name}, \
             federatesWith: [other.test], dnsNames: [{name}.test], \
             selectors: ['unix:uid:{uid}']}}\n---\n"
        )
    });
    let federation = "federation: {trustDomains: [{name: other.test, bundleFile: other.json}]}\n";
    let socket = world.agent_with(&workloads.concat(), federation).unwrap();
    let python = root().join("target/python/bin/python");
    let script = root().join("tests/python/strict.py");
    let address = format!("unix:{}", socket.display());
    let arguments = [script.to_str().unwrap(), &address];
    let output = run(python.to_str().unwrap(), &arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.lines().count() > 50,
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.lines().all(|line| line == "ok"), "{said}");
}

#[test]
fn the_same_line_on_a_terminal_is_for_people() {
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("1h")).unwrap();
    let agent = binaries().unwrap().join("postern-agent");
    let line = format!(
        "{} api fetch -socketPath {}",
        agent.display(),
        socket.display()
    );
    // A terminal of its own.
    let script = root().join("tests/python/terminal.py");
    let output = run("python3", &[script.to_str().unwrap(), &line]).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert!(said.starts_with("Received 1 svid after "), "{said}");
    for part in [
        "SPIFFE ID:\t\tspiffe://example.org/workload/frontend\n",
        "SVID Valid Until:\t",
    ] {
        assert!(said.contains(part), "`{part}` in {said}");
    }
}

#[test]
fn a_process_that_is_no_workload_gets_no_identity() {
    let mut world = World::new().unwrap();
    let other = workload("1h").replace("unix:uid:", "unix:uid:9");
    let socket = world.agent(&other).unwrap();
    let agent = binaries().unwrap().join("postern-agent");
    let refused = run(
        agent.to_str().unwrap(),
        &["api", "fetch", "-socketPath", socket.to_str().unwrap()],
    )
    .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&refused.stderr),
        "rpc error: code = PermissionDenied desc = no identity issued\n"
    );
    assert!(refused.stdout.is_empty());
}

#[test]
fn the_agent_ends_well_when_it_is_told_to() {
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("1h")).unwrap();
    world
        .signal("agent", rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(world.ended("agent").unwrap(), Some(0));
    assert!(!socket.exists(), "the socket is gone");
}

#[test]
fn the_python_client_fetches_tokens_and_has_them_verified() {
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("1h")).unwrap();
    let python = root().join("target/python/bin/python");
    let script = root().join("tests/python/jwt_svid.py");
    let address = format!("unix://{}", socket.display());
    let arguments = [script.to_str().unwrap(), &address];
    let output = run(python.to_str().unwrap(), &arguments).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "spiffe://example.org/workload/frontend\nspiffe://example.org/workload/frontend\n\
         refused for another audience\nrefused for somebody else\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn tokens_are_fetched_and_verified_by_the_command_line() {
    // FAULTS 47, 48
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("1h")).unwrap();
    let agent = binaries().unwrap().join("postern-agent");
    let api = |arguments: &[&str]| {
        let mut all = vec!["api"];
        all.extend(arguments);
        all.extend(["-socketPath", socket.to_str().unwrap(), "-output", "json"]);
        let output = run(agent.to_str().unwrap(), &all).unwrap();
        let (said, error) = (output.stdout, output.stderr);
        let error = String::from_utf8_lossy(&error).into_owned();
        match output.status.success() {
            true => Ok(serde_json::from_slice::<serde_json::Value>(&said).unwrap()),
            false => Err(error),
        }
    };
    let fetched = api(&["fetch", "jwt", "-audience", "a,b"]).unwrap();
    let svid = &fetched[0]["svids"][0];
    assert_eq!(svid["spiffe_id"], "spiffe://example.org/workload/frontend");
    assert!(fetched[1]["bundles"]["spiffe://example.org"].is_string());
    let token = svid["svid"].as_str().unwrap();
    let valid = api(&["validate", "jwt", "-audience", "b", "-svid", token]).unwrap();
    assert_eq!(valid["spiffe_id"], "spiffe://example.org/workload/frontend");
    assert_eq!(valid["claims"]["aud"], serde_json::json!(["a", "b"]));
    let changed = format!("{}x", token.split_at(token.len() - 1).0);
    for (arguments, said) in [
        (vec!["fetch", "jwt"], "audience must be specified"),
        (vec!["fetch", "x509", "-audience", "a"], "api fetch jwt"),
        (
            vec![
                "fetch",
                "jwt",
                "-audience",
                "a",
                "-spiffeID",
                "spiffe://example.org/other",
            ],
            "PermissionDenied",
        ),
        (
            vec!["fetch", "jwt", "-audience", "a", "-spiffeID", "no"],
            "InvalidArgument",
        ),
        (
            vec!["validate", "jwt", "-audience", "c", "-svid", token],
            "SVID is not valid",
        ),
        (
            vec!["validate", "jwt", "-audience", "a", "-svid", &changed],
            "SVID is not valid",
        ),
    ] {
        let refused = api(&arguments).unwrap_err();
        assert!(refused.contains(said), "{said} in {refused}");
    }
}

#[test]
fn the_python_package_for_tls_connects_two_identities() {
    let mut world = World::new().unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let workloads = ["frontend", "backend"].map(|name| {
        format!(
            "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\n\
             spec: {{spiffeID: 'spiffe://example.org/{name}', hint: {name}, \
             selectors: ['unix:uid:{uid}']}}\n---\n"
        )
    });
    let socket = world.agent(&workloads.concat()).unwrap();
    let python = root().join("target/python/bin/python");
    let script = root().join("tests/python/tls.py");
    let address = format!("unix://{}", socket.display());
    let arguments = [script.to_str().unwrap(), &address];
    let output = run(python.to_str().unwrap(), &arguments).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "frontend hello\nbackend refused\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_client_that_knows_nothing_is_told_what_is_served() {
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("1h")).unwrap();
    let python = root().join("target/python/bin/python");
    let script = root().join("tests/python/reflection.py");
    let address = format!("unix:{}", socket.display());
    let arguments = [script.to_str().unwrap(), &address];
    let output = run(python.to_str().unwrap(), &arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    // Without the security header first.
    assert_eq!(said, "INVALID_ARGUMENT\nTrue\nTrue\n", "{output:?}");
}

#[test]
fn the_socket_answers_the_protocols_of_health_and_reflection() {
    // FAULTS 23
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("1h")).unwrap();
    let python = root().join("target/python/bin/python");
    let script = root().join("tests/python/health.py");
    let address = format!("unix:{}", socket.display());
    let arguments = [script.to_str().unwrap(), &address];
    let output = run(python.to_str().unwrap(), &arguments).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!(
            "SERVING\nSERVING\nserved: True\n{}",
            "INVALID_ARGUMENT\n".repeat(6)
        ),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_method_but_envoys_wants_the_header_once_and_as_it_is_written() {
    // FAULTS 23
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload("1h")).unwrap();
    let python = root().join("target/python/bin/python");
    let script = root().join("tests/python/header.py");
    let arguments = [script.to_str().unwrap(), socket.to_str().unwrap()];
    let output = run(python.to_str().unwrap(), &arguments).unwrap();
    // Who Envoy is tells the kernel; it cannot send the header.
    let sds = "envoy.service.secret.v3.SecretDiscoveryService";
    assert_eq!(
        postern_tests::lines(&output, "header.py").unwrap(),
        [
            "methods True".to_owned(),
            format!("without /{sds}/DeltaSecrets"),
            format!("without /{sds}/StreamSecrets"),
            format!("without /{sds}/FetchSecrets"),
        ]
    );
}
