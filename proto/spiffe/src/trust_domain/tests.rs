//! Trust domain names, by tables.

use super::{TrustDomain, TrustDomainError};

#[test]
fn valid_names_are_taken_as_they_are() {
    for name in [
        "a",
        "example.org",
        "a-b_c.d",
        "1.2.3.4",
        "-",
        ".",
        &"a".repeat(255),
    ] {
        assert_eq!(TrustDomain::parse(name).unwrap().as_str(), name);
    }
}

#[test]
fn every_byte_is_allowed_or_refused_by_the_rule() {
    // SPIFFE-ID section 2.1
    for byte in 0..=u8::MAX {
        let c = char::from(byte);
        let allowed = matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        for name in [
            format!("{c}"),
            format!("a{c}"),
            format!("{c}a"),
            format!("a{c}a"),
        ] {
            assert_eq!(TrustDomain::parse(&name).is_ok(), allowed, "{name:?}");
        }
    }
}

#[test]
fn names_that_break_a_rule_are_refused_by_it() {
    assert_eq!(TrustDomain::parse(""), Err(TrustDomainError::Empty));
    assert_eq!(
        TrustDomain::parse(&"a".repeat(256)),
        Err(TrustDomainError::TooLong { bytes: 256 })
    );
    for (name, found) in [
        ("Example.org", 'E'),
        ("a:1", ':'),
        ("u@a", '@'),
        ("a/b", '/'),
        ("é", 'é'),
    ] {
        assert_eq!(
            TrustDomain::parse(name),
            Err(TrustDomainError::Character { found })
        );
    }
}
