//! The fields of Falco's language: which of them are filled here, for which events, and why others
//! are not.

use super::event::Class;

/// What kind of value a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    Flag,
    /// An IP address; it may be compared with a network too.
    Address,
}

/// May a field have something in square brackets?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    /// A generation of ancestors, from 1 on; without one any ancestor is meant.
    Generation,
    /// The name of a variable.
    Variable,
    /// Anything: nobody fills it here.
    Anything,
}

/// A field that is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the field of Falco of this name")]
pub enum Field {
    EvtType,
    EvtDir,
    EvtFailed,
    EvtNum,
    EvtRes,
    EvtRawres,
    ProcName,
    ProcExe,
    ProcExepath,
    ProcCmdline,
    ProcArgs,
    ProcPid,
    ProcPpid,
    ProcPname,
    ProcPexe,
    ProcPexepath,
    ProcPcmdline,
    ProcAname,
    ProcAexe,
    ProcAexepath,
    ProcAcmdline,
    ProcApid,
    ProcCwd,
    ProcTty,
    ProcSid,
    ProcSname,
    ProcPgid,
    ProcVpid,
    ProcIsSidLeader,
    ProcIsVpgidLeader,
    ProcIsExeUpperLayer,
    ProcIsExeFromMemfd,
    ProcEnv,
    ThreadCapPermitted,
    ThreadCapEffective,
    ThreadCapInheritable,
    UserUid,
    UserName,
    UserLoginuid,
    GroupGid,
    GroupName,
    ContainerId,
    ContainerFullId,
    ContainerType,
    ContainerPrivileged,
    ContainerImage,
    ContainerImageRepository,
    ContainerImageTag,
    ContainerName,
    K8sNsName,
    K8sPodName,
    FdName,
    FdType,
    FdTypechar,
    FdSockfamily,
    FdL4proto,
    /// The address of either end.
    FdIp,
    FdSip,
    FdCip,
    FdLip,
    FdRip,
    /// The port of either end.
    FdPort,
    FdSport,
    FdCport,
    FdLport,
    FdRport,
    FdIsServer,
}

/// Where a field comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Every event has it.
    Every(Field),
    /// Events of sockets have it; others have no such thing.
    Socket(Field),
    /// It is filled for the events of files alone, which nobody tells; others have no such thing.
    File,
    /// Nobody fills it.
    Nobody(&'static str),
}

/// A field that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) takes: Takes,
    pub(super) source: Source,
}

/// What an event of a class has of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// A value, or `<NA>` where this process has none.
    By(Field),
    /// Never a value: no test of it holds.
    Never,
    /// One that is not known here.
    Unknown,
}

impl Known {
    /// What an event of this class has of it.
    pub(super) fn on(self, class: Class) -> Filled {
        match self.source {
            // Who it was before is not told.
            Source::Every(
                Field::UserUid | Field::UserName | Field::GroupGid | Field::GroupName,
            ) if class == Class::Credentials => Filled::Unknown,
            Source::Every(field) => Filled::By(field),
            Source::Socket(field) if class.is_of_socket() => Filled::By(field),
            Source::Socket(_) | Source::File => Filled::Never,
            Source::Nobody(_) => Filled::Unknown,
        }
    }
}

/// The field of this name, if it is one.
pub(super) fn known(name: &str) -> Option<Known> {
    if let Some(found) = FIELDS.iter().find(|known| known.name == name) {
        return Some(*found);
    }
    let (prefix, why) = PREFIXES
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix))?;
    Some(Known {
        name: prefix,
        kind: Kind::Text,
        takes: Takes::Anything,
        source: Source::Nobody(why),
    })
}

/// The names of all fields.
pub(super) fn names() -> Vec<&'static str> {
    FIELDS.iter().map(|known| known.name).collect()
}

const fn every(name: &'static str, kind: Kind, field: Field) -> Known {
    let (takes, source) = (Takes::Nothing, Source::Every(field));
    Known {
        name,
        kind,
        takes,
        source,
    }
}

const fn ancestor(name: &'static str, kind: Kind, field: Field) -> Known {
    let (takes, source) = (Takes::Generation, Source::Every(field));
    Known {
        name,
        kind,
        takes,
        source,
    }
}

