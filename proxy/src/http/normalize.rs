//! One spelling for each path, before anything is judged. Pure.
//!
//! What is judged is what is forwarded. The normalization is Istio's BASE: dot segments are
//! removed and escaped unreserved characters are unescaped; two slashes stay two. What two programs
//! could read differently is refused.

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathRefused {
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    #[error("the path holds a control character, a fragment or a backslash")]
    Character,
    #[error("the path holds an escape that is not `%` and two hexadecimal digits")]
    Escape,
    #[error("the path holds an escaped slash, backslash or NUL")]
    Ambiguous,
    #[error("the path leaves its root")]
    AboveRoot,
}

/// Brings a path without its query into its one spelling.
pub(crate) fn path(raw: &str) -> Result<String, PathRefused> {
    if !raw.starts_with('/') {
        return Err(PathRefused::NotAbsolute);
    }
    remove_dots(&unescape(raw)?)
}

/// Unescapes what need not be escaped, and writes the other escapes in capitals.
fn unescape(raw: &str) -> Result<String, PathRefused> {
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

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::{PathRefused, path};

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
}
