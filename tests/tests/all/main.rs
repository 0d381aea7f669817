//! Tests across processes: the real daemons, and programs that others wrote.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attestors;
mod authority;
mod booted;
mod chains;
mod commands;
mod compose;
mod control;
mod dependencies;
mod docker;
mod drift;
mod drift_rules;
mod drift_table;
mod ending;
mod envoy;
mod faults;
mod federation;
mod harden;
mod http1;
mod http2;
mod images;
mod inbound;
mod inject;
mod interop;
mod kubernetes;
mod live;
mod logs;
mod metrics;
mod netns;
mod operation;
mod otlp;
mod outbound;
mod package;
mod posture;
mod quickstarts;
mod readme;
mod registry;
mod reloads;
mod road;
mod run;
mod systemd_units;
mod tls;
mod tokens;
mod upstream;
mod workload_api;
