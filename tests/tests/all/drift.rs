//! Drift between real processes: what a pod runs is compared with its baseline, and answered.
//!
//! A pod is a session here, and a network namespace in the tests whose names begin with `root_`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use postern_tests::{binaries, eventually, root, run, world::World};
use serde_json::Value;

pub(super) const IDENTITY: &str = "spiffe://example.org/watched";
pub(super) const DENIED: &str = "status 7";

pub(super) fn python() -> String {
    let path = fs::canonicalize(root().join("target/python/bin/python")).unwrap();
    path.display().to_string()
}

pub(super) fn real(program: &str) -> String {
    let line = format!("readlink -f $(command -v {program})");
    let said = run("sh", &["-c", &line]).unwrap().stdout;
    String::from_utf8(said).unwrap().trim().to_owned()
}

/// Whoever runs Python, in a pod that may run this and nothing else. The tests themselves ask as the
/// agent's program.
pub(super) fn workloads(answer: &str, allowed: &[&str]) -> String {
    let allowed = allowed.join("', '");
    let agent = fs::canonicalize(binaries().unwrap().join("postern-agent")).unwrap();
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: watched}}\n\
         spec: {{spiffeID: '{IDENTITY}', selectors: ['unix:path:{}'], \
         onDrift: {answer}, baseline: {{executables: ['{allowed}']}}}}\n---\n\
         apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: tests}}\n\
         spec: {{spiffeID: 'spiffe://example.org/tests', selectors: ['unix:path:{}']}}\n",
        python(),
        agent.display(),
    )
}

