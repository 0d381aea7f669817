//! Where spans are sent.

use http::Uri;
use postern_policies::{
    diagnostic::Problems,
    yaml::{Fields, Node, Value, fields},
};

/// A collector of traces, asked by gRPC.
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    /// Its address: `http://host:port`.
    pub endpoint: Uri,
    /// The share of the traces that begin here which is recorded, from 0 to 1.
    pub sample: f64,
    /// The name that it knows the workload by; without it the Workload's.
    pub service_name: Option<String>,
}

/// Reads `telemetry`.
pub(super) fn telemetry(node: &Node, problems: &mut Problems<'_>) -> Option<Option<Otlp>> {
    let section = Fields::of(node, "telemetry", &["otlp"], problems)?;
    match section.get("otlp") {
        Some(node) => otlp(node, problems).map(Some),
        None => Some(None),
    }
}

fn otlp(node: &Node, problems: &mut Problems<'_>) -> Option<Otlp> {
    let known = ["endpoint", "sample", "serviceName"];
    let section = Fields::of(node, "telemetry.otlp", &known, problems)?;
    let endpoint = section
        .required("endpoint", "telemetry.otlp", problems)
        .and_then(|node| endpoint(node, problems));
    let sample = match section.get("sample") {
        Some(node) => share(node, problems),
        None => Some(SAMPLE),
    };
    let service_name = match section.get("serviceName") {
        Some(node) => {
            let name = fields::filled(node, "telemetry.otlp.serviceName", problems);
            name.map(|name| Some(name.to_owned()))
        }
        None => Some(None),
    };
    Some(Otlp {
        endpoint: endpoint?,
        sample: sample?,
        service_name: service_name?,
    })
}

fn endpoint(node: &Node, problems: &mut Problems<'_>) -> Option<Uri> {
    let text = fields::filled(node, "telemetry.otlp.endpoint", problems)?;
    if text.contains('@') {
        let message = "`telemetry.otlp.endpoint` has a user or a password in it";
        let hint = "write host and port alone; nothing is sent to a collector but spans";
        problems.error_with(node.at, message, hint);
        return None;
    }
    let uri = text.parse::<Uri>().ok().filter(|uri| {
        let is_bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
        uri.scheme_str() == Some("http") && uri.port_u16().is_some() && is_bare
    });
    if uri.is_none() {
        let hint = "`http://` with host and port, such as `http://127.0.0.1:4317`: a collector on the node, over gRPC";
        let message = format!("`{text}` in `telemetry.otlp.endpoint` is no address of a collector");
        problems.error_with(node.at, message, hint);
    }
    uri
}

fn share(node: &Node, problems: &mut Problems<'_>) -> Option<f64> {
    let share = match node.value {
        Value::Integer(0) => Some(0.0),
        Value::Integer(1) => Some(1.0),
        Value::Number(number) => Some(number).filter(|number| (0.0..=1.0).contains(number)),
        _ => None,
    };
    if share.is_none() {
        let message = "`telemetry.otlp.sample` is no share";
        problems.error_with(node.at, message, "a number from 0 to 1, such as `0.01`");
    }
    share
}

/// One of a hundred.
const SAMPLE: f64 = 0.01;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    #[test]
    fn a_password_in_the_endpoint_is_refused_and_not_repeated() {
        let read = |endpoint: &str| {
            let text = format!(
                "policies: {{directory: p}}\ninbound: {{forward: '127.0.0.1:8080'}}\n\
                 telemetry: {{otlp: {{endpoint: '{endpoint}'}}}}\n"
            );
            Config::read(Path::new("proxy.yaml"), text.as_bytes(), None)
        };
        let found = read("http://user:secret@127.0.0.1:4317").unwrap_err();
        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        let told = told.join("\n");
        assert!(
            told.contains("proxy.yaml:3:") && told.contains("has a user or a password"),
            "{told}"
        );
        assert!(!told.contains("secret"), "{told}");
        assert!(read("http://127.0.0.1:4317").is_ok());
    }
}
