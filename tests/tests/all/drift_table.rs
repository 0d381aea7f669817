//! What pods do that they should not, and what they do every day: a table of each, in pods that are made
//! as engines make them, with a root file system of their own.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use postern_tests::{
    binaries, eventually, run,
    world::{World, free_address},
};
use rustix::process::Signal;
use serde_json::Value;

use super::drift::{IDENTITY, Pod, deviations, python, real};

/// An agent, its folder, and the layers of a container that lie elsewhere, since a layer cannot lie below
/// another one.
struct Stage {
    world: World,
    layers: PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.layers);
    }
}

/// Programs that are allowed everywhere here: what they do is what is looked at.
const TOOLS: [&str; 14] = [
    "sleep", "cp", "mv", "ln", "rm", "mount", "umount", "unshare", "nsenter", "setpriv", "strace",
    "chmod", "timeout", "true",
];

impl Stage {
    fn new(answer: &str) -> Self {
        Self::with(answer, "")
    }

    fn with(answer: &str, more: &str) -> Self {
        let world = World::new().unwrap();
        let name = world.path().file_name().unwrap().to_owned();
        let layers = Path::new("/dev/shm").join(name);
        fs::create_dir(&layers).unwrap();
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(world.path(), everybody.clone()).unwrap();
        let mut stage = Self { world, layers };
        stage.programs();
        let (folder, world) = (stage.folder(), &stage.world);
        let mut allowed: Vec<String> = TOOLS.iter().map(|tool| file(tool)).collect();
        allowed.push(python());
        for name in ["allowed", "gone", "suid", "capable"] {
            allowed.push(format!("{folder}/bin/{name}"));
        }
        allowed.extend(["/usr/bin/factor".into(), "/usr/bin/ghost".into()]);
        let agent = fs::canonicalize(binaries().unwrap().join("postern-agent")).unwrap();
        let documents = format!(
            "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: watched}}\n\
             spec: {{spiffeID: '{IDENTITY}', selectors: ['unix:path:{}'], onDrift: {answer}, \
             baseline: {{executables: ['{}'], listen: [8080/tcp], destinations: ['10.99.0.1:8080'], \
             writable: [/tmp, '{folder}'], protected: [/etc]}}}}\n---\n\
             apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: tests}}\n\
             spec: {{spiffeID: 'spiffe://example.org/tests', selectors: ['unix:path:{}']}}\n",
            python(),
            allowed.join("', '"),
            agent.display(),
        );
        world.write("container.sh", CONTAINER).unwrap();
        stage.world.agent_with(&documents, more).unwrap();
        stage
    }

    fn folder(&self) -> String {
        self.world.path().display().to_string()
    }

    /// Programs that lie in the folder, none of them of the image.
    fn programs(&self) {
        let bin = self.world.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let everybody = |name: &str, mode: u32| {
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        for (name, mode) in [
            ("new", 0o755),
            ("allowed", 0o755),
            ("before", 0o755),
            ("gone", 0o755),
            ("suid", 0o4755),
            ("capable", 0o755),
        ] {
            postern_tests::copy_program(real("sleep"), bin.join(name)).unwrap();
            everybody(name, mode);
        }
        let capable = bin.join("capable").display().to_string();
        let set = run("setcap", &["cap_net_raw+ep", &capable]).unwrap();
        assert!(set.status.success(), "{set:?}");
        self.world.write("bin/shell.sh", "sleep 60\n").unwrap();
        let script = "#!/usr/bin/perl\nsleep 60;\n";
        self.world.write("bin/script", script).unwrap();
        everybody("script", 0o755);
        for (name, text) in PROGRAMS {
            self.world.write(&format!("bin/{name}.py"), text).unwrap();
        }
    }

    /// A pod with a network and a root file system of its own, that runs as root or as nobody.
    fn pod(&self, name: &str, user: &str) -> Pod {
        let layers = self.layers.join(name);
        for layer in ["upper", "work", "root"] {
            fs::create_dir_all(layers.join(layer)).unwrap();
        }
        let (layers, folder) = (layers.display().to_string(), self.folder());
        let script = format!("{folder}/container.sh");
        let wrapper = [
            "unshare", "--net", "--mount", "sh", &script, &layers, &folder, user,
        ];
        let mut pod = Pod::start(&self.world, &wrapper);
        let told = pod.tell("again");
        assert_eq!(told, IDENTITY, "{:#?}", deviations(&self.world));
        pod
    }
}

/// The root file system of the machine, with what is written elsewhere; then the program of the pod.
const CONTAINER: &str = r#"set -e
layers=$1 folder=$2 user=$3
shift 3
ip link set lo up
ip address add 10.99.0.1/32 dev lo
mount -t overlay overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" "$layers/root"
cd "$layers/root"
for each in proc sys dev; do mount --rbind "/$each" "./$each"; done
mount --bind "$folder" ".$folder"
mount -t tmpfs tmpfs ./srv
# The programs of a developer may lie there.
chmod 755 ./root
pivot_root . .
umount -l .
cd "$folder"
export PYTHONDONTWRITEBYTECODE=1
case $user in
    root) exec "$@" ;;
    *) exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@" ;;
