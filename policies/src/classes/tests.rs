//! What a person would ask, and the classes that answer.

use std::collections::BTreeSet;

use super::{Asked, Callers, of};
use crate::{
    Defaults, Options, PolicySet, SourceFile,
    decide::{Protocol, Verdict},
    model::workload::WorkloadName,
};

fn set(policies: &str) -> PolicySet {
    let text = format!(
        "{{apiVersion: postern.dev/v1, kind: Workload, metadata: {{name: web}}, spec: {{serviceAccount: web}}}}\n---\n\
         {policies}"
    );
    let files = [SourceFile {
        path: "p.yaml".into(),
        text: text.into(),
    }];
    let options = Options {
        defaults: Defaults {
            network: Verdict::Allow,
            authorization: Verdict::Deny,
        },
        ..Options::new("example.org".parse().unwrap())
    };
    PolicySet::load(&files, &options).unwrap().set
}

fn authorization(spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p}}, spec: {spec}}}\n"
    )
}

fn classes(set: &PolicySet, http: bool) -> Vec<Callers> {
    let web = WorkloadName {
        namespace: "default".into(),
        name: "web".into(),
    };
    let asked = Asked {
        http,
        port: Some((80, Protocol::Tcp)),
        ..Asked::default()
    };
    of(&[set], &web, &asked).unwrap()
}

/// What tells the allowed examples of plaintext from others, in words.
fn allowed(set: &PolicySet) -> BTreeSet<String> {
    let groups = classes(set, true);
    let plain = groups
        .iter()
        .filter(|group| group.all.iter().any(|one| one.identity.is_none()));
    let examples = plain.flat_map(|group| &group.examples);
    let allowed =
        examples.filter(|one| one.with(|access| set.decide(access).verdict == Verdict::Allow));
    allowed
        .map(|one| {
            let http = one.http.as_ref().unwrap();
            let token = one
                .token
                .as_ref()
                .map(|token| serde_json::to_string(&token.claims).unwrap());
            format!(
                "{} {} {:?} {}",
                http.method,
                http.path,
                http.headers,
                token.unwrap_or_default()
            )
        })
        .collect()
}

#[test]
fn conditions_on_fields_that_need_each_other_are_found() {
    let rules = "{rules: [{to: [{operation: {methods: [PUT], paths: ['/a*'], notPaths: ['*z']}}], \
                 when: [{key: 'request.headers[x-a]', values: ['b*'], notValues: ['*c']}]}]}";
    assert_eq!(
        allowed(&set(&authorization(rules))),
        BTreeSet::from(["PUT /a {\"x-a\": \"b\"} ".into()])
    );
}

#[test]
fn a_claim_that_must_and_must_not_is_found_as_one_text_and_never_in_vain() {
    let tokens = "{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: t}, \
                  spec: {jwtRules: [{issuer: 'i', audiences: [a]}]}}\n---\n";
    let rules = "{rules: [{when: [{key: 'request.auth.claims[g]', values: [v], notValues: [w]}]}]}";
    let found = allowed(&set(&format!("{tokens}{}", authorization(rules))));
    let token = r#"{"aud":"a","g":"v","iss":"i"}"#;
    assert_eq!(found, BTreeSet::from([format!("GET /other {{}} {token}")]));
    // Both at once can be: a list has many texts.
    let both = "{rules: [{when: [{key: 'request.auth.claims[g]', values: [v]}, \
                {key: 'request.auth.claims[g]', values: [w]}]}]}";
    let found = allowed(&set(&format!("{tokens}{}", authorization(both))));
    assert!(
        found.iter().any(|one| one.contains(r#""g":["#)),
        "{found:?}"
    );
    // Where no token has a meaning, none helps.
    assert!(allowed(&set(&authorization(rules))).is_empty());
}

#[test]
fn a_stranger_stands_for_each_kind_of_stranger() {
    let rules = "{rules: [{from: [{source: {namespaces: [a, 'b*']}}, {source: {trustDomains: [other.org]}}, \
                 {source: {serviceAccounts: [a/x]}}]}]}";
    let groups = classes(&set(&authorization(rules)), false);
    let ids = groups
        .iter()
        .flat_map(|group| &group.all)
        .filter_map(|one| one.identity.as_ref());
    let ids: Vec<String> = ids.map(ToString::to_string).collect();
    for part in ["/ns/a", "/ns/b", "/ns/a/sa/x", "spiffe://other.org/"] {
        assert!(ids.iter().any(|id| id.contains(part)), "{part} in {ids:?}");
    }
    assert!(
        !ids.iter()
            .skip(1)
            .any(|id| id == "spiffe://example.org/ns/default/sa/web")
    );
}
