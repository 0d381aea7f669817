//! Whether a pod can hold what the sidecar promises: nobody goes round the proxy, nobody takes the
//! rules away, and nobody listens where the proxy does.

use postern_policies::diagnostic::Problems;

use super::{
    annotations::Wanted,
    mounts::{Danger, danger},
    options::Options,
    sidecar::{HEALTH_PORT, PROXY, RULES, VOLUMES},
    spot::Spot,
};
use crate::netns::OWN_PORTS;

/// Looks at a pod, and tells everything that does not go together with a sidecar.
pub(super) fn check(
    spec: &Spot<'_>,
    wanted: &Wanted,
    options: &Options,
    problems: &mut Problems<'_>,
) {
    let mut look = Look {
        spec,
        wanted,
        allow_undo: options.allow_undo,
        socket_folder: options.socket_folder(),
        is_clash_told: false,
        problems,
    };
    look.pod();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.list(list) {
            look.container(&container);
        }
    }
}

struct Look<'l, 't, 'p> {
    spec: &'l Spot<'t>,
    wanted: &'l Wanted,
    allow_undo: bool,
    socket_folder: Option<&'l str>,
    /// The pod's own user is told once, and not for each container.
    is_clash_told: bool,
    problems: &'l mut Problems<'p>,
}

impl<'t> Look<'_, 't, '_> {
    fn pod(&mut self) {
        if let Some(field) = is_on(self.spec, "hostNetwork") {
            self.problems.error_with(
                field.at,
                format!(
                    "`{}` is on: the pod has the node's network, and the rules would be the node's",
                    field.path
                ),
                "take it out, or write `postern.dev/inject: disabled` and let policies know the pod as one without identity",
            );
        }
        if let Some(field) = is_on(self.spec, "hostPID") {
            self.undo(
                &field,
                "is on: a process that sees those of the node can enter their namespaces",
            );
        }
        if let Some(field) = is_on(self.spec, "shareProcessNamespace") {
            self.problems.warn(
                field.at,
                format!(
                    "`{}` is on: root in another container of the pod can end the proxy",
                    field.path
                ),
                "leave the containers apart",
            );
        }
        if let Some(field) = is_on(self.spec, "hostIPC") {
            self.problems.warn(
                field.at,
                format!(
                    "`{}` is on: the pod shares memory and semaphores with processes of the node",
                    field.path
                ),
                "take it out",
            );
        }
        self.volumes();
        let os = self.spec.at(&["os", "name"]);
        if let Some(os) = os.filter(|os| os.text() == Some("windows")) {
            let told = format!("`{}` is `windows`: the rules are Linux's", os.path);
            self.problems
                .error_with(os.at, told, "write `postern.dev/inject: disabled`");
        }
    }

    /// Places of the node that are the agent's, the engine's or the kernel's.
    fn volumes(&mut self) {
        for volume in self.spec.list("volumes") {
            let Some(field) = volume.at(&["hostPath", "path"]) else {
                continue;
            };
            // A name is anybody's: what the sidecar brings is known by its place, too.
            if is_ours(&volume) && self.socket_folder == field.text() {
                continue;
            }
            let is_written = self.is_written(volume.text_of("name").unwrap_or_default());
            match danger(field.text().unwrap_or_default(), is_written) {
                None => {}
                Some(Danger::Undoes(why)) => self.undo(&field, &why),
                Some(Danger::Shows(why)) => self.problems.warn(
                    field.at,
                    format!("`{}` {why}", field.path),
                    "take it out, or mount the one file that is needed",
                ),
            }
        }
    }

    /// Does any container mount it and may write to it?
    fn is_written(&self, volume: &str) -> bool {
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        let containers = lists.iter().flat_map(|list| self.spec.list(list));
        let mut mounts = containers.flat_map(|container| container.list("volumeMounts"));
        mounts.any(|mount| {
            let read_only = mount.get("readOnly");
            mount.text_of("name") == Some(volume)
                && read_only.is_none_or(|field| field.text() != Some("true"))
        })
    }

