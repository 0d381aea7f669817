//! Entries of SPIRE, and documents written from Workloads.

use std::path::PathBuf;

use postern_spiffe::TrustDomain;

use crate::{Options, PolicySet, SourceFile, model::workload::Workload};

fn read(text: &str) -> Result<Vec<Workload>, String> {
    let file = SourceFile {
        path: PathBuf::from("entries.json"),
        text: text.as_bytes().to_vec(),
    };
    let options = Options::new(TrustDomain::parse("example.org").unwrap());
    match PolicySet::load(&[file], &options) {
        Ok(loaded) => Ok(loaded.set.workloads().cloned().collect()),
        Err(found) => Err(found.iter().map(ToString::to_string).collect()),
    }
}

const CREATED: &str = r#"{"entries": [
  {
    "selectors": [{"type": "unix", "value": "uid:1111"}, {"type": "unix", "value": "gid:7"}],
    "spiffe_id": "spiffe://example.org/Blog",
    "parent_id": "spiffe://example.org/spire/agent/join_token/TokenBlog",
    "ttl": 200, "hint": "blog", "admin": false,
    "dns_names": ["blog.test"], "federates_with": ["spiffe://other.test"]
  }
]}"#;

const SHOWN: &str = r#"{"entries": [
  {
    "id": "8c9b1b1e-2f0c-4a8e-9d0c-0123456789ab",
    "spiffe_id": {"trust_domain": "example.org", "path": "/ns/production/sa/web"},
    "parent_id": {"trust_domain": "example.org", "path": "/spire/agent/x"},
    "selectors": [{"type": "k8s", "value": "ns:production"}],
    "x509_svid_ttl": 3600, "jwt_svid_ttl": 0, "federates_with": [], "hint": "",
    "admin": false, "created_at": "1700000000", "downstream": false, "expires_at": "1800000000",
    "dns_names": [], "revision_number": "3", "store_svid": false
  }
], "next_page_token": ""}"#;

#[test]
fn both_spellings_of_an_entry_are_read() {
    let [blog] = read(CREATED).unwrap().try_into().unwrap();
    assert_eq!(blog.spiffe_id.as_str(), "spiffe://example.org/Blog");
    assert_eq!(blog.selectors.len(), 2);
    assert_eq!(blog.svid_ttl.unwrap().as_secs(), 200);
    assert_eq!(blog.hint.as_deref(), Some("blog"));
    assert_eq!(blog.federates_with.len(), 1);
    assert!(blog.name.to_string().starts_with("default/entry-"));
    let [web] = read(SHOWN).unwrap().try_into().unwrap();
    assert_eq!(
        web.name.to_string(),
        "production/entry-8c9b1b1e-2f0c-4a8e-9d0c-0123456789ab"
    );
    assert_eq!(web.svid_ttl.unwrap().as_secs(), 3600);
    assert_eq!((web.jwt_ttl, web.hint.as_deref()), (None, None));
    assert!(web.expires.is_some() && web.created.is_some());
}

#[test]
fn what_an_entry_says_that_cannot_be_honoured_is_refused_with_its_place() {
    // FAULTS 44, 46
    for (from, to, said) in [
        (
            "\"admin\": false",
            "\"admin\": true",
            "`admin` is not supported",
        ),
        (
            "spiffe://example.org/Blog",
            "spiffe://other.org/Blog",
            "of trust domain `other.org`",
        ),
        (
            "spiffe://example.org/Blog",
            "spiffe://example.org",
            "needs a path",
        ),
        (
            "spiffe://example.org/Blog",
            "spiffe://example.org/a/../b",
            "is not valid",
        ),
        (
            "spiffe://example.org/Blog",
            "spiffe://example.org/%2e",
            "is not valid",
        ),
        (
            "\"ttl\": 200",
            "\"ttl\": -1",
            "must be a whole number of seconds",
        ),
        ("\"ttl\": 200", "\"tll\": 200", "did you mean `ttl`?"),
        (
            "\"value\": \"gid:7\"",
            "\"value\": \"\"",
            "`value` must not be empty",
        ),
        (
            "\"type\": \"unix\", \"value\": \"gid:7\"",
            "\"type\": \"unix\"",
            "needs `value`",
        ),
    ] {
        let text = CREATED.replacen(from, to, 1);
        assert_ne!(text, CREATED);
        let error = read(&text).unwrap_err();
        assert!(
            error.contains(said) && error.contains("entries.json:"),
            "{said} in {error}"
        );
    }
    let none = r#"{"entries": [{"spiffe_id": "spiffe://example.org/a", "selectors": []}]}"#;
    assert!(read(none).unwrap_err().contains("would match everyone"));
}

#[test]
fn the_same_entry_has_the_same_name_and_another_one_has_another() {
    let name = |text: &str| read(text).unwrap().first().unwrap().name.clone();
    assert_eq!(name(CREATED), name(CREATED));
    assert_ne!(name(CREATED), name(&CREATED.replace("gid:7", "gid:8")));
    assert_ne!(name(CREATED), name(&CREATED.replace("/Blog", "/blog")));
}

#[test]
fn a_workload_that_is_written_as_a_document_reads_as_itself() {
    let full = "apiVersion: postern.dev/v1\nkind: Workload\n\
        metadata: {name: web, namespace: production, labels: {app: web}}\n\
        spec: {serviceAccount: web, hint: h, selectors: ['unix:uid:1', 'docker:label:a:b c'], \
        svidTTL: 90s, jwtTTL: 2500ms, dnsNames: [a.test], addresses: [10.0.0.1], \
        federatesWith: [other.test], ports: [{name: http, port: 8080}, {port: 53, protocol: UDP}], \
        onDrift: revoke, baseline: {executables: [/bin/app]}}\n";
    let small = "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {name: web}\n\
        spec: {spiffeID: 'spiffe://example.org/x'}\n";
    for text in [full, small, CREATED, SHOWN] {
        for workload in read(text).unwrap() {
            let document = workload.to_document().to_string();
            assert_eq!(read(&document).unwrap(), [workload], "{document}");
        }
    }
}
