//! Fetches keys over HTTP.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use postern_https::{Client, Trust};
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::keys::{KeySet, Source};

/// Fetches keys.
#[derive(Debug)]
pub(super) struct Fetcher {
    trust: Trust,
    client: OnceCell<Client>,
}

impl Fetcher {
    pub(super) fn new(authorities: Option<PathBuf>) -> Self {
        Self {
            trust: authorities.map_or(Trust::System, Trust::File),
            client: OnceCell::new(),
        }
    }

    /// # Errors
    /// Whatever went wrong, with the URL; callers try again later.
    pub(super) async fn keys(&self, source: &Source) -> anyhow::Result<KeySet> {
        let uri = match source {
            Source::Uri(uri) => uri.clone(),
            Source::Issuer(issuer) => self.discover(issuer).await?,
        };
        let text = self.get(&uri).await.with_context(|| uri.clone())?;
        KeySet::parse(&text).context(uri)
    }

    /// Where an issuer has its keys. Spec: OpenID Connect Discovery 1.0 section 4.
    async fn discover(&self, issuer: &str) -> anyhow::Result<String> {
        #[derive(Deserialize)]
        struct Found {
            issuer: String,
            jwks_uri: String,
        }
        let base = issuer.trim_end_matches('/');
        let uri = format!("{base}/.well-known/openid-configuration");
        let text = self.get(&uri).await.with_context(|| uri.clone())?;
        let found: Found = serde_json::from_slice(&text)
            .with_context(|| format!("{uri} is no discovery document"))?;
        ensure!(
            found.issuer == issuer,
            "{uri} speaks of another issuer, `{}`",
            found.issuer
        );
        let keeps_tls = !uri.starts_with("https://") || found.jwks_uri.starts_with("https://");
        ensure!(
            keeps_tls,
            "{uri} names keys without TLS, `{}`",
            found.jwks_uri
        );
        Ok(found.jwks_uri)
    }

    async fn get(&self, uri: &str) -> anyhow::Result<Bytes> {
        let make = || async { Ok::<_, anyhow::Error>(Client::new(&self.trust, None)?.or_plain()) };
        self.client
            .get_or_try_init(make)
            .await?
            .get(uri, None)
            .await
    }
}
