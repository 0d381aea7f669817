//! The engine against a slow and obvious evaluator, on random policies and requests.
//!
//! The evaluator shares no code with the engine: it walks over everything for every question, and
//! is to be read beside the standards' own words.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

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
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(sides).unwrap()).unwrap()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from.get(self.roll(from.len())).copied().unwrap()
    }

    fn some<'a>(&mut self, from: &[&'a str]) -> Vec<&'a str> {
        let mut all: Vec<&str> = (0..=self.roll(2)).map(|_| self.pick(from)).collect();
        all.dedup();
        all
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }
}

const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
const APPS: [&str; 3] = ["x", "y", "z"];
const PRINCIPALS: [&str; 6] = [
    "*",
    "cluster.local/ns/a/sa/x",
    "cluster.local/ns/b/*",
    "*/sa/y",
    "cluster.local/ns/a/sa/none",
    "spiffe://cluster.local/ns/a/sa/x",
];
const PATHS: [&str; 5] = ["/", "/api/*", "*.html", "/api/users", "*"];
const REAL_PATHS: [&str; 5] = ["/", "/api/", "/api/users", "/index.html", "/other"];
const METHODS: [&str; 3] = ["GET", "POST", "*"];
const PORTS: [&str; 2] = ["80", "81"];

struct Workload {
    namespace: &'static str,
    app: &'static str,
}

impl Workload {
    fn id(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.namespace, self.app
        )
    }
}

#[derive(Clone)]
struct Field {
    name: &'static str,
    values: Vec<&'static str>,
    negated: bool,
}

#[derive(Clone)]
struct Rule {
    from: Vec<Vec<Field>>,
    to: Vec<Vec<Field>>,
}

#[derive(Clone)]
struct Authorization {
    namespace: &'static str,
    app: Option<&'static str>,
    action: &'static str,
    dry_run: bool,
    rules: Vec<Rule>,
}

/// Namespace and app; nothing in the place of the first is the policy's own, of the second any.
type PeerOf = (Option<&'static str>, Option<&'static str>);

#[derive(Clone)]
struct Network {
    namespace: &'static str,
    app: Option<&'static str>,
    /// Peers and ports; none are any.
    rules: Vec<(Vec<PeerOf>, Vec<u16>)>,
}

#[derive(Clone)]
struct Mtls {
    namespace: &'static str,
    app: Option<&'static str>,
    mode: &'static str,
}

#[derive(Clone)]
struct World {
    authorization: Vec<Authorization>,
    network: Vec<Network>,
    mtls: Vec<Mtls>,
}

struct Request {
    from: Option<String>,
    to: usize,
    port: u16,
    http: Option<(&'static str, &'static str)>,
}

fn workloads() -> Vec<Workload> {
    NAMESPACES
        .iter()
        .flat_map(|namespace| APPS.iter().map(move |app| Workload { namespace, app }))
        .collect()
}

