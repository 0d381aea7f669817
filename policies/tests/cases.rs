//! The corpus of cases, and the examples, by the command that users have for their own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    process::{Command, Output},
};

fn policy(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postern-policy"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn passes(arguments: &[&str], said: &str) {
    let output = policy(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains(said), "`{said}` in {text}");
}

#[test]
fn every_case_of_the_corpus_comes_out_as_it_says() {
    passes(&["test", "cases"], " 0 failed");
}

#[test]
fn the_corpus_has_many_cases_and_most_of_them_are_refusals() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let (mut grants, mut refusals) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text.lines().filter(|line| line.starts_with("  - {because")) {
            match line.contains("expect: \"allow\"") {
                true => grants += 1,
                false => refusals += 1,
            }
        }
    }
    assert!(
        grants + refusals >= 600 && refusals > grants,
        "{grants} and {refusals}"
    );
}

#[test]
fn the_examples_say_what_their_cases_expect() {
    passes(&["test", "examples"], "12 cases passed, 0 failed");
}

#[test]
fn a_case_that_is_wrong_fails_and_says_what_came_instead() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.test.yaml");
    let text =
        "documents: ''\nask: {port: 1}\ncases:\n  - {because: it is not so, expect: allow}\n";
    std::fs::write(&file, text).unwrap();
    let output = policy(&["test", folder.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("a.test.yaml:4") && said.contains("it is not so"),
        "{said}"
    );
    assert!(
        said.contains("the verdict is `deny` and not `allow`"),
        "{said}"
    );
}

#[test]
fn a_file_of_cases_with_a_slip_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.test.yaml");
    std::fs::write(
        &file,
        "documents: ''\ncases:\n  - {becuase: x, expect: allow}\n",
    )
    .unwrap();
    let output = policy(&["test", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("a.test.yaml:3:6") && said.contains("did you mean `because`?"),
        "{said}"
    );
}

#[test]
fn a_rule_that_no_case_exercises_is_named_and_can_be_made_to_fail() {
    let folder = tempfile::tempdir().unwrap();
    let policies = "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {name: web}\n\
                    spec: {serviceAccount: web}\n---\n\
                    apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                    metadata: {name: p}\nspec:\n  rules:\n    \
                    - to: [{operation: {methods: [GET]}}]\n    \
                    - to: [{operation: {methods: [PUT]}}]\n";
    std::fs::write(folder.path().join("p.yaml"), policies).unwrap();
    let cases = "options: {defaults: 'network=allow,authorization=deny'}\n\
                 cases:\n  - {because: read, ask: {to: default/web, port: 1, method: GET}, expect: allow}\n";
    std::fs::write(folder.path().join("p.test.yaml"), cases).unwrap();
    let path = folder.path().to_str().unwrap();
    passes(&["test", path], "1 of 2 rules exercised");
    passes(&["test", path], "default/p rule 1 (line 12)");
    assert_eq!(
        policy(&["test", "--require-coverage", path]).status.code(),
        Some(1)
    );
}

/// What `who-can` tells under an AuthorizationPolicy with this spec.
fn who_can(spec: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{{apiVersion: postern.dev/v1, kind: Workload, metadata: {{name: web}}, spec: {{serviceAccount: web}}}}\n---\n\
         {{apiVersion: postern.dev/v1, kind: Workload, metadata: {{name: app}}, spec: {{serviceAccount: app}}}}\n---\n\
         {{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p}}, spec: {spec}}}\n"
    );
    std::fs::write(folder.path().join("p.yaml"), text).unwrap();
    let output = policy(&[
        "who-can",
        "--policies",
        folder.path().to_str().unwrap(),
        "--defaults",
        "network=allow,authorization=deny",
        "--to",
        "default/web",
        "--port",
        "80",
        "--path",
        "/a",
    ]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        output.status.code(),
        Some(i32::from(text == "nobody\n")),
        "{text}"
    );
    text.lines()
        .filter(|line| !line.starts_with(' '))
        .map(str::to_owned)
        .collect()
}

