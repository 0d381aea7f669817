//! SPIFFE IDs, by tables and by a second statement of the rules.

use proptest::prelude::*;

use super::{SpiffeId, SpiffeIdError};
use crate::trust_domain::{TrustDomain, TrustDomainError};

#[test]
fn valid_ids_are_taken_apart() {
    for (text, domain, path) in [
        ("spiffe://td", "td", ""),
        ("spiffe://td/a", "td", "/a"),
        ("spiffe://td/A.b-c_d/9", "td", "/A.b-c_d/9"),
        ("spiffe://1.2.3.4/a", "1.2.3.4", "/a"),
        ("spiffe://td/...", "td", "/..."),
    ] {
        let id = SpiffeId::parse(text).unwrap();
        assert_eq!(
            (id.trust_domain().as_str(), id.path()),
            (domain, path),
            "{text}"
        );
        assert_eq!(id.to_string(), text);
    }
}

#[test]
fn ids_that_break_a_rule_are_refused_by_it() {
    let domain = |found| SpiffeIdError::TrustDomain(TrustDomainError::Character { found });
    let character = |found| SpiffeIdError::Character { found };
    for (text, expected) in [
        ("", SpiffeIdError::Empty),
        ("spiffe://td/", SpiffeIdError::EmptySegment),
        ("spiffe://td//a", SpiffeIdError::EmptySegment),
        ("spiffe://td/a/", SpiffeIdError::EmptySegment),
        ("spiffe://td/.", SpiffeIdError::DotSegment),
        ("spiffe://td/a/..", SpiffeIdError::DotSegment),
        ("spiffe://td/../a", SpiffeIdError::DotSegment),
        ("spiffe://TD/a", domain('T')),
        ("spiffe://td:1/a", domain(':')),
        ("spiffe://u@td/a", domain('@')),
        ("spiffe://td?b", domain('?')),
        ("spiffe://td/%41", character('%')),
        ("spiffe://td/a?b", character('?')),
        ("spiffe://td/a#b", character('#')),
        ("spiffe://td/a,b", character(',')),
        ("spiffe://td/a;b", character(';')),
        ("spiffe://td/a\0", character('\0')),
        ("spiffe://td/é", character('é')),
        (
            "spiffe:///a",
            SpiffeIdError::TrustDomain(TrustDomainError::Empty),
        ),
        ("http://td/a", SpiffeIdError::Scheme),
        ("SPIFFE://td/a", SpiffeIdError::Scheme),
        ("spiffe:/td/a", SpiffeIdError::Scheme),
    ] {
        // FAULTS 60, 61
        assert_eq!(SpiffeId::parse(text), Err(expected), "{text:?}");
    }
}

#[test]
fn exactly_2048_bytes_are_allowed() {
    // FAULTS 60
    let of_length =
        |bytes: usize| format!("spiffe://td/{}", "a".repeat(bytes - "spiffe://td/".len()));
    assert!(SpiffeId::parse(&of_length(2048)).is_ok());
    assert_eq!(
        SpiffeId::parse(&of_length(2049)),
        Err(SpiffeIdError::TooLong { bytes: 2049 })
    );
}

#[test]
fn every_byte_of_a_path_is_allowed_or_refused_by_the_rule() {
    for byte in 0..=u8::MAX {
        let c = char::from(byte);
        let allowed = c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        for path in [format!("a{c}"), format!("{c}a"), format!("a{c}a")] {
            // A slash between is a new segment, at an edge an empty one.
            let expected = allowed || (c == '/' && path.len() == 3);
            let text = format!("spiffe://td/{path}");
            assert_eq!(SpiffeId::parse(&text).is_ok(), expected, "{text:?}");
        }
    }
}

#[test]
fn service_accounts_are_read_from_the_default_layout_alone() {
    let of = |text| SpiffeId::parse(text).unwrap();
    let id = of("spiffe://td/ns/production/sa/web");
    assert_eq!(id.service_account(), Some(("production", "web")));
    for other in [
        "spiffe://td",
        "spiffe://td/ns/a/sa",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td/x/ns/a/sa/b",
    ] {
        assert_eq!(of(other).service_account(), None, "{other}");
    }
}

#[test]
fn a_name_with_a_slash_makes_no_other_identity() {
    let domain = TrustDomain::parse("td").unwrap();
    assert!(SpiffeId::for_service_account(&domain, "a", "b").is_ok());
    for (namespace, account) in [
        ("a/sa/b", "c"),
        ("a", "b/c"),
        ("..", "b"),
        ("a", ""),
        ("a", "%2e"),
    ] {
        assert!(SpiffeId::for_service_account(&domain, namespace, account).is_err());
    }
}

proptest! {
    #[test]
    fn whatever_is_accepted_obeys_the_rules_and_stays_as_it_is(text in "(spiffe://)?[a-zA-Z0-9._/%:@?#-]{0,40}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.as_str(), &text);
            let rest = text.strip_prefix("spiffe://").unwrap();
            let mut parts = rest.split('/');
            let domain = parts.next().unwrap();
            prop_assert!(!domain.is_empty() && !domain.contains(|c: char| c.is_ascii_uppercase()));
            prop_assert!(parts.all(|part| !["", ".", ".."].contains(&part)));
            prop_assert!(!rest.contains(['%', ':', '@', '?', '#']));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in ".*") {
        let _ = SpiffeId::parse(&text);
    }
}
