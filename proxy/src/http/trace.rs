//! Where a request stands in a trace. Spec: W3C Trace Context, Level 1 (recommendation) and Level 2.
//!
//! A request that belongs to a trace stays in it, and we are a span of our own there: whoever gets it
//! next sees us as its parent. What is not exactly of the standard's form belongs to no trace and
//! begins a new one; a reader more forgiving than the next would see another trace than it does.

use std::{
    fmt,
    num::{NonZeroU64, NonZeroU128},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Serialize, Serializer};

use crate::random::random;

/// A request's place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceContext {
    trace: TraceId,
    span: SpanId,
    parent: Option<SpanId>,
    flags: u8,
}

/// A trace, over all services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceId(NonZeroU128);

/// One step in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpanId(NonZeroU64);

impl TraceContext {
    /// Continues the trace that a request says, or begins one, and says so in its header fields.
    pub(crate) fn take(headers: &mut HeaderMap) -> Self {
        let context = match only(headers).and_then(Self::parse) {
            Some(caller) => {
                keep_state(headers);
                Self {
                    span: SpanId::new(),
                    parent: Some(caller.span),
                    ..caller
                }
            }
            None => {
                headers.remove(TRACESTATE);
                Self::new()
            }
        };
        context.tell(headers);
        context
    }

    /// A trace of its own. Its flags say that nobody has decided to record it.
    fn new() -> Self {
        Self {
            trace: TraceId::new(),
            span: SpanId::new(),
            parent: None,
            flags: 0,
        }
    }

    /// What a field says, or nothing if it is not of the standard's form. Pure.
    ///
    /// A later version is read as far as this one goes, and continued as this one.
    /// Spec: Level 1 sections 3.2.2 and 4.3.
    fn parse(field: &[u8]) -> Option<Self> {
        let (known, rest) = field.split_at_checked(LENGTH)?;
        let mut parts = known.split(|byte| *byte == b'-');
        let [version, trace, span, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
        if parts.next().is_some() {
            return None;
        }
        let flags = hex::<2>(flags)?
            & match (hex::<2>(version)?, rest) {
                (0, []) => FLAGS,
                (1..=254, [] | [b'-', ..]) => SAMPLED,
                _ => return None,
            };
        Some(Self {
            trace: TraceId(NonZeroU128::new(hex::<32>(trace)?)?),
            span: SpanId(NonZeroU64::new(hex::<16>(span)?.try_into().ok()?)?),
            parent: None,
            flags: flags.try_into().ok()?,
        })
    }

    /// Decides that the trace is recorded, and says so to whoever gets these fields.
    pub(crate) fn record(&mut self, headers: &mut HeaderMap) {
        self.flags |= RECORDED;
        self.tell(headers);
    }

    fn tell(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::from_bytes(&self.letters()) {
            headers.insert(TRACEPARENT, value);
        }
    }

    /// The field's value.
    fn letters(&self) -> [u8; LENGTH] {
        let mut letters = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let (trace, rest) = letters.split_at_mut(35);
        let (span, flags) = rest.split_at_mut(17);
        digits(&self.trace.bytes(), trace);
        digits(&self.span.bytes(), span);
        digits(&[self.flags], flags);
        letters
    }

    /// Has anybody decided that?
    pub(crate) fn is_recorded(&self) -> bool {
        self.flags & RECORDED != 0
    }

    pub(crate) fn flags(&self) -> u8 {
        self.flags
    }

    /// The trace.
    pub(crate) fn trace(&self) -> TraceId {
        self.trace
    }

    /// Our step in it.
    pub(crate) fn span(&self) -> SpanId {
        self.span
    }

    /// The caller's step, if the trace came with the request.
    pub(crate) fn parent(&self) -> Option<SpanId> {
        self.parent
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.letters()))
    }
}

impl TraceId {
    fn new() -> Self {
        Self(NonZeroU128::new(u128::from_be_bytes(random())).unwrap_or(NonZeroU128::MIN))
    }

    pub(crate) fn bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut letters = [0; 32];
        digits(&self.bytes(), &mut letters);
        f.write_str(std::str::from_utf8(&letters).unwrap_or_default())
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl SpanId {
    fn new() -> Self {
        Self(NonZeroU64::new(u64::from_be_bytes(random())).unwrap_or(NonZeroU64::MIN))
    }

    pub(crate) fn bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut letters = [0; 16];
        digits(&self.bytes(), &mut letters);
        f.write_str(std::str::from_utf8(&letters).unwrap_or_default())
    }
}

impl Serialize for SpanId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Writes bytes as hexadecimal digits in lower case, at the end of what is there.
pub(super) fn digits(bytes: &[u8], at: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
    for (pair, byte) in at.rchunks_exact_mut(2).zip(bytes.iter().rev()) {
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
    }
}

