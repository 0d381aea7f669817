//! Programs that others wrote at one end, our proxy at the other, in both directions: nginx,
//! HAProxy and openssl with SVIDs in files, Envoy and the crate `spiffe-rustls` with SVIDs that
//! they fetch from our agent.

mod agent;
mod envoy;
mod files;
mod spiffe_rustls;

use std::net::SocketAddr;

use postern_tests::run;

/// What curl gets in plain HTTP of this version: the status, or 0, and the body.
fn get(address: SocketAddr, version: &str, path: &str) -> (u16, String) {
    let url = format!("http://{address}{path}");
    let all = [
        "-s",
        "--max-time",
        "10",
        version,
        "-w",
        "\n%{http_code}",
        &url,
    ];
    let output = run("curl", &all).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    (status.parse().unwrap_or_default(), body.to_owned())
}
