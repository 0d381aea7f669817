//! `learn`: from what was allowed to the least that allows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use postern_policies::{
    Defaults, PolicySet, SourceFile,
    decide::{
        Access, Destination, Direction, HttpRequest, NoHeaders, Peer, Protocol, Source, Verdict,
    },
    model::workload::{Workload, WorkloadName},
};
use postern_spiffe::SpiffeId;
use serde::Deserialize;

use super::{BAD_CONFIGURATION, Reading, query, read, show};

/// Turns an access log into the least policies that allow what it shows
#[derive(Debug, Args)]
pub(super) struct Learn {
    /// Access logs of proxies, JSON lines
    #[arg(required = true, value_name = "ACCESS_LOG")]
    logs: Vec<PathBuf>,

    /// A folder or file of Workloads and Namespaces; may be given more than once
    #[arg(long, value_name = "DIR", required = true)]
    workloads: Vec<PathBuf>,

    #[command(flatten)]
    reading: Reading,
}

/// A line of an access log, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Line {
    direction: Option<String>,
    verdict: Option<String>,
    #[serde(rename = "src.identity")]
    source: Option<String>,
    #[serde(rename = "dst.addr")]
    address: Option<String>,
    #[serde(rename = "dst.workload")]
    workload: Option<String>,
    method: Option<String>,
    path: Option<String>,
}

/// Something that was allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    to: WorkloadName,
    from: SpiffeId,
    port: u16,
    http: Option<(String, String)>,
}

/// What was read.
#[derive(Debug, Default)]
struct Observed {
    seen: BTreeSet<Seen>,
    lines: usize,
    /// Lines that say nothing about an inbound access that was allowed.
    passed_over: usize,
    /// Lines that name somebody who is no Workload, or what no pattern can say.
    unusable: BTreeSet<String>,
}

impl Learn {
    pub(super) fn run(&self) -> ExitCode {
        let files = match read(self.workloads.iter().map(PathBuf::as_path)) {
            Ok(files) => files,
            Err(error) => {
                anstream::eprintln!("postern-policy: {error}");
                return ExitCode::from(BAD_CONFIGURATION);
            }
        };
        let directory = match self.load(&files) {
            Ok(set) => set,
            Err(code) => return code,
        };
        let mut observed = Observed::default();
        for log in &self.logs {
            if let Err(error) = observed.read(log, &directory) {
                anstream::eprintln!("postern-policy: `{}`: {error}", log.display());
                return ExitCode::FAILURE;
            }
        }
        let yaml = policies(&observed.seen, &directory);
        let mut all = files;
        all.push(SourceFile {
            path: "learnt.yaml".into(),
            text: yaml.clone().into_bytes(),
        });
        let learnt = match self.load(&all) {
            Ok(set) => set,
            Err(code) => return code,
        };
        let problems = proven(&learnt, &observed.seen);
        anstream::print!("{yaml}");
        anstream::eprintln!(
            "{} lines, {} passed over, {} different accesses{}",
            observed.lines,
            observed.passed_over,
            observed.seen.len(),
            match problems.is_empty() {
                true => ": all of them are allowed by this, and no other Workload is",
                false => "",
            }
        );
        for problem in observed.unusable.iter().chain(&problems) {
            anstream::eprintln!("postern-policy: {problem}");
        }
        match problems.is_empty() && observed.unusable.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }

    fn load(&self, files: &[SourceFile]) -> Result<PolicySet, ExitCode> {
        match PolicySet::load(files, &self.reading.options(Defaults::STRICT)) {
            Ok(loaded) => Ok(loaded.set),
            Err(found) => {
                show(&found, files);
                Err(ExitCode::from(BAD_CONFIGURATION))
            }
        }
    }
}

impl Observed {
    fn read(&mut self, log: &Path, directory: &PolicySet) -> io::Result<()> {
        for line in BufReader::new(File::open(log)?).lines() {
            let line = line?;
            self.lines += 1;
            let Ok(line) = serde_json::from_str::<Line>(&line) else {
                self.passed_over += 1;
                continue;
            };
            let is_allowed = line.verdict.as_deref() == Some("allow");
            if line.direction.as_deref() != Some("inbound") || !is_allowed {
                self.passed_over += 1;
                continue;
            }
            match seen(&line, directory) {
                Ok(seen) => {
                    self.seen.insert(seen);
                }
                Err(problem) => {
                    self.unusable.insert(problem);
                }
            }
        }
        Ok(())
    }
}

