//! What is taken is gone from the environment, and from programs that are started later.
//!
//! Without a harness, because a process of one thread alone may change its environment: it starts
//! itself again in each part that there is to play.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::TcpListener,
    os::fd::AsRawFd as _,
    process::{Command, ExitStatus},
};

use postern_supervisor::{Supervisor, SupervisorError};

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("daemon") => daemon(),
        Some("other") => other(),
        Some("threads") => threads(),
        // Alone, or with a filter of tests.
        _ => test(),
    }
}

fn test() {
    assert!(played("daemon").success());
    assert!(played("other").success());
    assert!(played("threads").success());
}

/// Plays a part as the service manager would start it: the shell's own number is the daemon's.
fn played(part: &str) -> ExitStatus {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let pid = match part {
        "other" => "1",
        _ => "$$",
    };
    let line = format!(
        "LISTEN_PID={pid} LISTEN_FDS=1 LISTEN_FDNAMES=web WATCHDOG_USEC=3000000 exec \"$0\" {part} 3<&0"
    );
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(line)
        .arg(std::env::current_exe().unwrap());
    let standard = std::os::fd::OwnedFd::from(listener);
    assert!(standard.as_raw_fd() > 2);
    shell.stdin(standard).status().unwrap()
}

fn daemon() {
    let mut taken = Supervisor::take().unwrap();
    assert_is_clean();
    assert_eq!(taken.watchdog.unwrap().as_secs(), 3);
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    assert!(taken.sockets.tcp("web", at, "listen").is_none());
    let error = taken.sockets.finish().unwrap_err().to_string();
    assert!(error.contains("but `listen` is `127.0.0.1:1`"), "{error}");
    // A second time there is nothing.
    assert!(Supervisor::take().unwrap().sockets.finish().is_ok());
}

fn other() {
    let taken = Supervisor::take().unwrap();
    assert_is_clean();
    assert!(taken.sockets.finish().is_ok());
    // What is not ours stays open, for whom it may be.
    assert!(std::fs::symlink_metadata("/proc/self/fd/3").is_ok());
}

fn threads() {
    let (go, wait) = std::sync::mpsc::sync_channel::<()>(0);
    let second = std::thread::spawn(move || wait.recv().is_err());
    assert!(matches!(Supervisor::take(), Err(SupervisorError::Threads)));
    drop(go);
    assert!(second.join().unwrap());
}

fn assert_is_clean() {
    let env = Command::new("sh")
        .args(["-c", "env; ls -l /proc/self/fd"])
        .output()
        .unwrap();
    let told = String::from_utf8(env.stdout).unwrap();
    assert!(!told.contains("LISTEN_"), "{told}");
    assert!(!told.contains("WATCHDOG_"), "{told}");
    // Standard input is the same socket, and was given to the shell on purpose.
    assert!(told.matches("socket:").count() <= 2, "{told}");
}
