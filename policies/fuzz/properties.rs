//! What holds for any bytes: as documents, and as a request to policies that look at everything.

use std::sync::LazyLock;

use postern_policies::{
    Options, PolicySet, SourceFile,
    decide::{
        Access, Destination, Direction, HttpRequest, NoHeaders, Peer, Protocol, Source, Verdict,
    },
    model::workload::WorkloadName,
    normalize::{self, PathNormalization},
};
use postern_spiffe::{SpiffeId, TrustDomain};

fn load(text: &[u8]) -> Result<PolicySet, Vec<postern_policies::Diagnostic>> {
    let file = SourceFile {
        path: "p.yaml".into(),
        text: text.to_vec(),
    };
    let domain = TrustDomain::parse("cluster.local").expect("it is a name");
    PolicySet::load(&[file], &Options::new(domain)).map(|loaded| loaded.set)
}

/// Documents load, or every mistake has a place in the file; what loads answers.
pub(crate) fn documents(bytes: &[u8]) {
    match load(bytes) {
        Ok(set) => {
            for workload in set.workloads() {
                let (name, id) = (workload.name.clone(), workload.spiffe_id.clone());
                ask(&set, &name, Some(&id), "GET", "/a", Some("b"));
            }
        }
        Err(found) => {
            // To YAML, a carriage return ends a line as well.
            let lines = bytes.split(|byte| b"\r\n".contains(byte)).count();
            assert!(!found.is_empty());
            for one in found {
                let line = usize::try_from(one.line).expect("it is small");
                assert!(line <= lines + 1, "line {line} of {lines}");
            }
        }
    }
}

/// Lines of text are method, path, host and SPIFFE ID of a request.
pub(crate) fn accesses(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (method, path, host, id) = (line(), line(), line(), line());
    let id = SpiffeId::parse(id).ok();
    static SET: LazyLock<PolicySet> =
        LazyLock::new(|| load(POLICIES.as_bytes()).expect("they are good"));
    let set = &*SET;
    let web = WorkloadName {
        namespace: "default".into(),
        name: "web".into(),
    };
    for (_, how) in PathNormalization::NAMES {
        let Ok(clean) = normalize::path(path, how) else {
            continue;
        };
        let again = normalize::path(&clean, how);
        assert_eq!(again.as_deref(), Ok(&*clean), "one spelling");
        ask(set, &web, id.as_ref(), method, &clean, Some(host));
        // Nobody gets to the guarded folder, however it is spelled.
        let denied = ask(set, &web, id.as_ref(), method, &clean, None);
        assert!(!clean.starts_with("/admin/") || denied == Verdict::Deny);
    }
}

fn ask(
    set: &PolicySet,
    to: &WorkloadName,
    id: Option<&SpiffeId>,
    method: &str,
    path: &str,
    host: Option<&str>,
) -> Verdict {
    let access = Access {
        direction: Direction::Inbound,
        source: Source {
            peer: id.map_or(Peer::Plaintext, Peer::Verified),
            ip: None,
            namespace: None,
            labels: None,
        },
        destination: Destination {
            workload: Some(to),
            ip: None,
            port: 80,
            protocol: Protocol::Tcp,
        },
        http: Some(HttpRequest {
            method,
            path,
            host,
            headers: &NoHeaders,
        }),
        token: None,
        sni: None,
    };
    let decision = set.decide(&access);
    let explained = set.explain(&access);
    assert_eq!(explained.decision, decision);
    assert_eq!(set.reason(&access, &decision), explained.reason);
    decision.verdict
}

const POLICIES: &str = "\
{apiVersion: postern.dev/v1, kind: Workload, metadata: {name: web}, spec: {serviceAccount: web}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: net}, spec: {podSelector: {}, ingress: [{}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: ['/admin/*']}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow}
spec:
  rules:
  - from: [{source: {principals: ['*/sa/x', 'a*'], namespaces: ['n*']}}, {source: {notTrustDomains: [t]}}]
    to: [{operation: {hosts: ['*.example', 'h:*'], methods: ['*'], paths: ['/{*}/b/{**}/c', '*.html', '/p*'], notPaths: ['*z']}}]
";
