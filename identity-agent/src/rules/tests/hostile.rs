//! Files that nobody writes in good faith.

use proptest::prelude::*;

use super::{RuleSet, Runs, load, rule, shell};
use postern_policies::SourceFile;

#[track_caller]
fn why_not(text: &str) -> String {
    match load(text) {
        Ok(set) => {
            let last = set.checked.last().unwrap();
            assert_eq!(last.runs, Runs::Not, "{last:?}");
            last.reasons[0].why.clone()
        }
        Err(found) => found[0].message.clone(),
    }
}

#[track_caller]
fn is_stopped(text: &str, words: &str) {
    let why = why_not(text);
    assert!(why.contains(words), "`{words}` in `{why}`");
}

#[test]
fn what_lies_too_deep_is_stopped() {
    for (open, close) in [("(", ")"), ("not ", ""), ("not(", ")")] {
        let condition = format!(
            "{}proc.name = a{}",
            open.repeat(10_000),
            close.repeat(10_000)
        );
        is_stopped(&rule(&condition), "deeper than");
    }
    let condition = format!("{}proc.name{} = a", "tolower(".repeat(99), ")".repeat(99));
    is_stopped(&rule(&condition), "transformers");
    let mut text = "- macro: m0\n  condition: proc.name = a\n".to_owned();
    for level in 1..60 {
        text += &format!("- macro: m{level}\n  condition: not (not m{})\n", level - 1);
    }
    is_stopped(&(text + &rule("m59")), "too deep");
}

#[test]
fn macros_and_lists_that_grow_are_stopped() {
    let mut text =
        "- macro: m0\n  condition: proc.name = a\n- list: l0\n  items: [a, b]\n".to_owned();
    for level in 1..20 {
        let before = level - 1;
        text += &format!("- macro: m{level}\n  condition: m{before} or m{before} or m{before}\n");
        text += &format!("- list: l{level}\n  items: [l{before}, l{before}, l{before}]\n");
    }
    is_stopped(&format!("{text}{}", rule("m19")), "tests");
    is_stopped(
        &format!("{text}{}", rule("spawned_process and proc.name in (l19)")),
        "items",
    );
}

#[test]
fn macros_and_lists_of_themselves_are_stopped() {
    let text =
        "- macro: a\n  condition: b\n- macro: b\n  condition: not a\n- list: l\n  items: [l]\n";
    is_stopped(&format!("{text}{}", rule("a")), "made of itself");
    is_stopped(
        &format!("{text}{}", rule("spawned_process and proc.name in (l)")),
        "made of itself",
    );
}

#[test]
fn lists_of_each_other_are_stopped() {
    let text = "- list: a\n  items: [x, b]\n- list: b\n  items: [y, a]\n";
    is_stopped(
        &format!("{text}{}", rule("spawned_process and proc.name in (a)")),
        "made of itself",
    );
}

#[test]
fn rules_that_are_small_alone_and_too_many_together_are_stopped() {
    let mut text = "- macro: m0\n  condition: proc.name = a\n".to_owned();
    for level in 1..10 {
        let before = level - 1;
        text += &format!("- macro: m{level}\n  condition: m{before} or m{before} or m{before}\n");
    }
    for number in 0..6 {
        text += &rule("spawned_process and m9").replace("rule: R", &format!("rule: R{number}"));
    }
    let set = load(&text).unwrap();
    let (last, first) = set.checked.split_last().unwrap();
    assert!(first.iter().all(|one| one.runs == Runs::Whole));
    assert_eq!(last.runs, Runs::Not);
    let why = &last.reasons[0].why;
    assert_eq!(why, "all rules together have more than 100000 tests");

    let items = "a, ".repeat(9_000);
    let tests = "proc.name in (l) or ".repeat(60);
    let text = format!(
        "- list: l\n  items: [{items}a]\n{}",
        rule(&format!("spawned_process and ({tests}never_true)"))
    );
    is_stopped(&text, "more than 500000 values in lists");
}

#[test]
fn lists_of_yaml_that_lie_too_deep_are_stopped() {
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "")] {
        let text = format!("{}x{}", open.repeat(10_000), close.repeat(10_000));
        let found = load(&text).unwrap_err();
        let why = found[0].message.as_str();
        assert!(why.contains("deeper than 32"), "{why}");
    }
}

#[test]
fn what_is_too_long_is_stopped() {
    is_stopped(&rule(&"proc.name = a or ".repeat(9_000)), "bytes");
    let items = "a, ".repeat(20_000);
    is_stopped(&rule(&format!("proc.name in ({items}a)")), "items");
    is_stopped(&format!("- list: l\n  items: [{items}a]\n"), "items");
    let file = SourceFile {
        path: "r.yaml".into(),
        text: vec![b'#'; super::super::MAX_FILE_BYTES + 1],
    };
    let found = RuleSet::load(&[file]).unwrap_err();
    assert!(found[0].message.contains("bytes"), "{}", found[0]);
    is_stopped(
        &rule("spawned_process and proc.name regex \"(a{1000}){1000}\""),
        "regular expression",
    );
}

#[test]
fn aliases_that_grow_are_stopped() {
    let mut text = String::from("- &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        text += &format!("- &a{level} [{}]\n", vec![before; 9].join(", "));
    }
    let found = load(&text).unwrap_err();
    let why = found[0].message.as_str();
    assert!(why.contains("more than 4000000 values"), "{why}");
}

#[test]
fn bytes_that_are_no_text_are_told() {
    let file = SourceFile {
        path: "r.yaml".into(),
        text: b"- rule: \xff\n".to_vec(),
    };
    let found = RuleSet::load(&[file]).unwrap_err();
    assert!(found[0].message.contains("UTF-8"));
}

/// Conditions of two fields: one that is filled, and one that nobody fills.
fn conditions() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("proc.name = bash".to_owned()),
        Just("proc.name = other".to_owned()),
        Just("UNKNOWN".to_owned()),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| format!("not ({one})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) and ({b})")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("({a}) or ({b})")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let file = SourceFile { path: "r.yaml".into(), text: bytes };
        let _ = RuleSet::load(&[file]);
    }

    #[test]
    fn no_condition_breaks_the_parser(
        text in "(proc\\.name|evt\\.type|container|spawned_process|and|or|not|in|exists|glob|regex|\\(|\\)|\\[|\\]|=|!=|<|,|\"|'| |a|1|\\*|ä|val\\(|len\\(){0,40}"
    ) {
        if let Ok(set) = load(&rule(&text)) {
            set.hits(&shell()).for_each(|hit| drop(hit.line(&shell())));
        }
    }

    #[test]
    fn no_file_like_rules_breaks_the_reader(
        text in "(- rule: |- macro: |- list: |  condition: |  items: |  append: true|  override: |  exceptions: |\n|\\[|\\]|\\{|\\}|: |a|>|%proc\\.name|%){0,40}"
    ) {
        let _ = load(&text);
    }

    /// What runs in part hits nothing that it would not hit if it knew the rest.
    #[test]
    fn a_hit_holds_whatever_is_unknown(condition in conditions()) {
        let with = |unknown: &str| {
            let condition = condition.replace("UNKNOWN", unknown);
            let text = rule(&format!("spawned_process and ({condition})"));
            load(&text).unwrap().hits(&shell()).count() == 1
        };
        if with("proc.nthreads = 1") {
            prop_assert!(with("always_true") && with("never_true"));
        }
    }
}
