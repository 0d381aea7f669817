//! Clocks that are set while an agent runs, or while none does.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use postern_tests::{binaries, eventually, run, world::World};
use rustix::process::Signal;

use super::{ours, workload};

/// The wall clock of whoever has this in front of the C library is as far ahead as eight bytes of a file say.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead;
static int (*true_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    true_clock = dlsym(RTLD_NEXT, "clock_gettime");
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
    if (file >= 0) ahead = mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (file < 0 || ahead == MAP_FAILED) abort();
    close(file);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int failed = true_clock(which, now);
    if (!failed && which == CLOCK_REALTIME) now->tv_sec += *ahead;
    return failed;
}
"#;

const HOUR: i64 = 60 * 60;

/// A world whose agent has a clock that can be set.
struct Clocked {
    world: World,
    ahead: PathBuf,
    library: PathBuf,
}

impl Clocked {
    fn new() -> Self {
        let world = World::new().unwrap();
        let source = world.write("clock.c", CLOCK).unwrap();
        let library = source.with_extension("so");
        let [from, to] = [&source, &library].map(|path| path.to_str().unwrap());
        let arguments = ["-shared", "-fPIC", "-o", to, from, "-ldl"];
        let compiled = run("cc", &arguments).unwrap();
        assert!(compiled.status.success(), "{compiled:?}");
        let ahead = world.path().join("ahead");
        fs::write(&ahead, 0i64.to_ne_bytes()).unwrap();
        Self {
            world,
            ahead,
            library,
        }
    }

    /// Runs another program by this clock.
    fn by_the_clock(&self) -> Command {
        let mut wrapper = Command::new("env");
        wrapper.arg(format!("LD_PRELOAD={}", self.library.display()));
        wrapper.arg(format!("CLOCK_AHEAD={}", self.ahead.display()));
        wrapper
    }

    fn start(&mut self, workloads: &str) {
        let wrapper = self.by_the_clock();
        self.world.agent_under(wrapper, workloads, "").unwrap();
    }

    fn stop(&mut self) {
        self.world.signal("agent", Signal::TERM).unwrap();
        self.world.ended("agent").unwrap();
    }

    /// Sets it. The file stays the one that is mapped.
    fn set(&self, seconds: i64) {
        use std::os::unix::fs::FileExt as _;
        let file = fs::OpenOptions::new().write(true).open(&self.ahead);
        let written = file.unwrap().write_all_at(&seconds.to_ne_bytes(), 0);
        written.unwrap();
    }

    fn watch(&mut self) {
        let mut command = Command::new(binaries().unwrap().join("postern-agent"));
        command.args(["api", "watch", "-output", "json", "-socketPath"]);
        command.arg(self.world.path().join("public/agent.sock"));
        self.world.spawn("watch", &mut command).unwrap();
        eventually("an identity", || (self.told() > 0).then_some(())).unwrap();
    }

    /// So many times the watching program was told something.
    fn told(&self) -> usize {
        let log = fs::read_to_string(self.world.log("watch")).unwrap();
        log.matches("\"spiffe_id\"").count()
    }

    /// Fetches into a folder; the tool believes what is told, or it writes nothing. Who is told to try again does.
    fn write_svid(&self, folder: &str) {
        eventually("an SVID", || {
            let fetched = self
                .by_the_clock()
                .arg(binaries().unwrap().join("postern-agent"))
                .args(["api", "fetch", "-write", folder, "-socketPath"])
                .arg("public/agent.sock")
                .current_dir(self.world.path())
                .output()
                .unwrap();
            fetched.status.success().then_some(())
        })
        .unwrap();
    }

