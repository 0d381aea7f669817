//! The names of annotations and labels that Istio, Linkerd and Postern read, and what they mean here.

/// What a name means.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meaning {
    /// Whether there is to be a sidecar at all.
    Inject,
    OpenPorts,
    /// The only ports that are to come in through the proxy.
    CapturedPorts,
    DirectPorts,
    DirectNetworks,
    Uid,
    CpuRequest,
    CpuLimit,
    MemoryRequest,
    MemoryLimit,
    /// Holds here with this value, and with no other.
    Only(&'static str),
    /// Changes nothing.
    Nothing,
    /// Left behind by another mesh that was here already.
    Injected(&'static str),
}

/// Is the name one that Istio, Linkerd or Postern reads?
pub(super) fn is_of_a_mesh(name: &str) -> bool {
    let Some((domain, _)) = name.split_once('/') else {
        return false;
    };
    ["istio.io", "linkerd.io", "postern.dev"]
        .iter()
        .any(|mesh| {
            domain
                .strip_suffix(mesh)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
}

/// What a name means here; none is known by another spelling.
pub(super) fn meaning(name: &str) -> Option<Meaning> {
    let known = KNOWN.iter().find(|(known, _)| *known == name);
    known.map(|(_, meaning)| *meaning)
}

/// Our own word counts before those of others.
pub(super) const OWN: &str = "postern.dev/inject";

const KNOWN: [(&str, Meaning); 36] = [
    (OWN, Meaning::Inject),
    ("sidecar.istio.io/inject", Meaning::Inject),
    ("linkerd.io/inject", Meaning::Inject),
    (
        "traffic.sidecar.istio.io/excludeInboundPorts",
        Meaning::OpenPorts,
    ),
    (
        "traffic.sidecar.istio.io/includeInboundPorts",
        Meaning::CapturedPorts,
    ),
    (
        "traffic.sidecar.istio.io/excludeOutboundPorts",
        Meaning::DirectPorts,
    ),
    (
        "traffic.sidecar.istio.io/excludeOutboundIPRanges",
        Meaning::DirectNetworks,
    ),
    (
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
        Meaning::Only("*"),
    ),
    // All ports go through the proxy, so these do, too.
    (
        "traffic.sidecar.istio.io/includeOutboundPorts",
        Meaning::Nothing,
    ),
    (
        "sidecar.istio.io/interceptionMode",
        Meaning::Only("REDIRECT"),
    ),
    (
        "sidecar.istio.io/rewriteAppHTTPProbers",
        Meaning::Only("false"),
    ),
    ("sidecar.istio.io/nativeSidecar", Meaning::Only("true")),
    ("sidecar.istio.io/proxyCPU", Meaning::CpuRequest),
    ("sidecar.istio.io/proxyCPULimit", Meaning::CpuLimit),
    ("sidecar.istio.io/proxyMemory", Meaning::MemoryRequest),
    ("sidecar.istio.io/proxyMemoryLimit", Meaning::MemoryLimit),
    ("sidecar.istio.io/status", Meaning::Injected("Istio")),
    ("istio.io/rev", Meaning::Nothing),
    ("istio.io/dataplane-mode", Meaning::Only("none")),
    ("service.istio.io/canonical-name", Meaning::Nothing),
    ("service.istio.io/canonical-revision", Meaning::Nothing),
    ("service.istio.io/workload-name", Meaning::Nothing),
    ("prometheus.istio.io/merge-metrics", Meaning::Only("false")),
    ("config.linkerd.io/skip-inbound-ports", Meaning::OpenPorts),
    (
        "config.linkerd.io/skip-outbound-ports",
        Meaning::DirectPorts,
    ),
    ("config.linkerd.io/proxy-cpu-request", Meaning::CpuRequest),
    ("config.linkerd.io/proxy-cpu-limit", Meaning::CpuLimit),
    (
        "config.linkerd.io/proxy-memory-request",
        Meaning::MemoryRequest,
    ),
    ("config.linkerd.io/proxy-memory-limit", Meaning::MemoryLimit),
    ("config.linkerd.io/proxy-uid", Meaning::Uid),
    ("config.linkerd.io/proxy-await", Meaning::Only("enabled")),
    (
        "config.alpha.linkerd.io/proxy-enable-native-sidecar",
        Meaning::Only("true"),
    ),
    (
        "config.beta.linkerd.io/proxy-enable-native-sidecar",
        Meaning::Only("true"),
    ),
    ("linkerd.io/created-by", Meaning::Nothing),
    ("linkerd.io/proxy-version", Meaning::Injected("Linkerd")),
    ("linkerd.io/trust-root-sha256", Meaning::Nothing),
];

#[cfg(test)]
mod tests {
    use super::is_of_a_mesh;

    #[test]
    fn a_mesh_is_known_by_the_whole_of_its_domain() {
        for (name, expected) in [
            ("sidecar.istio.io/inject", true),
            ("linkerd.io/inject", true),
            ("config.alpha.linkerd.io/x", true),
            ("notistio.io/inject", false),
            ("istio.io.example.org/inject", false),
            ("istio.io", false),
        ] {
            assert_eq!(is_of_a_mesh(name), expected, "{name}");
        }
    }
}