fn seen(line: &Line, directory: &PolicySet) -> Result<Seen, String> {
    let to = line
        .workload
        .as_deref()
        .ok_or("an access has no `dst.workload`")?;
    let to = query::workload_name(to, directory)?;
    let from = line.source.as_deref().ok_or_else(|| {
        format!("an access to `{to}` has no identity, and none can be written for it")
    })?;
    let from = SpiffeId::parse(from).map_err(|error| format!("`{from}`: {error}"))?;
    if directory.workloads_of(&from).next().is_none() {
        return Err(format!(
            "`{from}` is no known Workload, so no labels select it"
        ));
    }
    let address = line.address.as_deref().unwrap_or_default();
    let port = address
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok());
    let port = port.ok_or_else(|| format!("an access to `{to}` has no port in `dst.addr`"))?;
    let http = match (&line.method, &line.path) {
        (Some(method), Some(path)) if path.contains(['*', '{', '}']) => {
            return Err(format!(
                "{method} `{path}`: no pattern can say this path exactly"
            ));
        }
        (Some(method), Some(path)) => Some((method.clone(), path.clone())),
        _ => None,
    };
    Ok(Seen {
        to,
        from,
        port,
        http,
    })
}

/// The documents: for each destination who may reach it and do what, for each source where it may
/// go.
fn policies(all: &BTreeSet<Seen>, directory: &PolicySet) -> String {
    let mut yaml = String::new();
    let destinations: BTreeSet<&WorkloadName> = all.iter().map(|seen| &seen.to).collect();
    for to in destinations {
        let own: Vec<&Seen> = all.iter().filter(|seen| seen.to == *to).collect();
        if let Some(workload) = directory.workload(to) {
            // Writing to a string does not fail.
            let _ = ingress(&mut yaml, workload, &own, directory);
            let _ = authorization(&mut yaml, workload, &own);
        }
    }
    let sources: BTreeSet<&SpiffeId> = all.iter().map(|seen| &seen.from).collect();
    for from in sources {
        let own: Vec<&Seen> = all.iter().filter(|seen| seen.from == *from).collect();
        for workload in directory.workloads_of(from) {
            let _ = egress(&mut yaml, workload, &own, directory);
        }
    }
    yaml
}

fn head(yaml: &mut String, kind: &str, workload: &Workload, what: &str) -> std::fmt::Result {
    let version = match kind {
        "NetworkPolicy" => "networking.k8s.io/v1",
        _ => "security.istio.io/v1",
    };
    write!(
        yaml,
        "---\napiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {}-{what}\n  namespace: {}\nspec:\n",
        workload.name.name, workload.name.namespace
    )
}

/// Labels as JSON, which is YAML.
fn labels(workload: &Workload) -> String {
    serde_json::to_string(&workload.labels).unwrap_or_default()
}

/// The peer by its labels, and by its namespace where that is another one.
fn peer(workload: &Workload, home: &str) -> String {
    let pods = format!("podSelector: {{matchLabels: {}}}", labels(workload));
    match &*workload.name.namespace {
        namespace if namespace == home => format!("{{{pods}}}"),
        namespace => format!(
            "{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}, {pods}}}"
        ),
    }
}

fn ingress(
    yaml: &mut String,
    workload: &Workload,
    own: &[&Seen],
    directory: &PolicySet,
) -> std::fmt::Result {
    head(yaml, "NetworkPolicy", workload, "ingress")?;
    writeln!(yaml, "  podSelector: {{matchLabels: {}}}", labels(workload))?;
    writeln!(yaml, "  policyTypes: [Ingress]\n  ingress:")?;
    let mut rules: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    for seen in own {
        for from in directory.workloads_of(&seen.from) {
            let peer = peer(from, &workload.name.namespace);
            rules.entry(seen.port).or_default().insert(peer);
        }
    }
    for (port, peers) in rules {
        writeln!(
            yaml,
            "    - ports: [{{protocol: TCP, port: {port}}}]\n      from:"
        )?;
        for peer in peers {
            writeln!(yaml, "        - {peer}")?;
        }
    }
    Ok(())
}

fn egress(
    yaml: &mut String,
    workload: &Workload,
    own: &[&Seen],
    directory: &PolicySet,
) -> std::fmt::Result {
    head(yaml, "NetworkPolicy", workload, "egress")?;
    writeln!(yaml, "  podSelector: {{matchLabels: {}}}", labels(workload))?;
    writeln!(yaml, "  policyTypes: [Egress]\n  egress:")?;
    let ways: BTreeSet<(&WorkloadName, u16)> =
        own.iter().map(|seen| (&seen.to, seen.port)).collect();
    for (to, port) in ways {
        if let Some(to) = directory.workload(to) {
            let peer = peer(to, &workload.name.namespace);
            writeln!(
                yaml,
                "    - ports: [{{protocol: TCP, port: {port}}}]\n      to:\n        - {peer}"
            )?;
        }
    }
    Ok(())
}

