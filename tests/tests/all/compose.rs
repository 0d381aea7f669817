//! The compose demo on the real Docker Engine, and what it is made of: images and seccomp profiles.
//!
//! These tests need root and a running engine, so they are run by name: `cargo test -p
//! postern-tests --test all -- --ignored docker`.

use std::{fs, path::Path, process::Command};

use postern_tests::{root, run};
use serde_json::{Value, json};

/// Runs a script of `deploy`, and tells what it printed.
fn script(path: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(root().join("deploy").join(path));
    let output = command.args(arguments).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(told),
        false => Err(told + &String::from_utf8_lossy(&output.stderr)),
    }
}

/// Takes the demo away, however the test ends.
struct Demo;

impl Demo {
    fn up() -> Self {
        let demo = Self;
        // The profile that CI has built already.
        script("compose/up", &["--profile", "static-check"]).unwrap();
        demo
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let ended = script("compose/down", &[]);
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

fn docker(arguments: &[&str]) -> String {
    let output = run("docker", arguments).unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn inspect(container: &str) -> Value {
    let told: Value = serde_json::from_str(&docker(&["inspect", container])).unwrap();
    told.get(0).unwrap().clone()
}

/// What the README says of every container.
fn is_walled(container: &str, user: &str, capabilities: &Value, pid: &str) {
    let told = inspect(container);
    let host = |key: &str| told.pointer(&format!("/HostConfig/{key}")).unwrap().clone();
    let has = |key: &str, wanted: Value| assert_eq!(host(key), wanted, "{container}: {key}");
    has("Privileged", json!(false));
    has("ReadonlyRootfs", json!(true));
    has("CapDrop", json!(["ALL"]));
    has("CapAdd", capabilities.clone());
    has("IpcMode", json!("private"));
    has("PidMode", json!(pid));
    for limit in ["Memory", "NanoCpus", "PidsLimit"] {
        let limit = host(limit).as_i64().unwrap();
        assert!(limit > 0, "{container} has no limit");
    }
    let options = host("SecurityOpt").to_string();
    assert!(
        options.contains("no-new-privileges"),
        "{container}: {options}"
    );
    assert!(
        options.contains("seccomp={") || options.contains("seccomp:{"),
        "{container}: {options}"
    );
    assert!(
        !options.contains("unconfined\"") || container == "postern-agent",
        "{container}"
    );
    assert_eq!(told.pointer("/Config/User").unwrap(), user, "{container}");
    // Nothing can be written to but what is named here.
    let mounts = told.get("Mounts").unwrap().as_array().unwrap();
    let writable = mounts
        .iter()
        .filter(|mount| mount.get("RW") == Some(&json!(true)));
    let writable: Vec<_> = writable
        .map(|mount| mount["Destination"].as_str().unwrap())
        .collect();
    match container {
        "postern-agent" => {
            let mut all = writable;
            all.sort_unstable();
            assert_eq!(all, ["/run/postern/public", "/var/lib/postern"]);
        }
        _ => assert!(writable.is_empty(), "{container}: {writable:?}"),
    }
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_compose_demo_comes_true_and_leaves_nothing() {
    let demo = Demo::up();
    let agent = json!(["SYS_PTRACE", "DAC_READ_SEARCH"]);
    is_walled("postern-agent", "0:0", &agent, "host");
    for pod in ["frontend", "web"] {
        let container = |part: &str| format!("postern-{pod}{part}");
        is_walled(&container(""), "10001:10001", &Value::Null, "");
        is_walled(&container("-pod"), "10001:10001", &Value::Null, "");
        is_walled(&container("-proxy"), "1337:1337", &Value::Null, "");
        is_walled(&container("-rules"), "0:0", &json!(["NET_ADMIN"]), "");
    }
    let told = script("compose/verdicts", &[]).unwrap();
    assert!(told.contains("16 of 16 came true"), "{told}");
    // What is shown can also go wrong: without its rules web would answer everybody.
    docker(&["stop", "--time", "1", "postern-web-proxy"]);
    let wrong = script("compose/verdicts", &["--quick"]).unwrap_err();
    assert!(wrong.contains("WRONG the frontend may read"), "{wrong}");
    drop(demo);
    for list in [
        ["ps", "-a", "--format", "{{.Names}}"],
        ["network", "ls", "--format", "{{.Name}}"],
        ["volume", "ls", "--format", "{{.Name}}"],
    ] {
        let left = docker(&list);
        // Other tests have containers of their own at the same time.
        let is_left = |name: &&str| name.contains("postern-") && !name.contains("postern-test-");
        assert_eq!(left.lines().find(is_left), None, "{left}");
    }
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_images_have_the_same_digest_whenever_they_are_built() {
    let build = || {
        script(
            "images/build",
            &["--profile", "static-check", "--tag", "test"],
        )
        .unwrap();
        fs::read_to_string(root().join("target/images/digests")).unwrap()
    };
    let first = build();
    // At another time.
    assert_eq!(build(), first);
    for line in first.lines() {
        let (name, digest) = line.split_once(' ').unwrap();
        let image = format!("postern/{name}:test");
        assert_eq!(
            docker(&["image", "inspect", "-f", "{{.Id}}", &image]).trim(),
            digest
        );
        let bill = root().join(format!("target/images/{name}.cdx.json"));
        let bill: Value = serde_json::from_str(&fs::read_to_string(bill).unwrap()).unwrap();
        let parts = bill.get("components").unwrap().as_array().unwrap();
        let has = |wanted: &str| parts.iter().any(|part| part["name"] == wanted);
        assert!(has("tokio") && has("serde_json"), "{name}");
        assert_eq!(has("nftables"), name == "netns", "{name}");
        docker(&["rmi", &image]);
    }
    let refused = script("images/build", &["--profil", "x"]).unwrap_err();
    assert!(refused.contains("`--profil` is not known"), "{refused}");
}

/// Makes one system call of each number with arguments that no kernel takes, and prints the errors.
const CALLS: &str = "import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for number in map(int, sys.argv[1:]):
    ctypes.set_errno(0)
    libc.syscall(number, -1, -1, -1, -1, -1, -1)
    print(number, ctypes.get_errno())";

/// Calls that no program of ours makes and that need no privilege, by their numbers on x86-64.
const FORBIDDEN: [(&str, u32); 18] = [
    ("shmget", 29),
    ("semget", 64),
    ("msgget", 68),
    ("ptrace", 101),
    ("mlockall", 151),
    ("add_key", 248),
    ("request_key", 249),
    ("keyctl", 250),
    ("unshare", 272),
    ("splice", 275),
    ("vmsplice", 278),
    ("name_to_handle_at", 303),
    ("setns", 308),
    ("process_vm_readv", 310),
    ("process_vm_writev", 311),
    ("memfd_create", 319),
    ("io_uring_setup", 425),
    ("pidfd_getfd", 438),
];

/// The errors of these calls in a container under a profile.
fn errors(profile: &str) -> Vec<u32> {
    let seccomp = format!("seccomp={profile}");
    let mut all = vec![
        "run",
        "--rm",
        "--network",
        "none",
        "--security-opt",
        "no-new-privileges",
        "--security-opt",
        &seccomp,
    ];
    for folder in ["/usr:/usr:ro", "/lib:/lib:ro", "/lib64:/lib64:ro"] {
        all.extend(["-v", folder]);
    }
    let numbers = FORBIDDEN.map(|(_, number)| number.to_string());
    all.extend(["postern-test:empty", "/usr/bin/python3", "-c", CALLS]);
    all.extend(numbers.iter().map(String::as_str));
    let told = docker(&all);
    let errors = told.lines().map(|line| line.rsplit(' ').next().unwrap());
    errors.map(|error| error.parse().unwrap()).collect()
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_seccomp_profiles_refuse_what_nobody_of_us_calls() {
    const EPERM: u32 = 1;
    crate::docker::image();
    let free = errors("unconfined");
    assert!(
        free.iter().all(|error| *error != EPERM),
        "without a filter they are made: {free:?}"
    );
    for name in ["agent", "proxy", "netns", "workload"] {
        let path = root().join(format!("deploy/seccomp/{name}.json"));
        let told = errors(path.to_str().unwrap());
        for ((call, _), error) in FORBIDDEN.iter().zip(told) {
            assert_eq!(error, EPERM, "{name} lets {call} pass");
        }
        every_group_has_its_reason(&path);
    }
}

fn every_group_has_its_reason(path: &Path) {
    let profile: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(profile.get("defaultAction").unwrap(), "SCMP_ACT_ERRNO");
    for group in profile.get("syscalls").unwrap().as_array().unwrap() {
        let reason = group
            .get("comment")
            .and_then(Value::as_str)
            .unwrap_or_default();
        assert!(reason.len() > 10, "{group}");
    }
}
