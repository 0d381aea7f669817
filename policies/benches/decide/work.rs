//! The work that is measured: policies of which ten concern the workload that is asked for, and a
//! caller whom none of them names, the longest way.

use std::{
    fmt::Write as _,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use postern_policies::{
    Defaults, Options, PolicySet, SourceFile,
    decide::{
        Access, Destination, Direction, HttpRequest, NoHeaders, Peer, Protocol, Source, Verdict,
    },
    model::workload::WorkloadName,
};
use postern_spiffe::{SpiffeId, TrustDomain};

/// How many policies there are, in turn.
pub(crate) const SIZES: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const OWN: usize = 10;
/// Decisions in one measurement.
pub(crate) const ROUNDS: u32 = 20_000;

/// Loads that many policies.
pub(crate) fn load(size: usize) -> Result<PolicySet, Box<dyn std::error::Error>> {
    let options = Options {
        defaults: Defaults {
            network: Verdict::Allow,
            authorization: Verdict::Deny,
        },
        ..Options::new(TrustDomain::parse("cluster.local")?)
    };
    let file = SourceFile {
        path: "all.yaml".into(),
        text: documents(size)?.into_bytes(),
    };
    match PolicySet::load(&[file], &options) {
        Ok(loaded) => Ok(loaded.set),
        Err(_) => Err("the documents do not load".into()),
    }
}

/// The policies that concern `web` are spread over all of them.
pub(crate) fn is_own(index: usize, size: usize) -> bool {
    let step = (size / OWN).max(1);
    index.is_multiple_of(step)
}

/// The documents.
pub(crate) fn documents(size: usize) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    for app in ["web", "other"] {
        write!(
            text,
            "{{apiVersion: postern.dev/v1, kind: Workload, metadata: {{name: {app}, labels: {{app: \
             {app}}}}}, spec: {{serviceAccount: {app}}}}}\n---\n"
        )?;
    }
    for index in 0..size {
        let app = if is_own(index, size) { "web" } else { "other" };
        write!(
            text,
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p{index}}}\nspec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  \
             rules:\n    - from: [{{source: {{principals: ['cluster.local/ns/default/sa/c{index}']}}}}]\n      \
             to: [{{operation: {{methods: [GET], paths: ['/api/v1/*']}}}}]\n---\n"
        )?;
    }
    Ok(text)
}

/// Whether anything was allowed.
pub(crate) type Answer = Result<bool, Box<dyn std::error::Error>>;

/// Nobody's principal matches: the longest way.
pub(crate) fn decide(set: &PolicySet) -> Answer {
    let id = caller()?;
    let name = WorkloadName {
        namespace: Arc::from("default"),
        name: Arc::from("web"),
    };
    let mut allowed = false;
    for _ in 0..ROUNDS {
        let access = Access {
            direction: Direction::Inbound,
            source: Source {
                peer: Peer::Verified(&id),
                ip: None,
                namespace: None,
                labels: None,
            },
            destination: Destination {
                workload: Some(&name),
                ip: None,
                port: 8080,
                protocol: Protocol::Tcp,
            },
            http: Some(HttpRequest {
                method: "GET",
                path: "/api/v1/orders",
                host: None,
                headers: &NoHeaders,
            }),
            token: None,
            sni: None,
        };
        allowed |= set.decide(black_box(&access)).verdict == Verdict::Allow;
    }
    Ok(allowed)
}

/// Who asks.
pub(crate) fn caller() -> Result<SpiffeId, Box<dyn std::error::Error>> {
    Ok(SpiffeId::parse(
        "spiffe://cluster.local/ns/default/sa/nobody",
    )?)
}

/// A rule of the scan.
pub(crate) struct Rule {
    pub(crate) own: bool,
    pub(crate) principal: String,
}

/// The rules of the scan.
pub(crate) fn rules(size: usize) -> Vec<Rule> {
    (0..size)
        .map(|index| Rule {
            own: is_own(index, size),
            principal: format!("cluster.local/ns/default/sa/c{index}"),
        })
        .collect()
}

/// What grows in other products: a walk over all rules.
pub(crate) fn scan(rules: &[Rule]) -> bool {
    let mut allowed = false;
    for _ in 0..ROUNDS {
        let asked = black_box("cluster.local/ns/default/sa/nobody");
        let path = black_box("/api/v1/orders");
        allowed |= rules
            .iter()
            .any(|rule| rule.own && rule.principal == asked && path.starts_with("/api/v1/"));
    }
    allowed
}

/// Nanoseconds of one decision: the median of several measurements.
pub(crate) fn median(
    rounds: u32,
    mut run: impl FnMut() -> Answer,
) -> Result<u128, Box<dyn std::error::Error>> {
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..7 {
        let began = Instant::now();
        black_box(run()?);
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok(middle.as_nanos() / u128::from(rounds))
}
