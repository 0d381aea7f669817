//! Where the pods live: in network namespaces of their own as root, else on loopback addresses.

use std::{
    env,
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream as StdTcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context as _, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;

use crate::client::PATIENCE;

/// The two pods of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pod {
    Frontend,
    Web,
}

impl Pod {
    pub(crate) const ALL: [Self; 2] = [Self::Frontend, Self::Web];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Web => "web",
        }
    }

    /// The last part of the pod's address.
    fn host(self) -> u8 {
        match self {
            Self::Frontend => 2,
            Self::Web => 3,
        }
    }
}

/// How the pods are kept apart.
#[derive(Debug)]
pub(crate) enum Network {
    /// Addresses of the loopback network, this process's number in the middle so that two demos
    /// do not meet. The reason tells a person why there are no namespaces.
    Loopback { net: [u8; 2], why: &'static str },
    /// A namespace for each pod and one that joins them, removed on drop.
    Namespaces(Namespaces),
}

impl Network {
    /// Namespaces where they can be had, loopback elsewhere. `proxy` is the program that redirects
    /// the traffic of a namespace to itself.
    pub(crate) fn choose(force_loopback: bool, proxy: &Path) -> anyhow::Result<Self> {
        let [.., high, low] = std::process::id().to_be_bytes();
        let loopback = |why| Self::Loopback {
            net: [high | 0x80, low],
            why,
        };
        if force_loopback {
            return Ok(loopback("--loopback was given"));
        }
        if !rustix::process::geteuid().is_root() {
            return Ok(loopback("only root can make network namespaces"));
        }
        if !["ip", "nft"].iter().all(|tool| is_installed(tool)) {
            return Ok(loopback(
                "`ip` and `nft` are not installed: apt-get install iproute2 nftables",
            ));
        }
        if ip(&["netns", "list"]).is_err() {
            return Ok(loopback("this machine allows no network namespaces"));
        }
        Namespaces::create(proxy).map(Self::Namespaces)
    }

    /// The address of a pod.
    pub(crate) fn address(&self, pod: Pod) -> IpAddr {
        match self {
            Self::Loopback { net: [a, b], .. } => Ipv4Addr::new(127, *a, *b, pod.host()).into(),
            Self::Namespaces(_) => Ipv4Addr::new(10, 77, 0, pod.host()).into(),
        }
    }

    /// Where a pod's app listens. On loopback it needs an address of its own.
    pub(crate) fn app(&self, pod: Pod) -> SocketAddr {
        match self {
            Self::Loopback { net: [a, b], .. } => {
                (Ipv4Addr::new(127, *a, *b, pod.host() + 10), SERVICE).into()
            }
            Self::Namespaces(_) => (self.address(pod), SERVICE).into(),
        }
    }

    /// An address of the mesh's network at which no pod is.
    pub(crate) fn nobody(&self) -> IpAddr {
        match self {
            Self::Loopback { net: [a, b], .. } => Ipv4Addr::new(127, *a, *b, 9).into(),
            Self::Namespaces(_) => Ipv4Addr::new(10, 77, 0, 9).into(),
        }
    }

    /// The users as which a pod's sidecar and app run, where we may choose.
    pub(crate) fn users(&self, pod: Pod) -> Option<(u32, u32)> {
        let host = u32::from(pod.host());
        matches!(self, Self::Namespaces(_)).then_some((PROXY_UIDS + host, APP_UIDS + host))
    }

    /// Opens a connection as the app of `pod` does: to the address of the service where traffic
    /// is redirected, to the sidecar's listener where it is not.
    pub(crate) async fn connect_from(
        &self,
        pod: Pod,
        to: SocketAddr,
        listener: u16,
    ) -> anyhow::Result<TcpStream> {
        match self {
            Self::Loopback { .. } => connect((self.address(pod), listener).into()),
            Self::Namespaces(namespaces) => {
                inside(namespaces.path(pod.name()), move || connect(to))?
            }
        }
        .and_then(hand_over)
    }