#[test]
fn who_can_names_everybody_whom_the_policies_let_in() {
    let app = "allow spiffe://cluster.local/ns/default/sa/app (default/app)";
    let own = "allow spiffe://cluster.local/ns/default/sa/web (default/web)";
    let plain = "allow plaintext, without an identity (anybody)";
    assert_eq!(who_can("{}"), ["nobody"]);
    assert_eq!(
        who_can("{rules: [{from: [{source: {serviceAccounts: [app]}}]}]}").first(),
        Some(&app.to_owned())
    );
    assert_eq!(
        who_can("{rules: [{from: [{source: {principals: ['cluster.local/ns/default/sa/app']}}]}]}"),
        [app]
    );
    // Somebody who is no Workload, and fits.
    let strangers =
        who_can("{rules: [{from: [{source: {principals: ['cluster.local/ns/other/*']}}]}]}");
    assert!(!strangers.is_empty());
    assert!(strangers.iter().all(|line| {
        line.starts_with("allow spiffe://cluster.local/ns/other/")
            && line.ends_with("(no Workload)")
    }));
    // A negative match lets plaintext in, which nobody expects.
    let all = who_can(
        "{rules: [{from: [{source: {notPrincipals: ['cluster.local/ns/default/sa/app']}}]}]}",
    );
    assert!(all.contains(&own.to_owned()) && all.contains(&plain.to_owned()));
    assert!(!all.contains(&app.to_owned()));
    // By address: an example of the range, and not the one outside.
    let by_address = who_can("{rules: [{from: [{source: {ipBlocks: ['10.0.0.0/8']}}]}]}");
    assert!(
        by_address
            .iter()
            .all(|line| line.contains(" from 10.0.0.0 "))
    );
    assert!(
        by_address
            .iter()
            .any(|line| line.starts_with("allow plaintext"))
    );
}

/// What `diff` tells of two AuthorizationPolicies, and its exit code.
fn diff(old: &str, new: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, spec: &str| {
        let text = format!(
            "{{apiVersion: postern.dev/v1, kind: Workload, metadata: {{name: web}}, spec: {{serviceAccount: web}}}}\n---\n\
             {{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p}}, spec: {spec}}}\n"
        );
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (old, new) = (file("old.yaml", old), file("new.yaml", new));
    let defaults = "network=allow,authorization=deny";
    let output = policy(&["diff", &old, &new, "--defaults", defaults]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text)
}

#[test]
fn diff_tells_what_is_decided_differently_with_an_example() {
    let get = "{rules: [{to: [{operation: {methods: [GET], paths: ['/api/*']}}]}]}";
    assert_eq!(
        diff(get, get),
        (Some(0), "0 changes at 1 Workloads\n".into())
    );
    // Written otherwise, and the same.
    let same = "{rules: [{to: [{operation: {paths: ['/api/*'], methods: [GET]}}]}, \
                {to: [{operation: {paths: ['/api/v1/*'], methods: [GET]}}]}]}";
    assert_eq!(diff(get, same).0, Some(0));
    let more = "{rules: [{to: [{operation: {methods: [GET, PUT], paths: ['/api/*']}}]}]}";
    let (code, said) = diff(get, more);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("now allowed spiffe://cluster.local/ns/default/sa/web"),
        "{said}"
    );
    assert!(said.contains(" PUT http://other.invalid/api/"), "{said}");
    assert!(!said.contains("now denied"), "{said}");
    let (_, said) = diff(more, get);
    assert!(
        said.contains("now denied") && !said.contains("now allowed"),
        "{said}"
    );
    // An exception within a prefix is found, though neither pattern alone tells it.
    let except =
        "{rules: [{to: [{operation: {methods: [GET], paths: ['/api/*'], notPaths: ['*.key']}}]}]}";
    assert!(
        diff(get, except).1.contains(".key"),
        "{:?}",
        diff(get, except)
    );
    // A path by template, and everybody without an identity.
    let template = "{rules: [{to: [{operation: {paths: ['/users/{*}/orders']}}]}]}";
    assert!(diff("{}", template).1.contains("/users/x/orders"));
    let mtls = "{rules: [{from: [{source: {principals: ['*']}}]}]}";
    assert!(
        diff("{rules: [{}]}", mtls)
            .1
            .contains("now denied plaintext")
    );
}