fn fields(dice: &mut Dice, of: &[(&'static str, &[&'static str])]) -> Vec<Field> {
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

fn authorization(dice: &mut Dice) -> Authorization {
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

fn network(dice: &mut Dice) -> Network {
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

fn world(dice: &mut Dice) -> World {
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

fn request(dice: &mut Dice) -> Request {
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

fn yaml(world: &World) -> Vec<String> {
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

fn rule_yaml(rule: &Rule) -> String {
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

fn load(documents: &[String], defaults: Defaults) -> PolicySet {
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

fn engine(set: &PolicySet, request: &Request) -> bool {
    let all = workloads();
    let to = &all[request.to];
    let name = WorkloadName {
        namespace: Arc::from(to.namespace),
        name: Arc::from(to.app),
    };
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

// ---- The evaluator.

fn text_matches(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        return !text.is_empty();
    }
    if let Some(suffix) = pattern.strip_prefix('*') {
        return text.ends_with(suffix);
    }
    if let Some(prefix) = pattern.strip_suffix('*') {
        return text.starts_with(prefix);
    }
    pattern == text
}

fn is_http(field: &Field) -> bool {
    field.name == "methods" || field.name == "paths"
}

fn field_holds(field: &Field, request: &Request) -> bool {
    let value: Option<String> = match field.name {
        "principals" => request
            .from
            .as_ref()
            .map(|id| id.strip_prefix("spiffe://").unwrap().to_owned()),
        "namespaces" => request
            .from
            .as_ref()
            .map(|id| id.split('/').nth(4).unwrap().to_owned()),
        "ports" => Some(request.port.to_string()),
        "methods" => request.http.map(|(method, _)| method.to_owned()),
        "paths" => request.http.map(|(_, path)| path.to_owned()),
        other => panic!("{other}"),
    };
    let matches = value.is_some_and(|value| {
        field
            .values
            .iter()
            .any(|pattern| text_matches(pattern, &value))
    });
    matches != field.negated
}

fn rule_holds(rule: &Rule, action: &str, request: &Request) -> bool {
    let all = || rule.from.iter().chain(&rule.to).flatten();
    if request.http.is_none() && action == "ALLOW" && all().any(is_http) {
        return false;
    }
    let item = |fields: &Vec<Field>| {
        fields
            .iter()
            .filter(|field| request.http.is_some() || !is_http(field))
            .all(|field| field_holds(field, request))
    };
    (rule.from.is_empty() || rule.from.iter().any(item))
        && (rule.to.is_empty() || rule.to.iter().any(item))
}

fn reference(world: &World, defaults: Defaults, request: &Request) -> bool {
    let all = workloads();
    let to = &all[request.to];
    let selected = |namespace: &str, app: Option<&str>| {
        namespace == to.namespace && app.is_none_or(|app| app == to.app)
    };
    // Who must prove an identity: the narrowest scope that says something.
    let mode = |namespace: &str, narrow: bool| {
        let found = world.mtls.iter().find(|policy| {
            policy.namespace == namespace
                && policy.app.is_some() == narrow
                && policy.app.is_none_or(|app| app == to.app)
        });
        found
            .map(|policy| policy.mode)
            .filter(|mode| *mode != "UNSET")
    };
    let narrow = match to.namespace {
        "istio-system" => None,
        namespace => mode(namespace, true),
    };
    let mode = narrow
        .or_else(|| mode(to.namespace, false))
        .or_else(|| mode("istio-system", false))
        .unwrap_or("PERMISSIVE");
    if request.from.is_none() && mode == "STRICT" {
        return false;
    }
    // The network.
    let isolating: Vec<&Network> = world
        .network
        .iter()
        .filter(|policy| selected(policy.namespace, policy.app))
        .collect();
    let from = all
        .iter()
        .find(|workload| Some(workload.id()) == request.from);
    let network = match isolating.is_empty() {
        true => defaults.network == Verdict::Allow,
        false => isolating.iter().any(|policy| {
            policy.rules.iter().any(|(peers, ports)| {
                let peer = peers.is_empty()
                    || peers.iter().any(|(namespace, app)| {
                        from.is_some_and(|from| {
                            from.namespace == namespace.unwrap_or(policy.namespace)
                                && app.is_none_or(|app| app == from.app)
                        })
                    });
                peer && (ports.is_empty() || ports.contains(&request.port))
            })
        }),
    };
    if !network {
        return false;
    }
    // Authorization.
    let applies = |policy: &&Authorization| {
        (policy.namespace == to.namespace || policy.namespace == "istio-system")
            && policy.app.is_none_or(|app| app == to.app)
            && !policy.dry_run
    };
    let matches = |policy: &Authorization| {
        policy
            .rules
            .iter()
            .any(|rule| rule_holds(rule, policy.action, request))
    };
    let of = |action: &'static str| {
        world
            .authorization
            .iter()
            .filter(applies)
            .filter(move |policy| policy.action == action)
    };
    if of("DENY").any(matches) {
        return false;
    }
    match of("ALLOW").next() {
        None => defaults.authorization == Verdict::Allow,
        Some(_) => of("ALLOW").any(matches),
    }
}

// ---- The properties.

const SETS: usize = 2_500;
const REQUESTS: usize = 40;

fn random_worlds(seed: u64, sets: usize, mut each: impl FnMut(&mut Dice, World, Defaults)) {
    let mut dice = Dice(seed);
    for _ in 0..sets {
        let world = world(&mut dice);
        let defaults = match dice.chance(50) {
            true => Defaults::STRICT,
            false => Defaults::ISTIO,
        };
        each(&mut dice, world, defaults);
    }
}

#[test]
fn the_engine_decides_as_the_evaluator_does() {
    let mut allowed = 0;
    random_worlds(0x5eed, SETS, |dice, world, defaults| {
        let documents = yaml(&world);
        let set = load(&documents, defaults);
        for _ in 0..REQUESTS {
            let request = request(dice);
            let expected = reference(&world, defaults, &request);
            allowed += usize::from(expected);
            assert_eq!(
                engine(&set, &request),
                expected,
                "{:?} to {} on {} {:?} under {defaults:?} with\n{}",
                request.from,
                workloads()[request.to].id(),
                request.port,
                request.http,
                documents.concat()
            );
        }
    });
    // Neither answer is rare: a comparison of refusals alone would show little.
    assert!(
        (SETS * REQUESTS / 20..SETS * REQUESTS * 19 / 20).contains(&allowed),
        "{allowed}"
    );
}

/// Adds one policy and tells for random requests what was answered before and after.
fn with_one_more(
    seed: u64,
    only: Option<Defaults>,
    make: impl Fn(&mut Dice) -> Authorization,
    check: impl Fn(bool, bool),
) {
    random_worlds(seed, 300, |dice, world, defaults| {
        let defaults = only.unwrap_or(defaults);
        let mut more = world.clone();
        more.authorization.push(make(dice));
        let (before, after) = (load(&yaml(&world), defaults), load(&yaml(&more), defaults));
        for _ in 0..REQUESTS {
            let request = request(dice);
            check(engine(&before, &request), engine(&after, &request));
        }
    });
}

fn of_action(action: &'static str, dry_run: bool) -> impl Fn(&mut Dice) -> Authorization {
    move |dice| loop {
        let policy = authorization(dice);
        if policy.action == action {
            return Authorization { dry_run, ..policy };
        }
    }
}

#[test]
fn under_strict_one_more_allow_never_closes() {
    with_one_more(
        1,
        Some(Defaults::STRICT),
        of_action("ALLOW", false),
        |before, after| {
            assert!(!before || after);
        },
    );
}

#[test]
fn one_more_deny_never_opens() {
    with_one_more(2, None, of_action("DENY", false), |before, after| {
        assert!(before || !after);
    });
}

#[test]
fn a_policy_that_is_only_tried_changes_nothing() {
    for action in ["ALLOW", "DENY"] {
        with_one_more(3, None, of_action(action, true), |before, after| {
            assert_eq!(before, after);
        });
    }
}

#[test]
fn the_order_of_files_never_matters() {
    random_worlds(4, 300, |dice, world, defaults| {
        let mut documents = yaml(&world);
        let set = load(&documents, defaults);
        for index in (1..documents.len()).rev() {
            documents.swap(index, dice.roll(index + 1));
        }
        let shuffled = load(&documents, defaults);
        for _ in 0..REQUESTS {
            let request = request(dice);
            assert_eq!(engine(&set, &request), engine(&shuffled, &request));
        }
    });
}