    /// Does openssl believe what is in the folder, at a time that is so far from now?
    fn is_believed(&self, folder: &str, seconds: i64) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let then = i64::try_from(now.as_secs()).unwrap() + seconds;
        let folder = self.world.path().join(folder).display().to_string();
        let (bundle, leaf) = (
            format!("{folder}/bundle.0.pem"),
            format!("{folder}/svid.0.pem"),
        );
        let arguments = [
            "verify",
            "-attime",
            &then.to_string(),
            "-CAfile",
            &bundle,
            &leaf,
        ];
        run("openssl", &arguments).unwrap().status.success()
    }
}

#[test]
fn a_clock_that_jumps_forward_or_back_leaves_nobody_with_what_peers_would_refuse() {
    // FAULTS 36, 37
    let mut clocked = Clocked::new();
    clocked.start(&ours());
    clocked.watch();
    clocked.write_svid("before");
    let before = clocked.told();
    clocked.set(2 * HOUR);
    eventually("another SVID", || (clocked.told() > before).then_some(())).unwrap();
    clocked.write_svid("forward");
    assert!(clocked.is_believed("forward", 2 * HOUR));
    assert!(!clocked.is_believed("before", 2 * HOUR));
    let forward = clocked.told();
    clocked.set(-2 * HOUR);
    eventually("another SVID", || (clocked.told() > forward).then_some(())).unwrap();
    clocked.write_svid("back");
    assert!(clocked.is_believed("back", -2 * HOUR));
    assert!(!clocked.is_believed("forward", -2 * HOUR));
    // Each jump brought what it had to, and no storm. Some looks later it is the same.
    let settled = clocked.told();
    for _ in 0..5 {
        clocked.write_svid("again");
    }
    assert!(clocked.told() <= settled + 1 && settled <= before + 6);
}

#[test]
fn what_was_taken_back_stays_so_through_a_jump_and_its_twin_stays_good() {
    // FAULTS 36, 37
    let mut clocked = Clocked::new();
    let nobody = workload("nobody", "'unix:uid:1'");
    clocked.start(&nobody);
    let path = clocked.world.write("w.yaml", &ours()).unwrap();
    let create = ["workload", "create", "-f", path.to_str().unwrap()];
    let delete = ["workload", "delete", "default/ours"];
    let admin = |clocked: &Clocked, arguments: &[&str]| {
        let output = clocked.world.admin(arguments).unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    // By its name the last one of two.
    let other = ours().replace("ours", "zoo");
    let other = clocked.world.write("o.yaml", &other).unwrap();
    admin(
        &clocked,
        &["workload", "create", "-f", other.to_str().unwrap()],
    );
    admin(&clocked, &create);
    clocked.write_svid("bad");
    admin(&clocked, &delete);
    admin(&clocked, &create);
    clocked.write_svid("good");
    assert!(clocked.world.is_revoked("bad").unwrap());
    clocked.set(2 * HOUR);
    // By this time `bad` has ended; something else is taken back, and the agent starts again.
    clocked.write_svid("later");
    admin(&clocked, &["workload", "delete", "default/zoo"]);
    clocked.stop();
    clocked.start(&nobody);
    clocked.write_svid("again");
    clocked.set(0);
    eventually("lists of this time", || {
        clocked.world.is_revoked("bad").ok()?.then_some(())
    })
    .unwrap();
    assert!(!clocked.world.is_revoked("good").unwrap());
}

#[test]
fn roots_that_ended_while_no_agent_ran_are_replaced_and_peers_are_told() {
    // FAULTS 39
    let mut clocked = Clocked::new();
    clocked.start(&ours());
    clocked.write_svid("before");
    clocked.stop();
    clocked.set(48 * HOUR);
    clocked.start(&ours());
    clocked.write_svid("after");
    assert!(clocked.is_believed("before", 0) && !clocked.is_believed("before", 48 * HOUR));
    assert!(clocked.is_believed("after", 48 * HOUR));
    let bundle = |folder: &str| {
        let path = clocked.world.path().join(folder).join("bundle.0.pem");
        fs::read_to_string(path).unwrap()
    };
    assert!(!bundle("after").contains(bundle("before").trim()));
}
