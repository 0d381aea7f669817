//! Each token that is accepted beside its twins that are not.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use http::{HeaderMap, Request};
use postern_policies::{
    Options, PolicySet, SourceFile,
    decide::{Access, Destination, Direction, HttpRequest, NoHeaders, Peer, Protocol, Source},
    model::{request_authentication::JwtRule, workload::WorkloadName},
};
use serde_json::{Value, json};

use super::{KeyStore, Refused, Verified, of_request, tell_app};
use crate::{config::TokenKeys, telemetry::Metrics};

/// A key that signs tokens.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .unwrap();
        Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap())
    }

    fn jwk(&self, id: &str) -> Value {
        let point = self.0.public_key().as_ref();
        json!({"kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "alg": "ES256",
               "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..])})
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| BASE64.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = self
            .0
            .sign(&SystemRandom::new(), message.as_bytes())
            .unwrap();
        format!("{message}.{}", BASE64.encode(signature))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "ES256", "kid": "one", "typ": "JWT"}), claims)
    }
}

const NOW: u64 = 1_700_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn good() -> Value {
    json!({"iss": "https://issuer.example", "sub": "alice", "aud": ["api"], "exp": NOW + 300,
           "role": "admin", "nested": {"level": 3}})
}

/// A set in which these rules concern the workload `default/web`.
fn set(rules: &str) -> PolicySet {
    let text = format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web}}\n\
         spec: {{serviceAccount: web}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens}}\n\
         spec:\n  jwtRules: {rules}\n"
    );
    let files = [SourceFile {
        path: "tokens.yaml".into(),
        text: text.into(),
    }];
    PolicySet::load(&files, &Options::new("example.org".parse().unwrap()))
        .unwrap()
        .set
}

fn web() -> WorkloadName {
    WorkloadName {
        namespace: "default".into(),
        name: "web".into(),
    }
}

fn store() -> KeyStore {
    let config = TokenKeys {
        authorities: None,
        refresh: Duration::from_secs(1),
    };
    KeyStore::new(&config, Arc::new(Metrics::new()))
}

fn rule(signer: &Signer, more: &Value) -> Value {
    let keys = json!({"keys": [signer.jwk("one")]}).to_string();
    let mut rule = json!({"issuer": "https://issuer.example", "jwks": keys});
    for (name, value) in more.as_object().into_iter().flatten() {
        rule[name] = value.clone();
    }
    rule
}

fn with_header(name: &str, value: &str) -> Request<()> {
    Request::get("/a?x=1").header(name, value).body(()).unwrap()
}

fn bearer(token: &str) -> Request<()> {
    with_header("authorization", &format!("Bearer {token}"))
}

async fn ask(rules: &Value, request: &Request<()>) -> Result<Option<Verified>, Refused> {
    let set = set(&rules.to_string());
    let rules: Vec<&JwtRule> = set.token_rules(&web()).collect();
    of_request(request, &rules, &store(), now()).await
}

