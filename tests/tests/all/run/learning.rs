//! `postern-run learn`: the least profile of a program, and the program under it.

use postern_tests::run;

use super::{complained, folder, postern_run, refused, walled, works};

fn learn(arguments: &[&str]) -> std::process::Output {
    run(
        postern_run().to_str().unwrap(),
        &[&["learn"], arguments].concat(),
    )
    .unwrap()
}

#[test]
fn a_program_runs_under_what_was_learnt_of_it_and_does_nothing_else() {
    let (_kept, path) = folder();
    let profile = format!("{path}/profile.json");
    let script = "import os, sys
if len(sys.argv) > 1:
    os.mkdir('/tmp/new')
if os.fork() == 0:
    os._exit(0)
os.wait()
print('done')";
    let program = ["/usr/bin/python3", "-c", script];
    let learnt = learn(&[&["-o", &profile, "--"], &program[..]].concat());
    assert_eq!(works(&learnt), "done");
    let text = std::fs::read_to_string(&profile).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["defaultAction"], "SCMP_ACT_ERRNO");
    let names = document["syscalls"][0]["names"].as_array().unwrap();
    let has = |name: &str| names.iter().any(|one| one == name);
    assert!(has("wait4") && has("execve") && has("exit_group") && has("rt_sigreturn"));
    assert!(!has("mkdir") && !has("mount") && !has("socket"), "{text}");
    let under = ["--seccomp", profile.as_str()];
    assert_eq!(works(&walled(&under, &program)), "done");
    let more = [&program[..], &["more"]].concat();
    refused(&walled(&under, &more), "PermissionError");
    assert_eq!(works(&walled(&[], &more)), "done", "the default allows it");
}

#[test]
fn threads_children_and_signals_are_watched_to_their_end() {
    let script = "import os, signal, subprocess, threading
signal.signal(signal.SIGUSR1, lambda *_: print('signal', flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
thread = threading.Thread(target=lambda: os.mkdir('/tmp/of-a-thread'))
thread.start()
thread.join()
subprocess.run(['rmdir', '/tmp/of-a-thread'], check=True)
raise SystemExit(5)";
    let output = learn(&["--", "/usr/bin/python3", "-c", script]);
    assert_eq!(output.status.code(), Some(5));
    assert!(
        complained(&output).contains("signal"),
        "the program's output goes to standard error"
    );
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names = document["syscalls"][0]["names"].as_array().unwrap();
    for call in ["mkdir", "rmdir", "kill", "rt_sigreturn"] {
        assert!(names.iter().any(|name| name == call), "{call} in {names:?}");
    }
}

#[test]
fn nothing_is_learnt_of_no_program() {
    let output = learn(&["--", "no-such-program"]);
    assert_eq!(output.status.code(), Some(125));
    refused(&output, "nothing was learnt");
}
