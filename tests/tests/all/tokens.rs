//! RequestAuthentication at the proxy: tokens made by PyJWT, keys told by openssl over https.

use std::{collections::HashMap, net::SocketAddr, process::Command};

use postern_tests::{
    certificates::Authority,
    eventually, root, run,
    world::{App, World, free_address},
};
use rcgen::SanType;

/// A proxy that takes the tokens of one issuer, and the issuer.
struct Site {
    world: World,
    app: App,
    proxy: SocketAddr,
    issuer: String,
}

type Tokens = HashMap<String, String>;

impl Site {
    /// `keys` is what the rule says of the issuer's keys.
    fn start(keys: &str) -> (Self, Tokens) {
        let mut world = World::new().unwrap();
        let app = App::start().unwrap();
        let authority = Authority::new("example.org").unwrap();
        let (proxy, told) = (free_address().unwrap(), free_address().unwrap());
        for name in ["web", "frontend"] {
            let id = format!("spiffe://example.org/ns/production/sa/{name}");
            authority
                .write_leaf(world.path(), name, &id, |_| {})
                .unwrap();
        }
        authority
            .write_leaf(
                world.path(),
                "issuer",
                "spiffe://example.org/issuer",
                |params| {
                    params.subject_alt_names = vec![SanType::IpAddress(told.ip())];
                },
            )
            .unwrap();
        world.write("bundle.crt", &authority.pem).unwrap();

        let issuer = format!("https://{told}");
        let tokens = sign(&world, &issuer, "one");
        let discovery =
            format!("{{\"issuer\": \"{issuer}\", \"jwks_uri\": \"{issuer}/keys.json\"}}");
        world
            .write(".well-known/openid-configuration", &discovery)
            .unwrap();
        let mut server = Command::new("openssl");
        server.args([
            "s_server",
            "-WWW",
            "-cert",
            "issuer.crt",
            "-key",
            "issuer.key",
        ]);
        world
            .spawn("issuer", server.args(["-accept", &told.to_string()]))
            .unwrap();

        let policies = POLICIES
            .replace("PORT", &app.address.port().to_string())
            .replace("KEYS", &keys.replace("ISSUER", &issuer))
            .replace("ISSUER", &issuer);
        world.write("policies/all.yaml", &policies).unwrap();
        let (admin, metrics) = (free_address().unwrap(), free_address().unwrap());
        let config = format!(
            "identity: {{files: {{certificate: web.crt, key: web.key, bundle: bundle.crt}}}}\n\
             policies: {{directory: policies, namespace: production}}\n\
             inbound: {{listen: '{proxy}', forward: '{}'}}\n\
             tokenKeys: {{caFile: bundle.crt}}\n\
             admin: {{listen: '{admin}'}}\nmetrics: {{listen: '{metrics}'}}\n\
             accessLog: {{path: access.log}}\ndrain: 1s\n",
            app.address
        );
        world.proxy("proxy", &config).unwrap();
        world.said("proxy", "ready").unwrap();
        let site = Self {
            world,
            app,
            proxy,
            issuer,
        };
        (site, tokens)
    }

    /// The status that the frontend gets.
    fn ask(&self, path: &str, token: Option<&str>) -> u16 {
        let file = |name: &str| self.world.path().join(name).display().to_string();
        let (certificate, key) = (file("frontend.crt"), file("frontend.key"));
        let url = format!("https://{}{path}", self.proxy);
        let header = token.map(|token| format!("Authorization: Bearer {token}"));
        let mut all = vec!["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url];
        all.extend(["--cert", &certificate, "--key", &key]);
        if let Some(header) = &header {
            all.extend(["-H", header]);
        }
        let output = run("curl", &all).unwrap();
        String::from_utf8_lossy(&output.stdout)
            .parse()
            .unwrap_or_default()
    }
}

/// New keys for the issuer, and tokens signed by them.
fn sign(world: &World, issuer: &str, key_id: &str) -> Tokens {
    let python = root().join("target/python/bin/python");
    let script = root().join("tests/python/tokens.py");
    let file = world.path().join("keys.json");
    let arguments = [
        script.to_str().unwrap(),
        file.to_str().unwrap(),
        issuer,
        key_id,
    ];
    let output = run(python.to_str().unwrap(), &arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

const POLICIES: &str = "\
apiVersion: postern.dev/v1
kind: Workload
metadata: {name: web}
spec: {serviceAccount: web, ports: [{name: http, port: PORT}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all}
spec: {podSelector: {}, ingress: [{}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: people}
spec: {jwtRules: [{issuer: 'ISSUER', audiences: [api], KEYS}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  rules:
  - to: [{operation: {paths: [/open]}}]
  - to: [{operation: {paths: [/mine]}}]
    from: [{source: {requestPrincipals: ['ISSUER/alice']}}]
";

#[test]
fn tokens_are_verified_with_keys_that_are_fetched() {
    for keys in [
        "jwksUri: 'ISSUER/keys.json'",
        "spaceDelimitedClaims: [scope]",
    ] {
        let (site, tokens) = Site::start(keys);
        let with = |path: &str, name: &str| site.ask(path, Some(&tokens[name]));
        assert_eq!(site.ask("/open", None), 200, "{keys}");
        assert_eq!(site.ask("/mine", None), 403);
        assert_eq!(with("/mine", "alice"), 200, "{keys}");
        assert_eq!(with("/mine", "bob"), 403);
        let reached = site.app.reached();
        for (token, status) in [("expired", 401), ("issuer", 401), ("audience", 403)] {
            assert_eq!(with("/open", token), status, "{token}");
        }
        assert_eq!(site.ask("/open", Some("opaque")), 401);
        // Another's key, under the same name.
        let other = World::new().unwrap();
        let forged = sign(&other, &site.issuer, "one");
        assert_eq!(site.ask("/open", Some(&forged["alice"])), 401);
        assert_eq!(site.app.reached(), reached, "a bad token reached the app");
    }
}

#[test]
fn a_new_key_is_fetched_when_a_token_has_it() {
    let (site, old) = Site::start("jwksUri: 'ISSUER/keys.json'");
    assert_eq!(site.ask("/mine", Some(&old["alice"])), 200);
    let new = sign(&site.world, &site.issuer, "two");
    eventually("the new key", || {
        (site.ask("/mine", Some(&new["alice"])) == 200).then_some(())
    })
    .unwrap();
    assert_eq!(
        site.ask("/mine", Some(&old["alice"])),
        401,
        "the old key is gone"
    );
}

#[test]
fn without_keys_tokens_are_refused_and_the_rest_goes_on() {
    let (site, tokens) = Site::start("jwksUri: 'http://169.254.169.254/keys', timeout: 1s");
    assert_eq!(site.ask("/open", None), 200);
    assert_eq!(site.ask("/open", Some(&tokens["alice"])), 401);
    let refused = "nothing is fetched from 169.254.169.254";
    site.world.told("proxy", refused).unwrap();
}
