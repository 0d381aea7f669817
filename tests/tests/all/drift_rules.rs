//! Baselines and rules in Falco's language, between real processes: each deviation has a twin that is
//! none.

use std::{fs, net::TcpListener, path::PathBuf};

use postern_tests::{binaries, eventually, run, world::World, world::free_address};
use serde_json::Value;

use super::drift::{DENIED, IDENTITY, Pod, deviations, python, real};

/// Whoever runs Python, in a pod with this baseline. The tests themselves ask as the agent's program.
fn workloads(answer: &str, baseline: &str) -> String {
    let agent = fs::canonicalize(binaries().unwrap().join("postern-agent")).unwrap();
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: watched}}\n\
         spec: {{spiffeID: '{IDENTITY}', selectors: ['unix:path:{}'], onDrift: {answer}{baseline}}}\n\
         ---\n\
         apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: tests}}\n\
         spec: {{spiffeID: 'spiffe://example.org/tests', selectors: ['unix:path:{}']}}\n",
        python(),
        agent.display(),
    )
}

/// An agent whose Workload has these rules.
fn with_rules(answer: &str, rules: &str) -> World {
    let mut world = World::new().unwrap();
    world.write("workloads/rules/falco.yaml", rules).unwrap();
    let documents = workloads(answer, ", baseline: {rules: [rules/falco.yaml]}");
    world.agent(&documents).unwrap();
    world
}

#[track_caller]
fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).unwrap().as_str().unwrap()
}

const LONG_SLEEP: &str = "
- list: sleepers
  items: [sleep]
- rule: Long sleep
  desc: somebody sleeps for too long
  condition: spawned_process and proc.name in (sleepers) and proc.args contains 77
  output: A long sleep (command=%proc.cmdline parent=%proc.pname container=%container.id)
  priority: CRITICAL
";

#[test]
fn a_rule_takes_the_identity_from_the_pod_that_it_hits_and_from_no_other() {
    let world = with_rules("revoke", LONG_SLEEP);
    let (mut pod, mut twin) = (Pod::session(&world), Pod::session(&world));
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    assert_eq!(twin.tell("fetch twin"), IDENTITY);
    twin.tell(&format!("run {} 66", real("sleep")));
    let pid = pod.tell(&format!("run {} 77", real("sleep")));
    assert_eq!(pod.tell("next"), DENIED);
    assert!(world.is_revoked("pod").unwrap());
    assert_eq!(twin.tell("again"), IDENTITY);
    assert_eq!(twin.tell("silent"), "silent");
    pod.tell("kill");
    assert_eq!(pod.tell("again"), DENIED, "what was seen is not undone");
    let all = deviations(&world);
    assert_eq!(all.len(), 1, "{all:?}");
    let one = &all[0];
    assert_eq!(
        (text(one, "kind"), text(one, "rule")),
        ("rule", "Long sleep")
    );
    assert_eq!(text(one, "answer"), "revoked");
    let said = text(one, "what");
    let parent = fs::read_to_string(format!("/proc/{}/comm", pod.pid())).unwrap();
    let line = format!(
        "Critical A long sleep (command=sleep 77 parent={} container=host)",
        parent.trim()
    );
    assert_eq!(said, line);
    assert_eq!(
        (one["pid"].to_string(), &one["count"]),
        (pid, &Value::from(1))
    );
}

#[test]
fn hits_that_say_the_same_are_counted_and_told_once() {
    let world = with_rules("alert", LONG_SLEEP);
    let mut pod = Pod::session(&world);
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    for _ in 0..3 {
        pod.tell(&format!("run {} 77", real("sleep")));
    }
    let counted = || {
        let all = deviations(&world);
        (all.first()?.get("count")?.as_u64()? == 3).then_some(all)
    };
    let all = eventually("three hits", counted).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(pod.tell("again"), IDENTITY);
    assert_eq!(pod.tell("silent"), "silent");
}