esac
"#;

/// Programs of Python for everyday behaviour.
const PROGRAMS: [(&str, &str); 6] = [
    (
        "rotate",
        "import os\nlog = open('app.log', 'w')\nlog.write('a')\nos.rename('app.log', 'app.log.1')\n\
         log = open('app.log', 'w')\nlog.write('b')\nlog.close()\n",
    ),
    (
        "reload",
        "import os, signal\nsignal.signal(signal.SIGHUP, lambda *_: open('/etc/passwd').read())\n\
         os.kill(os.getpid(), signal.SIGHUP)\n",
    ),
    (
        "dns",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'?', ('10.99.0.1', 53))\n",
    ),
    (
        "cron",
        "import os, subprocess\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        \
         subprocess.run(['sleep', '0'])\n    os._exit(0)\nos.wait()\n",
    ),
    (
        "temporary",
        "import tempfile\nfor _ in range(20):\n    with tempfile.TemporaryFile() as file:\n        \
         file.write(b'a' * 5000)\n",
    ),
    (
        "again",
        "import os, sys\nif len(sys.argv) == 1:\n    os.execv(sys.executable, [sys.executable, __file__, 'again'])\n",
    ),
];

/// Where a program lies; a shell has some of them in itself.
fn file(program: &str) -> String {
    let path = fs::canonicalize(Path::new("/usr/bin").join(program)).unwrap();
    path.display().to_string()
}

/// Was something of this kind seen that is like this?
fn found(world: &World, kind: &str, what: &str) -> bool {
    let text = |one: &Value, key: &str| one.get(key).unwrap().as_str().unwrap().to_owned();
    let all = deviations(world);
    all.iter()
        .any(|one| text(one, "kind") == kind && text(one, "what").contains(what))
}

/// Are all orders carried out, and is something of this kind seen that was not there before?
#[track_caller]
fn deviates(stage: &Stage, pod: &mut Pod, orders: &[&str], kind: &str, what: &str) {
    let world = &stage.world;
    assert!(!found(world, kind, what), "{kind} {what} is there already");
    for order in orders {
        pod.tell(order);
    }
    let seen = eventually(&format!("{orders:?} as {kind} {what}"), || {
        found(world, kind, what).then_some(())
    });
    assert!(seen.is_ok(), "{seen:?}: {:#?}", deviations(world));
    pod.tell("kill");
    pod.tell("close");
}

