//! Evidence on images: containers whose image was scanned, and signed, and the same containers when it is
//! not so any more.
//!
//! These tests need root and a running Docker Engine, so they are run by name: `cargo test -p
//! postern-tests --test all -- --ignored docker_image`.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Output,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use postern_tests::{binaries, eventually, run, world::World};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Where the Workload API is in a container.
const SOCKET: &str = "/run/postern/agent.sock";

const CVE: &str = "CVE-2026-0001";

#[track_caller]
fn good(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Imports an image with the agent and its libraries. Tells its ID, the digest of its configuration: it was
/// never in a registry, so it has no other.
fn image(world: &World, name: &str) -> String {
    let agent = binaries().unwrap().join("postern-agent");
    let folder = world.path().join("image");
    let script = format!(
        "set -e; mkdir -p {to}/run/postern {to}/tmp; strip -o {to}/agent {agent}; cp -L $(command -v sleep) {to}/sleep; echo {name} > {to}/name; \
         for file in $(ldd {agent} | grep -o '/[^ ]*'); do \
         mkdir -p {to}$(dirname $file); cp -L $file {to}$file; done; \
         tar c -C {to} . | docker import - {name}",
        to = folder.display(),
        agent = agent.display(),
    );
    good(&run("sh", &["-c", &script]).unwrap());
    good(&run("docker", &["image", "inspect", "-f", "{{.Id}}", name]).unwrap())
}

/// A container, removed with the test, its image too.
struct Container {
    id: String,
    image: &'static str,
}

impl Container {
    /// One that does nothing.
    fn start(world: &World, image: &'static str) -> Self {
        Self::running(world, image, &["/sleep", "600"])
    }

    fn running(world: &World, image: &'static str, command: &[&str]) -> Self {
        let socket = format!("{}:/run/postern:ro", world.path().join("public").display());
        let mut all = vec!["run", "-d", "--network", "none", "-v", &socket, image];
        all.extend(command);
        let id = good(&run("docker", &all).unwrap());
        Self { id, image }
    }

    /// What it was told so far.
    fn heard(&self) -> String {
        let output = run("docker", &["logs", &self.id]).unwrap();
        let [out, error] = [output.stdout, output.stderr];
        String::from_utf8_lossy(&[out, error].concat()).into_owned()
    }

    fn pid(&self) -> String {
        let format = ["inspect", "-f", "{{.State.Pid}}", &self.id];
        good(&run("docker", &format).unwrap())
    }

    /// Does a process in it get the identity?
    fn is_granted(&self) -> bool {
        let fetch = [
            "exec",
            &self.id,
            "/agent",
            "api",
            "fetch",
            "-socketPath",
            SOCKET,
        ];
        let output = run("docker", &fetch).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let is_refused = error.contains("no identity issued");
        assert!(output.status.success() || is_refused, "{error}");
        !is_refused
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = run("docker", &["rm", "-f", "-v", &self.id]);
        let _ = run("docker", &["rmi", "-f", self.image]);
    }
}

fn workload(selectors: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: app}}\n\
         spec: {{spiffeID: 'spiffe://example.org/app', selectors: [{selectors}]}}\n"
    )
}

/// A moment so many hours ago, as reports write it.
fn ago(hours: u64) -> String {
    let then = SystemTime::now() - Duration::from_secs(hours * 3600);
    OffsetDateTime::from(then).format(&Rfc3339).unwrap()
}

/// What Trivy writes of an image in which it found these.
fn report(image: &str, at: &str, found: &[(&str, &str)]) -> Value {
    let found = found.iter().map(|(id, severity)| {
        json!({"VulnerabilityID": id, "PkgName": "openssl", "Severity": severity,
               "PkgIdentifier": {"PURL": "pkg:deb/debian/openssl@3.0.1"}})
    });
    json!({
        "SchemaVersion": 2, "CreatedAt": at, "ArtifactName": "app", "ArtifactType": "container_image",
        "Metadata": {"OS": {"Family": "debian", "Name": "12"}, "ImageID": image, "RepoDigests": null},
        "Results": [{"Target": "app (debian 12)", "Class": "os-pkgs", "Type": "debian",
                     "Vulnerabilities": found.collect::<Vec<_>>()}]
    })
}