#[test]
fn rules_of_sockets_hit_whom_they_name() {
    let (wrong, right) = (free_address().unwrap(), free_address().unwrap());
    let rules = format!(
        "- rule: Wrong server\n  desc: d\n  condition: evt.type = connect and fd.sport = {}\n  \
         output: to %fd.sip:%fd.sport by %proc.pid\n  priority: NOTICE\n",
        wrong.port()
    );
    let world = with_rules("revoke", &rules);
    let _servers = [wrong, right].map(|address| TcpListener::bind(address).unwrap());
    let mut pod = Pod::session(&world);
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    pod.tell(&format!("connect {}", right.port()));
    assert_eq!(pod.tell("again"), IDENTITY);
    pod.tell(&format!("connect {}", wrong.port()));
    assert_eq!(pod.tell("again"), DENIED);
    let line = format!("Notice to 127.0.0.1:{} by {}", wrong.port(), pod.pid());
    assert_eq!(text(&deviations(&world)[0], "what"), line);
}

/// Does this order break the baseline? Closing what it opened mends it.
#[track_caller]
fn breaks(world: &World, pod: &mut Pod, order: &str) -> Option<(String, String)> {
    let before = deviations(world).len();
    pod.tell(order);
    let said = pod.tell("again");
    pod.tell("kill");
    pod.tell("close");
    let all = deviations(world);
    if said == IDENTITY {
        assert_eq!(all.len(), before, "{all:?}");
        return None;
    }
    assert_eq!(said, DENIED);
    assert_eq!(pod.tell("fetch pod"), IDENTITY, "it is over: {all:?}");
    let last = all.last().unwrap();
    Some((text(last, "kind").to_owned(), text(last, "what").to_owned()))
}

#[test]
fn each_part_of_a_baseline_has_a_deviation_and_a_twin_that_is_none() {
    let mut world = World::new().unwrap();
    let ports: Vec<u16> = (0..4).map(|_| free_address().unwrap().port()).collect();
    let [allowed, other, good, bad] = ports.try_into().unwrap();
    let _servers = [good, bad].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
    let folder = world.path().display().to_string();
    let baseline = format!(
        ", baseline: {{executables: ['{}', '{}'], listen: [{allowed}/tcp], \
         destinations: ['127.0.0.0/8:{good}'], writable: ['{folder}'], protected: ['{folder}/etc']}}",
        python(),
        real("sleep"),
    );
    world.write("etc/here", "").unwrap();
    world.agent(&workloads("revoke", &baseline)).unwrap();
    // Where the test's own complaints go is nothing that the pod may write to.
    let quiet = "exec setsid \"$@\" 2>/dev/null";
    let mut pod = Pod::start(&world, &["sh", "-c", quiet, "sh"]);
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    let sleep = real("sleep");
    let elsewhere = tempfile_elsewhere();
    for (good, bad, kind, what) in [
        (
            format!("run {sleep} 60"),
            format!("run {} -f /dev/null", real("tail")),
            "exec",
            real("tail"),
        ),
        (
            format!("run {sleep} 60"),
            format!("memory {sleep} 60"),
            "memfd",
            "/memfd:copy (deleted)".into(),
        ),
        (
            format!("listen {allowed}"),
            format!("listen {other}"),
            "listen",
            format!("{other}/tcp"),
        ),
        (
            format!("connect {good}"),
            format!("connect {bad}"),
            "connect",
            format!("127.0.0.1:{bad}"),
        ),
        (
            format!("write {folder}/a"),
            format!("write {folder}/etc/a"),
            "write",
            format!("{folder}/etc/a"),
        ),
        (
            format!("write {folder}/b"),
            format!("write {elsewhere}"),
            "write",
            elsewhere.clone(),
        ),
    ] {
        assert_eq!(breaks(&world, &mut pod, &good), None, "{good}");
        let expected = Some((kind.to_owned(), what));
        assert_eq!(breaks(&world, &mut pod, &bad), expected, "{bad}");
    }
    let _ = fs::remove_file(elsewhere);
}

