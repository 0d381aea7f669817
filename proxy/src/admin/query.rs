//! The query of a request to the admin listener. What is not known is a mistake, not nothing: who
//! misspells `verdict` must not be shown every verdict. Pure.

use postern_policies::yaml::fields::nearest;
use postern_spiffe::SpiffeId;

/// Names and values, each name once.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query that may have these names.
    pub(super) fn read(query: &str, known: &[&'static str]) -> Result<Self, String> {
        let mut read: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if !known.contains(&&*name) {
                let hint = match nearest(&name, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are `{}`", known.join("`, `")),
                };
                return Err(format!("`{}` is not known here; {hint}", cut(&name)));
            }
            if read.iter().any(|(other, _)| *other == name) {
                return Err(format!("`{name}` is said twice"));
            }
            read.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(read))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.0.iter();
        let found = all.find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// One of these words, if the name is there.
    pub(super) fn one_of(
        &self,
        name: &str,
        words: &[&'static str],
    ) -> Result<Option<String>, String> {
        self.checked(name, &format!("one of `{}`", words.join("`, `")), |value| {
            words.contains(&value)
        })
    }

    /// A whole SPIFFE ID, if the name is there.
    pub(super) fn identity(&self, name: &str) -> Result<Option<String>, String> {
        self.checked(name, "a SPIFFE ID as `spiffe://example.org/web`", |value| {
            SpiffeId::parse(value).is_ok()
        })
    }

    /// How a path begins, if the name is there.
    pub(super) fn path(&self, name: &str) -> Result<Option<String>, String> {
        self.checked(name, "how a path begins, as `/api/`", |value| {
            value.starts_with('/')
        })
    }

    fn checked(
        &self,
        name: &str,
        what: &str,
        is_good: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, String> {
        match self.get(name) {
            Some(value) if !is_good(value) => Err(format!("`{name}={}` is not {what}", cut(value))),
            value => Ok(value.map(str::to_owned)),
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::Query;

    const KNOWN: [&str; 3] = ["verdict", "source", "path"];

    #[track_caller]
    fn refused(query: &str, said: &str) {
        let read = Query::read(query, &KNOWN).and_then(|query| {
            query.one_of("verdict", &["allow", "deny"])?;
            query.identity("source")?;
            query.path("path")
        });
        let refused = read.unwrap_err();
        assert!(refused.contains(said), "{refused}");
    }

    #[test]
    fn a_query_is_read_whole_or_refused_by_name() {
        let query = Query::read("verdict=deny&path=%2Fapi%2F", &KNOWN).unwrap();
        let verdict = query.one_of("verdict", &["allow", "deny"]);
        assert_eq!(verdict, Ok(Some("deny".to_owned())));
        assert_eq!(query.path("path"), Ok(Some("/api/".to_owned())));
        assert_eq!(query.identity("source"), Ok(None));
        let id = Query::read("source=spiffe://example.org/web", &KNOWN).unwrap();
        assert!(id.identity("source").unwrap().is_some());

        refused("verdikt=deny", "did you mean `verdict`?");
        refused("colour=red", "there are `verdict`, `source`, `path`");
        refused("verdict=deny&verdict=allow", "`verdict` is said twice");
        refused(
            "verdict=denied",
            "`verdict=denied` is not one of `allow`, `deny`",
        );
        refused("verdict=", "`verdict=` is not one of");
        refused("source=web", "`source=web` is not a SPIFFE ID");
        refused("path=api", "`path=api` is not how a path begins");
    }
}
