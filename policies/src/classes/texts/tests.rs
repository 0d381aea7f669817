//! Which patterns one text can match together.

use std::collections::BTreeSet;

use super::{Class, Domain, Shape, search, shape, witnesses};
use crate::{
    model::pattern::{PathTemplate, Pattern},
    normalize::{self, PathNormalization},
};

fn pattern(text: &str) -> Pattern {
    match PathTemplate::is_template(text) {
        true => Pattern::Template(PathTemplate::parse(text).unwrap()),
        false => Pattern::text(text),
    }
}

fn found(domain: Domain, patterns: &[&str]) -> BTreeSet<Vec<bool>> {
    let patterns: Vec<Pattern> = patterns.iter().map(|text| pattern(text)).collect();
    let exact = patterns.iter().filter_map(|one| match one {
        Pattern::Exact(text) => Some(text.clone()),
        _ => None,
    });
    let others = patterns
        .iter()
        .filter(|one| !matches!(one, Pattern::Exact(_)));
    let shapes: Vec<Shape> = others.filter_map(|one| shape(one, Class::Any)).collect();
    let texts = witnesses(domain, &exact.collect(), &shapes).unwrap();
    let each = texts.iter().map(|text| {
        let matches = |one: &Pattern| one.matches_text(text.as_bytes());
        patterns.iter().map(matches).collect()
    });
    each.collect()
}

const PATH: Domain = Domain::Path(PathNormalization::Base);

#[test]
fn every_way_in_which_patterns_overlap_has_a_text() {
    // What each way stands for: matched by the first, by the second.
    let ways = |domain, patterns: &[&str]| -> Vec<String> {
        let all = found(domain, patterns);
        let word = |way: &Vec<bool>| way.iter().map(|one| if *one { '1' } else { '0' }).collect();
        all.iter().map(word).collect()
    };
    assert_eq!(ways(PATH, &["/api/*", "*.key"]), ["00", "01", "10", "11"]);
    assert_eq!(ways(PATH, &["/api/*", "/api/v1/*"]), ["00", "10", "11"]);
    assert_eq!(ways(PATH, &["/api/*", "/web/*"]), ["00", "01", "10"]);
    assert_eq!(ways(PATH, &["/a/{*}", "/a/{**}"]), ["00", "01", "11"]);
    assert_eq!(ways(PATH, &["/{**}/cart", "*/c*"]), ["00", "01", "10"]);
    assert_eq!(ways(PATH, &["/a", "*a"]), ["00", "01", "11"]);
    // No path is without its slash, has a dot segment, or an escaped letter.
    assert_eq!(ways(PATH, &["api", "/a/../b"]), ["00"]);
    assert_eq!(ways(PATH, &["/%61", "/a%20b"]), ["00", "01"]);
    let merging = Domain::Path(PathNormalization::MergeSlashes);
    assert_eq!(
        (ways(PATH, &["//*"]), ways(merging, &["//*"])),
        (vec!["0".into(), "1".into()], vec!["0".into()])
    );
    assert_eq!(ways(Domain::Method, &["*", "GET"]), ["10", "11"]);
    assert_eq!(
        ways(Domain::Header, &["*", "a b", " a"]),
        ["000", "100", "110"]
    );
    assert_eq!(ways(Domain::Word, &["a b", "a"]), ["00", "01"]);
    assert_eq!(
        ways(Domain::Identity, &["*/ns/a/sa/b", "x/*"]),
        ["00", "01", "10", "11"]
    );
    assert_eq!(
        ways(Domain::Identity, &["spiffe://x/a", "X/a", "x/"]),
        ["000"]
    );
}

#[test]
fn every_text_of_paths_is_in_its_one_spelling() {
    for how in [PathNormalization::Base, PathNormalization::MergeSlashes] {
        let patterns = ["*.", "/a%3F*", "/{*}/b", "/a//*", "*..", "/x/.y"];
        let shapes: Vec<Shape> = patterns
            .iter()
            .filter_map(|text| shape(&pattern(text), Class::Any))
            .collect();
        let texts = witnesses(Domain::Path(how), &BTreeSet::new(), &shapes).unwrap();
        assert!(texts.len() > 4, "{texts:?}");
        for text in texts {
            assert_eq!(normalize::path(&text, how).as_deref(), Ok(text.as_str()));
        }
    }
}

#[test]
fn what_is_too_much_is_refused_rather_than_sampled() {
    let shapes: Vec<Shape> = (0..20)
        .flat_map(|number| [format!("/{number}/*"), format!("*/{number}")])
        .filter_map(|text| shape(&pattern(&text), Class::Any))
        .collect();
    assert!(search(PATH, &BTreeSet::new(), &shapes, 200).is_err());
    assert!(search(PATH, &BTreeSet::new(), &shapes, 100_000).is_ok());
}