/// The first process of a pod, which does what it is told.
pub(super) struct Pod {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Pod {
    pub(super) fn start(world: &World, wrapper: &[&str]) -> Self {
        let (first, rest) = wrapper.split_first().unwrap();
        let mut child = Command::new(first)
            .args(rest)
            .arg(root().join("target/python/bin/python"))
            .arg(root().join("tests/python/pod.py"))
            .arg(world.path().join("public/agent.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Whoever runs the tests may write to a file, and who writes to files is looked at here.
            .stderr(Stdio::piped())
            .current_dir(world.path())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            orders,
            answers,
        }
    }

    /// A session.
    pub(super) fn session(world: &World) -> Self {
        Self::start(world, &["setsid"])
    }

    /// A network namespace.
    fn network(world: &World) -> Self {
        Self::start(world, &["unshare", "--net"])
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    #[track_caller]
    pub(super) fn tell(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        if answer.is_empty() {
            let mut said = String::new();
            let _ = self.child.stderr.take().unwrap().read_to_string(&mut said);
            unreachable!("`{order}` was not done: {said}");
        }
        answer.trim().to_owned()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = writeln!(self.orders, "kill");
        let mut answer = String::new();
        let _ = self.answers.read_line(&mut answer);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn deviations(world: &World) -> Vec<Value> {
    let listed = world.admin(&["drift", "list", "--json"]).unwrap();
    serde_json::from_slice(&listed.stdout).unwrap()
}

fn whats(world: &World) -> Vec<String> {
    let all = deviations(world).into_iter();
    all.map(|one| one.get("what").unwrap().as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_new_program_takes_the_identity_from_its_pod_and_from_no_other() {
    let mut world = World::new().unwrap();
    world.agent(&workloads("revoke", &[&python()])).unwrap();
    let (mut pod, mut twin) = (Pod::session(&world), Pod::session(&world));
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    assert_eq!(twin.tell("fetch twin"), IDENTITY);
    assert!(!world.is_revoked("pod").unwrap());
    let pid = pod.tell(&format!("run {} 60", real("sleep")));
    assert_eq!(pod.tell("next"), DENIED);
    assert!(
        world.is_revoked("pod").unwrap(),
        "the serial is on the list"
    );
    assert_eq!(pod.tell("again"), DENIED, "as long as it lasts");
    assert_eq!(twin.tell("silent"), "silent");
    assert!(!world.is_revoked("twin").unwrap());
    assert_eq!(twin.tell("again"), IDENTITY);
    let all = deviations(&world);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["what"], real("sleep"));
    assert_eq!(all[0]["pid"].to_string(), pid);
    assert_eq!(all[0]["spiffeID"], IDENTITY);
    pod.tell("kill");
    assert_eq!(pod.tell("fetch pod"), IDENTITY, "it is over");
    assert!(!world.is_revoked("pod").unwrap(), "the new one");
}

#[test]
fn a_new_program_is_told_of_and_nothing_else_where_the_answer_is_alert() {
    let mut world = World::new().unwrap();
    world.agent(&workloads("alert", &[&python()])).unwrap();
    let (mut pod, mut twin) = (Pod::session(&world), Pod::session(&world));
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    assert_eq!(twin.tell("fetch twin"), IDENTITY);
    pod.tell(&format!("run {} 60", real("sleep")));
    let seen = eventually("the deviation", || {
        Some(whats(&world)).filter(|all| !all.is_empty())
    });
    assert_eq!(seen.unwrap(), [real("sleep")]);
    assert_eq!(pod.tell("again"), IDENTITY);
    for (pod, folder) in [(&mut pod, "pod"), (&mut twin, "twin")] {
        assert_eq!(pod.tell("silent"), "silent");
        assert!(!world.is_revoked(folder).unwrap());
    }
}

#[test]
fn what_a_pod_may_do_is_no_deviation() {
    let digest = run("sha256sum", &[&real("sleep")]).unwrap().stdout;
    let digest = String::from_utf8(digest).unwrap();
    let digest = format!("sha256:{}", digest.split_whitespace().next().unwrap());
    let mut world = World::new().unwrap();
    let allowed = [python(), digest];
    let allowed = allowed.each_ref().map(String::as_str);
    world.agent(&workloads("revoke", &allowed)).unwrap();
    let mut pod = Pod::session(&world);
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    // Each call is a look at the pod, and others come with the timer.
    for _ in 0..20 {
        pod.tell(&format!("run {} -c pass", python()));
        pod.tell(&format!("run {} 0", real("sleep")));
        pod.tell(&format!("run {} 60", real("sleep")));
        assert_eq!(pod.tell("again"), IDENTITY);
        pod.tell("threads");
        assert_eq!(pod.tell("again"), IDENTITY);
        pod.tell("kill");
    }
    assert_eq!(pod.tell("silent"), "silent");
    assert_eq!(whats(&world), <[String; 0]>::default());
    assert!(!world.is_revoked("pod").unwrap());
}

/// A copy of Python that is in no baseline, and a program for it.
fn other_python(world: &World, program: &str) -> (PathBuf, PathBuf) {
    let copy = world.path().join("other-python");
    postern_tests::copy_program(python(), &copy).unwrap();
    let script = world.write("program.py", program).unwrap();
    (copy, script)
}

#[test]
fn a_program_whose_first_thread_has_ended_is_seen() {
    let mut world = World::new().unwrap();
    world.agent(&workloads("revoke", &[&python()])).unwrap();
    let (other, program) = other_python(
        &world,
        "import ctypes, os, platform, threading, time\n\
         threading.Thread(target=time.sleep, args=(60,)).start()\n\
         exit_thread = {'x86_64': 60}.get(platform.machine(), 93)\n\
         ctypes.CDLL(None).syscall(exit_thread, 0)\n",
    );
    let mut pod = Pod::session(&world);
    let order = format!("run {} {}", other.display(), program.display());
    let pid = pod.tell(&order);
    let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    eventually("its first thread to end", || {
        status().contains("State:\tZ").then_some(())
    })
    .unwrap();
    // Nobody has looked at the pod before: it has no identity yet.
    assert_eq!(pod.tell("fetch pod"), DENIED);
    assert_eq!(whats(&world), [other.display().to_string()]);
    pod.tell("kill");
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
}

/// Does this order, in a pod whose baseline has all these programs, make a deviation?
#[track_caller]
fn is_deviation(pod: &mut Pod, order: &str) -> bool {
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    let pid = pod.tell(order);
    eventually("the program", || {
        let name = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        name.ends_with("sleep").then_some(())
    })
    .unwrap();
    let said = pod.tell("again");
    pod.tell("kill");
    match said.as_str() {
        DENIED => true,
        said => {
            assert_eq!((said, pod.tell("silent").as_str()), (IDENTITY, "silent"));
            false
        }
    }
}

#[test]
#[ignore = "needs root, to make network namespaces"]
fn root_nobody_leaves_a_pod_by_a_user_namespace() {
    let programs = [
        python(),
        real("sleep"),
        real("unshare"),
        real("dash"),
        real("setsid"),
    ];
    let allowed = programs.each_ref().map(String::as_str);
    let mut world = World::new().unwrap();
    world.agent(&workloads("revoke", &allowed)).unwrap();
    let mut pod = Pod::network(&world);
    let sleep = format!("{} 60", real("sleep"));
    let unshare = real("unshare");
    assert!(!is_deviation(&mut pod, &format!("run {sleep}")), "its twin");
    assert!(!is_deviation(&mut pod, &format!("orphan {sleep}")));
    let apart = |more: &str| format!("run {unshare} --user {more} {sleep}");
    assert!(is_deviation(&mut pod, &apart("")));
    assert!(is_deviation(&mut pod, &apart("--net")), "another network");
    let orphan = format!("orphan {unshare} --user {sleep}");
    assert!(is_deviation(&mut pod, &orphan));
    let without = format!("run {unshare} --net {sleep}");
    assert!(is_deviation(&mut pod, &without), "as root, without one");
    let mut strangers = Pod::network(&world);
    assert_eq!(strangers.tell("fetch strangers"), IDENTITY);
    strangers.tell(&apart("--net"));
    assert_eq!(pod.tell("fetch pod"), IDENTITY, "the other pod's child");
}

/// The number of the network namespace of a pod.
fn network_of(pod: &Pod) -> u64 {
    let path = format!("/proc/{}/ns/net", pod.child.id());
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap())
}

/// A pod that has the number of one that has just ended; `first` is told which one that will be. Other tests
/// take numbers, too.
fn pod_of_its_number(world: &World, mut first: impl FnMut(Pod)) -> Pod {
    eventually("a number to be given out again", || {
        let mut pod = Pod::network(world);
        // It has made its namespace before it answers.
        pod.tell("threads");
        let number = network_of(&pod);
        first(pod);
        // The kernel takes its time; those that came meanwhile keep what they have.
        let mut others = Vec::new();
        while others.len() < 20 {
            let mut next = Pod::network(world);
            next.tell("threads");
            if network_of(&next) == number {
                return Some(next);
            }
            others.push(next);
        }
        None
    })
    .unwrap()
}

#[test]
#[ignore = "needs root, to make network namespaces"]
fn root_a_pod_has_nothing_of_another_one_that_had_its_number() {
    let mut world = World::new().unwrap();
    world.agent(&workloads("alert", &[&python()])).unwrap();
    let drifts = |pod: &mut Pod, number: usize| {
        pod.tell(&format!("run {} 60", real("sleep")));
        let seen = || (deviations(&world).len() == number).then_some(());
        eventually("the deviation", seen).unwrap();
    };
    let mut pods = 0;
    let mut second = pod_of_its_number(&world, |mut first| {
        pods += 1;
        assert_eq!(first.tell("fetch first"), IDENTITY);
        drifts(&mut first, pods);
        drop(first);
        let ended = || {
            let log = fs::read_to_string(world.log("agent")).unwrap();
            (log.matches("a pod has ended").count() == pods).then_some(())
        };
        eventually("the pod to be forgotten", ended).unwrap();
    });
    assert_eq!(second.tell("fetch second"), IDENTITY);
    // A deviation of its own, and an SVID of its own.
    drifts(&mut second, pods + 1);
    let svid = |folder: &str| fs::read(world.path().join(folder).join("svid.0.pem")).unwrap();
    assert_ne!(svid("first"), svid("second"));
}

#[test]
#[ignore = "needs root, to make network namespaces"]
fn root_the_number_of_a_pod_is_kept_until_it_is_forgotten() {
    let mut world = World::new().unwrap();
    let rarely = "reattest: {every: 1h}\n";
    let documents = workloads("alert", &[&python()]);
    world.agent_with(&documents, rarely).unwrap();
    let mut first = Pod::network(&world);
    assert_eq!(first.tell("fetch first"), IDENTITY);
    let (number, stranger) = (network_of(&first), Pod::network(&world));
    drop(first);
    let mut others: Vec<Pod> = (0..10).map(|_| Pod::network(&world)).collect();
    for other in &mut others {
        other.tell("threads");
        assert_ne!(network_of(other), number);
    }
    drop((stranger, others));
    // Its twin, which the agent was never asked for.
    drop(pod_of_its_number(&world, drop));
}
