//! The sockets of a pod: who waits, and who is connected to whom.
//!
//! From the tables of the network namespace, and by the descriptors of the pod's processes, which
//! tell whose a socket is. A look sees what is there at that moment.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use postern_policies::decide::Protocol;

use crate::{
    attest::{
        read_text,
        reading::{Lack, known},
    },
    caller::ProcFolder,
};

/// A socket that waits or is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) protocol: Protocol,
    pub(crate) local: SocketAddr,
    /// Of one that waits, all zero.
    pub(crate) remote: SocketAddr,
    pub(crate) connection: Connection,
    pub(crate) inode: u64,
}

/// How a socket is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    /// It waits for others.
    Waits,
    /// The pod has connected to somebody.
    Out,
    /// Somebody has connected to the pod.
    In,
}

impl Socket {
    pub(crate) fn transport(&self) -> &'static str {
        match self.protocol {
            Protocol::Udp => "udp",
            _ => "tcp",
        }
    }
}

impl fmt::Display for Socket {
    /// As Falco writes the name of a descriptor.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.connection {
            Connection::Waits => write!(f, "{}", self.local),
            Connection::Out => write!(f, "{}->{}", self.local, self.remote),
            Connection::In => write!(f, "{}->{}", self.remote, self.local),
        }
    }
}

/// What a process has open.
#[derive(Debug, Default)]
pub(crate) struct Open {
    /// The inodes of its sockets.
    pub(crate) sockets: Vec<u64>,
    /// The files that it may write to.
    pub(crate) written: Vec<String>,
}

impl Open {
    /// That of the process of this folder; what it has closed by now is not there.
    ///
    /// # Errors
    /// The agent lacks something to look.
    pub(crate) fn of(folder: &ProcFolder, with_files: bool) -> Result<Self, Lack> {
        let mut open = Self::default();
        let Some(all) = known(fs::read_dir(folder.join("fd")))? else {
            return Ok(open);
        };
        for (number, entry) in all.enumerate() {
            if number >= MAX_DESCRIPTORS {
                return Err(Lack::of("all of more than 65,536 descriptors"));
            }
            let Some(entry) = known(entry)? else {
                continue;
            };
            let Some(target) = known(fs::read_link(entry.path()))? else {
                continue;
            };
            let Some(target) = target.to_str() else {
                continue;
            };
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'));
            if let Some(inode) = inode.and_then(|inode| inode.parse().ok()) {
                open.sockets.push(inode);
            } else if with_files && is_file(target) && is_for_writing(folder, &entry.file_name())? {
                open.written.push(target.to_owned());
            }
        }
        Ok(open)
    }
}

/// Devices are no files that a baseline means.
fn is_file(target: &str) -> bool {
    target.starts_with('/')
        && !target.starts_with("/dev/")
        && !target.starts_with("/proc/")
        && !target.starts_with("/memfd:")
}

fn is_for_writing(folder: &ProcFolder, number: &std::ffi::OsStr) -> Result<bool, Lack> {
    let text = known(read_text(&folder.join("fdinfo").join(number)))?.unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    Ok(flags.is_some_and(|flags| flags & (O_WRONLY | O_RDWR) != 0))
}

/// The sockets of the network namespace that a process lives in.
///
/// # Errors
/// The agent lacks something to look.
pub(crate) fn sockets(folder: &ProcFolder) -> Result<Vec<Socket>, Lack> {
    let mut all = Vec::new();
    for (name, protocol) in TABLES {
        let text = read(&folder.join(name))?;
        all.extend(text.lines().skip(1).filter_map(|line| row(line, protocol)));
    }
    let waiting: HashSet<(u16, bool)> = all
        .iter()
        .filter(|socket| socket.connection == Connection::Waits)
        .map(|socket| (socket.local.port(), socket.protocol == Protocol::Udp))
        .collect();
    for socket in &mut all {
        let port = (socket.local.port(), socket.protocol == Protocol::Udp);
        if socket.connection == Connection::Out && waiting.contains(&port) {
            socket.connection = Connection::In;
        }
    }
    Ok(all)
}

/// Whose each socket is.
pub(crate) fn owners<'a>(open: impl Iterator<Item = (i32, &'a Open)>) -> HashMap<u64, i32> {
    let each = open.flat_map(|(pid, open)| open.sockets.iter().map(move |inode| (*inode, pid)));
    each.collect()
}

