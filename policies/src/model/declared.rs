//! What a port of a Workload is declared to speak: by its `appProtocol`, else by its name. What is
//! declared is not found out by the first bytes.
//!
//! Spec: Kubernetes, "Services: Application protocol"; Istio, "Protocol Selection".

use super::workload::{Workload, WorkloadPort};
use crate::decide::Protocol as Transport;

/// What a port is declared to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    /// HTTP of either version.
    Http,
    /// HTTP of either version from callers; the app takes HTTP/2.
    Http2,
    /// Anything, unread.
    Tcp,
}

impl Declared {
    /// What a Workload says of one of its ports.
    pub fn of(workload: &Workload, port: u16) -> Option<Self> {
        let is_it = |one: &&WorkloadPort| one.port == port && one.protocol == Transport::Tcp;
        let found = workload.ports.iter().find(is_it)?;
        match (&found.app_protocol, &found.name) {
            // It alone counts, also where nobody knows it.
            (Some(said), _) => Self::by_app_protocol(said),
            (None, Some(name)) => Self::by_name(name),
            (None, None) => None,
        }
    }

    /// What an `appProtocol` says: one of Kubernetes' own, or what a name may say. Upper and lower case
    /// are the same, as in IANA's names of services.
    pub fn by_app_protocol(said: &str) -> Option<Self> {
        let said = said.to_ascii_lowercase();
        match said.as_str() {
            "kubernetes.io/h2c" => Some(Self::Http2),
            "kubernetes.io/ws" => Some(Self::Http),
            // The app's own TLS.
            "kubernetes.io/wss" => Some(Self::Tcp),
            name => Self::by_name(name),
        }
    }

    /// What a name says: `http`, or `http-` and whatever.
    fn by_name(name: &str) -> Option<Self> {
        let is = |word: &str| {
            let behind = name.strip_prefix(word);
            behind.is_some_and(|behind| behind.is_empty() || behind.starts_with('-'))
        };
        let found = NAMES.iter().find(|(word, _)| is(word));
        found.map(|(_, declared)| *declared)
    }
}

/// The words, the longer one first where another begins it.
const NAMES: [(&str, Declared); 10] = [
    ("http", Declared::Http),
    ("http2", Declared::Http2),
    // A browser's gRPC is a form of HTTP/1.1.
    ("grpc-web", Declared::Http),
    ("grpc", Declared::Http2),
    ("tcp", Declared::Tcp),
    ("tls", Declared::Tcp),
    // The app's own TLS: nobody reads it.
    ("https", Declared::Tcp),
    ("mysql", Declared::Tcp),
    ("redis", Declared::Tcp),
    ("mongo", Declared::Tcp),
];

#[cfg(test)]
mod tests {
    use super::Declared::{self, Http, Http2, Tcp};

    #[test]
    fn an_app_protocol_says_what_kubernetes_and_istio_take_it_for() {
        for (said, expected) in [
            ("http", Some(Http)),
            ("HTTP", Some(Http)),
            ("http2", Some(Http2)),
            ("grpc", Some(Http2)),
            ("grpc-web", Some(Http)),
            ("https", Some(Tcp)),
            ("tls", Some(Tcp)),
            ("tcp", Some(Tcp)),
            ("kubernetes.io/h2c", Some(Http2)),
            ("kubernetes.io/ws", Some(Http)),
            ("kubernetes.io/wss", Some(Tcp)),
            // Nobody knows them: it is found out.
            ("kubernetes.io/http", None),
            ("example.com/http", None),
            ("h2c", None),
            ("ws", None),
            ("postgresql", None),
        ] {
            assert_eq!(Declared::by_app_protocol(said), expected, "{said}");
        }
    }

    #[test]
    fn a_name_says_what_its_first_word_means() {
        for (name, expected) in [
            ("http", Some(Http)),
            ("http-api", Some(Http)),
            ("http2", Some(Http2)),
            ("http2-api", Some(Http2)),
            ("grpc", Some(Http2)),
            ("grpc-orders", Some(Http2)),
            ("grpc-web", Some(Http)),
            ("grpc-web-orders", Some(Http)),
            ("grpc-webhook", Some(Http2)),
            ("tcp", Some(Tcp)),
            ("tcp-sql", Some(Tcp)),
            ("tls", Some(Tcp)),
            ("https", Some(Tcp)),
            ("https-api", Some(Tcp)),
            ("mysql", Some(Tcp)),
            ("redis-cache", Some(Tcp)),
            ("mongo", Some(Tcp)),
            // These say nothing: it is found out.
            ("web", None),
            ("httpd", None),
            ("http_api", None),
            ("api-http", None),
            ("mongodb", None),
            ("tcpdump", None),
            ("HTTP", None),
            ("", None),
        ] {
            assert_eq!(Declared::by_name(name), expected, "{name}");
        }
    }
}
