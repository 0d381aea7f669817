//! What pods do, gathered into a baseline that a person reads before it is used.

use std::{collections::BTreeSet, fmt::Write as _};

use postern_policies::model::workload::Listening;
use serde::{Deserialize, Serialize};

use super::{Connection, InPod, Program};
use crate::attest::Pod;

/// What was seen of the pods of a Workload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learnt {
    /// Paths, and digests of programs that have none.
    pub executables: BTreeSet<String>,
    /// Programs that a baseline cannot name.
    pub nameless: BTreeSet<String>,
    /// Ports at which somebody waits.
    pub listen: BTreeSet<String>,
    /// Whom somebody is connected to.
    pub destinations: BTreeSet<String>,
    /// The folders of files that are open for writing.
    pub writable: BTreeSet<String>,
}

impl Learnt {
    /// Adds what was seen in a pod.
    pub fn add(&mut self, pod: Pod, seen: &InPod) {
        for one in &seen.processes {
            match &one.program {
                Program::File {
                    path,
                    is_changed: false,
                    ..
                } => self.executables.insert(path.clone()),
                Program::File {
                    digest: Some(digest),
                    ..
                }
                | Program::Pathless {
                    digest: Some(digest),
                    ..
                } => self.executables.insert(format!("sha256:{digest}")),
                other => self.nameless.insert(other.name().to_owned()),
            };
        }
        for (socket, _) in &seen.sockets {
            match socket.connection {
                Connection::Waits => {
                    let port = socket.local.port();
                    let protocol = socket.protocol;
                    self.listen.insert(Listening { port, protocol }.to_string());
                }
                Connection::Out => {
                    let inside = matches!(pod, Pod::Network(_)) && socket.remote.ip().is_loopback();
                    if !inside {
                        self.destinations.insert(socket.remote.to_string());
                    }
                }
                Connection::In => {}
            }
        }
        for (_, path) in &seen.written {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let folder = if folder.is_empty() { "/" } else { folder };
            self.writable.insert(folder.to_owned());
        }
    }

    /// Adds what another look has seen.
    pub fn merge(&mut self, other: Self) {
        self.executables.extend(other.executables);
        self.nameless.extend(other.nameless);
        self.listen.extend(other.listen);
        self.destinations.extend(other.destinations);
        self.writable.extend(other.writable);
    }

    /// Was no process seen?
    pub fn is_empty(&self) -> bool {
        self.executables.is_empty() && self.nameless.is_empty()
    }

    /// The block of a Workload document, to be put under `spec`.
    pub fn to_yaml(&self) -> String {
        let mut yaml = "baseline:\n".to_owned();
        for name in &self.nameless {
            let name = name.escape_debug();
            push(
                &mut yaml,
                format_args!("  # a program without a path or digest is left out: {name}\n"),
            );
        }
        if !self.executables.is_empty() {
            list(&mut yaml, "executables", &self.executables);
        }
        list(&mut yaml, "listen", &self.listen);
        list(&mut yaml, "destinations", &self.destinations);
        list(&mut yaml, "writable", &self.writable);
        yaml
    }
}

fn list(yaml: &mut String, key: &str, items: &BTreeSet<String>) {
    if items.is_empty() {
        return push(yaml, format_args!("  {key}: [none]\n"));
    }
    push(yaml, format_args!("  {key}:\n"));
    for item in items {
        // A text of JSON is one of YAML, whatever is in it.
        push(yaml, format_args!("    - {}\n", serde_json::json!(item)));
    }
}

/// Writing to a string does not fail.
fn push(yaml: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = yaml.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use postern_policies::{Options, PolicySet, SourceFile};
    use postern_spiffe::TrustDomain;

    use super::Learnt;

    #[track_caller]
    fn loads(learnt: &Learnt) -> serde_json::Value {
        let block = learnt.to_yaml();
        let lines = block.lines().map(|line| format!("  {line}\n"));
        let text = format!(
            "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: a}}\nspec:\n  \
             serviceAccount: a\n{}",
            lines.collect::<String>()
        );
        let file = SourceFile {
            path: "w.yaml".into(),
            text: text.into_bytes(),
        };
        let options = Options::new(TrustDomain::parse("example.org").unwrap());
        let set = PolicySet::load(&[file], &options).unwrap().set;
        let baseline = set.workloads().next().unwrap().baseline.clone().unwrap();
        baseline.to_block()
    }

    #[test]
    fn what_was_learnt_loads_again_and_says_the_same() {
        let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        let digest = format!("sha256:{}", "ab".repeat(32));
        let learnt = Learnt {
            executables: texts(&["/bin/a b", "/bin/#", "/bin/\"'\\ä\n", &digest]),
            nameless: texts(&["/memfd:x\n- evil (deleted)"]),
            listen: texts(&["53/udp", "8080/tcp"]),
            destinations: texts(&["10.0.0.1:5432", "[fd00::1]:443"]),
            writable: texts(&["/", "/data"]),
        };
        let block = loads(&learnt);
        let items = |key: &str| block[key].as_array().unwrap().len();
        assert_eq!(items("executables"), 4, "{block}");
        assert_eq!(block["listen"], serde_json::json!(["53/udp", "8080/tcp"]));
        assert_eq!(block["destinations"][1], "[fd00::1/128]:443");
        let quiet = Learnt {
            executables: texts(&["/bin/a"]),
            ..Learnt::default()
        };
        assert_eq!(loads(&quiet)["destinations"], serde_json::json!(["none"]));
    }
}
