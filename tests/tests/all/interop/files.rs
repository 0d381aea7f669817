//! nginx, HAProxy and openssl, which know nothing of SPIFFE: an SVID is a certificate to them.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use postern_tests::{
    binaries, eventually, run,
    world::{World, free_address},
};
use rcgen::{CertificateParams, SanType};
use rustix::process::{Pid, Signal, kill_process};

use super::get;
use crate::{inbound, outbound};

const VERSION: &str = "--http1.1";
const OTHER: &str = "spiffe://example.org/ns/default/sa/other";

/// Who refuses to verify a name that is not there can be told one.
fn named(params: &mut CertificateParams) {
    let name = "web.example".try_into().unwrap();
    params.subject_alt_names.push(SanType::DnsName(name));
}

/// Whether nginx has a process that reads its files again, and others that serve. Those do not end
/// when the first one is killed.
#[derive(Clone, Copy)]
enum Processes {
    One,
    Several,
}

/// nginx in the world's folder, with what belongs into `http`.
fn nginx(world: &mut World, processes: Processes, http: &str) {
    let master = match processes {
        Processes::One => "master_process off;",
        Processes::Several => "",
    };
    let user = match rustix::process::geteuid().is_root() {
        true => "user root;",
        false => "",
    };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {name};\n"))
        .concat();
    let config = format!(
        "daemon off; {master} pid nginx.pid; error_log stderr; worker_processes 1; {user}\n\
         events {{}}\nhttp {{\naccess_log off;\n{temporary}{http}\n}}\n"
    );
    let path = world.write("nginx.conf", &config).unwrap();
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-p"]).arg(world.path());
    world.spawn("nginx", command.arg("-c").arg(path)).unwrap();
}

/// HAProxy, with what comes after its defaults.
fn haproxy(world: &mut World, rest: &str) {
    let config = format!(
        "global\n  maxconn 64\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  \
         timeout server 30s\n{rest}"
    );
    let path = world.write("haproxy.cfg", &config).unwrap();
    let mut command = Command::new("haproxy");
    world
        .spawn("haproxy", command.arg("-db").arg("-f").arg(path))
        .unwrap();
}

/// A certificate and its key in one file, as HAProxy wants them.
fn in_one(folder: &Path, name: &str) {
    let read = |ending: &str| std::fs::read_to_string(folder.join(format!("{name}.{ending}")));
    let both = [read("crt").unwrap(), read("key").unwrap()].concat();
    std::fs::write(folder.join(format!("{name}.pem")), both).unwrap();
}

/// A foreign proxy calls ours: what the policies allow comes through, what they do not is refused
/// by us, and with the SVID of somebody else nothing is reached.
fn calls(start: impl Fn(&mut World, SocketAddr, SocketAddr)) {
    let mut site = inbound::Site::start();
    site.leaf(|_| {});
    let web = "spiffe://example.org/ns/production/sa/web";
    let folder = site.world.path().to_owned();
    site.authority
        .write_leaf(&folder, "web", web, named)
        .unwrap();
    in_one(&folder, "caller");
    let address = free_address().unwrap();
    start(&mut site.world, address, site.address);
    let allowed = || (get(address, VERSION, "/api/v1/orders").0 == 200).then_some(());
    eventually("an answer", allowed).unwrap();
    assert_eq!(get(address, VERSION, "/api/v1/orders").1, "hello\n");
    let reached = site.app.reached();
    let (status, body) = get(address, VERSION, "/admin");
    assert_eq!((status, body.as_str()), (403, "RBAC: access denied"));
    assert_eq!(site.app.reached(), reached);

    let mut other = inbound::Site::start();
    let folder = other.world.path().to_owned();
    let authority = &other.authority;
    authority
        .write_leaf(&folder, "caller", OTHER, |_| {})
        .unwrap();
    authority.write_leaf(&folder, "web", web, named).unwrap();
    in_one(&folder, "caller");
    let address = free_address().unwrap();
    start(&mut other.world, address, other.address);
    let answered = || Some(get(address, VERSION, "/api/v1/orders").0).filter(|status| *status != 0);
    let status = eventually("an answer", answered).unwrap();
    assert!((500..600).contains(&status), "{status}");
    assert_eq!(other.app.reached(), 0);
}

/// Our proxy calls a foreign server, and only if it shows exactly the identity of the Workload.
fn is_called(version: &str, says: &str, start: impl Fn(&mut World, u16)) {
    let mut site = outbound::Site::start("[127.0.0.2]", "");
    in_one(site.world.path(), "web");
    let port = site.port;
    start(&mut site.world, port);
    let answered = || (site.curl(version, "/") == 200).then_some(());
    eventually("an answer", answered).unwrap();
    let body = get(site.out, VERSION, "/").1;
    assert!(body.contains(says), "{body}");

    let mut other = outbound::Site::start("[127.0.0.2]", "");
    let folder = other.world.path().to_owned();
    other
        .authority
        .write_leaf(&folder, "web", OTHER, |_| {})
        .unwrap();
    in_one(&folder, "web");
    let port = other.port;
    start(&mut other.world, port);
    let refused = || {
        assert_ne!(other.curl(version, "/"), 200);
        let said = "another identity serves the destination";
        let log = std::fs::read_to_string(other.world.log("proxy")).ok()?;
        log.contains(said).then_some(())
    };
    eventually("the refusal", refused).unwrap();
}

