//! How the proxy is, for whoever looks at the service manager.

use std::{io, sync::Arc};

use postern_supervisor::Notify;

use crate::app::Proxy;

/// Tells it whenever it is something else.
pub(crate) async fn follow(proxy: Arc<Proxy>, notify: Notify) {
    notify.follow(move || status(&proxy)).await;
}

/// In a line: what the proxy waits for, or whom it stands for.
pub(crate) fn status(proxy: &Proxy) -> String {
    let missing = proxy.missing();
    if !missing.is_empty() {
        return format!("waits for: {}", missing.join("; "));
    }
    let workload = proxy.own_workload().map(|name| name.to_string());
    let identity = proxy.ready().map(|(identity, _)| identity.id().to_string());
    format!(
        "serves {} as {}",
        workload.unwrap_or_default(),
        identity.unwrap_or_default()
    )
}

/// A service manager that cannot be told thinks what it likes; whoever looks into the log knows better.
pub(crate) fn told(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "the service manager was not told");
    }
}
