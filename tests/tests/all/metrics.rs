//! `docs/metrics.md` and the daemons name the same metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
};

use postern_tests::{root, world::free_address};

use super::ending::{Site, curl};

/// The names in the page, as a query would write them, and their types.
fn documented() -> BTreeMap<String, String> {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `postern_")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?;
        Some((format!("postern_{name}"), cells.next()?.to_owned()))
    });
    let all: Vec<_> = rows.collect();
    let named: BTreeMap<_, _> = all.iter().cloned().collect();
    assert_eq!(named.len(), all.len(), "a metric stands twice in the page");
    named
}

/// What a daemon tells, likewise, and the labels that it has used.
fn told(by: SocketAddr) -> (BTreeMap<String, String>, BTreeMap<String, BTreeSet<String>>) {
    let text = curl(by, "/metrics");
    let mut types = BTreeMap::new();
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(told) = line.strip_prefix("# type ") {
            let (name, kind) = told.split_once(' ').unwrap();
            let ending = if kind == "counter" { "_total" } else { "" };
            types.insert(format!("{name}{ending}"), kind.to_owned());
        }
        if let Some((name, rest)) = line.split_once('{') {
            let (pairs, _) = rest.split_once('}').unwrap();
            let names = pairs.split(',').filter_map(|pair| pair.split_once('='));
            let names = names.map(|(name, _)| name.to_owned());
            labels.entry(name.to_owned()).or_default().extend(names);
        }
    }
    (types, labels)
}

#[test]
fn the_page_names_every_metric_of_both_daemons_and_no_other() {
    let mut site = Site::start("1s");
    let health = free_address().unwrap();
    let more = format!("health: {{listen: '{health}'}}\n");
    site.world.agent_with("", &more).unwrap();
    // So that some have labels.
    curl(site.out, "/api");
    curl(site.out, "/../admin");
    let (mut types, mut labels) = told(site.web_health);
    let (of_agent, labels_of_agent) = told(health);
    types.extend(of_agent);
    labels.extend(labels_of_agent);
    let documented = documented();
    let only = |ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>| {
        let missing = ours
            .iter()
            .filter(|(name, kind)| theirs.get(*name) != Some(kind));
        missing
            .map(|(name, kind)| format!("{name} ({kind})"))
            .collect::<Vec<_>>()
    };
    assert_eq!(only(&types, &documented), [""; 0], "not in docs/metrics.md");
    assert_eq!(only(&documented, &types), [""; 0], "told by no daemon");
    // And each label that was used.
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    for (name, used) in labels {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}`")));
        let row = row.unwrap();
        for label in used {
            assert!(row.contains(&format!("`{label}`")), "`{label}` of {name}");
        }
    }
}
