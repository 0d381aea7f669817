//! One spelling for each path and each host, before anything is judged. Pure.
//!
//! What is judged is what is forwarded. What two programs could read differently is refused, where
//! Envoy would guess: an escaped slash, a backslash, a path that leaves its root.
//!
//! Spec: RFC 3986 section 6.2.2; the options are those of Istio's
//! `meshConfig.pathNormalization.normalization`.

mod host;

use std::borrow::Cow;

pub use self::host::{HostRefused, host};

/// How much is brought into one spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathNormalization {
    /// `BASE`: dot segments are removed, escaped unreserved characters unescaped. Two slashes stay
    /// two: some apps mean them.
    #[default]
    Base,
    /// `MERGE_SLASHES`: also, slashes that follow each other become one.
    MergeSlashes,
    /// `DECODE_AND_MERGE_SLASHES`: before, escaped slashes and backslashes become slashes.
    DecodeAndMergeSlashes,
}

impl PathNormalization {
    /// The names, as Istio spells them.
    pub const NAMES: [(&'static str, Self); 3] = [
        ("BASE", Self::Base),
        ("MERGE_SLASHES", Self::MergeSlashes),
        ("DECODE_AND_MERGE_SLASHES", Self::DecodeAndMergeSlashes),
    ];

    /// Reads a name. `NONE` is not among them: it lets one path have many spellings.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, option)| *option)
    }
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathRefused {
    /// No slash at the beginning.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// What no path has, or what some programs take for a slash.
    #[error("the path holds a control character, a space, a fragment or a backslash")]
    Character,
    /// A `%` that escapes nothing.
    #[error("the path holds an escape that is not `%` and two hexadecimal digits")]
    Escape,
    /// An escape that some programs undo and others do not.
    #[error("the path holds an escaped slash, backslash or NUL")]
    Ambiguous,
    /// `..;x`: some programs cut the parameters off and go up, others do not.
    #[error("the path holds a dot segment with parameters, such as `..;`")]
    DotParameters,
    /// More `..` than folders.
    #[error("the path leaves its root")]
    AboveRoot,
}

/// Brings a path without its query into its one spelling. A path that has it already is not
/// copied.
///
/// # Errors
/// [`PathRefused`]; callers answer 400.
pub fn path(raw: &str, how: PathNormalization) -> Result<Cow<'_, str>, PathRefused> {
    if !raw.starts_with('/') {
        return Err(PathRefused::NotAbsolute);
    }
    if is_plain(raw.as_bytes()) {
        return Ok(Cow::Borrowed(raw));
    }
    let decode = how == PathNormalization::DecodeAndMergeSlashes;
    let mut clean = unescape(raw, decode)?;
    if how != PathNormalization::Base {
        clean = merge_slashes(&clean);
    }
    remove_dots(&clean).map(Cow::Owned)
}

/// Nothing in it that any option would change or refuse.
fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    path.iter().all(|&byte| {
        let pair = (before, byte);
        before = byte;
        !matches!(byte, b'%' | b'\\' | b'#' | 0..=b' ' | 0x7f..)
            && !matches!(pair, (b'/', b'.' | b'/'))
    })
}

fn merge_slashes(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !merged.ends_with('/') {
            merged.push(c);
        }
    }
    merged
}

/// Unescapes what need not be escaped, and writes the other escapes in capitals.
fn unescape(raw: &str, decode: bool) -> Result<String, PathRefused> {
    let mut clean = String::with_capacity(raw.len());
    let mut rest = raw.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' | '#' => return Err(PathRefused::Character),
            c if c.is_ascii_control() || c == ' ' => return Err(PathRefused::Character),
            '%' => {
                let mut digit = || {
                    rest.next()
                        .and_then(|c| c.to_digit(16))
                        .ok_or(PathRefused::Escape)
                };
                let (high, low) = (digit()?, digit()?);
                let byte = u8::try_from(high * 16 + low).map_err(|_| PathRefused::Escape)?;
                match byte {
                    b'/' | b'\\' if decode => clean.push('/'),
                    0 | b'/' | b'\\' => return Err(PathRefused::Ambiguous),
                    _ if is_unreserved(byte) => clean.push(char::from(byte)),
                    _ => clean.push_str(&format!("%{byte:02X}")),
                }
            }
            other => clean.push(other),
        }
    }
    Ok(clean)
}

/// RFC 3986 section 5.2.4; a path that would leave its root is refused instead of cut.
fn remove_dots(path: &str) -> Result<String, PathRefused> {
    if !path.contains("/.") {
        return Ok(path.to_owned());
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => {
                kept.pop().ok_or(PathRefused::AboveRoot)?;
            }
            other if has_dot_parameters(other) => return Err(PathRefused::DotParameters),
            other => {
                kept.push(other);
                continue;
            }
        }
        // `/a/.` and `/a/b/..` name a folder.
        if is_last {
            kept.push("");
        }
    }
    Ok(format!("/{}", kept.join("/")))
}

