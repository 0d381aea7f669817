//! Containers that differ from a restricted one in one flag each.

use std::{fs, path::Path, process::Output};

use postern_tests::{binaries, eventually, run, world::World};

use super::{Posture, workload};

const IMAGE: &str = "postern-test:posture";

/// An image with the agent, a program that does nothing and their libraries.
fn image(world: &World) {
    let agent = binaries().unwrap().join("postern-agent");
    let folder = world.path().join("image");
    let script = format!(
        "set -e; mkdir -p {to}/run/postern {to}/tmp {to}/etc; strip -o {to}/agent {agent}; cp -L $(command -v sleep) {to}/sleep; \
         for file in $(ldd {agent} | grep -o '/[^ ]*'); do \
         mkdir -p {to}$(dirname $file); cp -L $file {to}$file; done; \
         tar c -C {to} . | docker import - {IMAGE}",
        to = folder.display(),
        agent = agent.display(),
    );
    good(&run("sh", &["-c", &script]).unwrap());
}

#[track_caller]
fn good(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A container, removed with the test.
struct Container {
    id: String,
    pid: u32,
}

impl Container {
    /// One that does nothing.
    ///
    /// # Errors
    /// What the engine says where it does not start it.
    fn start(world: &World, options: &[String]) -> Result<Self, String> {
        Self::running(world, options, &["/sleep", "600"])
    }

    fn running(world: &World, options: &[String], command: &[&str]) -> Result<Self, String> {
        let socket = format!("{}:/run/postern:ro", world.path().join("public").display());
        let mut all = vec!["run", "-d", "-v", &socket];
        all.extend(options.iter().map(String::as_str));
        all.push(IMAGE);
        all.extend(command);
        let output = run("docker", &all).unwrap();
        let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let mut container = Self { id, pid: 0 };
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let format = ["inspect", "-f", "{{.State.Pid}}", &container.id];
        container.pid = good(&run("docker", &format).unwrap()).parse().unwrap();
        Ok(container)
    }

    /// What its first process was told.
    fn heard(&self) -> String {
        let output = run("docker", &["logs", &self.id]).unwrap();
        let [out, error] = [output.stdout, output.stderr];
        format!(
            "{}{}",
            String::from_utf8_lossy(&out),
            String::from_utf8_lossy(&error)
        )
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

/// Where the Workload API is in a container.
const SOCKET: &str = "/run/postern/agent.sock";

impl Drop for Container {
    fn drop(&mut self) {
        if !self.id.is_empty() {
            let _ = run("docker", &["rm", "-f", "-v", &self.id]);
        }
    }
}

/// What makes a container restricted, one wall a line.
const WALLS: [&[&str]; 8] = [
    &["--network", "none"],
    &["--user", "65532:65532"],
    &["--cap-drop", "ALL"],
    &["--security-opt", "no-new-privileges"],
    &["--read-only"],
    &["--memory", "256m"],
    &["--pids-limit", "64"],
    &["--cpus", "1"],
];

/// One way to start a container: without the wall that begins so, with more.
#[derive(Debug)]
struct Row {
    without: &'static str,
    with: &'static str,
    /// The layers that it then lacks; none leaves it restricted.
    lacks: &'static str,
    is_baseline: bool,
}

const fn weaker(without: &'static str, with: &'static str, lacks: &'static str) -> Row {
    Row {
        without,
        with,
        lacks,
        is_baseline: false,
    }
}

/// It is in the baseline still.
const fn weak(without: &'static str, with: &'static str, lacks: &'static str) -> Row {
    Row {
        is_baseline: true,
        ..weaker(without, with, lacks)
    }
}

const fn fine(with: &'static str) -> Row {
    weak("", with, "")
}

const EVERYTHING_OF_THE_HOST: &str = "host-mounts privileged proc-masks runtime-socket";

/// `DEVICE` is one of the machine's, `WORLD` the folder of the test.
const TABLE: [Row; 57] = [
    fine(""),
    // Users.
    weak("--user", "", "user"),
    weak("--user", "--user 0:0", "user"),
    weak("--user", "--user 0:65532", "user"),
    fine("--group-add 0"),
    // Capabilities and what gives them back.
    weak("--cap-drop", "", "capabilities"),
    fine("--cap-add NET_BIND_SERVICE"),
    weak("", "--cap-add NET_RAW", "capabilities"),
    weak("", "--cap-add CHOWN", "capabilities"),
    weak("", "--cap-add MKNOD", "capabilities"),
    weaker(
        "",
        "--cap-add NET_ADMIN",
        "capabilities capabilities-default",
    ),
    weaker(
        "",
        "--cap-add SYS_PTRACE",
        "capabilities capabilities-default",
    ),
    weaker(
        "",
        "--cap-add SYS_MODULE",
        "capabilities capabilities-default",
    ),
    weaker(
        "",
        "--cap-add SYS_ADMIN",
        "capabilities capabilities-default privileged",
    ),
    weak("--security-opt", "", "no-new-privs"),
    weak(
        "--security-opt",
        "--security-opt no-new-privileges:false",
        "no-new-privs",
    ),
    weaker("", "--security-opt seccomp=unconfined", "seccomp"),
    // A profile that allows everything is a filter all the same.
    fine("--security-opt seccomp=WORLD/allow.json"),
    fine("--security-opt apparmor=unconfined"),
    // Namespaces.
    weaker("", "--pid host", "pid-namespace"),
    weaker("--network", "--network host", "network-namespace"),
    weaker("", "--ipc host", "ipc-namespace"),
    weak("", "--uts host", "uts-namespace"),
    fine("--ipc shareable"),
    fine("--ipc private"),
    fine("--userns host"),
    fine("--cgroupns private"),
    fine("--cgroupns host"),
    // Limits.
    weak("--memory", "", "memory-limit"),
    weak("--memory", "--memory-reservation 64m", "memory-limit"),
    fine("--memory-swap -1"),
    fine("--memory-swap 256m"),
    weak("--pids-limit", "", "pids-limit"),
    weak("--pids-limit", "--pids-limit -1", "pids-limit"),
    weak("--cpus", "", "cpu-limit"),
    weak("--cpus", "--cpu-shares 128", "cpu-limit"),
    weak("--cpus", "--cpuset-cpus 0", "cpu-limit"),
    fine("--cpuset-cpus 0"),
    fine("--ulimit nofile=64:64"),
    // Mounts.
    weak("--read-only", "", "root-filesystem"),
    fine("--tmpfs /tmp"),
    fine("--tmpfs /tmp:exec"),
    fine("-v /data"),
    fine("-v postern-test-volume:/data"),
    weaker("", "-v /:/host", EVERYTHING_OF_THE_HOST),
    weaker("", "-v /:/host:ro", EVERYTHING_OF_THE_HOST),
    weaker("", "-v /etc:/e:ro", "host-mounts"),
    weaker("", "-v WORLD/allow.json:/a.json:ro", "host-mounts"),
    weaker(
        "",
        "-v /var/run/docker.sock:/x.sock",
        "host-mounts runtime-socket",
    ),
    weaker("", "-v /var/run:/x:ro", "host-mounts runtime-socket"),
    weaker("", "-v /proc:/p:ro", "host-mounts privileged proc-masks"),
    weaker("", "-v /sys:/s:ro", "host-mounts privileged proc-masks"),
    weaker("", "-v /dev/shm:/x", "host-mounts"),
    weaker("", "-v postern-test-disguise:/data", "host-mounts"),
    weaker(
        "",
        "--security-opt systempaths=unconfined",
        "privileged proc-masks",
    ),
    // Devices.
    weaker("", "--device DEVICE", "devices"),
    weaker("", "--device-cgroup-rule b_*:*_rwm", "devices"),
];

fn options(row: &Row, world: &World) -> Vec<String> {
    let walls = WALLS.iter();
    let walls = walls.filter(|wall| row.without.is_empty() || !wall.contains(&row.without));
    let device = [
        "/dev/vda",
        "/dev/sda",
        "/dev/nvme0n1",
        "/dev/fuse",
        "/dev/kmsg",
    ];
    let device = device.iter().find(|path| Path::new(path).exists()).unwrap();
    let folder = world.path().display().to_string();
    let more = row.with.split_whitespace().map(|word| {
        let word = word.replace("DEVICE", device).replace('_', " ");
        match row.with.contains("rwm") {
            true => word,
            // A name may have that sign, a rule has spaces.
            false => word.replace(' ', "_").replace("WORLD", &folder),
        }
    });
    let walls = walls.copied().flatten().map(|word| (*word).to_owned());
    walls.chain(more).collect()
}

fn volumes(world: &World) {
    world
        .write("allow.json", r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#)
        .unwrap();
    // A folder of the host that calls itself a volume.
    let _ = run("docker", &["volume", "rm", "postern-test-disguise"]);
    let options = ["type=none", "o=bind", "device=/etc"];
    let options = options.iter().flat_map(|option| ["--opt", option]);
    let mut all = vec!["volume", "create"];
    all.extend(options);
    all.push("postern-test-disguise");
    good(&run("docker", &all).unwrap());
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_container_is_restricted_until_one_wall_is_taken_down() {
    let mut world = World::new().unwrap();
    image(&world);
    volumes(&world);
    world
        .agent_with(&workload("'posture:restricted'"), "")
        .unwrap();
    let mut wrong = Vec::new();
    for row in &TABLE {
        if let Err(why) = check(&world, row) {
            wrong.push(format!("{row:?}\n    {why}"));
        }
    }
    let _ = run("docker", &["volume", "rm", "postern-test-volume"]);
    let _ = run("docker", &["volume", "rm", "postern-test-disguise"]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The lines of the agent's log on who asked and what came of it.
fn audited(world: &World) -> Vec<String> {
    let log = fs::read_to_string(world.log("agent")).unwrap();
    let lines = log.lines();
    let lines = lines.filter(|line| line.contains("\"target\":\"audit\""));
    lines.map(str::to_owned).collect()
}

fn check(world: &World, row: &Row) -> Result<(), String> {
    let container = Container::start(world, &options(row, world))?;
    let audited_before = audited(world).len();
    let is_granted = container.is_granted();
    let found = Posture::of(container.pid, Some(world));
    let lacks: Vec<&str> = row.lacks.split_whitespace().collect();
    let is_restricted = lacks.is_empty();
    if found.lacking() != lacks {
        let why = found.lacking();
        let why: Vec<String> = why
            .iter()
            .map(|layer| format!("{layer}: {}", found.why(layer)))
            .collect();
        return Err(format!("it lacks {why:?}"));
    }
    let bundles = (found.restricted, found.baseline);
    if bundles != (is_restricted, row.is_baseline) {
        return Err(format!("restricted and baseline are {bundles:?}"));
    }
    if is_granted != is_restricted {
        return Err(format!("its identity: {is_granted}"));
    }
    let told = || audited(world).split_off(audited_before).pop();
    let told = eventually("its line", told).map_err(|error| error.to_string())?;
    let refusal = Some(told).filter(|line| line.contains("\"refused\""));
    let named = |refusal: &str| {
        lacks
            .iter()
            .all(|layer| refusal.contains(&format!("{layer}: ")))
    };
    match (refusal, is_restricted) {
        (None, true) => Ok(()),
        (Some(refusal), false) if named(&refusal) => Ok(()),
        (told, _) => Err(format!("the log says {told:?}")),
    }
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_container_that_is_privileged_has_none_of_the_walls() {
    let mut world = World::new().unwrap();
    image(&world);
    world
        .agent_with(&workload("'posture:baseline'"), "")
        .unwrap();
    let options = |more: &str| -> Vec<String> {
        let words = more.split_whitespace();
        words.map(str::to_owned).collect()
    };
    let plain = Container::start(&world, &options("--network none")).unwrap();
    assert!(plain.is_granted());
    let found = Posture::of(plain.pid, Some(&world));
    assert!(found.baseline && !found.restricted, "{found:?}");
    // An engine that lacks a capability itself cannot give all of them.
    match Container::start(&world, &options("--network none --privileged")) {
        Ok(privileged) => {
            assert!(!privileged.is_granted());
            let found = Posture::of(privileged.pid, Some(&world));
            for layer in [
                "privileged",
                "capabilities-default",
                "seccomp",
                "proc-masks",
                "devices",
            ] {
                assert_eq!(found.status(layer), "fail", "{layer}: {found:?}");
            }
        }
        Err(refused) => assert!(
            refused.contains("capabilit") || refused.contains("operation not permitted"),
            "{refused}"
        ),
    }
    // What it would give, one by one.
    let all = "--network none --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt \
               systempaths=unconfined";
    let mut all = options(all);
    all.extend(["--device-cgroup-rule".to_owned(), "a *:* rwm".to_owned()]);
    let open = Container::start(&world, &all).unwrap();
    assert!(!open.is_granted());
    let found = Posture::of(open.pid, Some(&world));
    for layer in [
        "privileged",
        "capabilities-default",
        "seccomp",
        "proc-masks",
        "devices",
    ] {
        assert_eq!(found.status(layer), "fail", "{layer}: {found:?}");
    }
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_layers_that_no_bundle_asks_for_are_told_too() {
    let mut world = World::new().unwrap();
    image(&world);
    world
        .agent_with(
            &workload("'posture:restricted', 'posture:limit:cpuset'"),
            "",
        )
        .unwrap();
    let of = |with: &'static str| {
        let options = options(&fine(with), &world);
        let container = Container::start(&world, &options).unwrap();
        (Posture::of(container.pid, Some(&world)), container)
    };
    let (plain, container) = of("--memory-swap -1");
    assert!(!container.is_granted(), "it may use every CPU");
    for layer in ["swap-limit", "io-limit", "cpuset", "user-namespace"] {
        assert_eq!(plain.status(layer), "fail", "{layer}");
    }
    assert_eq!(plain.status("image"), "pass");
    assert!(plain.why("image").starts_with("sha256:"));
    assert_eq!(plain.status("group"), "pass");
    assert!(plain.has("posture:uid:65532") && plain.has("posture:gid:65532"));
    assert!(plain.has("posture:caps:none") && plain.has("pod:posture:restricted"));
    // No LSM is active on the machines where these tests run first; elsewhere the engine's profile is.
    match Path::new("/sys/module/apparmor/parameters/enabled").exists() {
        true => assert!(plain.has("posture:apparmor:docker-default:enforce")),
        false => assert_eq!(plain.status("lsm"), "unknown"),
    }
    let (limited, container) = of("--cpuset-cpus 0 --memory-swap 256m --cgroupns private");
    assert!(container.is_granted());
    for layer in [
        "swap-limit",
        "cpuset",
        "cgroup-namespace",
        "writable-executable",
    ] {
        assert_eq!(limited.status(layer), "pass", "{layer}: {limited:?}");
    }
    let (groups, container) = of("--cpuset-cpus 0 --group-add 0 --tmpfs /tmp:exec");
    assert!(container.is_granted());
    for layer in ["group", "writable-executable"] {
        assert_eq!(groups.status(layer), "fail", "{layer}");
    }
}

#[test]
#[ignore = "needs root and a running Docker Engine"]
fn docker_exec_of_a_weaker_process_takes_the_identity_from_the_whole_pod() {
    let mut world = World::new().unwrap();
    image(&world);
    world
        .agent_with(&workload("'pod:posture:restricted'"), "")
        .unwrap();
    let options = options(&fine(""), &world);
    let watch = [
        "/agent",
        "api",
        "watch",
        "-output",
        "json",
        "-socketPath",
        SOCKET,
    ];
    let container = Container::running(&world, &options, &watch).unwrap();
    let has_one = || container.heard().contains("spiffe://example.org/app");
    eventually("an identity", || has_one().then_some(())).unwrap();
    let exec = |more: &[&str]| {
        let mut all = vec!["exec", "-d"];
        all.extend(more);
        all.extend([&container.id, "/sleep", "600"]);
        good(&run("docker", &all).unwrap());
    };
    // One that is as it should be changes nothing.
    exec(&[]);
    assert!(container.is_granted());
    assert!(!container.heard().contains("PermissionDenied"));
    exec(&["--user", "0"]);
    eventually("the end of an identity", || {
        container.heard().contains("PermissionDenied").then_some(())
    })
    .unwrap();
    let refused = "is not restricted: user: a thread has the user id 0";
    world.told("agent", refused).unwrap();
}
