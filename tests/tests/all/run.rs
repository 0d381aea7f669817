//! `postern-run`: each wall by an act that works without it and is refused with it.

mod attacks;
mod learning;
mod limits;
mod posture;
mod view;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use postern_tests::{binaries, run};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Where the program is.
fn postern_run() -> PathBuf {
    binaries().unwrap().join("postern-run")
}

/// Runs a program inside walls.
fn walled(flags: &[&str], program: &[&str]) -> Output {
    let all = [flags, &["--"], program].concat();
    run(postern_run().to_str().unwrap(), &all).unwrap()
}

/// The same by the shell.
fn shell(flags: &[&str], script: &str) -> Output {
    walled(flags, &["sh", "-c", script])
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn works(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{:?}: {}",
        output.status,
        complained(output)
    );
    said(output)
}

#[track_caller]
fn refused(output: &Output, reason: &str) {
    assert!(!output.status.success(), "it worked: {}", said(output));
    let error = complained(output) + &said(output);
    assert!(error.contains(reason), "`{reason}` in {error}");
}

fn folder() -> (TempDir, String) {
    // Below the root of this test, not in /tmp, which is another one inside.
    let folder = TempDir::new_in(binaries().unwrap()).unwrap();
    let path = folder.path().display().to_string();
    (folder, path)
}

#[test]
fn the_code_of_the_program_is_the_code_of_the_run() {
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143)] {
        assert_eq!(shell(&[], script).status.code(), Some(code), "{script}");
    }
    let (_kept, path) = folder();
    let missing = walled(&[], &["no-such-program"]);
    assert_eq!(missing.status.code(), Some(127));
    refused(&missing, "there is no program `no-such-program`");
    let file = format!("{path}/file");
    std::fs::write(&file, "text").unwrap();
    let no_program = walled(&["--readable", &path], &[&file]);
    assert_eq!(no_program.status.code(), Some(126));
    refused(&no_program, "Permission denied");
}