fn tempfile_elsewhere() -> String {
    let name = format!("postern-falco-{}", std::process::id());
    std::env::temp_dir().join(name).display().to_string()
}

/// Has it ended, whether somebody has taken notice or not?
fn has_ended(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.map_or(true, |status| status.contains("State:\tZ"))
}

#[test]
fn a_process_that_deviates_is_ended_where_the_answer_is_block() {
    let mut world = World::new().unwrap();
    let baseline = format!(", baseline: {{executables: ['{}']}}", python());
    world.agent(&workloads("block", &baseline)).unwrap();
    let (mut pod, mut twin) = (Pod::session(&world), Pod::session(&world));
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    assert_eq!(twin.tell("fetch twin"), IDENTITY);
    twin.tell(&format!("run {} -c pass", python()));
    let pid = pod.tell(&format!("run {} 60", real("sleep")));
    eventually("its end", || has_ended(&pid).then_some(())).unwrap();
    let blocked = || {
        let all = deviations(&world);
        all.iter()
            .any(|one| text(one, "answer") == "blocked")
            .then_some(all)
    };
    let all = eventually("the answer", blocked).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    eventually("what it had to be taken back", || {
        world.is_revoked("pod").unwrap().then_some(())
    })
    .unwrap();
    eventually("its end to be seen", || {
        (pod.tell("again") == IDENTITY).then_some(())
    })
    .unwrap();
    assert!(!world.is_revoked("twin").unwrap());
    assert_eq!(twin.tell("silent"), "silent");
}

#[test]
#[ignore = "needs root, to be another user"]
fn root_a_process_of_another_user_is_ended_too() {
    let mut world = World::new().unwrap();
    let setpriv = real("setpriv");
    let baseline = format!(", baseline: {{executables: ['{}', '{setpriv}']}}", python());
    world.agent(&workloads("block", &baseline)).unwrap();
    let mut pod = Pod::session(&world);
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    let other = "--reuid=12003 --regid=12003 --clear-groups";
    pod.tell(&format!("run {setpriv} {other} {} -c pass", python()));
    let pid = pod.tell(&format!("run {setpriv} {other} {} 60", real("sleep")));
    eventually("its end", || has_ended(&pid).then_some(())).unwrap();
    let blocked = || {
        let all = deviations(&world);
        all.iter()
            .any(|one| {
                text(one, "answer") == "blocked"
                    && one["pid"].as_i64().map(|one| one.to_string()).as_deref() == Some(&pid)
            })
            .then_some(())
    };
    eventually("the answer", blocked).unwrap();
}

#[test]
fn what_is_learnt_is_a_baseline_that_the_pod_does_not_break() {
    let mut world = World::new().unwrap();
    world.agent(&workloads("revoke", "")).unwrap();
    let server = TcpListener::bind(free_address().unwrap()).unwrap();
    let reached = server.local_addr().unwrap();
    let waits = free_address().unwrap().port();
    let mut pod = Pod::session(&world);
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    pod.tell(&format!("run {} 60", real("sleep")));
    pod.tell(&format!("listen {waits}"));
    pod.tell(&format!("connect {}", reached.port()));
    let learnt = world
        .admin(&["drift", "learn", "--for", "500ms", "default/watched"])
        .unwrap();
    let yaml = String::from_utf8(learnt.stdout).unwrap();
    for item in [
        python(),
        real("sleep"),
        format!("{waits}/tcp"),
        reached.to_string(),
    ] {
        assert!(
            yaml.contains(&format!("- \"{item}\"\n")),
            "{item} in {yaml}"
        );
    }
    let nobody = world
        .admin(&["drift", "learn", "--for", "1ms", "default/nobody"])
        .unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    let block: String = yaml.lines().map(|line| format!("  {line}\n")).collect();
    let documents = workloads("revoke", "").replacen(
        &format!("spec: {{spiffeID: '{IDENTITY}', selectors: ['unix:path:{}'], onDrift: revoke}}\n", python()),
        &format!("spec:\n  spiffeID: '{IDENTITY}'\n  selectors: ['unix:path:{}']\n  onDrift: revoke\n{block}", python()),
        1,
    );
    assert!(documents.contains("  baseline:\n"), "{documents}");
    world.write("workloads/workloads.yaml", &documents).unwrap();
    world.said("agent", "workloads in force").unwrap();
    let shown = || {
        world
            .admin(&["workload", "show", "default/watched", "--json"])
            .unwrap()
            .stdout
    };
    let is_there = || {
        String::from_utf8(shown())
            .unwrap()
            .contains("baseline")
            .then_some(())
    };
    eventually("the baseline", is_there).unwrap();
    assert_eq!(pod.tell("again"), IDENTITY);
    assert_eq!(deviations(&world), [] as [Value; 0]);
    pod.tell(&format!("listen {}", free_address().unwrap().port()));
    assert_eq!(pod.tell("again"), DENIED, "its twin");
}

