//! What is seen of a pod, compared with a baseline. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use postern_policies::model::workload::{Baseline, Listening, Reached, WorkloadName};

use super::{
    Connection, Kind, Program, Seen, Socket,
    grounds::sighting,
    standing::{Standing, View},
};
use crate::{attest::Pod, monitor::Source};

/// What was seen of a pod in one look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InPod {
    /// Its processes.
    pub processes: Vec<Seen>,
    /// Its sockets, and whose they are; 0 where nobody knows.
    pub(crate) sockets: Vec<(Socket, i32)>,
    /// Files that are open for writing, and in which process.
    pub written: Vec<(i32, String)>,
    /// The rights and surroundings of its processes, and of those that have left its network.
    pub standings: Vec<(i32, Standing)>,
    /// What is mounted, by who sees it; none where that cannot be read.
    pub(super) views: Vec<(i32, View, Option<BTreeSet<String>>)>,
}

impl InPod {
    /// The mount namespaces that are the pod's own, each with a process that lives there.
    pub(crate) fn mount_namespaces(&self) -> impl Iterator<Item = (i32, u64)> {
        self.views
            .iter()
            .map(|(pid, (namespace, ..), _)| (*pid, *namespace))
    }
}

/// Something that deviates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// What it is.
    pub kind: Kind,
    /// The program, address, file, or what the rule says.
    pub what: String,
    /// The rule that has hit.
    pub rule: Option<String>,
    /// The process; 0 where nobody knows.
    pub pid: i32,
}

impl Sighting {
    /// What happened was not seen for a moment.
    pub(crate) fn lost(source: Source) -> Self {
        let what = format!("events of the {} were lost", source.as_str());
        sighting(Kind::Lost, what, 0)
    }

    /// A process traces another one, of the pod or not.
    pub(crate) fn traces(process: &str, tracer: i32) -> Self {
        sighting(Kind::Ptrace, format!("{process} is traced"), tracer)
    }
}

/// What deviates. `has_address` tells whether a Workload has an address.
pub fn deviations(
    baseline: &Baseline,
    pod: Pod,
    seen: &InPod,
    has_address: impl Fn(&WorkloadName, IpAddr) -> bool,
) -> Vec<Sighting> {
    let mut found = Vec::new();
    if let Some(executables) = &baseline.executables {
        let all = seen.processes.iter();
        found.extend(all.filter_map(|one| outside(&one.program, executables, one.pid)));
    }
    for (socket, pid) in &seen.sockets {
        let kind_and_what = match socket.connection {
            Connection::Waits => waiting(baseline, socket).map(|what| (Kind::Listen, what)),
            Connection::Out => {
                let reached = reached(baseline, pod, socket, &has_address);
                reached.map(|what| (Kind::Connect, what))
            }
            Connection::In => None,
        };
        found.extend(kind_and_what.map(|(kind, what)| sighting(kind, what, *pid)));
    }
    for (pid, path) in &seen.written {
        if !may_write(baseline, path) {
            found.push(sighting(Kind::Write, path.clone(), *pid));
        }
    }
    found
}

/// The deviation that a program is which may not run.
pub fn outside(program: &Program, executables: &[String], pid: i32) -> Option<Sighting> {
    (!program.is_allowed(executables)).then(|| Sighting {
        kind: kind_of(program),
        what: program.name().to_owned(),
        rule: None,
        pid,
    })
}

fn kind_of(program: &Program) -> Kind {
    match program {
        Program::Pathless { name, .. } if name.starts_with("/memfd:") => Kind::Memfd,
        _ => Kind::Exec,
    }
}

/// At what somebody waits who may not.
fn waiting(baseline: &Baseline, socket: &Socket) -> Option<String> {
    let allowed = baseline.listen.as_ref()?;
    let waits = Listening {
        port: socket.local.port(),
        protocol: socket.protocol,
    };
    (!allowed.contains(&waits)).then(|| waits.to_string())
}

/// Whom somebody has reached who may not.
fn reached(
    baseline: &Baseline,
    pod: Pod,
    socket: &Socket,
    has_address: &impl Fn(&WorkloadName, IpAddr) -> bool,
) -> Option<String> {
    let allowed = baseline.destinations.as_ref()?;
    let (address, port) = (socket.remote.ip(), socket.remote.port());
    // A pod with a network of its own does not leave it by its loopback.
    if matches!(pod, Pod::Network(_)) && address.is_loopback() {
        return None;
    }
    let is_allowed = allowed.iter().any(|destination| {
        destination.port.is_none_or(|wanted| wanted == port)
            && match &destination.to {
                Reached::Net(net) => net.contains(&address),
                Reached::Workload(name) => has_address(name, address),
            }
    });
    (!is_allowed).then(|| socket.remote.to_string())
}

fn may_write(baseline: &Baseline, path: &str) -> bool {
    let lies_in = |folders: &[String]| folders.iter().any(|folder| is_below(path, folder));
    let is_writable = baseline.writable.as_deref().is_none_or(lies_in);
    is_writable && !lies_in(&baseline.protected)
}