const fn socket(name: &'static str, kind: Kind, field: Field) -> Known {
    let (takes, source) = (Takes::Nothing, Source::Socket(field));
    Known {
        name,
        kind,
        takes,
        source,
    }
}

const fn file(name: &'static str, kind: Kind) -> Known {
    let (takes, source) = (Takes::Nothing, Source::File);
    Known {
        name,
        kind,
        takes,
        source,
    }
}

const fn nobody(name: &'static str, kind: Kind, why: &'static str) -> Known {
    let (takes, source) = (Takes::Anything, Source::Nobody(why));
    Known {
        name,
        kind,
        takes,
        source,
    }
}

const CALL: &str = "arguments and results of system calls are not seen";
const HISTORY: &str = "what a process did before is not kept";
const ENGINE: &str = "the container engine is not asked for it";
const RESOLVER: &str = "names of hosts are not resolved";
const DESCRIPTOR: &str = "the descriptor of the call is not seen";

const FIELDS: [Known; 132] = [
    every("evt.type", Kind::Text, Field::EvtType),
    every("evt.dir", Kind::Text, Field::EvtDir),
    every("evt.failed", Kind::Flag, Field::EvtFailed),
    every("proc.name", Kind::Text, Field::ProcName),
    every("proc.exe", Kind::Text, Field::ProcExe),
    every("proc.exepath", Kind::Text, Field::ProcExepath),
    every("proc.cmdline", Kind::Text, Field::ProcCmdline),
    every("proc.args", Kind::Text, Field::ProcArgs),
    every("proc.pid", Kind::Number, Field::ProcPid),
    every("proc.ppid", Kind::Number, Field::ProcPpid),
    every("proc.pname", Kind::Text, Field::ProcPname),
    every("proc.pexe", Kind::Text, Field::ProcPexe),
    every("proc.pexepath", Kind::Text, Field::ProcPexepath),
    every("proc.pcmdline", Kind::Text, Field::ProcPcmdline),
    ancestor("proc.aname", Kind::Text, Field::ProcAname),
    ancestor("proc.aexe", Kind::Text, Field::ProcAexe),
    ancestor("proc.aexepath", Kind::Text, Field::ProcAexepath),
    ancestor("proc.acmdline", Kind::Text, Field::ProcAcmdline),
    ancestor("proc.apid", Kind::Number, Field::ProcApid),
    every("proc.cwd", Kind::Text, Field::ProcCwd),
    every("proc.tty", Kind::Number, Field::ProcTty),
    every("proc.sid", Kind::Number, Field::ProcSid),
    every("proc.sname", Kind::Text, Field::ProcSname),
    every("proc.pgid", Kind::Number, Field::ProcPgid),
    every("proc.vpid", Kind::Number, Field::ProcVpid),
    every("proc.is_sid_leader", Kind::Flag, Field::ProcIsSidLeader),
    every("proc.is_vpgid_leader", Kind::Flag, Field::ProcIsVpgidLeader),
    every(
        "proc.is_exe_upper_layer",
        Kind::Flag,
        Field::ProcIsExeUpperLayer,
    ),
    every(
        "proc.is_exe_from_memfd",
        Kind::Flag,
        Field::ProcIsExeFromMemfd,
    ),
    Known {
        name: "proc.env",
        kind: Kind::Text,
        takes: Takes::Variable,
        source: Source::Every(Field::ProcEnv),
    },
    every("user.uid", Kind::Number, Field::UserUid),
    every("user.name", Kind::Text, Field::UserName),
    every("user.loginuid", Kind::Number, Field::UserLoginuid),
    every("group.gid", Kind::Number, Field::GroupGid),
    every("group.name", Kind::Text, Field::GroupName),
    every("container.id", Kind::Text, Field::ContainerId),
    every("container.full_id", Kind::Text, Field::ContainerFullId),
    every("container.type", Kind::Text, Field::ContainerType),
    every(
        "container.privileged",
        Kind::Flag,
        Field::ContainerPrivileged,
    ),
    every(
        "thread.cap_permitted",
        Kind::Text,
        Field::ThreadCapPermitted,
    ),
    every(
        "thread.cap_effective",
        Kind::Text,
        Field::ThreadCapEffective,
    ),
    every(
        "thread.cap_inheritable",
        Kind::Text,
        Field::ThreadCapInheritable,
    ),
    every("container.image", Kind::Text, Field::ContainerImage),
    every(
        "container.image.repository",
        Kind::Text,
        Field::ContainerImageRepository,
    ),
    every("container.image.tag", Kind::Text, Field::ContainerImageTag),
    every("container.name", Kind::Text, Field::ContainerName),
    every("k8s.ns.name", Kind::Text, Field::K8sNsName),
    every("k8s.pod.name", Kind::Text, Field::K8sPodName),
    socket("fd.name", Kind::Text, Field::FdName),
    socket("fd.type", Kind::Text, Field::FdType),
    socket("fd.typechar", Kind::Text, Field::FdTypechar),
    socket("fd.sockfamily", Kind::Text, Field::FdSockfamily),
    socket("fd.l4proto", Kind::Text, Field::FdL4proto),
    socket("fd.ip", Kind::Address, Field::FdIp),
    socket("fd.sip", Kind::Address, Field::FdSip),
    socket("fd.cip", Kind::Address, Field::FdCip),
    socket("fd.lip", Kind::Address, Field::FdLip),
    socket("fd.rip", Kind::Address, Field::FdRip),
    socket("fd.net", Kind::Address, Field::FdIp),
    socket("fd.snet", Kind::Address, Field::FdSip),
    socket("fd.cnet", Kind::Address, Field::FdCip),
    socket("fd.lnet", Kind::Address, Field::FdLip),
    socket("fd.rnet", Kind::Address, Field::FdRip),
    socket("fd.port", Kind::Number, Field::FdPort),
    socket("fd.sport", Kind::Number, Field::FdSport),
    socket("fd.cport", Kind::Number, Field::FdCport),
    socket("fd.lport", Kind::Number, Field::FdLport),
    socket("fd.rport", Kind::Number, Field::FdRport),
    socket("fd.is_server", Kind::Flag, Field::FdIsServer),
    file("fd.directory", Kind::Text),
    file("fd.filename", Kind::Text),
    file("fs.path.name", Kind::Text),
    file("fs.path.source", Kind::Text),
    file("fs.path.target", Kind::Text),
    file("evt.is_open_read", Kind::Flag),
    file("evt.is_open_write", Kind::Flag),
    file("evt.is_open_exec", Kind::Flag),
    file("evt.is_open_create", Kind::Flag),
    nobody("fd.num", Kind::Number, DESCRIPTOR),
    nobody(
        "fd.nameraw",
        Kind::Text,
        "paths as they were typed are not seen",
    ),
    nobody(
        "fs.path.nameraw",
        Kind::Text,
        "paths as they were typed are not seen",
    ),
    nobody(
        "fs.path.sourceraw",
        Kind::Text,
        "paths as they were typed are not seen",
    ),
    nobody(
        "fs.path.targetraw",
        Kind::Text,
        "paths as they were typed are not seen",
    ),
    nobody(
        "fd.connected",
        Kind::Flag,
        "sockets without a connection are not seen",
    ),
    nobody(
        "fd.name_changed",
        Kind::Flag,
        "sockets without a connection are not seen",
    ),
    nobody("fd.sip.name", Kind::Text, RESOLVER),
    nobody("fd.cip.name", Kind::Text, RESOLVER),
    nobody("fd.lip.name", Kind::Text, RESOLVER),
    nobody("fd.rip.name", Kind::Text, RESOLVER),
    nobody("fd.sproto", Kind::Text, RESOLVER),
    nobody("fd.cproto", Kind::Text, RESOLVER),
    nobody("fd.proto", Kind::Text, RESOLVER),
    nobody("fd.types", Kind::Text, DESCRIPTOR),
    nobody("fd.dev", Kind::Number, DESCRIPTOR),
    nobody("fd.ino", Kind::Number, DESCRIPTOR),
    every("evt.num", Kind::Number, Field::EvtNum),
    nobody(
        "evt.time",
        Kind::Text,
        "an event has its time in the list of deviations",
    ),
    nobody(
        "evt.rawtime",
        Kind::Number,
        "an event has its time in the list of deviations",
    ),
    every("evt.res", Kind::Text, Field::EvtRes),
    every("evt.rawres", Kind::Number, Field::EvtRawres),
    nobody("evt.args", Kind::Text, CALL),
    nobody("evt.info", Kind::Text, CALL),
    nobody("evt.buffer", Kind::Text, CALL),
    nobody("evt.buflen", Kind::Number, CALL),
    nobody("evt.category", Kind::Text, CALL),
    nobody(
        "evt.hostname",
        Kind::Text,
        "the name of the machine is the log's to tell",
    ),
    nobody(
        "syscall.type",
        Kind::Text,
        "calls alone are not told; write `evt.type`",
    ),
    nobody(
        "proc.duration",
        Kind::Number,
        "times of processes are not kept",
    ),
    nobody(
        "proc.ppid.duration",
        Kind::Number,
        "times of processes are not kept",
    ),
    nobody(
        "proc.pid.ts",
        Kind::Number,
        "times of processes are not kept",
    ),
    nobody(
        "proc.is_exe_writable",
        Kind::Flag,
        "who may write to a program is not looked at",
    ),
    nobody(
        "proc.is_exe_lower_layer",
        Kind::Flag,
        "only the upper layer is looked at",
    ),
    nobody(
        "proc.vpgid",
        Kind::Number,
        "groups of processes in containers are not looked at",
    ),
    nobody("proc.loginshellid", Kind::Number, HISTORY),
    nobody("proc.nthreads", Kind::Number, HISTORY),
    nobody("proc.sexepath", Kind::Text, HISTORY),
    nobody("proc.aenv", Kind::Text, HISTORY),
    nobody(
        "user.loginname",
        Kind::Text,
        "names of log-ins are not looked up",
    ),
    nobody("user.homedir", Kind::Text, "homes are not looked up"),
    nobody("user.shell", Kind::Text, "shells are not looked up"),
    nobody("container.info", Kind::Text, ENGINE),
    nobody("container.image.id", Kind::Text, ENGINE),
    nobody("container.image.digest", Kind::Text, ENGINE),
    nobody("container.start_ts", Kind::Number, ENGINE),
    nobody("container.duration", Kind::Number, ENGINE),
    nobody("container.ip", Kind::Text, ENGINE),
    nobody("container.mounts", Kind::Text, ENGINE),
    nobody("container.healthcheck", Kind::Text, ENGINE),
    nobody("proc.is_container_healthcheck", Kind::Flag, ENGINE),
    nobody("proc.is_container_liveness_probe", Kind::Flag, ENGINE),
    nobody("proc.is_container_readiness_probe", Kind::Flag, ENGINE),
    nobody("thread.tid", Kind::Number, "threads are not looked at"),
];

