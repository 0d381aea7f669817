//! What evidence comes to: digests, ages, several scanners, exceptions, signatures.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use super::{Clock, Counts, Evidence, Judgement, RunningImage, judge, shown, why_lacking};
use crate::attest::image::{
    document,
    fixtures::{
        CONFIG, CVE, MANIFEST, at, bytes, clair, cyclonedx, digest, grype, openvex, parsed, snyk,
        trivy, with,
    },
};

const DAY: Duration = Duration::from_secs(86_400);

fn evidence(files: &[(&str, Value)]) -> Evidence {
    let mut evidence = Evidence::default();
    for (name, document) in files {
        let document = document::read(&bytes(document), at()).unwrap();
        evidence.add(name, document, |_| BTreeSet::from(["release".to_owned()]));
    }
    evidence
}

fn image() -> RunningImage {
    RunningImage::of(&digest(CONFIG), &[format!("web@{}", digest(MANIFEST))])
}

/// Judged a day later, when what is older than two days is too old.
fn clock() -> Clock {
    Clock {
        now: at() + DAY,
        max_age: 2 * DAY,
    }
}

fn judged(files: &[(&str, Value)]) -> Judgement {
    judge(&evidence(files), &image(), clock())
}

fn counts(files: &[(&str, Value)]) -> Option<(usize, usize)> {
    let counts = judged(files).counts?;
    Some((counts.critical, counts.high))
}

#[track_caller]
fn told(judgement: &Judgement, selector: &str, part: &str) {
    let why = why_lacking(judgement.findings.iter(), selector).unwrap_or_default();
    assert!(why.contains(part), "`{part}` in `{why}`");
}

#[test]
fn each_scanner_counts_a_vulnerability_once() {
    for document in [trivy(), grype(), clair(), snyk()] {
        assert_eq!(
            counts(&[("a.json", document.clone())]),
            Some((1, 0)),
            "{document}"
        );
        let judgement = judged(&[("a.json", document)]);
        told(&judgement, "critical:0", "`a.json` of");
        told(&judgement, "critical:0", "rates 1 critical or not at all");
        assert_eq!(why_lacking(judgement.findings.iter(), "scanned"), None);
        assert_eq!(why_lacking(judgement.findings.iter(), "high:0"), None);
    }
}

#[test]
fn what_is_not_rated_counts_as_critical_and_as_high() {
    let place = "/Results/0/Vulnerabilities/0/Severity";
    for (word, expected) in [
        ("CRITICAL", (1, 0)),
        ("HIGH", (0, 1)),
        ("MEDIUM", (0, 0)),
        ("UNKNOWN", (1, 1)),
    ] {
        let document = with(trivy(), place, Some(json!(word)));
        assert_eq!(counts(&[("a.json", document)]), Some(expected), "{word}");
    }
    // Two of one name, in two packages, are one.
    let found = trivy()["Results"][0]["Vulnerabilities"][0].clone();
    let twice = with(trivy(), "/Results/0/Vulnerabilities/1", Some(found));
    assert_eq!(counts(&[("a.json", twice)]), Some((1, 0)));
}

#[test]
fn a_report_on_another_image_says_nothing_of_this_one() {
    for (document, place) in [
        (trivy(), "/Metadata/ImageID"),
        (grype(), "/source/target/imageID"),
        (clair(), "/manifest_hash"),
    ] {
        let other = with(document, place, Some(json!(digest("ee"))));
        let judgement = judged(&[("a.json", other)]);
        assert_eq!(judgement.counts, None, "{place}");
        told(
            &judgement,
            "scanned",
            &format!("no report is on {}", digest(CONFIG)),
        );
        told(&judgement, "critical:0", "but on other images: `a.json`");
    }
    let other = with(
        snyk(),
        "/path",
        Some(json!(format!("web@{}", digest("ee")))),
    );
    assert_eq!(counts(&[("a.json", other)]), None);
    // No name binds anything.
    let named = with(trivy(), "/Metadata", Some(json!({"RepoTags": ["web:1"]})));
    assert_eq!(counts(&[("a.json", named)]), None);
    told(&judged(&[]), "scanned", "no report is on");
}

#[test]
fn an_index_binds_only_where_nothing_better_is_known() {
    let judged = |image: &RunningImage, document: Value| {
        judge(&evidence(&[("a.json", document)]), image, clock())
            .counts
            .is_some()
    };
    let reference = [format!("web@{}", digest(MANIFEST))];
    // As a kubelet tells it, and an engine whose IDs are digests of manifests.
    for image in [
        RunningImage::of(&reference[0], &reference),
        RunningImage::of(&digest(MANIFEST), &reference),
    ] {
        assert_eq!(image.config, None);
        assert!(judged(&image, trivy()) == cfg!(target_arch = "x86_64"));
        let other = with(
            trivy(),
            "/Metadata/ImageConfig/architecture",
            Some(json!("s390x")),
        );
        assert!(!judged(&image, other), "it is of another machine");
        let untold = with(trivy(), "/Metadata/ImageConfig", None);
        assert!(judged(&image, untold));
    }
    // An image that was imported has the digest of its configuration alone.
    let imported = RunningImage::of(&digest(CONFIG), &[]);
    assert!(judged(&imported, trivy()));
    assert!(judged(
        &imported,
        with(snyk(), "/path", Some(json!(digest(CONFIG))))
    ));
    assert!(!judged(&imported, clair()));
    let unnamed = with(trivy(), "/Metadata/ImageID", None);
    assert!(!judged(&imported, unnamed.clone()));
    assert!(judged(&image(), unnamed));
    assert!(!judged(&RunningImage::default(), trivy()));
}

