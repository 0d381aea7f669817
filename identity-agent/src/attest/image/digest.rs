//! Digests, the only names by which an image is known here: tags and labels say what somebody wished.

use std::fmt;

/// A SHA-256 digest as OCI writes it, `sha256:` and 64 lower-case hexadecimal digits.
/// Spec: OCI Image Format, Descriptor, "Digests".
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// A text that is a digest and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(ALGORITHM)?;
        is_sha256(hex).then(|| Self(text.to_owned()))
    }

    /// The digest of hexadecimal digits alone.
    pub(super) fn of_hex(hex: &str) -> Option<Self> {
        Self::parse(&format!("{ALGORITHM}{}", hex.to_ascii_lowercase()))
    }

    /// The digest behind the `@` of an image's reference or of a package URL, in which its colon may be
    /// written `%3A`.
    pub(super) fn in_reference(text: &str) -> Option<Self> {
        let (name, _) = text.split_once(['?', '#']).unwrap_or((text, ""));
        let (_, version) = name.rsplit_once('@')?;
        Self::parse(&version.replace("%3A", ":").replace("%3a", ":"))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_sha256(hex: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    hex.len() == 64 && hex.bytes().all(is_digit)
}

const ALGORITHM: &str = "sha256:";

#[cfg(test)]
mod tests {
    use super::Digest;

    #[test]
    fn a_digest_has_one_spelling() {
        let hex = "0123456789abcdef".repeat(4);
        let good = format!("sha256:{hex}");
        assert_eq!(Digest::parse(&good).unwrap().as_str(), good);
        assert_eq!(Digest::of_hex(&hex.to_uppercase()).unwrap().as_str(), good);
        for bad in [
            hex.clone(),
            format!("sha512:{hex}"),
            format!("sha256:{}", hex.to_uppercase()),
            good.trim_end_matches('f').to_owned(),
            format!("{good}0"),
            format!(" {good}"),
            "latest".to_owned(),
        ] {
            assert_eq!(Digest::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn references_and_package_urls_name_a_digest_or_none() {
        let hex = "ab".repeat(32);
        let wanted = Digest::of_hex(&hex);
        for text in [
            format!("registry.test:5000/web@sha256:{hex}"),
            format!("pkg:oci/web@sha256:{hex}?repository_url=registry.test/web"),
            format!("pkg:oci/web@sha256%3A{hex}?tag=1"),
            format!("pkg:oci/web@sha256%3a{hex}"),
        ] {
            assert_eq!(Digest::in_reference(&text), wanted, "{text}");
        }
        for text in [
            "registry.test/web:1".to_owned(),
            "pkg:oci/web".to_owned(),
            format!("sha256:{hex}"),
            format!("pkg:oci/web?digest=@sha256:{hex}"),
            format!("web@sha256:{hex}0"),
        ] {
            assert_eq!(Digest::in_reference(&text), None, "{text}");
        }
    }
}
