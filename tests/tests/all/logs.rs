//! Logs whose readers stall, files that are moved away, and filters that cannot be meant.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use postern_tests::{
    binaries, eventually,
    world::{World, free_address},
};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::Signal,
};
use spiffe::WorkloadApiClient;

use super::ending::{Site, ask, curl};

/// A pipe that is open and that nobody reads, and later somebody.
struct Pipe {
    path: PathBuf,
    open: File,
}

impl Pipe {
    fn new(folder: &Path) -> Self {
        let path = folder.join("pipe");
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &path, FileType::Fifo, mode, 0).unwrap();
        // Of both ends, so that to open either waits for nobody.
        let open = OpenOptions::new().read(true).write(true).open(&path);
        Self {
            open: open.unwrap(),
            path,
        }
    }

    /// A daemon whose standard output it is.
    fn behind(&self, daemon: &str, config: &Path) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" run --config \"$1\" > \"$2\""]);
        shell.arg(binaries().unwrap().join(daemon));
        shell.arg(config).arg(&self.path);
        shell
    }

    /// Reads from now on.
    fn read(&self) -> Arc<Mutex<Vec<String>>> {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (told, reader) = (
            lines.clone(),
            BufReader::new(self.open.try_clone().unwrap()),
        );
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                told.lock().unwrap().push(line);
            }
        });
        lines
    }
}