/// Families of fields that nobody fills.
const PREFIXES: [(&str, &str); 18] = [
    ("evt.arg", CALL),
    ("evt.rawarg", CALL),
    ("evt.", CALL),
    ("proc.stdin.", DESCRIPTOR),
    ("proc.stdout.", DESCRIPTOR),
    ("proc.stderr.", DESCRIPTOR),
    ("proc.exe_ino", "inodes of programs are not kept"),
    ("proc.fd", DESCRIPTOR),
    (
        "proc.cap",
        "capabilities are not told to rules; select by `posture:`",
    ),
    ("thread.", "threads are not looked at"),
    ("container.mount.", ENGINE),
    ("container.", ENGINE),
    ("k8s.", "labels and owners of pods are not told to rules"),
    ("k8smeta.", "the API server is not asked"),
    ("fd.", DESCRIPTOR),
    ("ka.", "the audit log of Kubernetes is not read"),
    ("json.", "plugins are not loaded"),
    ("jevt.", "plugins are not loaded"),
];

#[cfg(test)]
mod tests {
    use super::{FIELDS, Filled, known};
    use crate::rules::event::Class;

    #[test]
    fn every_field_stands_once_and_a_word_that_is_none_is_none() {
        for (at, one) in FIELDS.iter().enumerate() {
            let first = FIELDS.iter().position(|other| other.name == one.name);
            assert_eq!(first, Some(at), "{}", one.name);
        }
        assert_eq!(known("proc.nmae"), None);
        assert_eq!(
            known("evt.arg.flags").unwrap().on(Class::Exec),
            Filled::Unknown
        );
        assert_eq!(known("fd.sip").unwrap().on(Class::Exec), Filled::Never);
    }
}
