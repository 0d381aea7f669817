//! Services of a Compose file. A pod is a network namespace here as well: the rules and the proxy
//! join the namespace of the service.

use std::{path::Path, sync::Arc};

use postern_policies::diagnostic::Problems;

use super::{
    annotations::{self, Wanted},
    edit::{self, Edit, Fixed},
    isolation::UNDOING,
    item::Item,
    mounts::Danger,
    options::Options,
    sidecar::{self, HEALTH_PORT, SOCKET_FOLDER},
    spot::Spot,
    volumes,
};
use crate::netns::{OWN_PORTS, PortRange};

/// Is the document a Compose file?
pub(super) fn is_one(root: &Spot<'_>) -> bool {
    let has = |key| root.entry(key).is_some();
    has("services") && !has("kind") && !has("apiVersion")
}

/// Gives each service that has a network of its own a sidecar.
pub(super) fn edits(
    text: &str,
    root: &Spot<'_>,
    options: &Options,
    problems: &mut Problems<'_>,
) -> Result<Vec<Edit>, Fixed> {
    let Some(services) = root.get("services") else {
        return Ok(Vec::new());
    };
    if options.socket_folder().is_none() {
        let told = "--csi-driver is for Kubernetes: Compose mounts folders";
        problems.error(services.at, told);
        return Ok(Vec::new());
    }
    if let Some(field) = root.get("include") {
        let told = format!("`{}` names files whose services get no sidecar", field.path);
        problems.warn(field.at, told, RESOLVE);
    }
    let mut edits = Vec::new();
    for (name, service) in services.entries() {
        let file = File {
            root,
            services: &services,
            options,
        };
        let Some(wanted) = file.judge(name, &service, problems) else {
            continue;
        };
        let entry = services
            .entry(name)
            .ok_or_else(|| Fixed::shared(&service))?;
        let profiles = service.list("profiles");
        let profiles: Vec<&str> = profiles.iter().filter_map(Spot::text).collect();
        let rules_name = format!("{name}{RULES}");
        let proxy_name = format!("{name}{PROXY}");
        let added = [
            (
                rules_name.as_str(),
                rules(name, options, &wanted, &profiles),
            ),
            (
                proxy_name.as_str(),
                proxy(name, &rules_name, options, &wanted, &profiles),
            ),
        ];
        edits.push(edit::add_entries(text, &services, entry, &added)?);
    }
    Ok(edits)
}

/// Whose network a service has.
enum Network {
    Own,
    /// That of a service with a sidecar.
    Joined,
    /// One in which there is no sidecar.
    Without,
}

struct File<'f, 't> {
    root: &'f Spot<'t>,
    services: &'f Spot<'t>,
    options: &'f Options,
}

