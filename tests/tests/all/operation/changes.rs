//! What can be changed in a running proxy, and by whom it cannot.

use std::fs;

use postern_tests::{binaries, eventually, root, run};

use super::{Pair, told};

impl Pair {
    /// Status and words of an answer of web's admin listener.
    fn admin(&self, arguments: &[&str], target: &str) -> (String, String) {
        let url = format!("http://{}{target}", self.admin_of("web"));
        let mut all = vec!["-s", "-w", "\n%{http_code}"];
        all.extend(arguments);
        all.push(&url);
        let said = told(&all);
        let (words, status) = said.rsplit_once('\n').unwrap();
        (status.to_owned(), words.to_owned())
    }

    #[track_caller]
    fn says(&self, arguments: &[&str], target: &str, status: &str, words: &str) {
        let (told_status, told_words) = self.admin(arguments, target);
        assert_eq!(told_status, status, "{arguments:?} {target}: {told_words}");
        assert!(told_words.contains(words), "`{words}` in {told_words}");
    }

    fn filter(&self) -> String {
        let told = self.told("web", "/log_level");
        let filter = told.get("filter").and_then(serde_json::Value::as_str);
        filter.unwrap().to_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.world.log("web")).unwrap()
    }
}

#[test]
fn the_log_is_changed_while_the_proxy_runs() {
    let pair = Pair::start();
    let initial = pair.filter();
    assert!(initial.contains("info"), "{initial}");
    // Said of each handshake, for those who look for what is wrong with one.
    let proven = "a peer's certificate is good";
    let is_told = || {
        pair.ask_web(&[], "/api/x");
        pair.log().contains(proven).then_some(())
    };
    assert!(pair.ask_web(&[], "/api/x").contains("GET /api/x"));
    assert!(!pair.log().contains(proven));
    pair.says(&["-X", "POST"], "/log_level?level=debug", "200", "debug");
    eventually("lines for debugging", is_told).unwrap();
    assert!(pair.log().contains("the log's filter is changed"));

    // The parts are put on top of the start, and what is asked twice is the same.
    for method in ["POST", "PUT"] {
        let target = "/log_level?filter=postern_proxy::tls=debug";
        pair.says(&["-X", method], target, "200", "postern_proxy::tls=debug");
        let filter = pair.filter();
        assert!(
            filter.contains("info") && filter.contains("h2=error"),
            "{filter}"
        );
    }
    pair.says(&["-X", "POST"], "/log_level?level=reset", "200", "info");
    assert_eq!(pair.filter(), initial);

    // The command does the same, and knows before it asks what cannot be.
    let (code, said, _) = pair.command("web", &["log-level", "warn"]);
    assert!(code == Some(0) && said.contains("warn"), "{said}");
    let (_, said, _) = pair.command("web", &["log-level"]);
    assert_eq!(said.trim(), pair.filter());
    for (wrong, words) in [("debgu", "did you mean `debug`?"), ("a=loud", "`a=loud`")] {
        let (code, _, said) = pair.command("web", &["log-level", wrong]);
        assert!(code == Some(2) && said.contains(words), "{code:?} {said}");
    }
}

#[test]
fn what_is_no_change_is_refused_and_changes_nothing() {
    let pair = Pair::start();
    let initial = pair.filter();
    for (query, words) in [
        ("?level=debgu", "did you mean `debug`?"),
        ("?level=", "is no level"),
        ("?filter=a=loud", "`a=loud` is neither"),
        ("?filter=%5Bspan%7Bx%3D.*%7D%5D%3Ddebug", "is neither"),
        ("?filter=", "is empty"),
        ("?levle=debug", "did you mean `level`?"),
        ("?level=debug&level=info", "said twice"),
        ("?level=debug&filter=a=debug", "say `?level=debug`"),
        ("", "say `?level=debug`"),
    ] {
        let target = format!("/log_level{query}");
        pair.says(&["-X", "POST"], &target, "400", words);
    }
    // Looking changes nothing, whatever is in the query.
    pair.says(&[], "/log_level?level=off", "200", "info");
    pair.says(
        &["-X", "DELETE"],
        "/log_level?level=off",
        "405",
        "only GET, POST, PUT",
    );
    assert_eq!(pair.filter(), initial);
}

