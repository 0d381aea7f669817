//! Identities that are taken back, and roots that are replaced, as proxies and their callers see it.

use std::{
    fs,
    io::Write as _,
    process::{Child, ChildStdin, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use postern_tests::{binaries, eventually};
use serde_json::Value;

use super::{Road, Start, ask_steadily, get};

/// Adds a Workload of the frontend's identity for whoever fetches with the agent's own program.
fn with_caller(road: &Road) -> String {
    let path = road.world.path().join("workloads/workloads.yaml");
    let before = fs::read_to_string(&path).unwrap();
    let program = binaries().unwrap().join("postern-agent");
    let program = fs::canonicalize(program).unwrap();
    let caller = format!(
        "---\napiVersion: postern.dev/v1\nkind: Workload\n\
         metadata: {{name: caller, labels: {{app: frontend}}}}\n\
         spec: {{serviceAccount: frontend, selectors: ['unix:path:{}']}}\n",
        program.display(),
    );
    fs::write(&path, before.clone() + &caller).unwrap();
    before
}

/// Fetches into this folder, as soon as there is something.
fn write_svid(road: &Road, folder: &str) {
    eventually("an SVID", || {
        let fetched = Command::new(binaries().unwrap().join("postern-agent"))
            .args(["api", "fetch", "-write", folder, "-socketPath"])
            .arg("public/agent.sock")
            .current_dir(road.world.path())
            .output()
            .unwrap();
        fetched.status.success().then_some(())
    })
    .unwrap();
}

/// A connection to web by a program of others, on which it has asked once and been answered.
struct Held {
    openssl: Child,
    /// Openssl ends with them.
    _words: ChildStdin,
    said: std::path::PathBuf,
}

impl Held {
    fn open(road: &Road, folder: &str, name: &str) -> Self {
        let said = road.world.path().join(name);
        let of_web = format!("127.0.0.2:{}", road.app.address.port());
        let mut openssl = Command::new("openssl")
            .args(["s_client", "-quiet", "-alpn", "http/1.1", "-connect"])
            .arg(of_web)
            .args(["-cert", &format!("{folder}/svid.0.pem")])
            .args(["-key", &format!("{folder}/svid.0.key")])
            .args(["-CAfile", &format!("{folder}/bundle.0.pem")])
            .current_dir(road.world.path())
            .stdin(Stdio::piped())
            .stdout(fs::File::create(&said).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut words = openssl.stdin.take().unwrap();
        // Who is refused may be gone already.
        let _ = words.write_all(b"GET /api/orders HTTP/1.1\r\nhost: web\r\n\r\n");
        Self {
            openssl,
            _words: words,
            said,
        }
    }

    fn is_answered(&self) -> bool {
        let said = fs::read_to_string(&self.said).unwrap();
        said.starts_with("HTTP/1.1 200 ")
    }

    fn answered(&self) {
        eventually("an answer", || self.is_answered().then_some(())).unwrap();
    }

    fn is_open(&mut self) -> bool {
        self.openssl.try_wait().unwrap().is_none()
    }

    fn closed(&mut self) {
        eventually("the end of the connection", || {
            (!self.is_open()).then_some(())
        })
        .unwrap();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.openssl.kill();
        let _ = self.openssl.wait();
    }
}

/// The root that signs, by its ID.
fn active(road: &Road) -> String {
    let shown = road.world.admin(&["authority", "show", "--json"]).unwrap();
    let all: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let mut all = all.as_array().unwrap().iter();
    let active = all.find(|one| one["status"] == "active" && one["kind"] == "x509");
    active.unwrap()["id"].as_str().unwrap().to_owned()
}

fn authority(road: &Road, arguments: &[&str]) {
    let output = road.world.admin(&[&["authority"], arguments].concat());
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Ends those who ask steadily, however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn roots_that_are_replaced_under_load_fail_no_request() {
    // FAULTS 40
    let road = Road::new(&Start::AgentFirst, "1h");
    // What both proxies have taken in of the agent's news, as often as they say so.
    let taken = || {
        ["frontend", "web"].map(|name| {
            let log = fs::read_to_string(road.world.log(name)).unwrap();
            log.matches("identity in force").count()
        })
    };
    let both_take = |order: &[&str]| {
        let before = taken();
        authority(&road, order);
        eventually("both to take the news", || {
            let mut both = taken().into_iter().zip(before);
            both.all(|(now, before)| now > before).then_some(())
        })
        .unwrap();
    };
    let stop = AtomicBool::new(false);
    let (asked, failed) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask_steadily(road.web, &stop));
        let stop = Stop(&stop);
        for _ in 0..3 {
            let root = active(&road);
            both_take(&["prepare"]);
            authority(&road, &["activate"]);
            both_take(&["taint", &root]);
        }
        drop(stop);
        asking.join().unwrap()
    });
    assert!(asked > 0 && failed.is_empty(), "{asked}: {failed:?}");
}

#[test]
fn what_a_revoked_root_signed_is_cut_and_refused_and_what_the_next_one_signs_is_not() {
    // FAULTS 41
    let road = Road::new(&Start::AgentFirst, "1h");
    with_caller(&road);
    write_svid(&road, "old");
    let mut held = Held::open(&road, "old", "held");
    held.answered();
    let old = active(&road);
    authority(&road, &["prepare"]);
    authority(&road, &["activate"]);
    write_svid(&road, "new");
    assert!(held.is_open());
    authority(&road, &["taint", &old]);
    authority(&road, &["revoke", &old]);
    held.closed();
    let mut again = Held::open(&road, "old", "again");
    again.closed();
    assert!(!again.is_answered());
    write_svid(&road, "new");
    let mut new = Held::open(&road, "new", "new-held");
    new.answered();
    assert!(new.is_open());
    eventually("the road", || get(road.web).ok()).unwrap();
}

#[test]
fn who_is_no_workload_any_more_is_cut_and_refused_and_his_twin_is_not() {
    // FAULTS 42
    let road = Road::new(&Start::AgentFirst, "1h");
    let before = with_caller(&road);
    write_svid(&road, "svids");
    let mut held = Held::open(&road, "svids", "held");
    held.answered();
    let path = road.world.path().join("workloads/workloads.yaml");
    fs::write(&path, &before).unwrap();
    held.closed();
    let mut again = Held::open(&road, "svids", "again");
    again.closed();
    assert!(!again.is_answered());
    get(road.web).unwrap();
    // The proxy that is none stops to use what it had.
    let others: Vec<&str> = before
        .split("---\n")
        .filter(|one| !one.contains("name: frontend,"))
        .collect();
    fs::write(&path, others.join("---\n")).unwrap();
    eventually("the refusal", || get(road.web).err()).unwrap();
    let reached = road.app.reached();
    assert!(get(road.web).is_err());
    assert_eq!(road.app.reached(), reached);
}