impl<'t> File<'_, 't> {
    fn judge(&self, name: &str, service: &Spot<'t>, problems: &mut Problems<'_>) -> Option<Wanted> {
        if self.is_sidecar(name) {
            return None;
        }
        let said = annotations::said(service);
        let wanted = annotations::read(&said, service.at, self.options, problems)?;
        match self.network(service, problems) {
            Network::Own => {}
            // It lives with the proxy of that one, and could undo its rules as that one could.
            Network::Joined => {
                self.isolation(service, &wanted, problems);
                return None;
            }
            Network::Without => return None,
        }
        self.isolation(service, &wanted, problems);
        self.copies(service, problems);
        let parts = [RULES, PROXY].map(|suffix| self.services.get(&format!("{name}{suffix}")));
        match parts {
            [None, None] => Some(wanted),
            [Some(rules), Some(proxy)] => {
                let mode = format!("service:{name}");
                for part in [rules, proxy] {
                    if part.text_of("network_mode") != Some(&mode) {
                        let told = format!(
                            "`{}` has the name of a sidecar and not its `network_mode: {mode}`",
                            part.path
                        );
                        problems.error_with(part.at, told, "give it another name");
                    }
                }
                None
            }
            [Some(part), None] | [None, Some(part)] => {
                let told = format!("`{}` is part of a sidecar that is not whole", part.path);
                problems.error_with(part.at, told, "take it out, or give it another name");
                None
            }
        }
    }

    /// One of ours, by its name and by the service of which it is.
    fn is_sidecar(&self, name: &str) -> bool {
        [RULES, PROXY].iter().any(|suffix| {
            name.strip_suffix(suffix)
                .is_some_and(|service| self.services.entry(service).is_some())
        })
    }

    /// A service in another one's namespace has the sidecar of that one, if that has one.
    fn network(&self, service: &Spot<'t>, problems: &mut Problems<'_>) -> Network {
        let Some(mode) = service.get("network_mode") else {
            return Network::Own;
        };
        let text = mode.text().unwrap_or_default();
        if text == "host" {
            problems.error_with(
                mode.at,
                format!(
                    "`{}` is `host`: the rules would be this machine's",
                    mode.path
                ),
                "give it a network, or the label `postern.dev/inject: disabled`",
            );
        }
        if text.starts_with("container:") {
            let told = format!(
                "`{}` is that of a container of elsewhere, which may have no sidecar",
                mode.path
            );
            problems.warn(mode.at, told, "write `service:NAME` for one of this file");
        }
        match text.strip_prefix("service:") {
            Some(other) if self.has_sidecar(other) => Network::Joined,
            None if text != "none" && text != "host" && !text.starts_with("container:") => {
                Network::Own
            }
            _ => Network::Without,
        }
    }

    /// Has the service of this name a sidecar, or will have one? What is wrong with it is told at its place.
    fn has_sidecar(&self, name: &str) -> bool {
        let (file, mut untold) = (Arc::from(Path::new("")), Vec::new());
        let mut untold = Problems::new(&file, &mut untold);
        self.services.get(name).is_some_and(|service| {
            let said = annotations::said(&service);
            annotations::read(&said, service.at, self.options, &mut untold).is_some()
        })
    }

    fn isolation(&self, service: &Spot<'t>, wanted: &Wanted, problems: &mut Problems<'_>) {
        let mut undo = |field: &Spot<'_>, why: &str| {
            let told = format!("`{}` {why}", field.path);
            let hint = "take it out, or give the service the label `postern.dev/inject: disabled`; --insecure-allow-undo injects all the same";
            match self.options.allow_undo {
                true => problems.warn(field.at, told, hint),
                false => problems.error_with(field.at, told, hint),
            }
        };
        if let Some(field) = service.get("privileged").filter(Spot::may_be_true) {
            undo(&field, "is on: the container can take the rules away");
        }
        let mut shown = Vec::new();
        for (field, danger) in volumes::dangers(self.root, service) {
            match danger {
                Danger::Undoes(why) => undo(&field, &why),
                Danger::Shows(why) => shown.push((field, why)),
            }
        }
        if let Some(field) = service.get("pid").filter(|pid| pid.text() == Some("host")) {
            undo(
                &field,
                "is `host`: a process that sees those of the machine can enter their namespaces",
            );
        }
        for field in service.list("cap_add") {
            let name = field.text().unwrap_or_default().to_ascii_uppercase();
            let name = name.strip_prefix("CAP_").unwrap_or(&name);
            if let Some((_, why)) = UNDOING.iter().find(|(known, _)| *known == name) {
                undo(&field, &format!("adds {name}: {why}"));
            }
        }
        for (field, why) in shown {
            problems.warn(field.at, format!("`{}` {why}", field.path), RESOLVE);
        }
        if let Some(field) = service.get("ipc").filter(|ipc| ipc.text() == Some("host")) {
            let told = format!(
                "`{}` is `host`: the service shares memory and semaphores with processes of the machine",
                field.path
            );
            problems.warn(field.at, told, "take it out");
        }
        if let Some(field) = service.get("extends") {
            let told = format!(
                "`{}` takes from elsewhere what is not looked at",
                field.path
            );
            problems.warn(field.at, told, RESOLVE);
        }
        self.user(service, wanted, problems);
        let dropped = service.list("cap_drop");
        let drops = |name: &str| {
            let mut dropped = dropped.iter().filter_map(Spot::text);
            dropped.any(|one| one.eq_ignore_ascii_case("all") || one.eq_ignore_ascii_case(name))
        };
        if !(drops("NET_RAW") && drops("SETUID")) {
            problems.warn(
                service.at,
                format!("`{}`: as root the container has NET_RAW and SETUID, with which it can go round the proxy", service.path_of("cap_drop")),
                "write `cap_drop: [ALL]`",
            );
        }
    }

    fn user(&self, service: &Spot<'t>, wanted: &Wanted, problems: &mut Problems<'_>) {
        let Some(field) = service.get("user") else {
            return;
        };
        let user = field.text().unwrap_or_default();
        let uid = user.split(':').next().unwrap_or_default();
        if uid.parse() == Ok(wanted.uid) {
            problems.error_with(
                field.at,
                format!(
                    "`{}` is {uid}, the proxy's user: what runs as this user goes round the proxy",
                    field.path
                ),
                "take another one, or give the proxy another one: --proxy-uid",
            );
        }
    }

    /// A namespace is joined by name, and copies of a service have one name.
    fn copies(&self, service: &Spot<'t>, problems: &mut Problems<'_>) {
        let copies = [service.get("scale"), service.at(&["deploy", "replicas"])];
        for field in copies.into_iter().flatten() {
            if field.number() != Some(1) {
                problems.error_with(
                    field.at,
                    format!(
                        "`{}` is not 1: a sidecar joins the network of one container",
                        field.path
                    ),
                    "write a service for each copy, or the label `postern.dev/inject: disabled`",
                );
            }
        }
        for field in ["expose", "ports"] {
            for port in service.list(field) {
                let range = port.get("target").and_then(|target| target.text());
                let range = range.or_else(|| port.text()).and_then(of_the_container);
                let is_own = |port: u16| OWN_PORTS.contains(&port) || port == HEALTH_PORT;
                if range.is_some_and(|range| (range.first..=range.last).any(is_own)) {
                    let told = format!("`{}` is a port of the proxy", port.path);
                    problems.error_with(port.at, told, "let the app listen on another");
                }
            }
        }
    }
}

