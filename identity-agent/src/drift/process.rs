//! A process as rules see it: every field is read when it is asked for, and once.
//!
//! All of it is read while the process is pinned. An ancestor may have ended and its number been given
//! out again: one that is younger than its child is none.

use std::{
    cell::OnceCell,
    ffi::OsStr,
    fs,
    net::IpAddr,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::Path,
    sync::Arc,
};

use super::{
    image::is_changed,
    sockets::{Connection, Socket},
};
use crate::{
    attest::{
        Attested, Attestors, capabilities,
        cgroup::Groups,
        procfs::{self, Stat, Status},
        read_text,
        reading::read_as,
    },
    caller::{PinnedProcess, ProcFolder},
    rules::{Argument, Class, Event, Field, Value},
};

/// Something that a pinned process did.
#[derive(Debug)]
pub(crate) struct Happened<'a> {
    class: Class,
    process: &'a PinnedProcess,
    attestors: &'a Attestors,
    folder: ProcFolder,
    own: Facts,
    socket: Option<SocketTexts>,
    status: OnceCell<Option<Status>>,
    terminal: OnceCell<Option<Terminal>>,
    ancestors: OnceCell<Vec<Facts>>,
    leader: OnceCell<Option<Facts>>,
    container: OnceCell<Option<String>>,
    attested: OnceCell<Option<Arc<Attested>>>,
    environment: OnceCell<Vec<u8>>,
    variables: OnceCell<Vec<u8>>,
    capabilities: OnceCell<Option<[String; 3]>>,
    cwd: OnceCell<Option<Vec<u8>>>,
    innermost: OnceCell<Option<i64>>,
    is_upper: OnceCell<bool>,
    logged_in: OnceCell<Option<i64>>,
}

/// What is known of a process or of an ancestor.
#[derive(Debug)]
struct Facts {
    pid: i32,
    folder: ProcFolder,
    name: OnceCell<Option<Vec<u8>>>,
    path: OnceCell<Option<Vec<u8>>>,
    arguments: OnceCell<Arguments>,
}

/// What a program was started with.
#[derive(Debug, Default)]
struct Arguments {
    first: Vec<u8>,
    rest: Vec<u8>,
    /// The name of the process and the rest.
    line: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Terminal {
    group: i64,
    session: i64,
    number: i64,
}

#[derive(Debug)]
struct SocketTexts {
    socket: Socket,
    name: String,
}

impl<'a> Happened<'a> {
    pub(crate) fn new(class: Class, process: &'a PinnedProcess, attestors: &'a Attestors) -> Self {
        let folder = ProcFolder::of(process.pid());
        Self {
            class,
            process,
            attestors,
            own: Facts::of(process.pid()),
            folder,
            socket: None,
            status: OnceCell::new(),
            terminal: OnceCell::new(),
            ancestors: OnceCell::new(),
            leader: OnceCell::new(),
            container: OnceCell::new(),
            attested: OnceCell::new(),
            environment: OnceCell::new(),
            variables: OnceCell::new(),
            capabilities: OnceCell::new(),
            cwd: OnceCell::new(),
            innermost: OnceCell::new(),
            is_upper: OnceCell::new(),
            logged_in: OnceCell::new(),
        }
    }

    /// The same, with a socket.
    pub(crate) fn with_socket(mut self, socket: Socket) -> Self {
        let name = socket.to_string();
        self.socket = Some(SocketTexts { socket, name });
        self
    }

    fn status(&self) -> Option<&Status> {
        let read = || read_as(&self.folder.join("status"), procfs::status).ok();
        self.status.get_or_init(read).as_ref()
    }

    fn stat(&self) -> Option<Stat> {
        stat(&self.folder)
    }

    fn terminal(&self) -> Option<Terminal> {
        let read = || terminal(&read_text(&self.folder.join("stat")).ok()?);
        *self.terminal.get_or_init(read)
    }

    fn ancestors(&self) -> &[Facts] {
        self.ancestors.get_or_init(|| {
            let mut all = Vec::new();
            let mut child = self.stat();
            while let Some(stat) = child {
                let parent = Facts::of(stat.parent);
                let found = super::process::stat(&parent.folder);
                let Some(found) = found.filter(|found| found.started <= stat.started) else {
                    break;
                };
                all.push(parent);
                if all.len() >= MAX_ANCESTORS {
                    break;
                }
                child = Some(found);
            }
            all
        })
    }