#[test]
fn what_was_seen_becomes_policies_that_allow_it_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let workload = |name: &str| {
        format!(
            "{{apiVersion: postern.dev/v1, kind: Workload, metadata: {{name: {name}, labels: {{app: {name}}}}}, \
             spec: {{serviceAccount: {name}}}}}\n---\n"
        )
    };
    let workloads = file("w.yaml", &["web", "app", "other"].map(workload).concat());
    let line = |verdict: &str, from: &str, method: &str, path: &str| {
        format!(
            "{{\"direction\":\"inbound\",\"verdict\":\"{verdict}\",\
             \"src.identity\":\"spiffe://cluster.local/ns/default/sa/{from}\",\
             \"dst.addr\":\"10.0.0.2:8080\",\"dst.workload\":\"default/web\",\
             \"method\":\"{method}\",\"path\":\"{path}\"}}\n"
        )
    };
    let log = [
        line("allow", "app", "GET", "/users/1/orders"),
        line("allow", "app", "GET", "/users/23/orders"),
        line("allow", "app", "PUT", "/users/7"),
        line("deny", "other", "GET", "/admin"),
        "no JSON\n".to_owned(),
    ];
    let log = file("access.log", &log.concat());
    let learnt = policy(&["learn", &log, "--workloads", &workloads]);
    let error = String::from_utf8_lossy(&learnt.stderr).into_owned();
    assert!(learnt.status.success(), "{error}");
    assert!(
        error.contains("5 lines, 2 passed over, 3 different accesses"),
        "{error}"
    );
    let yaml = String::from_utf8_lossy(&learnt.stdout).into_owned();
    assert!(yaml.contains("/users/{*}/orders"), "{yaml}");
    let policies = file("learnt.yaml", &yaml);
    let decide = |from: &str, method: &str, path: &str| {
        let from = format!("spiffe://cluster.local/ns/default/sa/{from}");
        policy(&[
            "explain",
            "--policies",
            &policies,
            "--workloads",
            &workloads,
            "--from",
            &from,
            "--to",
            "default/web",
            "--port",
            "8080",
            "--method",
            method,
            "--path",
            path,
        ])
        .status
        .code()
    };
    assert_eq!(decide("app", "GET", "/users/99/orders"), Some(0));
    assert_eq!(decide("app", "PUT", "/users/7"), Some(0));
    assert_eq!(decide("app", "PUT", "/users/7/orders"), Some(1));
    assert_eq!(decide("app", "DELETE", "/users/7"), Some(1));
    assert_eq!(decide("app", "GET", "/admin"), Some(1));
    assert_eq!(decide("other", "GET", "/users/1/orders"), Some(1));
    // Who is no Workload cannot be selected: told, and not left out in silence.
    let stranger = file("s.log", &line("allow", "nobody", "GET", "/"));
    let refused = policy(&["learn", &stranger, "--workloads", &workloads]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is no known Workload"));
}