#[test]
fn a_report_counts_for_its_time_and_no_longer() {
    let made = evidence(&[("a.json", trivy())]);
    let max_age = 2 * DAY;
    for (now, expected) in [
        (at(), true),
        (at() + max_age, true),
        (at() + max_age + Duration::from_secs(1), false),
        (at() - Duration::from_secs(60), true),
        (at() - Duration::from_secs(61), false),
    ] {
        let judgement = judge(&made, &image(), Clock { now, max_age });
        assert_eq!(judgement.counts.is_some(), expected, "{now:?}");
    }
    let late = Clock {
        now: at() + 3 * DAY,
        max_age,
    };
    told(
        &judge(&made, &image(), late),
        "critical:0",
        "`a.json` of Trivy is too old: 3d of at most 2d",
    );
    let early = Clock {
        now: at() - DAY,
        max_age,
    };
    told(
        &judge(&made, &image(), early),
        "scanned",
        "is from the future, by 1d",
    );
    // A fresh scan with an old database.
    let old = "2026-02-20T00:00:00Z";
    let stale = with(grype(), "/descriptor/db/status/built", Some(json!(old)));
    let judgement = judged(&[("g.json", stale)]);
    assert_eq!(judgement.counts, None);
    told(
        &judgement,
        "scanned",
        "the database of Grype for `g.json` is too old",
    );
}

#[test]
fn of_a_scanner_the_newest_counts_and_of_several_the_worst() {
    let clean = |document: Value| with(document, "/Results/0/Vulnerabilities", Some(json!([])));
    let later = |document: Value| with(document, "/CreatedAt", Some(json!("2026-03-01T13:00:00Z")));
    let future =
        |document: Value| with(document, "/CreatedAt", Some(json!("2026-04-01T13:00:00Z")));
    assert_eq!(
        counts(&[("a", trivy()), ("b", later(clean(trivy())))]),
        Some((0, 0))
    );
    assert_eq!(
        counts(&[("a", clean(trivy())), ("b", later(trivy()))]),
        Some((1, 0))
    );
    // Two of one moment.
    assert_eq!(
        counts(&[("a", clean(trivy())), ("b", trivy())]),
        Some((1, 0))
    );
    // A newest one that cannot be used lets no older one in.
    let ended = with(later(trivy()), "/Metadata/OS/EOSL", Some(json!(true)));
    for newest in [ended, future(clean(trivy()))] {
        assert_eq!(counts(&[("a", clean(trivy())), ("b", newest)]), None);
    }
    // One on another image changes nothing.
    let other = with(
        later(trivy()),
        "/Metadata/ImageID",
        Some(json!(digest("ee"))),
    );
    assert_eq!(counts(&[("a", clean(trivy())), ("b", other)]), Some((0, 0)));
    assert_eq!(
        counts(&[("a", clean(trivy())), ("g", grype())]),
        Some((1, 0))
    );
    assert_eq!(
        counts(&[("a", trivy()), ("c", clair()), ("s", snyk())]),
        Some((1, 0))
    );
    let high = with(
        trivy(),
        "/Results/0/Vulnerabilities/0/Severity",
        Some(json!("HIGH")),
    );
    assert_eq!(counts(&[("a", high), ("g", grype())]), Some((1, 1)));
}

#[test]
fn an_exception_takes_away_what_it_names() {
    for vex in [openvex(), cyclonedx()] {
        for document in [trivy(), grype(), clair(), snyk()] {
            let files = [("a.json", document.clone()), ("vex.json", vex.clone())];
            assert_eq!(counts(&files), Some((0, 0)), "{document}");
        }
        // An exception alone is no scan.
        assert_eq!(counts(&[("vex.json", vex)]), None);
    }
    let other = with(
        openvex(),
        "/statements/0/vulnerability/name",
        Some(json!("CVE-1")),
    );
    assert_eq!(counts(&[("a", trivy()), ("v", other)]), Some((1, 0)));
    let place = "/statements/0/products/0/@id";
    let elsewhere = format!("pkg:oci/web@{}", digest("ee"));
    let other = with(openvex(), place, Some(json!(elsewhere)));
    assert_eq!(counts(&[("a", trivy()), ("v", other)]), Some((1, 0)));
    // The digest of the configuration names the image as well.
    let config = format!("pkg:oci/web@{}", digest(CONFIG));
    let by_config = with(openvex(), place, Some(json!(config)));
    assert_eq!(counts(&[("a", trivy()), ("v", by_config)]), Some((0, 0)));
}

