//! Istio's patterns: exact, prefix, suffix, presence, path templates; and addresses and ports.

use std::fmt;

use ipnet::IpNet;

/// What a field is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Any value that is not empty. For headers and methods: any at all.
    Present,
    Exact(String),
    Prefix(String),
    Suffix(String),
    Template(PathTemplate),
    Net(IpNet),
    Port(u16),
    /// `namespace/name`
    ServiceAccount(String, String),
    /// `issuer/subject`
    RequestPrincipal(RequestPrincipal),
}

impl Pattern {
    /// Reads a string pattern. A leading star is looked for first: `*x*` is a suffix, and a star
    /// anywhere else is an ordinary character.
    pub(crate) fn text(value: &str) -> Self {
        if value == "*" {
            Self::Present
        } else if let Some(suffix) = value.strip_prefix('*') {
            Self::Suffix(suffix.to_owned())
        } else if let Some(prefix) = value.strip_suffix('*') {
            Self::Prefix(prefix.to_owned())
        } else {
            Self::Exact(value.to_owned())
        }
    }

    /// Compares text byte for byte.
    pub(crate) fn matches_text(&self, text: &[u8]) -> bool {
        match self {
            Self::Present => !text.is_empty(),
            Self::Exact(exact) => text == exact.as_bytes(),
            Self::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_bytes()),
            Self::Template(template) => template.matches(text),
            Self::Net(_) | Self::Port(_) | Self::ServiceAccount(..) | Self::RequestPrincipal(_) => {
                false
            }
        }
    }

    /// Compares host names: case does not count. The pattern was lowered when it was read.
    pub(crate) fn matches_host(&self, host: &[u8]) -> bool {
        let (pattern, part) = match self {
            Self::Present => return !host.is_empty(),
            Self::Exact(exact) => (exact, Some(host)),
            Self::Prefix(prefix) => (prefix, host.get(..prefix.len())),
            Self::Suffix(suffix) => (
                suffix,
                host.len()
                    .checked_sub(suffix.len())
                    .and_then(|at| host.get(at..)),
            ),
            _ => return false,
        };
        part.is_some_and(|part| part.eq_ignore_ascii_case(pattern.as_bytes()))
    }
}

impl fmt::Display for Pattern {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("*"),
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Template(template) => f.write_str(&template.text),
            Self::Net(net) => write!(f, "{net}"),
            Self::Port(port) => write!(f, "{port}"),
            Self::ServiceAccount(namespace, name) => write!(f, "{namespace}/{name}"),
            Self::RequestPrincipal(principal) => f.write_str(&principal.text),
        }
    }
}

/// Issuer and subject of a token, split at the last slash: an issuer is a URL, a subject is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestPrincipal {
    text: String,
    /// `None`: any.
    issuer: Option<Box<Pattern>>,
    /// `None`: any.
    subject: Option<Box<Pattern>>,
}

impl RequestPrincipal {
    pub(crate) fn parse(text: &str) -> Self {
        let pattern = |text: &str| (text != "*").then(|| Box::new(Pattern::text(text)));
        let (issuer, subject) = match text.rsplit_once('/') {
            Some((issuer, subject)) => (pattern(issuer), pattern(subject)),
            None if text.starts_with('*') => (None, pattern(text)),
            // Without a slash no whole principal can be meant; an exact text matches none.
            None if text.ends_with('*') => (pattern(text), None),
            None => (
                Some(Box::new(Pattern::Exact(text.to_owned()))),
                Some(Box::new(Pattern::Exact(String::new()))),
            ),
        };
        Self {
            text: text.to_owned(),
            issuer,
            subject,
        }
    }

    /// The patterns of issuer and subject; `None` for any.
    pub(crate) fn parts(&self) -> (Option<&Pattern>, Option<&Pattern>) {
        (self.issuer.as_deref(), self.subject.as_deref())
    }

    /// Neither is empty.
    pub(crate) fn matches(&self, issuer: &str, subject: &str) -> bool {
        let holds = |pattern: &Option<Box<Pattern>>, text: &str| {
            pattern
                .as_ref()
                .is_none_or(|pattern| pattern.matches_text(text.as_bytes()))
        };
        holds(&self.issuer, issuer) && holds(&self.subject, subject)
    }
}

/// A path with `{*}` for one segment and, at most once, `{**}` for any number of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathTemplate {
    text: String,
    /// All up to the `{**}`, or all.
    head: Vec<Part>,
    /// The text after the `{**}`, where there is one.
    tail: Option<String>,
}

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Literal(String),
    /// `{*}`: one or more characters of a segment.
    Segment,
}

impl PathTemplate {
    /// Is this value meant as a template?
    pub(crate) fn is_template(value: &str) -> bool {
        value.contains("{*}") || value.contains("{**}")
    }

    /// Reads a template: segments that are literal, `{*}` or, once, `{**}`.
    pub(crate) fn parse(value: &str) -> Result<Self, &'static str> {
        let path = value
            .strip_prefix('/')
            .ok_or("a path template begins with `/`")?;
        let mut head = Vec::new();
        let mut tail: Option<String> = None;
        for segment in path.split('/') {
            match (segment, &mut tail) {
                ("{*}" | "{**}", Some(_)) => {
                    return Err("no `{*}` or `{**}` may follow a `{**}`");
                }
                ("{*}", None) => head.extend([Part::Literal("/".into()), Part::Segment]),
                ("{**}", None) => {
                    head.push(Part::Literal("/".into()));
                    tail = Some(String::new());
                }
                (other, _) if other.contains(['{', '}', '*']) => {
                    return Err("`{*}` and `{**}` stand alone in a segment, without other stars");
                }
                (other, None) => head.push(Part::Literal(format!("/{other}"))),
                (other, Some(tail)) => {
                    tail.push('/');
                    tail.push_str(other);
                }
            }
        }
        Ok(Self {
            text: value.to_owned(),
            head,
            tail,
        })
    }

    /// All up to the `{**}`, or all; and the text after the `{**}`, where there is one.
    pub(crate) fn parts(&self) -> (&[Part], Option<&str>) {
        (&self.head, self.tail.as_deref())
    }

    /// The whole path must match.
    fn matches(&self, path: &[u8]) -> bool {
        let Some(rest) = self.head.iter().try_fold(path, take) else {
            return false;
        };
        match &self.tail {
            None => rest.is_empty(),
            Some(tail) => rest.strip_suffix(tail.as_bytes()).is_some_and(|middle| {
                middle
                    .iter()
                    .all(|&byte| byte == b'/' || is_segment_byte(byte))
            }),
        }
    }
}

/// Takes what `part` stands for off the front, or fails.
fn take<'a>(path: &'a [u8], part: &Part) -> Option<&'a [u8]> {
    match part {
        Part::Literal(text) => path.strip_prefix(text.as_bytes()),
        Part::Segment => {
            let end = path
                .iter()
                .position(|&byte| !is_segment_byte(byte))
                .unwrap_or(path.len());
            (end > 0).then(|| path.get(end..)).flatten()
        }
    }
}

/// The characters that Envoy's templates accept in a segment; `=` is not among them.
fn is_segment_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@".contains(&byte)
}

#[cfg(test)]
mod tests;
