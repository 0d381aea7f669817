//! Files of every form, of several, of none, and hostile ones.

use serde_json::{Value, json};

use super::{Document, cut, read};
use crate::attest::image::fixtures::{
    at, bytes, clair, cyclonedx, grype, openvex, snyk, trivy, with,
};

fn why(text: &[u8]) -> String {
    read(text, at()).unwrap_err().to_string()
}

#[test]
fn a_file_is_of_one_form_or_refused() {
    let forms = [trivy(), grype(), clair(), snyk(), openvex(), cyclonedx()];
    for (number, form) in forms.iter().enumerate() {
        read(&bytes(form), at()).unwrap();
        // Two at once: each reader would find what it knows.
        let other = &forms[(number + 1) % forms.len()];
        let mut both = form.clone();
        let both_map = both.as_object_mut().unwrap();
        for (key, value) in other.as_object().unwrap() {
            both_map.entry(key).or_insert(value.clone());
        }
        assert!(why(&bytes(&both)).contains("several forms"), "{both}");
    }
    assert!(why(b"{}").contains("no form that is known"));
    assert!(why(br#"{"Results": []}"#).contains("no form that is known"));
}

#[test]
fn sarif_and_lists_of_packages_are_information_alone() {
    let sarif = json!({"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "Trivy"}}, "results": []}]});
    let spdx = json!({"spdxVersion": "SPDX-2.3", "packages": []});
    for (document, part) in [(sarif, "SARIF"), (spdx, "SPDX")] {
        match read(&bytes(&document), at()) {
            Ok(Document::Information(why)) => assert!(why.contains(part), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_hostile_is_refused_and_costs_little() {
    let deep = "[".repeat(1_000_000);
    let hidden = format!("{{\"SchemaVersion\": 2, \"x\": {deep}");
    let read_deep = format!("{{\"SchemaVersion\": 2, \"Results\": {deep}");
    let text = trivy().to_string();
    let huge = text.replacen("\"SchemaVersion\":2", "\"SchemaVersion\":2e999", 1);
    let long = text.replacen(
        "\"SchemaVersion\":2",
        &format!("\"SchemaVersion\":{}", "9".repeat(100_000)),
        1,
    );
    let twice = text.replacen(
        "\"CreatedAt\":",
        "\"CreatedAt\":\"2026-03-01T00:00:00Z\",\"CreatedAt\":",
        1,
    );
    let version_twice = text.replacen(
        "\"SchemaVersion\":2",
        "\"SchemaVersion\":1,\"SchemaVersion\":2",
        1,
    );
    for document in [&huge, &long, &twice, &version_twice] {
        assert_ne!(**document, text, "it differs");
    }
    for hostile in [
        deep.as_bytes(),
        hidden.as_bytes(),
        read_deep.as_bytes(),
        huge.as_bytes(),
        long.as_bytes(),
        twice.as_bytes(),
        version_twice.as_bytes(),
        b"",
        b" \n",
        b"null",
        b"7",
        b"\"text\"",
        b"\x00",
        b"\xff\xfe{\x00}\x00",
        b"{\"SchemaVersion\": 2",
        format!("{text}{text}").as_bytes(),
        format!("{text} x").as_bytes(),
        format!("[{text}]").as_bytes(),
    ] {
        let why = why(hostile);
        assert!(why.len() < 400, "{why}");
    }
}

#[test]
fn every_cut_and_every_changed_byte_gives_an_answer() {
    for document in [trivy(), grype(), clair(), snyk(), openvex(), cyclonedx()] {
        let text = bytes(&document);
        for end in (0..text.len()).step_by(7) {
            assert!(read(&text[..end], at()).is_err());
        }
        for place in (0..text.len()).step_by(11) {
            for byte in [0, b'"', b'{', b'}', b'9', 0xff] {
                let mut changed = text.clone();
                changed[place] = byte;
                let _ = read(&changed, at());
            }
        }
    }
}

#[test]
fn a_list_is_never_taken_for_an_object() {
    // By position the members of a list would fit.
    let list = json!([2, "2026-03-01T00:00:00Z", "container_image", null, []]);
    assert!(read(&bytes(&list), at()).is_err());
    let inner = with(trivy(), "/Metadata", Some(Value::Null));
    assert!(matches!(
        read(&bytes(&inner), at()),
        Ok(Document::Report(_))
    ));
}

#[test]
fn what_is_quoted_is_short_and_printable() {
    assert_eq!(cut("a\nb\u{1b}[31m"), "ab[31m");
    assert_eq!(cut(&"x".repeat(1_000)).chars().count(), 161);
}
