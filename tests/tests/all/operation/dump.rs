//! What is told of all that is in force, and what is never told.

use std::fs;

use postern_tests::eventually;

use super::{Pair, WEB};

#[test]
fn all_that_is_in_force_is_told() {
    let pair = Pair::start();
    let told = pair.told("web", "/config_dump");
    assert_eq!(told["config"]["inbound"]["listen"], pair.web.to_string());
    let drain = serde_json::json!({"deadline": "10s", "delay": "1s"});
    assert_eq!(told["config"]["drain"], drain);
    assert_eq!(told["config"]["defaults"]["authorization"], "deny");
    assert_eq!(told["workload"], "default/web");
    assert_eq!(told["identity"]["spiffeID"], WEB);
    assert_eq!(told["identity"]["key"], "<secret>");
    assert!(told["logFilter"].as_str().unwrap().contains("info"));
    let listeners = told["listeners"].as_array().unwrap();
    let names: Vec<&str> = listeners
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["inbound", "admin", "metrics"]);

    // What openssl says of the same files.
    let openssl = |line: &str| {
        let output = std::process::Command::new("sh")
            .args(["-c", line])
            .current_dir(pair.world.path())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap().to_lowercase();
        let value = text.trim().rsplit('=').next().unwrap_or_default();
        value.replace(':', "")
    };
    let serial = openssl("openssl x509 -in web.crt -noout -serial");
    let told_serial = told["identity"]["serial"].as_str().unwrap();
    assert_eq!(
        told_serial.trim_start_matches('0'),
        serial.trim_start_matches('0')
    );
    let [bundle] = told["trustBundles"].as_array().unwrap().as_slice() else {
        panic!("{told}");
    };
    assert_eq!(bundle["trustDomain"], "example.org");
    assert_eq!(bundle["count"], 1);
    let fingerprint = openssl("openssl x509 -in bundle.crt -noout -fingerprint -sha256");
    assert_eq!(bundle["authorities"][0]["sha256"], fingerprint);

    let documents = told["policies"]["documents"].as_array().unwrap();
    let of = |kind: &str, name: &str| {
        let is_it = |one: &&serde_json::Value| one["kind"] == kind && one["name"] == name;
        documents.iter().find(is_it).expect(name).clone()
    };
    let first = of("NetworkPolicy", "default/web");
    assert_eq!(first["line"], 1);
    assert!(first["file"].as_str().unwrap().ends_with("rules.yaml"));
    assert!(of("AuthorizationPolicy", "default/web")["line"].as_u64() > Some(10));
    assert_eq!(documents.len(), 3);
    assert_eq!(told["policies"]["generation"], 1);
    assert_eq!(told["policies"]["current"], true);

    // The command says the same, for people and for jq.
    let (code, text, _) = pair.command("web", &["config-dump"]);
    assert_eq!(code, Some(0));
    let again: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(again["identity"], told["identity"]);
}

#[test]
fn a_set_that_is_put_in_force_is_another_generation_and_one_that_is_refused_is_not() {
    let pair = Pair::start();
    let policies = || pair.told("web", "/config_dump")["policies"].clone();
    // A policy without a rule is in force as well.
    pair.rewrite(|text| {
        format!(
            "{text}---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: nobody}}\nspec: {{podSelector: {{}}}}\n"
        )
    });
    eventually("the next generation", || {
        (policies()["generation"] == 2).then_some(())
    })
    .unwrap();
    let documents = policies()["documents"].clone();
    let names = documents.as_array().unwrap().iter().map(|one| &one["name"]);
    assert!(names.into_iter().any(|name| name == "default/nobody"));
    pair.rewrite(|text| text.replace("podSelector", "podSelektor"));
    eventually("the refusal", || {
        (policies()["current"] == false).then_some(())
    })
    .unwrap();
    assert_eq!(policies()["generation"], 2);
    assert_eq!(policies()["documents"], documents);
}

/// Key material and what policies say are in no answer, whatever is asked.
#[test]
fn no_key_and_no_secret_of_a_policy_is_ever_told() {
    const CANARY: &str = "canary-4c1f";
    let pair = Pair::start();
    pair.rewrite(|text| {
        let rule = "to: [{operation: {methods: [GET], paths: ['/api/*']}}]";
        let secret = format!(
            "{rule}\n      when: [{{key: 'request.headers[x-key]', values: ['{CANARY}']}}]"
        );
        assert!(text.contains(rule));
        text.replace(rule, &secret)
    });
    eventually("the policy", || {
        (pair.told("web", "/config_dump")["policies"]["generation"] == 2).then_some(())
    })
    .unwrap();
    // It is in force: without the secret there is no answer.
    assert!(!pair.ask(&[], "/api/x").contains("GET /api/x"));
    let with = format!("x-key: {CANARY}");
    assert!(pair.ask(&["-H", &with], "/api/x").contains("GET /api/x"));

    let key = fs::read_to_string(pair.world.path().join("web.key")).unwrap();
    let lines: Vec<&str> = key.lines().filter(|line| !line.starts_with("--")).collect();
    let der = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD
            .decode(lines.concat())
            .unwrap()
    };
    let hex: String = der.iter().map(|byte| format!("{byte:02x}")).collect();
    for path in [
        "/config_dump",
        "/status",
        "/connections",
        "/log_level",
        "/metrics",
    ] {
        let told = pair.get("web", path);
        assert!(!told.contains(CANARY), "{path}: {told}");
        for line in &lines {
            assert!(!told.contains(line), "{path}: {told}");
        }
        // Not in other letters, nor as a list of numbers.
        let numbers = |of: &[u8]| {
            let numbers: Vec<String> = of.iter().map(ToString::to_string).collect();
            numbers.join(",")
        };
        for piece in der.windows(8) {
            let found = told.replace(' ', "").contains(&numbers(piece));
            assert!(!found, "{path}: {told}");
        }
        // The head of the DER form is that of every key; what follows is this one's.
        let own = hex.get(72..).unwrap();
        for place in (0..own.len() - 16).step_by(2) {
            let piece = own.get(place..place + 16).unwrap();
            // The public half is in the certificate, and told by no path either.
            assert!(!told.to_lowercase().contains(piece), "{path}: {piece}");
        }
    }
}
