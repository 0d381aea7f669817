//! An authority above the agent's own.

use std::fs;

use postern_tests::{binaries, certificates::Authority, run, world::World};
use rcgen::{BasicConstraints, CertificateParams, IsCa};
use rustix::process::Signal;
use time::{Duration, OffsetDateTime};

fn workload() -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: app}}\n\
         spec: {{spiffeID: 'spiffe://example.org/app', selectors: ['unix:uid:{}']}}\n",
        rustix::process::geteuid().as_raw()
    )
}

const ABOVE: &str = "authority: {upstream: {certificate: ca.crt, key: ca.key, bundle: root.crt}}\n";

/// Does openssl believe what the agent issues, by this root alone?
#[track_caller]
fn is_believed(world: &World, root: &str) -> bool {
    let agent = binaries().unwrap().join("postern-agent");
    let (socket, folder) = (
        world.path().join("public/agent.sock"),
        world.path().join("svids"),
    );
    let arguments = [
        "api",
        "fetch",
        "-socketPath",
        socket.to_str().unwrap(),
        "-write",
        folder.to_str().unwrap(),
    ];
    let output = run(agent.to_str().unwrap(), &arguments).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let leaf = folder.join("svid.0.pem").display().to_string();
    let root = world.path().join(root).display().to_string();
    let arguments = ["verify", "-CAfile", &root, "-untrusted", &leaf, &leaf];
    run("openssl", &arguments).unwrap().status.success()
}

#[test]
fn what_the_agent_issues_is_believed_by_the_root_above_it() {
    let mut world = World::new().unwrap();
    let root = Authority::new("example.org").unwrap();
    root.write(world.path(), "root").unwrap();
    root.write_authority(world.path(), "ca", "example.org", |_| {})
        .unwrap();
    let stranger = Authority::new("example.org").unwrap();
    stranger.write(world.path(), "stranger").unwrap();
    world.agent_with(&workload(), ABOVE).unwrap();
    assert!(is_believed(&world, "root.crt"));
    assert!(!is_believed(&world, "stranger.crt"));
    // The bundle is the root above, and stays while ours come and go.
    let bundle = fs::read_to_string(world.path().join("svids/bundle.0.pem")).unwrap();
    assert_eq!(bundle.trim(), root.pem.trim().replace("\r\n", "\n"));
    for change in ["prepare", "activate"] {
        assert!(
            world
                .admin(&["authority", change])
                .unwrap()
                .status
                .success()
        );
    }
    assert!(is_believed(&world, "root.crt"));
    let after = fs::read_to_string(world.path().join("svids/bundle.0.pem")).unwrap();
    assert_eq!(after, bundle);
    world.signal("agent", Signal::KILL).unwrap();
    world.ended("agent").unwrap();
    world.agent_with(&workload(), ABOVE).unwrap();
    assert!(is_believed(&world, "root.crt"), "after a restart");
}

#[test]
fn what_a_revoked_signer_issued_is_on_a_list_as_long_as_the_root_above_is_trusted() {
    // FAULTS 41
    let mut world = World::new().unwrap();
    let root = Authority::new("example.org").unwrap();
    root.write(world.path(), "root").unwrap();
    root.write_authority(world.path(), "ca", "example.org", |_| {})
        .unwrap();
    world.agent_with(&workload(), ABOVE).unwrap();
    assert!(is_believed(&world, "root.crt"));
    fs::rename(world.path().join("svids"), world.path().join("old")).unwrap();
    let authority = |arguments: &[&str]| {
        let output = world.admin(&[&["authority"], arguments].concat()).unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = authority(&["show", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let id = shown.pointer("/0/id").unwrap().as_str().unwrap().to_owned();
    assert!(!world.is_revoked("old").unwrap());
    for change in [
        &["prepare"][..],
        &["activate"],
        &["taint", &id],
        &["revoke", &id],
    ] {
        authority(change);
    }
    assert!(world.is_revoked("old").unwrap());
    assert!(is_believed(&world, "root.crt"));
    assert!(
        !world.is_revoked("svids").unwrap(),
        "what the next one signed"
    );
    // After a restart too.
    world.signal("agent", Signal::KILL).unwrap();
    world.ended("agent").unwrap();
    world.agent_with(&workload(), ABOVE).unwrap();
    assert!(world.is_revoked("old").unwrap());
}

#[test]
fn nothing_lives_longer_than_the_authority_above() {
    // FAULTS 38
    let mut world = World::new().unwrap();
    let root = Authority::new("example.org").unwrap();
    root.write(world.path(), "root").unwrap();
    let end = OffsetDateTime::now_utc() + Duration::minutes(5);
    let short = |params: &mut CertificateParams| params.not_after = end;
    root.write_authority(world.path(), "ca", "example.org", short)
        .unwrap();
    world.agent_with(&workload(), ABOVE).unwrap();
    assert!(is_believed(&world, "root.crt"));
    let leaf = world.path().join("svids/svid.0.pem").display().to_string();
    let seconds = |time: &str| {
        let arguments = ["x509", "-in", &leaf, "-noout", "-checkend", time];
        run("openssl", &arguments).unwrap().status.success()
    };
    assert!(seconds("200"), "it lives as long as it may");
    assert!(!seconds("301"), "and no longer");
}

#[test]
fn an_authority_that_peers_would_not_believe_is_refused_at_the_start() {
    let root = Authority::new("example.org").unwrap();
    let other = Authority::new("example.org").unwrap();
    let files = |world: &World, domain: &str, change: &dyn Fn(&mut CertificateParams)| {
        root.write(world.path(), "root").unwrap();
        root.write_authority(world.path(), "ca", domain, |params| change(params))
            .unwrap();
    };
    let no_change = |_: &mut CertificateParams| {};
    type Breaks<'b> = &'b dyn Fn(&World);
    let cases: [(Breaks<'_>, &str); 6] = [
        (
            &|world| files(world, "other.test", &no_change),
            "other.test",
        ),
        (
            &|world| {
                files(world, "example.org", &|params| {
                    params.is_ca = IsCa::ExplicitNoCa
                })
            },
            "peers would refuse",
        ),
        (
            &|world| {
                let none = IsCa::Ca(BasicConstraints::Constrained(0));
                files(world, "example.org", &|params| params.is_ca = none);
            },
            "peers would refuse",
        ),
        (
            &|world| {
                files(world, "example.org", &no_change);
                other.write(world.path(), "root").unwrap();
            },
            "peers would refuse",
        ),
        (
            &|world| {
                files(world, "example.org", &no_change);
                fs::remove_file(world.path().join("ca.key")).unwrap();
            },
            "ca.key",
        ),
        (
            &|world| {
                let past = OffsetDateTime::now_utc() - Duration::minutes(1);
                files(world, "example.org", &|params| params.not_after = past);
            },
            "peers would refuse",
        ),
    ];
    for (place, (break_it, said)) in cases.into_iter().enumerate() {
        let mut world = World::new().unwrap();
        break_it(&world);
        let log = world.refused_agent(&workload(), ABOVE).unwrap();
        assert!(
            log.contains(said) && log.contains("authority.upstream"),
            "case {place}: {said} in {log}"
        );
        assert!(!world.path().join("state/authority.json").exists());
    }
}
