//! Reads what a Workload's pod is expected to do, and what becomes of it if it does something else.

use std::net::IpAddr;

use ipnet::IpNet;

use super::workload::parsed_list;
use crate::{
    decide::Protocol,
    diagnostic::Problems,
    model::workload::{
        Baseline, Destination, Listening, NONE, OnDrift, Reached, Surrounding, WorkloadName,
    },
    set::Options,
    yaml::{Entry, Fields, Node, Value, fields},
};

pub(super) fn on_drift(spec: &Fields<'_>, problems: &mut Problems<'_>) -> Option<OnDrift> {
    let Some(node) = spec.get("onDrift") else {
        return Some(OnDrift::Alert);
    };
    let text = fields::text(node, "onDrift", problems)?;
    let known = ANSWERS.iter().find(|answer| answer.as_str() == text);
    if known.is_none() {
        let hint = match fields::nearest(text, &ANSWERS.map(OnDrift::as_str)) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "`alert`, `revoke` or `block`".to_owned(),
        };
        problems.error_with(node.at, format!("`{text}` is no answer to drift"), hint);
    }
    known.copied()
}

pub(super) fn read(
    node: &Node,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Option<Baseline> {
    let all = Fields::of(node, "baseline", &KEYS, problems)?;
    let is_empty = |entries: &[Entry]| {
        entries
            .iter()
            .all(|one| matches!(one.node.value, Value::Null))
    };
    if matches!(&node.value, Value::Map(entries) if is_empty(entries)) {
        let hint = "without a baseline nothing is looked at; leave it out then";
        problems.error_with(node.at, "`baseline` must not be empty", hint);
        return None;
    }
    for key in ["writable", "protected"] {
        if let Some(node) = all.get(key) {
            let message = format!(
                "`baseline.{key}` sees files that are open for writing when the pod is looked at"
            );
            let hint =
                "a write between two looks is missed; a read-only root file system misses none";
            problems.warn(node.at, message, hint);
        }
    }
    let executables = list(&all, "executables", problems, executable);
    let listen = list(&all, "listen", problems, listening);
    let destinations = list(&all, "destinations", problems, |text| {
        destination(text, options)
    });
    let writable = list(&all, "writable", problems, absolute);
    let protected = list(&all, "protected", problems, absolute);
    let rules = list(&all, "rules", problems, |text| Ok(text.to_owned()));
    let ignored = list(&all, "ignored", problems, surrounding);
    Some(Baseline {
        executables: executables?,
        listen: listen?,
        destinations: destinations?,
        writable: writable?,
        protected: protected?.unwrap_or_default(),
        rules: rules?.unwrap_or_default(),
        ignored: ignored?.unwrap_or_default(),
    })
}

/// A list, or none. The word `none` alone makes one that allows nothing.
fn list<T>(
    all: &Fields<'_>,
    name: &str,
    problems: &mut Problems<'_>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Option<Vec<T>>> {
    let Some(node) = all.get(name) else {
        return Some(None);
    };
    if NONE_FOR.contains(&name)
        && let Value::List(items) = &node.value
        && let [only] = items.as_slice()
        && matches!(&only.value, Value::Text(text) if text == NONE)
    {
        return Some(Some(Vec::new()));
    }
    parsed_list(all, name, problems, parse).map(Some)
}

fn surrounding(text: &str) -> Result<Surrounding, String> {
    let known = Surrounding::ALL
        .into_iter()
        .find(|one| one.as_str() == text);
    known.ok_or_else(|| "write `mount`, `namespace`, `privilege` or `ptrace`".to_owned())
}

fn executable(text: &str) -> Result<String, String> {
    let is_digest = text.strip_prefix("sha256:").is_some_and(|digest| {
        digest.len() == 64 && digest.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    });
    match text.starts_with('/') || is_digest {
        true => Ok(text.to_owned()),
        false => {
            Err("write an absolute path, or `sha256:` and 64 lower-case hexadecimal digits".into())
        }
    }
}

fn absolute(text: &str) -> Result<String, String> {
    let is_plain = !text.split('/').any(|part| matches!(part, "." | ".."));
    match text.starts_with('/') && is_plain {
        true => Ok(text.to_owned()),
        false => Err("write an absolute path without `.` and `..`".into()),
    }
}

/// `8080/tcp`
fn listening(text: &str) -> Result<Listening, String> {
    let hint = || "write a port and its transport, such as `8080/tcp`".to_owned();
    let (port, protocol) = text.split_once('/').ok_or_else(hint)?;
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err(hint()),
    };
    let port = port_number(port).ok_or_else(hint)?;
    Ok(Listening { port, protocol })
}

/// An address or network, or `namespace/name`, and a port where one is meant.
fn destination(text: &str, options: &Options) -> Result<Destination, String> {
    if let Some(net) = net(text) {
        let to = Reached::Net(net);
        return Ok(Destination { to, port: None });
    }
    let (who, port) = match text.rsplit_once(':') {
        Some((who, port)) => {
            let hint = || format!("`{port}` is no port from 1 to 65535");
            (who, Some(port_number(port).ok_or_else(hint)?))
        }
        None => (text, None),
    };
    let bare = who.strip_prefix('[').and_then(|who| who.strip_suffix(']'));
    if let Some(net) = net(bare.unwrap_or(who)) {
        let to = Reached::Net(net);
        return Ok(Destination { to, port });
    }
    let (namespace, name) = who.split_once('/').unwrap_or((&options.namespace, who));
    let is_good = [namespace, name]
        .iter()
        .all(|part| fields::is_object_name(part));
    let looks_like_address = who.contains(':') || who.starts_with(|c: char| c.is_ascii_digit());
    if !is_good || looks_like_address {
        return Err(
            "write an address or network with or without a port, such as `10.0.0.0/24:5432`, or \
             the `namespace/name` of a Workload"
                .into(),
        );
    }
    let to = Reached::Workload(WorkloadName {
        namespace: namespace.into(),
        name: name.into(),
    });
    Ok(Destination { to, port })
}