/// A row of `/proc/net/tcp` and its kin. Spec: proc_pid_net(5).
fn row(line: &str, protocol: Protocol) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let remote = address(fields.next()?)?;
    let state = fields.next()?;
    let inode = fields.nth(5)?.parse().ok()?;
    let connection = match (protocol, state) {
        (Protocol::Udp, UNCONNECTED) if !EPHEMERAL.contains(&local.port()) => Connection::Waits,
        (Protocol::Udp, ESTABLISHED) => Connection::Out,
        (Protocol::Udp, _) => return None,
        (_, LISTEN) => Connection::Waits,
        // One that is being made tells whom it goes to as well.
        (_, ESTABLISHED | SYN_SENT) => Connection::Out,
        _ => return None,
    };
    Some(Socket {
        protocol,
        local,
        remote,
        connection,
        inode,
    })
}

/// `0100007F:1F90`: words of the machine in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let text = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(text, 16).ok()?.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// A table, as far as any pod needs it. Without IPv6 there are two tables fewer.
fn read(path: &Path) -> Result<String, Lack> {
    let mut text = String::new();
    let Some(file) = known(fs::File::open(path))? else {
        return Ok(text);
    };
    let read = known(file.take(MAX_TABLE_BYTES).read_to_string(&mut text))?;
    match read.and_then(|bytes| u64::try_from(bytes).ok()) {
        // Who has more hides behind them.
        Some(MAX_TABLE_BYTES) => Err(Lack::of("all of a table of more than 8 MiB of sockets")),
        _ => Ok(text),
    }
}

const TABLES: [(&str, Protocol); 4] = [
    ("net/tcp", Protocol::Tcp),
    ("net/tcp6", Protocol::Tcp),
    ("net/udp", Protocol::Udp),
    ("net/udp6", Protocol::Udp),
];

const ESTABLISHED: &str = "01";
const SYN_SENT: &str = "02";
const UNCONNECTED: &str = "07";
const LISTEN: &str = "0A";

/// Ports that the kernel gives to those who name none: who asks a server waits there for the answer.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;

const O_WRONLY: u32 = 0o1;
const O_RDWR: u32 = 0o2;

const MAX_DESCRIPTORS: usize = 65_536;
const MAX_TABLE_BYTES: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use postern_policies::decide::Protocol;

    use super::{Connection, Open, address, owners, row, sockets};
    use crate::caller::ProcFolder;

    #[test]
    fn rows_are_read_as_the_kernel_writes_them() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 77 1";
        let found = row(line, Protocol::Tcp).unwrap();
        assert_eq!(found.to_string(), "127.0.0.1:8080");
        assert_eq!((found.inode, found.connection), (77, Connection::Waits));
        let mapped = "0000000000000000FFFF00000100007F:0050";
        assert_eq!(address(mapped).unwrap().to_string(), "127.0.0.1:80");
        for cut in 0..60 {
            let _ = row(line.get(..cut).unwrap(), Protocol::Tcp);
        }
        assert_eq!(address("0100007F"), None);
        assert_eq!(address("01:0"), None);
    }

    #[test]
    fn the_sockets_of_this_process_are_found_with_their_owner_and_direction() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (accepted, _) = server.accept().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = ProcFolder::own();
        let open = Open::of(&own, false).unwrap();
        let owners = owners(std::iter::once((7, &open)));
        let all = sockets(&own).unwrap();
        let find = |local: std::net::SocketAddr, connection: Connection| {
            let found = all
                .iter()
                .find(|one| one.local == local && one.connection == connection);
            found.and_then(|one| owners.get(&one.inode)).copied()
        };
        assert_eq!(
            find(server.local_addr().unwrap(), Connection::Waits),
            Some(7)
        );
        assert_eq!(find(client.local_addr().unwrap(), Connection::Out), Some(7));
        assert_eq!(
            find(accepted.local_addr().unwrap(), Connection::In),
            Some(7)
        );
        // The kernel has chosen its port: it is no server.
        assert_eq!(find(udp.local_addr().unwrap(), Connection::Waits), None);
    }

    #[test]
    fn files_that_are_open_for_writing_are_seen_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("written");
        let _written = std::fs::File::create(&path).unwrap();
        let other = folder.path().join("read");
        std::fs::write(&other, "a").unwrap();
        let _read = std::fs::File::open(&other).unwrap();
        let open = Open::of(&ProcFolder::own(), true).unwrap();
        let has = |path: &std::path::Path| {
            open.written
                .iter()
                .any(|one| path.ends_with(one.trim_start_matches('/')))
        };
        assert!(has(&path) && !has(&other), "{:?}", open.written);
    }
}
