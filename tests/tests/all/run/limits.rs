//! Limits by control groups, and the same program for root and for an ordinary user.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use super::{complained, postern_run, refused, said, shell, walled, works};

#[test]
#[ignore = "needs root, to make control groups"]
fn root_a_fork_bomb_stops_at_its_number() {
    // A thousand sleepers are no harm, and make the twin quick.
    let bomb = "import os, time
n = 0
try:
    for n in range(200):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
    print('all')
except BlockingIOError:
    print('stopped at', n)";
    let python = ["/usr/bin/python3", "-c", bomb];
    assert_eq!(works(&walled(&[], &python)), "all");
    let told = works(&walled(&["--pids", "32"], &python));
    assert!(told.starts_with("stopped at "), "{told}");
    nothing_is_left();
}

#[test]
#[ignore = "needs root, to make control groups"]
fn root_a_memory_hog_is_ended() {
    let hog = ["/usr/bin/python3", "-c", "print(len(bytearray(200 << 20)))"];
    assert_eq!(
        works(&walled(&["--memory", "400m"], &hog)),
        (200 << 20).to_string()
    );
    let ended = walled(&["--memory", "64m"], &hog);
    assert_eq!(ended.status.code(), Some(137));
    refused(&ended, "the limit of memory was reached");
    // Memory that is filled by way of files counts as well.
    let fill = "head -c 100m /dev/zero > /tmp/fill";
    refused(&shell(&["--tmp-size", "50m"], fill), "No space left");
    works(&shell(&["--tmp-size", "200m"], fill));
    let filled = shell(&["--tmp-size", "200m", "--memory", "64m"], fill);
    assert_eq!(filled.status.code(), Some(137), "{}", complained(&filled));
    nothing_is_left();
}

#[test]
#[ignore = "needs root, to make control groups"]
fn root_the_processors_share_is_in_the_kernels_books() {
    let mut command = Command::new(postern_run());
    command.args([
        "--cpus", "0.5", "--memory", "64m", "--pids", "9", "--", "cat",
    ]);
    command.stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let name = format!("postern-run-{}", child.id());
    let own = |file: &str| {
        let pattern = format!("*{name}/{file}");
        let output = Command::new("find")
            .args(["/sys/fs/cgroup", "-path", &pattern])
            .output()
            .unwrap();
        let path = said(&output);
        fs::read_to_string(path.lines().next()?).ok()
    };
    let quota = postern_tests::eventually("the group", || {
        own("cpu.cfs_quota_us")
            .or_else(|| own("cpu.max"))
            .filter(|text| text.starts_with("50000"))
    });
    quota.unwrap();
    let pids = postern_tests::eventually("its process", || {
        own("pids.max").filter(|text| text.trim() == "9")
    });
    pids.unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(own("pids.max"), None, "it is gone with the run");
}

