//! Patterns, by tables.

use super::{PathTemplate, Pattern};

#[track_caller]
fn check(pattern: &str, text: &str, expected: bool) {
    let matched = Pattern::text(pattern).matches_text(text.as_bytes());
    assert_eq!(matched, expected, "`{pattern}` against `{text}`");
}

#[test]
fn stars_mean_presence_suffix_or_prefix_and_nothing_else() {
    // POLICY 16
    for (pattern, text, expected) in [
        ("*", "x", true),
        ("*", "", false),
        ("*x", "ax", true),
        ("*x", "xa", false),
        ("x*", "xa", true),
        ("x*", "ax", false),
        ("x*", "x", true),
        ("*x*", "ax*", true),
        ("*x*", "axb", false),
        ("a*b", "a*b", true),
        ("a*b", "axb", false),
        ("GET", "GET", true),
        ("GET", "get", false),
    ] {
        check(pattern, text, expected);
    }
}

#[test]
fn templates_match_whole_paths() {
    // POLICY 21
    for (template, path, expected) in [
        ("/foo/{*}", "/foo/bar", true),
        ("/foo/{*}", "/foo/", false),
        ("/foo/{*}", "/foo/bar/", false),
        ("/foo/{*}", "/foo/a=b", false),
        ("/foo/{*}/x", "/foo/bar/x", true),
        ("/foo/{**}", "/foo/", true),
        ("/foo/{**}", "/foo", false),
        ("/foo/{**}", "/foo/a/b", true),
        ("/store/{**}/cart", "/store//cart", true),
        ("/store/{**}/cart", "/store/cart", false),
        ("/store/{**}/cart", "/store/a/b/cart", true),
        ("/{*}/x/{**}", "/a/x/", true),
        ("/{**}", "/", true),
    ] {
        let parsed = PathTemplate::parse(template).unwrap();
        assert_eq!(
            parsed.matches(path.as_bytes()),
            expected,
            "`{template}` against `{path}`"
        );
    }
}

#[test]
fn templates_that_envoy_refuses_are_refused() {
    for template in [
        "foo/{*}",
        "/{**}/{*}",
        "/{**}/{**}",
        "/a{*}",
        "/{*}/b*",
        "/{x}/{*}",
        "/{*}{*}",
    ] {
        assert!(PathTemplate::parse(template).is_err(), "`{template}`");
    }
}

#[test]
fn hosts_compare_without_case() {
    // POLICY 17
    for (pattern, host, expected) in [
        ("example.com", "EXAMPLE.com", true),
        ("example.com", "example.com:8080", false),
        ("example.com:*", "example.com:8080", true),
        ("*.example.com", "a.Example.Com", true),
        ("*.example.com", "com", false),
        ("*", "", false),
    ] {
        let pattern = Pattern::text(pattern);
        assert_eq!(
            pattern.matches_host(host.as_bytes()),
            expected,
            "`{pattern}` `{host}`"
        );
    }
}