#[test]
#[ignore = "needs root, to make containers"]
fn root_each_deviation_is_seen_and_named() {
    let stage = Stage::new("alert");
    let bin = format!("{}/bin", stage.folder());
    let net = format!("join /proc/{}/ns/net", std::process::id());
    let mut pod = stage.pod("pod", "root");
    let each: &[(&[&str], &str, &str)] = &[
        (&["run BIN/new 60"], "exec", "BIN/new"),
        (
            &["wait mv BIN/before BIN/renamed", "run BIN/renamed 60"],
            "exec",
            "BIN/renamed",
        ),
        (
            &["wait ln BIN/allowed BIN/linked", "run BIN/linked 60"],
            "exec",
            "BIN/linked",
        ),
        (
            &[
                "wait cp /usr/bin/sleep /usr/bin/factor",
                "run /usr/bin/factor 60",
            ],
            "exec",
            "/usr/bin/factor",
        ),
        (
            &[
                "wait cp /usr/bin/sleep /usr/bin/ghost",
                "run /usr/bin/ghost 60",
            ],
            "exec",
            "/usr/bin/ghost",
        ),
        (
            &["run BIN/gone 60", "wait rm BIN/gone"],
            "exec",
            "BIN/gone (deleted)",
        ),
        (&["memory /usr/bin/sleep 60"], "memfd", "/memfd:copy"),
        (
            &["run /lib64/ld-linux-x86-64.so.2 BIN/new 60"],
            "exec",
            "ld-linux",
        ),
        (&["run sh BIN/shell.sh"], "exec", "dash"),
        (&["run BIN/script"], "exec", "perl"),
        (&["listen 8081"], "listen", "8081/tcp"),
        (&["bind 8082"], "listen", "8082/udp"),
        (
            &[
                "listen 8080 10.99.0.1",
                "listen 8083 10.99.0.1",
                "connect 8083 10.99.0.1",
            ],
            "connect",
            "10.99.0.1:8083",
        ),
        (&["send 5353 10.99.0.1"], "connect", "10.99.0.1:5353"),
        (&["write /etc/new"], "write", "/etc/new"),
        (&["write /opt/new"], "write", "/opt/new"),
        (
            &["run unshare --user sleep 60"],
            "namespace",
            "sleep in another user",
        ),
        (
            &["run unshare --net sleep 60"],
            "namespace",
            "sleep in another net",
        ),
        (
            &["run unshare --mount sleep 60"],
            "namespace",
            "sleep in another mnt",
        ),
        (
            &["run unshare --pid --fork --kill-child sleep 60"],
            "namespace",
            "sleep in another pid",
        ),
        (
            &["run unshare --ipc sleep 60"],
            "namespace",
            "sleep in another ipc",
        ),
        (
            &["run unshare --cgroup sleep 60"],
            "namespace",
            "sleep in another cgroup",
        ),
        // Made by a process that runs no other program then.
        (&["leave 0x04000000"], "namespace", "PYTHON in another uts"),
        (&[&net], "namespace", "PYTHON in another net"),
        (&["wait mount -t tmpfs new /mnt"], "mount", "/ on /mnt"),
        (&["wait mount --bind BIN /opt"], "mount", "/bin on /opt"),
        (
            &["wait mount -o remount,bind,ro /mnt"],
            "mount",
            "on /mnt, read-only",
        ),
        (&["wait umount /srv"], "mount", "on /srv is gone"),
        (&["trace"], "ptrace", "PYTHON is traced"),
        (
            &["run strace -o /dev/null sleep 20"],
            "ptrace",
            "sleep is traced",
        ),
    ];
    for (orders, kind, what) in each {
        let filled = |text: &str| text.replace("BIN", &bin).replace("PYTHON", &python());
        let orders: Vec<String> = orders.iter().map(|order| filled(order)).collect();
        let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
        deviates(&stage, &mut pod, &orders, kind, &filled(what));
    }
    drop(pod);
    let mut pod = stage.pod("nobodys", "nobody");
    for (program, what) in [
        ("suid", "suid has become root"),
        ("capable", "capable has become NET_RAW"),
    ] {
        let order = format!("run {bin}/{program} 60");
        deviates(&stage, &mut pod, &[&order], "privilege", what);
    }
}