#[tokio::test]
async fn a_good_token_is_told_and_its_twins_are_refused() {
    let (signer, other) = (Signer::new(), Signer::new());
    let rules = json!([rule(&signer, &json!({}))]);
    let verified = ask(&rules, &bearer(&signer.token(&good()))).await;
    let verified = verified.unwrap().unwrap();
    assert_eq!(verified.token().issuer, "https://issuer.example");
    assert_eq!(verified.token().claims["sub"], "alice");

    let with = |name: &str, value: Value| {
        let mut claims = good();
        claims[name] = value;
        signer.token(&claims)
    };
    let without_end = {
        let mut claims = good();
        claims.as_object_mut().unwrap().remove("exp");
        signer.token(&claims)
    };
    let es256 = json!({"alg": "ES256", "kid": "one"});
    let header = |name: &str, value: Value| {
        let mut header = es256.clone();
        header[name] = value;
        signer.sign(&header, &good())
    };
    let unsigned = {
        let part = |value: &Value| BASE64.encode(value.to_string());
        format!("{}.{}.", part(&json!({"alg": "none"})), part(&good()))
    };
    let changed = {
        let token = signer.token(&good());
        let parts: Vec<&str> = token.split('.').collect();
        let mut claims = good();
        claims["sub"] = json!("mallory");
        format!(
            "{}.{}.{}",
            parts[0],
            BASE64.encode(claims.to_string()),
            parts[2]
        )
    };
    for (token, refused) in [
        (other.token(&good()), Refused::Signature),
        (changed, Refused::Signature),
        (unsigned, Refused::Form),
        (header("alg", json!("HS256")), Refused::Algorithm),
        (header("alg", json!("RS256")), Refused::UnknownKey),
        (header("alg", json!("ES384")), Refused::UnknownKey),
        (header("kid", json!("two")), Refused::UnknownKey),
        (header("crit", json!(["exp"])), Refused::Critical),
        (with("iss", json!("https://other.example")), Refused::Issuer),
        (with("exp", json!(NOW - 61)), Refused::Expired),
        (with("exp", json!("tomorrow")), Refused::Form),
        (without_end, Refused::NoEnd),
        (with("nbf", json!(NOW + 61)), Refused::NotYet),
        ("opaque".into(), Refused::Form),
        (String::new(), Refused::Form),
        (format!("{}.more", signer.token(&good())), Refused::Form),
    ] {
        let answer = ask(&rules, &bearer(&token)).await;
        assert_eq!(answer.unwrap_err(), refused, "{token}");
    }
    for (name, value) in [("exp", NOW - 59), ("nbf", NOW + 59)] {
        let token = with(name, json!(value));
        assert!(
            ask(&rules, &bearer(&token)).await.unwrap().is_some(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_token_counts_only_where_a_rule_looks_for_it() {
    let signer = Signer::new();
    let token = signer.token(&good());
    let there = |rules: Value, request: Request<()>| async move {
        ask(&rules, &request).await.map(|found| found.is_some())
    };
    let defaults = json!([rule(&signer, &json!({}))]);
    let in_query = |name: &str| {
        Request::get(format!("/a?{name}={token}&b=2"))
            .body(())
            .unwrap()
    };
    assert_eq!(
        there(defaults.clone(), in_query("access_token")).await,
        Ok(true)
    );
    assert_eq!(
        there(defaults.clone(), in_query("access%5Ftoken")).await,
        Ok(true)
    );
    assert_eq!(there(defaults.clone(), in_query("token")).await, Ok(false));
    let lower = with_header("authorization", &format!("bearer {token}"));
    assert_eq!(there(defaults.clone(), lower).await, Ok(true));
    let basic = with_header("authorization", "Basic YTpi");
    assert_eq!(there(defaults.clone(), basic).await, Ok(false));

    let elsewhere = json!([rule(
        &signer,
        &json!({
            "fromHeaders": [{"name": "X-Token", "prefix": "JWT "}],
            "fromCookies": ["session"],
        })
    )]);
    let own = with_header("x-token", &format!("JWT {token}"));
    assert_eq!(there(elsewhere.clone(), own).await, Ok(true));
    assert_eq!(there(elsewhere.clone(), bearer(&token)).await, Ok(false));
    let cookie = with_header("cookie", &format!("a=b; session={token}"));
    assert_eq!(there(elsewhere.clone(), cookie).await, Ok(true));
    let other = with_header("cookie", &format!("a=b; sessions={token}"));
    assert_eq!(there(elsewhere.clone(), other).await, Ok(false));
    let bad = with_header("cookie", "session=opaque");
    assert_eq!(there(elsewhere, bad).await, Err(Refused::Form));
}

#[tokio::test]
async fn two_tokens_are_refused_and_one_token_twice_is_one() {
    let signer = Signer::new();
    let rules = json!([rule(&signer, &json!({}))]);
    let (one, mut claims) = (signer.token(&good()), good());
    claims["sub"] = json!("bob");
    let two = signer.token(&claims);
    let both = |in_query: &str| {
        let builder = Request::get(format!("/?access_token={in_query}"));
        builder
            .header("authorization", format!("Bearer {one}"))
            .body(())
            .unwrap()
    };
    assert!(ask(&rules, &both(&one)).await.unwrap().is_some());
    assert_eq!(
        ask(&rules, &both(&two)).await.unwrap_err(),
        Refused::Several
    );
}

#[tokio::test]
async fn a_rule_accepts_only_what_its_own_keys_signed() {
    let (one, two) = (Signer::new(), Signer::new());
    let rules = json!([
        rule(&one, &json!({"audiences": ["other"]})),
        rule(&two, &json!({"audiences": ["api"]})),
    ]);
    // Signed by the first, for the audience of the second: neither accepts it.
    let set = set(&rules.to_string());
    for (signer, verified_by, accepted_by) in [(&one, 0, None), (&two, 1, Some(1))] {
        let verified = ask(&rules, &bearer(&signer.token(&good())))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(verified.token().verified_by, Some(&[verified_by][..]));
        let access = Access {
            direction: Direction::Inbound,
            source: Source {
                peer: Peer::Plaintext,
                ip: None,
                namespace: None,
                labels: None,
            },
            destination: Destination {
                workload: Some(&web()),
                ip: None,
                port: 80,
                protocol: Protocol::Tcp,
            },
            http: Some(HttpRequest {
                method: "GET",
                path: "/",
                host: None,
                headers: &NoHeaders,
            }),
            token: Some(verified.token()),
            sni: None,
        };
        assert_eq!(set.token_rule(&access), accepted_by);
    }
}

#[tokio::test]
async fn a_preflight_has_no_token() {
    let signer = Signer::new();
    let rules = json!([rule(&signer, &json!({}))]);
    let mut request = bearer("opaque");
    *request.method_mut() = http::Method::OPTIONS;
    assert_eq!(ask(&rules, &request).await.unwrap_err(), Refused::Form);
    request
        .headers_mut()
        .insert("origin", "https://a.example".parse().unwrap());
    let wanted = "access-control-request-method";
    request.headers_mut().insert(wanted, "PUT".parse().unwrap());
    assert!(ask(&rules, &request).await.unwrap().is_none());
}

/// The fields that the app gets, and the query.
async fn told(more: &Value, request: Request<()>, signer: &Signer) -> (HeaderMap, Option<String>) {
    let set = set(&json!([rule(signer, more)]).to_string());
    let rules: Vec<&JwtRule> = set.token_rules(&web()).collect();
    let verified = of_request(&request, &rules, &store(), now()).await.unwrap();
    let mut request = request;
    tell_app(
        &mut request,
        &rules,
        verified.as_ref().map(|one| (one, rules[0])),
    );
    let query = request.uri().query().map(str::to_owned);
    (request.headers().clone(), query)
}

#[tokio::test]
async fn the_app_sees_what_the_rule_says_and_nothing_made_up() {
    let signer = Signer::new();
    let token = signer.token(&good());
    let (headers, query) = told(&json!({}), bearer(&token), &signer).await;
    assert!(headers.is_empty(), "{headers:?}");
    assert_eq!(query.as_deref(), Some("x=1"));
    let (headers, _) = told(
        &json!({"forwardOriginalToken": true}),
        bearer(&token),
        &signer,
    )
    .await;
    assert!(headers.contains_key("authorization"));

    let in_query = Request::get(format!("/a?x=1&access_token={token}&y=%20"))
        .body(())
        .unwrap();
    let (_, query) = told(&json!({}), in_query, &signer).await;
    assert_eq!(query.as_deref(), Some("x=1&y=%20"));

    let outputs = json!({
        "outputPayloadToHeader": "X-Payload",
        "outputClaimToHeaders": [
            {"header": "X-Role", "claim": "role"},
            {"header": "X-Level", "claim": "nested.level"},
            {"header": "X-None", "claim": "nested"},
        ],
    });
    let mut request = bearer(&token);
    request
        .headers_mut()
        .insert("x-none", "made up".parse().unwrap());
    let (headers, _) = told(&outputs, request, &signer).await;
    assert_eq!(headers["x-role"], "admin");
    assert_eq!(headers["x-level"], "3");
    assert!(!headers.contains_key("x-none"));
    let payload = BASE64.decode(&headers["x-payload"]).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&payload).unwrap(), good());
    // Without a token nothing is told, whatever the caller made up.
    for name in ["x-role", "X_Role", "x_payload"] {
        let (headers, _) = told(&outputs, with_header(name, "admin"), &signer).await;
        assert!(headers.is_empty(), "{headers:?}");
    }
}

#[tokio::test]
async fn keys_that_are_secret_or_for_another_use_verify_nothing() {
    let signer = Signer::new();
    let token = signer.token(&good());
    for (name, value) in [
        ("use", json!("enc")),
        ("key_ops", json!(["encrypt"])),
        ("alg", json!("ES384")),
        ("kid", json!("two")),
        ("kty", json!("unknown")),
    ] {
        let mut key = signer.jwk("one");
        key[name] = value;
        let keys = json!({"keys": [key]}).to_string();
        let rules = json!([{"issuer": "https://issuer.example", "jwks": keys}]);
        assert_eq!(
            ask(&rules, &bearer(&token)).await.unwrap_err(),
            Refused::UnknownKey,
            "{name}"
        );
    }
    // HMAC with the public key as its secret.
    let keys = json!({"keys": [{"kty": "oct", "kid": "one", "k": BASE64.encode("secret")}]});
    let rules = json!([{"issuer": "https://issuer.example", "jwks": keys.to_string()}]);
    assert_eq!(
        ask(&rules, &bearer(&token)).await.unwrap_err(),
        Refused::UnknownKey
    );
}