/// The one `traceparent`. Two of them say two things, so they say nothing.
fn only(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    match (all.next(), all.next()) {
        (Some(one), None) => Some(one.as_bytes()),
        _ => None,
    }
}

/// A number in exactly so many digits, in lower case.
fn hex<const DIGITS: usize>(text: &[u8]) -> Option<u128> {
    let digits = <&[u8; DIGITS]>::try_from(text).ok()?;
    digits.iter().try_fold(0, |number: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// Leaves `tracestate` as one field if it keeps the standard's limits, and else takes it away: half
/// of what others wrote there would be a lie about them. Spec: Level 2 section 3.3.
fn keep_state(headers: &mut HeaderMap) {
    let mut fields = headers.get_all(TRACESTATE).iter();
    let one = match (fields.next(), fields.next()) {
        (None, _) => return,
        (Some(one), None) if is_state(one.as_bytes()) => return,
        (Some(_), None) => None,
        (Some(_), Some(_)) => {
            let all = headers.get_all(TRACESTATE).iter();
            let all: Vec<&[u8]> = all.map(HeaderValue::as_bytes).collect();
            let one = all.join(&b","[..]);
            is_state(&one).then_some(one)
        }
    };
    match one.and_then(|one| HeaderValue::try_from(one).ok()) {
        Some(one) => headers.insert(TRACESTATE, one),
        None => headers.remove(TRACESTATE),
    };
}

/// Is it a list of members of which each has a name of its own? Pure.
fn is_state(list: &[u8]) -> bool {
    let mut names: Vec<&[u8]> = Vec::new();
    let mut is_new = |name| {
        let is_new = !names.contains(&name) && names.len() < MAX_MEMBERS;
        names.push(name);
        is_new
    };
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    list.len() <= MAX_STATE_BYTES
        && list.split(|byte| *byte == b',').all(|member| {
            // Who adds to a list with nothing in it leaves an empty member.
            member.iter().all(blank) || name_of(member).is_some_and(&mut is_new)
        })
}

/// The name of a member, if it has one and a value.
fn name_of(member: &[u8]) -> Option<&[u8]> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begins = member.iter().position(|byte| !is_blank(byte))?;
    let member = member.get(begins..)?;
    let equals = member.iter().position(|byte| *byte == b'=')?;
    let (name, value) = member.split_at_checked(equals)?;
    // Blanks at the end belong to the list, and those before them to the value.
    let value = value.get(1..)?.trim_ascii_end();
    let is_name = matches!(name, [b'a'..=b'z' | b'0'..=b'9', ..])
        && name.iter().all(
            |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@'),
        );
    let is_value = value
        .iter()
        .all(|byte| matches!(byte, b' '..=b'~') && *byte != b'=');
    let fits = name.len() <= MAX_PART_BYTES && (1..=MAX_PART_BYTES).contains(&value.len());
    (is_name && is_value && fits).then_some(name)
}

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Version 0 in letters: `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const LENGTH: usize = 55;

const SAMPLED: u128 = 1;
/// The same flag.
const RECORDED: u8 = 1;
/// Sampled, and (Level 2) that the trace's id is random. The others must not be passed on.
const FLAGS: u128 = SAMPLED | 2;

const MAX_MEMBERS: usize = 32;
const MAX_STATE_BYTES: usize = 512;
/// Of a name, and of a value.
const MAX_PART_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::TraceContext;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    /// What becomes of a request with these fields.
    fn taken(fields: &[(&'static str, &str)]) -> (TraceContext, String, Vec<String>) {
        let mut headers: HeaderMap = fields
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                (HeaderName::from_static(name), value)
            })
            .collect();
        let context = TraceContext::take(&mut headers);
        let all = |name| {
            let values = headers.get_all(name).iter();
            let values = values.map(|value| value.to_str().unwrap().to_owned());
            values.collect::<Vec<_>>()
        };
        let [parent] = all("traceparent").try_into().unwrap();
        assert_eq!(parent, context.to_string());
        (context, parent, all("tracestate"))
    }

    #[track_caller]
    fn continues(field: &str, flags: &str) {
        let (context, said, state) = taken(&[("traceparent", field), ("tracestate", "a=1")]);
        assert_eq!(context.trace().to_string(), TRACE, "{field}");
        assert_eq!(context.parent().unwrap().to_string(), SPAN, "{field}");
        assert_ne!(context.span().to_string(), SPAN, "{field}");
        assert_eq!(said, format!("00-{TRACE}-{}-{flags}", context.span()));
        assert_eq!(state, ["a=1"], "{field}");
    }

    #[track_caller]
    fn begins_anew(fields: &[(&'static str, &str)]) {
        let with_state = [fields, &[("tracestate", "a=1")]].concat();
        let (context, said, state) = taken(&with_state);
        assert_ne!(context.trace().to_string(), TRACE, "{fields:?}");
        assert_eq!(context.parent(), None, "{fields:?}");
        assert_eq!(
            said,
            format!("00-{}-{}-00", context.trace(), context.span())
        );
        assert!(state.is_empty(), "{fields:?}: {state:?}");
    }

    #[test]
    fn a_valid_trace_is_continued_with_its_flags_and_a_span_of_our_own() {
        for (flags, kept) in [
            ("00", "00"),
            ("01", "01"),
            ("02", "02"),
            ("03", "03"),
            // Flags that nobody has defined are not passed on.
            ("ff", "03"),
            ("80", "00"),
        ] {
            continues(&format!("00-{TRACE}-{SPAN}-{flags}"), kept);
        }
        // A later version is continued as ours, with the one flag that all versions share.
        for version in ["01", "cc", "fe"] {
            continues(&format!("{version}-{TRACE}-{SPAN}-01"), "01");
            continues(&format!("{version}-{TRACE}-{SPAN}-03"), "01");
            continues(&format!("{version}-{TRACE}-{SPAN}-01-what-comes"), "01");
            continues(&format!("{version}-{TRACE}-{SPAN}-01-"), "01");
        }
    }

    #[test]
    fn what_is_no_trace_begins_a_new_one_without_the_state_of_the_old() {
        let zero = "0".repeat(32);
        let [short_trace, short_span] = [TRACE, SPAN].map(|id| id.split_at(1).1);
        for field in [
            String::new(),
            "00".into(),
            TRACE.into(),
            // Version.
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("000-{TRACE}-{SPAN}-01"),
            format!("0A-{TRACE}-{SPAN}-01"),
            format!("zz-{TRACE}-{SPAN}-01"),
            format!(".0-{TRACE}-{SPAN}-01"),
            // Zeros.
            format!("00-{zero}-{SPAN}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            // Case and digits.
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-0A"),
            format!("00-{short_trace}g-{SPAN}-01"),
            format!("00-{TRACE}-{short_span}.-01"),
            format!("00-{TRACE}-{SPAN}-.0"),
            format!("00-+{short_trace}-{SPAN}-01"),
            // Lengths.
            format!("00-{short_trace}-{SPAN}-01"),
            format!("00-0{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{short_span}-01"),
            format!("00-{TRACE}-0{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-001"),
            format!("00-{TRACE}-{SPAN}-"),
            format!("00-{TRACE}-{SPAN}"),
            // More than the version has.
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("01-{TRACE}-{SPAN}-01.more"),
            format!("01-{TRACE}-{SPAN}-012"),
            // Separators, blanks.
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{TRACE}{SPAN}--01"),
            format!("00 -{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-ü"),
        ] {
            begins_anew(&[("traceparent", &field)]);
        }
        begins_anew(&[]);
        let valid = format!("00-{TRACE}-{SPAN}-01");
        begins_anew(&[("traceparent", &valid), ("traceparent", &valid)]);
    }

    #[test]
    fn a_state_within_the_limits_is_passed_on_and_one_beyond_them_is_dropped_whole() {
        let member = |number: usize| format!("a{number}=1");
        let members = |count| (0..count).map(member).collect::<Vec<_>>().join(",");
        let long = format!("a={}", "b".repeat(253));
        let longest = format!("{long},b={}", "b".repeat(254));
        assert_eq!(longest.len(), 512);
        let value = "b".repeat(256);
        let name = "b".repeat(256);
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let passes = |state: &str| taken(&[("traceparent", &parent), ("tracestate", state)]).2;
        for state in [
            "a=1",
            "a=1,b=2",
            "a=1 , b=2",
            "a=1,,b=2",
            "",
            "0tenant@system=x y",
            "a_-*/=!~",
            &members(32),
            &longest,
            &format!("a={value}"),
            &format!("{name}=1"),
        ] {
            assert_eq!(passes(state), [state], "{state}");
        }
        for state in [
            &members(33),
            &format!("{longest}b"),
            &format!("a=b{value}"),
            &format!("b{name}=1"),
            "a",
            "a=",
            "=1",
            "A=1",
            "a=1=2",
            "a =1",
            "a=1,a=2",
            "a=1,b",
            "@a=1",
            "a=ü",
        ] {
            assert!(passes(state).is_empty(), "{state}");
        }
        // Several fields are one list, and are passed on as one.
        let two = |one: &str, other: &str| {
            let fields = [
                ("traceparent", &*parent),
                ("tracestate", one),
                ("tracestate", other),
            ];
            taken(&fields).2
        };
        assert_eq!(two("a=1", "b=2"), ["a=1,b=2"]);
        assert_eq!(two("a=1", ""), ["a=1,"]);
        assert!(two("a=1", "a=2").is_empty());
        assert_eq!(two(&members(31), "b=1").len(), 1);
        assert!(two(&members(32), "b=1").is_empty());
    }
}
