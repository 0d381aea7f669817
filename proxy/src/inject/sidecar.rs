//! What a pod gets: the container that makes the rules, the proxy, and their volumes. Pure.

use super::{
    annotations::Wanted,
    item::Item,
    options::{AgentSocket, Options},
};

/// The init container that programs the pod's network namespace.
pub(super) const RULES: &str = "postern-netns";

/// The sidecar.
pub(super) const PROXY: &str = "postern-proxy";

/// The port of metrics and health, which the rules leave open.
pub(super) const HEALTH_PORT: u16 = 15020;

/// The containers, in the order in which they start: the rules before anything of the pod runs,
/// and then a proxy that is ready before any other init container goes on.
pub(super) fn containers(options: &Options, wanted: &Wanted) -> Vec<Item> {
    vec![rules(options, wanted), proxy(options, wanted)]
}

fn rules(options: &Options, wanted: &Wanted) -> Item {
    let mut command = vec![
        "/postern-proxy".to_owned(),
        "netns".to_owned(),
        "setup".to_owned(),
    ];
    command.extend(arguments(wanted));
    let mut security = vec![
        ("runAsUser", Item::Number(0)),
        ("runAsGroup", Item::Number(0)),
        ("runAsNonRoot", Item::Bool(false)),
    ];
    let capabilities = vec![
        ("drop", Item::texts(["ALL"])),
        ("add", Item::texts(["NET_ADMIN"])),
    ];
    security.extend(walls(capabilities));
    Item::Map(vec![
        ("name", RULES.into()),
        ("image", options.netns_image.as_str().into()),
        ("command", Item::texts(command)),
        ("securityContext", Item::Map(security)),
        (
            "resources",
            Item::Map(vec![
                ("requests", quantities("10m", "16Mi")),
                ("limits", quantities("1", "64Mi")),
            ]),
        ),
        (
            "volumeMounts",
            Item::List(vec![mount(CONFIG, CONFIG_FOLDER), no_token()]),
        ),
    ])
}

/// The options of `netns setup`, the same for a pod and for a service of Compose.
pub(super) fn arguments(wanted: &Wanted) -> Vec<String> {
    let mut arguments = vec![
        "--config".to_owned(),
        CONFIG_FILE.to_owned(),
        "--proxy-uid".to_owned(),
        wanted.uid.to_string(),
    ];
    let lists = [
        ("--exclude-inbound-ports", wanted.open_ports.to_string()),
        ("--exclude-outbound-ports", wanted.direct_ports.to_string()),
        ("--exclude-outbound-cidrs", listed(&wanted.direct_networks)),
        ("--resolver", listed(&wanted.resolvers)),
    ];
    for (option, list) in lists {
        if !list.is_empty() {
            arguments.extend([option.to_owned(), list]);
        }
    }
    arguments
}

fn proxy(options: &Options, wanted: &Wanted) -> Item {
    let mut security = vec![
        ("runAsUser", Item::Number(wanted.uid.into())),
        ("runAsGroup", Item::Number(wanted.uid.into())),
        ("runAsNonRoot", Item::Bool(true)),
    ];
    security.extend(walls(vec![("drop", Item::texts(["ALL"]))]));
    let resources = &wanted.resources;
    Item::Map(vec![
        ("name", PROXY.into()),
        ("image", options.proxy_image.as_str().into()),
        // An init container that goes on: it starts before the app and ends after it, in jobs too.
        ("restartPolicy", "Always".into()),
        (
            "command",
            Item::texts(["/postern-proxy", "run", "--config", CONFIG_FILE]),
        ),
        (
            "env",
            Item::List(vec![Item::Map(vec![
                ("name", "SPIFFE_ENDPOINT_SOCKET".into()),
                ("value", options.endpoint().into()),
            ])]),
        ),
        (
            "ports",
            Item::List(vec![Item::Map(vec![
                ("name", "postern-health".into()),
                ("containerPort", Item::Number(HEALTH_PORT.into())),
            ])]),
        ),
        ("startupProbe", probe("/healthz/ready", 1, 120)),
        ("readinessProbe", probe("/healthz/ready", 5, 3)),
        ("livenessProbe", probe("/healthz/live", 10, 6)),
        ("securityContext", Item::Map(security)),
        (
            "resources",
            Item::Map(vec![
                (
                    "requests",
                    quantities(&resources.cpu_request, &resources.memory_request),
                ),
                (
                    "limits",
                    quantities(&resources.cpu_limit, &resources.memory_limit),
                ),
            ]),
        ),
        (
            "volumeMounts",
            Item::List(vec![
                mount(CONFIG, CONFIG_FOLDER),
                mount(SOCKET, SOCKET_FOLDER),
                no_token(),
            ]),
        ),
    ])
}