/// The same request, from a page that a browser shows.
#[test]
fn pages_in_a_browser_and_other_names_change_nothing_and_are_told_nothing() {
    let pair = Pair::start();
    let initial = pair.filter();
    let own = format!("Origin: http://{}", pair.admin_of("web"));
    for (field, words) in [
        ("Origin: http://evil.test", "pages of other sites"),
        ("Origin: null", "pages of other sites"),
        ("Sec-Fetch-Site: cross-site", "pages of other sites"),
        ("Sec-Fetch-Site: same-site", "pages of other sites"),
        ("Host: evil.test", "ask by an address"),
    ] {
        for target in ["/log_level?level=off", "/shutdown"] {
            pair.says(&["-X", "POST", "-H", field], target, "403", words);
        }
        for target in [
            "/connections",
            "/config_dump",
            "/status",
            "/tap",
            "/log_level",
        ] {
            pair.says(&["-H", field], target, "403", words);
        }
    }
    assert_eq!(pair.filter(), initial);
    assert_eq!(pair.told("web", "/status")["draining"], false);
    // The twin that is let in: a page of the listener's own.
    let fields = [
        "-X",
        "POST",
        "-H",
        &own,
        "-H",
        "Sec-Fetch-Site: same-origin",
    ];
    pair.says(&fields, "/log_level?level=warn", "200", "warn");
}

#[test]
fn a_proxy_drains_when_it_is_told_to_by_post_and_not_by_get() {
    let mut pair = Pair::start();
    for method in ["GET", "PUT", "HEAD", "DELETE"] {
        let (status, _) = match method {
            "HEAD" => pair.admin(&["-I"], "/shutdown"),
            _ => pair.admin(&["-X", method], "/shutdown"),
        };
        assert_eq!(status, "405", "{method}");
    }
    assert_eq!(pair.told("web", "/status")["draining"], false);
    // The metrics listener is reached from everywhere, and does nothing.
    let url = format!("http://{}/shutdown", pair.metrics_of("web"));
    let status = told(&[
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-X",
        "POST",
        &url,
    ]);
    assert_eq!(status, "405");
    assert!(pair.ask(&[], "/api/x").contains("GET /api/x"));

    pair.says(&["-X", "POST"], "/shutdown", "202", "\"draining\":true");
    assert_eq!(pair.world.ended("web").unwrap(), Some(0));
    assert!(
        pair.log().contains("\"message\":\"drained\""),
        "{}",
        pair.log()
    );
    // And by the command.
    let (code, _, said) = pair.command("frontend", &["shutdown"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(pair.world.ended("frontend").unwrap(), Some(0));
    let (code, _, said) = pair.command("frontend", &["shutdown"]);
    assert!(
        code == Some(1) && said.contains("cannot reach the proxy"),
        "{said}"
    );
}

#[test]
fn every_path_and_command_is_documented_and_every_command_has_examples() {
    let pair = Pair::start();
    let page = fs::read_to_string(root().join("docs/operation.md")).unwrap();
    let (_, paths) = pair.admin(&[], "/nothing");
    let paths: Vec<&str> = paths.split([' ', ',', '\n']).collect();
    let paths: Vec<&&str> = paths.iter().filter(|path| path.starts_with('/')).collect();
    assert_eq!(paths.len(), 9, "{paths:?}");
    for path in paths {
        assert!(page.contains(&format!("`{path}`")), "{path}");
    }
    let proxy = |arguments: &[&str]| {
        let program = binaries().unwrap().join("postern-proxy");
        let output = run(program.to_str().unwrap(), arguments).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let completions = proxy(&["completions", "bash"]);
    for command in [
        "healthcheck",
        "status",
        "connections",
        "config-dump",
        "log-level",
        "shutdown",
        "tap",
    ] {
        assert!(
            page.contains(&format!("postern-proxy {command}")),
            "{command}"
        );
        let help = proxy(&[command, "--help"]);
        let example = format!("Examples:\n  postern-proxy {command}");
        assert!(help.contains(&example), "{help}");
        assert!(completions.contains(command), "{command}");
    }
}

#[test]
fn what_there_is_not_is_told_with_what_there_is() {
    let pair = Pair::start();
    pair.says(&[], "/conections", "404", "/connections");
    for target in [
        "/connections",
        "/config_dump",
        "/status",
        "/tap",
        "/metrics",
    ] {
        pair.says(&["-X", "POST"], target, "405", "only GET");
    }
}
