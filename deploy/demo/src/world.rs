//! The demo's world: a folder, an agent, and two pods with an app and a sidecar each.
//!
//! Everything is started from the same files that a user would write; they lie in the folder to be
//! read (`--keep`).

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    binaries::{self, AGENT, DEMO, PROXY},
    evidence,
    network::{Network, Pod, SERVICE},
    pod::{PodHandle, Start, Started},
    report::Report,
};

/// Everything that runs. Dropping it ends all of it.
#[derive(Debug)]
pub(crate) struct World {
    frontend: PodHandle,
    web: PodHandle,
    agent: Agent,
    network: Network,
    folder: TempDir,
}

impl World {
    /// Starts the agent and both pods, with the seed policies alone.
    pub(crate) async fn start(
        binaries: &Path,
        network: Network,
        report: &mut Report,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("postern-demo-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .context("cannot make a folder")?;
        lay_out(folder.path(), binaries, &network)?;

        let agent = Agent::start(folder.path())?;
        evidence::said(&log_of(folder.path(), AGENT), "ready").await?;
        report.progress("the agent is ready, with a new root of trust");

        let supervisor = folder.path().join("bin").join(DEMO);
        let start = |pod| PodHandle::start(&network, pod, &supervisor, true);
        let (frontend, web) = (start(Pod::Frontend)?, start(Pod::Web)?);
        let mut world = Self {
            frontend,
            web,
            agent,
            network,
            folder,
        };
        for pod in Pod::ALL {
            world.populate(pod)?;
        }
        for pod in Pod::ALL {
            evidence::said(&world.sidecar_log(pod), "ready").await?;
            report.progress(&format!("pod {} is ready: app and sidecar", pod.name()));
        }
        Ok(world)
    }

    /// Starts the app and the sidecar of a pod.
    fn populate(&mut self, pod: Pod) -> anyhow::Result<()> {
        let users = self.network.users(pod);
        let listen = self.network.app(pod).to_string();
        let app = [self.program(DEMO), "app".into(), "--listen".into(), listen];
        let sidecar = [
            self.pod_folder(pod).join(PROXY).display().to_string(),
            "run".into(),
            "--config".into(),
            self.pod_folder(pod)
                .join("proxy.yaml")
                .display()
                .to_string(),
        ];
        let app_log = self.pod_folder(pod).join("app.log");
        let sidecar_log = self.sidecar_log(pod);
        let handle = self.pod(pod);
        handle.run(&Start {
            argv: app.to_vec(),
            uid: users.map(|(_, app)| app),
            log: Some(app_log),
        })?;
        handle.run(&Start {
            argv: sidecar.to_vec(),
            uid: users.map(|(sidecar, _)| sidecar),
            log: Some(sidecar_log),
        })?;
        Ok(())
    }

    /// Runs the agent's command line in a pod, as the user of its sidecar, to fetch an identity.
    pub(crate) fn fetch(&mut self, pod: Pod) -> anyhow::Result<Started> {
        let start = self.fetch_command(pod);
        self.pod(pod).run(&start)
    }

    /// The same program, user and network as [`World::fetch`], but outside the pod's walls.
    pub(crate) fn fetch_without_walls(&mut self, pod: Pod) -> anyhow::Result<Started> {
        let program = self.folder().join("bin").join(DEMO);
        let mut look_alike = PodHandle::start(&self.network, pod, &program, false)?;
        let fetched = look_alike.run(&self.fetch_command(pod))?;
        look_alike.stop()?;
        Ok(fetched)
    }

    fn fetch_command(&self, pod: Pod) -> Start {
        let argv = [
            self.pod_folder(pod).join(AGENT).display().to_string(),
            "api".into(),
            "fetch".into(),
            "x509".into(),
            "-output".into(),
            "json".into(),
            "-socketPath".into(),
            self.agent_socket().display().to_string(),
        ];
        Start {
            argv: argv.to_vec(),
            uid: self.network.users(pod).map(|(sidecar, _)| sidecar),
            log: None,
        }
    }

    /// Asks the agent for an identity from outside every pod, as nobody in particular.
    pub(crate) fn fetch_as_stranger(&self) -> anyhow::Result<Started> {
        self.agent_command(
            &["api", "fetch", "x509", "-output", "json"],
            &self.agent_socket(),
        )
    }

    /// What the agent has seen drift.
    pub(crate) fn drift(&self) -> anyhow::Result<Started> {
        let admin = self.folder().join("agent/admin/admin.sock");
        self.agent_command(&["drift", "list", "--json"], &admin)
    }

    fn agent_command(&self, arguments: &[&str], socket: &Path) -> anyhow::Result<Started> {
        let output = Command::new(self.program(AGENT))
            .args(arguments)
            .arg("-socketPath")
            .arg(socket)
            .output()
            .context("cannot run the agent's command")?;
        Ok(Started {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Adds the demo's policies to the seed's and waits until the sidecars enforce them. The whole
    /// folder is swapped at once, as a mounted ConfigMap is: nobody reads half of it.
    pub(crate) async fn add_demo_policies(&self) -> anyhow::Result<()> {
        let before = Pod::ALL.map(|pod| evidence::count(&self.sidecar_log(pod), IN_FORCE));
        let next = self.folder().join("policies.demo");
        make_folder(&next)?;
        for (name, text) in SEED_POLICIES.iter().chain(&DEMO_POLICIES) {
            write(&next.join(name), text)?;
        }
        let link = self.folder().join("policies.next");
        symlink(&next, &link).context("cannot link the policies")?;
        fs::rename(&link, self.folder().join("policies")).context("cannot swap the policies")?;
        for (pod, before) in Pod::ALL.into_iter().zip(before) {
            let log = self.sidecar_log(pod);
            let swapped = || (evidence::count(&log, IN_FORCE) > before).then_some(());
            evidence::wait_for(swapped)
                .await
                .context("the policies were not taken")?;
        }
        Ok(())
    }

    /// Starts a program in the frontend pod that its baseline does not know.
    pub(crate) fn intrude(&mut self) -> anyhow::Result<PathBuf> {
        let intruder = self.pod_folder(Pod::Frontend).join("intruder");
        fs::copy(self.program(DEMO), &intruder).context("cannot place the intruder")?;
        let start = Start {
            argv: vec![intruder.display().to_string(), "intruder".into()],
            uid: self.network.users(Pod::Frontend).map(|(_, app)| app),
            log: Some(self.pod_folder(Pod::Frontend).join("intruder.log")),
        };
        self.frontend.run(&start)?;
        Ok(intruder)
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn access_log(&self, pod: Pod) -> PathBuf {
        self.pod_folder(pod).join("access.log")
    }

    /// Ends everything, in order, and sees it end well.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.frontend.stop()?;
        self.web.stop()?;
        self.agent.stop()
    }

    /// When something went wrong: the ends of all logs.
    pub(crate) fn print_logs(&self) {
        let logs = [
            log_of(self.folder(), AGENT),
            self.sidecar_log(Pod::Frontend),
            self.sidecar_log(Pod::Web),
        ];
        for log in logs {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines.len().saturating_sub(LOG_TAIL);
            anstream::eprintln!("--- {}", log.display());
            for line in lines.iter().skip(end) {
                anstream::eprintln!("{line}");
            }
        }
    }

    fn pod(&mut self, pod: Pod) -> &mut PodHandle {
        match pod {
            Pod::Frontend => &mut self.frontend,
            Pod::Web => &mut self.web,
        }
    }

    fn program(&self, name: &str) -> String {
        self.folder().join("bin").join(name).display().to_string()
    }

    fn agent_socket(&self) -> PathBuf {
        self.folder().join("agent/public/agent.sock")
    }

    fn pod_folder(&self, pod: Pod) -> PathBuf {
        pod_folder(self.folder(), pod)
    }

    fn sidecar_log(&self, pod: Pod) -> PathBuf {
        self.pod_folder(pod).join("proxy.log")
    }
}

/// The agent's process.
#[derive(Debug)]
struct Agent(Child);

impl Agent {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let log = fs::File::create(log_of(folder, AGENT)).context("cannot open the agent's log")?;
        Command::new(folder.join("bin").join(AGENT))
            .args(["run", "--config"])
            .arg(folder.join("agent.yaml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map(Self)
            .context("cannot start the agent")
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It ended already, or it must end now.
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Writes every file that the daemons read.
fn lay_out(folder: &Path, from: &Path, network: &Network) -> anyhow::Result<()> {
    for part in ["bin", "agent", "policies.seed", "workloads"] {
        make_folder(&folder.join(part))?;
    }
    symlink("policies.seed", folder.join("policies")).context("cannot link the policies")?;
    binaries::install(from, &folder.join("bin"))?;
    write(&folder.join("agent.yaml"), &agent_yaml(folder))?;
    for (name, text) in SEED_POLICIES {
        write(&folder.join("policies").join(name), text)?;
    }
    for pod in Pod::ALL {
        let own = pod_folder(folder, pod);
        make_folder(&own)?;
        // Attested by path: the sidecar and the command line of each pod are files of their own.
        for name in [PROXY, AGENT] {
            fs::copy(folder.join("bin").join(name), own.join(name))
                .with_context(|| format!("cannot copy `{name}`"))?;
        }
        if let Some((sidecar, _)) = network.users(pod) {
            chown(&own, Some(sidecar), Some(sidecar)).context("cannot give a pod its folder")?;
        }
        write(&own.join("proxy.yaml"), &proxy_yaml(folder, network, pod))?;
        let workload = folder
            .join("workloads")
            .join(format!("{}.yaml", pod.name()));
        write(&workload, &workload_yaml(folder, network, pod))?;
    }
    write(
        &folder.join("workloads/database.yaml"),
        &database_yaml(network),
    )
}

fn agent_yaml(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "trustDomain: example.org
stateDir: {folder}/agent/state
workloadApi: {{socket: 'unix://{folder}/agent/public/agent.sock'}}
admin: {{socket: 'unix://{folder}/agent/admin/admin.sock'}}
health: {{listen: '127.0.0.1:0'}}
workloads: {{directory: {folder}/workloads}}
attestors: {{unix: {{}}, posture: {{}}}}
reattest: {{every: 100ms}}
"
    )
}

fn proxy_yaml(folder: &Path, network: &Network, pod: Pod) -> String {
    let own = pod_folder(folder, pod);
    let (own, address, name) = (own.display(), network.address(pod), pod.name());
    let folder = folder.display();
    let traffic = match network {
        Network::Namespaces(_) => {
            "inbound: {listen: '0.0.0.0:15006', forward: original-destination}
outbound: {listen: '127.0.0.1:15001'}
harden: {insecureAllowDumpable: false}
admin: {listen: '127.0.0.1:15000'}"
                .to_owned()
        }
        // An agent that is not root can look only into processes that allow it.
        Network::Loopback { .. } => format!(
            "inbound: {{listen: '{address}:{SERVICE}', forward: '{app}'}}
outbound:
  listeners:
    - {{listen: '{address}:{TO_WEB}', to: production/web, port: http}}
    - {{listen: '{address}:{TO_DATABASE}', to: production/database, port: postgres}}
harden: {{insecureAllowDumpable: true}}
admin: {{listen: '{address}:15000'}}",
            app = network.app(pod),
        ),
    };
    format!(
        "identity: {{workloadApi: 'unix://{folder}/agent/public/agent.sock'}}
workload: production/{name}
policies: {{directory: {folder}/policies, namespace: production}}
workloads: {{directory: {folder}/workloads}}
{traffic}
metrics: {{listen: '{address}:15020'}}
accessLog: {{format: json, path: {own}/access.log}}
drain: 1s
"
    )
}

/// A pod's Workload: who may have its identity, and which programs belong into the pod. The second
/// document gives the same identity to the command line with which a person looks in.
fn workload_yaml(folder: &Path, network: &Network, pod: Pod) -> String {
    let own = pod_folder(folder, pod);
    let (own, name, bin) = (own.display(), pod.name(), folder.join("bin"));
    let uid = network
        .users(pod)
        .map_or_else(rustix::process::geteuid, |(sidecar, _)| {
            rustix::process::Uid::from_raw(sidecar)
        });
    let uid = uid.as_raw();
    let network_wall = match network {
        Network::Namespaces(_) => ", posture:ns:net:own",
        Network::Loopback { .. } => "",
    };
    let document = |document: &str, program: &str| {
        format!(
            "apiVersion: postern.dev/v1
kind: Workload
metadata: {{name: {document}, namespace: production, labels: {{app: {name}}}}}
spec:
  spiffeID: spiffe://example.org/workload/{name}
  selectors: ['unix:uid:{uid}', 'unix:path:{own}/{program}', posture:no-new-privs{network_wall}]
  svidTTL: {SVID_TTL}
  onDrift: revoke
  baseline:
    executables: ['{own}/{PROXY}', '{own}/{AGENT}', '{bin}/{DEMO}']
",
            bin = bin.display()
        )
    };
    format!(
        "{}  addresses: ['{}']
  ports: [{{name: http, port: {SERVICE}, protocol: TCP}}]
---
{}",
        document(name, PROXY),
        network.address(pod),
        document(&format!("{name}-shell"), AGENT)
    )
}

/// A Workload that exists, serves, and that nobody has been allowed to reach.
fn database_yaml(network: &Network) -> String {
    format!(
        "apiVersion: postern.dev/v1
kind: Workload
metadata: {{name: database, namespace: production, labels: {{app: database}}}}
spec:
  spiffeID: spiffe://example.org/workload/database
  addresses: ['{}']
  ports: [{{name: postgres, port: {DATABASE}, protocol: TCP}}]
",
        network.nobody()
    )
}

fn pod_folder(folder: &Path, pod: Pod) -> PathBuf {
    folder.join(pod.name())
}

fn log_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    fs::create_dir(path).with_context(|| format!("cannot make `{}`", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o755))?;
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

/// The sidecar's listeners of the frontend where nothing is redirected.
pub(crate) const TO_WEB: u16 = 18080;
pub(crate) const TO_DATABASE: u16 = 15432;

/// The port of the database that nobody may reach.
pub(crate) const DATABASE: u16 = 5432;

/// Short enough that a rotation is seen within seconds.
const SVID_TTL: &str = "8s";

/// What a sidecar says when it has taken policies.
const IN_FORCE: &str = "policies in force";

const LOG_TAIL: usize = 25;

const SEED_POLICIES: [(&str, &str); 4] = [
    (
        "deny-all-default.yaml",
        include_str!("../../../policies/examples/seed/deny-all-default.yaml"),
    ),
    (
        "allow-specific-app.yaml",
        include_str!("../../../policies/examples/seed/allow-specific-app.yaml"),
    ),
    (
        "peer-authentication.yaml",
        include_str!("../../../policies/examples/seed/peer-authentication.yaml"),
    ),
    (
        "frontend-policy.yaml",
        include_str!("../../../policies/examples/seed/frontend-policy.yaml"),
    ),
];

const DEMO_POLICIES: [(&str, &str); 3] = [
    (
        "frontend-egress.yaml",
        include_str!("../../../policies/examples/demo/frontend-egress.yaml"),
    ),
    (
        "frontend-ingress.yaml",
        include_str!("../../../policies/examples/demo/frontend-ingress.yaml"),
    ),
    (
        "web-authorization.yaml",
        include_str!("../../../policies/examples/demo/web-authorization.yaml"),
    ),
];