/// Waits until a line contains this, and tells the last that does.
#[track_caller]
fn line_with(lines: &Mutex<Vec<String>>, text: &str) -> serde_json::Value {
    let found = || {
        let lines = lines.lock().unwrap();
        lines.iter().rfind(|line| line.contains(text)).cloned()
    };
    let line = eventually(text, found).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn a_reader_of_standard_output_that_stalls_stops_no_traffic() {
    let mut site = Site::start("{delay: 0s, deadline: 5s}");
    let pipe = Pipe::new(site.world.path());
    let (web, health) = (free_address().unwrap(), free_address().unwrap());
    let config = fs::read_to_string(site.world.path().join("web.yaml")).unwrap();
    let config = config
        .replace(&site.web.to_string(), &web.to_string())
        .replace(&site.web_health.to_string(), &health.to_string())
        .replace("admin: {listen: '127", "admin: {listen: '[::1]:0'}\n#")
        .replace("web-access.log", "/dev/stdout");
    let config = site.world.write("stalled.yaml", &config).unwrap();
    let mut command = pipe.behind("postern-proxy", &config);
    site.world.spawn("stalled", &mut command).unwrap();
    eventually("the proxy", || {
        curl(health, "/healthz/ready")
            .starts_with("http/1.1 200")
            .then_some(())
    })
    .unwrap();

    let lost = |name: &str| {
        let metrics = curl(health, "/metrics");
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        value.unwrap_or_default()
    };
    let lines_lost = "postern_proxy_access_log_lost_total";
    // Each has a line of some kilobytes.
    let path = format!("/{}", "x".repeat(8_000));
    let mut stream = std::net::TcpStream::connect(web).unwrap();
    let mut asked = 0_u64;
    while lost(lines_lost) == 0 {
        for _ in 0..100 {
            let answer = ask(&mut stream, &path).unwrap();
            assert!(answer.starts_with("http/1.1 200"), "{answer}");
            asked += 1;
        }
        assert!(asked < 20_000, "nothing was lost of so much");
    }
    // Somebody reads: what was kept is there in whole lines, and that something is missing is said.
    let lines = pipe.read();
    let told = line_with(&lines, "lines of a log were lost");
    assert_eq!(told["log"], "access-log");
    let is_log = |line: &String| serde_json::from_str::<serde_json::Value>(line).is_ok();
    assert!(lines.lock().unwrap().iter().all(is_log));
    let kept = || {
        let lines = lines.lock().unwrap();
        lines.iter().filter(|line| line.contains(&path)).count()
    };
    let all = || u64::try_from(kept()).unwrap() + lost(lines_lost);
    eventually("each line, or its loss", || (all() == asked).then_some(())).unwrap();
    // And the last one is not lost at the end.
    ask(&mut stream, "/last").unwrap();
    drop(stream);
    site.world.signal("stalled", Signal::TERM).unwrap();
    assert_eq!(site.world.ended("stalled").unwrap(), Some(0));
    assert_eq!(line_with(&lines, "\"path\":\"/last\"")["status"], 200);
    line_with(&lines, "drained");
}

#[test]
fn a_proxy_ends_in_time_when_nobody_reads_its_log() {
    let mut site = Site::start("{delay: 0s, deadline: 5s}");
    let pipe = Pipe::new(site.world.path());
    let (web, health) = (free_address().unwrap(), free_address().unwrap());
    let config = fs::read_to_string(site.world.path().join("web.yaml")).unwrap();
    let config = config
        .replace(&site.web.to_string(), &web.to_string())
        .replace(&site.web_health.to_string(), &health.to_string())
        .replace("admin: {listen: '127", "admin: {listen: '[::1]:0'}\n#")
        .replace("web-access.log", "/dev/stdout");
    let config = site.world.write("stalled.yaml", &config).unwrap();
    let mut command = pipe.behind("postern-proxy", &config);
    site.world.spawn("stalled", &mut command).unwrap();
    eventually("the proxy", || {
        curl(health, "/healthz/ready")
            .starts_with("http/1.1 200")
            .then_some(())
    })
    .unwrap();
    // More than a pipe holds.
    let mut stream = std::net::TcpStream::connect(web).unwrap();
    for _ in 0..50 {
        ask(&mut stream, &format!("/{}", "x".repeat(8_000))).unwrap();
    }
    drop(stream);
    site.world.signal("stalled", Signal::TERM).unwrap();
    assert_eq!(site.world.ended("stalled").unwrap(), Some(0));
}

#[test]
fn the_access_log_is_opened_anew_on_sighup() {
    let site = Site::start("1s");
    let path = site.world.path().join("web-access.log");
    let lines = |path: &Path| fs::read_to_string(path).unwrap_or_default().lines().count();
    curl(site.web, "/api");
    eventually("the first line", || (lines(&path) == 1).then_some(())).unwrap();
    let moved = path.with_extension("log.1");
    fs::rename(&path, &moved).unwrap();
    // As long as nobody says so, the log goes on where it was.
    curl(site.web, "/api");
    eventually("the second line", || (lines(&moved) == 2).then_some(())).unwrap();
    assert!(!path.exists());
    site.world.signal("web", Signal::HUP).unwrap();
    eventually("the new file", || path.exists().then_some(())).unwrap();
    curl(site.web, "/api");
    eventually("the third line", || (lines(&path) == 1).then_some(())).unwrap();
    assert_eq!(lines(&moved), 2);
}

#[test]
fn nobody_is_told_anything_that_the_audit_log_has_no_place_for() {
    let mut world = World::new().unwrap();
    let pipe = Pipe::new(world.path());
    world
        .write("workloads/workloads.yaml", &workload())
        .unwrap();
    let folder = world.path().display();
    let config = format!(
        "trustDomain: example.org\nstateDir: state\n\
         workloadApi: {{socket: 'unix://{folder}/public/agent.sock'}}\n\
         admin: {{socket: 'unix://{folder}/admin/admin.sock'}}\n\
         health: {{listen: '127.0.0.1:0'}}\n"
    );
    let config = world.write("agent.yaml", &config).unwrap();
    let mut command = pipe.behind("postern-agent", &config);
    // The libraries' words fill the log.
    world
        .spawn("agent", command.env("POSTERN_LOG", "trace"))
        .unwrap();
    let socket = format!("unix://{}/public/agent.sock", world.path().display());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let client = eventually("the agent", || {
        runtime
            .block_on(WorkloadApiClient::connect_to(&socket))
            .ok()
    })
    .unwrap();
    let fetch = || runtime.block_on(client.fetch_x509_svid());
    let (mut told, mut asked) = (0, 0);
    let refused = loop {
        match fetch() {
            Ok(_) => told += 1,
            Err(error) => break error.to_string(),
        }
        asked += 1;
        assert!(asked < 50_000, "the log has a place for everything");
    };
    assert!(
        refused.contains("the audit log cannot be written now"),
        "{refused}"
    );
    assert!(fetch().is_err(), "and so is the next one");
    // Somebody reads: all goes on, and of everything that was told there is a line.
    let lines = pipe.read();
    eventually("an SVID", || fetch().ok()).unwrap();
    told += 1;
    let audited = || {
        let lines = lines.lock().unwrap();
        let is_told = |line: &&String| {
            line.contains("\"target\":\"audit\"") && line.contains("\"message\":\"told\"")
        };
        lines.iter().filter(is_told).count()
    };
    eventually("a line for each", || (audited() >= told).then_some(())).unwrap();
    line_with(&lines, "lines of a log were lost");
}

#[test]
fn a_filter_that_cannot_be_meant_is_refused() {
    let world = World::new().unwrap();
    world
        .write("workloads/workloads.yaml", &workload())
        .unwrap();
    let agent = world.write("agent.yaml", "trustDomain: example.org\nstateDir: state\n");
    let proxy = "policies: {directory: workloads}\nworkloads: {directory: workloads}\n\
                 inbound: {forward: '127.0.0.1:9'}\n";
    let proxy = world.write("proxy.yaml", proxy);
    for (daemon, config) in [("postern-agent", agent), ("postern-proxy", proxy)] {
        let config = config.unwrap();
        let run = |name: &str, value: &str| -> Output {
            let mut command = Command::new(binaries().unwrap().join(daemon));
            command
                .args(["run", "--config"])
                .arg(&config)
                .env(name, value);
            command.output().unwrap()
        };
        for (name, value, told) in [
            (
                "POSTERN_LOG",
                "warning",
                "`warning` is no level; did you mean `warn`?",
            ),
            ("POSTERN_LOG", "info,h2=loud", "`h2=loud` is no filter"),
            (
                "POSTERN_LOG_FORMAT",
                "xml",
                "`xml` is no format; write `json` or `plain`",
            ),
        ] {
            let output = run(name, value);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(64), "{daemon} {value}: {said}");
            let begins = format!("{daemon}: `{name}`: ");
            assert!(said.starts_with(&begins) && said.contains(told), "{said}");
            assert!(output.stdout.is_empty());
        }
    }
}

fn workload() -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web}}\n\
         spec:\n  serviceAccount: web\n  selectors: ['unix:uid:{}']\n",
        rustix::process::geteuid().as_raw()
    )
}