#[test]
fn the_newest_statement_holds_and_at_one_moment_the_worse() {
    let said = |status: &str, at: &str| {
        let said = with(openvex(), "/statements/0/status", Some(json!(status)));
        with(said, "/timestamp", Some(json!(at)))
    };
    let (before, after) = ("2026-02-01T00:00:00Z", "2026-03-02T00:00:00Z");
    let count = |first: Value, second: Value| {
        let files = [("a", trivy()), ("v", first), ("w", second)];
        counts(&files).unwrap().0
    };
    let fine = openvex;
    assert_eq!(count(fine(), said("affected", before)), 0);
    assert_eq!(count(fine(), said("affected", after)), 1);
    assert_eq!(count(said("affected", after), fine()), 1);
    assert_eq!(count(fine(), said("under_investigation", after)), 1);
    let now = "2026-03-01T12:00:00.123456789Z";
    assert_eq!(count(fine(), said("affected", now)), 1);
    assert_eq!(count(said("affected", now), fine()), 1);
    // One from the future does not except.
    assert_eq!(
        count(
            said("not_affected", "2026-04-01T00:00:00Z"),
            said("affected", before)
        ),
        1
    );
}

#[test]
fn where_several_names_stand_for_one_finding_each_must_be_excepted() {
    let names = "/vulnerabilities/0/identifiers/CVE";
    let two = json!([CVE, "CVE-2026-0009"]);
    let one_of = with(snyk(), "/vulnerabilities/1", None);
    let both = with(one_of.clone(), names, Some(two));
    assert_eq!(
        counts(&[("s", both.clone()), ("v", openvex())]),
        Some((1, 0))
    );
    assert_eq!(counts(&[("s", one_of), ("v", openvex())]), Some((0, 0)));
    let second = with(
        openvex(),
        "/statements/0/vulnerability/name",
        Some(json!("CVE-2026-0009")),
    );
    let files = [("s", both.clone()), ("v", openvex()), ("w", second)];
    assert_eq!(counts(&files), Some((0, 0)));
    // The scanner's own name decides by itself.
    let own = json!("SNYK-DEBIAN12-OPENSSL-1");
    let own = with(openvex(), "/statements/0/vulnerability/name", Some(own));
    assert_eq!(counts(&[("s", both), ("v", own.clone())]), Some((0, 0)));
    let affected = with(own, "/statements/0/status", Some(json!("affected")));
    assert_eq!(
        counts(&[("s", snyk()), ("v", openvex()), ("w", affected)]),
        Some((1, 0))
    );
    // A finding without any other name is not excepted by nothing.
    let none = with(snyk(), names, Some(json!([])));
    assert_eq!(
        counts(&[("s", with(none, "/vulnerabilities/1", None))]),
        Some((1, 0))
    );
}

#[test]
fn information_is_told_where_nothing_else_is() {
    let sarif = json!({"version": "2.1.0", "runs": []});
    let judgement = judged(&[("scan.sarif", sarif)]);
    assert_eq!(judgement.counts, None);
    told(&judgement, "critical:0", "`scan.sarif`: it is SARIF");
    assert_eq!(judged(&[]).counts, None);
}

#[test]
fn a_signature_counts_for_the_manifest_that_it_names() {
    use super::{Named, Signature};

    let signed = |digits: &str, keys: &[&str]| Evidence {
        signatures: vec![Named {
            file: "sig.json".to_owned(),
            value: Signature {
                manifest: parsed(digits),
                keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            },
        }],
        ..Evidence::default()
    };
    let judged = |evidence: &Evidence, image: &RunningImage| judge(evidence, image, clock());
    let good = judged(&signed(MANIFEST, &["release"]), &image());
    assert_eq!(good.signed, BTreeSet::from(["release".to_owned()]));
    told(
        &good,
        "signed:other",
        "`sig.json` is signed by `release` alone",
    );
    let nobodys = judged(&signed(MANIFEST, &[]), &image());
    assert!(nobodys.signed.is_empty());
    told(&nobodys, "signed:release", "by no key of `image.keys`");
    // The digest of a configuration is none of a manifest.
    for digits in ["ee", CONFIG] {
        let other = judged(&signed(digits, &["release"]), &image());
        assert!(other.signed.is_empty(), "{digits}");
        told(&other, "signed:release", "no signature is on");
    }
    let imported = RunningImage::of(&digest(CONFIG), &[]);
    let untold = judged(&signed(CONFIG, &["release"]), &imported);
    assert!(untold.signed.is_empty());
    told(&untold, "signed:release", "push it to a registry");
    assert_eq!(good.counts, None::<Counts>, "a signature is no scan");
}

#[test]
fn durations_are_shown_in_two_units() {
    for (seconds, expected) in [(0, "0s"), (59, "59s"), (3_601, "1h1s"), (90_061, "1d1h")] {
        assert_eq!(shown(Duration::from_secs(seconds)), expected);
    }
}
