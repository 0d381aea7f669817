//! The configuration in force, in the form in which it could be written: with every default.

use std::{path::Path, time::Duration};

use postern_policies::{
    Defaults, decide::Verdict, normalize::PathNormalization, yaml::walls::Filter,
};
use serde_json::{Value, json};

use super::{
    Config, DocumentSource, Forward, IdentitySource, Inbound, Outbound, PolicySources, Protocol,
    ToPort,
};

impl Config {
    /// The whole of it. There are no secrets in it: keys lie in files, and it names those.
    pub(crate) fn describe(&self) -> Value {
        let mut all = json!({
            "identity": identity(&self.identity),
            "workload": self.workload.as_ref().map(ToString::to_string),
            "policies": documents(&self.policies.policies, &self.policies),
            "workloads": self.policies.workloads.as_ref()
                .map(|source| documents(source, &self.policies)),
            "defaults": defaults(self.policies.defaults),
            "rootNamespace": self.policies.root_namespace,
            "inbound": inbound(&self.inbound),
            "outbound": outbound(&self.outbound),
            "admin": {"listen": self.admin},
            "metrics": {"listen": self.metrics},
            "accessLog": {"format": "json", "path": path(&self.access_log)},
            "drain": {"delay": span(self.drain.delay), "deadline": span(self.drain.deadline)},
            "telemetry": self.otlp.as_ref().map(|otlp| json!({"otlp": {
                "endpoint": otlp.endpoint.to_string(),
                "sample": otlp.sample,
                "serviceName": otlp.service_name,
            }})),
            "pathNormalization": match self.paths {
                PathNormalization::Base => "BASE",
                PathNormalization::MergeSlashes => "MERGE_SLASHES",
                PathNormalization::DecodeAndMergeSlashes => "DECODE_AND_MERGE_SLASHES",
            },
            "tokenKeys": {
                "caFile": self.token_keys.authorities.as_deref().map(path),
                "refresh": span(self.token_keys.refresh),
            },
            "debug": {"reasonHeader": self.reason_header},
            "harden": {"insecureAllowDumpable": self.allow_dumpable},
            "interception": {"probe": self.probe},
            "walls": {
                "seccomp": match &self.walls.seccomp {
                    Filter::Shipped => json!(true),
                    Filter::Off => json!(false),
                    Filter::File(file) => json!(path(file)),
                },
                "landlock": self.walls.landlock,
            },
        });
        without_nothing(&mut all);
        all
    }
}

/// What is not set is not written.
fn without_nothing(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, member| !member.is_null());
        members.values_mut().for_each(without_nothing);
    }
}

fn identity(source: &IdentitySource) -> Value {
    match source {
        IdentitySource::WorkloadApi(socket) => {
            json!({"workloadApi": format!("unix://{}", socket.display())})
        }
        IdentitySource::Files {
            certificate,
            key,
            bundle,
        } => json!({"files": {
            "certificate": path(certificate),
            "key": path(key),
            "bundle": path(bundle),
        }}),
    }
}

fn documents(source: &DocumentSource, all: &PolicySources) -> Value {
    match source {
        DocumentSource::Directory(folder) => {
            json!({"directory": path(folder), "namespace": all.namespace})
        }
        DocumentSource::Agent => json!({"agent": {}}),
    }
}

fn defaults(defaults: Defaults) -> Value {
    let word = |verdict| match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    };
    json!({
        "network": word(defaults.network),
        "authorization": word(defaults.authorization),
    })
}

fn inbound(inbound: &Inbound) -> Value {
    json!({
        "listen": inbound.listen,
        "forward": match inbound.forward {
            Forward::To(app) => app.to_string(),
            Forward::OriginalDestination => "original-destination".to_owned(),
            Forward::Transparent => "transparent".to_owned(),
        },
        "protocol": inbound.protocol.map(|protocol| match protocol {
            Protocol::Auto => "auto",
            Protocol::Http => "http",
            Protocol::Http1 => "http1",
            Protocol::Http2 => "http2",
            Protocol::Tcp => "tcp",
        }),
        "handshakeTimeout": span(inbound.handshake_timeout),
        "upgrades": upgrades(inbound.websocket),
        "limits": {
            "headTimeout": span(inbound.patience.head),
            "bodyTimeout": span(inbound.patience.body),
            "writeTimeout": span(inbound.patience.write),
        },
        "idleTimeout": span(inbound.idle_timeout),
    })
}

