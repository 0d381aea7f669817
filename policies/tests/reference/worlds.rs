//! Random policies and requests, and the engine's answer to them.

use std::{fmt::Write as _, sync::Arc};

use postern_policies::{
    Defaults, Options, PolicySet, SourceFile,
    decide::{
        Access, Destination, Direction, HttpRequest, NoHeaders, Peer, Protocol, Source, Verdict,
    },
    model::workload::WorkloadName,
};
use postern_spiffe::{SpiffeId, TrustDomain};

/// Random numbers that are the same in every run (xorshift).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(sides).unwrap()).unwrap()
    }

    pub(crate) fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from.get(self.roll(from.len())).copied().unwrap()
    }

    pub(crate) fn some<'a>(&mut self, from: &[&'a str]) -> Vec<&'a str> {
        let mut all: Vec<&str> = (0..=self.roll(2)).map(|_| self.pick(from)).collect();
        all.dedup();
        all
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }
}

pub(crate) const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
pub(crate) const APPS: [&str; 3] = ["x", "y", "z"];
pub(crate) const PRINCIPALS: [&str; 6] = [
    "*",
    "cluster.local/ns/a/sa/x",
    "cluster.local/ns/b/*",
    "*/sa/y",
    "cluster.local/ns/a/sa/none",
    "spiffe://cluster.local/ns/a/sa/x",
];
pub(crate) const PATHS: [&str; 5] = ["/", "/api/*", "*.html", "/api/users", "*"];
pub(crate) const REAL_PATHS: [&str; 5] = ["/", "/api/", "/api/users", "/index.html", "/other"];
pub(crate) const METHODS: [&str; 3] = ["GET", "POST", "*"];
pub(crate) const PORTS: [&str; 2] = ["80", "81"];

pub(crate) struct Workload {
    pub(crate) namespace: &'static str,
    pub(crate) app: &'static str,
}

impl Workload {
    pub(crate) fn id(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.namespace, self.app
        )
    }
}

#[derive(Clone)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<&'static str>,
    pub(crate) negated: bool,
}

#[derive(Clone)]
pub(crate) struct Rule {
    pub(crate) from: Vec<Vec<Field>>,
    pub(crate) to: Vec<Vec<Field>>,
}

#[derive(Clone)]
pub(crate) struct Authorization {
    pub(crate) namespace: &'static str,
    pub(crate) app: Option<&'static str>,
    pub(crate) action: &'static str,
    pub(crate) dry_run: bool,
    pub(crate) rules: Vec<Rule>,
}

/// Namespace and app; nothing in the place of the first is the policy's own, of the second any.
type PeerOf = (Option<&'static str>, Option<&'static str>);

#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) namespace: &'static str,
    pub(crate) app: Option<&'static str>,
    /// Peers and ports; none are any.
    pub(crate) rules: Vec<(Vec<PeerOf>, Vec<u16>)>,
}

#[derive(Clone)]
pub(crate) struct Mtls {
    pub(crate) namespace: &'static str,
    pub(crate) app: Option<&'static str>,
    pub(crate) mode: &'static str,
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) authorization: Vec<Authorization>,
    pub(crate) network: Vec<Network>,
    pub(crate) mtls: Vec<Mtls>,
}

pub(crate) struct Request {
    pub(crate) from: Option<String>,
    pub(crate) to: usize,
    pub(crate) port: u16,
    pub(crate) http: Option<(&'static str, &'static str)>,
}

pub(crate) fn workloads() -> Vec<Workload> {
    NAMESPACES
        .iter()
        .flat_map(|namespace| APPS.iter().map(move |app| Workload { namespace, app }))
        .collect()
}

pub(crate) fn fields(dice: &mut Dice, of: &[(&'static str, &[&'static str])]) -> Vec<Field> {
    let mut all = Vec::new();
    for (name, values) in of {
        if dice.chance(45) {
            all.push(Field {
                name,
                values: dice.some(values),
                negated: dice.chance(30),
            });
        }
    }
    if all.is_empty() {
        let (name, values) = of[dice.roll(of.len())];
        all.push(Field {
            name,
            values: dice.some(values),
            negated: false,
        });
    }
    all
}