    fn generation(&self, argument: Argument<'_>) -> Option<&Facts> {
        let number = match argument {
            Argument::Generation(number) => usize::from(number),
            _ => 1,
        };
        match number.checked_sub(1) {
            Some(at) => self.ancestors().get(at),
            None => Some(&self.own),
        }
    }

    fn parent(&self) -> Option<&Facts> {
        self.ancestors().first()
    }

    fn container(&self) -> Option<&str> {
        let read = || {
            let groups = Groups::of(&self.folder).ok()?;
            groups.container().ok()?.map(str::to_owned)
        };
        self.container.get_or_init(read).as_deref()
    }

    /// What a selector of this beginning says of it.
    fn selector(&self, beginning: &str) -> Option<&str> {
        let attest = || self.attestors.attest(self.process).ok();
        let attested = self.attested.get_or_init(attest).as_ref()?;
        let (kind, rest) = beginning.split_once(':')?;
        let mut selectors = attested.selectors.iter();
        selectors.find_map(|one| (one.kind() == kind).then(|| one.value().strip_prefix(rest))?)
    }

    fn image(&self) -> Option<&str> {
        let docker = self.selector("docker:image_id:");
        docker.or_else(|| self.selector("k8s:container-image:"))
    }

    fn is_in_upper_layer(&self) -> bool {
        let look = || {
            let path = Path::new(OsStr::from_bytes(self.own.path()?));
            is_changed(&self.folder, path).ok()
        };
        *self.is_upper.get_or_init(|| look().unwrap_or_default())
    }

    /// The names of what it inherits, may have, and has.
    fn capabilities(&self) -> Option<&[String; 3]> {
        let read = || {
            let [inheritable, permitted, effective, ..] = self.status()?.capabilities;
            Some([inheritable, permitted, effective].map(named))
        };
        self.capabilities.get_or_init(read).as_ref()
    }

    fn environment(&self) -> &[u8] {
        let read = || read_bytes(&self.folder.join("environ"));
        self.environment.get_or_init(read)
    }

