//! What is counted on the way to upstreams.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// A connection that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OpenedLabels {
    /// `inbound` (to the app) or `outbound` (to another proxy).
    pub direction: &'static str,
    /// `http1` or `http2`.
    pub protocol: &'static str,
}

/// A bound that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BoundLabels {
    /// `inbound` (to the app) or `outbound` (to another proxy).
    pub direction: &'static str,
    /// The bound's name, of a fixed list.
    pub bound: &'static str,
}

/// Why something was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A word of a fixed list.
    pub reason: &'static str,
}

/// What is counted on the way to upstreams.
#[derive(Debug, Default)]
pub struct UpstreamMetrics {
    /// Connections opened to upstreams.
    pub opened: Family<OpenedLabels, Counter>,
    /// Bounds that were reached.
    pub bounds: Family<BoundLabels, Counter>,
    /// Requests sent once more because a kept connection was dead.
    pub replaced: Counter,
    /// Requests tried again, by the reason why the try before failed.
    pub retries: Family<ReasonLabel, Counter>,
    /// Endpoints left out for a while because they failed.
    pub ejections: Counter,
    /// Addresses that are never dialled, by what they are.
    pub denied_addresses: Family<ReasonLabel, Counter>,
    /// DNS names that could not be looked up.
    pub lookups_failed: Counter,
}

impl UpstreamMetrics {
    /// All at zero, and registered.
    pub(super) fn register(all: &mut Registry) -> Self {
        let new = Self::default();
        all.register(
            "upstream_connections_opened",
            "Connections opened to the app and to other proxies",
            new.opened.clone(),
        );
        all.register(
            "upstream_bounds_reached",
            "Bounds of outgoing traffic that were reached",
            new.bounds.clone(),
        );
        all.register(
            "upstream_dead_connections_replaced",
            "Requests sent once more because a kept connection was dead",
            new.replaced.clone(),
        );
        all.register(
            "upstream_retries",
            "Requests tried again, by the reason why the try before failed",
            new.retries.clone(),
        );
        all.register(
            "upstream_ejections",
            "Endpoints left out for a while because they failed",
            new.ejections.clone(),
        );
        all.register(
            "upstream_addresses_denied",
            "Addresses of Workloads that are never dialled",
            new.denied_addresses.clone(),
        );
        all.register(
            "upstream_lookups_failed",
            "DNS names of Workloads that could not be looked up",
            new.lookups_failed.clone(),
        );
        new
    }

    pub(super) fn told_from_the_start(&self) {
        for direction in ["inbound", "outbound"] {
            for bound in ["connections", "idle"] {
                drop(self.bounds.get_or_create(&BoundLabels { direction, bound }));
            }
        }
        for reason in ["connect", "connect_timeout", "tls", "timeout"] {
            drop(self.retries.get_or_create(&ReasonLabel { reason }));
        }
        for reason in ["loopback", "link_local", "metadata", "own_listener"] {
            drop(self.denied_addresses.get_or_create(&ReasonLabel { reason }));
        }
    }
}