fn authorization(yaml: &mut String, workload: &Workload, own: &[&Seen]) -> std::fmt::Result {
    head(yaml, "AuthorizationPolicy", workload, "access")?;
    writeln!(yaml, "  selector: {{matchLabels: {}}}", labels(workload))?;
    writeln!(yaml, "  action: ALLOW\n  rules:")?;
    // Who, where, how, to the paths.
    let mut rules: BTreeMap<(&str, u16, &str), BTreeSet<&str>> = BTreeMap::new();
    let mut opaque: BTreeSet<(&str, u16)> = BTreeSet::new();
    for seen in own {
        match &seen.http {
            Some((method, path)) => {
                let key = (seen.from.principal(), seen.port, method.as_str());
                rules.entry(key).or_default().insert(path);
            }
            None => {
                opaque.insert((seen.from.principal(), seen.port));
            }
        }
    }
    // Methods with the same paths are one rule.
    let mut merged: BTreeMap<(&str, u16, BTreeSet<String>), BTreeSet<&str>> = BTreeMap::new();
    for ((from, port, method), paths) in rules {
        let key = (from, port, generalized(&paths));
        merged.entry(key).or_default().insert(method);
    }
    for ((from, port, paths), methods) in merged {
        writeln!(yaml, "    - from: [{{source: {{principals: [{from:?}]}}}}]")?;
        writeln!(
            yaml,
            "      to: [{{operation: {{ports: [\"{port}\"], methods: {methods:?}, paths: {paths:?}}}}}]",
            methods = methods.iter().collect::<Vec<_>>(),
            paths = paths.iter().collect::<Vec<_>>()
        )?;
    }
    for (from, port) in opaque {
        writeln!(yaml, "    - from: [{{source: {{principals: [{from:?}]}}}}]")?;
        writeln!(yaml, "      to: [{{operation: {{ports: [\"{port}\"]}}}}]")?;
    }
    Ok(())
}

/// Paths that differ in a segment that looks like the name of a thing become one template.
fn generalized(paths: &BTreeSet<&str>) -> BTreeSet<String> {
    paths
        .iter()
        .map(|path| {
            let segments = path.split('/').map(|segment| match is_key(segment) {
                true => "{*}",
                false => segment,
            });
            segments.collect::<Vec<_>>().join("/")
        })
        .collect()
}

/// A number, a UUID, or the like: what an app counts up and does not write into its routes.
fn is_key(segment: &str) -> bool {
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    let is_number = digits == segment.len();
    let is_hexadecimal = segment.len() >= 16
        && segment
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    !segment.is_empty() && (is_number || (is_hexadecimal && digits > 0))
}

/// What is not as it must be: an access that is not allowed, or somebody who is, though nobody saw
/// it.
fn proven(set: &PolicySet, all: &BTreeSet<Seen>) -> Vec<String> {
    let mut problems = Vec::new();
    for seen in all {
        let is_allowed = ask(set, seen, Direction::Inbound) && ask(set, seen, Direction::Outbound);
        if !is_allowed {
            problems.push(format!(
                "`{}` to `{}` is not allowed by what was learnt",
                seen.from, seen.to
            ));
        }
        for other in set.workloads().map(|workload| &workload.spiffe_id) {
            let was_seen = all
                .iter()
                .any(|one| one.to == seen.to && one.from == *other);
            let stranger = Seen {
                from: other.clone(),
                ..seen.clone()
            };
            if !was_seen && ask(set, &stranger, Direction::Inbound) {
                problems.push(format!(
                    "`{other}` to `{}` is allowed, and was not seen",
                    seen.to
                ));
            }
        }
    }
    problems
}

fn ask(set: &PolicySet, seen: &Seen, direction: Direction) -> bool {
    let access = Access {
        direction,
        source: Source {
            peer: Peer::Verified(&seen.from),
            ip: None,
            namespace: None,
            labels: None,
        },
        destination: Destination {
            workload: Some(&seen.to),
            ip: None,
            port: seen.port,
            protocol: Protocol::Tcp,
        },
        http: seen.http.as_ref().map(|(method, path)| HttpRequest {
            method,
            path,
            host: None,
            headers: &NoHeaders,
        }),
        token: None,
        sni: None,
    };
    set.decide(&access).verdict == Verdict::Allow
}
