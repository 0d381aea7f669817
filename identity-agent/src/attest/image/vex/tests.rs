//! Exceptions by both standards, each with twins that except nothing.

use serde_json::{Value, json};

use super::Statement;
use crate::attest::image::{
    document::{self, Document},
    fixtures::{AT, CVE, MANIFEST, PACKAGE, at, bytes, cyclonedx, digest, openvex, parsed, with},
    report::{Severity, Vulnerability},
};

fn read(document: &Value) -> Result<Vec<Statement>, String> {
    match document::read(&bytes(document), at()) {
        Ok(Document::Exceptions(all)) => Ok(all),
        Ok(other) => panic!("{other:?}"),
        Err(why) => Err(why.to_string()),
    }
}

#[track_caller]
fn refused(document: &Value, part: &str) {
    let why = read(document).unwrap_err();
    assert!(why.contains(part), "`{part}` in `{why}`");
}

fn found(package: Option<&str>) -> Vulnerability {
    Vulnerability {
        id: CVE.to_owned(),
        aliases: Vec::new(),
        severity: Severity::Critical,
        package: package.map(str::to_owned),
    }
}

/// Does a document say that what was found does no harm in the image?
fn excepts(document: &Value, package: Option<&str>) -> bool {
    let image = parsed(MANIFEST);
    let all = read(document).unwrap();
    let mut about = all.iter().filter(|one| {
        one.names.iter().any(|name| name == CVE) && one.is_about(&found(package), &[&image])
    });
    about.next().is_some_and(|one| one.excepts)
}

const PRODUCT: &str = "/statements/0/products/0";

#[test]
fn openvex_excepts_one_vulnerability_in_one_image() {
    assert!(excepts(&openvex(), None));
    assert_eq!(read(&openvex()).unwrap()[0].at, at());
    let hashed = json!({"hashes": {"sha-256": MANIFEST.repeat(32)}});
    let identified = json!({"@id": "urn:x", "identifiers": {"purl": format!("pkg:oci/web@{}", digest(MANIFEST))}});
    for product in [hashed, identified] {
        assert!(excepts(&with(openvex(), PRODUCT, Some(product)), None));
    }
    let named = json!({"name": "GHSA-aaaa-bbbb-cccc", "aliases": [CVE]});
    assert!(excepts(
        &with(openvex(), "/statements/0/vulnerability", Some(named)),
        None
    ));
    // Each twin differs in one point.
    let other = json!({"@id": format!("pkg:oci/web@{}", digest("ee"))});
    for (place, value) in [
        (PRODUCT, other),
        ("/statements/0/vulnerability/name", json!("CVE-2026-00011")),
        ("/statements/0/vulnerability/name", json!("cve-2026-0001")),
        ("/statements/0/status", json!("affected")),
        ("/statements/0/status", json!("under_investigation")),
    ] {
        assert!(
            !excepts(&with(openvex(), place, Some(value.clone())), None),
            "{value}"
        );
    }
    let fixed = with(openvex(), "/statements/0/status", Some(json!("fixed")));
    assert!(excepts(
        &with(fixed, "/statements/0/justification", None),
        None
    ));
}

#[test]
fn what_takes_an_exception_back_counts_where_nobody_knows_the_package() {
    let place = format!("{PRODUCT}/subcomponents");
    let of_package = with(openvex(), &place, Some(json!([{"@id": PACKAGE}])));
    let affected = with(
        of_package.clone(),
        "/statements/0/status",
        Some(json!("affected")),
    );
    let image = parsed(MANIFEST);
    let is_about = |document: &Value, package: Option<&str>| {
        let all = read(document).unwrap();
        all.iter()
            .any(|one| one.is_about(&found(package), &[&image]))
    };
    assert!(!is_about(&of_package, None), "it excepts nothing else");
    assert!(is_about(&affected, None));
    assert!(is_about(&affected, Some(PACKAGE)));
    assert!(!is_about(&affected, Some("pkg:deb/debian/other@1")));
}

#[test]
fn openvex_that_is_none_by_the_standard_is_refused_whole() {
    for product in [
        json!({"@id": "pkg:oci/web"}),
        json!({"@id": "pkg:oci/web@1.0"}),
        json!({}),
    ] {
        refused(
            &with(openvex(), PRODUCT, Some(product)),
            "no statement names an image by its digest",
        );
    }
    refused(
        &with(openvex(), "/statements/0/products", None),
        "no statement names an image",
    );
    refused(
        &with(openvex(), "/statements/0/justification", None),
        "needs a `justification`",
    );
    let word = json!("we_looked");
    refused(
        &with(openvex(), "/statements/0/justification", Some(word)),
        "no justification",
    );
    refused(
        &with(openvex(), "/statements/0/status", Some(json!("harmless"))),
        "no status",
    );
    refused(
        &with(openvex(), "/statements/0/vulnerability", Some(json!(CVE))),
        "cannot be read",
    );
    refused(&with(openvex(), "/timestamp", None), "no `timestamp`");
    refused(
        &with(openvex(), "/@context", Some(json!("https://example.org"))),
        "not OpenVEX's",
    );
    let without = with(openvex(), "/statements/0/justification", None);
    let told = |text: &str| {
        with(
            without.clone(),
            "/statements/0/impact_statement",
            Some(json!(text)),
        )
    };
    assert!(excepts(&told("the code was taken out"), None));
    refused(&told("  "), "needs a `justification`");
    let own = with(openvex(), "/timestamp", None);
    assert!(read(&with(own, "/statements/0/timestamp", Some(json!(AT)))).is_ok());
}

