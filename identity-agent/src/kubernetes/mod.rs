//! What the API server of a cluster tells: pods, their namespaces and accounts, and the policies.
//!
//! `follow` keeps each [`Kind`] by list and watch, over [`Api`]; [`Cache`] is what is known, and makes
//! of it the documents that the [registry](crate::registry) reads like those of a folder: a [`Snapshot`].
//! The first one is made when every kind was listed once, so nobody is ever told half of the policies.
//!
//! Spec: Kubernetes API concepts, "Efficient detection of changes" and "Retrieving large results sets
//! in chunks".

mod api;
mod backoff;
mod cache;
mod follow;
mod kind;
mod lines;
mod object;
mod policy;
mod snapshot;
mod template;

use std::path::PathBuf;

pub use cache::Limits;
pub use follow::{Followed, follow};
pub use kind::Kind;
pub use snapshot::{ClusterObject, Snapshot};
pub use template::Template;

/// How the API server is reached, and what is made of what it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `https://host:port`; without one it is where the cluster says to its pods.
    pub url: Option<String>,
    /// The token, read anew for each request: the cluster replaces it.
    pub token: PathBuf,
    /// The authorities that vouch for its certificate, read anew likewise.
    pub authorities: PathBuf,
    /// The own node: pods of others are given no identity here. Without it, nobody is told apart by
    /// that.
    pub node_name: Option<String>,
    /// The namespace whose Istio policies hold everywhere.
    pub root_namespace: String,
    /// What a process must have to be a pod.
    pub selectors: Vec<Template>,
    /// How much is kept.
    pub limits: Limits,
}

impl Server {
    /// Fills in what the orchestrator says by the environment, which `variable` looks up: the address, as
    /// every pod of a cluster has it, and the node's name by `POSTERN_NODE_NAME`.
    ///
    /// # Errors
    /// Nobody says where the server is.
    pub fn within(mut self, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        if self.node_name.is_none() {
            self.node_name = variable("POSTERN_NODE_NAME").filter(|name| !name.is_empty());
        }
        if self.url.is_none() {
            let host = variable("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty());
            let host = host.ok_or_else(|| {
                anyhow::anyhow!(
                    "this is no pod of a cluster: name its API server in `kubernetes.server`"
                )
            })?;
            let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
            self.url = Some(match host.contains(':') {
                true => format!("https://[{host}]:{port}"),
                false => format!("https://{host}:{port}"),
            });
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
