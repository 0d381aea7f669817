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

mod worlds;

use std::collections::BTreeSet;

use postern_policies::{
    Defaults, PolicySet,
    classes::{self, Asked},
    decide::{Protocol, Verdict},
};

use worlds::{
    Authorization, Dice, Field, Network, Request, Rule, World, authorization, engine, load,
    request, workload_name, workloads, world, yaml,
};

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

/// Callers, and what both sets say to them on each port.
type Answers = (BTreeSet<Option<String>>, BTreeSet<(u16, bool, bool)>);

/// What each caller gets at a workload under two sets, over all classes.
fn answers(sets: &[&PolicySet; 2], to: usize, http: bool) -> Vec<Answers> {
    let mut all = Vec::new();
    for port in [80, 81] {
        let asked = Asked {
            http,
            port: Some((port, Protocol::Tcp)),
            ..Asked::default()
        };
        for group in classes::of(sets, &workload_name(to), &asked).unwrap() {
            let callers = group.all.iter();
            let callers = callers.map(|one| one.identity.as_ref().map(ToString::to_string));
            let allows = |set: &PolicySet, example: &classes::Example| {
                example.with(|access| set.decide(access).verdict == Verdict::Allow)
            };
            let pairs = group.examples.iter();
            let pairs = pairs.map(|one| (port, allows(sets[0], one), allows(sets[1], one)));
            all.push((callers.collect(), pairs.collect()));
        }
    }
    all
}

#[test]
fn no_access_is_outside_the_classes() {
    random_worlds(5, 150, |dice, before, defaults| {
        let mut after = before.clone();
        after.authorization.push(authorization(dice));
        if dice.chance(50) {
            after.authorization.swap_remove(0);
        }
        let (before, after) = (
            load(&yaml(&before), defaults),
            load(&yaml(&after), defaults),
        );
        let mut known = std::collections::BTreeMap::new();
        for _ in 0..REQUESTS {
            let request = request(dice);
            let key = (request.to, request.http.is_some());
            let groups = known
                .entry(key)
                .or_insert_with(|| answers(&[&before, &after], key.0, key.1));
            let pair = (
                request.port,
                engine(&before, &request),
                engine(&after, &request),
            );
            let found = groups
                .iter()
                .any(|(callers, pairs)| callers.contains(&request.from) && pairs.contains(&pair));
            assert!(
                found,
                "{:?} {:?} {pair:?} {groups:?}",
                request.from, request.http
            );
        }
    });
}