#[test]
#[ignore = "needs root, to make containers"]
fn root_what_pods_do_every_day_is_no_deviation() {
    let stage = Stage::new("revoke");
    let bin = format!("{}/bin", stage.folder());
    let (mut pod, mut nobodys) = (stage.pod("pod", "root"), stage.pod("nobodys", "nobody"));
    let program = |name: &str| format!("wait {} {bin}/{name}.py", python());
    let each = [
        ("log rotation", program("rotate")),
        ("reload", program("reload")),
        ("resolver", program("dns")),
        ("a job of its own session", program("cron")),
        ("temporary files", program("temporary")),
        ("the same program again", program("again")),
        ("threads", "threads".into()),
        ("a child", "run sleep 60".into()),
        (
            "an allowed program of a volume",
            format!("run {bin}/allowed 60"),
        ),
        ("a child without a program", "fork".into()),
        ("a signal", "kill".into()),
        ("a restart", "run sleep 60".into()),
        ("its port", "listen 8080 10.99.0.1".into()),
        ("an allowed connection", "connect 8080 10.99.0.1".into()),
        (
            "a file in its folder",
            format!("write {}/data", stage.folder()),
        ),
        ("a temporary file", "write /tmp/postern-new".into()),
        (
            "rights that are given up",
            "wait setpriv --reuid 65534 --regid 65534 --clear-groups sleep 0".into(),
        ),
        ("a limit of time", "wait timeout 5 true".into()),
    ];
    for (name, order) in &each {
        let told = pod.tell(order);
        assert!(!order.starts_with("wait ") || told == "0", "{name}: {told}");
        assert_eq!(
            pod.tell("again"),
            IDENTITY,
            "{name}: {:#?}",
            deviations(&stage.world)
        );
    }
    // A probe, as engines start it: from outside, and with more rights than the pod has.
    for _ in 0..10 {
        let number = nobodys.pid().to_string();
        let probe = ["-t", &number, "--net", "--mount", "--root", "true"];
        assert!(run("nsenter", &probe).unwrap().status.success());
        assert_eq!(nobodys.tell("again"), IDENTITY);
    }
    for _ in 0..50 {
        pod.tell("wait true");
    }
    assert_eq!(pod.tell("again"), IDENTITY);
    pod.tell("kill");
    let all = deviations(&stage.world);
    assert_eq!(all.len(), 0, "{all:#?}");
}

#[test]
#[ignore = "needs root, to be told by the kernel"]
fn root_events_that_are_lost_are_told_and_all_pods_are_looked_at() {
    let mut world = World::new().unwrap();
    let health = free_address().unwrap();
    let more = format!(
        "reattest: {{every: 1h}}\ndrift: {{waitingEvents: 16}}\nhealth: {{listen: '{health}'}}\n"
    );
    let allowed = [python(), file("true")];
    let allowed = allowed.each_ref().map(String::as_str);
    let documents = super::drift::workloads("revoke", &allowed);
    world.agent_with(&documents, &more).unwrap();
    let mut pod = Pod::session(&world);
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    world.signal("agent", Signal::STOP).unwrap();
    for _ in 0..100 {
        pod.tell("wait true");
    }
    // Nobody is told of this one any more.
    pod.tell(&format!("run {} 60", real("sleep")));
    world.signal("agent", Signal::CONT).unwrap();
    world
        .told("agent", "events were lost; all pods are looked at")
        .unwrap();
    assert_eq!(pod.tell("next"), super::drift::DENIED);
    let seen = || {
        let is_there = found(&world, "lost", "connector") && found(&world, "exec", "sleep");
        is_there.then_some(())
    };
    eventually("what was lost", seen).unwrap();
    let counted = |line: &str| {
        let number = line.strip_prefix("postern_agent_events_lost_total{source=\"connector\"} ");
        number.is_some_and(|number| number != "0")
    };
    let metrics = super::ending::curl(health, "/metrics");
    assert!(metrics.lines().any(counted), "{metrics}");
}

#[test]
#[ignore = "needs root, to make containers"]
fn root_a_mount_is_seen_at_once() {
    let stage = Stage::with("revoke", "reattest: {every: 1h}\n");
    let mut pod = stage.pod("pod", "root");
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    pod.tell("wait mount -t tmpfs new /mnt");
    assert_eq!(pod.tell("next"), super::drift::DENIED);
    assert!(found(&stage.world, "mount", "/ on /mnt"));
    pod.tell("wait umount /mnt");
    assert_eq!(pod.tell("fetch pod"), IDENTITY, "it is over");
}
