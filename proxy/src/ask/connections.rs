//! `connections`: a line for each.

use std::fmt::Write as _;

use serde::Deserialize;

use super::read;

/// What is shown of a connection.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: u64,
    direction: String,
    end: String,
    peer_address: String,
    peer_identity: Option<String>,
    local_port: Option<u16>,
    protocol: Option<String>,
    tls_group: Option<String>,
    age_seconds: u64,
    bytes_received: u64,
    bytes_sent: u64,
    requests: u64,
    policy: Option<Policy>,
}

#[derive(Debug, Deserialize)]
struct Policy {
    kind: String,
    name: String,
    file: String,
    line: u32,
}

/// The table of an answer.
pub(super) fn table(told: &str) -> anyhow::Result<String> {
    let all: Vec<Shown> = read(told)?;
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(all.iter().map(row));
    let mut widths = [0; COLUMNS.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a string does not fail.
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    Ok(text)
}

fn row(one: &Shown) -> [String; COLUMNS.len()] {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| NONE.to_owned());
    [
        one.id.to_string(),
        one.direction.clone(),
        match one.end.as_str() {
            "app" => APP.to_owned(),
            _ => or_none(&one.peer_identity),
        },
        one.peer_address.clone(),
        or_none(&one.local_port.map(|port| port.to_string())),
        or_none(&one.protocol),
        age(one.age_seconds),
        size(one.bytes_received),
        size(one.bytes_sent),
        one.requests.to_string(),
        or_none(&one.tls_group),
        one.policy.as_ref().map_or_else(
            || NONE.to_owned(),
            |policy| {
                let Policy {
                    kind,
                    name,
                    file,
                    line,
                } = policy;
                format!("{kind} {name} ({file}:{line})")
            },
        ),
    ]
}

/// The two largest units.
fn age(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{}s", seconds % 60),
        (1..24, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{}d{}h", hours / 24, hours % 24),
    }
}

/// With one digit after the point, rounded down.
fn size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{}.{}{name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes}B"),
    }
}

/// Who is there, where it is the app of the pod itself.
const APP: &str = "(app)";

const COLUMNS: [&str; 12] = [
    "ID",
    "DIRECTION",
    "PEER",
    "ADDRESS",
    "PORT",
    "PROTOCOL",
    "AGE",
    "RECEIVED",
    "SENT",
    "REQUESTS",
    "TLS",
    "LET IN BY",
];

const NONE: &str = "-";

pub(super) const EXAMPLES: &str = "\
Examples:
  postern-proxy connections
  postern-proxy connections --json | jq -r '.[] | select(.direction == \"inbound\").peerIdentity'";

#[cfg(test)]
mod tests {
    use super::{age, size, table};

    #[test]
    fn times_and_sizes_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m0s"),
            (3599, "59m59s"),
            (3600, "1h0m"),
            (86_399, "23h59m"),
            (90_000, "1d1h"),
        ] {
            assert_eq!(age(seconds), text);
        }
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (1 << 20, "1.0MiB"),
            ((1 << 30) - 1, "1023.9MiB"),
            (5 << 30, "5.0GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert!(size(u64::MAX).ends_with("GiB"));
    }

    #[test]
    fn each_connection_is_a_line_below_its_names() {
        let told = r#"[{"id":7,"direction":"inbound","end":"peer","peerAddress":"10.0.0.1:5","peerIdentity":null,
            "localPort":15006,"protocol":"h2","tlsGroup":null,"ageSeconds":61,"bytesReceived":1,
            "bytesSent":2048,"requests":3,
            "policy":{"kind":"NetworkPolicy","name":"a/b","rule":0,"file":"p.yaml","line":9}}]"#;
        let text = table(told).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let [names, line] = lines.try_into().unwrap();
        assert_eq!(names.first(), Some(&"ID"));
        let wanted =
            "7 inbound - 10.0.0.1:5 15006 h2 1m1s 1B 2.0KiB 3 - NetworkPolicy a/b (p.yaml:9)";
        assert_eq!(line.join(" "), wanted);
        // The app has no identity, and is not nobody.
        let app = table(&told.replace("\"peer\"", "\"app\"")).unwrap();
        assert!(app.contains("7   inbound    (app)  10.0.0.1:5"), "{app}");
    }
}
