//! Documents that nobody writes in good faith, and places in files that are easy to get wrong.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use postern_policies::{Diagnostic, Options, PolicySet, SourceFile};
use postern_spiffe::TrustDomain;
use proptest::prelude::*;

fn load(text: &[u8]) -> Result<PolicySet, Vec<Diagnostic>> {
    let file = SourceFile {
        path: "p.yaml".into(),
        text: text.to_vec(),
    };
    let options = Options::new(TrustDomain::parse("cluster.local").unwrap());
    PolicySet::load(&[file], &options).map(|loaded| loaded.set)
}

#[track_caller]
fn refused(text: &[u8], line: u32, said: &str) {
    let found = load(text).unwrap_err();
    let first = found.first().unwrap();
    assert!(
        first.message.contains(said),
        "`{said}` in `{}`",
        first.message
    );
    assert_eq!(first.line, line, "{}", first.message);
}

const POLICY: &str =
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n";

#[test]
fn aliases_that_grow_are_stopped() {
    // FAULTS: billion laughs
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        let items = vec![before; 9].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    assert!(load(text.as_bytes()).is_err());
}

#[test]
fn what_lies_too_deep_is_stopped() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let text = format!("{}x{}", open.repeat(5_000), close.repeat(5_000));
        assert!(load(text.as_bytes()).is_err());
    }
    let mut block = String::new();
    for depth in 0..500 {
        block.push_str(&" ".repeat(depth));
        block.push_str("a:\n");
    }
    assert!(load(block.as_bytes()).is_err());
}

#[test]
fn a_very_long_text_is_a_mistake_and_no_more() {
    let text = format!("{POLICY}spec: {{action: {}}}\n", "x".repeat(10 << 20));
    refused(text.as_bytes(), 4, "is no action");
}

#[test]
fn bytes_that_are_no_text_are_told_with_their_line() {
    refused(b"apiVersion: v1\nkind: \xff\n", 2, "not UTF-8");
    refused(b"\xff", 1, "not UTF-8");
}

#[test]
fn a_key_that_stands_twice_is_a_mistake() {
    let text = format!("{POLICY}spec:\n  action: DENY\n  action: ALLOW\n");
    refused(text.as_bytes(), 6, "duplicate key `action`");
}

#[test]
fn lines_are_counted_as_an_editor_counts_them() {
    let wrong =
        "spec:\n  # a comment\n  rules:\n  - to:\n    - operation:\n        methdos: [GET]\n";
    let plain = format!("{POLICY}{wrong}");
    refused(plain.as_bytes(), 9, "unknown field `methdos`");
    // With the line ends of Windows.
    let windows = plain.replace('\n', "\r\n");
    refused(windows.as_bytes(), 9, "unknown field `methdos`");
    // After comments, empty lines and other documents.
    let later = format!("# first\n\n---\n{POLICY}\n---\n# second\n{plain}")
        .replacen("name: a", "name: b", 1);
    refused(later.as_bytes(), 18, "unknown field `methdos`");
    // After a text of many lines.
    let text = format!("{POLICY}spec:\n  action: |\n    one\n    two\n  rulez: []\n");
    let found = load(text.as_bytes()).unwrap_err();
    assert!(
        found
            .iter()
            .any(|one| one.line == 8 && one.message.contains("rulez"))
    );
    // After letters of several bytes the column counts letters.
    let wide = format!("{POLICY}spec: {{action: \"ÄÖÜ\", rulez: []}}\n");
    let found = load(wide.as_bytes()).unwrap_err();
    assert!(
        found.iter().any(|one| (one.line, one.column) == (4, 23)),
        "{found:?}"
    );
}

#[test]
fn what_an_alias_brings_is_told_where_it_is_used() {
    let text = format!(
        "{POLICY}spec:\n  rules:\n  - to:\n    - operation: &o {{methods: [GET]}}\n  - to:\n    - operation: *o\n    - operation: {{methods: *x}}\n"
    );
    refused(text.as_bytes(), 10, "unknown anchor");
    let text = format!("{POLICY}spec:\n  rules: &r []\n  action: *r\n");
    refused(text.as_bytes(), 6, "`action` must be a string");
}

#[test]
fn every_mistake_is_told_in_one_run() {
    let text = format!(
        "{POLICY}spec:\n  actoin: DENY\n  rules:\n  - form: []\n  - to: [{{operation: {{ports: [80]}}}}]\n---\nkind: x\n"
    );
    let found = load(text.as_bytes()).unwrap_err();
    let lines: Vec<u32> = found.iter().map(|one| one.line).collect();
    assert_eq!(lines, [5, 7, 8, 10], "{found:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = load(&bytes);
    }

    #[test]
    fn no_text_like_yaml_breaks_the_reader(
        text in "(apiVersion|kind|spec|rules|- |  |: |\\{|\\}|\\[|\\]|&a|\\*a|\n|\"|'|#|x|1|---\n|\\||>){0,60}"
    ) {
        let _ = load(text.as_bytes());
        let _ = load(format!("{POLICY}spec: {text}").as_bytes());
    }
}
