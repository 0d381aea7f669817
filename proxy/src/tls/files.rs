//! The identity from files in PEM, read again whenever they look different.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use postern_policies::files::Fingerprint;
use postern_spiffe::{BundleSet, RevocationLists, X509Bundle, X509Svid};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{sync::watch, time::interval};

use super::{Identity, Trust, install};
use crate::telemetry::Metrics;

/// Where the files lie.
pub(super) struct Paths {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) bundle: PathBuf,
}

/// Keeps the identity up to date, for ever.
pub(super) async fn follow(
    paths: &Paths,
    current: &watch::Sender<Option<Arc<Identity>>>,
    metrics: &Metrics,
) {
    let mut seen = None;
    let mut every = interval(LOOK_EVERY);
    loop {
        every.tick().await;
        let expired = current
            .borrow()
            .as_ref()
            .is_some_and(|identity| identity.svid().not_after() < SystemTime::now());
        if expired {
            tracing::error!(
                "the certificate has expired and there is no new one; nothing is served"
            );
            current.send_replace(None);
        }
        let now = [&paths.certificate, &paths.key, &paths.bundle].map(|path| Fingerprint::of(path));
        if seen.as_ref() == Some(&now) {
            continue;
        }
        seen = Some(now);
        match read(paths) {
            Ok(identity) => install(current, identity, metrics),
            Err(error) => {
                metrics.identity_errors.inc();
                tracing::error!(
                    error = format!("{error:#}"),
                    "the identity's files were refused"
                );
            }
        }
    }
}

fn read(paths: &Paths) -> anyhow::Result<Identity> {
    let chain = certificates(&paths.certificate)?;
    let authorities = certificates(&paths.bundle)?;
    let key = PrivateKeyDer::from_pem_file(&paths.key)
        .with_context(|| format!("`{}` holds no private key", paths.key.display()))?;
    let leaf = chain.first().context("there is no certificate")?;
    let own = X509Svid::parse(leaf)
        .with_context(|| format!("`{}`", paths.certificate.display()))?
        .id()
        .trust_domain()
        .clone();
    let bundle = X509Bundle::new(own, authorities)
        .with_context(|| format!("`{}`", paths.bundle.display()))?;
    let trust = Trust {
        bundles: BundleSet::from_iter([bundle]),
        revocations: RevocationLists::default(),
    };
    Identity::new(chain, key, trust)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("`{}` cannot be read as PEM", path.display()))?;
    anyhow::ensure!(
        !certificates.is_empty(),
        "`{}` holds no certificate",
        path.display()
    );
    Ok(certificates)
}

const LOOK_EVERY: Duration = Duration::from_millis(500);
