//! The quick starts: every command of a page, run as it stands there, and what it is said to print.

use std::{
    fs,
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

use postern_tests::{
    binaries, root,
    world::{World, free_address},
};

/// The fenced blocks of a page in this language, in order.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("docs").join(page)).unwrap();
    let opening = format!("```{language}\n");
    let parts = text.split(&opening).skip(1);
    let blocks: Vec<String> = parts
        .map(|part| part.split("```").next().unwrap_or_default().to_owned())
        .collect();
    assert!(
        !blocks.is_empty() || language != "sh",
        "{page} has no command"
    );
    blocks
}

/// Runs the `sh` blocks of a page as one script, in a folder with this repository's policies, after
/// `before`. Places that a machine has once are others for each test.
fn follow(page: &str, before: &str) {
    let mut world = World::new().unwrap();
    symlink(root().join("policies"), world.path().join("policies")).unwrap();
    // A command after `!` has to fail; by itself the shell would not look.
    let script: String = blocks(page, "sh")
        .concat()
        .lines()
        .map(|line| match line.strip_prefix("! ") {
            Some(rest) => {
                format!("if {rest}; then echo 'it passed, and should not have' >&2; exit 1; fi\n")
            }
            None => format!("{line}\n"),
        })
        .collect();
    let mut script = format!("set -e\n{before}\n{script}");
    script = script.replace(
        "/run/postern",
        &world.path().join("run").display().to_string(),
    );
    for port in ["15000", "15006", "15020", "15021"] {
        let free = free_address().unwrap().to_string();
        script = script.replace(&format!("127.0.0.1:{port}"), &free);
    }
    let old = std::env::var("PATH").unwrap();
    let path = format!("{}:{old}", binaries().unwrap().display());
    let script = world.write("script", &script).unwrap();
    // What a page starts beside itself ends with it.
    let line = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT; . ./script";
    let mut shell = Command::new("timeout");
    shell
        .args(["19", "bash", "-c", line])
        .env("PATH", path)
        .stdin(Stdio::null());
    world.spawn("page", &mut shell).unwrap();
    let code = world.ended("page").unwrap();
    let printed = fs::read_to_string(world.log("page")).unwrap();
    assert_eq!(
        code,
        Some(0),
        "{page}: {printed}\n{}",
        fs::read_to_string(script).unwrap()
    );
    for line in blocks(page, "text").concat().lines() {
        assert!(
            printed.contains(line),
            "{page}: `{line}` is not in {printed}"
        );
    }
}

#[test]
fn an_app_developer_gets_an_identity() {
    follow("quickstart-app.md", "");
}

#[test]
fn a_platform_engineer_asks_his_policies() {
    follow("quickstart-platform.md", "");
}

#[test]
fn who_is_on_call_finds_out() {
    let before = "mkdir -p workloads
printf 'trustDomain: example.org\\nstateDir: state\\nworkloadApi: {socket: unix:///run/postern/agent.sock}\\nadmin: {socket: unix:///run/postern/admin/admin.sock}\\nhealth: {listen: 127.0.0.1:15021}\\n' > agent.yaml
printf 'apiVersion: postern.dev/v1\\nkind: Workload\\nmetadata: {name: web, namespace: production}\\nspec: {serviceAccount: web, selectors: [\"unix:uid:%s\"]}\\n' $(id -u) > workloads/web.yaml
printf 'identity: {workloadApi: unix:///run/postern/agent.sock}\\npolicies: {directory: policies/examples/seed, namespace: production}\\nworkloads: {directory: workloads}\\ninbound: {listen: 127.0.0.1:15006, forward: 127.0.0.1:9}\\nadmin: {listen: 127.0.0.1:15000}\\nmetrics: {listen: 127.0.0.1:15020}\\naccessLog: {format: json, path: proxy.log}\\n' > proxy.yaml
postern-agent run --config agent.yaml > agent.log &
postern-proxy run --config proxy.yaml > proxy.out &
until postern-proxy healthcheck --address 127.0.0.1:15020; do sleep 0.1; done";
    follow("quickstart-oncall.md", before);
}

#[test]
fn the_commands_of_the_compose_page_are_those_that_the_compose_tests_run() {
    let commands = blocks("quickstart-compose.md", "sh").concat();
    let known = [
        "deploy/compose/up",
        "deploy/compose/verdicts",
        "deploy/compose/down",
    ];
    assert_eq!(commands.lines().collect::<Vec<_>>(), known);
    let tests = fs::read_to_string(root().join("tests/tests/all/compose.rs")).unwrap();
    for command in known {
        let name = command.trim_start_matches("deploy/");
        assert!(tests.contains(&format!("script(\"{name}\"")), "{command}");
    }
}

#[test]
fn every_link_between_the_pages_leads_somewhere() {
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", path.display());
            if !anchor.is_empty() {
                let there = fs::read_to_string(&target).unwrap();
                let anchors = anchors(&there);
                assert!(
                    anchors.iter().any(|known| known == anchor),
                    "{}: {link}",
                    path.display()
                );
            }
        }
    }
}

/// As GitHub makes them: the second of a name has a number.
fn anchors(page: &str) -> Vec<String> {
    let mut anchors = Vec::new();
    for title in page.lines().filter(|line| line.starts_with('#')) {
        let title = title.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let name: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let earlier = (0..).map(|number| match number {
            0 => name.clone(),
            number => format!("{name}-{number}"),
        });
        let free = earlier.into_iter().find(|one| !anchors.contains(one));
        anchors.extend(free);
    }
    anchors
}
