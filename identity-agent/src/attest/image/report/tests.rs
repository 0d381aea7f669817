//! Reports of each scanner, and what each must say to be believed.

use serde_json::{Value, json};

use super::{Report, Scanner, Severity};
use crate::attest::image::{
    document::{self, Document},
    fixtures::{
        CONFIG, CVE, MANIFEST, PACKAGE, at, bytes, clair, digest, grype, parsed, snyk, trivy, with,
    },
};

fn read(document: &Value) -> Result<Report, String> {
    match document::read(&bytes(document), at()) {
        Ok(Document::Report(report)) => Ok(report),
        Ok(other) => panic!("{other:?}"),
        Err(why) => Err(why.to_string()),
    }
}

#[track_caller]
fn refused(document: &Value, part: &str) {
    let why = read(document).unwrap_err();
    assert!(why.contains(part), "`{part}` in `{why}`");
}

#[test]
fn each_scanner_tells_image_time_and_what_counts() {
    for (scanner, document, id, aliases) in [
        (Scanner::Trivy, trivy(), CVE, vec![]),
        (Scanner::Grype, grype(), "GHSA-aaaa-bbbb-cccc", vec![CVE]),
        (Scanner::Clair, clair(), CVE, vec![]),
        (Scanner::Snyk, snyk(), "SNYK-DEBIAN12-OPENSSL-1", vec![CVE]),
    ] {
        let report = read(&document).unwrap();
        assert_eq!(report.scanner, scanner);
        assert_eq!(report.at, at(), "{scanner}");
        assert_eq!(report.coverage, Ok(()), "{scanner}");
        assert!(
            report.scanned.manifests.contains(&parsed(MANIFEST)),
            "{scanner}"
        );
        let tells_config = [Scanner::Trivy, Scanner::Grype].contains(&scanner);
        let config = tells_config.then(|| parsed(CONFIG));
        assert_eq!(report.scanned.config, config, "{scanner}");
        assert!(!report.found.is_empty(), "{scanner}");
        for found in report.found {
            assert_eq!(found.id, id);
            assert_eq!(found.aliases, aliases);
            assert_eq!(found.severity, Severity::Critical);
            assert_eq!(found.package.as_deref(), tells_config.then_some(PACKAGE));
        }
    }
}

#[test]
fn a_word_that_is_not_the_scanners_own_is_no_rating() {
    for (document, place, words) in [
        (
            trivy(),
            "/Results/0/Vulnerabilities/0/Severity",
            ["CRITICAL", "HIGH", "MEDIUM", "LOW"],
        ),
        (
            grype(),
            "/matches/0/vulnerability/severity",
            ["Critical", "High", "Medium", "Negligible"],
        ),
        (
            clair(),
            "/vulnerabilities/356835/normalized_severity",
            ["Critical", "High", "Low", "Negligible"],
        ),
        (
            snyk(),
            "/vulnerabilities/0/severity",
            ["critical", "high", "medium", "low"],
        ),
    ] {
        let severity = |value: Option<Value>| {
            let report = read(&with(document.clone(), place, value)).unwrap();
            // Of Snyk's two the second stays.
            report.found.first().map(|one| one.severity)
        };
        let [critical, high, medium, low] = words;
        assert_eq!(severity(Some(json!(critical))), Some(Severity::Critical));
        assert_eq!(severity(Some(json!(high))), Some(Severity::High));
        for word in [medium, low] {
            assert_ne!(
                severity(Some(json!(word))),
                Some(Severity::Unknown),
                "{word}"
            );
        }
        let turned = match critical.chars().all(char::is_lowercase) {
            true => critical.to_uppercase(),
            false => critical.to_lowercase(),
        };
        for value in [
            Some(json!(turned)),
            Some(json!("UNKNOWN")),
            Some(json!("Unknown")),
            Some(json!("")),
            Some(json!("severe")),
            Some(Value::Null),
            None,
        ] {
            let shown = format!("{value:?}");
            assert_eq!(severity(value), Some(Severity::Unknown), "{place} {shown}");
        }
    }
}

#[test]
fn a_report_of_trivy_says_all_that_it_is_believed_by() {
    refused(
        &with(trivy(), "/SchemaVersion", Some(json!(3))),
        "version 3",
    );
    refused(
        &with(trivy(), "/SchemaVersion", Some(json!(-2))),
        "cannot be read",
    );
    refused(
        &with(trivy(), "/ArtifactType", Some(json!("filesystem"))),
        "no report on an image",
    );
    refused(
        &with(trivy(), "/ArtifactType", None),
        "no report on an image",
    );
    refused(&with(trivy(), "/CreatedAt", None), "`CreatedAt`");
    refused(
        &with(trivy(), "/CreatedAt", Some(json!("yesterday"))),
        "`CreatedAt`",
    );
    refused(
        &with(trivy(), "/CreatedAt", Some(json!("0001-01-01T00:00:00Z"))),
        "`CreatedAt`",
    );
    refused(
        &with(
            trivy(),
            "/Results/0/Vulnerabilities/0/VulnerabilityID",
            None,
        ),
        "VulnerabilityID",
    );
    refused(
        &with(trivy(), "/Results/0/Vulnerabilities", Some(json!({}))),
        "cannot be read",
    );
    let is_covered = |document: &Value| read(document).unwrap().coverage.is_ok();
    assert!(!is_covered(&with(trivy(), "/Results", None)));
    assert!(!is_covered(&with(trivy(), "/Results", Some(json!([])))));
    assert!(!is_covered(&with(
        trivy(),
        "/Results",
        Some(json!([{"Class": "secret"}]))
    )));
    assert!(!is_covered(&with(
        trivy(),
        "/Metadata/OS/EOSL",
        Some(json!(true))
    )));
    assert!(is_covered(&with(
        trivy(),
        "/Metadata/OS/EOSL",
        Some(json!(false))
    )));
    // One with programs alone has no distribution.
    assert!(is_covered(&with(trivy(), "/Metadata/OS", None)));
    assert!(is_covered(&with(
        trivy(),
        "/Results/0/Vulnerabilities",
        None
    )));
}

