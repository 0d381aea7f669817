//! Selectors with a place for what a pod is called.

use postern_spiffe::Selector;

/// A selector in which `{namespace}`, `{serviceAccount}`, `{pod}`, `{uid}` and `{node}` stand for those
/// of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

/// What a pod is called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'p> {
    pub(super) namespace: &'p str,
    pub(super) service_account: &'p str,
    pub(super) pod: &'p str,
    pub(super) uid: &'p str,
    pub(super) node: &'p str,
}

impl Template {
    /// # Errors
    /// What stands in braces is no such word, or the rest is no selector.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text;
        while let Some((_, after)) = rest.split_once('{') {
            let (word, after) = after
                .split_once('}')
                .ok_or_else(|| "a brace is not closed".to_owned())?;
            if !WORDS.contains(&word) {
                let known = WORDS.join("}`, `{");
                return Err(format!("`{{{word}}}` is none of `{{{known}}}`"));
            }
            rest = after;
        }
        let template = Self(text.to_owned());
        let sample = Names {
            namespace: "n",
            service_account: "a",
            pod: "p",
            uid: "u",
            node: "o",
        };
        Selector::parse(&template.of(sample)).map_err(|error| error.to_string())?;
        Ok(template)
    }

    /// The selector of a pod. No name of Kubernetes has a brace, so none is taken for a word.
    pub(super) fn of(&self, names: Names<'_>) -> String {
        let pairs = [
            ("{namespace}", names.namespace),
            ("{serviceAccount}", names.service_account),
            ("{pod}", names.pod),
            ("{uid}", names.uid),
            ("{node}", names.node),
        ];
        let fill = |text: String, (word, name): (&str, &str)| text.replace(word, name);
        pairs.into_iter().fold(self.0.clone(), fill)
    }
}

const WORDS: [&str; 5] = ["namespace", "serviceAccount", "pod", "uid", "node"];