fn exception(image: &str, vulnerability: &str) -> Value {
    json!({
        "@context": "https://openvex.dev/ns/v0.2.0", "@id": "https://example.org/1", "author": "Example",
        "timestamp": ago(1), "version": 1,
        "statements": [{
            "vulnerability": {"name": vulnerability},
            "products": [{"@id": format!("pkg:oci/app@{}", image.replace(':', "%3A"))}],
            "status": "not_affected", "justification": "vulnerable_code_not_present"
        }]
    })
}

/// Puts a file into the folder, whole at once.
/// Puts a file there, and waits until an agent that runs has read it: what is asked afterwards is asked of it.
fn put(world: &World, name: &str, document: &Value) {
    let written = world.write("written", &document.to_string()).unwrap();
    changes(world, |folder| {
        fs::rename(written, folder.join(name)).unwrap()
    });
}

fn take_out(world: &World, name: &str) {
    changes(world, |folder| fs::remove_file(folder.join(name)).unwrap());
}

#[track_caller]
fn changes(world: &World, change: impl FnOnce(&Path)) {
    let times = || {
        let log = fs::read_to_string(world.log("agent")).ok()?;
        Some(log.matches("image evidence was read").count())
    };
    // It reads once at its start, by and by.
    let first = || times().is_none_or(|times| times > 0).then_some(());
    eventually("the first reading", first).unwrap();
    let before = times();
    change(&world.path().join("evidence"));
    let again = || (before.is_none() || times() > before).then_some(());
    eventually("the change to be read", again).unwrap();
}

/// Waits until the audit log says this of a refusal, and all the while nobody is granted anything.
#[track_caller]
fn is_refused(world: &World, container: &Container, because: &str) {
    refusal(world, container, because, |granted| {
        assert!(!granted, "instead of: {because}");
    });
}

/// The same of one who was granted it until now.
#[track_caller]
fn loses_it(world: &World, container: &Container, because: &str) {
    refusal(world, container, because, |_| ());
    assert!(!container.is_granted(), "after: {because}");
}

#[track_caller]
fn refusal(world: &World, container: &Container, because: &str, asked: impl Fn(bool)) {
    let log = world.log("agent");
    let before = fs::read_to_string(&log).unwrap().len();
    eventually(because, || {
        asked(container.is_granted());
        let said = fs::read_to_string(&log).unwrap();
        let mut lines = said.get(before..).unwrap_or_default().lines();
        lines
            .any(|line| line.contains("\"refused\"") && line.contains(because))
            .then_some(())
    })
    .unwrap();
}

#[track_caller]
fn is_granted(container: &Container) {
    eventually("an identity", || container.is_granted().then_some(())).unwrap();
}

