//! Tests across processes: the real daemons, and programs that others wrote.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attestors;
mod authority;
mod chains;
mod commands;
mod control;
mod dependencies;
mod docker;
mod envoy;
mod faults;
mod federation;
mod http1;
mod http2;
mod inbound;
mod live;
mod netns;
mod outbound;
mod readme;
mod registry;
mod road;
mod tls;
mod tokens;
mod upstream;
mod workload_api;