/// The exit code of a check, what it printed, and what it complained of.
fn check(files: &[&PathBuf], json: bool) -> (i32, String, String) {
    let agent = binaries().unwrap().join("postern-agent");
    let mut arguments = vec!["drift", "rules", "check"];
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    arguments.extend(json.then_some("--json"));
    let output = run(agent.to_str().unwrap(), &arguments).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn a_check_says_of_each_rule_how_far_it_runs() {
    let world = World::new().unwrap();
    let good = world.write("good.yaml", LONG_SLEEP).unwrap();
    let (code, said, _) = check(&[&good], false);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("1 rules: 1 whole, 0 partly, 0 not, 0 skipped"),
        "{said}"
    );
    let rules = "- rule: Never\n  desc: d\n  condition: >\n    spawned_process and\n      \
                 evt.arg.flags contains X\n  output: o\n  priority: INFO\n";
    let bad = world.write("bad.yaml", rules).unwrap();
    let (code, said, _) = check(&[&good, &bad], true);
    assert_eq!(code, 1);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        report["totals"],
        serde_json::json!({"whole": 1, "partly": 0, "not": 1, "skipped": 0})
    );
    let never = &report["rules"][1];
    assert_eq!(
        (text(never, "status"), &never["line"]),
        ("not", &Value::from(1))
    );
    assert_eq!(never["fields"], serde_json::json!(["evt.arg.flags"]));
    assert_eq!(
        (&never["reasons"][0]["line"], &never["reasons"][0]["column"]),
        (&Value::from(5), &Value::from(7))
    );
    let broken = world
        .write("broken.yaml", "- rule: R\n  conditoin: x\n")
        .unwrap();
    let (code, _, complaint) = check(&[&broken], false);
    assert_eq!(code, 64);
    assert!(
        complaint.contains("broken.yaml:2:3: error: unknown field `conditoin`"),
        "{complaint}"
    );
    let huge = world.write("huge.yaml", "").unwrap();
    let file = fs::OpenOptions::new().write(true).open(&huge).unwrap();
    file.set_len(100 << 20).unwrap();
    let (code, _, complaint) = check(&[&huge], false);
    assert_eq!(code, 64);
    let limit = "huge.yaml:1:1: error: the file has more than 4194304 bytes";
    assert!(complaint.contains(limit), "{complaint}");
    let (code, _, complaint) = check(&[&PathBuf::from("/nowhere.yaml")], false);
    assert_eq!(code, 64);
    assert!(complaint.contains("`/nowhere.yaml`"), "{complaint}");
}

#[test]
fn rules_that_do_not_load_keep_the_agent_from_starting() {
    let mut world = World::new().unwrap();
    world
        .write("workloads/rules/falco.yaml", "- rule: R\n  condition: x\n")
        .unwrap();
    let documents = workloads("alert", ", baseline: {rules: [rules/falco.yaml]}");
    let said = world.refused_agent(&documents, "").unwrap();
    assert!(
        said.contains("falco.yaml:1:3: error: rule `R` needs `output`"),
        "{said}"
    );
}