#[test]
#[ignore = "needs root, to make control groups"]
fn root_a_killed_run_leaves_groups_to_the_next_one() {
    let mut command = Command::new(postern_run());
    command.args(["--pids", "9", "--", "cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"begun\n").unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut String::new()).unwrap();
    // While it lives, nobody takes its group away.
    works(&walled(&["--pids", "9"], &["true"]));
    let group = format!("/sys/fs/cgroup/pids/postern-run-{}", child.id());
    let was_there = Path::new(&group).exists() || !Path::new("/sys/fs/cgroup/pids").exists();
    assert!(was_there, "{group}");
    child.kill().unwrap();
    child.wait().unwrap();
    output.read_line(&mut String::new()).unwrap();
    postern_tests::eventually("the end of all that was inside", || {
        works(&walled(&["--pids", "9"], &["true"]));
        (!Path::new(&group).exists()).then_some(())
    })
    .unwrap();
}

/// Waits until there are no groups of runs that have ended: those of other tests may be going just now, and
/// that of a killed one waits for the next run.
#[track_caller]
fn nothing_is_left() {
    let is_left = |path: &str| {
        let owner = path.rsplit('-').next().unwrap();
        !Path::new("/proc").join(owner).exists() && Path::new(path).exists()
    };
    postern_tests::eventually("no group of a run that has ended", || {
        let found = Command::new("find")
            .args(["/sys/fs/cgroup", "-maxdepth", "6", "-name", "postern-run-*"])
            .output()
            .unwrap();
        (!said(&found).lines().any(is_left)).then_some(())
    })
    .unwrap();
}

/// The program as an ordinary user, from a folder that he can enter.
fn as_ordinary_user(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("postern-run");
    postern_tests::copy_program(postern_run(), &copy).unwrap();
    Command::new("setpriv")
        .args(["--reuid", "4711", "--regid", "4711", "--clear-groups"])
        .arg(copy)
        .args(arguments)
        .current_dir("/")
        .output()
        .unwrap()
}

#[test]
#[ignore = "needs root, to become somebody else"]
fn root_an_ordinary_user_has_the_same_walls_and_is_told_what_he_cannot_have() {
    let inside =
        "id -u; grep -h ^Cap /proc/self/status | cut -f2 | sort -u; ls /proc | grep -c '^[0-9]'";
    let told = works(&as_ordinary_user(&[
        "--net", "none", "--", "sh", "-c", inside,
    ]));
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[..2], ["4711", "0000000000000000"], "{told}");
    refused(
        &as_ordinary_user(&["--", "sh", "-c", "echo x > /tmp/../etc/x"]),
        "Read-only",
    );
    refused(
        &as_ordinary_user(&["--", "unshare", "-U", "true"]),
        "Operation not permitted",
    );
    works(&as_ordinary_user(&["--readable", "/", "--", "ls", "/srv"]));
    let limited = as_ordinary_user(&["--memory", "64m", "--", "true"]);
    assert_eq!(limited.status.code(), Some(125));
    refused(&limited, "--no-limits");
    let free = as_ordinary_user(&["--profile", "restricted", "--no-limits", "--", "id", "-u"]);
    assert_eq!(works(&free), "4711");
    assert!(complained(&free).contains("not bounded"));
    refused(
        &as_ordinary_user(&["--user", "0", "--", "true"]),
        "only root can become another user",
    );
    refused(
        &as_ordinary_user(&["--keep-cap", "CHOWN", "--", "true"]),
        "--net none",
    );
}

#[test]
#[ignore = "needs root, to become somebody else"]
fn root_gives_up_root() {
    let ids = "id -u; id -g; id -G";
    assert_eq!(works(&shell(&[], ids)), "0\n0\n0");
    assert_eq!(works(&shell(&["--user", "7:8"], ids)), "7\n8\n8");
    let restricted = works(&shell(&["--profile", "restricted"], ids));
    assert_eq!(restricted, "65532\n65532\n65532");
    // What only root may read, root without rights still reads; nobody does not.
    works(&shell(&[], "head -c 1 /etc/shadow"));
    refused(
        &shell(&["--user", "nonroot"], "head -c 1 /etc/shadow"),
        "Permission denied",
    );
    // Ownership stays, and capabilities are kept for others than root too.
    let bind = "import socket; socket.create_server(('127.0.0.1', 80)); print('bound')";
    let python = ["/usr/bin/python3", "-c", bind];
    let strict = ["--user", "nonroot", "--net", "none"];
    let kept = [&strict[..], &["--keep-cap", "NET_BIND_SERVICE"]].concat();
    // Ports below 1024 are free in a new network namespace only if it says so.
    assert_eq!(works(&walled(&kept, &python)), "bound");
    let chown = "chown 1:1 /tmp/f";
    let owned = |flags: &[&str]| shell(flags, &format!("touch /tmp/f && {chown}"));
    works(&owned(&["--keep-cap", "CHOWN"]));
    refused(&owned(&[]), "Operation not permitted");
}
