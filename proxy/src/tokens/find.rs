//! Where a token may stand in a request, and taking it away from there.

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderValue, Request, Uri, header::COOKIE, uri::PathAndQuery};
use postern_policies::model::request_authentication::{JwtRule, TokenPlace};

use super::verify::Refused;

/// A token, and the rules that read the place where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) text: String,
    pub(super) readers: Vec<usize>,
}

/// All tokens in the places that any rule reads. A place that several rules read is one place.
pub(super) fn tokens<B>(request: &Request<B>, rules: &[&JwtRule]) -> Result<Vec<Found>, Refused> {
    let mut found: Vec<Found> = Vec::new();
    for place in places(rules) {
        for text in at(request, place)? {
            if found.len() == MAX_TOKENS {
                return Err(Refused::Several);
            }
            let readers = (0..).zip(rules);
            let readers = readers.filter(|(_, rule)| rule.places.contains(place));
            found.push(Found {
                text,
                readers: readers.map(|(number, _)| number).collect(),
            });
        }
    }
    Ok(found)
}

fn places<'a>(rules: &[&'a JwtRule]) -> Vec<&'a TokenPlace> {
    let mut places: Vec<&TokenPlace> = Vec::new();
    for place in rules.iter().flat_map(|rule| &rule.places) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// The texts at a place: every one of them counts, an app may take any.
fn at<B>(request: &Request<B>, place: &TokenPlace) -> Result<Vec<String>, Refused> {
    match place {
        TokenPlace::Header { name, prefix } => request
            .headers()
            .get_all(name.as_str())
            .iter()
            .filter_map(|value| after_prefix(value, prefix))
            .map(|text| text.map_err(|()| Refused::Form))
            .collect(),
        TokenPlace::Parameter(name) => Ok(parameters(request.uri().query().unwrap_or_default())
            .filter(|(_, key, _)| key == name)
            .map(|(_, _, value)| value)
            .collect()),
        TokenPlace::Cookie(name) => cookies(request.headers(), name),
    }
}

/// What follows the prefix, in whatever case the prefix is written: an app takes `bearer` too
/// (RFC 9110 section 11.1). Nothing where the field has another prefix.
fn after_prefix(value: &HeaderValue, prefix: &str) -> Option<Result<String, ()>> {
    let bytes = value.as_bytes();
    let (start, rest) = bytes.split_at_checked(prefix.len())?;
    if !start.eq_ignore_ascii_case(prefix.as_bytes()) {
        return None;
    }
    let text = std::str::from_utf8(rest).map_err(|_| ());
    Some(text.map(|text| text.trim().to_owned()))
}

/// The pairs of a query: as written, and decoded.
fn parameters(query: &str) -> impl Iterator<Item = (&str, String, String)> {
    query.split('&').filter_map(|pair| {
        let (key, value) = form_urlencoded::parse(pair.as_bytes()).next()?;
        Some((pair, key.into_owned(), value.into_owned()))
    })
}

/// The values of a cookie. Spec: RFC 6265 section 4.2.1.
fn cookies(headers: &HeaderMap, name: &str) -> Result<Vec<String>, Refused> {
    let mut found = Vec::new();
    for value in headers.get_all(COOKIE) {
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| Refused::Form)?;
        let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
        found.extend(
            pairs
                .filter(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().trim_matches('"').to_owned()),
        );
    }
    Ok(found)
}

/// Takes tokens out of header fields and the query. Cookies stay: they are the app's session too.
pub(super) fn remove<B>(request: &mut Request<B>, rules: &[&JwtRule]) {
    let mut from_query = BTreeSet::new();
    for place in places(rules) {
        match place {
            TokenPlace::Header { name, prefix } => {
                let values = request.headers().get_all(name.as_str()).iter();
                let others: Vec<HeaderValue> = values
                    .filter(|value| after_prefix(value, prefix).is_none())
                    .cloned()
                    .collect();
                let headers = request.headers_mut();
                headers.remove(name.as_str());
                if let Ok(name) = name.parse::<http::HeaderName>() {
                    for value in others {
                        headers.append(name.clone(), value);
                    }
                }
            }
            TokenPlace::Parameter(name) => {
                from_query.insert(name.as_str());
            }
            TokenPlace::Cookie(_) => {}
        }
    }
    let Some(query) = request.uri().query() else {
        return;
    };
    let (gone, kept): (Vec<_>, Vec<_>) =
        parameters(query).partition(|(_, key, _)| from_query.contains(key.as_str()));
    if gone.is_empty() {
        return;
    }
    let kept: Vec<&str> = kept.iter().map(|(pair, _, _)| *pair).collect();
    let path = request.uri().path();
    let target = match kept.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", kept.join("&")),
    };
    // Parts of what was a target are one.
    if let Ok(target) = PathAndQuery::try_from(target) {
        *request.uri_mut() = Uri::from(target);
    }
}

/// A request has one token. A few are read, to say so.
const MAX_TOKENS: usize = 8;
