//! What is looked up, and what is walked over.

use super::{Spot, Spots};
use crate::{Options, SourceFile, parse};

fn spots(rules: &str) -> Spots {
    let text = format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: a}}, spec: {{rules: {rules}}}}}"
    );
    let files = [SourceFile {
        path: "p.yaml".into(),
        text: text.into(),
    }];
    let options = Options::new("example.org".parse().unwrap());
    let (documents, found) = parse::read(&files, &options);
    assert!(found.is_empty(), "{found:?}");
    Spots::of(&documents.authorization_policies, &[0])
}

#[track_caller]
fn finds(spots: &Spots, principal: Option<&str>, rules: &[u32]) {
    let found: Vec<u32> = spots
        .candidates(principal)
        .map(|Spot { rule, .. }| rule)
        .collect();
    assert_eq!(found, rules, "{principal:?}");
}

#[test]
fn rules_are_found_by_their_principals_and_stay_in_order() {
    let spots = spots(
        "[{from: [{source: {principals: [a/x, b/x]}}]}, {from: [{source: {principals: ['a/*']}}]}, \
         {from: [{source: {principals: [a/x]}}, {source: {principals: [c/x], namespaces: [m]}}]}, \
         {from: [{source: {notPrincipals: [a/x]}}]}, {from: [{source: {principals: [a/x]}}, \
         {source: {namespaces: [m]}}]}, {from: [{source: {principals: [a/x]}}]}]",
    );
    finds(&spots, Some("a/x"), &[0, 1, 2, 3, 4, 5]);
    finds(&spots, Some("b/x"), &[0, 1, 3, 4]);
    finds(&spots, Some("c/x"), &[1, 2, 3, 4]);
    finds(&spots, Some("a/y"), &[1, 3, 4]);
    finds(&spots, None, &[1, 3, 4]);
}

#[test]
fn a_rule_for_anybody_is_found_for_anybody() {
    let spots = spots("[{}, {to: [{operation: {methods: [GET]}}]}]");
    finds(&spots, Some("a/x"), &[0, 1]);
    finds(&spots, None, &[0, 1]);
}
