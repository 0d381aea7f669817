//! The units as they are shipped: systemd takes them, they leave little exposed, they let through what
//! the daemons need, and each wall has its reason.

use std::{collections::BTreeSet, fs, path::Path};

use postern_tests::{binaries, root, run, world::World};

const UNITS: [&str; 4] = [
    "postern-agent.service",
    "postern-agent.socket",
    "postern-agent-admin.socket",
    "postern-proxy@.service",
];

fn unit(name: &str) -> String {
    fs::read_to_string(root().join("deploy/systemd").join(name)).unwrap()
}

/// The units beside each other, with the programs where they are here, and an instance of the proxy's.
fn installed() -> World {
    let world = World::new().unwrap();
    let here = format!("{}/postern-", binaries().unwrap().display());
    for name in UNITS {
        let text = unit(name).replace("/usr/bin/postern-", &here);
        world.write(&name.replace('@', "@web"), &text).unwrap();
    }
    world
}

fn systemd_analyze(arguments: &[&str]) -> String {
    let output = run("systemd-analyze", arguments).unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    let said = said.concat();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

#[test]
fn systemd_takes_the_units_without_a_word() {
    let world = installed();
    for name in UNITS {
        let path = world.path().join(name.replace('@', "@web"));
        let said = systemd_analyze(&["verify", "--man=no", path.to_str().unwrap()]);
        assert_eq!(said, "", "{name}");
    }
    // It would say so if there was something to say.
    let text = unit("postern-agent.service").replace("ProtectSystem=strict", "ProtectSystem=wall");
    let path = world.write("other.service", &text).unwrap();
    let output = run(
        "systemd-analyze",
        &["verify", "--man=no", path.to_str().unwrap()],
    )
    .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("protect system value"), "{said}");
}

#[test]
fn no_more_is_exposed_than_there_is_a_reason_for() {
    let world = installed();
    for (name, tenths) in [
        ("postern-agent.service", "26"),
        ("postern-proxy@web.service", "12"),
    ] {
        let path = world.path().join(name);
        let threshold = format!("--threshold={tenths}");
        let path = path.to_str().unwrap();
        systemd_analyze(&["security", "--offline=yes", "--no-pager", &threshold, path]);
    }
}

#[test]
fn every_wall_has_its_reason_above_it() {
    for name in UNITS.iter().filter(|name| name.ends_with(".service")) {
        let text = unit(name);
        let mut has_reason = false;
        for line in text.lines().skip_while(|line| *line != "[Service]") {
            match line {
                "" => has_reason = false,
                line if line.starts_with('#') => has_reason = true,
                line if is_wall(line) => assert!(has_reason, "{name}: {line}"),
                _ => {}
            }
        }
    }
}

fn is_wall(line: &str) -> bool {
    let walls = [
        "Protect",
        "Private",
        "Restrict",
        "System",
        "Memory",
        "Lock",
        "NoNew",
        "Capability",
        "Limit",
        "Keyring",
        "Remove",
        "Tasks",
        "OOM",
        "UMask",
    ];
    walls.iter().any(|wall| line.starts_with(wall)) && !line.starts_with("RestartPrevent")
}

/// What a unit's filter lets through, as systemd resolves its sets.
fn allowed(unit: &str) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for line in unit.lines() {
        let Some(list) = line.strip_prefix("SystemCallFilter=") else {
            continue;
        };
        let (is_out, list) = match list.strip_prefix('~') {
            Some(list) => (true, list),
            None => (false, list),
        };
        for call in list.split_whitespace().flat_map(calls) {
            match is_out {
                true => allowed.remove(&call),
                false => allowed.insert(call),
            };
        }
    }
    allowed
}

fn calls(name: &str) -> Vec<String> {
    if !name.starts_with('@') {
        return vec![name.to_owned()];
    }
    let listed = systemd_analyze(&["--no-pager", "syscall-filter", name]);
    let names = listed.lines().skip(1).map(str::trim);
    let names = names.filter(|line| !line.is_empty() && !line.starts_with('#'));
    names.flat_map(calls).collect()
}

#[test]
fn the_filters_let_through_what_the_daemons_need_and_not_what_would_hurt() {
    for (name, profile) in [
        ("postern-agent.service", "agent"),
        ("postern-proxy@.service", "proxy"),
    ] {
        let allowed = allowed(&unit(name));
        let path = root().join(format!("deploy/seccomp/{profile}.json"));
        let profile: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        // What containers are held to, which the tests of those have proven to be enough.
        for group in profile["syscalls"].as_array().unwrap() {
            for call in group["names"].as_array().unwrap() {
                let call = call.as_str().unwrap();
                assert!(allowed.contains(call), "{name} refuses `{call}`");
            }
        }
        for call in [
            "ptrace",
            "mount",
            "bpf",
            "init_module",
            "setuid",
            "reboot",
            "keyctl",
        ] {
            assert!(!allowed.contains(call), "{name} allows `{call}`");
        }
    }
}

#[test]
fn the_sockets_lie_where_the_shipped_configuration_says() {
    let config = fs::read_to_string(root().join("deploy/debian/agent.yaml")).unwrap();
    for (name, descriptor) in [
        ("postern-agent.socket", "workload-api"),
        ("postern-agent-admin.socket", "admin"),
    ] {
        let text = unit(name);
        let path = text
            .lines()
            .find_map(|line| line.strip_prefix("ListenStream="))
            .unwrap();
        assert!(config.contains(&format!("unix://{path}")), "{path}");
        assert!(text.contains(&format!("\nFileDescriptorName={descriptor}\n")));
        assert!(Path::new(path).starts_with("/run/postern"), "{path}");
    }
}