#[test]
fn what_cannot_be_done_is_said_with_the_code_of_the_run_itself() {
    let (_kept, path) = folder();
    let profile = format!("{path}/p.yaml");
    std::fs::write(&profile, "memry: 64m\n").unwrap();
    let filter = format!("{path}/f.json");
    std::fs::write(&filter, r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#).unwrap();
    for (flags, reason) in [
        (&["--no-such-flag"][..], "unexpected argument"),
        (&["--memory", "much"], "is no size"),
        (&["--keep-cap", "FLY"], "is no capability"),
        (&["--writable", "/no/such"], "--writable `/no/such`"),
        (&["--profile", &profile], "did you mean `memory`?"),
        (&["--seccomp", &filter], "unknown variant `SCMP_ACT_MAYBE`"),
        (
            &["--seccomp", "/no/such"],
            "cannot read the seccomp profile `/no/such`",
        ),
        (&["--workdir", "/no/such"], "out of sight"),
    ] {
        let output = walled(flags, &["true"]);
        assert_eq!(output.status.code(), Some(125), "{flags:?}");
        refused(&output, reason);
    }
}

#[test]
fn only_what_is_writable_is_written() {
    let (_kept, path) = folder();
    let write = format!("echo new > {path}/file");
    refused(
        &shell(&["--readable", &path], &write),
        "Read-only file system",
    );
    works(&shell(&["--writable", &path], &write));
    assert_eq!(
        std::fs::read_to_string(format!("{path}/file")).unwrap(),
        "new\n"
    );
    for target in [
        "/etc/postern-run",
        "/usr/postern-run",
        "/postern-run",
        "/dev/postern-run",
    ] {
        refused(
            &shell(&[], &format!("echo new > {target}")),
            "Read-only file system",
        );
        assert!(!Path::new(target).exists());
    }
    works(&shell(
        &[],
        "echo new > /tmp/postern-run && cat /tmp/postern-run > /dev/null",
    ));
    assert!(
        !Path::new("/tmp/postern-run").exists(),
        "it is another /tmp"
    );
    refused(
        &shell(&[], "cp /bin/true /tmp/t && /tmp/t"),
        "Permission denied",
    );
}

#[test]
fn only_the_system_and_what_is_readable_is_seen() {
    let (_kept, path) = folder();
    std::fs::write(format!("{path}/file"), "text").unwrap();
    let read = format!("cat {path}/file");
    refused(&shell(&[], &read), "No such file");
    assert_eq!(works(&shell(&["--readable", &path], &read)), "text");
    assert_eq!(works(&shell(&["--readable", "/"], &read)), "text");
    assert_eq!(works(&shell(&[], "ls -A /run /root /home | grep -v :")), "");
    // The program itself is always seen.
    let program = format!("{path}/program");
    postern_tests::copy_program("/bin/echo", &program).unwrap();
    assert_eq!(works(&walled(&[], &[&program, "seen"])), "seen");
}

#[test]
fn the_fence_holds_where_a_mount_would_not() {
    // A signal to a process outside of the fence is refused by the fence alone: process 1 has the same user.
    let signal = "kill -WINCH 1 && echo sent";
    assert_eq!(works(&shell(&["--landlock", "off"], signal)), "sent");
    refused(
        &shell(&["--landlock", "required"], signal),
        "Operation not permitted",
    );
}

#[test]
fn calls_that_open_the_kernel_are_refused() {
    let calls = |flags: &[&str]| {
        let output = walled(flags, &["/usr/bin/python3", "-c", CALLS]);
        let told = works(&output);
        let errors = told.lines().map(|line| line.split_once(' ').unwrap());
        let pairs = errors.map(|(name, error)| (name.to_owned(), error.parse().unwrap()));
        pairs.collect::<Vec<(String, i32)>>()
    };
    for (name, error) in calls(&["--seccomp", "unconfined"]) {
        assert_eq!(error, 0, "without a filter {name} works");
    }
    for (name, error) in calls(&[]) {
        assert_eq!(error, 1, "{name} is refused with EPERM");
    }
    // With every right for it, and without the fence, which forbids it too.
    let able = [
        "--keep-cap",
        "SYS_ADMIN",
        "--net",
        "none",
        "--landlock",
        "off",
    ];
    let mount = ["mount", "-t", "tmpfs", "none", "/tmp"];
    let free = [&able[..], &["--seccomp", "unconfined"]].concat();
    works(&walled(&free, &mount));
    // Whom it calls superuser depends on who asks.
    refused(&walled(&able, &mount), "mount: /tmp");
}

/// What may be done without any right, where there is no filter.
const CALLS: &str = "
import ctypes, ctypes.util, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    pid = os.fork()
    if pid == 0:
        ctypes.set_errno(0)
        result = getattr(libc, name)(*args) if name != 'keyctl' else libc.syscall(250, *args)
        os._exit(ctypes.get_errno() if result == -1 else 0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
call('ptrace', 0, 0, 0, 0)
call('unshare', 0x10000000)
call('keyctl', 0, -3, 1)
call('process_vm_readv', os.getpid(), 0, 0, 0, 0, 0)
";

#[test]
fn nobody_types_into_the_callers_terminal() {
    let (_kept, path) = folder();
    let allows_all = format!("{path}/all.json");
    std::fs::write(&allows_all, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let python = ["/usr/bin/python3", "-c", TYPING];
    // ENOTTY without the filter: standard input is no terminal here.
    let free = works(&run(python[0], &python[1..]).unwrap());
    assert_eq!(free, "25 25 25 25 25");
    for flags in [
        &[][..],
        &["--seccomp", "unconfined"],
        &["--seccomp", &allows_all],
    ] {
        let told = works(&walled(flags, &python));
        assert_eq!(told, "1 1 1 1 25", "{flags:?}");
    }
    let profile = format!("{path}/learnt.json");
    let learn = [&["learn", "-o", &profile, "--"][..], &python].concat();
    let told = works(&run(postern_run().to_str().unwrap(), &learn).unwrap());
    assert_eq!(told, "1 1 1 1 25", "learn");
}

/// TIOCSTI and TIOCLINUX, as they are and with a bit that the kernel does not look at, and TIOCGWINSZ.
const TYPING: &str = "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
errors = []
for number in [0x5412, 0x541c, 0x100005412, 0x10000541c, 0x5413]:
    buffer = ctypes.create_string_buffer(64)
    assert libc.ioctl(0, ctypes.c_ulong(number), buffer) == -1
    errors.append(str(ctypes.get_errno()))
print(' '.join(errors))
";

#[test]
fn no_capability_is_left() {
    let sets = "grep ^Cap /proc/self/status | cut -f2 | sort -u";
    let told = works(&shell(&[], sets));
    // An ordinary user keeps what his user namespace lets him give up: all of it.
    assert_eq!(told, "0000000000000000");
    assert_eq!(
        works(&shell(&[], "grep -c '^NoNewPrivs:.1' /proc/self/status")),
        "1"
    );
    assert_eq!(
        works(&shell(&[], "grep -c '^Seccomp:.2' /proc/self/status")),
        "1"
    );
    let kept = works(&shell(
        &["--keep-cap", "NET_BIND_SERVICE", "--net", "none"],
        sets,
    ));
    assert_eq!(kept, "0000000000000400");
}

#[test]
fn processes_outside_are_neither_seen_nor_reached() {
    let me = std::process::id();
    let outside = Command::new("kill")
        .args(["-0", &me.to_string()])
        .status()
        .unwrap();
    assert!(outside.success(), "without walls it can be sent a signal");
    refused(&shell(&[], &format!("kill -0 {me}")), "No such process");
    refused(
        &shell(&[], &format!("cat /proc/{me}/status")),
        "No such file",
    );
    let seen = works(&shell(&[], "ls /proc | grep -c '^[0-9]'"));
    assert!(seen.parse::<u32>().unwrap() <= 6, "{seen}");
    for masked in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        assert_eq!(
            works(&shell(&[], &format!("head -c 9 {masked} | wc -c"))),
            "0"
        );
    }
    refused(
        &shell(&[], "echo x > /proc/sys/kernel/domainname"),
        "Read-only file system",
    );
}

#[test]
fn every_namespace_is_its_own() {
    let names = "for n in pid mnt ipc uts cgroup net; do readlink /proc/self/ns/$n; done";
    let outside = run("sh", &["-c", names]).unwrap();
    let outside = works(&outside);
    let inside = works(&shell(&[], names));
    let pairs = outside.lines().zip(inside.lines());
    let same: Vec<_> = pairs
        .filter(|(out, own)| out == own)
        .map(|(out, _)| out)
        .collect();
    assert_eq!(same.len(), 1, "{same:?}");
    assert!(same[0].starts_with("net:"), "the network is the caller's");
    let alone = works(&shell(&["--net", "none"], names));
    assert!(
        outside
            .lines()
            .zip(alone.lines())
            .all(|(out, own)| out != own)
    );
    assert_eq!(
        works(&shell(&["--net", "none"], "grep -c : /proc/net/dev")),
        "1"
    );
    let loopback = "import socket; s = socket.create_server(('127.0.0.1', 0)); \
                    socket.create_connection(s.getsockname()); print('up')";
    let python = ["/usr/bin/python3", "-c", loopback];
    assert_eq!(works(&walled(&["--net", "none"], &python)), "up");
    assert_eq!(works(&shell(&["--hostname", "cell"], "uname -n")), "cell");
}

#[test]
fn no_descriptor_leaks() {
    let run = postern_run();
    let open = |flags: &str| {
        let script = format!(
            "exec 9</etc/passwd; exec {} {flags} -- ls /proc/self/fd",
            run.display()
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        works(&output).lines().count()
    };
    // Standard ones, and the listing's own.
    assert_eq!(open(""), 4);
    assert_eq!(open("--keep-fd 9"), 5);
}

#[test]
fn the_environment_is_clean_where_that_is_asked_for() {
    let environment = |flags: &[&str]| {
        let mut command = Command::new(postern_run());
        command.env("SECRET", "x").env("GIVEN", "y").args(flags);
        let output = command.args(["--", "env"]).output().unwrap();
        works(&output)
    };
    assert!(environment(&[]).contains("SECRET=x"));
    let clean = environment(&["--clean-env", "--env", "GIVEN", "--env", "A=b=c"]);
    assert!(!clean.contains("SECRET"), "{clean}");
    assert!(
        clean.contains("GIVEN=y") && clean.contains("A=b=c"),
        "{clean}"
    );
}

#[test]
fn limits_of_the_shell_hold() {
    assert_eq!(works(&shell(&["--ulimit", "nofile=17"], "ulimit -n")), "17");
    assert_eq!(works(&shell(&[], "ulimit -c")), "0");
}

#[test]
fn signals_reach_the_program_and_orphans_are_reaped() {
    let script =
        "trap 'echo caught; exit 7' TERM; (sleep 0.01 &); echo ready; while :; do sleep 0.02; done";
    let mut command = Command::new(postern_run());
    command
        .args(["--", "sh", "-c", script])
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    // Nobody waits for the grandchild but process 1.
    let orphans =
        "sh -c 'true & exec true'; sleep 0.1; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l";
    assert_eq!(works(&shell(&[], orphans)), "0");
}

#[test]
fn whatever_is_inside_ends_with_the_one_who_started_it() {
    let mut command = Command::new(postern_run());
    command
        .args(["--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut inside = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    inside.write_all(b"there\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "there");
    child.kill().unwrap();
    child.wait().unwrap();
    // The last writer is gone; this side's pipe stays open all the while.
    assert!(lines.next().is_none());
    drop(inside);
}

#[test]
fn help_shows_examples_and_the_shells_complete() {
    let help = run(postern_run().to_str().unwrap(), &["--help"]).unwrap();
    for part in ["Examples:", "--profile restricted", "learn", "125"] {
        assert!(works(&help).contains(part), "{part}");
    }
    let wrong = run(postern_run().to_str().unwrap(), &[]).unwrap();
    assert_eq!(wrong.status.code(), Some(125));
    for shell in ["bash", "zsh", "fish"] {
        works(&run(postern_run().to_str().unwrap(), &["completions", shell]).unwrap());
    }
    let version = run(postern_run().to_str().unwrap(), &["--version"]).unwrap();
    assert!(works(&version).starts_with("postern-run "));
}
