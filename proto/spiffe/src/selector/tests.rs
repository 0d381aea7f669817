//! Selectors, by tables.

use super::{Selector, SelectorError};

#[test]
fn the_first_colon_divides() {
    for (text, kind, value) in [
        ("unix:uid:1000", "unix", "uid:1000"),
        ("docker:label:a:b", "docker", "label:a:b"),
        ("k8s:ns:x y", "k8s", "ns:x y"),
    ] {
        let selector = Selector::parse(text).unwrap();
        assert_eq!((selector.kind(), selector.value()), (kind, value));
        assert_eq!(selector.to_string(), text);
    }
}

#[test]
fn selectors_that_would_match_everyone_or_mean_nothing_are_refused() {
    // FAULTS 46
    for (text, expected) in [
        ("", SelectorError::NoColon),
        ("unix", SelectorError::NoColon),
        ("unix:", SelectorError::EmptyValue),
        ("unix:uid:", SelectorError::EmptyValue),
        (":uid", SelectorError::Type),
        ("Unix:uid:1", SelectorError::Type),
        ("un ix:uid:1", SelectorError::Type),
        ("unix:path:/a\n", SelectorError::Control),
        ("unix:path:/a\0b", SelectorError::Control),
    ] {
        assert_eq!(Selector::parse(text), Err(expected), "{text:?}");
    }
    let long = format!("unix:{}", "a".repeat(4096));
    assert_eq!(
        Selector::parse(&long),
        Err(SelectorError::TooLong { bytes: 4101 })
    );
}
