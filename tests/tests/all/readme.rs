//! Every command of the README, run as it stands there.

use std::{os::unix::fs::symlink, process::Command};

use postern_tests::{
    binaries, root, run,
    world::{World, free_address},
};

/// The commands in the README's `sh` blocks, without their comments.
fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let mut commands = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => {
                let command = line.split(" # ").next().unwrap_or(line);
                commands.push(command.trim().to_owned());
            }
            _ => {}
        }
    }
    commands
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let mut world = World::new().unwrap();
    for folder in ["policies", "deploy"] {
        symlink(root().join(folder), world.path().join(folder)).unwrap();
    }
    let uid = rustix::process::geteuid().as_raw();
    let me = format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web}}\n\
         spec: {{serviceAccount: web, selectors: ['unix:uid:{uid}']}}\n"
    );
    let socket = world.path().join("public/agent.sock");
    let proxy = format!(
        "policies: {{directory: policies/examples/seed, namespace: production}}\n\
         workloads: {{directory: workloads}}\n\
         inbound: {{listen: '{}', forward: '127.0.0.1:9'}}\n\
         admin: {{listen: '{}'}}\nmetrics: {{listen: '{}'}}\n",
        free_address().unwrap(),
        free_address().unwrap(),
        free_address().unwrap()
    );
    for line in commands() {
        match line.as_str() {
            // It runs us.
            "tests/run" => {}
            // compose.rs runs these, where there is a Docker Engine.
            "deploy/compose/up" | "deploy/compose/verdicts" | "deploy/compose/down" => {}
            "cargo demo" => {
                let demo = Command::new("cargo")
                    .arg("demo")
                    .current_dir(root())
                    .output()
                    .unwrap();
                let told = String::from_utf8_lossy(&demo.stdout).into_owned();
                assert!(demo.status.success(), "{told}");
                assert!(told.contains(" came true"), "{told}");
            }
            "postern-agent run --config agent.yaml" => {
                world.agent(&me).unwrap();
            }
            "postern-proxy run --config proxy.yaml" => {
                let proxy = format!(
                    "identity: {{workloadApi: 'unix://{}'}}\n{proxy}",
                    socket.display()
                );
                world.proxy("proxy", &proxy).unwrap();
                world.said("proxy", "ready").unwrap();
            }
            line => {
                let path = format!(
                    "{}:{}",
                    binaries().unwrap().display(),
                    std::env::var("PATH").unwrap()
                );
                let here = format!(
                    "cd {} && SPIFFE_ENDPOINT_SOCKET=unix://{} PATH={path} {line}",
                    world.path().display(),
                    socket.display()
                );
                let output = run("sh", &["-c", &here]).unwrap();
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "`{line}`: {error}");
            }
        }
    }
}