pub(crate) fn authorization(dice: &mut Dice) -> Authorization {
    let action = dice.pick(&["ALLOW", "ALLOW", "DENY", "AUDIT"]);
    let rule = |dice: &mut Dice| Rule {
        from: (0..dice.roll(3))
            .map(|_| {
                fields(
                    dice,
                    &[
                        ("principals", &PRINCIPALS),
                        ("namespaces", &["a", "b", "is*"]),
                    ],
                )
            })
            .collect(),
        to: (0..dice.roll(3))
            .map(|_| {
                fields(
                    dice,
                    &[("methods", &METHODS), ("paths", &PATHS), ("ports", &PORTS)],
                )
            })
            .collect(),
    };
    let least = usize::from(action == "DENY");
    Authorization {
        namespace: dice.pick(&NAMESPACES),
        app: dice.chance(60).then(|| dice.pick(&APPS)),
        action,
        dry_run: action != "AUDIT" && dice.chance(15),
        rules: (0..least + dice.roll(3)).map(|_| rule(dice)).collect(),
    }
}

pub(crate) fn network(dice: &mut Dice) -> Network {
    Network {
        namespace: dice.pick(&NAMESPACES),
        app: dice.chance(60).then(|| dice.pick(&APPS)),
        rules: (0..dice.roll(3))
            .map(|_| {
                let peers = (0..dice.roll(3))
                    .map(|_| {
                        (
                            dice.chance(50).then(|| dice.pick(&NAMESPACES)),
                            dice.chance(70).then(|| dice.pick(&APPS)),
                        )
                    })
                    .collect();
                let ports = (0..dice.roll(2)).map(|_| 80).collect();
                (peers, ports)
            })
            .collect(),
    }
}

pub(crate) fn world(dice: &mut Dice) -> World {
    let mut mtls: Vec<Mtls> = Vec::new();
    for namespace in NAMESPACES {
        if dice.chance(40) {
            mtls.push(Mtls {
                namespace,
                app: None,
                mode: dice.pick(&["STRICT", "PERMISSIVE", "UNSET"]),
            });
        }
        if dice.chance(30) {
            mtls.push(Mtls {
                namespace,
                app: Some(dice.pick(&APPS)),
                mode: dice.pick(&["STRICT", "PERMISSIVE", "UNSET"]),
            });
        }
    }
    World {
        authorization: (0..dice.roll(6)).map(|_| authorization(dice)).collect(),
        network: (0..dice.roll(4)).map(|_| network(dice)).collect(),
        mtls,
    }
}

pub(crate) fn request(dice: &mut Dice) -> Request {
    let all = workloads();
    Request {
        from: dice.chance(80).then(|| all[dice.roll(all.len())].id()),
        to: dice.roll(all.len()),
        port: if dice.chance(70) { 80 } else { 81 },
        http: dice
            .chance(80)
            .then(|| (dice.pick(&["GET", "POST", "PUT"]), dice.pick(&REAL_PATHS))),
    }
}

// ---- The world as YAML.