/// Of `127.0.0.1:8080:80/tcp` the 80.
fn of_the_container(port: &str) -> Option<PortRange> {
    let port = port.split('/').next()?;
    port.rsplit(':').next()?.parse().ok()
}

fn rules(name: &str, options: &Options, wanted: &Wanted, profiles: &[&str]) -> Item {
    let mut command = vec!["/postern-proxy", "netns", "setup"];
    let arguments = sidecar::arguments(wanted);
    command.extend(arguments.iter().map(String::as_str));
    let mut service = vec![
        ("image", options.netns_image.as_str().into()),
        ("entrypoint", Item::texts(command)),
        ("network_mode", format!("service:{name}").into()),
        ("user", "0:0".into()),
    ];
    service.extend(walls(&["NET_ADMIN"], "64m"));
    service.extend([
        ("volumes", Item::texts([config(options)])),
        ("restart", "no".into()),
    ]);
    service.extend(in_profiles(profiles));
    Item::Map(service)
}

fn proxy(name: &str, rules: &str, options: &Options, wanted: &Wanted, profiles: &[&str]) -> Item {
    let folder = options.socket_folder().unwrap_or_default();
    let command = ["/postern-proxy", "run", "--config", sidecar::CONFIG_FILE];
    let mut service = vec![
        ("image", options.proxy_image.as_str().into()),
        ("entrypoint", Item::texts(command)),
        ("network_mode", format!("service:{name}").into()),
        ("user", format!("{0}:{0}", wanted.uid).into()),
    ];
    service.extend(walls(&[], "128m"));
    service.extend([
        (
            "environment",
            Item::Map(vec![("SPIFFE_ENDPOINT_SOCKET", options.endpoint().into())]),
        ),
        (
            "volumes",
            Item::texts([config(options), format!("{folder}:{SOCKET_FOLDER}:ro")]),
        ),
        (
            "healthcheck",
            Item::Map(vec![
                (
                    "test",
                    Item::texts(["CMD", "/postern-proxy", "healthcheck"]),
                ),
                ("interval", "1s".into()),
                ("timeout", "2s".into()),
                ("retries", Item::Number(30)),
            ]),
        ),
        ("restart", "unless-stopped".into()),
    ]);
    service.extend(in_profiles(profiles));
    let condition = Item::Map(vec![("condition", "service_completed_successfully".into())]);
    service.push((
        "depends_on",
        Item::Named(rules.to_owned(), Box::new(condition)),
    ));
    Item::Map(service)
}

fn config(options: &Options) -> String {
    format!("{}:{}:ro", options.proxy_config, sidecar::CONFIG_FILE)
}

fn walls(rights: &[&str], memory: &str) -> Vec<(&'static str, Item)> {
    let mut walls = vec![
        ("read_only", Item::Bool(true)),
        ("cap_drop", Item::texts(["ALL"])),
    ];
    if !rights.is_empty() {
        walls.push(("cap_add", Item::texts(rights.iter().copied())));
    }
    walls.extend([
        ("security_opt", Item::texts(["no-new-privileges:true"])),
        ("mem_limit", memory.into()),
        ("pids_limit", Item::Number(64)),
    ]);
    walls
}

/// What belongs to a service is started with it, and only with it.
fn in_profiles(profiles: &[&str]) -> Option<(&'static str, Item)> {
    (!profiles.is_empty()).then(|| ("profiles", Item::texts(profiles.iter().copied())))
}

/// What Compose itself makes of a file has neither variables nor relative paths in it.
const RESOLVE: &str =
    "have Compose write it out: `docker compose config | postern-proxy inject -f -`";

/// Behind the name of the service.
const RULES: &str = "-postern-netns";
const PROXY: &str = "-postern";