#[test]
fn openvex_for_a_package_is_for_no_other() {
    let sub = |id: &str| {
        let place = format!("{PRODUCT}/subcomponents");
        with(openvex(), &place, Some(json!([{"@id": id}])))
    };
    assert!(excepts(&sub(PACKAGE), Some(PACKAGE)));
    assert!(excepts(&sub("pkg:deb/debian/openssl"), Some(PACKAGE)));
    assert!(!excepts(&sub("pkg:deb/debian/zlib"), Some(PACKAGE)));
    // A scanner that names no package is not told of one.
    assert!(!excepts(&sub(PACKAGE), None));
    let place = format!("{PRODUCT}/subcomponents");
    refused(
        &with(openvex(), &place, Some(json!([{}]))),
        "a subcomponent has no",
    );
}

#[test]
fn cyclonedx_excepts_what_affects_names() {
    assert!(excepts(&cyclonedx(), None));
    let state = "/vulnerabilities/0/analysis/state";
    let affects = "/vulnerabilities/0/affects/0/ref";
    for word in ["resolved", "resolved_with_pedigree"] {
        assert!(
            excepts(&with(cyclonedx(), state, Some(json!(word))), None),
            "{word}"
        );
    }
    for word in ["exploitable", "in_triage", "false_positive"] {
        assert!(
            !excepts(&with(cyclonedx(), state, Some(json!(word))), None),
            "{word}"
        );
    }
    let of_package = with(cyclonedx(), affects, Some(json!("openssl")));
    assert!(excepts(&of_package, Some(PACKAGE)));
    assert!(!excepts(&of_package, Some("pkg:deb/debian/zlib@1")));
    assert!(!excepts(&of_package, None));
    let other = json!(format!("pkg:oci/web@{}", digest("ee")));
    assert!(!excepts(
        &with(cyclonedx(), "/metadata/component/purl", Some(other)),
        None
    ));
    assert!(!excepts(
        &with(cyclonedx(), "/vulnerabilities/0/id", Some(json!("CVE-1"))),
        None
    ));
    for named in [
        json!({"version": digest(MANIFEST)}),
        json!({"hashes": [{"alg": "SHA-256", "content": MANIFEST.repeat(32)}]}),
    ] {
        let mut component = named;
        component["bom-ref"] = json!("image");
        assert!(excepts(
            &with(cyclonedx(), "/metadata/component", Some(component)),
            None
        ));
    }
}

#[test]
fn cyclonedx_that_is_none_by_the_standard_is_refused_whole() {
    let analysis = "/vulnerabilities/0/analysis";
    let affects = "/vulnerabilities/0/affects/0/ref";
    refused(
        &with(cyclonedx(), &format!("{analysis}/justification"), None),
        "needs a `justification`",
    );
    let word = Some(json!("vulnerable_code_not_present"));
    refused(
        &with(cyclonedx(), &format!("{analysis}/justification"), word),
        "no justification",
    );
    refused(
        &with(
            cyclonedx(),
            &format!("{analysis}/state"),
            Some(json!("fixed")),
        ),
        "no state",
    );
    refused(
        &with(cyclonedx(), &format!("{analysis}/state"), None),
        "no `state`",
    );
    refused(
        &with(cyclonedx(), analysis, None),
        "judges no vulnerability",
    );
    refused(
        &with(cyclonedx(), "/vulnerabilities", None),
        "judges no vulnerability",
    );
    refused(
        &with(cyclonedx(), "/vulnerabilities/0/affects", None),
        "judges no vulnerability",
    );
    for reference in ["urn:cdx:1/1#image", "nameless", ""] {
        refused(
            &with(cyclonedx(), affects, Some(json!(reference))),
            "`affects` names",
        );
    }
    refused(
        &with(cyclonedx(), "/metadata/component", None),
        "names no image",
    );
    refused(
        &with(
            cyclonedx(),
            "/metadata/component/purl",
            Some(json!("pkg:oci/web")),
        ),
        "names no image",
    );
    refused(
        &with(cyclonedx(), "/metadata/timestamp", None),
        "nobody knows when",
    );
    refused(
        &with(cyclonedx(), "/bomFormat", Some(json!("Cyclone"))),
        "`bomFormat`",
    );
}
