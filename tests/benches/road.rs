//! What the road costs: the same requests straight to an app and through its sidecar, in turns in
//! one run, and what the idle daemons hold in memory. Times are ratios; machines are noisy.
//!
//! `cargo bench -p postern-tests`

#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]

use std::{fs, process::Command, time::Instant};

use anyhow::{Context as _, ensure};
use postern_tests::{
    binaries,
    certificates::Authority,
    world::{App, World, free_address},
};

fn main() -> anyhow::Result<()> {
    let mut world = World::new()?;
    let app = App::start()?;
    let authority = Authority::new("example.org")?;
    let id = "spiffe://example.org/ns/default/sa/web";
    authority.write_leaf(world.path(), "web", id, |_| {})?;
    world.write("bundle.crt", &authority.pem)?;
    let policies = format!(
        "apiVersion: postern.dev/v1\nkind: Workload\nmetadata: {{name: web}}\n\
         spec: {{serviceAccount: web, addresses: [127.0.0.1], ports: [{{port: {}}}]}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: all}}\n\
         spec: {{rules: [{{from: [{{source: {{principals: ['example.org/ns/default/sa/web']}}}}]}}]}}\n",
        app.address.port()
    );
    world.write("policies/all.yaml", &policies)?;
    let (inbound, outbound) = (free_address()?, free_address()?);
    let common = "identity: {files: {certificate: web.crt, key: web.key, bundle: bundle.crt}}\n\
                  policies: {directory: policies}\ndefaults: {network: allow, authorization: deny}\n";
    let server = format!(
        "{common}inbound: {{listen: '{inbound}', forward: '{}'}}\n\
         admin: {{listen: '{}'}}\nmetrics: {{listen: '{}'}}\naccessLog: {{path: /dev/null}}\n",
        app.address,
        free_address()?,
        free_address()?
    );
    world.proxy("server", &server)?;
    // The caller's side reaches the Workload at the server's side.
    let reached = policies.replace(&app.address.port().to_string(), &inbound.port().to_string());
    world.write("reached/all.yaml", &reached)?;
    let client = format!(
        "{}inbound: {{listen: '{}', forward: '127.0.0.1:9'}}\n\
         outbound: {{listeners: [{{listen: '{outbound}', to: default/web, port: {}}}]}}\n\
         admin: {{listen: '{}'}}\nmetrics: {{listen: '{}'}}\naccessLog: {{path: /dev/null}}\n",
        common.replace("directory: policies", "directory: reached"),
        free_address()?,
        inbound.port(),
        free_address()?,
        free_address()?
    );
    world.proxy("client", &client)?;
    for name in ["server", "client"] {
        world.said(name, "ready")?;
    }
    println!("binaries: {}", binaries()?.display());
    for name in ["server", "client"] {
        println!("idle {name}: {} KiB resident", resident(&world, name)?);
    }
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        direct.extend(requests(app.address)?);
        through.extend(requests(outbound)?);
    }
    direct.sort_unstable();
    through.sort_unstable();
    for (name, percent) in [("p50", 50), ("p99", 99)] {
        let of = |all: &[u128]| {
            all.get(all.len() * percent / 100)
                .copied()
                .unwrap_or_default()
        };
        let (direct, through) = (of(&direct), of(&through));
        let ratio = f64::from(u32::try_from(through)?) / f64::from(u32::try_from(direct)?.max(1));
        println!("{name}: direct {direct} us, through the pair {through} us, ratio {ratio:.2}");
    }
    Ok(())
}

/// The microseconds of each request on one kept connection.
fn requests(address: std::net::SocketAddr) -> anyhow::Result<Vec<u128>> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut answer = [0; 4096];
    let mut times = Vec::new();
    for _ in 0..REQUESTS {
        let began = Instant::now();
        stream.write_all(b"GET /a HTTP/1.1\r\nhost: web\r\n\r\n")?;
        let mut read = 0;
        while !answer.get(..read).unwrap_or_default().ends_with(b"hello\n") {
            let more = stream.read(answer.get_mut(read..).context("the answer is too long")?)?;
            ensure!(more > 0, "the connection was closed");
            read += more;
        }
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "refused");
        times.push(began.elapsed().as_micros());
    }
    Ok(times)
}

/// Resident memory, by the name of the configuration.
fn resident(world: &World, name: &str) -> anyhow::Result<u64> {
    let config = world
        .path()
        .join(format!("{name}.yaml"))
        .display()
        .to_string();
    let found = Command::new("pgrep").args(["-f", &config]).output()?;
    let pid = String::from_utf8_lossy(&found.stdout)
        .lines()
        .next()
        .context("no process")?
        .to_owned();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

const ROUNDS: usize = 5;
const REQUESTS: usize = 2000;
