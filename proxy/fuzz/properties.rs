//! What must hold for any bytes of a peer.

use postern_proxy::peer_bytes::{fields, requests, spoken, traced};

/// The first bytes have one meaning, and more of them do not change it.
pub(crate) fn detect(bytes: &[u8]) {
    let mut meaning = None;
    for length in 0..bytes.len().min(128) {
        let now = spoken(bytes.get(..length).unwrap_or_default());
        if meaning.is_some() {
            assert_eq!(now, meaning, "{length} bytes");
        }
        meaning = now;
    }
}

/// What passes does not depend on the pieces in which it came; it passes a second time; and it holds
/// no line end that two programs could read differently.
pub(crate) fn follow(bytes: &[u8]) {
    let (passed, refused) = requests(bytes, bytes.len());
    for piece in [1, 2, 7] {
        let (again, why) = requests(bytes, piece);
        assert_eq!(again, passed, "pieces of {piece}");
        // Which of two mistakes is told depends on what came first.
        assert_eq!(why.is_some(), refused.is_some(), "pieces of {piece}");
    }
    let (twice, why) = requests(&passed, passed.len());
    assert_eq!(twice, passed);
    assert_eq!(why, None);
    assert!(passed.len() <= bytes.len());
}

/// Nothing that an app could take for an identity passes, and nothing of one connection alone.
pub(crate) fn clean(bytes: &[u8]) {
    for (name, _) in fields(bytes) {
        let name = name.replace('_', "-");
        let is_identity = [
            "x-forwarded-client-cert",
            "x-spiffe-id",
            "x-client-identity",
        ];
        assert!(!is_identity.contains(&name.as_str()), "{name}");
        assert!(!name.starts_with("x-postern-"), "{name}");
        let of_one = [
            "connection",
            "transfer-encoding",
            "upgrade",
            "keep-alive",
            "proxy-connection",
        ];
        assert!(!of_one.contains(&name.as_str()), "{name}");
    }
    let ids = fields(bytes);
    let ids = ids.iter().filter(|(name, _)| name == "x-request-id");
    assert_eq!(ids.count(), 1);
}

/// There is one place in a trace, of the standard's form; it is that of the caller only if the caller
/// said it in that form, and the state that goes with it keeps its limits.
pub(crate) fn trace(bytes: &[u8]) {
    let (fields, trace) = traced(bytes);
    let all = |wanted| fields.iter().filter(move |(name, _)| name == wanted);
    let mut parents = all("traceparent").map(|(_, value)| String::from_utf8_lossy(value));
    let parent = parents.next().unwrap_or_default();
    assert_eq!(parents.next(), None);
    let parts: Vec<&str> = parent.split('-').collect();
    assert_eq!(
        parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
        [2, 32, 16, 2]
    );
    let is_digit = |letter| matches!(letter, '0'..='9' | 'a'..='f' | '-');
    assert!(
        parent.starts_with("00-") && parent.chars().all(is_digit),
        "{parent}"
    );
    assert_eq!(parts.get(1), Some(&&*trace));
    let was_said = bytes
        .windows(34)
        .any(|window| window == format!("-{trace}-").as_bytes());
    let mut states = all("tracestate").map(|(_, value)| value);
    if let Some(state) = states.next() {
        assert!(was_said, "a state without its trace");
        assert!(state.len() <= 512);
        let members = state.split(|byte| *byte == b',');
        let is_member = |member: &&[u8]| !member.trim_ascii().is_empty();
        assert!(members.filter(is_member).count() <= 32);
    }
    assert_eq!(states.next(), None);
    // What we say, the next one understands.
    let line = format!("traceparent: {parent}\n");
    assert_eq!(traced(line.as_bytes()).1, trace);
}
