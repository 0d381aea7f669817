//! What annotations of other meshes do here, and what is told of those that do nothing.

use super::{HARMLESS, inject, pod, refused, taken, told};

#[test]
fn annotations_of_other_meshes_hold_where_they_mean_the_same() {
    for (annotation, expected) in [
        (
            "traffic.sidecar.istio.io/excludeInboundPorts: '9100, 22'",
            "--exclude-inbound-ports, \"22,9100\"",
        ),
        (
            "config.linkerd.io/skip-inbound-ports: 8000-8010",
            "--exclude-inbound-ports, \"8000-8010\"",
        ),
        (
            "traffic.sidecar.istio.io/includeInboundPorts: '80,443'",
            "--exclude-inbound-ports, \"1-79,81-442,444-14999,15002-15005,15007-15019,15021-15096,15100-65535\"",
        ),
        (
            "traffic.sidecar.istio.io/excludeOutboundPorts: '25'",
            "--exclude-outbound-ports, \"25\"",
        ),
        (
            "config.linkerd.io/skip-outbound-ports: '25,465'",
            "--exclude-outbound-ports, \"25,465\"",
        ),
        (
            "traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.0.0.0/8",
            "--exclude-outbound-cidrs, \"10.0.0.0/8\"",
        ),
        ("sidecar.istio.io/proxyCPU: 250m", "cpu: \"250m\""),
        ("sidecar.istio.io/proxyCPULimit: '3'", "cpu: \"3\""),
        (
            "sidecar.istio.io/proxyMemory: 1Gi",
            "memory: \"1Gi\"\n      limits:",
        ),
        (
            "config.linkerd.io/proxy-memory-limit: 1Gi",
            "memory: \"1Gi\"",
        ),
        ("config.linkerd.io/proxy-uid: '2102'", "runAsUser: 2102"),
    ] {
        let text = pod(annotation, "", HARMLESS);
        taken(&text, &[], &[expected]);
    }
    for (annotation, part) in [
        (
            "sidecar.istio.io/inject: false",
            "[\"sidecar.istio.io/inject\"]` must be a string",
        ),
        (
            "linkerd.io/inject: ingress",
            "is `ingress`, which is neither yes nor no",
        ),
        (
            "sidecar.istio.io/inject: 'false', linkerd.io/inject: enabled",
            "contradicts",
        ),
        (
            "traffic.sidecar.istio.io/excludeInboundPorts: http",
            "`http` is no port",
        ),
        (
            "traffic.sidecar.istio.io/excludeInboundPorts: '15006'",
            "is the proxy's own: leave it out",
        ),
        (
            "traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.0.0.1/8",
            "write 10.0.0.0/8",
        ),
        (
            "traffic.sidecar.istio.io/excludeOutboundIPRanges: 0.0.0.0/0",
            "that is all of them",
        ),
        ("sidecar.istio.io/proxyCPU: lots", "`lots` is no quantity"),
        (
            "sidecar.istio.io/proxyMemory: 2Gi, sidecar.istio.io/proxyMemoryLimit: 1Gi",
            "is more than its limit",
        ),
        ("config.linkerd.io/proxy-uid: '0'", "is no user but root"),
        (
            "sidecar.istio.io/status: '{}'",
            "the sidecar of Istio already",
        ),
    ] {
        let text = pod(annotation, "", HARMLESS);
        let line = if part.contains("its limit") { 3 } else { 5 };
        refused(&text, &[], line, part);
    }
}

#[track_caller]
fn warned(text: &str, line: usize, part: &str) {
    let output = inject(text.as_bytes(), &[]);
    let error = told(&output);
    assert!(output.status.success(), "{error}");
    let at = format!("standard input:{line}:");
    let is_told =
        |told: &str| told.starts_with(&at) && told.contains(": warning: ") && told.contains(part);
    assert!(error.lines().any(is_told), "`{at} {part}` in {error}");
}

#[test]
fn what_is_not_honoured_or_may_not_work_is_told_by_name() {
    for annotation in [
        "sidecar.istio.io/componentLogLevel",
        "proxy.istio.io/config",
        "config.linkerd.io/skip-subnets",
        "config.linkerd.io/default-inbound-policy",
        "postern.dev/injct",
    ] {
        let text = pod(&format!("{annotation}: x"), "", HARMLESS);
        warned(
            &text,
            5,
            &format!("`metadata.annotations[\"{annotation}\"]` is not honoured"),
        );
    }
    let text = pod("sidecar.istio.io/interceptionMode: TPROXY", "", HARMLESS);
    warned(
        &text,
        5,
        "TPROXY` is not honoured here (it is always as with `REDIRECT`)",
    );
    warned(
        &pod("", "", ""),
        9,
        "`spec.containers[0].securityContext`: as root the container has NET_RAW and SETUID",
    );
    let probe = |annotations: &str| {
        let probe =
            "readinessProbe: {httpGet: {port: web}}\n    ports: [{name: web, containerPort: 8080}]";
        pod(annotations, "", &format!("{HARMLESS}\n    {probe}"))
    };
    warned(
        &probe(""),
        12,
        "`spec.containers[0].readinessProbe.httpGet` asks port web",
    );
    let open = probe("traffic.sidecar.istio.io/excludeInboundPorts: '8080'");
    assert!(!told(&inject(open.as_bytes(), &[])).contains("asks port"));
    let early = "initContainers: [{name: early}, {name: postern-netns}, {name: postern-proxy, restartPolicy: Always}]";
    let early = pod("", early, HARMLESS);
    warned(
        &early,
        7,
        "`spec.initContainers[0]` runs before there are rules",
    );
    let text = pod("", "shareProcessNamespace: true", HARMLESS);
    warned(&text, 7, "`spec.shareProcessNamespace` is on");
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, annotations: {sidecar.istio.io/inject: 'false'}}\n\
                spec: {template: {spec: {containers: [{name: a}]}}}\n";
    warned(text, 3, "has no effect on a Deployment itself");
    let text = "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nspec: {template: {spec: {containers: [{name: a}]}}}\n";
    warned(
        text,
        3,
        "`spec.template.spec.containers` of a Rollout is left as it is",
    );
}