/// The volumes of both.
pub(super) fn volumes(options: &Options) -> Vec<Item> {
    let config = vec![("name", options.config_map.as_str().into())];
    let socket = match &options.agent_socket {
        AgentSocket::HostPath { folder, .. } => (
            "hostPath",
            Item::Map(vec![
                ("path", folder.as_str().into()),
                ("type", "Directory".into()),
            ]),
        ),
        AgentSocket::Csi { driver, .. } => (
            "csi",
            Item::Map(vec![
                ("driver", driver.as_str().into()),
                ("readOnly", Item::Bool(true)),
            ]),
        ),
    };
    vec![
        Item::Map(vec![
            ("name", CONFIG.into()),
            ("configMap", Item::Map(config)),
        ]),
        Item::Map(vec![("name", SOCKET.into()), socket]),
        Item::Map(vec![
            ("name", NO_TOKEN.into()),
            ("emptyDir", Item::Map(vec![("sizeLimit", "4Ki".into())])),
        ]),
    ]
}

/// What every container of ours has.
fn walls(capabilities: Vec<(&'static str, Item)>) -> Vec<(&'static str, Item)> {
    vec![
        ("allowPrivilegeEscalation", Item::Bool(false)),
        ("privileged", Item::Bool(false)),
        ("readOnlyRootFilesystem", Item::Bool(true)),
        ("capabilities", Item::Map(capabilities)),
        (
            "seccompProfile",
            Item::Map(vec![("type", "RuntimeDefault".into())]),
        ),
    ]
}

fn probe(path: &str, every_seconds: i64, failures: i64) -> Item {
    Item::Map(vec![
        (
            "httpGet",
            Item::Map(vec![
                ("path", path.into()),
                ("port", Item::Number(HEALTH_PORT.into())),
            ]),
        ),
        ("periodSeconds", Item::Number(every_seconds)),
        ("timeoutSeconds", Item::Number(2)),
        ("failureThreshold", Item::Number(failures)),
    ])
}

fn quantities(cpu: &str, memory: &str) -> Item {
    Item::Map(vec![("cpu", cpu.into()), ("memory", memory.into())])
}

fn mount(volume: &str, path: &str) -> Item {
    Item::Map(vec![
        ("name", volume.into()),
        ("mountPath", path.into()),
        ("readOnly", Item::Bool(true)),
    ])
}

/// The token of the app's service account is the app's. The cluster gives it to every container that
/// has nothing at this path.
fn no_token() -> Item {
    mount(NO_TOKEN, "/var/run/secrets/kubernetes.io/serviceaccount")
}

fn listed<T: ToString>(all: &[T]) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join(",")
}

/// The names of the volumes.
pub(super) const VOLUMES: [&str; 3] = [CONFIG, SOCKET, NO_TOKEN];

const CONFIG: &str = "postern-config";
const SOCKET: &str = "postern-agent-socket";
const NO_TOKEN: &str = "postern-no-token";

const CONFIG_FOLDER: &str = "/etc/postern";
/// Where the proxy's configuration lies in its container.
pub(super) const CONFIG_FILE: &str = "/etc/postern/proxy.yaml";
/// Where the agent's socket lies in the proxy's container.
pub(super) const SOCKET_FOLDER: &str = "/run/postern";
