//! Daemons in a folder of their own, ended when the test ends.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{binaries, eventually};

/// A folder and what runs in it.
#[derive(Debug)]
pub struct World {
    folder: TempDir,
    running: Vec<(String, Child)>,
}

impl World {
    /// An empty one.
    ///
    /// # Errors
    /// The system's own.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            folder: TempDir::new()?,
            running: Vec::new(),
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file.
    ///
    /// # Errors
    /// The system's own.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.path().join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Starts an agent with these Workload documents and waits until it serves. Tells its socket.
    ///
    /// # Errors
    /// When it does not start.
    pub fn agent(&mut self, workloads: &str) -> anyhow::Result<PathBuf> {
        self.agent_with(workloads, "")
    }

    /// Starts an agent with more in its configuration. A first line `idleTimeout: …` is that of
    /// `workloadApi`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn agent_with(&mut self, workloads: &str, more: &str) -> anyhow::Result<PathBuf> {
        self.agent_of("example.org", workloads, more)
    }

    /// Starts an agent of another trust domain.
    ///
    /// # Errors
    /// When it does not start.
    pub fn agent_of(
        &mut self,
        trust_domain: &str,
        workloads: &str,
        more: &str,
    ) -> anyhow::Result<PathBuf> {
        let config = self.configure(trust_domain, workloads, more)?;
        self.start("agent", &binaries()?.join("postern-agent"), &config)?;
        self.said("agent", "ready")?;
        Ok(self.path().join("public/agent.sock"))
    }

    /// Starts an agent by way of another program, such as one that refuses it system calls.
    ///
    /// # Errors
    /// When it does not start.
    pub fn agent_under(
        &mut self,
        mut wrapper: Command,
        workloads: &str,
        more: &str,
    ) -> anyhow::Result<PathBuf> {
        let config = self.configure("example.org", workloads, more)?;
        wrapper.arg(binaries()?.join("postern-agent"));
        self.spawn("agent", wrapper.args(["run", "--config"]).arg(config))?;
        self.said("agent", "ready")?;
        Ok(self.path().join("public/agent.sock"))
    }

    /// Starts an agent that is to end by itself, and tells what it said.
    ///
    /// # Errors
    /// When it does not end.
    pub fn refused_agent(&mut self, workloads: &str, more: &str) -> anyhow::Result<String> {
        let config = self.configure("example.org", workloads, more)?;
        self.start("agent", &binaries()?.join("postern-agent"), &config)?;
        let code = self.ended("agent")?;
        let said = fs::read_to_string(self.log("agent"))?;
        anyhow::ensure!(code.is_some_and(|code| code != 0), "it ended well: {said}");
        Ok(said)
    }

    fn configure(
        &self,
        trust_domain: &str,
        workloads: &str,
        more: &str,
    ) -> anyhow::Result<PathBuf> {
        self.write("workloads/workloads.yaml", workloads)?;
        let folder = self.path().display().to_string();
        let often = match more.contains("reattest:") {
            true => "",
            false => "reattest: {every: 200ms}\n",
        };
        let health = match more.contains("health:") {
            true => "",
            false => "health: {listen: '127.0.0.1:0'}\n",
        };
        // What else there is to say of the socket.
        let (idle, more) = match more.strip_prefix("idleTimeout: ") {
            Some(rest) => rest.split_once('\n').unwrap_or((rest, "")),
            None => ("5m", more),
        };
        let config = format!(
            "trustDomain: {trust_domain}\nstateDir: state\n\
             workloadApi: {{socket: 'unix://{folder}/public/agent.sock', idleTimeout: {idle}}}\n\
             admin: {{socket: 'unix://{folder}/admin/admin.sock'}}\n\
             {health}{often}{more}"
        );
        self.write("agent.yaml", &config)
    }

    /// Runs a command of the agent, such as `bundle show`, over the admin socket.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn admin(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(binaries()?.join("postern-agent"));
        command.args(arguments).arg("-socketPath");
        Ok(command.arg(self.path().join("admin/admin.sock")).output()?)
    }

    /// Is the SVID that `api fetch -write` left in this folder on a revocation list that openssl
    /// believes? The lists are those that a caller is told now.
    ///
    /// # Errors
    /// When a program cannot be run, or says something else.
    pub fn is_revoked(&self, folder: &str) -> anyhow::Result<bool> {
        let agent = binaries()?.join("postern-agent");
        let line = format!(
            "set -e; {} api fetch -output json -socketPath public/agent.sock > fetched; \
             jq -r '.crl[]' < fetched > lists; [ -s lists ] || exit 0; : > lists.pem; while read list; do \
             echo $list | base64 -d | openssl crl -inform DER >> lists.pem; done < lists; \
             openssl verify -crl_check -CAfile {folder}/bundle.0.pem -untrusted {folder}/svid.0.pem \
             -CRLfile lists.pem {folder}/svid.0.pem",
            agent.display()
        );
        let mut shell = Command::new("sh");
        let output = shell
            .args(["-c", &line])
            .current_dir(self.path())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let has_no_list = said.contains("unable to get certificate CRL");
        let is_revoked = said.contains("certificate revoked");
        anyhow::ensure!(
            output.status.success() || has_no_list || is_revoked,
            "the lists cannot be had, or openssl says something else: {said}"
        );
        Ok(is_revoked)
    }

    /// Starts a proxy with this configuration.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn proxy(&mut self, name: &str, config: &str) -> anyhow::Result<()> {
        self.proxy_at(name, &binaries()?.join("postern-proxy"), config)
    }

    /// Starts a proxy whose program lies elsewhere.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn proxy_at(&mut self, name: &str, program: &Path, config: &str) -> anyhow::Result<()> {
        let config = self.write(&format!("{name}.yaml"), config)?;
        self.start(name, program, &config)
    }

    fn start(&mut self, name: &str, program: &Path, config: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(program);
        self.spawn(name, command.args(["run", "--config"]).arg(config))
    }

    /// Starts a program of others in the folder. It is ended like a daemon.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let log = File::create(self.log(name))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir(self.path())
            .spawn()?;
        self.running.push((name.to_owned(), child));
        Ok(())
    }

    /// Waits until a daemon's log says `message`; what it said instead is in the error.
    ///
    /// # Errors
    /// When it never does.
    pub fn said(&self, name: &str, message: &str) -> anyhow::Result<()> {
        self.told(name, &format!("\"message\":\"{message}\""))
            .map(|_| ())
    }

    /// Waits until `text` is somewhere in a daemon's log, and returns all of it: a daemon writes its log behind its work.
    ///
    /// # Errors
    /// When it never is; what is there instead is in the error.
    pub fn told(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let log = || fs::read_to_string(self.log(name)).unwrap_or_default();
        eventually(text, || Some(log()).filter(|log| log.contains(text)))
            .with_context(|| format!("log of {name}:\n{}", log()))
    }

    /// The log of a daemon.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.log"))
    }

    /// The number of a daemon.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn pid(&self, name: &str) -> anyhow::Result<u32> {
        let mut running = self.running.iter();
        let found = running.find(|(known, _)| known == name);
        Ok(found.context("no such daemon")?.1.id())
    }

    /// Sends a signal to a daemon.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let (_, child) = self
            .running
            .iter()
            .find(|(known, _)| known == name)
            .context("no such daemon")?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// Waits for the end of a daemon and tells its exit code.
    ///
    /// # Errors
    /// When it does not end.
    pub fn ended(&mut self, name: &str) -> anyhow::Result<Option<i32>> {
        let place = self.running.iter().position(|(known, _)| known == name);
        let (_, mut child) = self.running.remove(place.context("no such daemon")?);
        let status = eventually("the end of a daemon", || child.try_wait().ok().flatten())?;
        Ok(status.code())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// An address on loopback that nobody has, and that no other call gets.
///
/// Its port is below those that the kernel gives to outgoing connections.
///
/// # Errors
/// When there is none.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Other runs of the tests on this machine look elsewhere first.
    let first = std::process::id().wrapping_mul(101);
    for _ in 0..PORTS {
        let place = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let port = u16::try_from(FIRST_PORT + place)?;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return Ok(listener.local_addr()?);
        }
    }
    anyhow::bail!("there is no free port")
}

const FIRST_PORT: u32 = 20_000;
const PORTS: u32 = 12_000;

/// An app that answers every connection with the same words, and counts what reached it.
#[derive(Debug)]
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    reached: Arc<AtomicUsize>,
}

impl App {
    /// Starts it on a thread.
    ///
    /// # Errors
    /// When there is no address.
    pub fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(free_address()?)?;
        let (address, reached) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let counter = reached.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let counter = counter.clone();
                std::thread::spawn(move || {
                    let mut head = [0; 8192];
                    while let Ok(1..) = stream.read(&mut head) {
                        counter.fetch_add(1, Ordering::SeqCst);
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n";
                        if stream.write_all(answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ok(Self { address, reached })
    }

    /// How many requests reached it.
    pub fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }
}