/// Asks a program to end when the test does, however that ends.
struct Ends(u32);

impl Drop for Ends {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        // Its own children end before it does.
        let _ = eventually("the end of nginx", || {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).ok();
            status
                .is_none_or(|status| status.contains(") Z "))
                .then_some(())
        });
    }
}

#[test]
fn nginx_serves_with_what_api_watch_writes_and_reads_it_again_with_every_rotation() {
    let user = rustix::process::geteuid().as_raw();
    let workload = format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web}}\n\
         spec: {{spiffeID: 'spiffe://example.org/web', selectors: ['unix:uid:{user}'], svidTTL: 6s}}\n"
    );
    let mut world = World::new().unwrap();
    let socket = world.agent(&workload).unwrap();
    let folder = world.path().to_owned();
    let address = free_address().unwrap();
    let mut watch = Command::new(binaries().unwrap().join("postern-agent"));
    watch.args(["api", "watch", "-write", "svid", "-silent", "-socketPath"]);
    watch
        .arg(socket)
        .arg("--")
        .args(["nginx", "-e", "stderr", "-p"]);
    watch.arg(&folder).arg("-c").arg(folder.join("nginx.conf"));
    world.spawn("watch", watch.args(["-s", "reload"])).unwrap();
    eventually("the files", || {
        std::fs::read(folder.join("svid/bundle.0.pem")).ok()
    })
    .unwrap();
    let server = format!(
        "server {{ listen {address} ssl; ssl_certificate svid/svid.0.pem; \
         ssl_certificate_key svid/svid.0.key; return 200; }}"
    );
    nginx(&mut world, Processes::Several, &server);
    let _ends = Ends(world.pid("nginx").unwrap());
    let serial = || {
        let line = format!(
            "openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -serial"
        );
        let told = String::from_utf8(run("sh", &["-c", &line]).unwrap().stdout).unwrap();
        told.starts_with("serial=").then_some(told)
    };
    let mut seen = vec![eventually("nginx", serial).unwrap()];
    eventually("two rotations", || {
        let now = serial()?;
        if !seen.contains(&now) {
            seen.push(now);
        }
        (seen.len() > 2).then_some(())
    })
    .unwrap();
    // The first reload came before there was a server: it was told, and changed nothing.
    world.told("watch", "`nginx` failed").unwrap();
    let mode = std::fs::metadata(folder.join("svid/svid.0.key")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
}

#[test]
fn nginx_calls_us() {
    calls(|world, listen, proxy| {
        let server = format!(
            "server {{ listen {listen}; location / {{ proxy_pass https://{proxy}; \
             proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host web.example; \
             proxy_ssl_certificate caller.crt; proxy_ssl_certificate_key caller.key; \
             proxy_ssl_trusted_certificate bundle.crt; proxy_ssl_verify on; \
             proxy_ssl_name web.example; proxy_ssl_protocols TLSv1.3; }} }}"
        );
        nginx(world, Processes::One, &server);
    });
}

#[test]
fn haproxy_calls_us() {
    for protocol in ["http/1.1", "h2"] {
        calls(|world, listen, proxy| {
            let folder = world.path().display().to_string();
            let rest = format!(
                "frontend f\n  bind {listen}\n  default_backend b\nbackend b\n  \
                 http-request set-header Host web.example\n  \
                 server s {proxy} ssl crt {folder}/caller.pem ca-file {folder}/bundle.crt \
                 verify required verifyhost web.example alpn {protocol} ssl-min-ver TLSv1.3\n"
            );
            haproxy(world, &rest);
        });
    }
}

#[test]
fn we_call_nginx() {
    for http2 in ["", "http2"] {
        is_called("--http1.1", "SUCCESS", |world, port| {
            let server = format!(
                "server {{ listen 127.0.0.2:{port} ssl {http2}; \
                 ssl_certificate web.crt; ssl_certificate_key web.key; \
                 ssl_client_certificate bundle.crt; ssl_verify_client on; ssl_protocols TLSv1.3; \
                 return 200 \"$ssl_client_verify $server_protocol\"; }}"
            );
            nginx(world, Processes::One, &server);
        });
    }
}

#[test]
fn we_call_haproxy() {
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        is_called(version, "HAProxy", |world, port| {
            let folder = world.path().display().to_string();
            let rest = format!(
                "frontend f\n  bind 127.0.0.2:{port} ssl crt {folder}/web.pem ca-file {folder}/bundle.crt \
                 verify required alpn h2,http/1.1 ssl-min-ver TLSv1.3\n  \
                 http-request return status 200 content-type text/plain string HAProxy\n"
            );
            haproxy(world, &rest);
        });
    }
}

#[test]
fn we_call_openssl() {
    is_called("--http1.1", "TLSv1.3", |world, port| {
        let accept = format!("127.0.0.2:{port}");
        let mut command = Command::new("openssl");
        command.args([
            "s_server", "-accept", &accept, "-cert", "web.crt", "-key", "web.key",
        ]);
        command.args(["-CAfile", "bundle.crt", "-Verify", "2", "-tls1_3", "-www"]);
        world.spawn("openssl", &mut command).unwrap();
    });
}