fn outbound(outbound: &Outbound) -> Value {
    let listeners: Vec<Value> = outbound
        .listeners
        .iter()
        .map(|one| {
            let port = match &one.port {
                ToPort::Number(number) => json!(number),
                ToPort::Name(name) => json!(name),
            };
            json!({"listen": one.listen, "to": one.to.to_string(), "port": port})
        })
        .collect();
    let delivery = &outbound.delivery;
    json!({
        "listen": outbound.listen,
        "listeners": listeners,
        "upgrades": upgrades(outbound.websocket),
        "connectTimeout": span(delivery.connect_timeout),
        "requestTimeout": span(delivery.request_timeout),
        "idleTimeout": span(delivery.idle_timeout),
        "dnsRefresh": span(delivery.dns_refresh),
        "retries": {
            "attempts": delivery.retries.attempts,
            "budget": share(delivery.retries.budget_percent),
            "floor": delivery.retries.floor,
            "tryTimeout": delivery.retries.try_timeout.map(span),
        },
        "outlier": {
            "failures": delivery.outlier.failures,
            "ejection": span(delivery.outlier.ejection),
            "maxEjection": span(delivery.outlier.max_ejection),
            "maxShare": share(delivery.outlier.max_percent),
        },
        "bounds": {
            "requests": delivery.bounds.requests,
            "pending": delivery.bounds.pending,
            "connections": delivery.bounds.connections,
        },
    })
}

fn upgrades(websocket: bool) -> Value {
    match websocket {
        true => json!(["websocket"]),
        false => json!([]),
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn share(percent: u32) -> String {
    format!("{percent}%")
}

/// With its unit, as it is read.
fn span(span: Duration) -> String {
    match (span.as_millis(), span.as_secs()) {
        (millis, seconds) if u128::from(seconds) * 1000 == millis => format!("{seconds}s"),
        (millis, _) => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Config;

    #[track_caller]
    fn check(text: &str) {
        let read = |text: &str| {
            Config::read(Path::new("/etc/postern/proxy.yaml"), text.as_bytes(), None).unwrap()
        };
        let told = read(text).describe();
        assert_eq!(read(&told.to_string()).describe(), told);
    }

    #[test]
    fn what_is_told_can_be_read_and_says_the_same() {
        check("policies: {directory: p}\ninbound: {forward: '127.0.0.1:8080'}\n");
        check("inbound: {forward: original-destination}\n");
        check(
            "identity: {files: {certificate: c, key: k, bundle: b}}\nworkload: a/b\n\
             policies: {directory: p, namespace: other}\nworkloads: {directory: w}\n\
             defaults: {network: allow}\nrootNamespace: r\n\
             inbound: {listen: '[::1]:1', forward: transparent, protocol: http2, upgrades: [], \
             handshakeTimeout: 1500ms, limits: {headTimeout: 1s}, idleTimeout: 2m}\n\
             outbound: {listen: '127.0.0.1:2', listeners: [{listen: '127.0.0.1:3', to: a/c, port: p}, \
             {listen: '127.0.0.1:4', to: a/c, port: 5}], retries: {budget: 7%, tryTimeout: 200ms}, \
             outlier: {maxShare: 3%}, bounds: {pending: 9}}\n\
             admin: {listen: '127.0.0.1:6'}\nmetrics: {listen: '0.0.0.0:7'}\n\
             accessLog: {path: log}\ndrain: {delay: 1s, deadline: 3s}\n\
             walls: {seccomp: s.json, landlock: off}\n\
             telemetry: {otlp: {endpoint: 'http://127.0.0.1:4317', sample: 0.5}}\npathNormalization: MERGE_SLASHES\n\
             tokenKeys: {caFile: ca, refresh: 1h}\ndebug: {reasonHeader: true}\n\
             harden: {insecureAllowDumpable: true}\ninterception: {probe: false}\n",
        );
    }
}