#[test]
fn rules_are_read_again_when_their_file_changes() {
    let world = with_rules("revoke", &LONG_SLEEP.replace("77", "78"));
    let mut pod = Pod::session(&world);
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    pod.tell(&format!("run {} 77", real("sleep")));
    assert_eq!(pod.tell("again"), IDENTITY);
    world
        .write("workloads/rules/falco.yaml", "- rule: R\n")
        .unwrap();
    world
        .said(
            "agent",
            "the documents were refused, the last good ones stay",
        )
        .unwrap();
    assert_eq!(pod.tell("again"), IDENTITY);
    world
        .write("workloads/rules/falco.yaml", LONG_SLEEP)
        .unwrap();
    assert_eq!(pod.tell("next"), DENIED, "of what runs already, too");
}

const SEED: &str = "
- rule: Container Drift Detection
  desc: Detect unexpected processes in containers
  condition: spawned_process and container and proc.name != proc.args and proc.pname exists
  output: Unexpected process (command=%proc.cmdline container=%container.id)
  priority: WARNING
";

#[test]
#[ignore = "needs root, to make control groups"]
fn root_the_rule_against_drift_in_containers_hits_in_a_container_and_nowhere_else() {
    let world = with_rules("alert", SEED);
    let mut twin = Pod::session(&world);
    assert_eq!(twin.tell("fetch twin"), IDENTITY);
    twin.tell(&format!("run {} 60", real("sleep")));
    let id = format!("{:064x}", std::process::id());
    let group = PathBuf::from(group_of_pids()).join(&id);
    fs::create_dir(&group).unwrap();
    let enter = format!(
        "echo $$ > {}/cgroup.procs; exec setsid \"$@\"",
        group.display()
    );
    let mut pod = Pod::start(&world, &["sh", "-c", &enter, "sh"]);
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    pod.tell(&format!("run {} 60", real("sleep")));
    let hit = || {
        let all = deviations(&world);
        all.iter()
            .any(|one| text(one, "what").contains("command=sleep 60"))
            .then_some(all)
    };
    let all = eventually("the hit", hit).unwrap();
    let of = |one: &Value| text(one, "container").to_owned();
    assert!(all.iter().all(|one| of(one) == id), "{all:?}");
    let short = id.get(..12).unwrap();
    let said = format!("Warning Unexpected process (command=sleep 60 container={short})");
    assert!(all.iter().any(|one| text(one, "what") == said), "{all:?}");
    assert_eq!(twin.tell("silent"), "silent");
    drop(pod);
    eventually("the group to be empty", || fs::remove_dir(&group).ok()).unwrap();
}

/// A hierarchy of control groups in which root may make some.
fn group_of_pids() -> &'static str {
    let all = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
    all.into_iter()
        .find(|path| fs::metadata(path).is_ok())
        .unwrap()
}

#[test]
#[ignore = "needs root, to hear what the kernel tells"]
fn root_a_program_that_ends_at_once_is_seen_where_the_kernel_tells() {
    let mut world = World::new().unwrap();
    let baseline = format!(", baseline: {{executables: ['{}']}}", python());
    let rarely = "reattest: {every: 1h}\n";
    world
        .agent_with(&workloads("revoke", &baseline), rarely)
        .unwrap();
    let mut pod = Pod::session(&world);
    assert_eq!(pod.tell("fetch pod"), IDENTITY);
    pod.tell(&format!("run {} -c pass", python()));
    pod.tell(&format!("run {} 0.05", real("sleep")));
    let seen = || {
        let all = deviations(&world);
        (!all.is_empty()).then_some(all)
    };
    let all = eventually("the deviation", seen).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(text(&all[0], "what"), real("sleep"));
    let is_revoked = || world.is_revoked("pod").unwrap().then_some(());
    eventually("the revocation", is_revoked).unwrap();
}