/// Is it `.` or `..` with parameters? Spec: RFC 3986 section 3.3, which leaves their meaning to others.
fn has_dot_parameters(segment: &str) -> bool {
    let rest = segment.strip_prefix("..").or(segment.strip_prefix('.'));
    rest.is_some_and(|rest| rest.starts_with(';') || rest.starts_with("%3B"))
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::{PathNormalization, PathRefused};

    fn path(raw: &str) -> Result<String, PathRefused> {
        super::path(raw, PathNormalization::Base).map(Into::into)
    }

    #[test]
    fn each_path_has_one_spelling() {
        // POLICY 39
        for (raw, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/", "/a/"),
            ("//a", "//a"),
            ("/a//b", "/a//b"),
            ("/./a", "/a"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/b/../c", "/a/c"),
            ("/a/b/..", "/a/"),
            ("/%61dmin", "/admin"),
            ("/%2e/a", "/a"),
            ("/a/%2E%2e/b", "/b"),
            ("/a%3fb", "/a%3Fb"),
            ("/a%20b", "/a%20b"),
            ("/.hidden", "/.hidden"),
            ("/a..b", "/a..b"),
            ("/%7euser", "/~user"),
            ("/a;x=1", "/a;x=1"),
            ("/...;x/.a;x", "/...;x/.a;x"),
        ] {
            assert_eq!(path(raw).as_deref(), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        // POLICY 40, FAULTS 108
        for (raw, expected) in [
            ("", PathRefused::NotAbsolute),
            ("a", PathRefused::NotAbsolute),
            ("*", PathRefused::NotAbsolute),
            ("/a%2Fb", PathRefused::Ambiguous),
            ("/a%2fb", PathRefused::Ambiguous),
            ("/a%5Cb", PathRefused::Ambiguous),
            ("/a%00", PathRefused::Ambiguous),
            ("/a\\b", PathRefused::Character),
            ("/a#b", PathRefused::Character),
            ("/a\0b", PathRefused::Character),
            ("/a b", PathRefused::Character),
            ("/a%", PathRefused::Escape),
            ("/a%2", PathRefused::Escape),
            ("/a%zz", PathRefused::Escape),
            ("/..", PathRefused::AboveRoot),
            ("/../a", PathRefused::AboveRoot),
            ("/a/../../b", PathRefused::AboveRoot),
            ("/%2e%2e/a", PathRefused::AboveRoot),
            ("/..;/a", PathRefused::DotParameters),
            ("/a/..;x=1/b", PathRefused::DotParameters),
            ("/a/.;", PathRefused::DotParameters),
            ("/a/%2e%2e;/b", PathRefused::DotParameters),
            ("/a/..%3b/b", PathRefused::DotParameters),
        ] {
            assert_eq!(path(raw), Err(expected), "{raw}");
        }
    }

    #[test]
    fn the_one_spelling_stays_as_it_is() {
        for raw in ["/a/b/../c", "/%61%2d%7e", "/a%3fb%ff", "//x//./y/"] {
            let once = path(raw).unwrap();
            assert_eq!(path(&once).as_deref(), Ok(once.as_str()), "{raw}");
        }
    }

    #[test]
    fn slashes_are_merged_only_where_that_was_asked_for() {
        // POLICY 39
        use PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes};
        for (raw, how, expected) in [
            ("/a//b", Base, Ok("/a//b")),
            ("/a//b", MergeSlashes, Ok("/a/b")),
            ("//a///b//", MergeSlashes, Ok("/a/b/")),
            ("/a//../b", Base, Ok("/a/b")),
            ("/a//../b", MergeSlashes, Ok("/b")),
            ("/a%2Fb", MergeSlashes, Err(PathRefused::Ambiguous)),
            ("/a%2Fb", DecodeAndMergeSlashes, Ok("/a/b")),
            ("/a%2f%2F%5cb", DecodeAndMergeSlashes, Ok("/a/b")),
            ("/a/%2e%2e%2fb", DecodeAndMergeSlashes, Ok("/b")),
            (
                "/%2e%2e%2fb",
                DecodeAndMergeSlashes,
                Err(PathRefused::AboveRoot),
            ),
            ("/a%252Fb", DecodeAndMergeSlashes, Ok("/a%252Fb")),
            ("/a%00", DecodeAndMergeSlashes, Err(PathRefused::Ambiguous)),
        ] {
            let found = super::path(raw, how);
            assert_eq!(found.as_deref(), expected.as_deref(), "{raw} {how:?}");
        }
    }

    #[test]
    fn a_path_that_is_plain_is_not_copied() {
        for raw in ["/", "/a/b.c", "/api/v1/orders", "/a;b=c"] {
            let found = super::path(raw, PathNormalization::MergeSlashes);
            assert!(matches!(found, Ok(std::borrow::Cow::Borrowed(_))), "{raw}");
        }
    }
}