fn explained(world: &World, container: &Container) -> String {
    let agent = binaries().unwrap().join("postern-agent");
    let config = world.path().join("agent.yaml");
    let arguments = [
        "explain",
        "--pid",
        &container.pid(),
        "--config",
        config.to_str().unwrap(),
    ];
    good(&run(agent.to_str().unwrap(), &arguments).unwrap())
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_image_is_believed_by_what_scanners_say_of_it_and_only_as_long() {
    const NAME: &str = "postern-test:scanned";
    let mut world = World::new().unwrap();
    let id = image(&world, NAME);
    fs::create_dir(world.path().join("evidence")).unwrap();
    let folder = world.path().join("evidence").display().to_string();
    let attestors =
        format!("attestors: {{docker: {{}}, image: {{directory: '{folder}', maxAge: 48h}}}}\n");
    let selectors = "'image:scanned', 'image:critical:0', 'image:high:2'";
    world.agent_with(&workload(selectors), &attestors).unwrap();
    let container = Container::start(&world, NAME);

    is_refused(&world, &container, &format!("no report is on {id}"));
    let said = explained(&world, &container);
    assert!(said.contains(&format!("image:digest:{id}")), "{said}");
    assert!(said.contains("image:critical:0: no report is on"), "{said}");

    put(&world, "scan.json", &report(&id, &ago(49), &[]));
    is_refused(
        &world,
        &container,
        "`scan.json` of Trivy is too old: 2d1h of at most 2d",
    );
    let other = format!("sha256:{}", "ee".repeat(32));
    put(&world, "scan.json", &report(&other, &ago(1), &[]));
    is_refused(&world, &container, "but on other images: `scan.json`");
    put(&world, "scan.json", &json!({"Results": []}));
    is_refused(
        &world,
        &container,
        "`scan.json`: it is of no form that is known",
    );
    world
        .said("agent", "a file of image evidence gives nothing")
        .unwrap();
    put(
        &world,
        "scan.json",
        &report(&id, &ago(1), &[(CVE, "CRITICAL")]),
    );
    let rated = format!("rates 1 critical or not at all: `{CVE}`");
    is_refused(&world, &container, &rated);
    put(
        &world,
        "scan.json",
        &report(&id, &ago(1), &[(CVE, "UNKNOWN")]),
    );
    is_refused(&world, &container, &rated);
    let high = [("CVE-1", "HIGH"), ("CVE-2", "HIGH"), ("CVE-3", "HIGH")];
    put(&world, "scan.json", &report(&id, &ago(1), &high));
    is_refused(&world, &container, "rates 3 high");
    put(&world, "scan.json", &report(&id, &ago(1), &high[1..]));
    is_granted(&container);
    put(
        &world,
        "scan.json",
        &report(&id, &ago(1), &[(CVE, "CRITICAL")]),
    );
    loses_it(&world, &container, &rated);
    put(&world, "vex.json", &exception(&other, CVE));
    is_refused(&world, &container, &rated);
    put(&world, "vex.json", &exception(&id, "CVE-2026-00012"));
    is_refused(&world, &container, &rated);
    put(&world, "vex.json", &exception(&id, CVE));
    is_granted(&container);
    let said = explained(&world, &container);
    for selector in [
        "image:scanned",
        "image:critical:0",
        "image:high:0",
        "image:high:2",
    ] {
        assert!(
            said.lines().any(|line| line.trim() == selector),
            "{selector}: {said}"
        );
    }
    take_out(&world, "vex.json");
    loses_it(&world, &container, &rated);
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_image_with_a_newer_report_that_is_worse_loses_the_identity_while_it_runs() {
    const NAME: &str = "postern-test:watched";
    let mut world = World::new().unwrap();
    let id = image(&world, NAME);
    fs::create_dir(world.path().join("evidence")).unwrap();
    put(&world, "first.json", &report(&id, &ago(2), &[]));
    // The timer alone would take longer than this test waits.
    let more = "attestors: {docker: {}, image: {}}\nreattest: {every: 10m}\n";
    world
        .agent_with(&workload("'image:critical:0'"), more)
        .unwrap();
    let container = Container::running(
        &world,
        NAME,
        &[
            "/agent",
            "api",
            "watch",
            "-output",
            "json",
            "-socketPath",
            SOCKET,
        ],
    );
    eventually("an identity", || {
        container
            .heard()
            .contains("spiffe://example.org/app")
            .then_some(())
    })
    .unwrap();
    // News that change nothing end nothing.
    put(
        &world,
        "second.json",
        &report(&id, &ago(1), &[("CVE-1", "HIGH")]),
    );
    is_granted(&container);
    assert!(!container.heard().contains("PermissionDenied"));
    put(
        &world,
        "third.json",
        &report(&id, &ago(0), &[(CVE, "CRITICAL")]),
    );
    eventually("the end of an identity", || {
        container.heard().contains("PermissionDenied").then_some(())
    })
    .unwrap();
    world
        .told("agent", "`third.json` of Trivy rates 1 critical")
        .unwrap();
}

/// An engine that knows what the real one does, and that the image was in a registry.
fn engine(socket: &Path, reference: String) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &reference);
        }
    });
}

