//! Sockets that the service manager holds: each is asked for by its name and its place, and none is
//! passed over in silence.

use std::{
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
};

use socket2::{Domain, SockAddr, SockRef, Type};

use crate::SupervisorError;

/// What was inherited and has not been asked for yet.
#[derive(Debug, Default)]
pub struct Sockets {
    left: Vec<Socket>,
    /// What was asked for: the name, where, and the key of the configuration that says so.
    asked: Vec<(&'static str, String, String)>,
}

#[derive(Debug)]
struct Socket {
    number: i32,
    name: String,
    at: SockAddr,
    descriptor: OwnedFd,
}

impl Sockets {
    /// # Errors
    /// [`SupervisorError::Kind`] for what does not listen.
    pub(crate) fn of(all: Vec<(i32, String, OwnedFd)>) -> Result<Self, SupervisorError> {
        let all = all.into_iter();
        let looked_at = all.map(|(number, name, descriptor)| look(number, name, descriptor));
        Ok(Self {
            left: looked_at.collect::<Result<_, _>>()?,
            asked: Vec::new(),
        })
    }

    /// Takes the Unix socket of this name that lies at this path; `key` is what says so in the
    /// configuration. None if there is none: the daemon makes its own.
    pub fn unix(&mut self, name: &'static str, path: &Path, key: &str) -> Option<UnixListener> {
        let place = path.display().to_string();
        let found = self.take(name, place, key, |at| at.as_pathname() == Some(path))?;
        Some(UnixListener::from(found.descriptor))
    }

    /// Takes the TCP socket of this name that listens at this address; `key` is what says so in the
    /// configuration.
    pub fn tcp(
        &mut self,
        name: &'static str,
        address: SocketAddr,
        key: &str,
    ) -> Option<TcpListener> {
        let place = address.to_string();
        let found = self.take(name, place, key, |at| at.as_socket() == Some(address))?;
        Some(TcpListener::from(found.descriptor))
    }

    fn take(
        &mut self,
        name: &'static str,
        place: String,
        key: &str,
        is_there: impl Fn(&SockAddr) -> bool,
    ) -> Option<Socket> {
        self.asked.push((name, place, key.to_owned()));
        let mut left = self.left.iter();
        let index = left.position(|socket| socket.name == name && is_there(&socket.at))?;
        let socket = self.left.remove(index);
        // A runtime waits for sockets itself. A listening socket takes that mode.
        let made = SockRef::from(&socket.descriptor).set_nonblocking(true);
        if made.is_err() {
            // One that cannot be used is one that is left.
            self.left.push(socket);
            return None;
        }
        Some(socket)
    }

    /// Everything was asked for that the daemon has a use for: what is left does not fit.
    ///
    /// # Errors
    /// [`SupervisorError`], for the first that is left.
    pub fn finish(self) -> Result<(), SupervisorError> {
        match self.left.into_iter().next() {
            None => Ok(()),
            Some(socket) => Err(unfit(socket, &self.asked)),
        }
    }
}

fn look(number: i32, name: String, descriptor: OwnedFd) -> Result<Socket, SupervisorError> {
    let wrong = |what| SupervisorError::Kind {
        number,
        name: name.clone(),
        what,
    };
    let socket = SockRef::from(&descriptor);
    let Ok(kind) = socket.r#type() else {
        return Err(wrong("no socket"));
    };
    if kind == Type::DGRAM {
        return Err(wrong("a datagram socket"));
    }
    if kind != Type::STREAM {
        return Err(wrong("a socket of another type"));
    }
    if !socket.is_listener()? {
        return Err(wrong("a socket that does not listen"));
    }
    if ![Domain::IPV4, Domain::IPV6, Domain::UNIX].contains(&socket.domain()?) {
        return Err(wrong("a socket of another family"));
    }
    let at = socket.local_addr()?;
    Ok(Socket {
        number,
        name,
        at,
        descriptor,
    })
}

fn unfit(socket: Socket, asked: &[(&'static str, String, String)]) -> SupervisorError {
    let Socket { number, name, .. } = socket;
    let at = match (socket.at.as_socket(), socket.at.as_pathname()) {
        (Some(address), _) => address.to_string(),
        (_, Some(path)) => path.display().to_string(),
        // Abstract, or never bound.
        _ => "no path".to_owned(),
    };
    let same_name: Vec<_> = asked.iter().filter(|(known, ..)| *known == name).collect();
    if same_name.is_empty() {
        return unknown(number, name, asked);
    }
    if same_name.iter().any(|(_, place, _)| *place == at) {
        return SupervisorError::Twice { number, name, at };
    }
    let wanted = same_name
        .iter()
        .map(|(_, place, key)| format!("`{key}` is `{place}`"));
    SupervisorError::Elsewhere {
        number,
        name,
        at,
        wanted: wanted.collect::<Vec<_>>().join(" and "),
    }
}

fn unknown(number: i32, name: String, asked: &[(&'static str, String, String)]) -> SupervisorError {
    let mut known: Vec<&str> = asked.iter().map(|(known, ..)| *known).collect();
    known.sort_unstable();
    known.dedup();
    let plain = |text: &str| text.to_lowercase().replace(['-', '_', '.'], "");
    let meant = known.iter().find(|known| {
        let (known, name) = (plain(known), plain(&name));
        !name.is_empty() && (known.starts_with(&name) || name.contains(&known))
    });
    SupervisorError::Unknown {
        number,
        hint: meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?")),
        known: known
            .iter()
            .map(|known| format!("`{known}`"))
            .collect::<Vec<_>>()
            .join(", "),
        name,
    }
}