pub(crate) fn yaml(world: &World) -> Vec<String> {
    let mut documents = Vec::new();
    for workload in workloads() {
        documents.push(format!(
            "{{apiVersion: postern.dev/v1, kind: Workload, metadata: {{name: '{0}', namespace: '{1}', \
             labels: {{app: '{0}'}}}}, spec: {{serviceAccount: '{0}'}}}}\n",
            workload.app, workload.namespace
        ));
    }
    let meta = |kind: &str, index: usize, namespace: &str, more: &str| {
        format!("kind: {kind}, metadata: {{name: p{index}, namespace: {namespace}{more}}}")
    };
    let labels = |app: Option<&str>| match app {
        Some(app) => format!("{{matchLabels: {{app: '{app}'}}}}"),
        None => "{}".to_owned(),
    };
    for (index, policy) in world.authorization.iter().enumerate() {
        let rules: Vec<String> = policy.rules.iter().map(rule_yaml).collect();
        let note = match policy.dry_run {
            true => ", annotations: {istio.io/dry-run: 'true'}",
            false => "",
        };
        documents.push(format!(
            "{{apiVersion: security.istio.io/v1, {}, spec: {{selector: {}, action: {}, rules: [{}]}}}}\n",
            meta("AuthorizationPolicy", index, policy.namespace, note),
            labels(policy.app),
            policy.action,
            rules.join(", ")
        ));
    }
    for (index, policy) in world.network.iter().enumerate() {
        let rules: Vec<String> = policy
            .rules
            .iter()
            .map(|(peers, ports)| {
                let peers: Vec<String> = peers
                    .iter()
                    .map(|(namespace, app)| match namespace {
                        Some(namespace) => format!(
                            "{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: \
                             {namespace}}}}}, podSelector: {}}}",
                            labels(*app)
                        ),
                        None => format!("{{podSelector: {}}}", labels(*app)),
                    })
                    .collect();
                let ports: Vec<String> = ports
                    .iter()
                    .map(|port| format!("{{port: {port}}}"))
                    .collect();
                format!(
                    "{{from: [{}], ports: [{}]}}",
                    peers.join(", "),
                    ports.join(", ")
                )
            })
            .collect();
        documents.push(format!(
            "{{apiVersion: networking.k8s.io/v1, {}, spec: {{podSelector: {}, ingress: [{}]}}}}\n",
            meta("NetworkPolicy", index, policy.namespace, ""),
            labels(policy.app),
            rules.join(", ")
        ));
    }
    for (index, policy) in world.mtls.iter().enumerate() {
        documents.push(format!(
            "{{apiVersion: security.istio.io/v1, {}, spec: {{selector: {}, mtls: {{mode: {}}}}}}}\n",
            meta("PeerAuthentication", index, policy.namespace, ""),
            labels(policy.app),
            policy.mode
        ));
    }
    documents
}

pub(crate) fn rule_yaml(rule: &Rule) -> String {
    let list = |list: &[Vec<Field>], name: &str, inner: &str| {
        let items: Vec<String> = list
            .iter()
            .map(|fields| {
                let mut texts: Vec<String> = Vec::new();
                for field in fields {
                    let mut text = String::new();
                    if field.negated {
                        let (first, rest) = field.name.split_at(1);
                        write!(text, "not{}{rest}", first.to_uppercase()).unwrap();
                    } else {
                        text.push_str(field.name);
                    }
                    write!(text, ": {:?}", field.values).unwrap();
                    texts.push(text);
                }
                format!("{{{inner}: {{{}}}}}", texts.join(", "))
            })
            .collect();
        match items.is_empty() {
            true => None,
            false => Some(format!("{name}: [{}]", items.join(", "))),
        }
    };
    let parts: Vec<String> = [
        list(&rule.from, "from", "source"),
        list(&rule.to, "to", "operation"),
    ]
    .into_iter()
    .flatten()
    .collect();
    format!("{{{}}}", parts.join(", "))
}

pub(crate) fn load(documents: &[String], defaults: Defaults) -> PolicySet {
    let options = Options {
        defaults,
        ..Options::new(TrustDomain::parse("cluster.local").unwrap())
    };
    let files: Vec<SourceFile> = documents
        .iter()
        .enumerate()
        .map(|(index, text)| SourceFile {
            path: format!("{index}.yaml").into(),
            text: text.clone().into_bytes(),
        })
        .collect();
    match PolicySet::load(&files, &options) {
        Ok(loaded) => loaded.set,
        Err(found) => panic!("{found:?} in {documents:?}"),
    }
}

/// The name of a workload by its place among all.
pub(crate) fn workload_name(place: usize) -> WorkloadName {
    let all = workloads();
    WorkloadName {
        namespace: Arc::from(all[place].namespace),
        name: Arc::from(all[place].app),
    }
}

pub(crate) fn engine(set: &PolicySet, request: &Request) -> bool {
    let name = workload_name(request.to);
    let id = request
        .from
        .as_deref()
        .map(|id| SpiffeId::parse(id).unwrap());
    let access = Access {
        direction: Direction::Inbound,
        source: Source {
            peer: id.as_ref().map_or(Peer::Plaintext, Peer::Verified),
            ip: None,
            namespace: None,
            labels: None,
        },
        destination: Destination {
            workload: Some(&name),
            ip: None,
            port: request.port,
            protocol: Protocol::Tcp,
        },
        http: request.http.map(|(method, path)| HttpRequest {
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
