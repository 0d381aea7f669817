//! The options of `inject`: what the sidecar is made of.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use ipnet::IpNet;

use super::{
    annotations::{direct_network, open_port},
    sidecar::SOCKET_FOLDER,
};
use crate::netns::PortRange;

/// What is to be injected, and into what.
#[derive(Debug, Args)]
pub struct Inject {
    /// A manifest or Compose file; `-` for standard input. Repeatable
    #[arg(
        short,
        long = "filename",
        value_name = "FILE",
        required_unless_present = "webhook"
    )]
    pub(super) filename: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) settings: Settings,
    #[command(flatten)]
    pub(super) webhook: Webhook,
}

/// How to serve as a mutating admission webhook.
#[derive(Debug, Args)]
pub(super) struct Webhook {
    /// Serves as a mutating admission webhook instead of reading files
    #[arg(long, conflicts_with = "filename", requires_all = ["tls_cert", "tls_key"])]
    pub(super) webhook: bool,
    /// Where the webhook listens
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "0.0.0.0:9443",
        requires = "webhook"
    )]
    pub(super) listen: std::net::SocketAddr,
    /// Its certificate and those above it, in PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "webhook")]
    pub(super) tls_cert: Option<PathBuf>,
    /// The key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "webhook")]
    pub(super) tls_key: Option<PathBuf>,
    /// Reviews only for callers with a certificate for clients of these authorities, in PEM; read again
    /// when it changes. Health is told to everybody
    #[arg(long, value_name = "FILE", requires = "webhook")]
    pub(super) client_ca: Option<PathBuf>,
}

/// The sidecar, as far as no annotation says otherwise.
#[derive(Debug, Args)]
pub(super) struct Settings {
    /// The sidecar's image
    #[arg(long, value_name = "IMAGE", default_value = concat!("postern/proxy:", env!("CARGO_PKG_VERSION")), value_parser = word)]
    proxy_image: String,
    /// The image of the init container that makes the rules
    #[arg(long, value_name = "IMAGE", default_value = concat!("postern/netns:", env!("CARGO_PKG_VERSION")), value_parser = word)]
    netns_image: String,
    /// The user as which the sidecar runs, and no app
    #[arg(long, value_name = "UID", default_value_t = 1337, value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)))]
    proxy_uid: u32,
    /// The ConfigMap with `proxy.yaml`, in the pod's namespace
    #[arg(long, value_name = "NAME", default_value = "postern-proxy", value_parser = word)]
    config_map: String,
    /// `proxy.yaml` for services of Compose, from where the Compose file lies
    #[arg(long, value_name = "FILE", default_value = "./proxy.yaml", value_parser = word)]
    proxy_config: String,
    /// The agent's socket on the node; its folder is mounted
    #[arg(long, value_name = "PATH", default_value = "/run/postern/public/agent.sock", value_parser = absolute)]
    agent_socket: String,
    /// A CSI driver that mounts the folder of the agent's socket, such as csi.spiffe.io
    #[arg(long, value_name = "NAME", value_parser = word)]
    csi_driver: Option<String>,
    /// Ports of every pod that are reached without the proxy
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = open_port)]
    exclude_inbound_ports: Vec<PortRange>,
    /// Ports elsewhere that are reached without the proxy
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_outbound_ports: Vec<PortRange>,
    /// Networks that are reached without the proxy
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', value_parser = direct_network)]
    exclude_outbound_cidrs: Vec<IpNet>,
    /// Who may be asked for names [default: those of the pod's /etc/resolv.conf]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    resolver: Vec<IpAddr>,
    /// Warns of containers that can undo the redirection instead of refusing them
    #[arg(long)]
    insecure_allow_undo: bool,
}

/// What the options mean.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) proxy_image: String,
    pub(super) netns_image: String,
    pub(super) proxy_uid: u32,
    pub(super) config_map: String,
    pub(super) proxy_config: String,
    pub(super) agent_socket: AgentSocket,
    pub(super) open_ports: Vec<PortRange>,
    pub(super) direct_ports: Vec<PortRange>,
    pub(super) direct_networks: Vec<IpNet>,
    pub(super) resolvers: Vec<IpAddr>,
    pub(super) allow_undo: bool,
}

/// How the folder of the agent's socket comes into a pod.
#[derive(Debug, Clone)]
pub(super) enum AgentSocket {
    HostPath { folder: String, name: String },
    Csi { driver: String, name: String },
}

impl Settings {
    pub(super) fn options(&self) -> Options {
        let (folder, name) = self.agent_socket.rsplit_once('/').unwrap_or_default();
        let name = name.to_owned();
        let agent_socket = match &self.csi_driver {
            Some(driver) => AgentSocket::Csi {
                driver: driver.clone(),
                name,
            },
            None => AgentSocket::HostPath {
                folder: folder.to_owned(),
                name,
            },
        };
        Options {
            proxy_image: self.proxy_image.clone(),
            netns_image: self.netns_image.clone(),
            proxy_uid: self.proxy_uid,
            config_map: self.config_map.clone(),
            proxy_config: self.proxy_config.clone(),
            agent_socket,
            open_ports: self.exclude_inbound_ports.clone(),
            direct_ports: self.exclude_outbound_ports.clone(),
            direct_networks: self.exclude_outbound_cidrs.clone(),
            resolvers: self.resolver.clone(),
            allow_undo: self.insecure_allow_undo,
        }
    }
}

impl Options {
    /// The socket, as the proxy in its container sees it.
    pub(super) fn endpoint(&self) -> String {
        let (AgentSocket::HostPath { name, .. } | AgentSocket::Csi { name, .. }) =
            &self.agent_socket;
        format!("unix://{SOCKET_FOLDER}/{name}")
    }

    /// The folder of the socket on this machine.
    pub(super) fn socket_folder(&self) -> Option<&str> {
        match &self.agent_socket {
            AgentSocket::HostPath { folder, .. } => Some(folder),
            AgentSocket::Csi { .. } => None,
        }
    }
}

/// A name without blanks or control characters.
fn word(text: &str) -> Result<String, String> {
    match text.is_empty() || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        true => Err("it must be one word".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// `/folder/name`, and the folder not the root.
fn absolute(text: &str) -> Result<String, String> {
    let (folder, name) = text.rsplit_once('/').unwrap_or_default();
    if !folder.starts_with('/') || name.is_empty() || text.split('/').any(|part| part == "..") {
        return Err("write the path of a socket in a folder of its own, such as `/run/postern/public/agent.sock`".to_owned());
    }
    word(text)
}