#[test]
fn a_report_of_grype_says_all_that_it_is_believed_by() {
    refused(
        &with(grype(), "/source/type", Some(json!("directory"))),
        "no report on an image",
    );
    refused(
        &with(grype(), "/source/target", Some(json!("/srv"))),
        "cannot be read",
    );
    refused(&with(grype(), "/source", None), "no report on an image");
    refused(&with(grype(), "/descriptor", None), "descriptor");
    refused(
        &with(grype(), "/descriptor/name", Some(json!("syft"))),
        "`syft`",
    );
    refused(
        &with(grype(), "/descriptor/timestamp", Some(json!(""))),
        "`descriptor.timestamp`",
    );
    refused(&with(grype(), "/descriptor/db", None), "`descriptor.db`");
    refused(
        &with(grype(), "/descriptor/db/status/built", None),
        "`descriptor.db`",
    );
    let older = with(
        grype(),
        "/descriptor/db",
        Some(json!({"built": "2026-03-01T12:00:00Z"})),
    );
    assert!(read(&older).unwrap().database.is_some());
    let unknown = with(grype(), "/distro/name", Some(json!("")));
    assert_eq!(
        read(&unknown).unwrap().coverage,
        Ok(()),
        "it found something"
    );
    let empty = with(unknown, "/matches", Some(json!([])));
    assert!(read(&empty).unwrap().coverage.is_err());
    let empty = with(grype(), "/matches", Some(json!([])));
    assert_eq!(read(&empty).unwrap().coverage, Ok(()));
}

#[test]
fn a_report_of_clair_says_all_that_it_is_believed_by() {
    refused(&with(clair(), "/packages", None), "packages");
    refused(&with(clair(), "/vulnerabilities", None), "vulnerabilities");
    refused(
        &with(clair(), "/package_vulnerabilities", None),
        "package_vulnerabilities",
    );
    refused(
        &with(clair(), "/package_vulnerabilities/10", Some(json!(["7"]))),
        "does not describe",
    );
    assert!(
        read(&with(clair(), "/packages", Some(json!({}))))
            .unwrap()
            .coverage
            .is_err()
    );
    let nobodys = with(clair(), "/package_vulnerabilities", Some(json!({})));
    assert_eq!(
        read(&nobodys).unwrap().found.len(),
        1,
        "what is described counts"
    );
    let twice = clair().to_string().replacen(
        "\"356835\":{",
        "\"356836\":{\"name\":\"x\",\"normalized_severity\":\"Low\"},\"356835\":{",
        1,
    );
    let why = document::read(twice.as_bytes(), at())
        .unwrap_err()
        .to_string();
    assert!(why.contains("comes twice"), "{why}");
    let other = with(clair(), "/manifest_hash", Some(json!("latest")));
    assert!(!read(&other).unwrap().scanned.is_named());
}

#[test]
fn a_report_of_snyk_names_its_image_by_digest_and_counts_all_projects() {
    for path in ["registry.test/web:1", "/srv/app", ""] {
        refused(
            &with(snyk(), "/path", Some(json!(path))),
            "scan it by digest",
        );
    }
    refused(&with(snyk(), "/path", None), "scan it by digest");
    refused(&with(snyk(), "/vulnerabilities", None), "vulnerabilities");
    let local = read(&with(snyk(), "/path", Some(json!(digest(CONFIG))))).unwrap();
    assert_eq!(local.scanned.config, Some(parsed(CONFIG)));
    let empty = with(snyk(), "/vulnerabilities", Some(json!([])));
    assert_eq!(read(&empty).unwrap().coverage, Ok(()));
    let nothing = with(empty.clone(), "/dependencyCount", Some(json!(0)));
    assert!(read(&nothing).unwrap().coverage.is_err());
    // Applications in the image: beside it, or within it.
    let beside = json!([empty, snyk()]);
    assert_eq!(read(&beside).unwrap().found.len(), 2);
    let found = snyk()["vulnerabilities"].clone();
    let within = with(
        empty,
        "/applications",
        Some(json!([{"vulnerabilities": found}])),
    );
    assert_eq!(read(&within).unwrap().found.len(), 2);
    let other = with(
        snyk(),
        "/path",
        Some(json!(format!("web@{}", digest("ee")))),
    );
    refused(&json!([snyk(), other]), "several images");
    refused(&json!([]), "scan it by digest");
}