    /// Opens a connection to a pod from a place that belongs to no pod.
    pub(crate) async fn connect_from_outside(&self, to: Pod) -> anyhow::Result<TcpStream> {
        let to = SocketAddr::from((self.address(to), SERVICE));
        match self {
            Self::Loopback { .. } => connect(to),
            Self::Namespaces(namespaces) => inside(namespaces.path(LAN), move || connect(to))?,
        }
        .and_then(hand_over)
    }

    /// Starts a process in the network of a pod.
    pub(crate) fn spawn(&self, pod: Pod, mut command: Command) -> anyhow::Result<Child> {
        match self {
            Self::Loopback { .. } => command.spawn().context("cannot start a pod"),
            Self::Namespaces(namespaces) => {
                inside(namespaces.path(pod.name()), move || command.spawn())?
                    .context("cannot start a pod")
            }
        }
    }
}

/// Network namespaces on a bridge of their own; nothing of the machine's network is touched.
#[derive(Debug)]
pub(crate) struct Namespaces {
    prefix: String,
}

impl Namespaces {
    fn create(proxy: &Path) -> anyhow::Result<Self> {
        // From here on, drop removes what was made, also when a later step fails.
        let namespaces = Self {
            prefix: format!("postern-demo-{}", std::process::id()),
        };
        let lan = namespaces.name(LAN);
        ip(&["netns", "add", &lan])?;
        ip(&["-n", &lan, "link", "set", "lo", "up"])?;
        ip(&["-n", &lan, "link", "add", "bridge0", "type", "bridge"])?;
        ip(&["-n", &lan, "link", "set", "bridge0", "up"])?;
        ip(&[
            "-n",
            &lan,
            "address",
            "add",
            "10.77.0.1/24",
            "dev",
            "bridge0",
        ])?;
        for pod in Pod::ALL {
            namespaces.add(pod, proxy)?;
        }
        Ok(namespaces)
    }

    /// A pod's namespace, its cable to the bridge, and its rules.
    fn add(&self, pod: Pod, proxy: &Path) -> anyhow::Result<()> {
        let (lan, name) = (self.name(LAN), self.name(pod.name()));
        let address = format!("10.77.0.{}/24", pod.host());
        ip(&["netns", "add", &name])?;
        ip(&[
            "-n",
            &lan,
            "link",
            "add",
            pod.name(),
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &name,
        ])?;
        ip(&[
            "-n",
            &lan,
            "link",
            "set",
            pod.name(),
            "master",
            "bridge0",
            "up",
        ])?;
        ip(&["-n", &name, "address", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        let uid = (PROXY_UIDS + u32::from(pod.host())).to_string();
        let mut command = Command::new(proxy);
        command.args(["netns", "setup", "--no-resolver", "--proxy-uid", &uid]);
        inside(self.path(pod.name()), move || run(&mut command))?
    }

    fn name(&self, part: &str) -> String {
        format!("{}-{part}", self.prefix)
    }

    fn path(&self, part: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name(part))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for part in [LAN, Pod::Frontend.name(), Pod::Web.name()] {
            if self.path(part).exists()
                && let Err(error) = ip(&["netns", "delete", &self.name(part)])
            {
                anstream::eprintln!("postern-demo: {error:#}");
            }
        }
    }
}

/// Does `work` in a network namespace, on a thread of its own: the namespace is the thread's.
/// What `work` opens or starts stays in that namespace.
fn inside<T: Send + 'static>(
    namespace: PathBuf,
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    std::thread::spawn(move || -> anyhow::Result<T> {
        let file = File::open(&namespace)
            .with_context(|| format!("cannot open `{}`", namespace.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter `{}`", namespace.display()))?;
        Ok(work())
    })
    .join()
    .map_err(|_| anyhow!("work in a network namespace did not end well"))?
}

fn connect(to: SocketAddr) -> anyhow::Result<StdTcpStream> {
    StdTcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("cannot connect to {to}"))
}

/// A connection keeps the namespace in which it was opened, wherever it is used.
fn hand_over(stream: StdTcpStream) -> anyhow::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream).context("cannot hand over a connection")
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new("ip").args(arguments))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn is_installed(tool: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(tool).is_file()))
}

/// The port that both services serve.
pub(crate) const SERVICE: u16 = 8080;

const LAN: &str = "lan";
const PROXY_UIDS: u32 = 64_000;
const APP_UIDS: u32 = 64_100;