    fn variable(&self, name: &str) -> Option<&[u8]> {
        let mut each = self.environment().split(|byte| *byte == 0);
        each.find_map(|one| one.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }

    fn of_process(&self, field: Field, argument: Argument<'_>) -> Option<Value<'_>> {
        let own = &self.own;
        Some(match field {
            Field::ProcName => Value::Text(own.name()?),
            Field::ProcExe => Value::Text(&own.arguments().first),
            Field::ProcExepath => Value::Text(own.path()?),
            Field::ProcCmdline => Value::Text(&own.arguments().line),
            Field::ProcArgs => Value::Text(&own.arguments().rest),
            Field::ProcPid => Value::Number(own.pid.into()),
            Field::ProcPpid => Value::Number(self.stat()?.parent.into()),
            Field::ProcPname => Value::Text(self.parent()?.name()?),
            Field::ProcPexe => Value::Text(&self.parent()?.arguments().first),
            Field::ProcPexepath => Value::Text(self.parent()?.path()?),
            Field::ProcPcmdline => Value::Text(&self.parent()?.arguments().line),
            Field::ProcAname => Value::Text(self.generation(argument)?.name()?),
            Field::ProcAexe => Value::Text(&self.generation(argument)?.arguments().first),
            Field::ProcAexepath => Value::Text(self.generation(argument)?.path()?),
            Field::ProcAcmdline => Value::Text(&self.generation(argument)?.arguments().line),
            Field::ProcApid => Value::Number(self.generation(argument)?.pid.into()),
            Field::ProcCwd => {
                let read = || link(&self.folder.join("cwd"));
                Value::Text(self.cwd.get_or_init(read).as_deref()?)
            }
            Field::ProcTty => Value::Number(self.terminal()?.number),
            Field::ProcSid => Value::Number(self.terminal()?.session),
            Field::ProcPgid => Value::Number(self.terminal()?.group),
            Field::ProcSname => {
                let session = self.terminal()?.session;
                let read = || Some(Facts::of(i32::try_from(session).ok()?));
                Value::Text(self.leader.get_or_init(read).as_ref()?.name()?)
            }
            Field::ProcIsSidLeader => Value::Flag(self.terminal()?.session == i64::from(own.pid)),
            Field::ProcVpid => {
                let read = || innermost(&read_text(&self.folder.join("status")).ok()?);
                Value::Number((*self.innermost.get_or_init(read))?)
            }
            Field::ProcIsExeUpperLayer => Value::Flag(self.is_in_upper_layer()),
            Field::ProcIsExeFromMemfd => Value::Flag(own.path()?.starts_with(b"/memfd:")),
            Field::ProcEnv => match argument {
                Argument::Variable(name) => Value::Text(self.variable(name)?),
                _ => {
                    let read = || {
                        let mut all = self.environment().to_vec();
                        all.iter_mut()
                            .filter(|byte| **byte == 0)
                            .for_each(|byte| *byte = b' ');
                        all
                    };
                    Value::Text(self.variables.get_or_init(read))
                }
            },
            Field::ThreadCapPermitted | Field::ThreadCapEffective | Field::ThreadCapInheritable => {
                let names = self.capabilities()?;
                let [inheritable, permitted, effective] = names;
                let names = match field {
                    Field::ThreadCapPermitted => permitted,
                    Field::ThreadCapEffective => effective,
                    _ => inheritable,
                };
                Value::Text(names.as_bytes())
            }
            _ => return None,
        })
    }

    fn of_user(&self, field: Field) -> Option<Value<'_>> {
        Some(match field {
            Field::UserUid => Value::Number(self.status()?.uids[1].into()),
            Field::GroupGid => Value::Number(self.status()?.gids[1].into()),
            Field::UserName => match self.selector("unix:user:") {
                Some(name) => Value::Text(name.as_bytes()),
                None if self.status()?.uids[1] == 0 => Value::Text(b"root"),
                None => return None,
            },
            Field::GroupName => Value::Text(self.selector("unix:group:")?.as_bytes()),
            Field::UserLoginuid => {
                let read = || {
                    let text = read_text(&self.folder.join("loginuid")).ok()?;
                    // Nobody has logged in: Falco's -1.
                    let number: u32 = text.trim().parse().ok()?;
                    Some(if number == u32::MAX {
                        -1
                    } else {
                        number.into()
                    })
                };
                Value::Number((*self.logged_in.get_or_init(read))?)
            }
            _ => return None,
        })
    }

    fn of_container(&self, field: Field) -> Option<Value<'_>> {
        let id = self.container();
        if field == Field::ContainerPrivileged {
            let [.., bounding, _] = self.status()?.capabilities;
            let is_privileged = PRIVILEGED
                .iter()
                .all(|number| bounding & (1 << number) != 0);
            return Some(Value::Flag(id.is_some() && is_privileged));
        }
        let text = match field {
            Field::ContainerId => id.map_or(HOST, |id| id.get(..SHORT_ID).unwrap_or(id)),
            Field::ContainerFullId => id.unwrap_or(HOST),
            Field::ContainerType => match id {
                None => HOST,
                Some(_) if self.selector("docker:image_id:").is_some() => "docker",
                Some(_) => "cri",
            },
            Field::ContainerImage => self.image()?,
            Field::ContainerImageRepository => image(self.image()?).0,
            Field::ContainerImageTag => image(self.image()?).1?,
            Field::ContainerName => match id {
                None => HOST,
                Some(_) => self.selector("k8s:container-name:")?,
            },
            Field::K8sNsName => self.selector("k8s:ns:")?,
            Field::K8sPodName => self.selector("k8s:pod-name:")?,
            _ => return None,
        };
        Some(Value::Text(text.as_bytes()))
    }

    fn of_socket(&self, field: Field) -> Option<Value<'_>> {
        let SocketTexts { socket, name } = self.socket.as_ref()?;
        let (local, remote) = (socket.local, socket.remote);
        // Who waits is the server, of himself too.
        let (server, client) = match socket.connection {
            Connection::Out => (remote, local),
            Connection::In | Connection::Waits => (local, remote),
        };
        let is_v6 = local.is_ipv6();
        let text = |text: &'static str| Value::Text(text.as_bytes());
        let address = |address: IpAddr| Value::Address(address);
        Some(match field {
            Field::FdName => Value::Text(name.as_bytes()),
            Field::FdType => text(if is_v6 { "ipv6" } else { "ipv4" }),
            Field::FdTypechar => text(if is_v6 { "6" } else { "4" }),
            Field::FdL4proto => text(socket.transport()),
            Field::FdSip => address(server.ip()),
            Field::FdCip => address(client.ip()),
            Field::FdLip => address(local.ip()),
            Field::FdRip => address(remote.ip()),
            Field::FdSport => Value::Number(server.port().into()),
            Field::FdCport => Value::Number(client.port().into()),
            Field::FdLport => Value::Number(local.port().into()),
            Field::FdRport => Value::Number(remote.port().into()),
            Field::FdIsServer => Value::Flag(socket.connection != Connection::Out),
            _ => return None,
        })
    }
}