    fn container(&mut self, container: &Spot<'t>) {
        let name = container.text_of("name").unwrap_or_default();
        let security = container.get("securityContext");
        if name != PROXY {
            self.user(security.as_ref());
            self.ports(container);
        }
        if let Some(security) = &security {
            if let Some(field) = is_on(security, "privileged") {
                self.undo(&field, "is on: the container can take the rules away");
            }
            self.added(security, name);
            let field = security.get("procMount");
            if let Some(field) = field.filter(|field| field.text() != Some("Default")) {
                self.problems.warn(
                    field.at,
                    format!(
                        "`{}` shows all of /proc: root in the container can change settings of the pod's network",
                        field.path
                    ),
                    "take it out",
                );
            }
        }
        if name != PROXY && name != RULES {
            self.defaults(container, security.as_ref());
            self.probes(container);
            self.mounts(container);
        }
    }

    /// No app may run as the user that the rules exempt.
    fn user(&mut self, security: Option<&Spot<'t>>) {
        let own = security.and_then(|security| security.get("runAsUser"));
        let is_of_the_pod = own.is_none();
        let Some(field) = own.or_else(|| self.spec.at(&["securityContext", "runAsUser"])) else {
            return;
        };
        let uid = field.number();
        let is_other = uid.is_some_and(|uid| uid != i64::from(self.wanted.uid));
        if is_other || (is_of_the_pod && std::mem::replace(&mut self.is_clash_told, is_of_the_pod))
        {
            return;
        }
        let written = field.text().unwrap_or_default();
        let told = match uid {
            Some(_) => format!(
                "`{}` is {written}, the proxy's user: what runs as this user goes round the proxy",
                field.path
            ),
            None => format!("`{}` is `{written}`, which is no user", field.path),
        };
        let hint = "take another one, or give the proxy another one: --proxy-uid";
        self.problems.error_with(field.at, told, hint);
    }

    /// What a container adds to its rights.
    fn added(&mut self, security: &Spot<'t>, name: &str) {
        for field in capabilities(security, "add") {
            let capability = bare(&field);
            let is_ours = name == RULES && capability == "NET_ADMIN";
            let undoing = UNDOING.iter().find(|(known, _)| *known == capability);
            if let Some((_, why)) = undoing.filter(|_| !is_ours) {
                self.undo(&field, &format!("adds {capability}: {why}"));
            }
        }
    }

    /// What a container has without asking, unless it gives it up or can never use it.
    fn defaults(&mut self, container: &Spot<'t>, security: Option<&Spot<'t>>) {
        let dropped: Vec<String> = security
            .map(|security| capabilities(security, "drop").iter().map(bare).collect())
            .unwrap_or_default();
        let added: Vec<String> = security
            .map(|security| capabilities(security, "add").iter().map(bare).collect())
            .unwrap_or_default();
        let has = |name: &str| {
            let is_dropped = dropped.iter().any(|one| one == "ALL" || one == name);
            !is_dropped || added.iter().any(|one| one == name)
        };
        let kept: Vec<&str> = ["NET_RAW", "SETUID"]
            .into_iter()
            .filter(|name| has(name))
            .collect();
        if kept.is_empty() || self.is_powerless(security) {
            return;
        }
        let at = security.map_or(container.at, |security| security.at);
        self.problems.warn(
            at,
            format!(
                "`{}`: as root the container has {}, with which it can go round the proxy",
                container.path_of("securityContext"),
                kept.join(" and ")
            ),
            "write `capabilities: {drop: [ALL]}`, or `runAsNonRoot: true` and `allowPrivilegeEscalation: false`",
        );
    }

    /// Never root, and never more than at its start: capabilities of the default set do nothing.
    fn is_powerless(&self, security: Option<&Spot<'t>>) -> bool {
        let of_pod = self.spec.get("securityContext");
        let field = |name: &str| {
            let own = security.and_then(|security| security.get(name));
            own.or_else(|| of_pod.as_ref().and_then(|pod| pod.get(name)))
        };
        let uid = field("runAsUser").and_then(|uid| uid.number());
        let is_nobody = match uid {
            Some(uid) => uid != 0,
            None => field("runAsNonRoot").is_some_and(|field| field.text() == Some("true")),
        };
        let escalation = security.and_then(|security| security.get("allowPrivilegeEscalation"));
        is_nobody && escalation.is_some_and(|field| field.text() == Some("false"))
    }

    /// Nobody listens where the proxy does.
    fn ports(&mut self, container: &Spot<'t>) {
        for port in container.list("ports") {
            let Some(field) = port.get("containerPort") else {
                continue;
            };
            let number = field.number().and_then(|port| u16::try_from(port).ok());
            let is_own = |port: &u16| OWN_PORTS.contains(port) || *port == HEALTH_PORT;
            if let Some(number) = number.filter(is_own) {
                let told = format!("`{}` is {number}, a port of the proxy", field.path);
                self.problems.error_with(
                    field.at,
                    told,
                    "let the app listen on another; 15000 to 15100 are taken by meshes",
                );
            }
        }
    }

