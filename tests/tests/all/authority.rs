//! The authority's roots, replaced by hand while a client watches.

use std::process::Command;

use postern_tests::{binaries, eventually, run, world::World};
use serde_json::Value;

const WORKLOAD: &str = "\
apiVersion: postern.dev/v1
kind: Workload
metadata: {name: frontend, namespace: production}
spec: {spiffeID: 'spiffe://example.org/workload/frontend', selectors: ['unix:uid:0']}
";

/// The messages that the watching client got, newest last: SVID and bundle.
fn messages(world: &World) -> Vec<(String, String)> {
    let log = std::fs::read_to_string(world.log("watch")).unwrap_or_default();
    let message = |line: &str| {
        let value: Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| {
            Some(
                value
                    .pointer(&format!("/svids/0/{name}"))?
                    .as_str()?
                    .to_owned(),
            )
        };
        Some((text("x509_svid")?, text("bundle")?))
    };
    log.lines().filter_map(message).collect()
}

#[test]
fn clients_follow_when_a_root_is_prepared_activated_tainted_and_revoked() {
    // FAULTS 40, 41
    let mut world = World::new().unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let workload = WORKLOAD.replace("uid:0", &format!("uid:{uid}"));
    let socket = world.agent(&workload).unwrap();
    let agent = binaries().unwrap().join("postern-agent");
    let mut watch = Command::new(&agent);
    watch.args(["api", "watch", "-output", "json", "-socketPath"]);
    world.spawn("watch", watch.arg(&socket)).unwrap();
    let admin = world.path().join("admin/admin.sock");
    let authority = |arguments: &[&str]| -> Result<Value, String> {
        let mut all = vec!["authority"];
        all.extend(arguments);
        all.extend(["--json", "-socketPath", admin.to_str().unwrap()]);
        let output = run(agent.to_str().unwrap(), &all).unwrap();
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    let wait = |what: &str, is_it: &dyn Fn(&(String, String)) -> bool| {
        eventually(what, || {
            messages(&world).into_iter().next_back().filter(is_it)
        })
        .unwrap()
    };
    let first = wait("the first message", &|_| true);
    let shown = authority(&["show"]).unwrap();
    let root = shown.pointer("/0/id").and_then(Value::as_str).unwrap();
    assert!(
        authority(&["taint", root])
            .unwrap_err()
            .contains("signs now")
    );
    assert!(
        authority(&["revoke", "no-id"])
            .unwrap_err()
            .contains("is no ID")
    );

    authority(&["prepare"]).unwrap();
    let told = wait("the prepared root in the bundle", &|(_, bundle)| {
        *bundle != first.1
    });
    assert_eq!(told.0, first.0, "the SVID is the same");
    authority(&["activate"]).unwrap();
    authority(&["taint", root]).unwrap();
    let replaced = wait("a new SVID", &|(svid, _)| *svid != first.0);
    assert_eq!(replaced.1, told.1, "both roots are trusted");
    authority(&["revoke", root]).unwrap();
    wait("the old root out of the bundle", &|(svid, bundle)| {
        *svid == replaced.0 && bundle.len() < told.1.len()
    });
}