impl Event for Happened<'_> {
    fn class(&self) -> Class {
        self.class
    }

    fn value(&self, field: Field, argument: Argument<'_>) -> Option<Value<'_>> {
        self.of_process(field, argument)
            .or_else(|| self.of_user(field))
            .or_else(|| self.of_container(field))
            .or_else(|| self.of_socket(field))
    }
}

impl Facts {
    fn of(pid: i32) -> Self {
        Self {
            pid,
            folder: ProcFolder::of(pid),
            name: OnceCell::new(),
            path: OnceCell::new(),
            arguments: OnceCell::new(),
        }
    }

    fn name(&self) -> Option<&[u8]> {
        let read = || {
            let mut name = read_bytes(&self.folder.join("comm"));
            (name.pop() == Some(b'\n')).then_some(name)
        };
        self.name.get_or_init(read).as_deref()
    }

    fn path(&self) -> Option<&[u8]> {
        self.path
            .get_or_init(|| link(&self.folder.join("exe")))
            .as_deref()
    }

    fn arguments(&self) -> &Arguments {
        self.arguments.get_or_init(|| {
            let all = read_bytes(&self.folder.join("cmdline"));
            let all = all.strip_suffix(b"\0").unwrap_or(&all);
            let mut each = all.split(|byte| *byte == 0);
            let first = each.next().unwrap_or_default().to_vec();
            let rest = each.collect::<Vec<_>>().join(&b' ');
            let mut line = self.name().unwrap_or_default().to_vec();
            if !rest.is_empty() {
                line.push(b' ');
                line.extend(&rest);
            }
            Arguments { first, rest, line }
        })
    }
}

fn stat(folder: &ProcFolder) -> Option<Stat> {
    read_as(&folder.join("stat"), procfs::stat).ok()
}

/// Group, session and terminal from `stat`. Spec: proc_pid_stat(5).
fn terminal(text: &str) -> Option<Terminal> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut numbers = fields
        .split_ascii_whitespace()
        .skip(2)
        .map(|one| one.parse().ok());
    Some(Terminal {
        group: numbers.next()??,
        session: numbers.next()??,
        number: numbers.next()??,
    })
}

/// The number of a process in its own PID namespace, from `status`.
fn innermost(status: &str) -> Option<i64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().last()?.parse().ok()
}

/// Name and tag of an image, `registry:5000/name:tag@digest`.
fn image(image: &str) -> (&str, Option<&str>) {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    }
}

/// A set of capabilities, as Falco writes it.
fn named(set: u64) -> String {
    let names = capabilities::numbers(set).filter_map(capabilities::name);
    let names = names.map(|name| format!("CAP_{name}"));
    names.collect::<Vec<_>>().join(" ")
}

fn link(path: &Path) -> Option<Vec<u8>> {
    let target = fs::read_link(path).ok()?;
    Some(target.into_os_string().into_vec())
}

/// What a process wrote of itself, no more than rules need.
fn read_bytes(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let opened = fs::File::open(path);
    // What cannot be read is not there.
    let _ = opened.and_then(|file| {
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_TEXT_BYTES), &mut bytes)
    });
    bytes
}

/// Falco's word for what is in no container.
const HOST: &str = "host";
const SHORT_ID: usize = 12;

/// `SYS_MODULE`, `SYS_RAWIO` and `SYS_ADMIN`: engines leave all of these to privileged containers alone.
const PRIVILEGED: [u32; 3] = [16, 17, 21];

const MAX_ANCESTORS: usize = 32;
const MAX_TEXT_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::{image, innermost, terminal};

    #[test]
    fn texts_of_the_kernel_are_read() {
        let read = terminal("7 (a) b) S 1 2 3 34816 5").unwrap();
        assert_eq!((read.group, read.session, read.number), (2, 3, 34816));
        assert!(terminal("7 (a) S 1").is_none());
        assert_eq!(innermost("Name:\ta\nNSpid:\t90\t7\n"), Some(7));
    }

    #[test]
    fn an_image_has_a_name_and_perhaps_a_tag() {
        assert_eq!(image("r:5000/a/b:1@sha256:ab"), ("r:5000/a/b", Some("1")));
        assert_eq!(image("r:5000/a"), ("r:5000/a", None));
        assert_eq!(image("nginx"), ("nginx", None));
    }
}