    /// The kubelet has no identity: what it asks of the app is refused like anybody's.
    fn probes(&mut self, container: &Spot<'t>) {
        let mut asked: Vec<Spot<'t>> = Vec::new();
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let probe = container.get(probe);
            let kinds = ["httpGet", "tcpSocket", "grpc"];
            asked.extend(kinds.iter().filter_map(|kind| probe.as_ref()?.get(kind)));
        }
        for hook in ["postStart", "preStop"] {
            asked.extend(container.at(&["lifecycle", hook, "httpGet"]));
        }
        for handler in asked {
            let port = handler.get("port");
            let number = port.as_ref().and_then(|port| number_of(port, container));
            if number
                .is_some_and(|port| port == HEALTH_PORT || self.wanted.open_ports.contains(port))
            {
                continue;
            }
            let shown = port.as_ref().and_then(Spot::text).unwrap_or("none");
            self.problems.warn(
                handler.at,
                format!(
                    "`{}` asks port {shown} from outside and has no identity: where mutual TLS is STRICT it is refused",
                    handler.path
                ),
                "use `exec`, or a port that serves nothing else and stands in `traffic.sidecar.istio.io/excludeInboundPorts`",
            );
        }
    }

    fn mounts(&mut self, container: &Spot<'t>) {
        for mount in container
            .list("volumeMounts")
            .iter()
            .filter(|mount| is_ours(mount))
        {
            self.problems.warn(
                mount.at,
                format!("`{}.name` is that of a volume of the sidecar", mount.path),
                "mount a volume of the app's own",
            );
        }
    }

    fn undo(&mut self, field: &Spot<'_>, why: &str) {
        let told = format!("`{}` {why}", field.path);
        let hint = "take it out, or write `postern.dev/inject: disabled`; --insecure-allow-undo injects all the same";
        match self.allow_undo {
            true => self.problems.warn(field.at, told, hint),
            false => self.problems.error_with(field.at, told, hint),
        }
    }
}

/// Has it the name of a volume that the sidecar brings?
fn is_ours(named: &Spot<'_>) -> bool {
    VOLUMES.contains(&named.text_of("name").unwrap_or_default())
}

/// A field that is there and not plainly `false`.
fn is_on<'t>(map: &Spot<'t>, key: &str) -> Option<Spot<'t>> {
    map.get(key).filter(Spot::may_be_true)
}

fn capabilities<'t>(security: &Spot<'t>, what: &str) -> Vec<Spot<'t>> {
    security
        .get("capabilities")
        .map(|capabilities| capabilities.list(what))
        .unwrap_or_default()
}

/// The name of a capability without the kernel's prefix, which some runtimes take as well.
fn bare(field: &Spot<'_>) -> String {
    let name = field.text().unwrap_or_default().to_ascii_uppercase();
    name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
}

/// A port by its number, or by the name that the container gives it.
fn number_of(port: &Spot<'_>, container: &Spot<'_>) -> Option<u16> {
    let number = |spot: &Spot<'_>| spot.number().and_then(|port| u16::try_from(port).ok());
    if let Some(number) = number(port) {
        return Some(number);
    }
    let named = container.list("ports");
    let named = named.iter().find(|one| one.text_of("name") == port.text());
    number(&named?.get("containerPort")?)
}

/// Rights with which a container undoes what the init container did, and how.
pub(super) const UNDOING: [(&str, &str); 9] = [
    ("ALL", "among them are those that take the rules away"),
    (
        "DAC_READ_SEARCH",
        "it opens files of the node by their numbers, the agent's keys among them",
    ),
    ("NET_ADMIN", "it takes the rules away"),
    (
        "NET_RAW",
        "packet sockets are read and written below the rules",
    ),
    ("SYS_ADMIN", "it enters other namespaces, and the node's"),
    ("SYS_MODULE", "it puts code into the kernel"),
    ("SYS_PTRACE", "it reads the proxy's memory, and its keys"),
    ("SYS_RAWIO", "it reads and writes the machine's memory"),
    ("BPF", "it puts programs before the rules"),
];