/// Is a path this folder, or below it?
fn is_below(path: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    let rest = path.strip_prefix(folder);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use postern_policies::{
        Options, PolicySet, SourceFile, decide::Protocol, model::workload::Baseline,
    };
    use postern_spiffe::TrustDomain;

    use super::{Connection, InPod, Kind, Pod, Program, Seen, Socket, deviations};

    fn baseline(text: &str) -> Baseline {
        let text = format!(
            "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: a}}\n\
             spec: {{serviceAccount: a, baseline: {text}}}\n"
        );
        let file = SourceFile {
            path: "w.yaml".into(),
            text: text.into_bytes(),
        };
        let options = Options::new(TrustDomain::parse("example.org").unwrap());
        let set = PolicySet::load(&[file], &options).unwrap().set;
        set.workloads().next().unwrap().baseline.clone().unwrap()
    }

    fn socket(connection: Connection, local: &str, remote: &str) -> (Socket, i32) {
        let [local, remote] = [local, remote].map(|text| text.parse::<SocketAddr>().unwrap());
        let socket = Socket {
            protocol: Protocol::Tcp,
            local,
            remote,
            connection,
            inode: 1,
        };
        (socket, 7)
    }

    /// What deviates from a baseline, in a pod with a network of its own.
    #[track_caller]
    fn check(text: &str, seen: &InPod, expected: &[(Kind, &str)]) {
        let pod = Pod::Network(1);
        let db = |name: &postern_policies::model::workload::WorkloadName,
                  address: std::net::IpAddr| {
            name.to_string() == "production/db" && address.to_string() == "10.9.9.9"
        };
        let found = deviations(&baseline(text), pod, seen, db);
        let found: Vec<(Kind, &str)> = found
            .iter()
            .map(|one| (one.kind, one.what.as_str()))
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn each_deviation_has_a_twin_that_is_none() {
        let program = |program| InPod {
            processes: vec![Seen {
                pid: 7,
                started: 1,
                program,
            }],
            ..InPod::default()
        };
        let file = program(Program::File {
            path: "/bin/app".into(),
            digest: None,
            is_changed: false,
        });
        check("{executables: [/bin/app]}", &file, &[]);
        check(
            "{executables: [/bin/apps]}",
            &file,
            &[(Kind::Exec, "/bin/app")],
        );
        check("{listen: [none]}", &file, &[]);
        let name = "/memfd:x (deleted)";
        let memory = program(Program::Pathless {
            name: name.into(),
            digest: None,
        });
        check("{executables: [/bin/app]}", &memory, &[(Kind::Memfd, name)]);

        let waits = InPod {
            sockets: vec![socket(Connection::Waits, "0.0.0.0:8080", "0.0.0.0:0")],
            ..InPod::default()
        };
        check("{listen: [8080/tcp]}", &waits, &[]);
        check(
            "{listen: [8080/udp]}",
            &waits,
            &[(Kind::Listen, "8080/tcp")],
        );
        check("{listen: [none]}", &waits, &[(Kind::Listen, "8080/tcp")]);
        check("{executables: [/a]}", &waits, &[]);

        let out = |remote: &str| InPod {
            sockets: vec![socket(Connection::Out, "10.0.0.1:50000", remote)],
            ..InPod::default()
        };
        let reached = "10.0.0.9:5432";
        for allowed in ["'10.0.0.0/24:5432'", "10.0.0.9", "'0.0.0.0/0'"] {
            check(
                &format!("{{destinations: [{allowed}]}}"),
                &out(reached),
                &[],
            );
        }
        for other in ["'10.0.0.0/24:5433'", "10.0.0.8", "production/db", "none"] {
            check(
                &format!("{{destinations: [{other}]}}"),
                &out(reached),
                &[(Kind::Connect, reached)],
            );
        }
        check("{destinations: [production/db]}", &out("10.9.9.9:1"), &[]);
        check(
            "{destinations: ['production/db:2']}",
            &out("10.9.9.9:1"),
            &[(Kind::Connect, "10.9.9.9:1")],
        );
        check("{destinations: [none]}", &out("127.0.0.1:1"), &[]);
        let taken = InPod {
            sockets: vec![socket(Connection::In, "10.0.0.1:80", "10.0.0.9:5432")],
            ..InPod::default()
        };
        check("{destinations: [none], listen: [none]}", &taken, &[]);

        let written = |path: &str| InPod {
            written: vec![(7, path.to_owned())],
            ..InPod::default()
        };
        check("{writable: [/data]}", &written("/data/a"), &[]);
        check(
            "{writable: [/data]}",
            &written("/database"),
            &[(Kind::Write, "/database")],
        );
        check("{writable: [none]}", &written("/a"), &[(Kind::Write, "/a")]);
        check(
            "{writable: [/], protected: [/etc]}",
            &written("/etc/a"),
            &[(Kind::Write, "/etc/a")],
        );
        check("{protected: [/etc]}", &written("/etcetera"), &[]);
    }
}
