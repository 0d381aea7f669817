//! Processes that hide something: threads that differ, a changed root, limits above. They need root, so they
//! are run by name: `cargo test -p postern-tests --test all -- --ignored root_`.

use std::{
    fs,
    process::{Command, Stdio},
};

use postern_tests::{binaries, eventually, world::World};

use super::{Ended, Posture, start};

/// Starts a process and waits until it says that it is as it is to be.
fn settled(world: &World, program: &str, arguments: &[&str]) -> Ended {
    let ready = world.path().join("ready");
    let mut command = Command::new(program);
    command.args(arguments).env("READY", &ready);
    let child = Ended(command.stdin(Stdio::null()).spawn().unwrap());
    eventually("a process", || ready.exists().then_some(())).unwrap();
    child
}

#[test]
#[ignore = "needs root, to give rights away"]
fn root_a_leader_that_lowers_itself_alone_is_judged_by_its_threads() {
    let world = World::new().unwrap();
    // By raw system calls, which change the calling thread alone.
    let script = "import ctypes, os, threading, time\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        if os.environ['THREADS'] == 'yes':\n    \
            threading.Thread(target=lambda: time.sleep(60), daemon=True).start()\n\
        assert libc.syscall(119, 65532, 65532, 65532) == 0\n\
        assert libc.syscall(117, 65532, 65532, 65532) == 0\n\
        open(os.environ['READY'], 'w')\n\
        time.sleep(60)\n";
    fs::set_permissions(
        world.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    for (threads, status) in [("no", "pass"), ("yes", "fail")] {
        let threads = format!("THREADS={threads}");
        let python = settled(&world, "env", &[&threads, "python3", "-c", script]);
        let found = Posture::of(python.0.id(), None);
        assert_eq!(found.status("user"), status, "{threads}: {found:?}");
        assert_eq!(found.has("posture:uid:65532"), status == "pass");
        fs::remove_file(world.path().join("ready")).unwrap();
    }
}

#[test]
#[ignore = "needs root, to be somebody else"]
fn root_who_makes_a_user_namespace_is_root_in_there() {
    let world = World::new().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(world.path(), open).unwrap();
    let wait = ["sh", "-c", ": > $READY; exec sleep 60"];
    let ids = ["--reuid", "65532", "--regid", "65532", "--clear-groups"];
    let of = |between: &[&str]| {
        let all: Vec<&str> = ids.iter().chain(between).chain(&wait).copied().collect();
        let child = settled(&world, "setpriv", &all);
        let found = Posture::of(child.0.id(), None);
        fs::remove_file(world.path().join("ready")).unwrap();
        found
    };
    let plain = of(&[]);
    for layer in ["user", "group"] {
        assert_eq!(plain.status(layer), "pass", "{plain:?}");
    }
    assert!(plain.has("posture:nonroot"));
    let inside = of(&["unshare", "--user", "--map-root-user"]);
    assert_eq!(inside.status("user-namespace"), "pass", "{inside:?}");
    for layer in ["user", "group", "capabilities"] {
        assert_eq!(inside.status(layer), "fail", "{layer}: {inside:?}");
    }
    assert!(inside.why("user").contains("root of its user namespace"));
    assert!(!inside.has("posture:nonroot") && inside.has("posture:uid:65532"));
}

#[test]
#[ignore = "needs root, to change a root"]
fn root_a_changed_root_hides_nothing() {
    let world = World::new().unwrap();
    let root = world.path().join("root");
    fs::create_dir(&root).unwrap();
    // The host's folders are bound into a root of its own, or lie beside it.
    let script = format!(
        "set -e; mount -t tmpfs tmpfs {root}; mkdir {root}/bin {root}/usr {root}/lib {root}/lib64; \
         for one in usr bin lib lib64; do mount --rbind /$one {root}/$one; done; \
         : > $READY; exec chroot {root} /bin/sleep 60",
        root = root.display()
    );
    let chrooted = settled(&world, "unshare", &["--mount", "sh", "-c", &script]);
    let is_in = || {
        let root = fs::read_link(format!("/proc/{}/root", chrooted.0.id())).ok()?;
        root.ends_with("root").then_some(())
    };
    eventually("a changed root", is_in).unwrap();
    let found = Posture::of(chrooted.0.id(), None);
    assert_eq!(found.status("mount-namespace"), "pass");
    for layer in [
        "host-mounts",
        "runtime-socket",
        "proc-masks",
        "root-filesystem",
    ] {
        assert_eq!(found.status(layer), "fail", "{layer}");
        assert!(
            found.why(layer).contains("has changed its root"),
            "{found:?}"
        );
    }
}

#[test]
#[ignore = "needs root, to make control groups"]
fn root_a_limit_above_the_own_control_group_counts() {
    let Ok(groups) = fs::read_to_string("/proc/self/cgroup") else {
        unreachable!("every process has control groups");
    };
    let old = groups.lines().any(|line| line.contains(":pids:"));
    let top = match old {
        true => "/sys/fs/cgroup/pids",
        false => "/sys/fs/cgroup",
    };
    let parent = format!("{top}/postern-test-posture-{}", std::process::id());
    let child = format!("{parent}/inner");
    fs::create_dir(&parent).unwrap();
    if !old {
        fs::write(format!("{parent}/cgroup.subtree_control"), "+pids").unwrap();
    }
    fs::create_dir(&child).unwrap();
    let sleeper = start("sleep", &["60"]);
    let pid = sleeper.0.id();
    fs::write(format!("{child}/cgroup.procs"), pid.to_string()).unwrap();
    let status = || Posture::of(pid, None).status("pids-limit").to_owned();
    let mut seen = vec![status()];
    fs::write(format!("{parent}/pids.max"), "64").unwrap();
    seen.push(status());
    fs::write(format!("{parent}/pids.max"), "max").unwrap();
    fs::write(format!("{child}/pids.max"), "64").unwrap();
    seen.push(status());
    drop(sleeper);
    fs::remove_dir(&child).unwrap();
    fs::remove_dir(&parent).unwrap();
    assert_eq!(seen, ["fail", "pass", "pass"]);
}

#[test]
#[ignore = "needs root, to be somebody else"]
fn root_a_process_of_somebody_else_is_named_with_the_mend() {
    let world = World::new().unwrap();
    let agent = world.path().join("agent");
    postern_tests::copy_program(binaries().unwrap().join("postern-agent"), &agent).unwrap();
    let open = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(world.path(), open()).unwrap();
    let sleeper = start("sleep", &["60"]);
    let pid = sleeper.0.id().to_string();
    let ask = |uid: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", uid, "--clear-groups"]).arg(&agent);
        let output = command.args(["posture", "--pid", &pid]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), error)
    };
    let (code, error) = ask("65532");
    assert_eq!(code, Some(1));
    let told = format!("process {pid} of user 0 may not be looked at; run this as root");
    assert!(error.contains(&told), "{error}");
    assert_eq!(ask("0").0, Some(0));
}