fn answer(mut stream: UnixStream, reference: &str) {
    let mut asked = [0; 1024];
    let read = stream.read(&mut asked).unwrap_or_default();
    let asked = asked.get(..read).unwrap_or_default();
    let asked = String::from_utf8_lossy(asked).into_owned();
    let Some(path) = asked.split_whitespace().nth(1) else {
        return;
    };
    let body = match path.starts_with("/images/") {
        true => json!({"RepoDigests": [reference]}).to_string(),
        false => {
            let url = format!("http://docker{path}");
            let told = ["-sf", "--unix-socket", "/var/run/docker.sock", &url];
            good(&run("curl", &told).unwrap())
        }
    };
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

/// Signs a manifest as cosign does, with a key that OpenSSL makes where there is none of the name.
fn signature(world: &World, key: &str, manifest: &str) -> Value {
    let payload = json!({
        "critical": {"identity": {"docker-reference": "registry.test/app"},
                     "image": {"docker-manifest-digest": manifest},
                     "type": "cosign container image signature"},
        "optional": null
    })
    .to_string();
    world.write("payload", &payload).unwrap();
    let script = format!(
        "set -e; cd {}; [ -e {key} ] || {{ openssl ecparam -name prime256v1 -genkey -noout -out {key}; \
         openssl pkey -in {key} -pubout -out {key}.pub; }}; \
         openssl dgst -sha256 -sign {key} -out signed payload",
        world.path().display()
    );
    good(&run("sh", &["-c", &script]).unwrap());
    let signed = fs::read(world.path().join("signed")).unwrap();
    json!({"Base64Signature": BASE64_STANDARD.encode(signed), "Payload": BASE64_STANDARD.encode(payload)})
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_image_is_believed_by_a_signature_on_its_manifest() {
    const NAME: &str = "postern-test:signed";
    let mut world = World::new().unwrap();
    let id = image(&world, NAME);
    fs::create_dir(world.path().join("evidence")).unwrap();
    let manifest = format!("sha256:{}", "3a".repeat(32));
    let by_release = signature(&world, "release", &manifest);
    let by_stranger = signature(&world, "stranger", &manifest);
    let of_other = signature(&world, "release", &format!("sha256:{}", "ee".repeat(32)));
    let of_config = signature(&world, "release", &id);
    let mut altered = of_other.clone();
    altered["Payload"] = by_release["Payload"].clone();
    let socket = world.path().join("engine.sock");
    engine(&socket, format!("registry.test/app@{manifest}"));
    let more = format!(
        "attestors: {{docker: {{socket: 'unix://{}'}}, image: {{keys: {{release: release.pub}}}}}}\n",
        socket.display()
    );
    world
        .agent_with(&workload("'image:signed:release'"), &more)
        .unwrap();
    let container = Container::start(&world, NAME);
    is_refused(
        &world,
        &container,
        &format!("no signature is on `{manifest}`"),
    );
    for (document, because) in [
        (
            &by_stranger,
            "`app.json` is signed by no key of `image.keys`",
        ),
        (&altered, "`app.json` is signed by no key of `image.keys`"),
        (&of_other, "no signature is on"),
        (&of_config, "no signature is on"),
    ] {
        put(&world, "app.json", document);
        is_refused(&world, &container, because);
    }
    put(&world, "app.json", &by_release);
    is_granted(&container);
    let said = explained(&world, &container);
    assert!(said.contains(&format!("image:digest:{manifest}")), "{said}");
    // The key is replaced.
    let stranger = world.path().join("stranger.pub");
    fs::rename(stranger, world.path().join("release.pub")).unwrap();
    loses_it(&world, &container, "is signed by no key");
    put(&world, "app.json", &by_stranger);
    is_granted(&container);
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_image_that_was_never_in_a_registry_says_so_where_a_signature_is_wanted() {
    const NAME: &str = "postern-test:unsigned";
    let mut world = World::new().unwrap();
    let id = image(&world, NAME);
    fs::create_dir(world.path().join("evidence")).unwrap();
    put(&world, "app.json", &signature(&world, "release", &id));
    let more = "attestors: {docker: {}, image: {keys: {release: release.pub}}}\n";
    world
        .agent_with(&workload("'image:signed:release'"), more)
        .unwrap();
    let container = Container::start(&world, NAME);
    is_refused(&world, &container, "push it to a registry");
}
