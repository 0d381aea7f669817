//! What the daemons themselves say: their logs, read line by line as they grow.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::client::PATIENCE;

/// A line of a sidecar's access log, as far as the demo quotes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Access {
    pub(crate) verdict: Option<String>,
    stage: Option<String>,
    kind: Option<String>,
    policy: Option<String>,
    rule: Option<u64>,
    file: Option<String>,
    line: Option<u64>,
    reason: Option<String>,
    request_id: Option<String>,
    #[serde(rename = "src.addr")]
    source: Option<String>,
}

impl Access {
    /// Which policy line decided; where none did, why.
    pub(crate) fn decided(&self) -> String {
        let kind = self.kind.as_deref().unwrap_or("default");
        let reason = self.reason.as_deref().unwrap_or_default();
        match (&self.policy, &self.file, self.line) {
            (Some(policy), Some(file), Some(line)) => {
                let rule = self
                    .rule
                    .map(|rule| format!(" rule {rule}"))
                    .unwrap_or_default();
                let file = Path::new(file)
                    .file_name()
                    .unwrap_or_default()
                    .display()
                    .to_string();
                format!("{kind} {policy}{rule}, {file}:{line}")
            }
            _ => format!("{}: {reason}", self.stage.as_deref().unwrap_or(kind)),
        }
    }
}

/// The access log's line of one request.
pub(crate) async fn of_request(log: &Path, request_id: &str) -> anyhow::Result<Access> {
    find(log, |access| {
        access.request_id.as_deref() == Some(request_id)
    })
    .await
}

/// The access log's last line of a connection that came from `source`.
pub(crate) async fn of_source(log: &Path, source: &str) -> anyhow::Result<Access> {
    find(log, |access| access.source.as_deref() == Some(source)).await
}

async fn find(log: &Path, wanted: impl Fn(&Access) -> bool) -> anyhow::Result<Access> {
    let found = wait_for(|| {
        lines(log).rev().find_map(|line| {
            let access: Access = serde_json::from_value(line).ok()?;
            wanted(&access).then_some(access)
        })
    });
    found
        .await
        .with_context(|| format!("`{}` does not tell of it", log.display()))
}

/// Waits until a daemon's log says `message`, and gives that line.
pub(crate) async fn said(log: &Path, message: &str) -> anyhow::Result<Value> {
    wait_for(|| lines(log).find(|line| line.get("message").is_some_and(|said| said == message)))
        .await
        .with_context(|| format!("`{}` never says `{message}`", log.display()))
}

/// How often a daemon's log has said `message`.
pub(crate) fn count(log: &Path, message: &str) -> usize {
    lines(log)
        .filter(|line| line.get("message").is_some_and(|said| said == message))
        .count()
}

/// Asks again and again, with a deadline.
pub(crate) async fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The lines of a log that are JSON.
fn lines(log: &Path) -> impl DoubleEndedIterator<Item = Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let parsed: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    parsed.into_iter()
}
