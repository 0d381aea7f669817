//! Package URLs, as far as it takes to tell whether a statement is about a package. Pure.
//!
//! Spec: Package URL, `scheme:type/namespace/name@version?qualifiers#subpath`.

use std::collections::BTreeSet;

/// Is a package that was found one of those that a statement names? The statement may leave out the
/// version, and so mean every one, and qualifiers; what it says must be so.
pub(super) fn is_of(found: &str, named: &str) -> bool {
    let (Some(found), Some(named)) = (Package::read(found), Package::read(named)) else {
        return false;
    };
    found.name == named.name
        && named
            .version
            .is_none_or(|version| found.version == Some(version))
        && named.qualifiers.is_subset(&found.qualifiers)
}

#[derive(Debug)]
struct Package<'t> {
    name: &'t str,
    version: Option<&'t str>,
    qualifiers: BTreeSet<&'t str>,
}

impl<'t> Package<'t> {
    fn read(text: &'t str) -> Option<Self> {
        let text = text.strip_prefix("pkg:")?;
        let (text, _) = text.split_once('#').unwrap_or((text, ""));
        let (text, qualifiers) = text.split_once('?').unwrap_or((text, ""));
        // A namespace may begin with that sign, in which case it is written in another way.
        let (name, version) = match text.rsplit_once('@') {
            Some((name, version)) if !version.contains('/') => (name, Some(version)),
            _ => (text, None),
        };
        let qualifiers = qualifiers.split('&').filter(|one| !one.is_empty());
        Some(Self {
            name,
            version,
            qualifiers: qualifiers.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_of;

    #[test]
    fn a_statement_is_about_the_packages_that_it_names() {
        let found = "pkg:deb/debian/openssl@3.0.1?arch=amd64&distro=debian-12";
        for (named, expected) in [
            (found, true),
            ("pkg:deb/debian/openssl@3.0.1", true),
            ("pkg:deb/debian/openssl", true),
            ("pkg:deb/debian/openssl@3.0.1?distro=debian-12", true),
            ("pkg:deb/debian/openssl?arch=amd64", true),
            ("pkg:deb/debian/openssl@3.0.2", false),
            ("pkg:deb/debian/openssl@3.0.1?arch=arm64", false),
            ("pkg:deb/debian/openssl@3.0.1?epoch=1", false),
            ("pkg:deb/ubuntu/openssl@3.0.1", false),
            ("pkg:deb/debian/openssl2@3.0.1", false),
            ("pkg:rpm/debian/openssl@3.0.1", false),
            ("openssl", false),
            ("", false),
        ] {
            assert_eq!(is_of(found, named), expected, "{named}");
        }
        assert!(is_of("pkg:npm/%40scope/a@1", "pkg:npm/%40scope/a"));
        assert!(!is_of("pkg:npm/@scope/a", "pkg:npm/"));
        assert!(!is_of("openssl", "pkg:deb/debian/openssl"));
    }
}