fn net(text: &str) -> Option<IpNet> {
    let alone = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(alone)
}

fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

const ANSWERS: [OnDrift; 3] = [OnDrift::Alert, OnDrift::Revoke, OnDrift::Block];

const KEYS: [&str; 7] = [
    "executables",
    "listen",
    "destinations",
    "writable",
    "protected",
    "rules",
    "ignored",
];

/// Where the word `none` may stand.
const NONE_FOR: [&str; 3] = ["listen", "destinations", "writable"];

#[cfg(test)]
mod tests {
    use postern_spiffe::TrustDomain;

    use crate::{
        Diagnostic, Options, PolicySet, SourceFile, diagnostic::Severity, model::workload::Workload,
    };

    fn load(spec: &str) -> Result<Workload, Vec<Diagnostic>> {
        let text = format!(
            "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: a}}\n\
             spec:\n  serviceAccount: a\n{spec}"
        );
        load_text(text)
    }

    fn load_text(text: String) -> Result<Workload, Vec<Diagnostic>> {
        let file = SourceFile {
            path: "w.yaml".into(),
            text: text.into_bytes(),
        };
        let options = Options::new(TrustDomain::parse("example.org").unwrap());
        let loaded = PolicySet::load(&[file], &options)?;
        Ok(loaded.set.workloads().next().unwrap().clone())
    }

    #[test]
    fn a_document_of_a_workload_reads_as_the_same_workload() {
        for baseline in [
            "{executables: [/bin/app], listen: [8080/tcp, 53/udp], destinations: ['10.0.0.0/24:5432', \
             '10.0.0.1', '[fd00::/8]:443', 'fd00::1', production/db, 'production/db:5432', db], \
             writable: [/data, /tmp], protected: [/etc], rules: [rules/falco.yaml]}",
            "{listen: [none], destinations: [none], writable: [none]}",
            "{rules: [a.yaml]}",
            "{executables: [/a], ignored: [mount, namespace, privilege, ptrace]}",
        ] {
            for answer in ["alert", "revoke", "block"] {
                let spec = format!("  onDrift: {answer}\n  baseline: {baseline}\n");
                let read = load(&spec).unwrap();
                assert_eq!(read.on_drift.as_str(), answer);
                let again = load_text(read.to_document().to_string()).unwrap();
                assert_eq!(read, again, "{baseline}");
            }
        }
    }

    #[track_caller]
    fn refused(spec: &str, column: u32, message: &str, hint: &str) {
        let found = load(spec).unwrap_err();
        let mut errors = found.iter().filter(|one| one.severity == Severity::Error);
        let first = errors.next().unwrap();
        assert!(first.message.contains(message), "`{message}` in {first}");
        let said = first.hint.as_deref().unwrap_or_default();
        assert!(said.contains(hint), "`{hint}` in {first}");
        assert_eq!((first.line, first.column), (6, column), "{first}");
    }

    #[test]
    fn mistakes_are_told_with_their_place_and_mend() {
        for (spec, column, message, hint) in [
            (
                "onDrift: revok",
                12,
                "`revok` is no answer",
                "did you mean `revoke`?",
            ),
            ("onDrift: kill-it-all", 12, "no answer", "`block`"),
            ("baseline: {}", 13, "must not be empty", "leave it out"),
            (
                "baseline: {excutables: [/a]}",
                14,
                "`excutables`",
                "did you mean `executables`?",
            ),
            ("baseline: {executables: [app]}", 28, "absolute path", ""),
            ("baseline: {executables: []}", 27, "must not be empty", ""),
            ("baseline: {ignored: [exec]}", 24, "write `mount`", ""),
            ("baseline: {executables: [none]}", 28, "absolute path", ""),
            (
                "baseline: {listen: [8080]}",
                23,
                "must be a string",
                "quotes",
            ),
            ("baseline: {listen: ['8080']}", 23, "`8080/tcp`", ""),
            ("baseline: {listen: [0/tcp]}", 23, "`8080/tcp`", ""),
            ("baseline: {listen: [none, 1/tcp]}", 23, "`8080/tcp`", ""),
            (
                "baseline: {destinations: ['10.0.0.0/99']}",
                29,
                "`namespace/name`",
                "",
            ),
            (
                "baseline: {destinations: ['10.0.0.1:0']}",
                29,
                "no port",
                "",
            ),
            ("baseline: {writable: [data]}", 25, "absolute path", ""),
            (
                "baseline: {protected: [/etc/../bin]}",
                26,
                "without `.`",
                "",
            ),
            ("baseline: {rules: ['']}", 22, "must not be empty", ""),
        ] {
            refused(&format!("  {spec}\n"), column, message, hint);
        }
    }

    #[test]
    fn what_is_seen_now_and_then_alone_is_told() {
        let text = "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {name: a}\n\
             spec: {serviceAccount: a, baseline: {executables: [/a], protected: [/etc]}}\n";
        let file = SourceFile {
            path: "w.yaml".into(),
            text: text.into(),
        };
        let options = Options::new(TrustDomain::parse("example.org").unwrap());
        let loaded = PolicySet::load(&[file], &options).unwrap();
        let told = loaded
            .warnings
            .iter()
            .filter(|one| one.message.contains("baseline.protected"));
        assert_eq!(told.count(), 1, "{:?}", loaded.warnings);
    }
}
