//! The text form of certificates and keys.

use base64::{Engine as _, prelude::BASE64_STANDARD};

/// Spec: RFC 7468.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut lines = vec![format!("-----BEGIN {label}-----")];
    let mut rest = text.as_str();
    while let Some((line, after)) = rest.split_at_checked(64) {
        lines.push(line.to_owned());
        rest = after;
    }
    if !rest.is_empty() {
        lines.push(rest.to_owned());
    }
    lines.push(format!("-----END {label}-----"));
    lines.join("\n") + "\n"
}
