//! Files in the shapes that scanners and makers write, small, with one vulnerability that counts.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::digest::Digest;

/// The moment of all fixtures, as text and as time.
pub(super) const AT: &str = "2026-03-01T12:00:00.123456789Z";

pub(super) fn at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_772_366_400, 123_456_789)
}

pub(super) const CVE: &str = "CVE-2026-0001";

/// A digest of two hexadecimal digits again and again.
pub(super) fn digest(digits: &str) -> String {
    format!("sha256:{}", digits.repeat(32))
}

pub(super) fn parsed(digits: &str) -> Digest {
    Digest::parse(&digest(digits)).unwrap()
}

/// The digest of the configuration of the image that all fixtures are about, and of its manifest.
pub(super) const CONFIG: &str = "c0";
pub(super) const MANIFEST: &str = "3a";

pub(super) const PACKAGE: &str = "pkg:deb/debian/openssl@3.0.1?arch=amd64";

fn reference() -> String {
    format!("registry.test:5000/web@{}", digest(MANIFEST))
}

pub(super) fn trivy() -> Value {
    json!({
        "SchemaVersion": 2,
        "Trivy": {"Version": "0.70.0"},
        "CreatedAt": AT,
        "ArtifactName": "registry.test:5000/web:1",
        "ArtifactType": "container_image",
        "Metadata": {
            "Size": 1024,
            "OS": {"Family": "debian", "Name": "12.5"},
            "ImageID": digest(CONFIG),
            "DiffIDs": [digest("d1")],
            "RepoTags": ["registry.test:5000/web:1"],
            "RepoDigests": [reference()],
            "ImageConfig": {"architecture": "amd64", "os": "linux"}
        },
        "Results": [
            {"Target": "web (debian 12.5)", "Class": "os-pkgs", "Type": "debian", "Vulnerabilities": [
                {"VulnerabilityID": CVE, "PkgName": "openssl", "InstalledVersion": "3.0.1",
                 "PkgIdentifier": {"PURL": PACKAGE, "UID": "1f"}, "Status": "affected",
                 "SeveritySource": "debian", "Severity": "CRITICAL", "VendorSeverity": {"nvd": 4}},
                {"VulnerabilityID": "CVE-2026-0002", "PkgName": "zlib", "Severity": "LOW"}
            ]},
            {"Target": "app", "Class": "lang-pkgs", "Type": "gobinary"}
        ]
    })
}

pub(super) fn grype() -> Value {
    json!({
        "matches": [
            {"vulnerability": {"id": "GHSA-aaaa-bbbb-cccc", "dataSource": "https://example.org", "severity": "Critical",
                               "cvss": [{"version": "3.1", "metrics": {"baseScore": 9.8}}], "fix": {"versions": [], "state": "unknown"}},
             "relatedVulnerabilities": [{"id": CVE, "severity": "High"}],
             "matchDetails": [{"type": "exact-direct-match", "matcher": "dpkg-matcher"}],
             "artifact": {"name": "openssl", "version": "3.0.1", "type": "deb", "purl": PACKAGE}},
            {"vulnerability": {"id": "CVE-2026-0002", "severity": "Negligible"}, "artifact": {"name": "zlib", "purl": ""}}
        ],
        "ignoredMatches": [],
        "source": {"type": "image", "target": {
            "userInput": "registry.test:5000/web:1",
            "imageID": digest(CONFIG),
            "manifestDigest": digest(MANIFEST),
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "tags": ["registry.test:5000/web:1"],
            "repoDigests": [reference()],
            "architecture": "amd64", "os": "linux"
        }},
        "distro": {"name": "debian", "version": "12", "idLike": []},
        "descriptor": {"name": "grype", "version": "0.110.0", "timestamp": AT,
                       "db": {"status": {"schemaVersion": "v6.1.0", "built": AT, "valid": true}}}
    })
}

pub(super) fn clair() -> Value {
    json!({
        "manifest_hash": digest(MANIFEST),
        "packages": {"10": {"id": "10", "name": "openssl", "version": "3.0.1", "kind": "binary"},
                     "11": {"id": "11", "name": "zlib", "version": "1.2"}},
        "distributions": {"1": {"id": "1", "did": "debian", "version_id": "12"}},
        "environments": {"10": [{"package_db": "var/lib/dpkg/status", "introduced_in": digest("d1")}]},
        "vulnerabilities": {
            "356835": {"id": "356835", "updater": "debian/updater", "name": CVE, "severity": "unimportant",
                       "normalized_severity": "Critical", "fixed_in_version": ""},
            "356836": {"id": "356836", "name": "CVE-2026-0002", "normalized_severity": "Low"}
        },
        "package_vulnerabilities": {"10": ["356835"], "11": ["356836"]},
        "enrichments": {}
    })
}

pub(super) fn snyk() -> Value {
    let found = json!({
        "id": "SNYK-DEBIAN12-OPENSSL-1", "title": "Out-of-bounds Write", "severity": "critical",
        "packageName": "openssl", "version": "3.0.1", "identifiers": {"CVE": [CVE], "CWE": ["CWE-787"]},
        "from": ["docker-image|registry.test:5000/web@1", "openssl@3.0.1"]
    });
    json!({
        // Once for each way to the package.
        "vulnerabilities": [found, found,
            {"id": "SNYK-DEBIAN12-ZLIB-1", "severity": "low", "identifiers": {"CVE": []}},
            {"id": "snyk:lic:deb:AGPL-3.0", "type": "license", "severity": "high"}],
        "ok": false, "dependencyCount": 2, "org": "example", "packageManager": "deb",
        "docker": {"baseImage": "debian:12"}, "uniqueCount": 3,
        "projectName": "docker-image|registry.test:5000/web", "path": reference()
    })
}

pub(super) fn openvex() -> Value {
    json!({
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": "https://example.org/vex/1",
        "author": "Example", "timestamp": AT, "version": 1,
        "statements": [{
            "vulnerability": {"name": CVE},
            "products": [{"@id": format!("pkg:oci/web@{}?repository_url=registry.test%2Fweb",
                                         digest(MANIFEST).replace(':', "%3A"))}],
            "status": "not_affected",
            "justification": "vulnerable_code_not_in_execute_path"
        }]
    })
}

pub(super) fn cyclonedx() -> Value {
    json!({
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"timestamp": AT, "component": {
            "type": "container", "bom-ref": "image", "name": "web",
            "purl": format!("pkg:oci/web@{}", digest(MANIFEST))
        }},
        "components": [{"type": "library", "bom-ref": "openssl", "name": "openssl", "purl": PACKAGE},
                       {"type": "library", "bom-ref": "nameless", "name": "x"}],
        "vulnerabilities": [{
            "id": CVE, "source": {"name": "NVD"},
            "analysis": {"state": "not_affected", "justification": "code_not_reachable"},
            "affects": [{"ref": "image"}]
        }]
    })
}

/// A fixture that differs in one place, named by a JSON pointer. No value takes it out.
pub(super) fn with(mut document: Value, place: &str, value: Option<Value>) -> Value {
    let (parent, last) = place.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Object(map), Some(value)) => drop(map.insert(last.to_owned(), value)),
        (Value::Object(map), None) => assert!(map.remove(last).is_some(), "{place}"),
        (Value::Array(list), Some(value)) => list[last.parse::<usize>().unwrap()] = value,
        (Value::Array(list), None) => drop(list.remove(last.parse().unwrap())),
        (other, _) => panic!("{place}: {other}"),
    }
    document
}

pub(super) fn bytes(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}