#[test]
fn explain_tells_programs_what_was_looked_at() {
    let examples = ["examples/seed", "examples/demo", "examples/workloads"];
    let mut arguments = vec!["explain", "--json", "-n", "production"];
    for folder in &examples {
        arguments.extend(["--policies", folder]);
    }
    arguments.extend(["--trust-domain", "example.org", "--port", "8080"]);
    arguments.extend(["--from", "spiffe://example.org/workload/frontend", "--to"]);
    arguments.extend([
        "production/web",
        "--method",
        "DELETE",
        "--path",
        "/api/v1/x",
    ]);
    arguments.extend(["--header", "x-a: b", "--sni", "web"]);
    let output = policy(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let get = |pointer: &str| said.pointer(pointer).cloned().unwrap_or_default();
    assert_eq!(get("/answer/verdict"), "deny");
    assert_eq!(get("/answer/kind"), "AuthorizationPolicy");
    let considered = get("/considered");
    let missed = considered
        .as_array()
        .unwrap()
        .iter()
        .find(|one| {
            one.get("policy")
                .is_some_and(|name| name == "production/web-authorization")
        })
        .unwrap();
    assert_eq!(missed.get("matched"), Some(&false.into()));
    let why = missed.get("why").unwrap().as_str().unwrap();
    assert!(
        why.contains("matched all but the method: `DELETE` is not in `GET`"),
        "{why}"
    );
    arguments.extend(["--header", "no colon"]);
    assert_eq!(policy(&arguments).status.code(), Some(2));
}

/// What `decide` answers to these lines, under a policy that allows everything.
fn decide(lines: &str) -> (Option<i32>, Vec<serde_json::Value>) {
    use std::io::Write as _;
    let folder = tempfile::tempdir().unwrap();
    let text = "{apiVersion: postern.dev/v1, kind: Workload, metadata: {name: web}, spec: {serviceAccount: web}}\n---\n\
                {apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p}, spec: {rules: [{}]}}\n";
    std::fs::write(folder.path().join("p.yaml"), text).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_postern-policy"))
        .args(["decide", "--defaults", "istio", "--policies"])
        .arg(folder.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(lines.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let answers = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (output.status.code(), answers.collect())
}

#[test]
fn decide_answers_each_line_in_order_whatever_is_null() {
    let whole = r#"{"id":1,"direction":null,"mtls":true,"source":{"identity":"spiffe://cluster.local/ns/default/sa/web","ip":null,"namespace":null,"labels":null},"destination":{"workload":"default/web","ip":null,"port":80,"protocol":null},"http":{"method":"GET","path":"/","host":null,"headers":null},"jwt":null,"sni":null}"#;
    let lines = [
        whole.to_owned(),
        whole.replace("\"GET\"", "null"),
        whole.replace("\"/\"", "null"),
        whole.replace(":80,", ":null,"),
        whole.replace("\"sni\"", "\"snj\""),
        whole.replace("\"id\":1", "\"id\":{\"a\":[2]}"),
        "no JSON".to_owned(),
    ];
    let (code, answers) = decide(&format!("{}\n", lines.join("\n")));
    assert_eq!(code, Some(1), "two lines are not valid");
    let of = |name: &str| -> Vec<String> {
        let text = |answer: &serde_json::Value| answer.get(name).cloned().unwrap_or_default();
        answers
            .iter()
            .map(|answer| text(answer).to_string())
            .collect()
    };
    let (allow, deny, null) = ("\"allow\"", "\"deny\"", "null");
    assert_eq!(of("verdict"), [allow, deny, deny, deny, null, allow, null]);
    assert_eq!(of("id"), ["1", "1", "1", "1", "1", "{\"a\":[2]}", null]);
    assert_eq!(of("audit").first().map(String::as_str), Some("[]"));
    assert!(of("error").get(4).unwrap().contains("snj"));
    assert_eq!(decide(&format!("{whole}\n\n{whole}\n")).0, Some(0));
}

#[test]
fn check_names_rules_that_never_matter() {
    let folder = tempfile::tempdir().unwrap();
    let check = |rules: &str| {
        let text = format!(
            "{{apiVersion: postern.dev/v1, kind: Workload, metadata: {{name: web}}, spec: {{serviceAccount: web}}}}\n---\n\
             {{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: wall}}, spec: {{action: DENY, \
             rules: [{{to: [{{operation: {{paths: ['/admin/*'], ports: ['80']}}}}]}}]}}}}\n---\n\
             {{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: door}}, spec: {{rules: {rules}}}}}\n"
        );
        std::fs::write(folder.path().join("p.yaml"), text).unwrap();
        let output = policy(&["check", folder.path().to_str().unwrap()]);
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let operation = |text: &str| format!("[{{to: [{{operation: {{{text}}}}}]}}]");
    let said = check(&operation("paths: ['/api/*'], ports: ['80']"));
    assert!(
        !said.contains("never matter") && !said.contains("never match"),
        "{said}"
    );
    let said = check(&operation("paths: ['/admin/users/*'], ports: ['80']"));
    assert!(
        said.contains("rule 0 of `default/door` never matters"),
        "{said}"
    );
    assert!(said.contains("by `default/wall`"), "{said}");
    // The DENY is for one port alone.
    let said = check(&operation("paths: ['/admin/users/*']"));
    assert!(!said.contains("never matters"), "{said}");
    let said = check(&operation("paths: ['/a/*'], notPaths: ['/a*']"));
    assert!(
        said.contains("rule 0 of `default/door` can never match"),
        "{said}"
    );
    // Beyond a wall of the network, too: these are the rules, whatever the network says.
    let said = check("[{from: [{source: {principals: ['x/y'], notPrincipals: ['x/*']}}]}]");
    assert!(said.contains("can never match"), "{said}");
}
