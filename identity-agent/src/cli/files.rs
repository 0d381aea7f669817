//! Identities as files, for programs that do not speak the Workload API.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::Context as _;
use postern_agent::pem::pem;
use postern_proto::workload_api::{X509svid, X509svidResponse};
use postern_spiffe::x509_svid::split_der;

use super::fetch::federated;

/// `svid.N.pem`, `svid.N.key`, `bundle.N.pem` and `federated_bundle.N.M.pem`, the key for its owner alone.
///
/// # Errors
/// When a file cannot be written, or the agent's answer not be read.
pub(super) fn write(
    response: &X509svidResponse,
    folder: &Path,
    silent: bool,
) -> anyhow::Result<()> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    for (number, svid) in response.svids.iter().enumerate() {
        let mut all = files(number, svid)?.to_vec();
        for (place, (_, bundle)) in federated(response).into_iter().enumerate() {
            let name = format!("federated_bundle.{number}.{place}.pem");
            all.push((name, 0o644, certificates(bundle)?));
        }
        for (name, mode, text) in all {
            let path = folder.join(name);
            if !silent {
                anstream::println!("Writing {} to file {}.", what(&path), path.display());
            }
            write_whole(&path, mode, &text)?;
        }
    }
    Ok(())
}

fn files(number: usize, svid: &X509svid) -> anyhow::Result<[(String, u32, String); 3]> {
    Ok([
        (
            format!("svid.{number}.pem"),
            0o644,
            certificates(&svid.x509_svid)?,
        ),
        (
            format!("svid.{number}.key"),
            0o600,
            pem("PRIVATE KEY", &svid.x509_svid_key),
        ),
        (
            format!("bundle.{number}.pem"),
            0o644,
            certificates(&svid.bundle)?,
        ),
    ])
}

fn certificates(der: &[u8]) -> anyhow::Result<String> {
    let all = split_der(der).context("the agent's certificates cannot be read")?;
    Ok(all.iter().map(|one| pem("CERTIFICATE", one)).collect())
}

/// A reader sees the old file or the new one, never half of one.
fn write_whole(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    let failed = || format!("cannot write `{}`", path.display());
    let mut options = OpenOptions::new();
    let _ = fs::remove_file(&fresh);
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)
        .with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    fs::rename(&fresh, path).with_context(failed)
}

fn what(path: &Path) -> &'static str {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    match name {
        _ if name.starts_with("bundle") => "bundle",
        _ if name.starts_with("federated_bundle") => "federated bundle",
        _ if name.ends_with(".key") => "key",
        _ => "SVID",
    }
}
