//! The two sockets: our own, or those that the service manager holds for us.
//!
//! Inherited ones outlive us, so that they are there before we are and while we are started again.

use std::{
    io,
    os::unix::net::UnixListener as StdUnixListener,
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

use crate::{attest::inode_of, caller, config::Config};

/// Where workloads and administrators find the agent.
#[derive(Debug)]
pub(crate) struct Sockets {
    workload_api: Socket,
    admin: Socket,
}

#[derive(Debug)]
struct Socket {
    path: PathBuf,
    listener: StdUnixListener,
    /// The inode of what we made ourselves, and remove at the end.
    own: Option<Option<u64>>,
}

impl Sockets {
    /// Takes what was inherited, and makes the rest.
    ///
    /// # Errors
    /// What is in the way, what was inherited and does not fit, and what to do about it.
    pub(crate) fn open(
        config: &Config,
        mut inherited: postern_supervisor::Sockets,
    ) -> anyhow::Result<Self> {
        let api = inherited.unix(WORKLOAD_API, &config.workload_api, "workloadApi.socket");
        let admin = inherited.unix(ADMIN, &config.admin, "admin.socket");
        inherited.finish()?;
        Ok(Self {
            workload_api: Socket::open(&config.workload_api, api, 0o777)?,
            admin: Socket::open(&config.admin, admin, 0o600)?,
        })
    }

    /// To be served from now on: what has waited since before is closed.
    ///
    /// # Errors
    /// The kernel's own.
    pub(crate) fn workload_api(&self) -> io::Result<UnixListener> {
        let socket = &self.workload_api;
        if socket.own.is_none() {
            let connections = caller::turn_away_early(&socket.listener)?;
            if connections > 0 {
                tracing::info!(
                    connections,
                    "connections from before the agent served were closed; clients connect again"
                );
            }
        }
        UnixListener::from_std(socket.listener.try_clone()?)
    }

    /// To be served from now on.
    ///
    /// # Errors
    /// The kernel's own.
    pub(crate) fn admin(&self) -> io::Result<UnixListener> {
        UnixListener::from_std(self.admin.listener.try_clone()?)
    }

    /// Removes what we made. In its place there may be somebody else's by now.
    pub(crate) fn remove(self) {
        for socket in [self.workload_api, self.admin] {
            if let Some(own) = socket.own
                && inode_of(&socket.path) == own
            {
                let _ = std::fs::remove_file(&socket.path);
            }
        }
    }
}

impl Socket {
    fn open(path: &Path, inherited: Option<StdUnixListener>, mode: u32) -> anyhow::Result<Self> {
        let (listener, own) = match inherited {
            Some(listener) => {
                caller::check_inherited(path, mode)?;
                (listener, None)
            }
            None => (caller::bind(path, mode)?, Some(inode_of(path))),
        };
        Ok(Self {
            path: path.to_owned(),
            listener,
            own,
        })
    }
}

/// Names of inherited sockets, as `FileDescriptorName=` gives them.
const WORKLOAD_API: &str = "workload-api";
const ADMIN: &str = "admin";
